// Maps are enlarged as PyTorch and Pillow enlarge them, bilinearly.

/// Between which two of the given places an enlarged one lies, and how near to the second.
struct Place {
    let lower: Int
    let upper: Int
    let share: Float
}

/// Where the places of a side of `length` lie on one of `given`.
func places(given: Int, length: Int) -> [Place] {
    (0..<length).map { index in
        let place = min(max((Double(index) + 0.5) * Double(given) / Double(length) - 0.5, 0), Double(given - 1))
        let lower = min(Int(place), max(given - 2, 0))
        return Place(lower: lower, upper: min(lower + 1, given - 1), share: Float(place - Double(lower)))
    }
}

extension Array where Element == Float {
    /// The value between four of a map whose rows have `columns` values and that begins at `start`.
    func between(start: Int, columns: Int, _ vertical: Place, _ horizontal: Place) -> Float {
        let (above, below) = (start + vertical.lower * columns, start + vertical.upper * columns)
        let (left, right) = (horizontal.lower, horizontal.upper)
        let upper = self[above + left] * (1 - horizontal.share) + self[above + right] * horizontal.share
        let lower = self[below + left] * (1 - horizontal.share) + self[below + right] * horizontal.share
        return upper * (1 - vertical.share) + lower * vertical.share
    }
}
