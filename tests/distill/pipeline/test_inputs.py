"""Which files of a data set and of a checkpoint make a run start anew."""

import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

from distill.pipeline.inputs import checkpoint_files, data_files, describe_changes
from distill.pipeline.stages import Stage, run_stages


def later(path: Path) -> None:
    """As if the file had been written a minute later."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 60 * 10**9))


def test_only_the_images_of_a_folder_count(image_folder):
    before = data_files(str(image_folder))
    assert len(before) == 48 and before[0][0] == "blue/0.png"
    for name in (".DS_Store", "README.md", "red/Thumbs.db", "red/notes.txt", "red/._0.png", "cover.png"):
        (image_folder / name).write_bytes(b"beside the images")
    (image_folder / "red" / ".ipynb_checkpoints").mkdir()
    (image_folder / "red" / ".ipynb_checkpoints" / "0.png").write_bytes(b"a copy")
    assert data_files(str(image_folder)) == before
    later(image_folder / "red" / "0.png")
    assert data_files(str(image_folder)) != before


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_counts_by_its_content_and_its_images(image_folder, suffix):
    table = image_folder / f"table{suffix}"
    files = sorted(str(file.relative_to(image_folder)) for file in image_folder.rglob("*.png"))[:-1]
    rows = datasets.Dataset.from_dict({"image": files, "label": [file.split("/")[0] for file in files]})
    rows.to_csv(table) if suffix == ".csv" else rows.to_json(table)
    before = data_files(str(table))
    assert len(before) == 48  # 47 images and the table
    later(table)
    later(image_folder / "red" / "9.png")  # is not in the table
    assert data_files(str(table)) == before
    later(image_folder / "blue" / "0.png")
    assert describe_changes({"files": before}, {"files": data_files(str(table))}) == "files blue/0.png (changed)"
    table.write_text(table.read_text().replace("blue", "cyan", 1))
    assert f"{table.name} (changed)" in describe_changes({"files": before}, {"files": data_files(str(table))})


def test_stored_rows_count_and_files_beside_them_do_not(image_folder, tmp_path):
    rows = datasets.Dataset.from_dict({"label": [0, 1]})
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    for name, expected in (
        ("saved", {"data-00000-of-00001.arrow", "dataset_info.json", "state.json"}),
        ("parquet", {"train.parquet"}),
    ):
        for beside in (".DS_Store", "cache-1.arrow", "preview.png"):
            (tmp_path / name / beside).write_bytes(b"beside the rows")
        assert {file[0] for file in data_files(str(tmp_path / name))} == expected
    assert data_files("digits") == data_files("someone/something") == []


def test_of_a_checkpoint_what_is_loaded_counts(checkpoint):
    before = checkpoint_files(str(checkpoint))
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {name for name, *_ in before}
    (checkpoint / "checkpoint-5").mkdir()
    for name in ("README.md", ".DS_Store", "metrics.json", "checkpoint-5/model.safetensors", "training_args.pt"):
        (checkpoint / name).write_text("beside the model")
    later(checkpoint / "config.json")
    assert checkpoint_files(str(checkpoint)) == before
    later(checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text("{}")
    changed = describe_changes({"files": before}, {"files": checkpoint_files(str(checkpoint))})
    assert changed == "files config.json (changed), model.safetensors (changed)"


def test_a_stage_says_what_changed(image_folder, tmp_path, capsys):
    def run(size: int = 16) -> str:
        settings = {"image_size": size, "files": data_files(str(image_folder))}
        stage = Stage(name="data", title="", folder="data", inputs=(), settings=settings, build=lambda folder: None)
        run_stages([stage], ["data"], tmp_path)
        return capsys.readouterr().out

    assert "other settings" not in run() and "up to date" in run()
    (image_folder / ".DS_Store").write_text("a Finder window")
    assert "up to date" in run()
    (image_folder / "red" / "3.png").unlink()
    Image.new("RGB", (24, 20)).save(image_folder / "red" / "new.png")
    later(image_folder / "blue" / "0.png")
    assert "was made with other settings: files red/new.png (new), red/3.png (gone), blue/0.png (changed)\n" in run()
    assert "was made with other settings: image_size\n" in run(size=32)
    for number in range(10):
        later(image_folder / "blue" / f"{number}.png")
    assert "blue/4.png (changed), and 5 more\n" in run(size=32)
