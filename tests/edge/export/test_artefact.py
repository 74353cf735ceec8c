"""What an export writes: methods of several sizes, inputs of bytes, backbones, and files for stock transformers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from edge.device.artefact import ArtefactError
from edge.device.image import load_image, to_pixel_values
from edge.device.runner import Runner
from edge.export.checkpoint import load_checkpoint
from edge.export.export import ExportSettings, export
from edge.export.verify import verify
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


def test_every_method_equals_the_model_at_its_size(checkpoint, image_folder, tmp_path):
    settings = ExportSettings(recipe="fp32", dataset=image_folder, sizes=((16, 16), (24, 20)), batch_sizes=(1, 2))
    export(checkpoint, tmp_path / "edge", settings)
    model, _ = load_checkpoint(checkpoint)
    runner = Runner(tmp_path / "edge")
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


def test_stock_transformers_opens_the_artefact(artefact, image_folder):
    image = image_folder / "red" / "0.png"
    done = subprocess.run([sys.executable, "-c", STOCK_ALONE, str(artefact), str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    runner = Runner(artefact)
    found = json.loads(done.stdout.splitlines()[-1])[0]
    np.testing.assert_allclose(found, runner.logits(runner.pixel_values(image)), atol=1e-4)


def test_bytes_go_in_channels_last(checkpoint, image_folder, tmp_path):
    export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", dataset=image_folder, input_dtype="uint8"))
    model, processor = load_checkpoint(checkpoint)
    runner, image = Runner(tmp_path / "edge"), image_folder / "red" / "0.png"
    pixels = runner.pixel_values(image)
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 16, 16, 3)
    with torch.no_grad():
        expected = model(**processor(Image.open(image), return_tensors="pt")).logits[0].numpy()
    np.testing.assert_allclose(runner.logits(pixels), expected, atol=1e-4)


def test_backbone_is_exported_with_its_maps(make_config, checkpoint, image_folder, tmp_path, capsys):
    SwinHfBackbone(make_config(out_features=["stage1", "stage2"])).save_pretrained(checkpoint)
    manifest = export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", dataset=image_folder))
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
