import SwiftUI

@main
struct SwinEdgeApp: App {
    var body: some Scene {
        WindowGroup { ProgramView() }
    }
}

private let largestSide = 1024.0  // of a picture whose pixels are given classes

/// A picture, and what the program says of it: its five most probable classes, or those of its pixels in colours.
struct ProgramView: View {
    @State private var program: Program?
    @State private var image: UIImage?
    @State private var answer = AttributedString("Loading the program.")
    @State private var takesPicture = false

    var body: some View {
        VStack(spacing: 16) {
            if let image {
                Image(uiImage: image).resizable().scaledToFit()
            }
            Text(answer).font(.body.monospacedDigit())
            Button("Take a picture") { takesPicture = true }
                .buttonStyle(.borderedProminent)
                .disabled(program == nil)
        }
        .padding()
        .fullScreenCover(isPresented: $takesPicture) {
            Camera { image in Task { await describe(image) } }.ignoresSafeArea()
        }
        .task {
            do {
                program = try await Task.detached { try Program() }.value
                answer = ""
            } catch {
                answer = AttributedString(error.localizedDescription)
            }
        }
    }

    private func describe(_ image: UIImage) async {
        self.image = image
        guard let program else { return }
        guard let picture = Picture(image) else {
            answer = "The picture cannot be read."
            return
        }
        do {
            if program.contract.segments {
                try await segment(picture, image)
                return
            }
            show(try await program.classify(picture))
        } catch {
            answer = AttributedString(error.localizedDescription)
        }
    }

    /// Shows the most probable classes and, if the program tells, what speaks for the first of them.
    private func show(_ found: Classification) {
        let best = found.predictions.prefix(5)
        var lines = best.map { String(format: "%5.1f %%  %@", 100 * $0.probability, $0.label) }
        if let heat = found.heat, let first = best.first {
            image = UIImage(bytes: heat.bytes, height: heat.height, width: heat.width)
            lines.append("red: for \(first.label), blue: against it")
        }
        answer = AttributedString(lines.joined(separator: "\n"))
    }

    /// Shows the classes of the pixels over the picture, and a legend with their shares.
    private func segment(_ picture: Picture, _ image: UIImage) async throws {
        guard let program, let shown = Picture(shrunk(image)) else { return }
        let contract = program.contract
        let map = try await program.segment(picture, height: shown.height, width: shown.width)
        self.image = UIImage(bytes: map.over(shown.bytes, palette: contract.palette), height: map.height, width: map.width)
        let shares = map.shares(count: contract.labels.count).enumerated().filter { $0.element > 0 }
        answer = shares.sorted { $0.element > $1.element }.prefix(5).reduce(into: AttributedString()) { legend, found in
            let colour = contract.palette[found.offset].map { Double($0) / 255 }
            var square = AttributedString("\u{25A0} ")
            square.foregroundColor = Color(red: colour[0], green: colour[1], blue: colour[2])
            legend += square
            legend += AttributedString(String(format: "%5.1f %%  %@\n", 100 * found.element, contract.labels[found.offset]))
        }
    }
}

/// An image no larger than what a screen can show.
private func shrunk(_ image: UIImage) -> UIImage {
    let factor = min(largestSide / max(image.size.width, image.size.height), 1)
    let size = CGSize(width: (image.size.width * factor).rounded(), height: (image.size.height * factor).rounded())
    let format = UIGraphicsImageRendererFormat()
    format.scale = 1
    return UIGraphicsImageRenderer(size: size, format: format).image { _ in image.draw(in: CGRect(origin: .zero, size: size)) }
}

extension UIImage {
    /// An image of bytes (height, width, 4), the fourth of which does not count.
    fileprivate convenience init?(bytes: [UInt8], height: Int, width: Int) {
        guard let provider = CGDataProvider(data: Data(bytes) as CFData),
            let image = CGImage(
                width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: width * 4,
                space: CGColorSpaceCreateDeviceRGB(), bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue),
                provider: provider, decode: nil, shouldInterpolate: false, intent: .defaultIntent)
        else { return nil }
        self.init(cgImage: image)
    }
}
