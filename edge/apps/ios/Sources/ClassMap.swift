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
                var best = -Float.infinity
                for number in 0..<count {
                    let start = number * rows * columns
                    let value = logits.between(start: start, columns: columns, vertical[y], horizontal[x])
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
