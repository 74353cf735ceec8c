"""What counts as an image under a folder, and images that cannot be decoded."""

import io
import os
import random
import socket
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edge.__main__ as cli
from edge.device.image import UnreadableImageError, image_suffixes, load_image
from edge.device.labelled import FileLabels
from edge.device.listing import HIDDEN, IRREGULAR, describe_left_out, list_files
from edge.device.names import file_stem


def picture(side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8))


def encoded(form: str, **options) -> bytes:
    file = io.BytesIO()
    picture().save(file, form, **options)
    return file.getvalue()


def test_hidden_system_and_irregular_files_are_no_images(tmp_path):
    kept, hidden = ["cat/0.png", "cat/deep/1.PNG"], [".DS_Store", "Thumbs.db", "cat/._0.png", "cat/.0.png", "desktop.ini"]
    hidden += [f"cat/{name}/0.png" for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".a/b", "@eaDir/0.jpg")]
    for name in (*kept, *hidden, "cat/__init__.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "broken.png").symlink_to("nowhere")
    (tmp_path / "cat" / "folder.jpg").mkdir()
    (tmp_path / "cat" / "link.png").symlink_to("0.png")
    with socket.socket(socket.AF_UNIX) as place:
        place.bind(str(tmp_path / "s.png"))
        listing = list_files(tmp_path)
    assert listing.images == [Path(name) for name in ("cat/0.png", "cat/deep/1.PNG", "cat/link.png")]
    assert {str(path) for path, reason in listing.left_out.items() if reason == HIDDEN} == set(hidden)
    assert listing.reasons() == {HIDDEN: len(hidden), IRREGULAR: 3, "suffix .txt": 1}
    assert Path("cat/folder.jpg") in listing.folders


def test_a_loop_of_links_ends(tmp_path):
    (tmp_path / "cat" / "deep").mkdir(parents=True)
    (tmp_path / "cat" / "0.png").write_bytes(encoded("PNG"))
    (tmp_path / "cat" / "deep" / "up").symlink_to(tmp_path)
    listing = list_files(tmp_path)
    assert listing.images == [Path("cat/0.png")] and listing.reasons() == {"in a loop of links": 1}


READ = (".png", ".jpg", ".jfif", ".jpe", ".webp", ".avif", ".tif", ".gif", ".bmp", ".pgm", ".ppm", ".jp2", ".tga", ".ico")
DAMAGED = ("PNG", "JPEG", "AVIF", "DDS", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "TGA", "ICO", "PCX", "SGI")


@pytest.mark.parametrize("suffix", READ)
def test_what_pillow_reads_is_read(tmp_path, suffix):
    form = Image.registered_extensions()[suffix]
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {form}")
    image = picture(16).convert("L") if suffix == ".pgm" else picture(16)
    (tmp_path / f"A{suffix.upper()}").touch()
    image.save(tmp_path / f"A{suffix.upper()}", form)
    (name,) = list_files(tmp_path).images
    assert load_image(tmp_path / name).size == (16, 16)


def test_other_suffixes_are_counted_and_a_plugin_is_named(tmp_path):
    for name in ("a.HEIC", "b.HEIC", "c.txt", "d", "e.mpg", "f.h5", "g.eps"):
        (tmp_path / name).write_bytes(b"x")
    reasons = list_files(tmp_path).reasons()
    assert reasons == {f"suffix .{name}": 1 for name in ("txt", "mpg", "h5", "eps")} | {"suffix .HEIC": 2, "no suffix": 1}
    assert "7 files" in describe_left_out(reasons) and "2 suffix .HEIC (pip install pillow-heif)" in describe_left_out(reasons)


def test_a_plugin_that_is_installed_is_used(tmp_path, monkeypatch):
    """A stand-in for `pillow-heif`, which registers a format when it is asked to."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "class Heif(PngImagePlugin.PngImageFile):\n"
        "    format = 'HEIF'\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Heif, lambda start: start.startswith(b'\\x89PNG'))\n"
        "    Image.register_extensions('HEIF', ['.heic', '.heif'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    monkeypatch.setattr(Image, "EXTENSION", {**Image.EXTENSION})
    image_suffixes.cache_clear()
    try:
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.HEIC").write_bytes(encoded("PNG"))
        assert list_files(tmp_path / "images").images == [Path("a.HEIC")]
    finally:
        sys.modules.pop("pillow_heif", None)
        monkeypatch.undo()
        image_suffixes.cache_clear()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", DAMAGED)
def test_damaged_images_are_unreadable_and_nothing_else(form):
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {form}")
    exif = {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}
    whole = encoded(form, **(exif if form in ("PNG", "JPEG", "AVIF", "WEBP", "TIFF") else {}))
    draw, unreadable = random.Random(form), 0
    for number in range(60):
        content = bytearray(whole[: draw.randrange(len(whole))] if number % 3 == 0 else whole)
        for _ in range(number % 3 * 4):
            content[draw.randrange(min(len(content), 300))] = draw.randrange(256)
        try:
            assert load_image(io.BytesIO(bytes(content)), "damaged").mode == "RGB"
        except UnreadableImageError as error:
            assert str(error).startswith("damaged cannot be read: ") and len(str(error)) > 26
            unreadable += 1
    assert unreadable > 10


@pytest.mark.parametrize("error", [RuntimeError("a"), NotImplementedError("b"), struct.error("c"), KeyError("d"), EOFError()])
def test_whatever_a_decoder_raises_is_explained(monkeypatch, tmp_path, error):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(UnreadableImageError, match=r"a\.png cannot be read: ."):
        load_image(tmp_path / "a.png")


def test_missing_files_and_empty_folders_among_images_are_named(artefact, image_folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty").mkdir()
    images = [tmp_path / "no.png", tmp_path / "pipe.png", image_folder / "red" / "0.png"]
    assert cli.main(["run", str(artefact), *map(str, images)]) == 1
    out, err = capsys.readouterr()
    assert "no.png does not exist" in err and "pipe.png is not a regular file" in err and "Errno" not in err
    assert out.count("0.png") == 1
    assert cli.main(["run", str(artefact), str(tmp_path / "empty")]) == 1
    assert f"{tmp_path / 'empty'} holds no images" in capsys.readouterr().err
    with pytest.raises(UnreadableImageError, match=r"red is a folder; give the images in it: .*red/\*"):
        load_image(image_folder / "red")


LABELS = ["a/b", "a-b", "a%2Fb", "100%", "..", ".hidden", "c:d", "cafe\u0301", "nul\0", "\u732b", "cat_1", "cat"]
LABELS += ["x" * 300, "x" * 299 + "y"]


def test_every_label_has_a_file_name_of_its_own(tmp_path):
    stems = [file_stem(label) for label in LABELS]
    assert len({stem.casefold() for stem in stems}) == len(LABELS)
    names = FileLabels(LABELS)
    for label, stem in zip(LABELS, stems):
        (tmp_path / f"{stem}_12.png").write_bytes(b"")  # the file system takes it
        assert names.of_image(Path(f"{stem}_12.png")) == label
        assert names.of_folder(stem) == label or stem in LABELS
    assert names.of_image(Path("caf\u00e9_3.png")) == "cafe\u0301"
    assert names.of_image(Path("dog_3.png")) is None and names.of_image(Path("cat_1_0.png")) == "cat_1"
