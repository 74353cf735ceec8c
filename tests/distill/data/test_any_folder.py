"""Whatever lies in a folder: held-out images stay out of the training, and every file is used or accounted for."""

import hashlib
import io
import json
import os
import shutil
import tempfile
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.splits import ImageSettings, prepare_splits
from distill.data.targets import CLASSES, NOTHING
from edge.device.labelled import SplitError, open_folder

TRAIN = ("train", "Training", "training_set", "train2017", "TRAIN")
HELD_OUT = ("val", "valid", "dev", "eval", "Evaluation", "val2017", "test", "TEST", "test_set", "holdout", "hold-out")
UNKNOWN = ("exam", "part2", "unseen")
SPLIT_FOLDERS = (*TRAIN, *HELD_OUT, *UNKNOWN)
CLASS_FOLDERS = ("cat", "dog", unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"), "01", "None", "Cat")
HIDDEN = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".cache/deep")
SUFFIXES = (".png", ".PNG", ".jfif", ".pgm", ".webp", ".heic", ".txt", ".JPG.part", "")
KINDS = ("image", "copy", "note", "broken link", "folder", "pipe")
THINGS = st.tuples(st.sampled_from(KINDS), st.sampled_from(SUFFIXES), st.booleans())


@dataclass
class Folder:
    """A folder to fill. content: of every image file written, in turn."""

    root: Path
    content: list[bytes] = field(default_factory=list)

    def image(self, path: Path, copied: bytes | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if copied is None:
            pixels, file = np.random.default_rng(len(self.content)).integers(0, 256, (4, 5, 3), np.uint8), io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            copied = file.getvalue()
        self.content.append(copied)
        path.write_bytes(copied)

    def thing(self, folder: Path, number: int, kind: str, suffix: str, hidden: bool, data: st.DataObject) -> None:
        """Something beside the images of a class: an image, a copy of one, or what is none."""
        if hidden:
            folder = folder / data.draw(st.sampled_from(HIDDEN))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{'._' if kind == 'note' and number % 2 else ''}thing{number}{suffix}"
        if kind in ("image", "copy"):
            self.image(path, data.draw(st.sampled_from(self.content)) if kind == "copy" and self.content else None)
        elif kind == "note":
            path.write_text("a note")
        elif kind == "broken link":
            path.symlink_to("nowhere")
        elif kind == "folder":
            (path / "inside").mkdir(parents=True)
        else:
            os.mkfifo(path)

    def files(self) -> list[Path]:
        return [Path(folder, name) for folder, _, names in os.walk(self.root) for name in names]

    def state(self) -> dict[str, str]:
        """Everything that is there, with a hash of what is in it."""
        found = {}
        for path in self.root.rglob("*"):
            kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file" if path.is_file() else "pipe"
            content = path.read_bytes() if kind == "file" else b""
            found[str(path)] = f"{kind} {hashlib.sha256(content).hexdigest()} {path.lstat().st_mtime_ns}"
        return found


@st.composite
def layouts(draw) -> list[tuple[str, str, int]]:
    """(folder of a split or "", class folder, number of images)."""
    kind = draw(st.sampled_from(("classes", "splits", "splits", "any")))
    if kind == "classes":
        splits = [""]
    elif kind == "splits":
        splits = [draw(st.sampled_from(TRAIN)), *draw(st.lists(st.sampled_from(HELD_OUT), max_size=2, unique=True))]
    else:
        splits = draw(st.lists(st.sampled_from((*SPLIT_FOLDERS, "")), min_size=1, max_size=3, unique=True))
    around = "/".join(draw(st.lists(st.sampled_from(("archive", "data")), max_size=2)))
    classes = draw(st.lists(st.sampled_from(CLASS_FOLDERS), min_size=2, max_size=4, unique=True))
    return [(f"{around}/{split}".strip("/"), name, draw(st.integers(5, 7))) for split in splits for name in classes]


def build(root: Path, data: st.DataObject) -> Folder:
    folder = Folder(root)
    layout = data.draw(layouts())
    for split, name, count in layout:
        for number in range(count):
            folder.image(root / split / name / f"{number}{data.draw(st.sampled_from(('.png', '.PNG', '.jfif')))}")
    for number in range(data.draw(st.integers(0, 6))):
        split, name, _ = data.draw(st.sampled_from(layout))
        where = data.draw(st.sampled_from((root, root / split, root / split / name, root / split / name / "more")))
        folder.thing(where, number, *data.draw(THINGS), data)
    return folder


def check(folder: Folder, targets, work_dir: Path) -> bool:
    """Whether the images could be used; if so, whether all is as it should be."""
    before = folder.state()
    try:
        own = ImageSettings(dataset=str(folder.root), max_unreadable_share=0.5, validation_share=0.2, test_share=0.2)
        found = find_images(own.dataset, targets)
        examples = prepare_splits(found, own, work_dir / "data.json", known=False)
    except DataError:
        return False
    finally:
        assert folder.state() == before
    record = json.loads((work_dir / "data.json").read_text(encoding="utf-8"))

    content = {split: {example.source.open().read_bytes() for example in own} for split, own in examples.items()}
    pixels = {split: {example.source.load().tobytes() for example in own} for split, own in examples.items()}
    for read in (content, pixels):
        assert not read["train"] & read["test"]
        assert not read["train"] & read["validation"]
        assert not read["validation"] & read["test"]

    paths = {split: [example.source.open().relative_to(folder.root) for example in own] for split, own in examples.items()}
    for split, own in paths.items():
        for path in own:
            assert not any(part.startswith(".") or part in HIDDEN for part in path.parts)
            assert split != "train" or not set(path.parts) & {*HELD_OUT}

    if targets is CLASSES:
        assert set(found.class_names) <= {unicodedata.normalize("NFC", name) for name in CLASS_FOLDERS}
        for own in examples.values():
            for example in own:
                name = unicodedata.normalize("NFC", found.class_names[example.label])
                assert name in {unicodedata.normalize("NFC", part) for part in example.source.open().parts}
        assert {example.label for example in examples["train"]} == set(range(len(found.class_names)))

    check_verification(folder, found.class_names, {split for split, images in found.images.items() if images})
    num_found = sum(map(len, found.images.values()))
    assert num_found + sum(record["left_out"].values()) == len(folder.files())
    num_used, num_copies = sum(map(len, examples.values())), sum(map(len, record["copies_left_out"].values()))
    assert num_used + len(record["skipped"]) + num_copies >= num_found  # a copy may be in a split that is not readable
    assert len({path for own in paths.values() for path in own}) == num_used
    return True


def check_verification(folder: Folder, labels: list[str], given: set[str]) -> None:
    """That `edge verify` reads held-out images alone where there are any, and nothing hidden."""
    try:
        readers = open_folder(folder.root, labels, ("test", "validation"))
    except (FileNotFoundError, SplitError):
        return
    for path in (reader.args[1] for reader in readers):
        assert not any(part.startswith(".") or part in HIDDEN for part in path.parts)
        assert not ({"test", "validation"} & given and set(path.parts) & {*TRAIN})


def test_any_folder_is_split_cleanly_or_refused():
    outcomes = {CLASSES: [], NOTHING: []}

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data(), targets=st.sampled_from((CLASSES, CLASSES, NOTHING)))
    def run(data, targets):
        root = Path(tempfile.mkdtemp())
        try:
            (root / "data").mkdir()
            outcomes[targets].append(check(build(root / "data", data), targets, root / "work"))
        finally:
            shutil.rmtree(root)

    run()
    assert all(sum(own) > len(own) // 3 for own in outcomes.values())  # most layouts are good ones
