"""The signatures of ExecuTorch's Swift package that the app uses, for Swift's compiler to check it against.

They are written after the documentation of the package; nothing of them runs.
"""

from pathlib import Path

EXECUTORCH = """
public protocol ValueConvertible {}
public protocol ValueSequenceConstructible {}
public protocol Scalar {}
extension Float: Scalar {}
extension UInt8: Scalar {}

public class Value: ValueConvertible {
    public func tensor<T: Scalar>() -> Tensor<T>? { nil }
}

public final class Tensor<T: Scalar>: ValueConvertible, ValueSequenceConstructible {
    public init(_ scalars: [T], shape: [Int]) {}
    public func scalars() -> [T] { [] }
    public var shape: [Int] { [] }
}

extension Array: ValueSequenceConstructible where Element == String {}

public class Module {
    public init(filePath: String) {}
    public func load(_ method: String) throws {}
    public func execute<Output: ValueSequenceConstructible>(_ method: String) throws -> Output { fatalError() }
    public func forward(_ inputs: [ValueConvertible]) throws -> [Value] { [] }
    public func forward<Output: ValueSequenceConstructible>(_ input: ValueConvertible) throws -> Output { fatalError() }
}
"""


def write_executorch_in_swift(folder: Path) -> None:
    """Write `ExecuTorch.swift` with the signatures."""
    (folder / "ExecuTorch.swift").write_text(EXECUTORCH)
