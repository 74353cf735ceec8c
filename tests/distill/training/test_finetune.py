"""Fine-tuning: losses, masks and figures; trainings that are stopped, resumed or fail; bad input."""

import json
import runpy
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KINDS, PROCESSOR, STILL, TINY, StopAfter, settings_for
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import top_k_accuracy_score
from test_processes import judged_anew
from transformers import AutoModelForImageClassification, EvalPrediction

from distill.data.examples import Example
from distill.data.sources import DataError
from distill.data.transforms import TransformSettings
from distill.errors import SettingsError, TrainingStopped
from distill.launch import launch
from distill.training.finetune import balanced_weights, finetune
from distill.training.models import ModelError
from distill.training.optimisation import LayerError
from distill.training.settings import CONFIG_DIR, parse_finetune_settings
from distill.training.tasks.classification import ImageClassification
from distill.training.tasks.masked_images import MaskedImageModeling
from distill.training.trainer import DivergenceError, TaskTrainer
from swin_hf import SwinHfForImageClassification, SwinHfForMaskedImageModeling
from swin_hf.output_folders import OutputError, write_json

# -- losses, masks and figures ----------------------------------------------------------------------------------------


def test_masks_are_whole_squares_of_the_asked_share():
    task = MaskedImageModeling(PROCESSOR, 2, mask_patch_size=8, mask_share=0.5)
    mask = task.sample_mask(50, 32, 48)
    assert mask.shape == (50, 16, 24)
    squares = mask.view(50, 4, 4, 6, 4).transpose(2, 3).flatten(3)
    assert (squares.all(3) | ~squares.any(3)).all()
    assert (squares[..., 0].flatten(1).sum(1) == 12).all()
    assert 15 < squares[:, 0, 0, 0].sum() < 35


def test_training_loss_is_that_of_smoothed_weighted_labels(make_model):
    transforms = parse_finetune_settings(STILL).transforms
    weights = torch.tensor([1.0, 2.0, 4.0])
    model, pixels, targets = make_model().train(), torch.rand(2, 3, 16, 16), torch.tensor([0, 2])
    output = ImageClassification(PROCESSOR, ["a", "b", "c"], transforms, 0.3, weights)(model, pixels, targets)
    soft = 0.7 * torch.nn.functional.one_hot(targets, 3) + 0.1
    expected = -(soft * weights * output.predictions.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(output.loss, expected)


def test_figures_of_an_evaluation():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(200, 8)).astype(np.float32), random.integers(0, 8, 200)
    task = ImageClassification(PROCESSOR, list("abcdefgh"), TransformSettings())
    figures = task.metrics(EvalPrediction(predictions=logits, label_ids=labels))
    for name, k in (("accuracy", 1), ("top5_accuracy", 5)):
        assert figures[name] == pytest.approx(top_k_accuracy_score(labels, logits, k=k))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert figures["calibration_error"] == pytest.approx(error, abs=1e-6)
    of_five = ImageClassification(PROCESSOR, list("abcde"), TransformSettings())
    assert "top5_accuracy" not in of_five.metrics(EvalPrediction(predictions=logits[:, :5], label_ids=labels % 5))


# -- whole trainings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "step"), [("V1", 5), ("TinyViT", 5), ("V1", 3), ("V1", 6)])
def test_a_training_that_was_stopped_and_resumed_ends_bit_for_bit_the_same(image_folder, tmp_path, kind, step):
    """After steps 3 and 6 of 6 an epoch ends, with an evaluation by which the best model is chosen."""
    config = str(TINY | KINDS[kind] | {"weight_init": "fan_in", "drop_path_rate": 0.1})
    data = ["--dataset", str(image_folder), "--model_args", config, "--ema_decay", "0.9"]
    data += ["--mixup_alpha", "0.5", "--initial_image_size", "12"]
    whole = finetune(settings_for(tmp_path / "whole", *data))
    stopped = pytest.raises(TrainingStopped, match=f"stopped at step {step} of 6") if step < 6 else nullcontext()
    with stopped:
        resumed = finetune(settings_for(tmp_path / "stopped", *data), [StopAfter(step)])
    if step < 6:
        resumed = finetune(settings_for(tmp_path / "stopped", *data, "--resume", "true"))
    assert resumed["test_accuracy"] == whole["test_accuracy"]
    expected = load_file(tmp_path / "whole" / "out" / "model.safetensors")
    actual = load_file(tmp_path / "stopped" / "out" / "model.safetensors")
    assert expected.keys() == actual.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)
    history = [
        [row for row in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "eval_loss" in row]
        for folder in (tmp_path / "whole" / "out" / "checkpoint-6", tmp_path / "stopped" / "out" / "checkpoint-6")
    ]
    assert len(history[0]) == 2
    assert [row["eval_loss"] for row in history[0]] == [row["eval_loss"] for row in history[1]]


@pytest.mark.parametrize("optimiser", ["--optim adamw_torch", "--optim adafactor", "--lamb true"])
def test_convolutions_are_trained_with_channels_last_and_saved_as_usual(image_folder, tmp_path, monkeypatch, optimiser):
    trained, train = [], TaskTrainer.train
    monkeypatch.setattr(TaskTrainer, "train", lambda self, **kwargs: (train(self, **kwargs), trained.append(self.model))[0])
    hybrid = ["--model_args", str(TINY | KINDS["TinyViT"]), "--num_train_epochs", "1"]
    finetune(settings_for(tmp_path, "--dataset", str(image_folder), *hybrid, *optimiser.split()))
    kernels = {name: weight for name, weight in trained[0].named_parameters() if weight.dim() == 4 and weight.shape[2] > 1}
    assert len(kernels) > 4
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels.values())
    saved = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in kernels.items():
        assert torch.equal(saved[name], weight) and saved[name].is_contiguous()


def test_what_was_trained_loads_and_says_what_was_measured(image_folder, tmp_path):
    figures = finetune(settings_for(tmp_path, "--dataset", str(image_folder), "--class_weights", "balanced", *STILL))
    out = tmp_path / "out"
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test_accuracy"] == figures["test_accuracy"] and metrics["num_test_images"] == 10
    assert set(metrics["accuracy_by_class"]) == {"blue", "green", "red"}
    text = (out / "README.md").read_text()
    assert f"| test accuracy | {100 * figures['test_accuracy']:.1f} % |" in text and "\n## Limits\n" in text
    assert 'AutoModelForImageClassification.from_pretrained("out", trust_remote_code=True)' in text
    card = ModelCard.load(out / "README.md").data
    assert (card.library_name, card.pipeline_tag, card.base_model) == ("transformers", "image-classification", None)
    assert card.eval_results[0].metric_value == pytest.approx(figures["test_accuracy"])
    split = json.loads((out / "data.json").read_text())["split"]
    assert Counter(number for numbers in split.values() for number in numbers) == Counter(range(48))


def test_the_temperature_is_fitted_on_the_validation_images(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("edge.device.temperature.MIN_LABELLED_IMAGES", 5)
    finetune(settings_for(tmp_path, "--dataset", str(image_folder), *STILL, "--validation_share", "0.3"))
    out = tmp_path / "out"
    logits, labels = (values.numpy() for values in judged_anew(out, image_folder, "validation"))
    fitted = SwinHfForImageClassification.from_pretrained(out).config.calibration_temperature

    def loss(temperature: float) -> float:
        return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean()

    best = minimize_scalar(loss, bounds=(0.25, 8)).x
    assert fitted == pytest.approx(best, rel=1e-2) and fitted != 1


def test_the_best_checkpoint_is_the_most_accurate_one(image_folder, tmp_path, monkeypatch):
    """Not the one with the lowest loss: here the first checkpoint has the lowest loss and the second the best accuracy."""
    figures = iter([(1.0, 0.5), (2.0, 0.9), (3.0, 0.7)])

    def evaluate(self, *args, **kwargs):
        loss, accuracy = next(figures)
        metrics = {"eval_loss": loss, "eval_accuracy": accuracy}
        self.log(metrics)
        return metrics

    monkeypatch.setattr(TaskTrainer, "evaluate", evaluate)
    finetune(settings_for(tmp_path, "--dataset", str(image_folder), *STILL, "--num_train_epochs", "3"))
    states = sorted((tmp_path / "out").glob("checkpoint-*/trainer_state.json"))
    assert json.loads(states[-1].read_text())["best_model_checkpoint"].endswith("checkpoint-6")


def test_predictions_reach_tensorboard_as_pictures(image_folder, tmp_path):
    arguments = ["--dataset", str(image_folder), *STILL, "--report_to", "tensorboard", "--num_pictures", "5"]
    finetune(settings_for(tmp_path, *arguments))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in (tmp_path / "out").rglob("events.out.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Images("eval/predictions")] == [3, 6]
    assert {"train/loss", "eval/accuracy", "eval/calibration_error"} <= set(events.Tags()["scalars"])
    sent, drawn = events.Images("eval/predictions")[0], tmp_path / "out" / "predictions" / "step-0000003.png"
    assert (sent.width, sent.height) == Image.open(drawn).size


def test_an_unreadable_image_is_named_and_left_out(image_folder, tmp_path, capsys):
    (image_folder / "red" / "3.png").write_bytes(b"no image")
    arguments = ["--dataset", str(image_folder), *STILL]
    finetune(settings_for(tmp_path, *arguments))
    assert "red/3.png cannot be read" in capsys.readouterr().out
    (skipped,) = json.loads((tmp_path / "out" / "data.json").read_text())["skipped"]
    assert skipped["error"].split(" cannot be read")[0].endswith("red/3.png")
    numbers = json.loads((tmp_path / "out" / "data.json").read_text())["split"]
    assert skipped["number"] in [number for own in numbers.values() for number in own]
    with pytest.raises(DataError, match="1 of 48 images cannot be read, more than the allowed share of 1%"):
        finetune(settings_for(tmp_path / "strict", *arguments, "--max_unreadable_share", "0.01"))


def test_masked_images_first_and_classes_after(image_folder, tmp_path):
    data = ["--dataset", str(image_folder), *STILL]
    first = finetune(settings_for(tmp_path / "masked", *data, "--task", "masked-image-modeling", "--mask_patch_size", "4"))
    assert len(list((tmp_path / "masked" / "out" / "predictions").glob("*.png"))) == 2
    assert first["test_loss"] == pytest.approx(first["test_reconstruction_error"], rel=0.05)
    pretrained = tmp_path / "masked" / "out"
    tables = SwinHfForMaskedImageModeling.from_pretrained(pretrained).state_dict()
    arguments = ["--model", str(pretrained), "--model_args", "{}", "--learning_rate", "1e-9"]
    finetune(settings_for(tmp_path / "classes", *data, *arguments))
    tuned = AutoModelForImageClassification.from_pretrained(tmp_path / "classes" / "out").state_dict()
    name = "swin.encoder.layers.1.blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(tuned[name], tables[name], atol=1e-5, rtol=1e-5)


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_checkpoint(image_folder, tmp_path, monkeypatch):
    task_forward = ImageClassification.forward

    def forward(self, model, pixels, targets, crops=None):
        output = task_forward(self, model, pixels, targets, crops)
        self.calls = getattr(self, "calls", 0) + model.training
        return replace(output, loss=output.loss * float("nan")) if self.calls == 5 else output

    monkeypatch.setattr(ImageClassification, "forward", forward)
    with pytest.raises(DivergenceError, match="the loss of step 5 is infinite or not a number.*checkpoint-3"):
        finetune(settings_for(tmp_path, "--dataset", str(image_folder), *STILL))
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_last_batch_of_one_image_is_left_out(image_folder, tmp_path):
    config = str(TINY | {"norm": "batch", "norm_after_pooling": True})  # which has no statistics of one mean
    shares = ["--validation_share", "0.25", "--test_share", "0.25", "--dataloader_drop_last", "false"]
    arguments = ["--dataset", str(image_folder), *STILL, *shares, "--model_args", config, "--num_train_epochs", "1"]
    finetune(settings_for(tmp_path, *arguments, "--per_device_train_batch_size", "23", "--global_batch_size", "0"))
    assert len(json.loads((tmp_path / "out" / "data.json").read_text())["split"]["train"]) == 24


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_parses(config):
    parse_finetune_settings(["--config", config.stem, "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--learning_rat 1", "unknown setting --learning_rat in the command line; did you mean --learning_rate"),
        (
            "--task detection",
            "--task must be one of image-classification, semantic-segmentation, object-detection, masked-image-modeling, got "
            "'detection'; did you mean object-detection",
        ),
        ("--layer_decay 2", r"--layer_decay must lie in \(0, 1\], got 2.0"),
        ("--ema_decay 1", r"--ema_decay must lie in \[0, 1\)"),
        ("--initial_image_size 512", "--initial_image_size must be at most --image_size 224, got 512"),
        ("--eval_strategy no", "load_best_model_at_end requires the save and eval strategy to match"),
        ("--config nowhere", "--config must be a YAML file or one of"),
        ("--randaugment_magnitude 30", r"--randaugment_magnitude must lie in \[1, 29\], got 30"),
        ("--ema_decay 0.9 --save_only_model true", "--save_only_model must be false with --ema_decay"),
        ("--kd_weight 2", "--teacher must name a model to distil from with --kd_weight, got 'none'"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(SettingsError, match=message):
        parse_finetune_settings(arguments.split())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ("--model nobody/nothing --model_args {}", ModelError, "--model nobody/nothing must be a preset .*, or a checkpoint"),
        ("--global_batch_size 7 --gradient_accumulation_steps 2", SettingsError, "--global_batch_size must be a multiple of"),
        (
            "--per_device_train_batch_size 32",
            SettingsError,
            "--global_batch_size must be at most the 28 images, got 32; lower",
        ),
        ("--resume true", SettingsError, "--resume must find a training"),
        ("--frozen_stages 2", LayerError, "--frozen_stages must be below the 2 stages"),
        (
            "--task masked-image-modeling --mask_patch_size 5",
            SettingsError,
            "--mask_patch_size must be a multiple of the patch",
        ),
        ("--optim adamw_8bit", SettingsError, "transformers.Trainer refuses its arguments: .*bitsandbytes"),
        ("--report_to nope", SettingsError, "transformers.Trainer refuses its arguments: .*nope"),
        ("--metric_for_best_model acuracy", SettingsError, "--metric_for_best_model must be one of accuracy, top5_accuracy"),
        (
            "--metric_for_best_model top5_accuracy",
            SettingsError,
            "--metric_for_best_model must be a figure of 3 classes; top5_accuracy takes 6 or more",
        ),
        ("--dataset /nowhere", DataError, "--dataset /nowhere is neither a folder nor"),
    ],
)
def test_bad_input_is_refused_before_any_training(arguments, error, message, image_folder, tmp_path):
    with pytest.raises(error, match=message):
        finetune(settings_for(tmp_path, "--dataset", str(image_folder), *arguments.split()))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_optimiser_is_made_by_the_training_itself(image_folder, tmp_path, monkeypatch):
    # FSDP replaces the parameters when the training starts: an optimiser made before would hold the old ones.
    train, before = TaskTrainer.train, []
    monkeypatch.setattr(TaskTrainer, "train", lambda self, **kwargs: before.append(self.optimizer) or train(self, **kwargs))
    finetune(settings_for(tmp_path, "--dataset", str(image_folder), *STILL))
    assert before == [None]


def test_averaged_weights_are_refused_where_a_launcher_splits_them(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingsError, match="--ema_decay must be 0 where FSDP or DeepSpeed split the weights"):
        parse_finetune_settings(["--ema_decay", "0.9", "--use_cpu", "true"])


def test_misspelt_fields_of_a_checkpoint_are_refused(checkpoint, image_folder, tmp_path):
    arguments = ["--dataset", str(image_folder), "--model", str(checkpoint), "--model_args", "{windw_size: 4}"]
    with pytest.raises((SettingsError, ModelError), match="windw_size"):
        finetune(settings_for(tmp_path, *arguments))


def test_weights_of_classes_are_their_inverse_frequencies():
    examples = [Example(None, label) for label in [0] * 6 + [1] * 3 + [299]]
    weights = balanced_weights(examples, 300)
    assert weights[[0, 1, 299]].tolist() == pytest.approx([10 / (300 * count) for count in (6, 3, 1)])
    assert weights[2] == 0


def test_a_finished_training_is_not_overwritten(image_folder, tmp_path):
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "training.json", {"files": {}})
    with pytest.raises(OutputError, match="--output_dir must be a new or an empty folder, got .*; add --resume true"):
        finetune(settings_for(tmp_path, "--dataset", str(image_folder)))


def test_the_traceback_of_accelerate_is_announced(monkeypatch, capsys):
    def fail():
        raise DataError("no images")

    for command, announced in ((["accelerate", "launch", "x.py"], True), (["accelerate", "launch", "--quiet", "x.py"], False)):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        monkeypatch.setattr("psutil.Process.cmdline", lambda process, command=command: command)
        assert launch(fail, "") == 1
        errors = capsys.readouterr().err
        assert "error: no images" in errors and ("accelerate launch --quiet" in errors) == announced


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (TrainingStopped("stopped at step 5 of 6"), 143, "stopped at step 5 of 6; resume with --resume true"),
        (DataError("no images"), 1, "error: no images"),
    ],
)
def test_the_script_explains_itself(error, code, words, monkeypatch, capsys):
    def fail(settings):
        raise error

    script = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "finetune.py"))
    monkeypatch.setattr("distill.training.finetune.finetune", fail)
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--use_cpu", "true"])
    assert script["main"]() == code
    assert words in capsys.readouterr().err


def test_a_full_disk_is_told_before_a_checkpoint_is_touched(image_folder, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("distill.training.trainer.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="a checkpoint of step 3 needs about .* MB, .* has 0 MB left"):
        finetune(settings_for(tmp_path, "--dataset", str(image_folder), *STILL))
