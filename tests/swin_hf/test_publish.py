"""What would be uploaded of a checkpoint, before anything is: complete, with a true card, and nothing else.

Programs are in tests/edge/export/test_publishing.py, the uploads themselves in test_hub.py.
"""

import json
import math
import shutil

import pytest
import torch
import transformers
from conftest import PROCESSOR
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Swin2SRImageProcessorPil,
    SwinForImageClassification,
    ViTImageProcessorPil,
)

from swin_hf import SwinHfBackbone, SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from swin_hf.convert import convert
from swin_hf.publish import PublishError, main, prepare

NAME = "org/name"
EVALUATION = {"dataset": "photos", "metric": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95, "n": 40}


def test_a_card_tells_what_was_measured(checkpoint, tmp_path, capsys):
    metrics = {"test_accuracy": 0.91666, "by_class": [1, 2], "loss": math.nan, "done": True, "evaluation": EVALUATION}
    (checkpoint / "metrics.json").write_text(json.dumps(metrics))
    assert main([str(checkpoint), NAME, "--private", "--license", "apache-2.0"]) == 0
    shown = capsys.readouterr().out
    assert "org/name (private), branch main:" in shown and "Nothing was uploaded; add --upload." in shown
    for line in ("| test accuracy | 91.7 % |", "| accuracy, 40 test images | 90.0 % [80.0, 95.0] |", "license: apache-2.0"):
        assert line in shown.splitlines()
    assert "nan" not in shown and "| done |" not in shown
    publication = prepare(checkpoint, NAME, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-classification", "transformers")
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_name, result.dataset_type) == ("image-classification", "photos", "imagefolder")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9)
    assert "images of 16 x 16 pixels, 3 classes" in card.text
    assert {"config.json", "model.safetensors", "metrics.json", "README.md"} < publication.files.keys()
    assert publication.files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"low": None, "high": None}, "| accuracy, 40 test images | 90.0 % |"),
        ({"metric": "mean_iou", "value": 0.4567}, "| mean iou, 40 test images | 45.7 % [80.0, 95.0] |"),
        ({"metric": "loss", "value": 1.23456, "low": 1, "high": 1.5}, "| loss, 40 test images | 1.235 [1, 1.5] |"),
    ],
)
def test_every_metric_has_its_row(checkpoint, tmp_path, changes, row):
    evaluation = {name: value for name, value in (EVALUATION | changes).items() if value is not None}
    (checkpoint / "metrics.json").write_text(json.dumps({"evaluation": evaluation}))
    card = ModelCard.load(prepare(checkpoint, NAME, tmp_path / "out").folder / "README.md")
    assert row in card.text.splitlines()
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == (evaluation["metric"], evaluation["value"])


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ([0.9], "evaluation must be an object, got list"),
        (None, "evaluation must be an object, got NoneType"),
        ({}, "missing or unknown: dataset, metric, n, value"),
        (EVALUATION | {"accuracy": 1}, "missing or unknown: accuracy"),
        (EVALUATION | {"dataset": 3}, "evaluation.dataset must be text, got 3"),
        (EVALUATION | {"metric": ""}, "evaluation.metric must be text, got ''"),
        (EVALUATION | {"value": "0.9"}, "evaluation.value must be a finite number, got '0.9'"),
        (EVALUATION | {"value": None}, "evaluation.value must be a finite number, got None"),
        (EVALUATION | {"value": True}, "evaluation.value must be a finite number, got True"),
        (EVALUATION | {"value": 90.0}, r"evaluation.value must lie in \[0, 1\] for accuracy, got 90.0"),
        (EVALUATION | {"low": math.inf}, "evaluation.low must be a finite number, got inf"),
        (EVALUATION | {"high": "all"}, "evaluation.high must be a finite number, got 'all'"),
        (EVALUATION | {"high": None}, "evaluation.low and evaluation.high must both be given, got 0.8 and None"),
        (EVALUATION | {"n": 40.0}, "evaluation.n must be a positive integer, got 40.0"),
        (EVALUATION | {"n": 0}, "evaluation.n must be a positive integer, got 0"),
    ],
)
def test_a_wrong_evaluation_is_named(checkpoint, tmp_path, capsys, evaluation, message):
    (checkpoint / "metrics.json").write_text(json.dumps({"evaluation": evaluation}))
    with pytest.raises(PublishError, match=rf"checkpoint/metrics.json: .*{message}"):
        prepare(checkpoint, NAME, tmp_path / "out")
    assert main([str(checkpoint), NAME]) == 1
    assert "metrics.json: evaluation" in capsys.readouterr().err


def test_only_what_belongs_to_the_model_goes(checkpoint, tmp_path):
    (checkpoint / "checkpoint-10").mkdir()
    for name in ("optimizer.pt", "training_args.bin", ".token", "old_modeling.py"):
        (checkpoint / name).write_text("private")
    (checkpoint / "README.md").write_text("# My own words")
    publication = prepare(checkpoint, NAME, tmp_path / "out")
    assert publication.left_out == [".token", "checkpoint-10", "old_modeling.py", "optimizer.pt", "training_args.bin"]
    assert "left out: .token, checkpoint-10" in str(publication)
    assert (tmp_path / "out" / "README.md").read_text() == "# My own words"


def test_every_kind_of_model_has_its_auto_class(make_config, checkpoint, tmp_path):
    stages = make_config(out_features=["stage1", "stage2"])
    segmenter = SwinHfForSemanticSegmentation(SwinHfUperNetConfig(backbone_config=stages, use_auxiliary_head=False))
    for name, model in {"AutoBackbone": SwinHfBackbone(stages), "AutoModelForSemanticSegmentation": segmenter}.items():
        model.save_pretrained(tmp_path / name)
        PROCESSOR.save_pretrained(tmp_path / name)
        out = prepare(tmp_path / name, NAME, tmp_path / f"{name} out").folder
        assert f'{name}.from_pretrained("org/name", trust_remote_code=True)' in (out / "README.md").read_text()


def test_stock_models_are_published_as_such(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "stock", to="transformers")
    publication = prepare(tmp_path / "stock", NAME, tmp_path / "out")
    assert set(publication.files) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert 'AutoModelForImageClassification.from_pretrained("org/name")' in (tmp_path / "out" / "README.md").read_text()
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path / "out")) is SwinForImageClassification
    assert "swin" not in type(AutoImageProcessor.from_pretrained(tmp_path / "out")).__module__


TINY_STOCK = {"image_size": 32, "window_size": 4, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8}
UNDER_SR = TINY_STOCK | {"patch_size": 1, "upscale": 2, "mlp_ratio": 2.0}


@pytest.mark.parametrize(
    ("kind", "auto_class", "settings"),
    [
        ("SwinModel", "AutoModel", TINY_STOCK),
        ("SwinForImageClassification", "AutoModelForImageClassification", TINY_STOCK),
        ("SwinForMaskedImageModeling", "AutoModelForMaskedImageModeling", TINY_STOCK | {"encoder_stride": 8}),
        ("SwinBackbone", "AutoBackbone", TINY_STOCK | {"out_features": ["stage1", "stage2"]}),
        ("Swinv2Model", "AutoModel", TINY_STOCK),
        ("Swinv2ForImageClassification", "AutoModelForImageClassification", TINY_STOCK),
        ("Swinv2ForMaskedImageModeling", "AutoModelForMaskedImageModeling", TINY_STOCK | {"encoder_stride": 8}),
        ("Swinv2Backbone", "AutoBackbone", TINY_STOCK | {"out_features": ["stage1"]}),
        ("MaskFormerSwinModel", "AutoModel", TINY_STOCK),
        ("MaskFormerSwinBackbone", "AutoBackbone", TINY_STOCK),
        ("Swin2SRModel", "AutoModel", UNDER_SR),
        ("Swin2SRForImageSuperResolution", "AutoModelForImageToImage", UNDER_SR),
        ("DonutSwinModel", "AutoModel", TINY_STOCK),
        ("DonutSwinForImageClassification", "AutoModelForImageClassification", TINY_STOCK),
    ],
)
def test_every_stock_swin_is_published_under_its_auto_class(tmp_path, kind, auto_class, settings):
    stock_class = getattr(transformers, kind)
    model = stock_class(stock_class.config_class(**settings))
    model.save_pretrained(tmp_path / "stock")
    processor = Swin2SRImageProcessorPil() if "2SR" in kind else ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "stock")
    publication = prepare(tmp_path / "stock", NAME, tmp_path / "out")
    assert f'{auto_class}.from_pretrained("org/name")' in (tmp_path / "out" / "README.md").read_text()
    assert publication.left_out == []
    again = stock_class.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    if auto_class != "AutoBackbone":  # which asks the Hub whether there is such a repository
        assert type(getattr(transformers, auto_class).from_pretrained(tmp_path / "out")) is stock_class


def test_stock_models_without_all_their_weights_are_refused(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "stock", to="transformers")
    file = tmp_path / "stock" / "model.safetensors"
    whole = load_file(file)
    for weights, message in (
        ({f"module.{name}": weight for name, weight in whole.items()}, "lacks weights of SwinForImageClassification"),
        (whole | {"extra": torch.ones(1)}, "has weights that are unknown to SwinForImageClassification: extra"),
        (whole | {"classifier.bias": torch.tensor([0.0, math.nan, 1.0])}, "finite weights, got classifier.bias with 1 of 3"),
    ):
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(PublishError, match=message):
            prepare(tmp_path / "stock", NAME, tmp_path / "out")


def test_what_is_not_whole_is_refused(checkpoint, tmp_path, capsys):
    def refused(message: str, folder=checkpoint, name: str = NAME) -> None:
        with pytest.raises(PublishError, match=message):
            prepare(folder, name, tmp_path / "out")
        assert main([str(folder), name]) == 1
        assert "error: " in capsys.readouterr().err

    refused("must be named like org/name, got 'a b'", name="a b")
    refused("must be named like org/name, got 'name': it has no organisation", name="name")
    refused("must be a checkpoint folder with config.json, got one without; programs .* `python -m edge publish`", tmp_path)
    refused("must be a checkpoint folder with config.json, got no folder", tmp_path / "nowhere")
    (checkpoint / "metrics.json").write_text("[1]")
    refused("metrics.json must hold a JSON object, got list")
    (checkpoint / "metrics.json").unlink()
    (checkpoint / "preprocessor_config.json").unlink()
    refused("with its preprocessor_config.json")
    (checkpoint / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    refused("must hold a Swin of swin_hf or of transformers with its preprocessor_config.json, got BertModel")


def test_what_would_be_lost_is_refused(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    save_file(weights | {"swin.extra": torch.ones(1)}, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(PublishError, match="has weights that SwinHfForImageClassification does not know: swin.extra"):
        prepare(checkpoint, NAME, tmp_path / "out")
    (checkpoint / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:500])
    with pytest.raises(PublishError, match="must hold weights in the format of safetensors"):
        prepare(checkpoint, NAME, tmp_path / "out")


@pytest.mark.parametrize("name", ["README.md", "metrics.json", "config.json", "notes"])
def test_what_links_lead_to_is_not_published(checkpoint, tmp_path, capsys, name):
    source, private = tmp_path / "source", tmp_path / "private.txt"
    shutil.copytree(checkpoint, source)
    private.write_text("{}")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(private)
    assert main([str(source), "org/name"]) == 1
    assert f"got links to elsewhere: {name}; copy the folder with `cp -rL`" in capsys.readouterr().err
    (source / name).unlink()
    shutil.copytree(checkpoint, source, dirs_exist_ok=True)
    (source / "also.json").symlink_to("config.json")  # within the folder
    (tmp_path / "link").symlink_to(source)
    assert main([str(tmp_path / "link"), "org/name"]) == 0
