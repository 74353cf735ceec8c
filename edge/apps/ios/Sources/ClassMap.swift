// The arithmetic of `edge.device.segmentation`: logits are enlarged as PyTorch enlarges them, classes to the nearest.

private let opacity = 0.55  // of the colours over the picture

/// The class of each pixel, row by row.
struct ClassMap {
    let height: Int
    let width: Int
    let classes: [Int]

    /// The share of the pixels of each of `count` classes.
    func shares(count: Int) -> [Double] {
        var shares = [Double](repeating: 0, count: count)
        for number in classes { shares[number] += 1 / Double(classes.count) }
        return shares
    }

    /// Bytes (height, width, 4), the colours of the classes over those of a picture of the same size.
    func over(_ bytes: [UInt8], palette: [[Int]]) -> [UInt8] {
        var mixed = bytes
        for (pixel, number) in classes.enumerated() {
            for channel in 0..<3 {
                let own = Double(bytes[4 * pixel + channel])
                let value = own + opacity * (Double(palette[number][channel]) - own)
                mixed[4 * pixel + channel] = UInt8(value.rounded())
            }
        }
        return mixed
    }
}

extension ClassMap {
    /// The most probable class of each pixel of a picture, from logits (count, rows, columns).
    init(logits: [Float], count: Int, rows: Int, columns: Int, height: Int, width: Int) {
        let vertical = places(given: rows, length: height)
        let horizontal = places(given: columns, length: width)
        var classes = [Int](repeating: 0, count: height * width)
        for y in 0..<height {
            for x in 0..<width {
                let (top, left) = (vertical[y], horizontal[x])
                var best = -Float.infinity
                for number in 0..<count {
                    let plane = number * rows * columns
                    let above = top.lower * columns + plane
                    let below = top.upper * columns + plane
                    let upper = logits[above + left.lower] * (1 - left.share) + logits[above + left.upper] * left.share
                    let lower = logits[below + left.lower] * (1 - left.share) + logits[below + left.upper] * left.share
                    let value = upper * (1 - top.share) + lower * top.share
                    if value > best {
                        best = value
                        classes[y * width + x] = number
                    }
                }
            }
        }
        self.init(height: height, width: width, classes: classes)
    }

    /// Classes (rows, columns) at the size of a picture, each pixel with the class of the nearest one.
    init(given: [UInt8], rows: Int, columns: Int, height: Int, width: Int) {
        let classes = (0..<height * width).map { at -> Int in
            let row = Int((Double(at / width) + 0.5) * Double(rows) / Double(height))
            let column = Int((Double(at % width) + 0.5) * Double(columns) / Double(width))
            return Int(given[row * columns + column])
        }
        self.init(height: height, width: width, classes: classes)
    }
}

/// Between which two of the given places an enlarged one lies, and how near to the second.
private struct Place {
    let lower: Int
    let upper: Int
    let share: Float
}

private func places(given: Int, length: Int) -> [Place] {
    (0..<length).map { index in
        let place = min(max((Double(index) + 0.5) * Double(given) / Double(length) - 0.5, 0), Double(given - 1))
        let lower = min(Int(place), max(given - 2, 0))
        return Place(lower: lower, upper: min(lower + 1, given - 1), share: Float(place - Double(lower)))
    }
}
