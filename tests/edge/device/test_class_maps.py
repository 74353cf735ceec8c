"""Class maps on a device: sizes as PyTorch has them, shares, pictures, and folders of masks."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from edge.device.explanation import FileInTheWayError, new_files
from edge.device.image import UnreadableImageError
from edge.device.labelled import SplitError
from edge.device.masks import open_masked
from edge.device.palette import coloured, palette_of
from edge.device.segmentation import (
    Segmentation,
    class_map_at,
    class_map_of,
    confusion_of,
    interpolation,
    mean_iou,
)

SPLITS = ("test", "validation")


@pytest.mark.parametrize(("given", "length"), [(4, 16), (5, 7), (7, 5), (1, 3), (2, 2), (16, 1)])
def test_interpolation_is_that_of_pytorch(given, length):
    values = torch.randn(1, 1, given)
    expected = torch.nn.functional.interpolate(values, size=length, mode="linear", align_corners=False)
    np.testing.assert_allclose(interpolation(length, given) @ values[0, 0].numpy(), expected[0, 0].numpy(), atol=1e-6)


def test_class_maps_are_those_of_enlarged_logits():
    logits = torch.randn(1, 4, 5, 7)
    expected = torch.nn.functional.interpolate(logits, size=(33, 20), mode="bilinear").argmax(dim=1)[0]
    assert (class_map_of(logits[0].numpy(), 33, 20) == expected.numpy()).mean() > 0.99
    nearest = torch.nn.functional.interpolate(expected[None, None].float(), size=(50, 13), mode="nearest-exact")[0, 0]
    assert np.array_equal(class_map_at(expected.numpy(), 50, 13), nearest.numpy())


def test_counts_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, (9, 8)).astype(np.uint8), rng.integers(0, 3, (9, 8))
    truth[0] = 255
    known = truth != 255
    counts = confusion_of(predicted, truth, 4, 255)
    assert np.array_equal(counts, confusion_matrix(truth[known], predicted[known], labels=range(4)))
    assert mean_iou(counts) == pytest.approx(jaccard_score(truth[known], predicted[known], average="macro"))


def test_a_class_map_is_drawn_counted_and_stored(tmp_path):
    class_map = np.zeros((40, 60), np.uint8)
    class_map[:, 45:] = 2
    found = Segmentation(class_map=class_map, labels=["sea", "sky", "sand\n"], palette=palette_of(3))
    assert found.shares() == {"sea": 0.75, "sand\n": 0.25}
    found.as_mask().save(tmp_path / "mask.png")
    stored = Image.open(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(stored), class_map)
    assert stored.convert("RGB").getpixel((50, 0)) == palette_of(3)[2]
    drawn = np.asarray(found.drawn_over(Image.new("RGB", (60, 40), "white")))
    assert drawn.shape[0] >= 40 and drawn.shape[1] > 100  # a legend beside it
    assert drawn[5, 5].mean() < drawn[5, 50].mean() < 255  # darkened where the class is dark
    assert (drawn[:, 60:] == palette_of(3)[2]).all(axis=-1).any()  # its colour is in the legend


def test_colours_are_distinct_and_unknown_numbers_grey():
    palette = palette_of(150)
    assert len(set(palette)) == len(palette) == 150 and palette_of(1) == palette[:1]
    assert coloured(np.array([[0, 255]]), palette)[0].tolist() == [list(palette[0]), [128, 128, 128]]


def test_nothing_is_written_over(tmp_path):
    images = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    assert new_files(images, tmp_path, "mask", "overlay")[0] == (tmp_path / "a_mask.png", tmp_path / "a_overlay.png")
    (tmp_path / "b_overlay.png").write_bytes(b"mine")
    with pytest.raises(FileInTheWayError, match=r"b_overlay\.png exists already; give another --output_dir"):
        new_files(images, tmp_path, "mask", "overlay")
    with pytest.raises(FileInTheWayError, match="images must have different names"):
        new_files([tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.png"], tmp_path, "mask")


def write(folder, name, size=(8, 6), level=None):
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size) if level is None else Image.new("L", size, level)
    image.save(folder / name)


@pytest.mark.parametrize("layout", ["{kind}", "{kind}/test", "test/{kind}", "data/{kind}/test"])
def test_masks_are_found_beside_their_images(tmp_path, layout):
    for kind, level in (("images", None), ("masks", 1)):
        write(tmp_path / layout.format(kind=kind), "1.png", level=level)
        if "test" in layout:
            write(tmp_path / layout.format(kind=kind).replace("test", "train"), "2.png", level=level)
    write(tmp_path / layout.format(kind="images"), "3.png")
    one, other = (read() for read in open_masked(tmp_path, SPLITS))
    assert one.mask.shape == (6, 8) and (one.mask == 1).all() and other.mask is None


def test_masks_that_do_not_fit_are_named(tmp_path):
    write(tmp_path / "images" / "train", "1.png")
    with pytest.raises(SplitError, match="must have a folder test or validation, got train"):
        open_masked(tmp_path, SPLITS)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        (tmp_path / "empty").mkdir()
        open_masked(tmp_path / "empty", SPLITS)
    write(tmp_path / "other" / "images", "1.png")
    write(tmp_path / "other" / "annotations", "1.png", size=(4, 4), level=0)
    (read,) = open_masked(tmp_path / "other", SPLITS)
    with pytest.raises(UnreadableImageError, match=r"annotations/1\.png must have the size of its image, 8 x 6, got 4 x 4"):
        read()
    write(tmp_path / "colours" / "images", "1.png")
    write(tmp_path / "colours" / "masks", "1.png")
    (read,) = open_masked(tmp_path / "colours", SPLITS)
    with pytest.raises(UnreadableImageError, match="must be a mask with a number from 0 to 255 in each pixel, not colours"):
        read()
