"""Masks of images that a note in their files turns."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.splits import ImageSettings, prepare_splits
from distill.data.targets import MASKS

ORIENTATION = 0x0112


def write(folder, number: int, orientation: int, mask_is: str, form: str, size=(20, 12)) -> None:
    """An image whose upright pixels have a bright quarter at the top left, and its mask, upright or as the image is stored.

    size: width and height of the stored image.
    """
    upright = np.zeros((size[1], size[0]) if orientation < 5 else size, np.uint8)
    upright[: upright.shape[0] // 2, : upright.shape[1] // 2] = 1
    stored = Image.fromarray(upright)
    stored.getexif()[ORIENTATION] = {6: 8, 8: 6}.get(orientation, orientation)
    stored = ImageOps.exif_transpose(stored)
    # No two images are alike.
    stored.point(lambda level: 4 * number + 200 * level).convert("RGB").save(
        folder / "images" / f"{number}.{form}", exif=note(orientation)
    )
    mask = Image.fromarray(upright) if mask_is == "upright" else stored
    mask.save(folder / "masks" / f"{number}.png", exif=note(orientation if mask_is == "noted" else 1))


def note(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "classes.txt").write_text("rest\nquarter\n")
    return tmp_path / "data"


def prepare(folder, **changes):
    settings = ImageSettings(dataset=str(folder), validation_share=0.2, test_share=0.2, **changes)
    examples = prepare_splits(find_images(str(folder), MASKS), settings, folder.parent / "data.json", known=False)
    return [example for own in examples.values() for example in own], json.loads((folder.parent / "data.json").read_text())


@pytest.mark.parametrize("form", ["png", "tif", "webp", "avif"])
@pytest.mark.parametrize("mask_is", ["upright", "stored", "noted"])
def test_masks_are_turned_where_their_size_or_their_own_note_says_so(folder, form, mask_is):
    for orientation in range(1, 9):
        write(folder, orientation, orientation, mask_is if orientation > 4 or mask_is == "noted" else "upright", form)
    examples, record = prepare(folder)
    assert len(examples) == 8
    for example in examples:
        image = np.asarray(example.source.load().convert("L")) >= 150
        assert np.array_equal(image, np.asarray(example.load_mask()) == 1), example.source.name
    noted = [note for note in record["notes"] if "a note in their files (EXIF) turns" in note]
    assert [": 3, such as " in text for text in noted] == ([] if mask_is == "noted" else [True])  # orientations 2, 3 and 4


def test_square_images_are_noted_once_with_their_number(folder, capsys):
    for number in range(1, 9):
        write(folder, number, 6 if number > 5 else 1, "upright", "png", size=(16, 16))
    prepare(folder)
    printed = capsys.readouterr().out
    assert printed.count("a note in their files (EXIF) turns") == 1
    names = ", ".join(str(folder / "images" / f"{number}.png") for number in (6, 7, 8))
    assert f"masks are turned: 3, such as {names}; the masks are taken as they are" in printed


def test_a_mask_that_fits_neither_way_is_an_error(folder):
    for number in range(1, 9):
        write(folder, number, 6, "upright", "png")
    Image.new("L", (13, 20)).save(folder / "masks" / "3.png")
    with pytest.raises(DataError, match=r"3\.png is 13 x 20, its image 12 x 20 pixels"):
        prepare(folder)
