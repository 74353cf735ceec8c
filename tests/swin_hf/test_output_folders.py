"""Output folders: nothing that is not ours is replaced, and no half output is left."""

import errno
import os

import pytest
from safetensors import SafetensorError

from swin_hf.output_folders import (
    OutputError,
    changes,
    check_apart,
    check_file_replaceable,
    check_free,
    check_holds_only,
    check_writable,
    copy_whole,
    explained_full_disk,
    list_files,
    move_into_place,
    new_folder,
    read_record,
    write_json,
    write_record,
    write_whole,
)


@pytest.mark.parametrize(
    ("output", "given", "words"),
    [
        ("photos", "photos", "output_dir must be another folder than dataset"),
        ("photos/run", "photos", "output_dir must lie outside dataset"),
        ("runs", "runs/photos", "output_dir must not hold dataset"),
        ("link", "photos", "output_dir must be another folder than dataset"),
        ("link/run", "photos", "output_dir must lie outside dataset"),
        ("photos/../photos/a/b", "photos", "output_dir must lie outside dataset"),
        (".", "photos", "output_dir must not hold dataset"),
        ("runs", "runs/photos/cat.png", "output_dir must not hold dataset"),
    ],
)
def test_an_output_lies_apart_from_its_inputs(tmp_path, monkeypatch, output, given, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "runs/photos"):
        os.makedirs(folder)
    (tmp_path / "runs" / "photos" / "cat.png").touch()
    os.symlink("photos", "link")
    with pytest.raises(OutputError, match=words):
        check_apart(tmp_path / output if output != "." else output, dataset=given)


def test_what_is_apart_or_elsewhere_is_no_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    check_apart("photos-run", dataset="photos", model="org/name", teacher=None)
    check_apart("runs/photos", dataset="photos")


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "model.pte"])
def test_a_folder_with_anything_in_it_is_not_free(tmp_path, name):
    (tmp_path / "own").mkdir()
    check_free(tmp_path / "own")
    check_free(tmp_path / "new")
    (tmp_path / "own" / ".DS_Store").touch()
    check_free(tmp_path / "own")
    (tmp_path / "own" / name).touch()
    with pytest.raises(OutputError, match=f"must be a new or an empty folder, got .* with {name} in it"):
        check_free(tmp_path / "own")
    with pytest.raises(OutputError, match="got the file"):
        check_free(tmp_path / "own" / name)
    os.symlink("nothing", tmp_path / "dangling")
    with pytest.raises(OutputError, match="a link to nothing"):
        check_free(tmp_path / "dangling")


def test_a_record_lists_files_and_tells_what_changed(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_text("12345")
    (tmp_path / "b").write_text("1")
    (tmp_path / "gone").symlink_to("/etc")  # a link is listed, and what it points to is not
    assert set(list_files(tmp_path)) == {"below/a", "b", "gone"}
    write_record(tmp_path, "record.json", {"step": 3})
    record = read_record(tmp_path, "record.json")
    assert record["step"] == 3 and record["files"]["below/a"] == 5
    assert changes(tmp_path, record) == []
    check_holds_only(tmp_path, {*record["files"], "record.json"}, "such a folder")

    (tmp_path / "below" / "a").write_text("")
    (tmp_path / "b").unlink()
    (tmp_path / "mine.txt").touch()
    assert sorted(changes(tmp_path, record)) == ["b is missing", "below/a has 0 bytes instead of 5"]
    with pytest.raises(OutputError, match=r"such a folder and nothing else, got .* with mine\.txt"):
        check_holds_only(tmp_path, {*record["files"], "record.json"}, "such a folder")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"made_by": "somebody"}', '{"made_by": "swin-hf", "files": {"a": "b"}}', "[" * 99999],
)
def test_a_damaged_or_foreign_record_is_explained(tmp_path, content):
    assert read_record(tmp_path, "record.json") is None
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(OutputError, match=r"record\.json is damaged.* left as they are: move or remove"):
        read_record(tmp_path, "record.json")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as work_dir:
        (work_dir / "a").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert list_files(tmp_path) == {"deep/out/a": 3}
    with pytest.raises(OutputError, match="with a in it"), new_folder(tmp_path / "deep" / "out"):
        pass
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "other" / "out") as work_dir:
        (work_dir / "half").touch()
        raise KeyboardInterrupt
    assert list_files(tmp_path) == {"deep/out/a": 3} and not (tmp_path / "other").exists()


def test_what_came_into_a_folder_during_the_work_is_kept(tmp_path):
    with pytest.raises(OutputError, match="with mine in it"), new_folder(tmp_path / "out") as work_dir:
        (work_dir / "a").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
    assert set(list_files(tmp_path)) == {"out/mine"}


def test_files_that_bear_names_like_temporary_ones_are_kept(tmp_path):
    for name in (".out.partial", ".out.previous", ".record.json.partial"):
        (tmp_path / name).write_text("mine")
    with new_folder(tmp_path / "out") as work_dir:
        (work_dir / "a").touch()
    with new_folder(tmp_path / "out", lambda folder: None) as work_dir:
        (work_dir / "b").touch()
    write_json(tmp_path / "record.json", {})
    assert set(list_files(tmp_path)) == {".out.partial", ".out.previous", ".record.json.partial", "out/b", "record.json"}
    assert (tmp_path / ".out.partial").read_text() == "mine"


def test_links_are_replaced_and_never_followed(tmp_path):
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("mine")
    (outside / "folder" / "file").write_text("mine")
    (tmp_path / "report").symlink_to(outside / "file")
    write_whole(tmp_path / "report", "ours")
    (tmp_path / "copy").symlink_to(outside / "file")
    copy_whole(tmp_path / "report", tmp_path / "copy")
    (tmp_path / "stage").symlink_to(outside / "folder")
    (tmp_path / "work").mkdir()
    move_into_place(tmp_path / "work", tmp_path / "stage")
    assert (outside / "file").read_text() == (outside / "folder" / "file").read_text() == "mine"
    assert (tmp_path / "copy").read_text() == "ours" and not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "stage").is_dir() and not (tmp_path / "stage").is_symlink()


def test_long_names_can_be_written(tmp_path):
    name = "x" * 255  # the most that file systems take
    write_whole(tmp_path / name, "text")
    with new_folder(tmp_path / name[1:]) as work_dir:
        (work_dir / "a").touch()
    with new_folder(tmp_path / name[1:], lambda folder: None) as work_dir:
        (work_dir / "b").touch()
    assert set(list_files(tmp_path)) == {name, f"{name[1:]}/b"}


def test_an_output_file_is_replaced_only_if_it_is_ours(tmp_path):
    file = tmp_path / "figures.json"
    check_file_replaceable(file)
    write_json(file, {"a": 1})
    check_file_replaceable(file)
    for content in ('{"a": 1}', "my notes", "", "[1]"):
        file.write_text(content)
        with pytest.raises(OutputError, match="must be a new file or one that such a command wrote"):
            check_file_replaceable(file)
    with pytest.raises(OutputError, match="must be a new file"):
        check_file_replaceable(tmp_path)


def test_a_place_that_takes_no_files_is_named_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="nothing can be written to /proc"), new_folder("/proc/out"):
        pytest.fail("the work began")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_explained_whoever_meets_it(tmp_path, error):
    with pytest.raises(OutputError, match="the disk that holds .* is full; do this"), explained_full_disk(tmp_path, "do this"):
        raise error
    with pytest.raises(RuntimeError, match="another"), explained_full_disk(tmp_path, "do this"):
        raise RuntimeError("another")
