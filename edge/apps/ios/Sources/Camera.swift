import SwiftUI
import UIKit

/// The system's camera; where there is none, as in the simulator, the photo library.
struct Camera: UIViewControllerRepresentable {
    let onPicture: (UIImage) -> Void
    @Environment(\.dismiss) private var dismiss

    func makeUIViewController(context: Context) -> UIImagePickerController {
        let picker = UIImagePickerController()
        picker.sourceType = UIImagePickerController.isSourceTypeAvailable(.camera) ? .camera : .photoLibrary
        picker.delegate = context.coordinator
        return picker
    }

    func updateUIViewController(_ picker: UIImagePickerController, context: Context) {}

    func makeCoordinator() -> Coordinator { Coordinator(camera: self) }

    final class Coordinator: NSObject, UIImagePickerControllerDelegate, UINavigationControllerDelegate {
        private let camera: Camera

        init(camera: Camera) { self.camera = camera }

        func imagePickerController(
            _ picker: UIImagePickerController,
            didFinishPickingMediaWithInfo info: [UIImagePickerController.InfoKey: Any]
        ) {
            if let image = info[.originalImage] as? UIImage { camera.onPicture(image) }
            camera.dismiss()
        }

        func imagePickerControllerDidCancel(_ picker: UIImagePickerController) { camera.dismiss() }
    }
}

extension Picture {
    /// The pixels of an image as people see it: turned upright, transparency laid on white.
    init?(_ image: UIImage) {
        guard let source = image.cgImage else { return nil }
        let (height, width) = (Int(image.size.height * image.scale), Int(image.size.width * image.scale))
        var bytes = [UInt8](repeating: 255, count: height * width * 4)
        // The image's own colours where it can be: Pillow does not convert them either.
        let ownSpace = source.colorSpace.flatMap { $0.model == .rgb && $0.supportsOutput ? $0 : nil }
        let drawn = bytes.withUnsafeMutableBytes { buffer -> Bool in
            guard
                let context = CGContext(
                    data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: width * 4,
                    space: ownSpace ?? CGColorSpaceCreateDeviceRGB(), bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.translateBy(x: 0, y: CGFloat(height))
            context.scaleBy(x: 1, y: -1)
            UIGraphicsPushContext(context)
            image.draw(in: CGRect(x: 0, y: 0, width: width, height: height))
            UIGraphicsPopContext()
            return true
        }
        guard drawn else { return nil }
        self.init(height: height, width: width, bytes: bytes)
    }
}
