import ExecuTorch
import Foundation

struct Prediction {
    let label: String
    let probability: Double
}

/// Every class with its probability, the most probable first; and what speaks for that one, if the program tells.
struct Classification {
    let predictions: [Prediction]
    let heat: Heat?
}

struct ProgramError: LocalizedError {
    let errorDescription: String?
}

/// The program of the bundle, which takes pictures as the contract beside it says. An actor, as a module is for one thread.
actor Program {
    let contract: Contract
    private let module: Module

    init(bundle: Bundle = .main) throws {
        guard let program = bundle.path(forResource: "model", ofType: "pte"),
            let json = bundle.url(forResource: "contract", withExtension: "json")
        else {
            throw ProgramError(errorDescription: "The app must hold model.pte and contract.json; add them to Resources.")
        }
        contract = try JSONDecoder().decode(Contract.self, from: Data(contentsOf: json))
        module = Module(filePath: program)
        let labels: [String] = try module.execute("labels")
        guard labels.count == contract.labels.count else {
            let message = "contract.json must name the \(labels.count) classes of model.pte, got \(contract.labels.count); "
            throw ProgramError(errorDescription: message + "write the app again.")
        }
        try module.load("forward")
    }

    func classify(_ picture: Picture) throws -> Classification {
        let pixels = seen(picture)
        let outputs: [Value] = try module.forward([input(pixels)])
        guard let output: Tensor<Float> = outputs.first?.tensor() else {
            throw ProgramError(errorDescription: "model.pte must put out logits as floats; export it again with swin-hf.")
        }
        let logits = output.scalars()
        let largest = logits.max() ?? 0
        let scores = logits.map { exp(Double($0 - largest) / contract.temperature) }
        let sum = scores.reduce(0, +)
        let predictions = zip(contract.labels, scores).map { Prediction(label: $0, probability: $1 / sum) }
            .sorted { $0.probability > $1.probability }
        guard contract.explains, outputs.count > 1, let maps: Tensor<Float> = outputs[1].tensor(),
            let best = logits.firstIndex(of: largest)
        else {
            return Classification(predictions: predictions, heat: nil)
        }
        let heat = Heat(
            maps: maps.scalars(), number: best, rows: maps.shape[2], columns: maps.shape[3], seen: pixels,
            height: contract.height, width: contract.width)
        return Classification(predictions: predictions, heat: heat)
    }

    /// The class of each pixel of a picture, as if it had this size.
    func segment(_ picture: Picture, height: Int, width: Int) throws -> ClassMap {
        if contract.classMap {
            let output: Tensor<UInt8> = try module.forward(input(seen(picture)))
            let (rows, columns) = (output.shape[1], output.shape[2])
            return ClassMap(given: output.scalars(), rows: rows, columns: columns, height: height, width: width)
        }
        let output: Tensor<Float> = try module.forward(input(seen(picture)))
        let (count, rows, columns) = (output.shape[1], output.shape[2], output.shape[3])
        return ClassMap(
            logits: output.scalars(), count: count, rows: rows, columns: columns, height: height, width: width)
    }

    /// The bytes (height, width, 3) of a picture that the program sees.
    private func seen(_ picture: Picture) -> [UInt8] {
        fit(
            picture, height: contract.height, width: contract.width, cropPct: contract.cropPct, filter: contract.resample)
    }

    /// Bytes (height, width, 3) as the program takes them.
    private func input(_ pixels: [UInt8]) -> ValueConvertible {
        let (height, width) = (contract.height, contract.width)
        return contract.dtype == "uint8"
            ? Tensor<UInt8>(pixels, shape: [1, height, width, 3])
            : Tensor<Float>(toPlanes(pixels), shape: [1, 3, height, width])
    }
}
