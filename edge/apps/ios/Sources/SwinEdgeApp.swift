import SwiftUI

@main
struct SwinEdgeApp: App {
    var body: some Scene {
        WindowGroup { ClassifierView() }
    }
}

/// A picture and its five most probable classes.
struct ClassifierView: View {
    @State private var classifier: Classifier?
    @State private var image: UIImage?
    @State private var answer = "Loading the program."
    @State private var takesPicture = false

    var body: some View {
        VStack(spacing: 16) {
            if let image {
                Image(uiImage: image).resizable().scaledToFit()
            }
            Text(answer).font(.body.monospacedDigit())
            Button("Take a picture") { takesPicture = true }
                .buttonStyle(.borderedProminent)
                .disabled(classifier == nil)
        }
        .padding()
        .fullScreenCover(isPresented: $takesPicture) {
            Camera { image in Task { await classify(image) } }.ignoresSafeArea()
        }
        .task {
            do {
                classifier = try await Task.detached { try Classifier() }.value
                answer = ""
            } catch {
                answer = error.localizedDescription
            }
        }
    }

    private func classify(_ image: UIImage) async {
        self.image = image
        guard let classifier else { return }
        guard let picture = Picture(image) else {
            answer = "The picture cannot be read."
            return
        }
        do {
            let best = try await classifier.classify(picture).prefix(5)
            answer = best.map { String(format: "%5.1f %%  %@", 100 * $0.probability, $0.label) }.joined(separator: "\n")
        } catch {
            answer = error.localizedDescription
        }
    }
}
