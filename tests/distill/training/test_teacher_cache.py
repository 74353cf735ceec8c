"""A cache of the teacher's logits: trainings from it are those with the teacher, to the bit, on any number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HELD_OUT, settings_for
from PIL import Image
from safetensors.torch import load_file

from distill.compress.teachers import Classifier
from distill.compress.top_probabilities import compress, restore, rounded
from distill.errors import SettingsError
from distill.training.cache_writing import cache_teacher
from distill.training.finetune import finetune
from distill.training.settings import parse_finetune_settings
from distill.training.teacher_cache import CacheError
from distill.training.trainer import steps_of_epoch
from swin_hf.output_folders import OutputError

SCRIPTS = Path(__file__).parents[3] / "scripts"
AUGMENTED = ["--randaugment_ops", "1", "--mixup_alpha", "0.4", "--rotation_degrees", "10", "--random_erasing", "0.3"]

WITHOUT_MAPS = ["--feature_loss", "none"]  # of which a cache has none


@pytest.fixture
def taught(image_folder, checkpoint):
    return ["--dataset", str(image_folder), "--teacher", str(checkpoint), "--num_pictures", "0", *AUGMENTED, *WITHOUT_MAPS]


@pytest.fixture
def cached(tmp_path):
    return ["--teacher_cache", str(tmp_path / "cache")]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_compressed_logits_keep_the_largest_probabilities():
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.0, 50.0]])
    values, classes = compress(logits, 2)
    assert classes[0].tolist() == [0, 2] and values.dtype == torch.float16
    restored = restore(values, classes, 4).softmax(dim=1)
    expected = logits.softmax(dim=1)
    torch.testing.assert_close(restored[0, [0, 2]], expected[0, [0, 2]], atol=1e-3, rtol=0)
    torch.testing.assert_close(restored[0, [1, 3]], ((expected[0, 1] + expected[0, 3]) / 2).repeat(2), atol=1e-3, rtol=0)
    assert restored[1, 3] > 0.998 and restored.isfinite().all()
    assert torch.equal(rounded(logits, 0), logits)
    torch.testing.assert_close(rounded(logits, 9).softmax(dim=1), expected, atol=1e-3, rtol=0)


def test_compressed_logits_of_pixels_are_those_of_each_pixel():
    logits = torch.randn(2, 5, 3, 4)
    pixels = rounded(logits.permute(0, 2, 3, 1).reshape(-1, 5), 2).view(2, 3, 4, 5).permute(0, 3, 1, 2)
    assert torch.equal(rounded(logits, 2), pixels)


@pytest.mark.parametrize("top_k", ["0", "2"])
def test_a_training_from_the_cache_is_the_same_to_the_bit(taught, cached, tmp_path, monkeypatch, top_k):
    arguments = [*taught, "--kd_top_k", top_k, "--dataloader_drop_last", "false"]
    finetune(settings_for(tmp_path / "online", *arguments))
    figures = cache_teacher(settings_for(tmp_path, *arguments, *cached))
    assert figures["epochs"] == figures["epochs_written"] == 2
    assert figures["bytes_per_image_and_epoch"] < 70
    monkeypatch.setattr(Classifier, "forward", lambda self, pixels: pytest.fail("the teacher was asked"))
    finetune(settings_for(tmp_path / "offline", *arguments, *cached))
    assert same(weights_of(tmp_path / "online"), weights_of(tmp_path / "offline"))
    # Another student, which draws other random numbers, learns from the same cache.
    finetune(settings_for(tmp_path / "other", *arguments, *cached, "--model_args", "{drop_path_rate: 0.5}"))


def test_an_interrupted_cache_goes_on_and_grows(taught, cached, tmp_path, monkeypatch):
    settings, forward, calls = settings_for(tmp_path, *taught, *cached), Classifier.forward, []

    def fail_in_the_second_epoch(self, pixels):
        calls.append(pixels)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forward(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "forward", fail_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            cache_teacher(settings)
    with pytest.raises(CacheError, match="must hold 2 epochs, epoch-0001 is missing; call scripts/cache_teacher.py again"):
        finetune(settings_for(tmp_path / "a", *taught, *cached))
    before = (tmp_path / "cache" / "epoch-0000" / "process-0.safetensors").stat().st_mtime_ns
    assert cache_teacher(settings)["epochs_written"] == 1
    assert (tmp_path / "cache" / "epoch-0000" / "process-0.safetensors").stat().st_mtime_ns == before
    assert cache_teacher(settings)["epochs_written"] == 0
    longer = [*taught, *cached, "--num_train_epochs", "3"]
    assert cache_teacher(settings_for(tmp_path, *longer))["epochs_written"] == 1
    finetune(settings_for(tmp_path / "b", *longer))


@pytest.mark.parametrize(
    ("number", "batch_size", "accumulated", "drop_last", "steps"),
    [
        (13, 4, 1, False, 3),  # a last batch of one image is left out
        (14, 4, 1, False, 4),
        (14, 4, 1, True, 3),
        (20, 4, 2, True, 3),  # the Trainer steps after the last batch too
        (100, 8, 8, True, 2),
        (3, 4, 1, True, 1),
    ],
)
def test_epochs_are_counted_as_the_trainer_does(number, batch_size, accumulated, drop_last, steps, tmp_path):
    arguments = settings_for(
        *(tmp_path, "--per_device_train_batch_size", str(batch_size), "--dataloader_drop_last", str(drop_last)),
        *("--gradient_accumulation_steps", str(accumulated)),
    ).trainer
    assert steps_of_epoch(arguments, number) == steps


def test_the_cache_of_a_training_by_steps_is_long_enough(taught, cached, image_folder, tmp_path):
    for file in sorted(image_folder.rglob("*.png"))[37:]:  # of which 25 are trained on
        file.unlink()
    arguments = [*taught, *cached, "--dataloader_drop_last", "false", "--max_steps", "7", "--eval_strategy", "no"]
    arguments += ["--load_best_model_at_end", "false", "--test_share", "0.16", "--validation_share", "0.16"]
    settings = settings_for(tmp_path, *arguments)
    assert cache_teacher(settings)["epochs"] == 3
    finetune(settings)


def test_other_pixels_under_the_same_names_are_noticed(taught, cached, image_folder, tmp_path):
    cache_teacher(settings_for(tmp_path, *taught, *cached))
    relative = [os.path.relpath(image_folder) if word == str(image_folder) else word for word in taught]
    finetune(settings_for(tmp_path / "same", *relative, *cached))  # the same images by another path
    for file in image_folder.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file))[::-1].copy()).save(file)
    with pytest.raises(CacheError, match="was written with another dataset; call"):
        finetune(settings_for(tmp_path / "other", *taught, *cached))


def test_a_call_that_failed_leaves_nothing_that_binds(taught, cached, tmp_path):
    with pytest.raises(SettingsError, match="--global_batch_size must be at most the .* images, got 64"):
        cache_teacher(settings_for(tmp_path, *taught, *cached, "--per_device_train_batch_size", "64"))
    assert cache_teacher(settings_for(tmp_path, *taught, *cached))["epochs_written"] == 2


def test_files_of_an_interrupted_epoch_do_not_become_part_of_it(taught, cached, tmp_path):
    settings = settings_for(tmp_path, *taught, *cached)
    cache_teacher(settings)
    epoch = tmp_path / "cache" / "epoch-0001"
    (epoch / "epoch.json").unlink()
    (epoch / "process-1.safetensors").write_bytes(b"half of a file")  # of a second process that was killed
    assert cache_teacher(settings)["epochs_written"] == 1
    assert not (epoch / "process-1.safetensors").exists()
    finetune(settings)


def test_damage_is_found_before_the_training(taught, cached, tmp_path):
    cache_teacher(settings_for(tmp_path, *taught, *cached))
    file = tmp_path / "cache" / "epoch-0001" / "process-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheError, match="must hold 2 epochs, epoch-0001/process-0.safetensors is damaged"):
        finetune(settings_for(tmp_path / "a", *taught, *cached))
    assert cache_teacher(settings_for(tmp_path, *taught, *cached))["epochs_written"] == 1
    finetune(settings_for(tmp_path / "b", *taught, *cached))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--seed", "7"], "another seed; seed was 42, is 7"),
        (["--mixup_alpha", "0"], "another augmentation;"),
        (
            ["--per_device_train_batch_size", "4"],
            "another per_device_train_batch_size; .* was 8, is 4",
        ),
        (["--kd_top_k", "1"], "another kd_top_k; kd_top_k was 0, is 1"),
        (["--image_size", "24"], "another image_size; image_size was 16, is 24"),
        (["--test_share", "0.4"], "another dataset;"),
    ],
)
def test_the_cache_of_another_training_is_refused(taught, cached, tmp_path, changed, message):
    cache_teacher(settings_for(tmp_path, *taught, *cached))
    with pytest.raises(CacheError, match=message):
        finetune(settings_for(tmp_path / "a", *taught, *cached, *changed))
    with pytest.raises(CacheError, match=message):
        cache_teacher(settings_for(tmp_path, *taught, *cached, *changed))


def test_the_cache_of_another_teacher_is_refused(taught, cached, checkpoint, make_model, tmp_path):
    cache_teacher(settings_for(tmp_path, *taught, *cached))
    make_model(id2label=dict(enumerate(("blue", "green", "red")))).save_pretrained(checkpoint)
    with pytest.raises(CacheError, match="was written with another teacher;"):
        finetune(settings_for(tmp_path / "a", *taught, *cached))


def test_mistakes_with_a_cache_are_named(taught, cached, image_folder, tmp_path):
    with pytest.raises(CacheError, match="must name a folder that scripts/cache_teacher.py wrote, got .*cache; call that"):
        finetune(settings_for(tmp_path, *taught, *cached))
    segmentation = ["--task", "semantic-segmentation"]
    rule = "--teacher_cache must come with a --teacher of|--teacher must have something to teach"
    for more in (["--feature_loss", "vkd"], ["--kd_loss", "none"], ["--kd_weight", "0"], segmentation):
        with pytest.raises(SettingsError, match=rule):
            settings_for(tmp_path, *taught, *cached, *more)
    with pytest.raises(SettingsError, match="--teacher_cache must name the folder to write, got 'none'"):
        cache_teacher(settings_for(tmp_path, *taught))
    with pytest.raises(OutputError, match="--teacher_cache must lie outside dataset"):
        cache_teacher(settings_for(tmp_path, *taught, "--teacher_cache", str(image_folder / "cache")))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="--teacher_cache must be a new or an empty folder, .*; give another --teacher_c"):
        cache_teacher(settings_for(tmp_path, *taught, "--teacher_cache", str(tmp_path / "own")))


@pytest.mark.parametrize("writers", [1, 2])
def test_any_number_of_processes_writes_for_any_number(image_folder, checkpoint, cached, tmp_path, writers):
    config = str({"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 2, "window_size": 4})
    common = ["--dataset", str(image_folder), "--teacher", str(checkpoint), *AUGMENTED, *HELD_OUT, "--num_train_epochs", "1"]
    common += ["--per_device_train_batch_size", "4", "--image_size", "16", "--use_cpu", "true", "--num_pictures", "0", *cached]
    own = ["--output_dir", str(tmp_path / "out"), "--model_args", config]

    def with_two_processes(script: str, arguments: list[str]) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launcher, str(SCRIPTS / script), *arguments, "--ddp_backend", "gloo"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    if writers == 1:
        assert cache_teacher(parse_finetune_settings([*common, *own]))["epochs_written"] == 1
        with_two_processes("finetune.py", [*common, *own])
    else:
        assert "1 epochs, 1 of them new" in with_two_processes("cache_teacher.py", [*common, *own])
        finetune(parse_finetune_settings([*common, *own]))
    assert len(list((tmp_path / "cache" / "epoch-0000").glob("process-*"))) == writers
    assert np.isfinite(json.loads((tmp_path / "out" / "metrics.json").read_text())["train_loss"])
