"""Spaces: what is written for one, in which order it is uploaded, and what is refused before."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from conftest import PROCESSOR
from huggingface_hub import ModelCard, RepoCard
from PIL import Image, ImageCms, PngImagePlugin

import swin_hf.uploading
from swin_hf import SwinHfBackbone
from swin_hf.convert import convert
from swin_hf.publish import PublishError, main, prepare
from swin_hf.spaces import make_space, requirements_of

NAME, COMMIT = "org/name", "0123abc"


@pytest.fixture(autouse=True)
def gradio(monkeypatch):
    """Gradio of a known version, installed or not."""
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.1.2" if name == "gradio" else known(name))


@pytest.fixture
def photos(tmp_path):
    """Photographs with metadata: one is large and lies on its side."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "taken at home"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (1600, 400), "red").save(folder / "b.jpg", exif=exif, icc_profile=profile)
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "me")
    Image.new("RGBA", (10, 20), (200, 10, 30, 0)).save(folder / "a.png", pnginfo=text)  # erased by transparency
    for name in ("notes.txt", "._b.jpg", "c.eps", "d.pdf"):
        (folder / name).write_text("none of the Space's business")
    return folder


@pytest.fixture
def space(checkpoint, photos, tmp_path):
    model = prepare(checkpoint, NAME, tmp_path / "model", "apache-2.0", photos)
    return make_space(model, tmp_path / "space")


def test_a_space_holds_its_app_with_code_requirements_and_card(space):
    card = RepoCard.load(space.folder / "README.md", repo_type="space")
    wanted = {"sdk": "gradio", "sdk_version": "6.1.2", "app_file": "app.py", "models": [NAME]}
    assert {name: card.data.to_dict()[name] for name in wanted} == wanted
    lines = (space.folder / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("transformers") for line in lines) and not any("executorch" in line for line in lines)
    assert any(line.startswith("executorch") for line in requirements_of(("edge",)))
    assert not any(line.startswith(("gradio", "swin-hf", "pytest")) for line in [*lines, *requirements_of(("edge",))])
    names = {name.split("/")[0] for name in space.files}
    assert names == {"LICENSE", "README.md", "app.py", "edge", "examples", "requirements.txt", "swin_hf"}


def test_examples_of_a_space_are_small_and_say_nothing_but_the_picture(space):
    sizes = {}
    for file in sorted((space.folder / "examples").iterdir()):
        with Image.open(file) as image:
            assert not image.getexif() and image.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
            sizes[file.name] = image.size
            corner = image.getpixel((0, 0))
        expected = (255, 255, 255) if file.name == "00.jpg" else (255, 0, 0)  # one that was erased, and a red one
        assert all(abs(own - other) < 4 for own, other in zip(corner, expected))
    assert sizes == {"00.jpg": (10, 20), "01.jpg": (256, 1024)}


def test_a_card_shows_examples_and_a_licence_whoever_wrote_it(checkpoint, photos, tmp_path, capsys):
    for number, text in enumerate((None, "# My own words", "---\ntags: [mine]\n---\n# With a header")):
        if text:
            (checkpoint / "README.md").write_text(text)
        folder = prepare(checkpoint, NAME, tmp_path / str(number), "mit", photos).folder
        card = ModelCard.load(folder / "README.md")
        assert card.data.license == "mit" and [own["src"] for own in card.data.widget] == [
            "examples/00.jpg",
            "examples/01.jpg",
        ]
        assert (folder / "examples" / "01.jpg").is_file() and (text or "# name").split("\n")[-1] in card.text
    assert card.data.tags == ["mine"]
    for more, is_asked in (([], True), (["--license", "mit"], False)):
        assert main([str(checkpoint), NAME, *more]) == 0
        shown = capsys.readouterr()
        assert ("The card names no licence" in shown.out) == is_asked and "metadata block" not in shown.err
    (checkpoint / "README.md").write_text("# My own words")
    assert main([str(checkpoint), NAME]) == 0 and "metadata block" not in capsys.readouterr().err


def test_the_code_of_a_space_needs_nothing_else_of_this_project(space):
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import edge.verbs.opening, edge.verbs.checkpoint_model, edge.device.runner, swin_hf.model_card, swin_hf
own = [module for name, module in sys.modules.items() if name.split(".")[0] in ("swin_hf", "edge", "distill")]
assert all(module.__file__.startswith(sys.argv[1]) for module in own), own
assert not any(name.split(".")[0] == "distill" for name in sys.modules)
print(len(own))
"""
    command = [sys.executable, "-c", program, str(space.folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=space.folder)
    assert result.returncode == 0 and int(result.stdout) > 20, result.stderr
    assert "Apache License" in (space.folder / "LICENSE").read_text()


class Hub:
    """What is asked of the Hub; its model is private, whether or not that is said again."""

    calls: ClassVar[list] = []

    def __init__(self, **_):
        pass

    def create_repo(self, name, private, repo_type, space_sdk, exist_ok):
        self.calls.append(("create", name, private, repo_type, space_sdk))

    def model_info(self, name):
        return SimpleNamespace(private=True)

    def upload_folder(self, repo_id, repo_type, folder_path, delete_patterns, **_):
        app = folder_path / "app.py"
        self.calls.append(("upload", repo_type, delete_patterns, app.read_text() if app.is_file() else ""))
        return SimpleNamespace(repo_url=f"hub/{repo_type}/{repo_id}", oid=COMMIT)


@pytest.mark.parametrize("more", [["--private"], []])
def test_a_space_shows_the_commit_that_was_uploaded_and_is_as_private(checkpoint, photos, monkeypatch, capsys, more):
    monkeypatch.setattr(swin_hf.uploading, "HfApi", Hub)
    Hub.calls.clear()
    assert main([str(checkpoint), NAME, "--space", "--examples", str(photos), *more, "--upload"]) == 0
    created, first, space, second = Hub.calls
    assert created == ("create", NAME, True if more else None, "model", None)
    assert space == ("create", NAME, True, "space", "gradio")
    assert first == ("upload", "model", ["examples/*"], "")
    assert second[1:3] == ("space", ["examples/*", "swin_hf/*", "edge/*"])
    assert f'serve(["{NAME}@{COMMIT}"], "examples", is_public=True)' in second[3]
    out = capsys.readouterr().out
    assert "page -> hub/space/org/name" in out and "HF_TOKEN" in out


def test_a_page_is_made_only_of_what_it_can_show(make_config, checkpoint, tmp_path):
    SwinHfBackbone(make_config(out_features=["stage2"])).save_pretrained(tmp_path / "backbone")
    PROCESSOR.save_pretrained(tmp_path / "backbone")
    convert(checkpoint, tmp_path / "stock", to="transformers")
    for name in ("backbone", "stock"):
        model = prepare(tmp_path / name, NAME, tmp_path / f"{name} out")
        with pytest.raises(PublishError, match="--space shows classifiers and segmenters of swin_hf, and programs of them"):
            make_space(model, tmp_path / "space")
        assert not (tmp_path / "space").exists()


@pytest.mark.parametrize(
    "text", ["---\ntitle: a: b\n---\n# Odd", "---\nmodel-index:\n- name: x\n  results: 3\n---\n", b"\xff\xfe# Odd"]
)
def test_cards_with_odd_headers_are_published_unless_they_are_to_be_changed(checkpoint, capsys, text):
    (checkpoint / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    prepared = Path(checkpoint.parent, "prepared")
    assert (prepare(checkpoint, NAME, prepared).folder / "README.md").is_file()
    assert main([str(checkpoint), NAME, "--license", "mit"]) == 1
    assert "README.md must have a header that the Hub reads, to be given a licence or examples" in capsys.readouterr().err


def test_a_space_is_shown_before_it_is_uploaded(checkpoint, capsys):
    assert main([str(checkpoint), NAME, "--space"]) == 0
    out = capsys.readouterr().out
    assert (
        "Space org/name (private if the model is):" in out and "app.py" in out and "Nothing was uploaded; add --upload." in out
    )


def test_what_a_space_cannot_hold_is_refused(checkpoint, photos, tmp_path, capsys, monkeypatch):
    def refused(*arguments: str) -> str:
        assert main([str(checkpoint), NAME, *arguments]) == 1
        return capsys.readouterr().err

    kinds = "(.bmp, .gif, .jpeg, .jpg, .png, .webp)"
    assert f"--examples must be a folder of images {kinds}, got /" in refused("--examples", str(tmp_path / "nowhere"))
    (photos / "c.png").write_bytes(b"no image")
    assert "c.png cannot be read as an image" in refused("--examples", str(photos))
    (photos / "c.png").unlink()
    (photos / "c.png").symlink_to(checkpoint / "config.json")
    assert "got links to elsewhere: c.png" in refused("--examples", str(photos))
    (tmp_path / "empty").mkdir()
    assert f"{kinds}, got none in" in refused("--space", "--examples", str(tmp_path / "empty"))

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert 'pip install "swin-hf' in refused("--space")
