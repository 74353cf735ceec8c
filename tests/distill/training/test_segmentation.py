"""Segmentation: counts of pixels compared with scikit-learn, masks augmented with their images, and whole trainings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROCESSOR, STILL, settings_for
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, jaccard_score
from transformers import (
    AutoModelForSemanticSegmentation,
    EvalPrediction,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    pipeline,
)

from distill.data.examples import EvaluationImages, Example, TrainingImages
from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.targets import MASKS
from distill.data.transforms import IGNORED, BatchTransform, RandomCrop, TransformSettings
from distill.errors import SettingsError
from distill.training.finetune import finetune
from distill.training.models import ModelError
from distill.training.tasks.segmentation import SemanticSegmentation
from edge.device.palette import palette_of

SEGMENT = ["--task", "semantic-segmentation", "--head_args", "{hidden_size: 8}", "--per_device_train_batch_size", "4", *STILL]
SEGMENT += ["--validation_share", "0.25", "--test_share", "0.25"]


class Guess(torch.nn.Module):
    """A model that gives the same logits for every image."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, pixel_values, labels=None):
        loss = torch.tensor(0.0)
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(self.logits, labels, ignore_index=IGNORED)
        return type("Output", (), {"logits": self.logits, "loss": loss + 0.25})  # 0.25 stands for an auxiliary head


def still_task(num_classes: int, weights: torch.Tensor | None = None) -> SemanticSegmentation:
    still = TransformSettings(randaugment_ops=0, color_jitter=0, random_erasing=0)
    return SemanticSegmentation(PROCESSOR, [f"class {number}" for number in range(num_classes)], still, weights)


def test_mean_iou_is_scikit_learns():
    random = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 4, (5, 12, 10), generator=random)
    targets = torch.randint(0, 4, (5, 12, 10), generator=random)
    targets[:, 0] = IGNORED
    task = still_task(5)  # class 4 does not occur and is not counted
    counts = task.count_pixels(predicted, targets)
    figures = task.metrics(EvalPrediction(predictions=counts.numpy(), label_ids=None))
    known = targets != IGNORED
    expected = jaccard_score(targets[known], predicted[known], average=None)
    assert figures["mean_iou"] == pytest.approx(expected.mean())
    assert figures["pixel_accuracy"] == pytest.approx(accuracy_score(targets[known], predicted[known]))
    by_class = task.details(EvalPrediction(predictions=counts.numpy(), label_ids=None))["iou_by_class"]
    assert list(by_class.values()) == pytest.approx(list(expected)) and "class 4" not in by_class


def test_weighted_loss_by_hand():
    weights, targets = torch.tensor([1.0, 3.0]), torch.tensor([[[0, 1], [1, IGNORED]]])
    model = Guess(torch.tensor([[[[0.0, 1.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]]]))
    loss = still_task(2, weights)(model.train(), torch.rand(1, 3, 2, 2), targets).loss
    negative = [np.log(2), -np.log(1 / (1 + np.e)), -np.log(1 / (1 + np.e**2))]
    assert loss.item() == pytest.approx((negative[0] + 3 * negative[1] + 3 * negative[2]) / 7 + 0.25, rel=1e-5)


def test_masks_are_drawn_in_the_colours_of_their_classes():
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 2] = 1.0
    (panels,) = still_task(3).draw(Guess(logits), torch.rand(1, 3, 2, 2), torch.tensor([[[0, 1], [2, IGNORED]]]))
    _, mask, guess = panels.pictures
    colours = np.array([*palette_of(3), (128, 128, 128)]) / 255
    np.testing.assert_allclose(mask.reshape(4, 3), colours)
    np.testing.assert_allclose(guess.reshape(4, 3), colours[[2] * 4])
    assert panels.caption == "image, mask, prediction: mean IoU 0.11"  # of 0, 0 and 1/3


def test_masks_turn_and_shift_with_their_images():
    settings = TransformSettings(
        rotation_degrees=20, translate_share=0.1, randaugment_ops=0, color_jitter=0, random_erasing=0.5
    )
    masks = torch.randint(0, 2, (16, 6, 6)).repeat_interleave(6, 1).repeat_interleave(6, 2)
    pixels, moved = BatchTransform(settings)(masks[:, None].float().repeat(1, 3, 1, 1), masks)
    known = moved != IGNORED
    assert 0.7 < known.float().mean() < 1 and not torch.equal(moved, masks)
    assert ((pixels[:, 0] > 0.5).long() == moved)[known].float().mean() > 0.99


def test_randaugment_leaves_classes_classes():
    transform = BatchTransform(TransformSettings(randaugment_ops=3, randaugment_magnitude=25, random_erasing=1.0))
    masks = torch.tensor([3, 7, IGNORED]).repeat(8).view(2, 12).repeat_interleave(6, 0).view(2, 6, 12)
    for _ in range(20):
        _, moved = transform(torch.rand(2, 3, 6, 12), masks)
        assert set(moved.unique().tolist()) <= {3, 7, IGNORED}


def test_crops_of_image_and_mask_are_the_same(mask_folder):
    found = find_images(str(mask_folder), MASKS)
    mask = found.masks["all"][0]
    image = Image.merge("RGB", [mask.load_mask().point(lambda level: 255 * level)] * 3)
    crop = RandomCrop(TransformSettings(crop_min_area=0.3), 16, seed=0)
    for number in range(30):
        cut, cut_mask = crop(image, 0, number, mask.load_mask())
        agree = (np.asarray(cut)[..., 0] > 127) == np.asarray(cut_mask)
        assert cut.size == cut_mask.size == (16, 16) and agree.mean() >= 15 / 16


def test_examples_give_masks_at_the_size_of_the_pixels(mask_folder):
    found = find_images(str(mask_folder), MASKS)
    example = Example(found.images["all"][0], 0, found.masks["all"][0])
    for row in (
        EvaluationImages([example], PROCESSOR)[0],
        TrainingImages([example], RandomCrop(TransformSettings(), 16, 0))[0],
    ):
        assert row["pixels"].shape == (3, 16, 16) and row["targets"].shape == (16, 16)
        assert row["targets"].dtype == torch.int64
    reduced = Example(found.images["all"][0], 0, found.masks["all"][0], reduce_labels=True).load_mask()
    assert np.asarray(reduced)[0, [0, 23]].tolist() == [IGNORED, 0]


def test_a_segmenter_is_trained_saved_and_loaded(mask_folder, tmp_path):
    figures = finetune(settings_for(tmp_path, "--dataset", str(mask_folder), *SEGMENT, "--class_weights", "balanced"))
    out = tmp_path / "out"
    assert set(json.loads((out / "metrics.json").read_text())["iou_by_class"]) <= {"left", "right"}
    assert 0 <= figures["test_mean_iou"] <= 1 and figures["num_test_images"] == 2
    model = AutoModelForSemanticSegmentation.from_pretrained(out)
    assert model.config.id2label == {0: "left", 1: "right"} and model.config.backbone_config.model_type == "swin_hf"
    pictures = sorted((out / "predictions").glob("*.png"))
    assert [path.name for path in pictures] == ["step-0000001.png", "step-0000002.png"]
    assert min(Image.open(pictures[0]).size) > 100
    assert "pipeline_tag: image-segmentation" in (out / "README.md").read_text()
    segments = pipeline("image-segmentation", model=str(out))(str(mask_folder / "images" / "0.jpg"))
    assert {segment["label"] for segment in segments} <= {"left", "right"} and segments[0]["mask"].size == (24, 20)


def test_a_classifier_becomes_the_backbone_of_a_segmenter(checkpoint, mask_folder, tmp_path):
    arguments = ["--dataset", str(mask_folder), *SEGMENT, "--model", str(checkpoint), "--model_args", "{}"]
    finetune(settings_for(tmp_path, *arguments, "--learning_rate", "1e-9"))
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    carried = [name for name in before if ".encoder." in name]
    assert carried
    for name in carried:
        torch.testing.assert_close(after[f"backbone.{name}"], before[name], atol=1e-6, rtol=1e-5)


def test_any_segmenter_of_transformers_is_taken(mask_folder, tmp_path):
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_attention_heads": [1, 1], "num_encoder_blocks": 2}
    sizes |= {"sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 8}
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=5)).save_pretrained(tmp_path / "segformer")
    arguments = ["--dataset", str(mask_folder), *SEGMENT, "--model", str(tmp_path / "segformer"), "--model_args", "{}"]
    finetune(settings_for(tmp_path, *arguments))
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert isinstance(model, SegformerForSemanticSegmentation) and model.config.num_labels == 2


def test_black_and_white_masks_are_refused(mask_folder, tmp_path):
    for file in (mask_folder / "masks").iterdir():
        Image.open(file).point(lambda level: 255 * level).save(file)
    with pytest.raises(DataError, match=r"have only one class \(left\); .* write 1, not 255, for an object"):
        finetune(settings_for(tmp_path, "--dataset", str(mask_folder), *SEGMENT))


def test_masks_that_do_not_fit_are_named(mask_folder, tmp_path, capsys):
    Image.new("L", (24, 20), 9).save(mask_folder / "masks" / "0.png")
    Image.new("L", (10, 10), 1).save(mask_folder / "masks" / "1.png")
    arguments = ["--dataset", str(mask_folder), *SEGMENT]
    with pytest.raises(DataError, match="2 of 8 images cannot be read"):
        finetune(settings_for(tmp_path, *arguments))
    printed = capsys.readouterr().out
    assert "0.png has pixels of class 9, there are 2 classes; see --class_names and --reduce_labels" in printed
    assert "1.png is 10 x 10, its image 24 x 20 pixels" in printed


def test_wrong_heads_and_models_are_named(mask_folder, tmp_path, checkpoint):
    arguments = ["--dataset", str(mask_folder), *SEGMENT]
    with pytest.raises(SettingsError, match="--head_args must be fields of SwinHfUperNetConfig, got 'hiden_size'"):
        finetune(settings_for(tmp_path, *arguments, "--head_args", "{hiden_size: 8}"))
    weights = load_file(checkpoint / "model.safetensors")
    weights.pop(next(name for name in weights if "fc1.weight" in name))
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks weights of SwinHfBackbone: .*fc1.weight"):
        finetune(settings_for(tmp_path, *arguments, "--model", str(checkpoint), "--model_args", "{}"))
    assert not Path(tmp_path / "out" / "data.json").exists()
