"""The command that draws explanations: pictures, names of classes, and what is refused."""

import numpy as np
import pytest
import torch
from conftest import PLAIN_PROCESSOR, TINY
from PIL import Image

from swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from swin_hf.explain import AGAINST, FOR, heat, main


def test_heat_is_red_for_and_blue_against():
    grey = Image.new("RGB", (32, 16), (100, 100, 100))
    pixels = np.asarray(heat(np.array([[1.0, 0.0, 0.0, -1.0]]), grey)).astype(int)
    for place, colour in ((0, FOR), (31, AGAINST)):
        assert np.abs(pixels[8, place] - (0.25 * 100 + 0.75 * np.array(colour))).max() <= 1
    assert np.abs(pixels[8, 16] - 100).max() <= 1
    assert np.array_equal(np.asarray(heat(np.zeros((2, 2)), grey)), np.asarray(grey))


def test_each_image_gets_a_picture(checkpoint, image_folder, tmp_path, capsys):
    images = [str(image_folder / "red" / f"{number}.png") for number in (0, 1)]
    command = [str(checkpoint), *images, "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--label", "green"]) == 0
    assert capsys.readouterr().out.count("_explained.png") == 2
    picture = Image.open(tmp_path / "out" / "0_explained.png")
    assert picture.height > 256 and picture.width > 4 * 256  # image, class map, Grad-CAM, attention rollout
    assert main(command) == 1
    assert "0_explained.png exists already; give another --output_dir" in capsys.readouterr().err


def test_segmenters_are_drawn(image_folder, tmp_path):
    backbone = TINY | {"out_features": ["stage1", "stage2"], "weight_init": "fan_in"}
    names = {"id2label": {0: "sky", 1: "sea"}}
    config = SwinHfUperNetConfig(backbone_config=backbone, decode_head="light", use_auxiliary_head=False, **names)
    SwinHfForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "model")
    image = str(image_folder / "red" / "0.png")
    assert main([str(tmp_path / "model"), image, "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "0_explained.png").is_file()


def test_mistakes_are_explained_and_other_images_go_on(checkpoint, image_folder, tmp_path, capsys):
    image, out = str(image_folder / "red" / "0.png"), ["--output_dir", str(tmp_path / "out")]
    for arguments, message in (
        ([str(checkpoint), image, "--label", "pink", *out], "label must be one of blue, green, red, got pink"),
        ([str(tmp_path / "none"), image, *out], "must be a folder or a Hub id of a classifier or a segmenter"),
        ([str(checkpoint), image, str(image_folder / "blue" / "0.png"), *out], "images must have different names"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main([str(checkpoint), str(tmp_path / "broken.png"), image, *out]) == 1
    said = capsys.readouterr()
    assert "broken.png cannot be read" in said.err and "0_explained.png" in said.out


@pytest.mark.parametrize("grey", [False, True])
def test_greyscale_models_and_wide_images_are_drawn(make_model, tmp_path, grey):
    from swin_hf import SwinHfImageProcessorPil

    make_model(num_channels=1 if grey else 3, image_size=[16, 32]).save_pretrained(tmp_path / "model")
    size = {"height": 16, "width": 32}
    kinds = {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]} if grey else {}
    SwinHfImageProcessorPil(size=size, **kinds).save_pretrained(tmp_path / "model")
    Image.fromarray(torch.randint(0, 255, (20, 60, 3), dtype=torch.uint8).numpy()).save(tmp_path / "wide.jpg")
    assert main([str(tmp_path / "model"), str(tmp_path / "wide.jpg"), "--output_dir", str(tmp_path)]) == 0
    picture = Image.open(tmp_path / "wide_explained.png")
    assert picture.width > 4 * 512 and picture.height < 300
