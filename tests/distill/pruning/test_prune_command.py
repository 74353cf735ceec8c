"""The command that prunes a checkpoint: to a target or by a plan, with images, with labels of other classes, and without."""

import json

import pytest
import torch
from conftest import PLAIN_PROCESSOR, TINY

from distill.prune import main
from distill.pruning.plan import PruningPlan
from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForSemanticSegmentation,
    SwinHfUperNetConfig,
)

PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def prune(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_a_checkpoint_is_pruned_to_a_target_and_by_its_plan(checkpoint, image_folder, tmp_path, capsys):
    data = ["--dataset", image_folder, "--num_images", 16]
    assert prune(checkpoint, tmp_path / "out", "--target", "params=0.6", "--round_to", 4, *data) == 0
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "pruning.json").read_text())
    model = SwinHfForImageClassification.from_pretrained(checkpoint)
    pruned = SwinHfForImageClassification.from_pretrained(tmp_path / "out")
    assert pruned.num_parameters() / model.num_parameters() == pytest.approx(0.6, rel=0.03)
    assert figures["params"] == pruned.num_parameters() and figures["num_images"] == 16
    assert {"agreement", "accuracy_before", "accuracy_after"} < set(figures)
    assert f"K parameters ({figures['params_share']:.1%})" in shown
    assert f"--model {tmp_path / 'out'} --teacher {checkpoint} --dataset {image_folder}" in shown
    plan = tmp_path / "out" / "pruning_plan.json"
    assert prune(checkpoint, tmp_path / "again", "--plan", plan) == 0
    again = SwinHfForImageClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(PIXELS).logits, pruned(PIXELS).logits)
    assert PruningPlan.load(tmp_path / "again" / "pruning_plan.json") == PruningPlan.load(plan)


def test_labels_of_other_classes_do_not_matter(make_model, image_folder, tmp_path):
    make_model(id2label={0: "cat", 1: "dog", 2: "owl", 3: "pig"}, num_labels=4).save_pretrained(tmp_path / "other")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "other")
    data = ["--dataset", image_folder, "--num_images", 8, "--round_to", 4]
    for criterion in ("taylor", "hessian"):
        out = tmp_path / criterion
        arguments = ["--target", "macs=0.7", "--criterion", criterion, "--scopes", "hidden,blocks", *data]
        assert prune(tmp_path / "other", out, *arguments) == 0
        figures = json.loads((out / "pruning.json").read_text())
        assert "accuracy_after" not in figures and 0 <= figures["agreement"] <= 1


def test_a_segmenter_is_pruned(mask_folder, tmp_path, capsys):
    backbone = SwinHfConfig(**TINY | {"out_features": ["stage1", "stage2"], "weight_init": "fan_in"})
    config = SwinHfUperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, num_labels=2)
    SwinHfForSemanticSegmentation(config).save_pretrained(tmp_path / "segmenter")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "segmenter")
    data = ["--dataset", mask_folder, "--num_images", 4]
    assert prune(tmp_path / "segmenter", tmp_path / "out", "--target", "params=0.9", "--round_to", 4, *data) == 0
    assert "--task semantic-segmentation --image_size 16" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert figures["num_images"] == 4 and 0 <= figures["agreement"] <= 1  # 8 images, and no masks among them
    pruned = SwinHfForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert pruned(PIXELS).logits.shape == (2, 2, 16, 16)
    out = tmp_path / "program"
    assert prune(tmp_path / "segmenter", out, "--target", "latency=0.5", "--criterion", "magnitude") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "macs=0.5"], "is measured on images, got none; give --dataset, or take --criterion magnitude"),
        (["--target", "macs=0.5", "--criterion", "magnitude", "--scopes", "blocks"], "got none; give --dataset"),
        (["--target", "macs=0.01", "--criterion", "magnitude"], "macs=0.01x cannot be met"),
        (["--plan", "nowhere.json"], "nowhere.json is no pruning plan that can be read"),
        (["--target", "macs=0.5", "--dataset", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_mistakes_are_explained_and_nothing_is_written(checkpoint, tmp_path, capsys, arguments, message):
    assert prune(checkpoint, tmp_path / "out", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".swin_hf*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "speed=2"], "--target: a target must be one of"),
        (["--target", "macs=0.5", "--scopes", "layers"], "--scopes: scopes must be of"),
        (["--target", "latency=0.5", "--recipe", "int9"], "argument --recipe: invalid choice: 'int9'"),
        (["--target", "latency=0.5", "--recipe", "coreml-fp16"], "argument --recipe: invalid choice"),
        (["--target", "macs=0.5", "--seed", "-1"], "argument --seed: must be 0 or more, got -1"),
        (["--target", "macs=0.5", "--num_images", "0"], "argument --num_images"),
        ([], "one of the arguments --target --plan is required"),
    ],
)
def test_mistakes_in_flags_end_with_2(checkpoint, tmp_path, capsys, arguments, message):
    try:
        code = prune(checkpoint, tmp_path / "out", *arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2 and message in capsys.readouterr().err


def test_an_output_inside_an_input_is_refused(checkpoint, image_folder, tmp_path, capsys):
    arguments = ["--target", "params=0.8", "--round_to", 4, "--dataset", image_folder]
    for inside in (checkpoint, image_folder):
        assert prune(checkpoint, inside / "out", *arguments) == 1
        assert "OUT" in capsys.readouterr().err and not (inside / "out").exists()


def test_images_that_cannot_be_read_and_small_classes_do_not_matter(checkpoint, image_folder, tmp_path):
    (image_folder / "red" / "0.png").write_bytes((image_folder / "red" / "1.png").read_bytes()[:60])
    for number in range(2, 16):
        (image_folder / "red" / f"{number}.png").unlink()
    with pytest.warns(UserWarning, match="left out an image"):
        arguments = ["--target", "params=0.8", "--round_to", 4, "--dataset", image_folder]
        assert prune(checkpoint, tmp_path / "out", *arguments) == 0
    figures = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert figures["num_images"] == 16 and figures["checkpoint"] == "checkpoint"


def test_other_models_and_folders_that_are_not_free_are_refused(checkpoint, make_config, tmp_path, capsys):
    arguments = ["--target", "macs=0.8", "--criterion", "magnitude", "--round_to", 4]
    assert prune(tmp_path / "none", tmp_path / "out", *arguments) == 1
    assert "must be a checkpoint folder or Hub id" in capsys.readouterr().err
    SwinHfBackbone(make_config()).save_pretrained(tmp_path / "backbone")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "backbone")
    assert prune(tmp_path / "backbone", tmp_path / "out", *arguments) == 1
    assert "error:" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    assert prune(checkpoint, tmp_path / "full", *arguments) == 1
    assert "full" in capsys.readouterr().err and (tmp_path / "full" / "mine.txt").read_text() == "x"
