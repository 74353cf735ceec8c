"""The C++ runner: built against the libraries of executorch's package, and compared with the Python runner."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import executorch
import numpy as np
import pytest
from executorch.devtools.inspector import Inspector
from PIL import Image

from edge.device.runner import Runner
from edge.export.export import ExportSettings, export
from swin_hf import SwinHfImageProcessorPil

ROOT = Path(__file__).parents[3]
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")


@pytest.fixture(scope="module")
def swin_edge(tmp_path_factory) -> Path:
    build, package = tmp_path_factory.mktemp("build"), Path(next(iter(executorch.__path__)))
    if not shutil.which("g++") or not CMAKE:
        pytest.skip("g++ or cmake is not installed")
    if not (package / "lib" / "libexecutorch.so").is_file():
        pytest.skip("this release of executorch has no C++ libraries")
    command = [CMAKE, "-S", str(ROOT / "edge" / "cpp"), "-B", str(build), f"-DCMAKE_PREFIX_PATH={package}"]
    configured = subprocess.run([*command, "-DCMAKE_CXX_FLAGS=-Werror"], capture_output=True, text=True)
    if configured.returncode and re.search(
        "Could NOT find|Could not find a package|requires at least|or higher is required", configured.stderr
    ):
        pytest.skip(f"a library is not installed: {configured.stderr.strip()[-300:]}")
    assert configured.returncode == 0, configured.stderr[-2000:]
    built = subprocess.run([CMAKE, "--build", str(build)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return build / "swin_edge"


def smooth(rng, height: int, width: int) -> Image.Image:
    blots = rng.integers(0, 255, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Every kind of JPEG and PNG that the runner reads, and all orientations."""
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    colour, grey = smooth(rng, 60, 90), smooth(rng, 60, 90).convert("L")
    colour.save(folder / "colour.png")
    colour.save(folder / "colour.jpg", quality=92)
    colour.save(folder / "progressive.jpg", progressive=True)
    colour.save(folder / "full_chroma.jpg", subsampling=0)
    for name, mode in (("grey", "L"), ("palette", "P"), ("bits", "1")):
        colour.convert(mode).save(folder / f"{name}.png")
    grey.save(folder / "grey.jpg")
    colour.convert("P").save(folder / "transparent_colour.png", transparency=5)
    for mode in ("RGBA", "LA"):
        transparent = colour.convert(mode)
        transparent.putalpha(grey)
        transparent.save(folder / f"{mode}.png")
    Image.fromarray((np.asarray(grey, np.uint16) * 257)[:40]).save(folder / "deep.png")
    smooth(rng, 20, 16).save(folder / "small.png")
    smooth(rng, 16, 16).save(folder / "same.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        smooth(rng, 60, 90).save(folder / f"turned_{orientation}.jpg", exif=exif, quality=95)
    smooth(rng, 60, 90).save(folder / "turned.png", exif=exif)
    odd = (folder / "colour.jpg").read_bytes()
    (folder / "odd.jpg").write_bytes(odd[:-2] + b"\0" * 5 + odd[-2:])  # bytes before the last marker, a warning
    return sorted(map(str, folder.iterdir()))


def run(*command: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kind", ["stretched", "bytes", "cropped"])
def test_probabilities_are_those_of_the_python_runner(swin_edge, kind, checkpoint, image_folder, pictures, tmp_path):
    more = {"cropped": {"crop_pct": 0.9, "resample": 3}, "bytes": {"resample": 2}, "stretched": {}}[kind]
    SwinHfImageProcessorPil(size={"height": 16, "width": 16}, **more).save_pretrained(checkpoint)
    dtype = "uint8" if kind == "bytes" else "float32"
    export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", dataset=image_folder, input_dtype=dtype))
    done = run(swin_edge, tmp_path / "edge", *pictures, "--json")
    assert done.returncode == 0, done.stderr[-1000:]
    rows, runner = json.loads(done.stdout), Runner(tmp_path / "edge")
    assert [row["image"] for row in rows] == pictures
    for row in rows:
        expected = runner.classify(row["image"])
        assert [own["label"] for own in row["predictions"]] == [own.label for own in expected], row["image"]
        shares = [own["probability"] for own in row["predictions"]]
        np.testing.assert_allclose(shares, [own.probability for own in expected], atol=1e-3, err_msg=row["image"])


def test_what_is_wrong_is_a_sentence(swin_edge, artefact, image_folder, tmp_path):
    image = image_folder / "red" / "0.png"
    (tmp_path / "note.txt").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:100])
    Image.open(image).convert("CMYK").save(tmp_path / "cmyk.jpg")
    whole = tmp_path / "whole.jpg"
    Image.open(image).resize((200, 200)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for name, words in (
        ("note.txt", "must be a JPEG or a PNG"),
        ("cut.png", "cannot be read"),
        ("cut.jpg", "cannot be read"),
        ("cmyk.jpg", "is a CMYK picture; save it in RGB"),
        ("none.png", "is not a file"),
    ):
        done = run(swin_edge, artefact, tmp_path / name, image, "--json")
        assert done.returncode == 1 and f"error: {tmp_path / name} {words}" in done.stderr
        assert len(json.loads(done.stdout)) == 1  # the other one
    assert run(swin_edge, artefact).returncode == 2 and "usage:" in run(swin_edge).stderr
    assert run(swin_edge, artefact, image, "--top_k", "0").returncode == 2
    assert "has no edge.json" in run(swin_edge, tmp_path, image).stderr
    content = bytearray((artefact / "model.pte").read_bytes())
    content[-1] ^= 1
    (artefact / "model.pte").write_bytes(content)
    done = run(swin_edge, artefact, image)
    assert done.returncode == 1 and "has another sha256 than edge.json names" in done.stderr
    (artefact / "edge.json").write_text("{")
    assert "edge.json is damaged" in run(swin_edge, artefact, image).stderr


def test_filters_that_it_lacks_are_refused(swin_edge, artefact, image_folder):
    manifest = json.loads((artefact / "edge.json").read_text())
    manifest["input"]["resample"] = 1  # Lanczos
    (artefact / "edge.json").write_text(json.dumps(manifest))
    done = run(swin_edge, artefact, image_folder / "red" / "0.png")
    assert done.returncode == 1 and "must resize by nearest, bilinear or bicubic (0, 2, 3), got 1" in done.stderr


def test_it_times_and_traces_runs(swin_edge, artefact, tmp_path):
    done = run(swin_edge, artefact, "--benchmark", "20", "--threads", "1", "--json", "--etdump", tmp_path / "run.etdp")
    figures = json.loads(done.stdout)
    assert (
        done.returncode == 0 and 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"] and figures["repeats"] == 20
    )
    names = [event.name for block in Inspector(etdump_path=str(tmp_path / "run.etdp")).event_blocks for event in block.events]
    assert sum("Softmax" in name for name in names) == 2  # of two blocks
    assert run(swin_edge, artefact, "--benchmark", "1", "--etdump", tmp_path / "none" / "run.etdp").returncode == 1
