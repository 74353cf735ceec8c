"""Phone apps: what is written, what is refused, and their resize, contract and types against the real ones."""

import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml
from android_classes import write_android_classes
from PIL import Image
from sklearn.datasets import load_sample_images
from swift_modules import write_executorch_in_swift

import edge.__main__ as cli
from edge.apps.writer import FILTERS, PLATFORMS, AppError, fill, runtime_version, write_app
from edge.device.artefact import InputContract, Manifest, Source
from edge.device.explanation import heat
from edge.device.image import to_pixel_values
from edge.device.segmentation import Segmentation, class_map_at, class_map_of
from edge.export.export import ExportSettings, export
from swin_hf.output_folders import OutputError

ROOT = Path(__file__).parents[3]
ANDROID = ROOT / "edge/apps/android"
IOS = ROOT / "edge/apps/ios"
RESAMPLE_KT = ANDROID / "app/src/main/java/org/swinhf/edge/Resample.kt"
COMPILED_SWIFT = [IOS / "Sources" / f"{name}.swift" for name in ("Resample", "ClassMap", "Places", "Heat")]  # no frameworks
PROGRAM = b"a program"


def manifest(**changes) -> Manifest:
    """An artefact's manifest of a float classifier; `input_...` changes a field of its input."""
    contract = {name.removeprefix("input_"): value for name, value in changes.items() if name.startswith("input_")}
    whole = {
        "task": "image-classification",
        "labels": ["cat", "$dog"],
        "temperature": 1.25,
        "methods": {"forward": {"batch_size": 1, "height": 32, "width": 48}},
        "recipe": "int8",
        "backend": "xnnpack",
        "equalised": False,
        "kept_in_float": [],
        "parity": {},
        "accuracy": {},
        "program": {},
        "self_test": None,
        "source": Source(checkpoint="checkpoint", parameters=1),
        "versions": {"executorch": "1.5.0+cpu"},
        "sha256": {},
    }
    whole |= {name: value for name, value in changes.items() if not name.startswith("input_")}
    return Manifest(**whole, input=InputContract(**({"height": 32, "width": 48, "resample": 3} | contract)))


BYTES = {"input_dtype": "uint8", "input_layout": "NHWC", "input_value_range": (0.0, 255.0)}


@pytest.fixture
def artefact(monkeypatch):
    """A folder that is read as an artefact of `manifest()`."""
    monkeypatch.setattr("edge.apps.writer.read_artefact", lambda folder: (manifest(), PROGRAM))
    return Path("artefact")


def npm_packages(name: str, *packages: str) -> Path:
    """`node_modules` with these packages, installed once into `build/`; skips where npm cannot."""
    folder = ROOT / "build/npm" / name
    stamp = folder / "installed.txt"
    if stamp.is_file() and stamp.read_text() == "\n".join(packages):
        return folder / "node_modules"
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # No lifecycle scripts: one would download native libraries. No peers: React Native itself is not needed for the types.
    options = ["--no-save", "--ignore-scripts", "--legacy-peer-deps", "--fetch-retries=0", "--no-audit", "--no-fund"]
    command = ["npm", "install", "--prefix", str(folder), *options, *packages]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("npm took more than five minutes")
    if result.returncode:
        pytest.skip(f"npm cannot install {', '.join(packages)}: {result.stderr.strip()[-200:]}")
    stamp.write_text("\n".join(packages))
    return folder / "node_modules"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_app_holds_the_program_and_its_contract(artefact, tmp_path, platform):
    files = write_app(platform, artefact, tmp_path / "app")
    assets = tmp_path / "app" / PLATFORMS[platform].assets
    template = ROOT / "edge/apps" / PLATFORMS[platform].template
    copied = {tmp_path / "app" / path.relative_to(template) for path in template.rglob("*") if path.is_file()}
    assert set(files) == copied | {assets / "model.pte", assets / "contract.json"}
    assert (assets / "model.pte").read_bytes() == PROGRAM
    assert json.loads((assets / "contract.json").read_text(encoding="utf-8")) == {
        "height": 32,
        "width": 48,
        "resample": "bicubic",
        "cropPct": None,
        "dtype": "float32",
        "temperature": 1.25,
        "labels": ["cat", "$dog"],
        "task": "image-classification",
        "palette": [],
        "classMap": False,
        "explains": False,
    }


def test_crops_are_for_the_native_apps():
    for platform in ("android", "ios"):
        assert fill(platform, manifest(input_crop_pct=0.875))["cropPct"] == 0.875
    with pytest.raises(AppError, match="^input.crop_pct must be None for react-native, which does not crop, got 0.875; "):
        fill("react-native", manifest(input_crop_pct=0.875))


SEGMENTER = {"task": "semantic-segmentation", "palette": [(26, 26, 26), (255, 0, 7)], "map_size": (8, 12)}


def test_segmenters_have_their_colours_in_the_contract():
    for platform in ("android", "ios"):
        contract = fill(platform, manifest(**SEGMENTER))
        assert contract["task"] == "semantic-segmentation" and contract["palette"] == [[26, 26, 26], [255, 0, 7]]
        assert not contract["classMap"] and fill(platform, manifest(**SEGMENTER | {"class_map": True}))["classMap"]
    with pytest.raises(AppError, match=r"^map_size must be that of the input, and logits, .* got \(8, 12\), logits; export "):
        fill("react-native", manifest(**SEGMENTER))
    enlarged = SEGMENTER | {"map_size": (32, 48)}
    with pytest.raises(AppError, match=r"got \(32, 48\), classes; export again with --enlarge"):
        fill("react-native", manifest(**enlarged, class_map=True))
    assert fill("react-native", manifest(**enlarged))["palette"] == [[26, 26, 26], [255, 0, 7]]


def test_the_native_apps_show_what_explains_an_answer():
    for platform in ("android", "ios"):
        assert fill(platform, manifest(explains=True))["explains"]
    with pytest.raises(AppError, match="^explains must be false for react-native, .* got True; export without --explain"):
        fill("react-native", manifest(explains=True))


def test_a_program_that_takes_bytes_runs_in_the_native_apps():
    assert fill("android", manifest(**BYTES))["dtype"] == fill("ios", manifest(**BYTES))["dtype"] == "uint8"
    with pytest.raises(AppError, match=r"^input must be float32 NCHW in \[0, 1\] for react-native, got uint8 NHWC"):
        fill("react-native", manifest(**BYTES))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "feature-maps"}, "^task must be image-classification or semantic-segmentation, got feature-maps; "),
        ({"backend": "coreml"}, "^backend must be xnnpack, which the app links, got coreml; "),
        ({"labels": []}, r"^labels must name the classes, got \[\]; "),
        ({"input_resample": 1}, r"^input.resample must be one of 0 \(nearest\), 2 \(bilinear\), 3 \(bicubic\), got 1; "),
        ({"input_colour": "BGR"}, "^input.colour and channels must be RGB and 3, got "),
        ({"input_layout": "NHWC"}, "^input must be float32 NCHW in .* or uint8 NHWC .*, got float32 NHWC in"),
        ({"input_value_range": (-1.0, 1.0)}, r"^input must .*, got float32 NCHW in \[-1, 1\]; "),
        ({"methods": {"forward": {"batch_size": 8, "height": 32, "width": 48}}}, "^methods must .*'batch_size': 1.*, got .*8"),
        ({"methods": {"encode": {"batch_size": 1, "height": 32, "width": 48}}}, "^methods must have a `forward`"),
    ],
)
@pytest.mark.parametrize("platform", ["android", "ios"])
def test_what_an_app_cannot_do_is_refused(platform, changes, message):
    with pytest.raises(AppError, match=message):
        fill(platform, manifest(**changes))


def test_command_writes_an_app_beside_an_export(checkpoint, image_folder, tmp_path, monkeypatch, capsys):
    export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", dataset=image_folder, self_test=False))
    monkeypatch.chdir(tmp_path / "edge")
    assert cli.main(["app", "android", "."]) == 0
    assets = tmp_path / "edge-android" / PLATFORMS["android"].assets
    assert (assets / "model.pte").read_bytes() == (tmp_path / "edge" / "model.pte").read_bytes()
    assert json.loads((assets / "contract.json").read_text())["labels"] == ["blue", "green", "red"]
    assert cli.main(["app", "android", "."]) == 1
    assert "output_dir must be a new or an empty folder" in capsys.readouterr().err


def test_unknown_platform_and_folders_in_use_are_refused(artefact, tmp_path):
    with pytest.raises(AppError, match="^platform must be one of android, ios, react-native, got windows; "):
        write_app("windows", artefact, tmp_path / "app")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    for taken in (tmp_path / "full", tmp_path / "full/mine.txt"):
        with pytest.raises(OutputError, match="^output_dir must be a new or an empty folder, got "):
            write_app("ios", artefact, taken)
    assert (tmp_path / "full/mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert write_app("ios", artefact, tmp_path / "empty")


def test_nothing_is_left_of_an_app_that_failed(artefact, tmp_path, monkeypatch):
    def full_disk(work_dir, folder):
        raise OSError("no space left on device")

    monkeypatch.setattr("swin_hf.output_folders.move_into_place", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_app("android", artefact, tmp_path / "app")
    assert not list(tmp_path.iterdir())


def test_apps_parse_and_use_the_executorch_that_exported_the_program(artefact, tmp_path):
    android, ios = tmp_path / "android", tmp_path / "ios"
    write_app("android", artefact, android)
    write_app("ios", artefact, ios)
    ElementTree.parse(android / "app/src/main/AndroidManifest.xml")
    gradle = (android / "app/build.gradle.kts").read_text()
    assert re.findall(r"org\.pytorch:executorch-android:([\w.]+)", gradle) == ["1.5.0"]
    project = yaml.safe_load((ios / "project.yml").read_text())
    assert project["packages"]["executorch"]["branch"] == "swiftpm-1.5.0"
    products = {dependency["product"] for dependency in project["targets"]["SwinEdge"]["dependencies"]}
    assert products == {"executorch", "backend_xnnpack", "kernels_optimized", "kernels_quantized"}


@pytest.mark.parametrize(("version", "release"), [("1.5.1", "1.5.1"), ("1.5.0+cpu", "1.5.0"), ("1.6.0a0+git1", "1.6.0")])
def test_runtime_of_an_app_is_the_release_that_exported_the_program(version, release):
    assert runtime_version(manifest(versions={"executorch": version})) == release
    with pytest.raises(AppError, match=r"versions\.executorch must be the version of ExecuTorch that exported the program"):
        runtime_version(manifest(versions={}))


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


DRIVER_KT = """
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.swinhf.edge.*

fun main(args: Array<String>) = when (args[0]) {
    "classes" -> classes(args)
    "heat" -> heat(args)
    else -> resize(args)
}

fun floats(file: String, count: Int) = FloatArray(count).also {
    ByteBuffer.wrap(File(file).readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(it)
}

fun heat(args: Array<String>) {
    val (number, rows, columns, height, width) = args.drop(2).map { it.toInt() }
    val maps = floats(args[1], (number + 1) * rows * columns)
    val heat = heatOf(maps, number, rows, columns, File(args[1] + ".seen").readBytes(), height, width)
    val colours = heat.pixels.flatMap { listOf(it shr 16, it shr 8, it) }.map { it.toByte() }
    check(heat.pixels.all { it ushr 24 == 255 } && heat.width == width && heat.height == height)
    File(args[1] + ".out").writeBytes(colours.toByteArray())
}

fun classes(args: Array<String>) {
    val (count, rows, columns, height, width) = args.drop(2).map { it.toInt() }
    val floats = floats(args[1], count * rows * columns)
    val map = classMapOf(floats, count, rows, columns, height, width)
    val nearest = classMapOf(ByteArray(rows * columns) { (it % count).toByte() }, rows, columns, height, width)
    val palette = List(count) { intArrayOf(40 * it, 255 - 40 * it, 7) }
    val over = (0 until height).flatMap { y -> map.over(IntArray(width) { 0x0A32C8 }, y, palette).toList() }
    val colours = over.flatMap { listOf(it shr 16, it shr 8, it) }.map { it.toByte() }
    val shares = map.shares(count).joinToString(" ")
    File(args[1] + ".out").writeBytes((map.classes + nearest.classes).map { it.toByte() }.toByteArray() + colours)
    File(args[1] + ".shares").writeText(shares)
}

fun resize(args: Array<String>) = args.toList().chunked(7).forEach { case ->
    val (sourceHeight, sourceWidth, height, width) = case.subList(1, 5).map { it.toInt() }
    val rgb = File(case[0]).readBytes()
    fun at(index: Int) = rgb[index].toInt() and 255
    val picture = Picture(sourceHeight, sourceWidth) { y ->
        IntArray(sourceWidth) { x ->
            val index = (y * sourceWidth + x) * 3
            (255 shl 24) or (at(index) shl 16) or (at(index + 1) shl 8) or at(index + 2)
        }
    }
    val pixels = fit(picture, height, width, case[6].toDoubleOrNull(), Filter.valueOf(case[5].uppercase()))
    val floats = ByteBuffer.allocate(pixels.size * 4).order(ByteOrder.LITTLE_ENDIAN)
    floats.asFloatBuffer().put(toPlanes(pixels))
    File(case[0] + ".out").writeBytes(pixels + floats.array())
}
"""

DRIVER_SWIFT = """
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
"""


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
    (tmp_path / "Driver.kt").write_text(DRIVER_KT)
    sources = [*sorted(RESAMPLE_KT.parent.glob("*.kt")), tmp_path / "Driver.kt", *write_android_classes(tmp_path / "android")]
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
    (tmp_path / "main.swift").write_text(DRIVER_SWIFT)
    command = ["swiftc", "-O", *COMPILED_SWIFT, tmp_path / "main.swift", "-o", tmp_path / "driver"]
    subprocess.run(command, check=True, timeout=300)
    assert_same_as_pillow([str(tmp_path / "driver")], tmp_path)
    assert_same_maps([str(tmp_path / "driver")], tmp_path)
    write_executorch_in_swift(tmp_path)
    module = ["swiftc", "-emit-module", "-parse-as-library", "-module-name", "ExecuTorch", tmp_path / "ExecuTorch.swift"]
    subprocess.run([*module, "-emit-module-path", tmp_path / "ExecuTorch.swiftmodule"], check=True, timeout=300)
    program = [IOS / "Sources/Program.swift", IOS / "Sources/Contract.swift"]
    command = ["swiftc", "-typecheck", "-parse-as-library", "-swift-version", "5", "-I", tmp_path, *COMPILED_SWIFT, *program]
    subprocess.run(command, check=True, timeout=300)
    subprocess.run(["swiftc", "-parse", *(IOS / "Sources").glob("*.swift")], check=True, timeout=300)  # UIKit is Apple's


USE_TS = """
import { createClassifier, useClassifier, type cv } from 'react-native-executorch';
import { useSemanticSegmenter, type SemanticSegmentationResult } from 'react-native-executorch';
import { calibrate, classifierModel, labels } from './classifier';
import { colormap, segmenterModel } from './segmenter';

export async function best(image: cv.ImageBuffer): Promise<{ label: string; confidence: number }[]> {
  const classifier = await createClassifier(classifierModel('/data/model.pte'));
  return calibrate(await classifier.classify(image)).slice(0, labels.length);
}
export const usePixels = (image: cv.ImageBuffer): Promise<SemanticSegmentationResult<string>> | undefined =>
  useSemanticSegmenter(segmenterModel('/data/model.pte')).segment?.(image, colormap);
export const useModel = () => useClassifier(classifierModel('https://example.org/model.pte')).classify;
"""

TSCONFIG = {
    "compilerOptions": {
        "strict": True,
        "noUncheckedIndexedAccess": True,
        "noEmit": True,
        "skipLibCheck": True,
        "resolveJsonModule": True,
        "module": "esnext",
        "moduleResolution": "bundler",
        "target": "es2022",
        "lib": ["es2022"],
        "types": [],
    },
    "files": ["use.ts"],
}


@pytest.fixture
def react_native_app(artefact, tmp_path):
    """A React Native app beside the real library, and a command that checks its types."""
    node_modules = npm_packages("react-native", "react-native-executorch@0.10.2", "typescript@5.9")
    folder = tmp_path / "app"
    write_app("react-native", artefact, folder)
    os.symlink(node_modules, folder / "node_modules")
    (folder / "use.ts").write_text(USE_TS)
    (folder / "tsconfig.json").write_text(json.dumps(TSCONFIG))
    command = ["node", str(node_modules / "typescript/bin/tsc"), "--project", str(folder)]
    return folder, lambda: subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def test_react_native_configuration_has_the_types_of_the_library(react_native_app):
    folder, type_errors = react_native_app
    assert type_errors() == ""
    source = (folder / "classifier.ts").read_text()
    (folder / "classifier.ts").write_text(source.replace("'stretch'", "'squash'"))
    assert "is not assignable to type 'ResizeMode'" in type_errors()


def test_react_native_calibration_is_a_softmax_with_the_temperature(react_native_app):
    folder, _ = react_native_app
    script = """
const fs = require('fs'), typescript = require('typescript');
const options = { module: 'commonjs', target: 'es2022', esModuleInterop: true };
fs.writeFileSync('classifier.js', typescript.transpile(fs.readFileSync('classifier.ts', 'utf8'), options));
fs.writeFileSync('segmenter.js', typescript.transpile(fs.readFileSync('segmenter.ts', 'utf8'), options));
const { calibrate, classifierModel } = require('./classifier.js');
const { colormap, segmenterModel } = require('./segmenter.js');
const of = (confidence, label) => ({ confidence, label });
const calibrated = calibrate([of(0.9, 'cat'), of(0.1, '$dog')]);
console.log(JSON.stringify([calibrated, classifierModel('model.pte'), segmenterModel('model.pte'), colormap]));
"""
    result = subprocess.run(["node", "-e", script], cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    calibrated, model, segmenter, colormap = json.loads(result.stdout)
    scores = np.exp(np.log([0.9, 0.1]) / 1.25)
    np.testing.assert_allclose([entry["confidence"] for entry in calibrated], scores / scores.sum(), rtol=1e-12)
    assert [entry["label"] for entry in calibrated] == ["cat", "$dog"]
    assert model["modelOpts"]["labels"] == ["cat", "$dog"]
    assert model["modelOpts"]["normalizeOpts"] == {"alpha": 1 / 255, "beta": 0}
    assert segmenter["modelOpts"] == model["modelOpts"] | {"outInterpolation": "nearest"}
    assert colormap == {"cat": [0, 0, 0, 255], "$dog": [0, 0, 0, 255]}  # a classifier has no colours
