// Runs the app's arithmetic on files, for tests to compare.

import Foundation

func bytes(_ file: String) -> [UInt8] { [UInt8](try! Data(contentsOf: URL(fileURLWithPath: file))) }
func floats(_ file: String) -> [Float] { bytes(file).withUnsafeBytes { Array($0.bindMemory(to: Float.self)) } }
func write(_ data: Data, _ file: String) { try! data.write(to: URL(fileURLWithPath: file)) }
func colours(_ bytes: [UInt8]) -> [UInt8] { stride(from: 0, to: bytes.count, by: 4).flatMap { bytes[$0..<$0 + 3] } }

func heat(_ file: String, _ sizes: [Int]) {
    let heat = Heat(
        maps: floats(file), number: sizes[0], rows: sizes[1], columns: sizes[2], seen: bytes(file + ".seen"),
        height: sizes[3], width: sizes[4])
    precondition(heat.height == sizes[3] && heat.width == sizes[4])
    write(Data(colours(heat.bytes)), file + ".out")
}

func classes(_ file: String, _ sizes: [Int]) {
    let (count, rows, columns, height, width) = (sizes[0], sizes[1], sizes[2], sizes[3], sizes[4])
    let map = ClassMap(logits: floats(file), count: count, rows: rows, columns: columns, height: height, width: width)
    let given = (0..<rows * columns).map { UInt8($0 % count) }
    let nearest = ClassMap(given: given, rows: rows, columns: columns, height: height, width: width)
    let plain = (0..<height * width).flatMap { _ -> [UInt8] in [0x0A, 0x32, 0xC8, 255] }
    let over = colours(map.over(plain, palette: (0..<count).map { [40 * $0, 255 - 40 * $0, 7] }))
    write(Data((map.classes + nearest.classes).map { UInt8($0) } + over), file + ".out")
    write(Data(map.shares(count: count).map { String($0) }.joined(separator: " ").utf8), file + ".shares")
}

func resize(_ all: [String]) {
    for start in stride(from: 0, to: all.count, by: 7) {
        let arguments = all[start..<start + 7].map { $0 }
        let rgb = bytes(arguments[0])
        let sizes = arguments[1...4].map { Int($0)! }
        let rows: [UInt8] = stride(from: 0, to: rgb.count, by: 3).flatMap { Array(rgb[$0..<$0 + 3]) + [7] }
        let picture = Picture(height: sizes[0], width: sizes[1], bytes: rows)
        let filter = Filter(rawValue: arguments[5])!
        let pixels = fit(picture, height: sizes[2], width: sizes[3], cropPct: Double(arguments[6]), filter: filter)
        write(Data(pixels) + toPlanes(pixels).withUnsafeBytes { Data($0) }, arguments[0] + ".out")
    }
}

let arguments = Array(CommandLine.arguments.dropFirst())
switch arguments[0] {
case "heat": heat(arguments[1], arguments.dropFirst(2).map { Int($0)! })
case "classes": classes(arguments[1], arguments.dropFirst(2).map { Int($0)! })
default: resize(arguments)
}
