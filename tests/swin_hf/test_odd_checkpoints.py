"""Checkpoints whose JSON, weights or pickles are not what they should be: every road explains them or works."""

import json
import math
import os
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from distill.compress.teachers import TeacherError, knows_classes, load_classifier
from distill.training.models import ModelChoice, ModelError, load_model, load_processor
from distill.training.tasks.classification import IMAGE_CLASSIFICATION
from edge.device.errors import ExplainedError as DeviceError
from edge.export.checkpoint import CheckpointError, input_contract, load_checkpoint
from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfImageProcessorPil
from swin_hf.configuration_swin_hf import class_names
from swin_hf.convert import convert
from swin_hf.errors import ExplainedError
from swin_hf.publish import prepare

NAMES = ["blue", "green", "red"]
ODD = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2.5,
        math.nan,
        math.inf,
        1e9,
        10**12,
        "x",
        "",
        [],
        [1],
        ["x"],
        [None],
        [[1]],
        [1, 2, 3],
        {},
    ),
    *({"a": 1}, {"height": 16}, {"height": "x", "width": None}, {"0": "a"}, {"0": None, "1": [], "2": {}}),
]
TRIED = 40  # pairs of a key and an odd value, drawn anew when this number or the seed changes


@pytest.fixture(autouse=True)
def quiet():
    logging.set_verbosity_error()
    yield
    logging.set_verbosity_warning()


def roads(folder, out):
    """What reads a checkpoint, and the errors with which it may end."""
    yield "export", lambda: (lambda model, processor: input_contract(model.config, processor))(*load_checkpoint(folder))
    yield "convert", lambda: convert(folder, out / "converted")
    yield "convert to timm", lambda: convert(folder, out / "timm", to="timm")
    yield "publish", lambda: prepare(folder, "org/name", out / "published")
    yield "teacher", lambda: load_classifier(folder, NAMES)


def explained(folder, out) -> list[str]:
    """The roads that end with an explanation; any other error fails the test."""
    ended = []
    for name, road in roads(folder, out):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        try:
            road()
        except (ExplainedError, DeviceError) as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 1000
            ended.append(name)
    return ended


def test_odd_values_of_every_key_are_explained_or_work(checkpoint, tmp_path):
    keys = [("config.json", key) for key in SwinHfConfig().to_dict()]
    names = set(SwinHfImageProcessorPil().to_dict()) | set(ImagesKwargs.__annotations__)
    keys += [("preprocessor_config.json", key) for key in sorted(names)]
    for file, key in random.Random(1).choices(keys, k=TRIED):
        whole = (checkpoint / file).read_text()
        changed = json.loads(whole) | {key: random.Random(f"{file} {key}").choice(ODD)}
        (checkpoint / file).write_text(json.dumps(changed))
        explained(checkpoint, tmp_path / "out")
        (checkpoint / file).write_text(whole)


ALL = ["export", "convert", "convert to timm", "publish", "teacher"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"x"', "[" * 5000, b"\xff\xfe{", '{"a": NaN}', '{"a": 1}'])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_files_that_are_no_settings_are_explained(checkpoint, tmp_path, file, content):
    (checkpoint / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = explained(checkpoint, tmp_path / "out")
    assert ended == ALL or (content == '{"a": 1}' and file != "config.json") or content == '{"a": NaN}'
    assert {"export", "convert", "publish"} <= set(ended) or content == '{"a": 1}'


@pytest.mark.parametrize(
    ("file", "changes", "roads_that_end", "message"),
    [
        ("preprocessor_config.json", {"image_mean": 0.5, "image_std": 0.25}, [], ""),
        (
            "preprocessor_config.json",
            {"image_mean": [0.5], "image_std": [0.25, 0.25, 0.25]},
            ["export", "publish", "teacher"],
            "",
        ),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, ALL, "makes finite numbers"),
        ("preprocessor_config.json", {"resample": "x"}, ALL, "resample must be the number of one of Pillow's filters"),
        ("preprocessor_config.json", {"size": {"height": 10**9, "width": 1}}, ALL, "size must be pixels from 1 to 16384"),
        ("config.json", {"id2label": {"1": "a", "2": "b", "3": "c"}}, ["export", "convert to timm", "teacher"], "0 to 2"),
        ("config.json", {"id2label": {"0": 0, "1": 1, "2": 2}}, ["teacher"], ""),
        ("config.json", {"architectures": 3}, ["export", "convert", "convert to timm", "publish"], "list of architectures"),
        ("config.json", {"layer_norm_eps": -1.0}, ALL, "layer_norm_eps must be a finite number, 0 or more, got -1.0"),
        ("config.json", {"return_dict": False, "batch_norm_eps": 1}, [], ""),
    ],
)
def test_one_setting_is_explained_by_its_name(checkpoint, tmp_path, file, changes, roads_that_end, message):
    content = json.loads((checkpoint / file).read_text()) | changes
    (checkpoint / file).write_text(json.dumps(content))
    assert explained(checkpoint, tmp_path / "out") == roads_that_end
    for name, road in roads(checkpoint, tmp_path / "again"):
        if name in roads_that_end and name != "teacher" and message:
            with pytest.raises((ExplainedError, DeviceError), match=message):
                road()


def test_a_scalar_is_every_channel_of_the_processor(checkpoint):
    scalar = SwinHfImageProcessorPil(image_mean=0.5, image_std=0.25, size={"height": 16, "width": 16})
    assert (scalar.image_mean, scalar.image_std) == ([0.5] * 3, [0.25] * 3)
    scalar.save_pretrained(checkpoint)
    text = (checkpoint / "preprocessor_config.json").read_text()
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(json.loads(text) | {"image_mean": 0.5, "image_std": 0.25}))
    assert load_checkpoint(checkpoint)[1].image_mean == [0.5] * 3


def test_classes_are_named_from_zero():
    assert class_names(SwinHfConfig(id2label={0: "a", 1: 7})) == ["a", "7"]
    for wrong in ({1: "a", 2: "b"}, {0: "a", 2: "b"}, {0: None, 1: "b"}):
        with pytest.raises(ValueError, match="id2label must name the classes 0 to 1 of the logits, got "):
            class_names(SwinHfConfig(id2label=wrong))


@pytest.mark.parametrize("field", ["mlp_ratio", "layer_norm_eps", "initializer_range", "drop_path_rate", "label_smoothing"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_of_a_config_are_finite(field, value):
    with pytest.raises(Exception, match=f"{field} must .*, got {value}"):
        SwinHfConfig(**{field: value})


def test_weights_that_are_not_finite_are_refused_on_every_road(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    weights["swin.layernorm.bias"][3] = math.nan
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert explained(checkpoint, tmp_path / "out") == ALL
    message = "finite weights, got swin.layernorm.bias with 1 of 32 values"
    for name, road in roads(checkpoint, tmp_path / "again"):
        with pytest.raises((ExplainedError, DeviceError), match=message):
            road()
        assert not list((tmp_path / "again").glob("*")), name
    with pytest.raises(ModelError, match=f"--model .* {message}"):
        load_model(ModelChoice(name=str(checkpoint)), IMAGE_CLASSIFICATION, NAMES, 16)


class Harmful:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickles_are_not_run_and_explained_on_every_road(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"classifier.bias": Harmful(tmp_path / "harm")}, checkpoint / "pytorch_model.bin")
    assert explained(checkpoint, tmp_path / "out") == ALL
    choice = ModelChoice(name=str(checkpoint), flag="teacher")
    for road, error in (
        (lambda: convert(checkpoint, tmp_path / "out"), ExplainedError),
        (lambda: load_checkpoint(checkpoint), CheckpointError),
        (lambda: load_classifier(checkpoint, NAMES), TeacherError),
        (lambda: load_model(choice, IMAGE_CLASSIFICATION, NAMES, 16), ModelError),
    ):
        with pytest.raises(error, match="it would call .*mkdir") as caught:
            road()
        assert "weights_only" not in str(caught.value)
    (checkpoint / "pytorch_model.bin").write_bytes(b"not a pickle at all")
    assert explained(checkpoint, tmp_path / "out") == ALL
    assert knows_classes(checkpoint, NAMES) and not (tmp_path / "harm").exists()


def test_odd_image_processors_are_explained_before_a_training(checkpoint):
    choice = ModelChoice(name=str(checkpoint), flag="student")
    config = SwinHfForImageClassification.from_pretrained(checkpoint).config
    for content in ({"image_mean": ["x"]}, {"image_std": [0, 0, 0]}, {"resample": []}):
        (checkpoint / "preprocessor_config.json").write_text(
            json.dumps(content | {"image_processor_type": "SwinHfImageProcessor"})
        )
        with pytest.raises(ModelError, match="--student .* image processor"):
            load_processor(choice, 16, config=config)
