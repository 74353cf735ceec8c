"""Phone apps: what is written, what is refused; React Native's configuration against the types of its library."""

import json
import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml
from npm import npm_packages

import edge.__main__ as cli
from edge.apps.writer import PLATFORMS, AppError, fill, runtime_version, write_app
from edge.device.artefact import InputContract, Manifest, Source
from edge.export.export import ExportSettings, export
from swin_hf.output_folders import OutputError

ROOT = Path(__file__).parents[3]
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


def test_apps_have_a_name_and_a_package(artefact, tmp_path):
    write_app("android", artefact, tmp_path / "android", name="Birds: at home", package="com.example.birds")
    write_app("ios", artefact, tmp_path / "ios", name="Birds: at home", package="com.example.birds")
    manifest = ElementTree.parse(tmp_path / "android/app/src/main/AndroidManifest.xml").getroot()
    label = manifest.find("application").get("{http://schemas.android.com/apk/res/android}label")
    assert label == "Birds: at home"
    gradle = (tmp_path / "android/app/build.gradle.kts").read_text()
    assert re.findall(r'applicationId = "(.*)"', gradle) == ["com.example.birds"]
    settings = yaml.safe_load((tmp_path / "ios/project.yml").read_text())["targets"]["SwinEdge"]["settings"]["base"]
    assert settings["INFOPLIST_KEY_CFBundleDisplayName"] == "Birds: at home"
    assert settings["PRODUCT_BUNDLE_IDENTIFIER"] == "com.example.birds"
    for wrong in ({"name": ""}, {"name": 'a"b'}, {"name": "a\nb"}, {"package": "birds"}, {"package": "com.1example"}):
        with pytest.raises(AppError, match=f"^{next(iter(wrong))} must be "):
            write_app("android", artefact, tmp_path / "app", **wrong)
    with pytest.raises(AppError, match="^name and package must be left out for react-native"):
        write_app("react-native", artefact, tmp_path / "app", name="Birds")
    assert not (tmp_path / "app").exists()


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
