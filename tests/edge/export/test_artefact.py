"""The device artefact: format, contract, methods, stock transformers, self-test, and files that are not what they say."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from edge.device.artefact import ArtefactError, read_artefact, sha256_of
from edge.device.image import load_image, to_pixel_values
from edge.device.runner import Runner
from edge.device.verify import VerificationError, self_test, verify
from edge.export.calibration import CalibrationError, load_images, neighbour_correlation
from edge.export.checkpoint import CheckpointError, load_checkpoint
from edge.export.export import ExportError, ExportSettings, export
from edge.export.temperature import fit_temperature
from edge.lower.self_test import bundle
from swin_hf import SwinHfBackbone

STOCK_ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("swin_hf", "edge", "distill"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
from PIL import Image
from transformers import AutoImageProcessor
from transformers.exporters.base import ExportedModel
folder, image = sys.argv[1:]
exported, processor = ExportedModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
print(exported(**processor(Image.open(image), return_tensors="pt")).logits.tolist())
"""


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory):
    return tmp_path_factory.mktemp("exported") / "edge"


@pytest.fixture
def artefact(exported_once, checkpoint, image_folder, tmp_path):
    """An fp32 export with two sizes and a batch, taking bytes or floats as its tests need them: floats."""
    if not exported_once.exists():
        settings = ExportSettings(recipe="fp32", data=image_folder, sizes=((16, 16), (24, 20)), batch_sizes=(1, 2))
        export(checkpoint, exported_once, settings)
    shutil.copytree(exported_once, tmp_path / "edge")
    return tmp_path / "edge"


def edit(artefact, **changes) -> None:
    content = json.loads((artefact / "edge.json").read_text())
    (artefact / "edge.json").write_text(json.dumps(content | changes))


def test_every_method_equals_the_model_at_its_size(artefact, checkpoint, image_folder):
    model, _ = load_checkpoint(checkpoint)
    runner = Runner(artefact)
    assert set(runner.manifest.methods) == {"forward", "forward_24x20", "forward_batch2", "forward_24x20_batch2"}
    images = [load_image(path) for path in sorted(image_folder.rglob("*.png"))[:2]]
    for name, method in runner.manifest.methods.items():
        B, height, width = method["batch_size"], method["height"], method["width"]
        pixels = np.concatenate([to_pixel_values(image, height, width, 3) for image in images[:B]])
        with torch.no_grad():
            expected = model((torch.from_numpy(pixels) - 0.5) / 0.5).logits.numpy()
        np.testing.assert_allclose(runner.logits(pixels, name).reshape(B, -1), expected, atol=1e-4)
    with pytest.raises(ValueError, match="method must be one of forward, "):
        runner.outputs(pixels, "backward")


def test_the_program_itself_says_labels_and_contract(artefact):
    runner = Runner(artefact)
    assert runner.constant("labels") == ["blue", "green", "red"]
    assert runner.constant("temperature") == [runner.manifest.temperature]
    contract = json.loads(runner.constant("input_contract")[0])
    assert (contract["height"], contract["width"], contract["dtype"], contract["layout"]) == (16, 16, "float32", "NCHW")


def test_stock_transformers_opens_the_artefact(artefact, image_folder):
    image = image_folder / "red" / "0.png"
    done = subprocess.run([sys.executable, "-c", STOCK_ALONE, str(artefact), str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    runner = Runner(artefact)
    found = json.loads(done.stdout.splitlines()[-1])[0]
    np.testing.assert_allclose(found, runner.logits(runner.pixel_values(image)), atol=1e-4)


def test_bytes_go_in_channels_last(checkpoint, image_folder, tmp_path):
    export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", data=image_folder, input_dtype="uint8"))
    model, processor = load_checkpoint(checkpoint)
    runner, image = Runner(tmp_path / "edge"), image_folder / "red" / "0.png"
    pixels = runner.pixel_values(image)
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 16, 16, 3)
    with torch.no_grad():
        expected = model(**processor(Image.open(image), return_tensors="pt")).logits[0].numpy()
    np.testing.assert_allclose(runner.logits(pixels), expected, atol=1e-4)


def test_backbone_is_exported_with_its_maps(make_config, checkpoint, image_folder, tmp_path, capsys):
    SwinHfBackbone(make_config(out_features=["stage1", "stage2"])).save_pretrained(checkpoint)
    manifest = export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", data=image_folder))
    assert (manifest.task, manifest.labels) == ("feature-maps", ["stage1", "stage2"])
    model, processor = load_checkpoint(checkpoint)
    runner, image = Runner(tmp_path / "edge"), image_folder / "red" / "0.png"
    with torch.no_grad():
        expected = model(**processor(Image.open(image), return_tensors="pt")).feature_maps
    for found, feature_map in zip(runner.outputs(runner.pixel_values(image)), expected, strict=True):
        np.testing.assert_allclose(found, feature_map.numpy(), atol=1e-4)
    assert verify(tmp_path / "edge", image_folder)["sqnr_db"] > 80
    with pytest.raises(ArtefactError, match="must be a classifier to name classes"):
        runner.classify(image)


def test_self_test_passes_here_and_notices_other_outputs(artefact):
    num_images, tolerance = self_test(artefact)
    assert num_images == 3 and tolerance > 0
    runner = Runner(artefact)
    pixels = np.full(runner.shape("forward"), 0.5, np.float32)
    other = bundle(artefact / "model.pte", [pixels], [[y + 10 * tolerance for y in runner.outputs(pixels)]])
    (artefact / "self_test.bpte").write_bytes(other)
    content = json.loads((artefact / "edge.json").read_text())
    edit(
        artefact,
        sha256=content["sha256"] | {"self_test.bpte": sha256_of(other)},
        self_test=content["self_test"] | {"num_images": 1},
    )
    with pytest.raises(VerificationError, match="puts out something else"):
        self_test(artefact)
    (artefact / "self_test.bpte").unlink()
    with pytest.raises(ArtefactError, match=r"has no self_test\.bpte"):
        self_test(artefact)


def test_another_program_under_this_manifest_is_noticed(artefact, make_config, checkpoint, image_folder, tmp_path):
    SwinHfBackbone(make_config(out_features=["stage1", "stage2"])).save_pretrained(checkpoint)
    export(checkpoint, tmp_path / "backbone", ExportSettings(recipe="fp32", data=image_folder, self_test=False))
    maps = (tmp_path / "backbone" / "model.pte").read_bytes()
    content = json.loads((artefact / "edge.json").read_text())
    (artefact / "model.pte").write_bytes(maps)
    edit(artefact, methods={"forward": content["methods"]["forward"]}, sha256={"model.pte": sha256_of(maps)})
    with pytest.raises(ArtefactError, match=r"forward must put out \[\(\(1, 3\), 6\)\] .*, got \[\(\(1, 16, 8, 8\), 6\)"):
        Runner(artefact)


def test_what_cannot_be_exported_is_refused_at_once(make_model, checkpoint, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("edge.export.job.load_images", lambda *_: pytest.fail("images were read"))
    with pytest.raises(ExportError, match=r"batch_sizes must be positive and begin with 1, .*, got \(4,\)"):
        ExportSettings(batch_sizes=(4,))
    settings = ExportSettings(recipe="int8-qat", data=image_folder, sizes=((16, 16), (24, 24)))
    with pytest.raises(ExportError, match="must have one size and batch size, got forward, forward_24x24"):
        export(checkpoint, tmp_path / "edge", settings)
    for changes, message in (
        ({"problem_type": "multi_label_classification"}, "gives each image one class, got multi_label_classification"),
        ({"num_labels": 1}, "two or more classes, got 1"),
    ):
        make_model(**changes).save_pretrained(checkpoint)
        with pytest.raises(CheckpointError, match=message):
            export(checkpoint, tmp_path / "edge", ExportSettings(data=image_folder))


def test_validation_images_of_other_classes_are_refused(checkpoint, image_folder, tmp_path):
    others = tmp_path / "others"
    (others / "yellow").mkdir(parents=True)
    shutil.copy(image_folder / "red" / "0.png", others / "yellow")
    with pytest.raises(ExportError, match=r"--validation must hold images of the model's classes \(blue, green, red, "):
        export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", data=image_folder, validation=others))


def test_layers_are_left_in_float_until_the_program_holds_its_bounds(
    make_model, checkpoint, image_folder, tmp_path, monkeypatch
):
    model = make_model(id2label={0: "blue", 1: "green", 2: "red"})
    fc1 = model.swin.encoder.layers[0].blocks[0].mlp.fc1
    fc1.bias.data[0] = 3000.0  # an activation that leaves the others few levels
    model.swin.encoder.layers[0].blocks[0].mlp.fc2.weight.data[:, 0] = 0.0
    model.save_pretrained(checkpoint)
    settings = ExportSettings(recipe="int8-static", data=image_folder, validation=image_folder, self_test=False)
    manifest = export(checkpoint, tmp_path / "edge", settings)
    assert set(manifest.kept_in_float) & {f"encoder.stages.0.blocks.0.mlp.{name}" for name in ("fc1", "fc2")}
    assert manifest.parity["program"]["sqnr_db"] > 20
    assert manifest.accuracy["num_images"] == 48


def test_splits_are_taken_for_what_they_are_for(image_folder, tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])})
    file = str(image_folder / "red" / "0.png")
    parts = {
        name: datasets.Dataset.from_dict({"image": [file] * count, "label": [1] * count}, features=features)
        for name, count in (("train", 5), ("test", 3))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert len(load_images(tmp_path / "saved", ["blue", "red"])) == 5
    assert len(load_images(tmp_path / "saved", ["blue", "red"], splits=("test", "validation"))) == 3
    with pytest.raises(CalibrationError, match="must have a split validation, got train, test; name one: .*SPLIT"):
        load_images(tmp_path / "saved", [], splits=("validation",))


def test_images_that_cannot_be_read_are_named(image_folder):
    (image_folder / "red" / "note.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"left out 1 of 49 images in .*note\.png is not an image"):
        assert len(load_images(image_folder, [])) == 48


def test_noise_and_plain_images_are_refused(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    for name, make in {
        "noise": lambda: rng.integers(0, 256, (20, 20, 3), np.uint8),
        "plain": lambda: np.full((20, 20, 3), rng.integers(0, 256), np.uint8),
    }.items():
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.fromarray(make()).save(tmp_path / name / f"{number}.png")
    for name, message in (("noise", "these are noise"), ("plain", "of one colour|different ones")):
        with pytest.raises(CalibrationError, match=message):
            export(checkpoint, tmp_path / "edge", ExportSettings(recipe="int8", data=tmp_path / name))


def test_neighbours_of_photographs_correlate():
    from sklearn.datasets import load_sample_images

    for photograph in load_sample_images().images:
        assert neighbour_correlation(Image.fromarray(photograph)) > 0.8


def test_images_come_from_saved_data_sets_and_lists(image_folder, tmp_path):
    import datasets

    files = sorted(str(path) for path in image_folder.rglob("*.png"))[::16]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "green", "red"])})
    saved = datasets.Dataset.from_dict({"image": files, "label": [0, 1, 2]}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    images = load_images(tmp_path / "saved", ["blue", "green", "red"])
    assert [image.label for image in images] == ["blue", "green", "red"]
    assert images[0].image.size == (24, 20)
    assert load_images([Image.new("L", (4, 4))], [])[0].image.mode == "RGB"


def test_temperature_by_hand():
    # Three of four are right at odds of e**4 to 1: log(3) / 4 of that confidence is what they deserve.
    logits = np.tile([[4.0, 0.0]], (100, 1))
    labels = np.array([0, 0, 0, 1] * 25)
    assert fit_temperature(logits, labels) == pytest.approx(4 / np.log(3), rel=1e-3)
    assert fit_temperature(logits[:20], labels[:20]) == 1.0


FUZZED = {
    "not JSON": lambda content: "{",
    "not an object": lambda content: "[]",
    "a number": lambda content: "7",
    "deeply nested": lambda content: "[" * 100_000,
    "another version": lambda content: json.dumps(content | {"format_version": 1}),
    "a newer version": lambda content: json.dumps(content | {"format_version": 99}),
    "version of another type": lambda content: json.dumps(content | {"format_version": "2"}),
    "a key too few": lambda content: json.dumps({key: content[key] for key in content if key != "labels"}),
    "a key too many": lambda content: json.dumps(content | {"more": 1}),
    "labels no list": lambda content: json.dumps(content | {"labels": "cat"}),
    "labels no strings": lambda content: json.dumps(content | {"labels": [1, 2, 3]}),
    "labels too few": lambda content: json.dumps(content | {"labels": ["one"]}),
    "height no number": lambda content: json.dumps(content | {"input": content["input"] | {"height": "16"}}),
    "height negative": lambda content: json.dumps(content | {"input": content["input"] | {"height": -16}}),
    "height huge": lambda content: json.dumps(
        content
        | {"input": content["input"] | {"height": 10**9}}
        | {"methods": {"forward": {"batch_size": 1, "height": 10**9, "width": 16}}}
    ),
    "height of another size": lambda content: json.dumps(
        content
        | {"input": content["input"] | {"height": 8}}
        | {"methods": {"forward": {"batch_size": 1, "height": 8, "width": 16}}}
    ),
    "batch of another size": lambda content: json.dumps(
        content | {"methods": {"forward": {"batch_size": 3, "height": 16, "width": 16}}}
    ),
    "layout unknown": lambda content: json.dumps(content | {"input": content["input"] | {"layout": "CHWN"}}),
    "filter unknown": lambda content: json.dumps(content | {"input": content["input"] | {"resample": 17}}),
    "temperature zero": lambda content: json.dumps(content | {"temperature": 0.0}),
    "task unknown": lambda content: json.dumps(content | {"task": "detection"}),
    "methods missing": lambda content: json.dumps(content | {"methods": {}}),
    "method that is not there": lambda content: json.dumps(
        content | {"methods": content["methods"] | {"other": {"batch_size": 1, "height": 16, "width": 16}}}
    ),
    "no sha256": lambda content: json.dumps(content | {"sha256": {}}),
    "another sha256": lambda content: json.dumps(content | {"sha256": {"model.pte": "0" * 64}}),
    "temperature without end": lambda content: json.dumps(content).replace(
        '"temperature": 1.0', '"temperature": 1' + "0" * 400
    ),
    "a number of 5,000 digits": lambda content: json.dumps(content)[:-1] + ', "more": ' + "1" * 5000 + "}",
    "a billion pixels": lambda content: json.dumps(
        content
        | {"input": content["input"] | {"height": 16384, "width": 16384}}
        | {"methods": {"forward": {"batch_size": 1, "height": 16384, "width": 16384}}}
    ),
    "source empty": lambda content: json.dumps(content | {"source": {}}),
    "source no path": lambda content: json.dumps(content | {"source": {"checkpoint": 5, "parameters": 1}}),
    "self-test of nothing": lambda content: json.dumps(content | {"self_test": {"num_images": 0, "tolerance": 1.0}}),
    "self-test of everything": lambda content: json.dumps(content | {"self_test": {"num_images": 3, "tolerance": 1e30}}),
    "NaN": lambda content: json.dumps(content | {"temperature": float("nan")}),
    "not UTF-8": None,
}


@pytest.mark.parametrize("case", FUZZED)
def test_manifests_that_are_not_ours_are_explained(artefact, case):
    content = json.loads((artefact / "edge.json").read_text())
    if FUZZED[case] is None:
        (artefact / "edge.json").write_bytes(b"\xff\xfe\x00")
    else:
        (artefact / "edge.json").write_text(FUZZED[case](content))
    with pytest.raises(ArtefactError) as error:
        Runner(artefact)
    print(f"{case:<26} {str(error.value).replace(str(artefact), 'DIR')}")


FUZZ = """
import faulthandler, json, random, sys
from pathlib import Path
import numpy as np
from edge.device.artefact import ArtefactError, sha256_of
from edge.device.runner import Runner
folder, program = Path(sys.argv[1]), (Path(sys.argv[1]) / "model.pte").read_bytes()
content = json.loads((folder / "edge.json").read_text())
for seed in range(int(sys.argv[2])):
    rng, damaged = random.Random(seed), bytearray(program)
    if seed % 3 == 0:
        del damaged[rng.randrange(8, len(damaged)):]
    elif seed % 3 == 1:
        damaged[8:] = rng.randbytes(rng.randrange(1, 5000))
    else:
        damaged = bytearray(rng.randbytes(64) + b"ET12" + rng.randbytes(1000))
    (folder / "model.pte").write_bytes(damaged)
    content["sha256"]["model.pte"] = sha256_of(bytes(damaged))  # as if somebody meant it
    (folder / "edge.json").write_text(json.dumps(content))
    try:
        Runner(folder)
        print("runs")
    except ArtefactError as error:
        print("explained", str(error)[:150].replace(str(folder), "DIR"))
"""


def test_cut_and_foreign_programs_are_explained_even_with_their_own_sha256(artefact):
    done = subprocess.run([sys.executable, "-c", FUZZ, str(artefact), "30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    print("\n".join(dict.fromkeys(lines)))
    assert len(lines) == 30 and all(line.startswith("explained") for line in lines)


def test_damaged_programs_are_refused_before_the_runtime_sees_them(artefact):
    program = (artefact / "model.pte").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(50):
        damaged = bytearray(program)
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        (artefact / "model.pte").write_bytes(damaged[: rng.integers(1, len(damaged) + 1)])
        with pytest.raises(ArtefactError, match="sha256 differs"):
            read_artefact(artefact)


def test_foreign_programs_are_explained(artefact):
    foreign = b"\x00" * 4 + b"XX12" + b"\x00" * 100
    (artefact / "model.pte").write_bytes(foreign)
    edit(artefact, sha256={"model.pte": sha256_of(foreign)})
    with pytest.raises(ArtefactError, match="is not an ExecuTorch program"):
        Runner(artefact)
