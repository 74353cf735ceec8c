"""Spaces: what is written for one, in which order it is uploaded, and what is refused before."""

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard, RepoCard
from PIL import Image

import swin_hf.uploading
from swin_hf.publish import main, prepare
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
    Image.new("RGB", (1600, 400), "red").save(folder / "b.jpg", exif=exif)
    Image.new("RGBA", (10, 20)).save(folder / "a.png")
    (folder / "notes.txt").write_text("none of the Space's business")
    return folder


@pytest.fixture
def space(checkpoint, photos, tmp_path):
    model = prepare(checkpoint, NAME, tmp_path / "model", "apache-2.0", photos)
    return make_space(model, tmp_path / "space")


def test_a_space_holds_its_app_with_code_requirements_and_card(space):
    card = RepoCard.load(space.folder / "README.md", repo_type="space")
    wanted = {"sdk": "gradio", "sdk_version": "6.1.2", "app_file": "app.py", "models": [NAME], "license": "apache-2.0"}
    assert card.data.to_dict().items() >= wanted.items()
    lines = (space.folder / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("transformers") for line in lines) and not any("executorch" in line for line in lines)
    assert any(line.startswith("executorch") for line in requirements_of(("edge",)))
    assert not any(line.startswith(("gradio", "swin-hf", "pytest")) for line in [*lines, *requirements_of(("edge",))])
    names = {name.split("/")[0] for name in space.files}
    assert names == {"README.md", "app.py", "edge", "examples", "requirements.txt", "swin_hf"}


def test_examples_of_a_space_are_small_and_say_nothing_but_the_picture(space):
    sizes = {}
    for file in sorted((space.folder / "examples").iterdir()):
        with Image.open(file) as image:
            assert not image.getexif() and image.info == {}
            sizes[file.name] = image.size
    assert sizes == {"00.png": (10, 20), "01.png": (256, 1024)}


def test_a_card_shows_examples_and_a_licence_whoever_wrote_it(checkpoint, photos, tmp_path, capsys):
    for number, text in enumerate((None, "# My own words", "---\ntags: [mine]\n---\n# With a header")):
        if text:
            (checkpoint / "README.md").write_text(text)
        folder = prepare(checkpoint, NAME, tmp_path / str(number), "mit", photos).folder
        card = ModelCard.load(folder / "README.md")
        assert card.data.license == "mit" and [own["src"] for own in card.data.widget] == [
            "examples/00.png",
            "examples/01.png",
        ]
        assert (folder / "examples" / "01.png").is_file() and (text or "# name").split("\n")[-1] in card.text
    assert card.data.tags == ["mine"]
    for more, is_asked in (([], True), (["--license", "mit"], False)):
        assert main([str(checkpoint), NAME, *more]) == 0
        assert ("The card names no licence" in capsys.readouterr().out) == is_asked


def test_the_code_of_a_space_needs_nothing_else_of_this_project(space):
    program = "import edge.verbs.opening, edge.verbs.checkpoint_model as own; print(own.__file__)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(space.folder)!r}); {program}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=space.folder, check=True)
    assert result.stdout.strip() == str(space.folder / "edge" / "verbs" / "checkpoint_model.py")


def test_a_space_shows_the_commit_that_was_uploaded(checkpoint, photos, monkeypatch, capsys):
    calls = []

    class Hub:
        def __init__(self, **_):
            pass

        def create_repo(self, name, private, repo_type, space_sdk, exist_ok):
            calls.append(("create", name, private, repo_type, space_sdk))

        def upload_folder(self, repo_id, repo_type, folder_path, **_):
            app = folder_path / "app.py"
            calls.append(("upload", repo_type, app.read_text() if app.is_file() else ""))
            return SimpleNamespace(repo_url=f"hub/{repo_type}/{repo_id}", oid=COMMIT)

    monkeypatch.setattr(swin_hf.uploading, "HfApi", Hub)
    assert main([str(checkpoint), NAME, "--space", "--examples", str(photos), "--private", "--upload"]) == 0
    created, first, space, second = calls
    assert (created, space) == (("create", NAME, True, "model", None), ("create", NAME, True, "space", "gradio"))
    assert first == ("upload", "model", "")
    assert second[1] == "space" and f'serve(["{NAME}@{COMMIT}"], "examples", is_public=True)' in second[2]
    out = capsys.readouterr().out
    assert "page -> hub/space/org/name" in out and "HF_TOKEN" in out


def test_a_space_is_shown_before_it_is_uploaded(checkpoint, capsys):
    assert main([str(checkpoint), NAME, "--space"]) == 0
    out = capsys.readouterr().out
    assert "Space org/name:" in out and "app.py" in out and "Nothing was uploaded; add --upload." in out


def test_what_a_space_cannot_hold_is_refused(checkpoint, photos, tmp_path, capsys, monkeypatch):
    def refused(*arguments: str) -> str:
        assert main([str(checkpoint), NAME, *arguments]) == 1
        return capsys.readouterr().err

    assert "--examples must be a folder of images, got" in refused("--examples", str(tmp_path / "nowhere"))
    (photos / "c.png").write_bytes(b"no image")
    assert "c.png cannot be read as an image" in refused("--space", "--examples", str(photos))
    (tmp_path / "empty").mkdir()
    assert "--examples must be a folder of images, got none" in refused("--space", "--examples", str(tmp_path / "empty"))

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert 'pip install "swin-hf' in refused("--space")
