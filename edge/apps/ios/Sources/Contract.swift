import Foundation

/// What the program takes and what its logits mean: `contract.json`, which `python -m edge app` wrote.
struct Contract: Decodable {
    let height: Int
    let width: Int
    let resample: Filter
    /// Share of the shorter side that a crop from the middle keeps; nil: a picture is stretched to the input's shape.
    let cropPct: Double?
    /// "uint8": the program takes bytes (1, height, width, 3); "float32": floats (1, 3, height, width) in [0, 1].
    let dtype: String
    /// Probabilities are softmax(logits / temperature).
    let temperature: Double
    /// Names of the classes, in the order of the logits.
    let labels: [String]
    /// "semantic-segmentation": the program says the class of each pixel; "image-classification": that of the picture.
    let task: String
    /// Red, green and blue of the colour of each class, if it segments.
    let palette: [[Int]]
    /// The program puts out classes (1, height, width), as bytes, instead of logits (1, K, h, w).
    let classMap: Bool
    /// Behind the logits, a classifier puts out class maps (1, K, h, w), which explain them.
    let explains: Bool

    var segments: Bool { task == "semantic-segmentation" }
}
