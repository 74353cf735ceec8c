"""Streams: shards divided among readers, a new order in each pass, exact resuming, and what cannot be streamed."""

import datasets
import pytest
import torch
from conftest import STILL, StopAfter, settings_for
from safetensors.torch import load_file

from distill.data.sources import DataError
from distill.data.streaming import StreamedImages, open_stream
from distill.data.targets import CLASSES
from distill.data.transforms import RandomCrop, TransformSettings
from distill.errors import SettingsError, TrainingStopped
from distill.training.finetune import finetune
from distill.training.settings import parse_finetune_settings
from swin_hf.output_folders import OutputError

STEPS = ["--streaming", "true", "--max_steps", "7", "--eval_strategy", "steps", "--save_strategy", "steps"]
STEPS += ["--logging_strategy", "steps", "--eval_steps", "3", "--save_steps", "3", "--logging_steps", "1"]
STEPS += ["--shuffle_buffer", "6", *STILL]


def images_of(folder, process_index: int = 0, num_processes: int = 1, **changes) -> StreamedImages:
    arguments = ["--dataset", str(folder), *STEPS] + [f"--{name}={value}" for name, value in changes.items()]
    settings = parse_finetune_settings(arguments).images
    crop = RandomCrop(TransformSettings(crop_min_area=1.0, crop_max_aspect=1.0), 16, seed=0)
    stream = open_stream(CLASSES, settings, folder.parent)
    return StreamedImages(stream, settings, crop, process_index, num_processes)


def levels(images: StreamedImages, count: int, workers: int = 0) -> list[int]:
    loader = iter(torch.utils.data.DataLoader(images, batch_size=None, num_workers=workers))
    rows = [next(loader) for _ in range(count)]
    assert all(row["targets"] == row["pixels"][0, 0, 0] % 3 for row in rows)
    return [int(row["pixels"][0, 0, 0]) for row in rows]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pass_has_all_images_in_another_order(parquet_folder, workers):
    seen = levels(images_of(parquet_folder), 48, workers)
    assert sorted(seen) == sorted([*range(24)] * 2)
    if workers == 0:
        assert sorted(seen[:24]) == [*range(24)] and seen[:24] != seen[24:] and seen[:24] != [*range(24)]
        assert levels(images_of(parquet_folder), 48) == seen


def test_processes_read_shards_of_their_own(parquet_folder):
    first, second = (levels(images_of(parquet_folder, rank, 2), 12) for rank in range(2))
    assert sorted(first + second) == [*range(24)]
    assert len({level // 6 for level in first}) == 2


def test_one_held_out_part_is_halved(parquet_folder):
    held_out = images_of(parquet_folder).stream.held_out
    assert not list((parquet_folder.parent / "cache").rglob("*.arrow"))  # no part of the stream was stored on disk
    assert {split: len(images) for split, images in held_out.images.items()} == {"validation": 4, "test": 5}
    assert sorted(held_out.labels["validation"] + held_out.labels["test"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_streamed_training_resumes_bit_for_bit(parquet_folder, tmp_path, workers):
    data = ["--dataset", str(parquet_folder), *STEPS, "--ema_decay", "0.9", "--mixup_alpha", "0.5"]
    data += ["--dataloader_num_workers", workers, "--per_device_train_batch_size", "7"]
    finetune(settings_for(tmp_path / "whole", *data))
    with pytest.raises(TrainingStopped, match="step 5 of 7"):
        finetune(settings_for(tmp_path / "stopped", *data), [StopAfter(5)])
    with pytest.raises(SettingsError, match="--resume must use as many processes and --dataloader_num_workers"):
        finetune(settings_for(tmp_path / "stopped", *data, "--resume", "true", "--dataloader_num_workers", "3"))
    figures = finetune(settings_for(tmp_path / "stopped", *data, "--resume", "true"))
    assert figures["num_test_images"] == 5
    expected, actual = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_unreadable_images_of_a_stream_are_named_and_left_out(parquet_folder, capsys, monkeypatch):
    file = parquet_folder / "train-00000-of-00004.parquet"
    rows = datasets.Dataset.from_parquet(str(file)).cast_column("image", datasets.Image(decode=False)).to_list()
    rows[2]["image"]["bytes"] = b"no image"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "mid", "light"])})
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(file))
    monkeypatch.setattr("distill.data.streaming.FEWEST_JUDGED", 20)
    images = images_of(parquet_folder, max_unreadable_share=0.05)
    assert sorted(levels(images, 4 * 23)) == sorted(4 * [0, 1, *range(3, 24)])  # 1 of 24 in each pass
    with pytest.raises(DataError, match="1 of 2[0-4] images cannot be read, more than the allowed share of 1%"):
        levels(images_of(parquet_folder, max_unreadable_share=0.01), 48)
    assert "of the stream cannot be read" in capsys.readouterr().out


def test_what_cannot_be_streamed_is_said(image_folder, parquet_folder):
    with pytest.raises(DataError, match="--streaming is for a Hub id or a folder of parquet files; the images of .* anyway"):
        images_of(image_folder)
    with pytest.raises(SettingsError, match="--streaming must come with --max_steps N and with steps as --eval_strategy"):
        parse_finetune_settings(["--dataset", str(parquet_folder), "--streaming", "true"])
    with pytest.raises(SettingsError, match="--streaming must come without --initial_image_size, --repeated_augmentation"):
        images_of(parquet_folder, repeated_augmentation=3)
    (parquet_folder / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="--streaming needs a train and a validation or test split"):
        images_of(parquet_folder)


def test_held_out_images_that_lost_a_file_are_fetched_again(parquet_folder, tmp_path):
    expected = [source.load().getpixel((0, 0)) for source in images_of(parquet_folder).stream.held_out.images["test"]]
    (kept,) = tmp_path.glob("held_out-*")
    arrow = max(kept.rglob("*.arrow"), key=lambda file: file.stat().st_size)
    arrow.write_bytes(b"")
    assert [source.load().getpixel((0, 0)) for source in images_of(parquet_folder).stream.held_out.images["test"]] == expected
    (kept / "mine.txt").write_text("mine")
    (kept / "dataset_dict.json").unlink()
    with pytest.raises(OutputError, match=r"must be .*held-out images and nothing else, got .* with mine\.txt"):
        images_of(parquet_folder)
    assert (kept / "mine.txt").read_text() == "mine"
