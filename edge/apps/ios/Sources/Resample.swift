// The arithmetic of Pillow's `Image.resize`, which prepared the images of the training. The system's own resizers weigh
// pixels differently, and a model sees that.
// From version 13 on, Pillow begins with the columns for some sizes; this always begins with the rows, and a level may differ
// by one.

/// An upright picture: rows from top to bottom, four bytes a pixel, which are red, green, blue and one that is ignored.
struct Picture {
    let height: Int
    let width: Int
    let bytes: [UInt8]
}

/// Pillow's filters, by the names of `contract.json`.
enum Filter: String, Decodable {
    case nearest, bilinear, bicubic

    /// How far it reaches, in pixels of the smaller image.
    var support: Double {
        switch self {
        case .nearest: return 0
        case .bilinear: return 1
        case .bicubic: return 2
        }
    }

    func weight(_ offset: Double) -> Double {
        let x = abs(offset)
        switch self {
        case .nearest: return 1
        case .bilinear: return x < 1 ? 1 - x : 0
        case .bicubic:  // Keys' cubic with a = -0.5
            if x < 1 { return (1.5 * x - 2.5) * x * x + 1 }
            if x < 2 { return (((x - 5) * x + 8) * x - 4) * -0.5 }
            return 0
        }
    }
}

private let precisionBits = 32 - 8 - 2
private let half = 1 << (precisionBits - 1)

/// What one output pixel sees along an axis: input pixels from `first` on, with fixed-point weights.
private struct Taps {
    let first: Int
    let weights: [Int]
}

private func taps(from size: Int, to newSize: Int, filter: Filter) -> [Taps] {
    let scale = Double(size) / Double(newSize)
    if filter == .nearest {
        var center = scale * 0.5  // added up as Pillow does, rounding errors included
        return (0..<newSize).map { _ in
            defer { center += scale }
            return Taps(first: min(Int(center), size - 1), weights: [1 << precisionBits])
        }
    }
    let stretch = max(scale, 1)  // the filter grows as the image shrinks: that is the antialiasing
    let support = filter.support * stretch
    return (0..<newSize).map { index in
        let center = (Double(index) + 0.5) * scale
        let first = max(Int(center - support + 0.5), 0)
        let end = min(Int(center + support + 0.5), size)
        let weights = (first..<end).map { filter.weight((Double($0) - center + 0.5) * (1 / stretch)) }
        let sum = weights.reduce(0, +)
        return Taps(first: first, weights: weights.map { fixedPoint($0 / sum) })
    }
}

private func fixedPoint(_ weight: Double) -> Int {
    Int(weight * Double(1 << precisionBits) + (weight < 0 ? -0.5 : 0.5))
}

private func round8(_ sum: Int) -> UInt8 {
    UInt8(min(max(sum >> precisionBits, 0), 255))
}

/// `picture` as RGB bytes (height, width, 3), resized with antialiasing: first along rows, then along columns.
func resample(_ picture: Picture, height: Int, width: Int, filter: Filter) -> [UInt8] {
    var narrow = [UInt8](repeating: 0, count: picture.height * width * 3)
    let columns = taps(from: picture.width, to: width, filter: filter)
    for y in 0..<picture.height {
        for x in 0..<width {
            var (red, green, blue) = (half, half, half)
            var from = (y * picture.width + columns[x].first) * 4
            for weight in columns[x].weights {
                red += Int(picture.bytes[from]) * weight
                green += Int(picture.bytes[from + 1]) * weight
                blue += Int(picture.bytes[from + 2]) * weight
                from += 4
            }
            let at = (y * width + x) * 3
            narrow[at] = round8(red)
            narrow[at + 1] = round8(green)
            narrow[at + 2] = round8(blue)
        }
    }
    let stride = width * 3
    var resized = [UInt8](repeating: 0, count: height * stride)
    for (y, taps) in taps(from: picture.height, to: height, filter: filter).enumerated() {
        var sums = [Int](repeating: half, count: stride)
        for (i, weight) in taps.weights.enumerated() {
            let from = (taps.first + i) * stride
            for x in 0..<stride { sums[x] += Int(narrow[from + x]) * weight }
        }
        for x in 0..<stride { resized[y * stride + x] = round8(sums[x]) }
    }
    return resized
}

/// `picture` as RGB bytes (height, width, 3): stretched, or, with `cropPct`, resized in its shape and cropped to its middle.
func fit(_ picture: Picture, height: Int, width: Int, cropPct: Double?, filter: Filter) -> [UInt8] {
    guard let cropPct else { return resample(picture, height: height, width: width, filter: filter) }
    let rows = Int((Double(height) / cropPct).rounded(.down))
    let columns = Int((Double(width) / cropPct).rounded(.down))
    let isWide = picture.height * columns <= picture.width * rows
    let resizedHeight = isWide ? rows : Int(Double(columns * picture.height) / Double(picture.width))
    let resizedWidth = isWide ? Int(Double(rows * picture.width) / Double(picture.height)) : columns
    let resized = resample(picture, height: resizedHeight, width: resizedWidth, filter: filter)
    let (top, left) = ((resizedHeight - height) / 2, (resizedWidth - width) / 2)
    var cropped: [UInt8] = []
    cropped.reserveCapacity(height * width * 3)
    for y in top..<(top + height) {
        let from = (y * resizedWidth + left) * 3
        cropped += resized[from..<(from + width * 3)]
    }
    return cropped
}

/// RGB bytes (height, width, 3) as floats (3, height, width) in [0, 1].
func toPlanes(_ pixels: [UInt8]) -> [Float] {
    let size = pixels.count / 3
    return (0..<pixels.count).map { Float(pixels[$0 % size * 3 + $0 / size]) / 255 }
}
