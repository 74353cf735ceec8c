"""The code of the phone apps, compiled: its arithmetic against Pillow's and Python's, its types against those of Android."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from android_classes import write_android_classes
from npm import npm_packages
from PIL import Image
from sklearn.datasets import load_sample_images
from swift_modules import write_executorch_in_swift

from edge.apps.writer import FILTERS
from edge.device.explanation import heat
from edge.device.image import to_pixel_values
from edge.device.segmentation import Segmentation, class_map_at, class_map_of

ROOT = Path(__file__).parents[3]
ANDROID = ROOT / "edge/apps/android/app/src/main/java/org/swinhf/edge"
IOS = ROOT / "edge/apps/ios/Sources"
COMPILED_SWIFT = [IOS / f"{name}.swift" for name in ("Resample", "ClassMap", "Places", "Heat")]  # they need no frameworks
DRIVERS = ROOT / "tests/support/native"

# The steps of Resample.kt and Resample.swift, line by line; a weighted sum over taps is one operation here.
PRECISION_BITS = 32 - 8 - 2
HALF = 1 << (PRECISION_BITS - 1)
SUPPORT = {"nearest": 0, "bilinear": 1, "bicubic": 2}


def weight(offset, name):
    x = abs(offset)
    if name == "bilinear":
        return 1 - x if x < 1 else 0
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0


def taps(size, new_size, name):
    scale = size / new_size
    if name == "nearest":
        centers = np.cumsum([scale * 0.5] + [scale] * (new_size - 1))
        return [(min(int(center), size - 1), [1 << PRECISION_BITS]) for center in centers]
    stretch = max(scale, 1)
    support = SUPPORT[name] * stretch
    rows = []
    for index in range(new_size):
        center = (index + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        end = min(int(center + support + 0.5), size)
        weights = [weight((position - center + 0.5) * (1 / stretch), name) for position in range(first, end)]
        rows.append((first, [fixed_point(value / sum(weights)) for value in weights]))
    return rows


def fixed_point(value):
    return int(value * (1 << PRECISION_BITS) + (-0.5 if value < 0 else 0.5))


def round8(sums):
    return np.clip(sums >> PRECISION_BITS, 0, 255)


def resample(pixels, height, width, name):
    narrow = np.empty((pixels.shape[0], width, 3), np.int64)
    for x, (first, weights) in enumerate(taps(pixels.shape[1], width, name)):
        narrow[:, x] = round8(HALF + np.tensordot(pixels[:, first : first + len(weights)].astype(np.int64), weights, (1, 0)))
    resized = np.empty((height, width, 3), np.int64)
    for y, (first, weights) in enumerate(taps(pixels.shape[0], height, name)):
        resized[y] = round8(HALF + np.tensordot(weights, narrow[first : first + len(weights)], 1))
    return resized.astype(np.uint8)


def photographs():
    """Two photographs with what becomes of them: shrunk, hardly changed, left alone, enlarged, made narrower and higher."""
    for photograph in load_sample_images().images:
        for height, width in ((224, 224), (32, 48), (426, 639), photograph.shape[:2]):
            yield photograph, height, width
        for height, width in ((64, 96), (64, 20)):
            yield photograph[100:137, 200:229], height, width


CASES = [(pixels, height, width, number) for pixels, height, width in photographs() for number in FILTERS]
CROPPED = [pixels for pixels, _, _ in photographs() if min(pixels.shape[:2]) > 20][:2]


def test_the_resize_of_the_apps_is_that_of_pillow():
    for pixels, height, width, number in CASES:
        expected = np.asarray(Image.fromarray(pixels).resize((width, height), number))
        np.testing.assert_array_equal(resample(pixels, height, width, FILTERS[number]), expected)


def test_the_input_of_the_apps_is_that_of_the_contract():
    for pixels, height, width, number in CASES:
        planes = resample(pixels, height, width, FILTERS[number]).transpose(2, 0, 1)[None] / np.float32(255)
        np.testing.assert_array_equal(planes, to_pixel_values(Image.fromarray(pixels), height, width, number))


def assert_same_as_pillow(command: list[str], folder: Path) -> None:
    """Run a compiled resize on all cases and compare its bytes and floats with the contract's."""
    arguments = []
    cases = [(*case, None) for case in CASES] + [
        (pixels, 9, 13, 3, crop_pct) for pixels in CROPPED for crop_pct in (0.875, 1.0)
    ]
    for index, (pixels, height, width, number, crop_pct) in enumerate(cases):
        (folder / f"{index}").write_bytes(pixels.tobytes())
        arguments += [folder / f"{index}", *pixels.shape[:2], height, width, FILTERS[number], crop_pct]
    subprocess.run([*command, *map(str, arguments)], check=True, timeout=300)
    for index, (pixels, height, width, number, crop_pct) in enumerate(cases):
        out = (folder / f"{index}.out").read_bytes()
        expected = to_pixel_values(Image.fromarray(pixels), height, width, number, "uint8", crop_pct)[0]
        if crop_pct is None:
            np.testing.assert_array_equal(expected, np.asarray(Image.fromarray(pixels).resize((width, height), number)))
        size = expected.size
        np.testing.assert_array_equal(np.frombuffer(out[:size], np.uint8).reshape(expected.shape), expected)
        planes = to_pixel_values(Image.fromarray(pixels), height, width, number, crop_pct=crop_pct)
        np.testing.assert_array_equal(np.frombuffer(out[size:], "<f4").reshape(planes.shape), planes)


def assert_same_classes(command: list[str], file: Path, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Have a compiled class map made of random logits, and compare it with that of `python -m edge run`."""
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    file.write_bytes(logits.tobytes())
    subprocess.run([*command, "classes", str(file), *map(str, (*shape, *size))], check=True, timeout=60)
    out, pixels = np.frombuffer(Path(f"{file}.out").read_bytes(), np.uint8), size[0] * size[1]
    classes, nearest, over = out[:pixels], out[pixels : 2 * pixels], out[2 * pixels :].reshape(*size, 3)
    expected = class_map_of(logits, *size)
    assert (classes.reshape(size) == expected).mean() > 0.99  # where two logits are all but equal, rounding decides
    given = (np.arange(shape[1] * shape[2]) % shape[0]).reshape(shape[1:]).astype(np.uint8)
    np.testing.assert_array_equal(nearest.reshape(size), class_map_at(given, *size))
    palette = [(40 * number, 255 - 40 * number, 7) for number in range(shape[0])]
    found = Segmentation(class_map=classes.reshape(size), labels=list("abcd"), palette=palette)
    drawn = np.asarray(found.drawn_over(Image.new("RGB", size[::-1], (0x0A, 0x32, 0xC8))))[: size[0], : size[1]]
    assert np.abs(over.astype(int) - drawn).max() <= 1
    shares = [float(share) for share in Path(f"{file}.shares").read_text().split()]
    np.testing.assert_allclose(shares, np.bincount(classes, minlength=4) / pixels)


def assert_same_heat(command: list[str], file: Path, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Have a compiled heat map made of random class maps, and compare it with that of `python -m edge run --explain`."""
    random = np.random.default_rng(0)
    maps, seen = random.normal(size=shape).astype(np.float32), random.integers(0, 256, (*size, 3), np.uint8)
    file.write_bytes(maps.tobytes())
    Path(f"{file}.seen").write_bytes(seen.tobytes())
    subprocess.run([*command, "heat", str(file), *map(str, (shape[0] - 1, *shape[1:], *size))], check=True, timeout=60)
    found = np.frombuffer(Path(f"{file}.out").read_bytes(), np.uint8).reshape(*size, 3)
    expected = np.asarray(heat(maps[-1], Image.fromarray(seen)))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_kotlin_is_that_of_android_and_resizes_as_pillow_does(tmp_path):
    if shutil.which("java") is None:
        pytest.skip("java is not installed")
    compiler = npm_packages("kotlin", "kotlin-compiler@2.4.20") / "kotlin-compiler/bin/kotlinc"
    sources = [*sorted(ANDROID.glob("*.kt")), DRIVERS / "Driver.kt", *write_android_classes(tmp_path / "android")]
    command = ["bash", compiler, *sources, "-Werror", "-include-runtime", "-d", tmp_path / "app.jar"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    driver = ["java", "-cp", str(tmp_path / "app.jar"), "DriverKt"]
    assert_same_as_pillow(driver, tmp_path)
    assert_same_maps(driver, tmp_path)


def assert_same_maps(command: list[str], folder: Path) -> None:
    for number, (rows, columns, height, width) in enumerate([(5, 7, 33, 20), (8, 8, 8, 8), (6, 4, 3, 9), (1, 1, 4, 5)]):
        assert_same_classes(command, folder / f"logits{number}", (4, rows, columns), (height, width))
        if rows <= height and columns <= width:  # a program's class maps have no more places than its pixels
            assert_same_heat(command, folder / f"maps{number}", (3, rows, columns), (height, width))


def test_swift_computes_as_python_does(tmp_path):
    if shutil.which("swiftc") is None:
        pytest.skip("swiftc is not installed")
    command = ["swiftc", "-O", *COMPILED_SWIFT, DRIVERS / "main.swift", "-o", tmp_path / "driver"]
    subprocess.run(command, check=True, timeout=300)
    assert_same_as_pillow([str(tmp_path / "driver")], tmp_path)
    assert_same_maps([str(tmp_path / "driver")], tmp_path)
    write_executorch_in_swift(tmp_path)
    module = ["swiftc", "-emit-module", "-parse-as-library", "-module-name", "ExecuTorch", tmp_path / "ExecuTorch.swift"]
    subprocess.run([*module, "-emit-module-path", tmp_path / "ExecuTorch.swiftmodule"], check=True, timeout=300)
    program = [IOS / "Program.swift", IOS / "Contract.swift"]
    command = ["swiftc", "-typecheck", "-parse-as-library", "-swift-version", "5", "-I", tmp_path, *COMPILED_SWIFT, *program]
    subprocess.run(command, check=True, timeout=300)
    subprocess.run(["swiftc", "-parse", *IOS.glob("*.swift")], check=True, timeout=300)  # UIKit is Apple's
