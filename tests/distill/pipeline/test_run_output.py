"""What a run writes and replaces: its own files alone, and whole ones alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image_folder
from filelock import FileLock, Timeout
from PIL import Image
from test_teacher_choice import SHARED, SMALL

from distill.data.sources import DataError
from distill.pipeline.layout import check_layout, lay_out
from distill.pipeline.pipeline import run_pipeline
from distill.pipeline.settings import parse_settings
from distill.pipeline.stages import StageError
from edge.export.images import CalibrationError
from swin_hf.output_folders import OutputError, list_files, write_json


def run(dataset: Path, output_dir: Path, *more: str) -> str:
    arguments = [*SHARED, "--dataset", str(dataset), "--output_dir", str(output_dir), "--stages", "data", *more]
    return run_pipeline(parse_settings(arguments))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder)}


@pytest.fixture
def run_dir(image_folder, tmp_path) -> Path:
    """A run of which the data stage is done."""
    run(image_folder, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_does_not_write_into_its_images(tmp_path):
    docs = tmp_path / "docs"  # with classes that bear the names of stages
    write_image_folder(docs)
    for stage, name in zip(("report", "data", "teacher"), ("blue", "green", "red")):
        (docs / name).rename(docs / stage)
    before = contents(tmp_path)
    for output_dir in (docs, docs / "report", docs / "run", tmp_path):
        with pytest.raises(OutputError, match="--output_dir must .* nothing was changed, give another --output_dir"):
            run(docs, output_dir)
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["data/thesis.txt", "report/final.docx", "samples/mine.png", "report.html", ".lock", "stage.json"]
)
def test_a_folder_of_others_is_no_run(image_folder, tmp_path, name):
    (tmp_path / "own" / name).parent.mkdir(parents=True)
    (tmp_path / "own" / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="--output_dir must be a new or an empty folder, got .*give another --output_dir"):
        run(image_folder, tmp_path / "own")
    assert contents(tmp_path) == before


def test_files_of_others_in_a_run_are_left_alone(image_folder, run_dir):
    own = {
        "notes.txt": "a",
        "report/final.docx": "b",
        ".data.partial/mine": "c",
        ".teacher.previous/mine": "d",
        "samples/me": "e",
    }
    for name, text in own.items():
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).write_text(text)
    run(image_folder, run_dir)
    run(image_folder, run_dir, "--test_share", "0.3")  # which builds the data stage again
    assert {name: (run_dir / name).read_text() for name in own} == own
    with pytest.raises(OutputError, match=r"the folder of a stage must be .*report with final\.docx in it; move it elsewhere"):
        run(image_folder, run_dir, "--test_share", "0.3", "--stages", "all")
    (run_dir / "data" / "mine.txt").write_text("mine")
    run(image_folder, run_dir, "--test_share", "0.3")  # nothing to do
    for more in (["--force"], ["--test_share", "0.2"]):
        with pytest.raises(OutputError, match=r"must be .*one that a stage wrote and nothing else, got .*data with mine\.txt"):
            run(image_folder, run_dir, *more)
    assert (run_dir / "data" / "mine.txt").read_text() == "mine"


def test_folders_of_pruning_are_left_where_nothing_is_pruned_any_more(image_folder, run_dir, capsys):
    shutil.copytree(run_dir / "data", run_dir / "pruned")  # a folder that a stage wrote
    before = contents(run_dir)
    run(image_folder, run_dir)
    assert f"no longer of this run, and left as they are: pruned in {run_dir}" in capsys.readouterr().out
    assert contents(run_dir) == before
    run(image_folder, run_dir, "--target", "macs=0.7")
    assert "no longer" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["train", "data.json", "samples/blue_0.png", "dataset_dict.json"])
def test_a_stage_that_lost_or_changed_files_is_built_again(image_folder, run_dir, capsys, damage):
    before = contents(run_dir)
    path = run_dir / "data" / damage
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:10])
    run(image_folder, run_dir)
    out = capsys.readouterr().out
    assert "up to date" not in out and "data was changed: " in out
    assert set(contents(run_dir)) == set(before)
    run(image_folder, run_dir)
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["data.json", "dataset_dict.json", "train/dataset_info.json", "train/data-00000-of-00001.arrow"]
)
@pytest.mark.parametrize("filler", [b"x", b" ", b"\xa0"])
def test_a_file_that_was_damaged_without_a_change_of_its_size_is_named(image_folder, run_dir, name, filler):
    file = run_dir / "data" / name
    file.write_bytes(filler * file.stat().st_size)
    with pytest.raises(StageError, match=f"data/{name} is not as stage data wrote it.*add --stages data --force"):
        run(image_folder, run_dir, "--stages", "teacher", "--teacher_args", SMALL)
    run(image_folder, run_dir, "--force")
    assert file.read_bytes()[:1] != filler


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": 3}', "null"])
def test_a_damaged_record_is_explained_and_nothing_is_lost(image_folder, run_dir, content):
    for name in ("data/stage.json", "run.json"):
        kept = (run_dir / name).read_text()
        (run_dir / name).write_text(content)
        before = contents(run_dir)
        with pytest.raises(OutputError, match=f"{name} is damaged.*: move or remove this folder and start again"):
            run(image_folder, run_dir)
        assert contents(run_dir) == before
        (run_dir / name).write_text(kept)


def test_a_stage_may_be_a_link_to_another_disk(image_folder, run_dir, tmp_path, capsys):
    shutil.move(run_dir / "data", tmp_path / "disk")
    (run_dir / "data").symlink_to(tmp_path / "disk")
    before = contents(tmp_path / "disk")
    run(image_folder, run_dir)
    assert "up to date" in capsys.readouterr().out
    for _ in range(2):
        run(image_folder, run_dir, "--force")
    assert f"was a link to {tmp_path / 'disk'}, which is left as it is" in capsys.readouterr().out
    assert contents(tmp_path / "disk") == before and not (run_dir / "data").is_symlink()


def test_one_run_at_a_time(image_folder, run_dir):
    with FileLock(run_dir / ".lock"), pytest.raises(Timeout):
        run(image_folder, run_dir)


def test_a_mistake_leaves_no_folder(tmp_path):
    with pytest.raises(DataError):
        run(tmp_path / "nowhere", tmp_path / "runs" / "new")
    assert not list(tmp_path.iterdir())


def test_copies_of_the_report_replace_only_copies(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "data" / "samples").mkdir(parents=True)
    write_json(tmp_path / "run.json", {"files": {}})
    (tmp_path / "report" / "report.html").write_text("first")
    (tmp_path / "data" / "samples" / "cat_0.png").write_text("first")
    lay_out(tmp_path)
    assert (tmp_path / "samples" / "cat_0.png").read_text() == (tmp_path / "report.html").read_text() == "first"
    (tmp_path / "samples" / "mine.png").write_text("mine")
    (tmp_path / "report" / "report.html").write_text("second")
    (tmp_path / "data" / "samples" / "cat_0.png").rename(tmp_path / "data" / "samples" / "dog_0.png")
    check_layout(tmp_path)
    lay_out(tmp_path)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["dog_0.png", "mine.png"]
    assert (tmp_path / "report.html").read_text() == "second"
    (tmp_path / "samples" / "dog_0.png").unlink()
    lay_out(tmp_path)  # what is missing is copied again
    assert (tmp_path / "samples" / "dog_0.png").read_text() == "first"

    (tmp_path / "report.html").write_text("my notes")
    lay_out(tmp_path)  # nothing to do
    (tmp_path / "report" / "report.html").write_text("third")
    with pytest.raises(OutputError, match=r"other files of these names, or some that were changed since: report\.html"):
        check_layout(tmp_path)
    with pytest.raises(OutputError, match=r"holds report\.html"):
        lay_out(tmp_path)
    (tmp_path / "report.html").unlink()
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "report.html").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"report\.html"):
        check_layout(tmp_path)
    with pytest.raises(OutputError, match=r"report\.html"):
        lay_out(tmp_path)
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_images_of_one_colour_are_refused_before_any_training(tmp_path):
    for number, name in enumerate(("red", "green", "blue")):
        (tmp_path / "plain" / name).mkdir(parents=True)
        for copy in range(12):
            level = 20 + 5 * copy + 60 * number
            Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(tmp_path / "plain" / name / f"{copy}.png")
    with pytest.raises(CalibrationError, match="must show something, most of these are of one colour"):
        run(tmp_path / "plain", tmp_path / "run", "--stages", "all")
    assert not (tmp_path / "run" / "data").exists()
