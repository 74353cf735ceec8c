"""Segmenters on the device: logits and class maps of programs against the model, mean IoU, and what is refused."""

import json

import numpy as np
import pytest
import torch
from conftest import PLAIN_PROCESSOR, TINY, TINY_VIT
from PIL import Image
from sklearn.metrics import jaccard_score
from transformers.exporters.base import ExportedModel

from edge import __main__ as cli
from edge.apps.writer import fill
from edge.device.artefact import read_manifest
from edge.device.image import load_image, to_pixel_values
from edge.device.program import read_constants
from edge.device.runner import Runner
from edge.device.verify import self_test
from edge.device.verify import verify as verify_on_device
from edge.export.export import export
from edge.export.settings import ExportError, ExportSettings
from edge.export.verify import verify
from swin_hf import SwinHfForSemanticSegmentation, SwinHfImageProcessorPil, SwinHfUperNetConfig

LABELS = {0: "sky", 1: "sea", 2: "sand"}


def segmenter(backbone: dict, head: str) -> SwinHfForSemanticSegmentation:
    torch.manual_seed(0)
    config = SwinHfUperNetConfig(
        backbone_config=TINY | backbone | {"out_features": ["stage1", "stage2"], "weight_init": "fan_in"},
        **{"decode_head": head, "hidden_size": 8, "pool_scales": [1, 3], "use_auxiliary_head": False, "id2label": LABELS},
    )
    model = SwinHfForSemanticSegmentation(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    classifier = model.decode_head.classifier
    torch.nn.init.normal_(classifier.weight)
    levels = torch.linspace(-0.8, 0.8, 6).repeat_interleave(6)  # stripes like those of the scenes
    with torch.no_grad():
        logits = model(levels.view(1, 1, 36, 1).expand(1, 3, 36, 36)).logits
        classifier.bias -= logits.mean(dim=(0, 2, 3))  # so that each class occurs
    return model


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Images of stripes and their masks, one row of which counts for nothing."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for number in range(20):
        mask = np.repeat(rng.integers(0, 3, 6), 4)[:, None].repeat(30, axis=1)
        noise = rng.integers(0, 60, (24, 30, 3))
        Image.fromarray((80 * mask[..., None] + noise).astype(np.uint8)).save(root / "images" / f"{number}.png")
        mask[0] = 255
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter") / "model"
    segmenter({}, "light").save_pretrained(folder)
    PLAIN_PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def artefact(checkpoint, scenes):
    """An fp32 export that puts out logits, checked on the same scenes."""
    folder = checkpoint.parent / "edge"
    export(checkpoint, folder, ExportSettings(recipe="fp32", dataset=scenes, validation=scenes))
    return folder


def expected_map(checkpoint, file) -> np.ndarray:
    """The class of each pixel of an image, from the model alone."""
    model, image = SwinHfForSemanticSegmentation.from_pretrained(checkpoint), load_image(file)
    model.config.resize_logits = False
    with torch.no_grad():
        logits = model((torch.from_numpy(to_pixel_values(image, 16, 16, 3)) - 0.5) / 0.5).logits
    return torch.nn.functional.interpolate(logits, size=image.size[::-1], mode="bilinear").argmax(dim=1)[0].numpy()


def test_the_program_has_one_delegate_palette_and_classes(artefact):
    manifest = read_manifest(artefact)
    assert manifest.program["num_delegates"] == 1 and manifest.program["outside"] == {}
    assert (manifest.task, manifest.labels, manifest.class_map) == ("semantic-segmentation", list(LABELS.values()), False)
    assert len(set(manifest.palette)) == 3 and manifest.map_size == (8, 8)
    assert fill("android", manifest)["palette"] == [list(colour) for colour in manifest.palette]
    held = read_constants((artefact / "model.pte").read_bytes(), {"labels", "palette"})
    assert held["labels"] == manifest.labels and json.loads(held["palette"][0]) == [list(c) for c in manifest.palette]
    assert manifest.accuracy["num_images"] == 20
    assert manifest.accuracy["program"] == pytest.approx(manifest.accuracy["model"], abs=1e-3)
    assert self_test(artefact)[0] == 3


def test_class_maps_are_the_models_at_the_images_own_size(artefact, checkpoint, scenes):
    runner = Runner(artefact)
    assert runner.outputs(np.zeros((1, 3, 16, 16), np.float32))[0].shape == (1, 3, 8, 8)
    for file in sorted((scenes / "images").iterdir())[:4]:
        found = runner.segment(file).class_map
        assert found.shape == (24, 30) and (found == expected_map(checkpoint, file)).mean() > 0.995
        assert len(np.unique(found)) > 1


def test_mean_iou_is_scikit_learns(artefact, checkpoint, scenes):
    files = sorted((scenes / "images").iterdir())
    predicted = np.stack([expected_map(checkpoint, file) for file in files])
    truth = np.stack([np.asarray(Image.open(scenes / "masks" / file.name)) for file in files])
    known = truth != 255
    figures = verify(artefact, scenes)
    assert figures["mean_iou"] == pytest.approx(jaccard_score(truth[known], predicted[known], average="macro"), abs=5e-3)
    assert figures["pixel_accuracy"] == pytest.approx((truth == predicted)[known].mean(), abs=5e-3)
    assert figures["sqnr_db"] > 80 and figures["agreement"] == 1 and figures["num_with_masks"] == 20
    assert verify_on_device(artefact, scenes)["mean_iou"] == figures["mean_iou"]
    assert read_manifest(artefact).accuracy["program"] == pytest.approx(figures["mean_iou"])


def test_class_maps_come_out_of_the_program_on_request(checkpoint, scenes, tmp_path):
    settings = ExportSettings(recipe="fp32", dataset=scenes, class_map=True, input_dtype="uint8")
    manifest = export(checkpoint, tmp_path / "edge", settings)
    assert manifest.program["num_delegates"] == 1 and "aten::argmax" in manifest.program["outside"]
    assert manifest.parity["program"]["agreement"] > 0.999 and manifest.parity["program"]["sqnr_db"] is None
    runner, file = Runner(tmp_path / "edge"), scenes / "images" / "0.png"
    (found,) = runner.outputs(runner.pixel_values(file))
    assert found.shape == (1, 16, 16) and found.dtype == np.uint8
    assert (runner.segment(file).class_map == expected_map(checkpoint, file)).mean() > 0.9  # whose edges are coarser
    assert verify(tmp_path / "edge", scenes, checkpoint)["agreement"] > 0.999
    assert self_test(tmp_path / "edge")[0] == 3


def test_logits_are_enlarged_in_the_program_on_request(checkpoint, scenes, tmp_path):
    settings = ExportSettings(recipe="fp32", dataset=scenes, enlarge=True, self_test=False)
    manifest = export(checkpoint, tmp_path / "edge", settings)
    assert manifest.program["num_delegates"] == 1 and manifest.program["outside"] == {}
    runner, file = Runner(tmp_path / "edge"), scenes / "images" / "0.png"
    assert runner.outputs(runner.pixel_values(file))[0].shape == (1, 3, 16, 16)
    assert (runner.segment(file).class_map == expected_map(checkpoint, file)).mean() > 0.95
    assert verify(tmp_path / "edge", scenes, checkpoint)["sqnr_db"] > 80


def test_the_uper_head_of_a_hybrid_is_one_delegate_in_int8(scenes, tmp_path):
    segmenter(TINY_VIT, "uper").save_pretrained(tmp_path / "model")
    SwinHfImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    manifest = export(tmp_path / "model", tmp_path / "edge", ExportSettings(dataset=scenes, self_test=False))
    assert manifest.program["num_delegates"] == 1 and manifest.program["outside"] == {}
    assert manifest.parity["deploy form"]["sqnr_db"] > 60 and manifest.parity["program"]["agreement"] > 0.9


def test_stock_transformers_opens_a_segmenter(artefact, scenes):
    pixels = Runner(artefact).pixel_values(scenes / "images" / "0.png")
    logits = ExportedModel.from_pretrained(artefact)(pixel_values=torch.from_numpy(pixels)).logits
    np.testing.assert_allclose(logits.numpy(), Runner(artefact).outputs(pixels)[0], atol=1e-5)


def test_masks_are_written_beside_a_report_of_shares(artefact, scenes, tmp_path, capsys):
    files = [str(scenes / "images" / name) for name in ("0.png", "1.png")]
    command = ["run", str(artefact), *files, "--output_dir", str(tmp_path / "masks")]
    assert cli.main([*command, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert sum(first["shares"].values()) == pytest.approx(1) and first["shares"] != second["shares"]
    mask = np.asarray(Image.open(first["mask"]))
    assert np.array_equal(mask, Runner(artefact).segment(files[0]).class_map)
    assert Image.open(first["overlay"]).width > 30
    assert cli.main(command) == 1
    assert "exists already; give another --output_dir" in capsys.readouterr().err


def test_what_no_segmenter_can_do_is_refused(artefact, checkpoint, scenes, tmp_path, capsys):
    assert cli.main(["bench", str(artefact), "--compare"]) == 1
    assert "must be a classifier to be compared with other engines, got one of semantic-seg" in capsys.readouterr().err
    with pytest.raises(ExportError, match="recipe int8-qat must have a classifier to train"):
        export(checkpoint, tmp_path / "edge", ExportSettings(recipe="int8-qat", dataset=scenes))
    with pytest.raises(ExportError, match="validation: dataset must hold a folder images and a folder masks"):
        export(checkpoint, tmp_path / "edge", ExportSettings(dataset=scenes, validation=scenes / "images"))
    SwinHfImageProcessorPil(size={"height": 16, "width": 16}, crop_pct=0.9).save_pretrained(checkpoint)
    try:
        with pytest.raises(ExportError, match="must show it whole images, got crop_pct 0.9; set it to null"):
            export(checkpoint, tmp_path / "edge", ExportSettings(dataset=scenes))
    finally:
        PLAIN_PROCESSOR.save_pretrained(checkpoint)
    assert not (tmp_path / "edge").exists()


def test_only_segmenters_have_class_maps(make_model, image_folder, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "model")
    with pytest.raises(ExportError, match="class_map must be left out for a model that is no segmenter"):
        export(tmp_path / "model", tmp_path / "edge", ExportSettings(dataset=image_folder, class_map=True))
    with pytest.raises(ExportError, match="enlarge must be left out for a model that is no segmenter"):
        export(tmp_path / "model", tmp_path / "edge", ExportSettings(dataset=image_folder, enlarge=True))


def test_numbers_of_no_class_are_named(artefact, scenes, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    Image.open(scenes / "images" / "0.png").save(tmp_path / "images" / "0.png")
    Image.new("L", (30, 24), 7).save(tmp_path / "masks" / "0.png")
    with pytest.raises(Exception, match=r"the mask of images/0\.png must hold numbers of the 3 classes, or 255, got 7"):
        verify_on_device(artefact, tmp_path)
