// The arithmetic of `edge.device.explanation`.

private let speaksFor = [214, 39, 40]
private let speaksAgainst = [31, 119, 180]
private let opacity: Float = 0.75  // of the strongest place

/// A picture in grey, bytes (height, width, 4), under what speaks for a class, in red, and against it, in blue.
struct Heat {
    let height: Int
    let width: Int
    let bytes: [UInt8]

    /// Class `number` of the class maps (K, rows, columns) over a picture, bytes (height, width, 3).
    init(maps: [Float], number: Int, rows: Int, columns: Int, seen: [UInt8], height: Int, width: Int) {
        let start = number * rows * columns
        let strongest = maps[start..<start + rows * columns].reduce(1e-12) { max($0, abs($1)) }
        let vertical = places(given: rows, length: height)
        let horizontal = places(given: columns, length: width)
        var bytes = [UInt8](repeating: 255, count: 4 * height * width)
        for pixel in 0..<height * width {
            let (down, right) = (vertical[pixel / width], horizontal[pixel % width])
            let level = maps.between(start: start, columns: columns, down, right) / strongest
            let (red, green, blue) = (Int(seen[3 * pixel]), Int(seen[3 * pixel + 1]), Int(seen[3 * pixel + 2]))
            let grey = Float((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)  // as Pillow rounds it
            let colour = level > 0 ? speaksFor : speaksAgainst
            for channel in 0..<3 {
                let value = grey + opacity * min(abs(level), 1) * (Float(colour[channel]) - grey)
                bytes[4 * pixel + channel] = UInt8(value.rounded())
            }
        }
        (self.height, self.width, self.bytes) = (height, width, bytes)
    }
}
