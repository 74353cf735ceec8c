"""What a training writes and reads in `--output_dir`: its own files alone, whole checkpoints alone, one training at a time."""

import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import StopAfter, settings_for
from filelock import FileLock, Timeout

from distill.data.sources import DataError
from distill.errors import SettingsError, TrainingStopped
from distill.training.finetune import finetune
from distill.training.trainer import last_whole_checkpoint
from swin_hf.output_folders import OutputError, list_files


def contents(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder)}


@pytest.fixture
def stopped(image_folder, tmp_path):
    """Settings of a training with averaged weights that was stopped with two whole checkpoints, of steps 3 and 5."""
    settings = settings_for(tmp_path, "--dataset", str(image_folder), "--ema_decay", "0.9", "--save_total_limit", "3")
    with pytest.raises(TrainingStopped):
        finetune(settings, [StopAfter(5)])
    return settings_for(
        tmp_path, "--dataset", str(image_folder), "--ema_decay", "0.9", "--save_total_limit", "3", "--resume", "true"
    )


def test_every_torn_checkpoint_is_skipped_with_a_word(stopped, tmp_path, capsys):
    out = tmp_path / "out"
    first, last = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files = list_files(last)
    expected = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "averaged_weights.pt", "checkpoint.json"}
    assert set(files) >= {*expected, "trainer_state.json", "training_args.bin", "config.json"}
    assert last_whole_checkpoint(out) == str(last)
    shutil.copytree(last, tmp_path / "kept")
    for name in files:
        for damage in ("remove", "empty", "halve"):
            content = (last / name).read_bytes()
            (last / name).unlink()
            if damage != "remove":
                (last / name).write_bytes(content[: len(content) // 2] if damage == "halve" else b"")
            assert last_whole_checkpoint(out) == str(first), (name, damage)
            assert f"{last} is not whole" in capsys.readouterr().out and not last.exists()
            shutil.copytree(tmp_path / "kept", last)
    for folder in (first, last):
        (folder / "optimizer.pt").write_bytes(b"")
    before = contents(out)
    with pytest.raises(OutputError, match=r"no checkpoint in .* is whole \(.*optimizer\.pt has 0 bytes instead of"):
        finetune(stopped)
    assert contents(out) == before


def test_a_training_goes_on_from_the_last_whole_checkpoint(stopped, tmp_path, capsys):
    last = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (last / "averaged_weights.pt").write_bytes(b"")
    figures = finetune(stopped)
    assert "averaged_weights.pt has 0 bytes" in (out := capsys.readouterr().out) and "resuming from checkpoint-3" in out
    assert figures["num_test_images"] > 0 and (tmp_path / "out" / "model.safetensors").is_file()
    finetune(stopped)  # a finished one again
    (tmp_path / "out" / "README.md").write_text("my own words")
    with pytest.raises(SettingsError, match=r"--resume must find metrics.json and README.md .*\['README.md'\]"):
        finetune(stopped)
    assert (tmp_path / "out" / "README.md").read_text() == "my own words"


@pytest.mark.parametrize("resume", [[], ["--resume", "true"]])
@pytest.mark.parametrize("name", ["checkpoint-5000/weights.bin", "README.md", "metrics.json", "data.json", "thesis.txt"])
def test_files_of_others_are_left_alone(image_folder, tmp_path, name, resume):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    for dataset in (image_folder, tmp_path / "nowhere"):
        before = contents(tmp_path)
        with pytest.raises((OutputError, SettingsError), match="--output_dir must be a new|--resume must find a training"):
            finetune(settings_for(tmp_path, "--dataset", str(dataset), *resume))
        assert contents(tmp_path) == before


def test_a_mistake_leaves_no_folder(tmp_path):
    with pytest.raises(DataError):
        finetune(settings_for(tmp_path, "--dataset", str(tmp_path / "nowhere")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", [".", "red", "red/deeper"])
def test_a_training_does_not_write_into_its_images(image_folder, tmp_path, inside):
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="--output_dir must"):
        finetune(settings_for(tmp_path, "--dataset", str(image_folder), "--output_dir", str(image_folder / inside)))
    with pytest.raises(OutputError, match="--output_dir must not hold dataset"):
        finetune(settings_for(tmp_path, "--dataset", str(image_folder), "--output_dir", str(tmp_path)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("flag", ["model", "teacher"])
def test_a_training_does_not_write_into_the_model_that_it_starts_from(image_folder, checkpoint, tmp_path, flag):
    before = contents(tmp_path)
    settings = settings_for(tmp_path, "--dataset", str(image_folder), f"--{flag}", str(checkpoint), "--model_args", "")
    for output_dir in (checkpoint, checkpoint / "finetuned", tmp_path):
        with pytest.raises(OutputError, match=f"--output_dir must .*{flag if output_dir != tmp_path else ''}"):
            finetune(settings.changed(output_dir=str(output_dir)))
    assert contents(tmp_path) == before


def test_a_training_that_was_stopped_before_its_first_checkpoint_begins_anew(image_folder, tmp_path):
    arguments = ["--dataset", str(image_folder)]
    with pytest.raises(OSError, match="a checkpoint of step 3 needs about"), pytest.MonkeyPatch.context() as patch:
        usage = SimpleNamespace(free=1000)
        patch.setattr("distill.training.trainer.shutil.disk_usage", lambda path: usage)
        finetune(settings_for(tmp_path, *arguments))
    with pytest.raises(OutputError, match="add --resume true"):
        finetune(settings_for(tmp_path, *arguments))
    finetune(settings_for(tmp_path, *arguments, "--resume", "true"))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_damaged_record_of_the_images_is_explained(stopped, tmp_path):
    file = tmp_path / "out" / "data.json"
    kept = file.read_text()
    for content in ("", kept[:50], "[]", '{"skipped": 3, "copies": []}', "null"):
        file.write_text(content)
        with pytest.raises(DataError, match=r"data\.json is damaged \(.*start anew"):
            finetune(stopped)


def test_one_training_at_a_time(image_folder, stopped, tmp_path):
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(Timeout):
        finetune(stopped)


def test_what_a_training_wrote_is_recorded(image_folder, tmp_path):
    finetune(settings_for(tmp_path, "--dataset", str(image_folder), "--save_total_limit", "1"))
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    listed = {name for name in list_files(tmp_path / "out") if name != "training.json"}
    assert set(record["files"]) == listed and {"README.md", "metrics.json", "model.safetensors"} <= listed
    kept = {name.split("/")[0] for name in listed if name.startswith("checkpoint-")}
    assert 1 <= len(kept) <= 2  # the last and the best
