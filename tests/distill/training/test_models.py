"""How fine-tuning loads a checkpoint: its image processor at another size, with the checkpoint's crop."""

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from distill.training.models import ModelChoice, ModelError, load_model, load_processor
from distill.training.tasks.classification import IMAGE_CLASSIFICATION

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def test_a_crop_grows_with_the_image_size(checkpoint):
    stock = ViTImageProcessorPil(size={"shortest_edge": 20}, do_center_crop=True, crop_size=16)
    stock.save_pretrained(checkpoint)
    for size, shortest in ((16, 20), (32, 40)):
        processor = load_processor(ModelChoice(name=str(checkpoint)), size)
        expected = ViTImageProcessorPil(size={"shortest_edge": shortest}, do_center_crop=True, crop_size=size)
        assert torch.equal(*(one(IMAGE, return_tensors="pt")["pixel_values"] for one in (processor, expected)))


def test_a_crop_of_another_kind_is_refused(checkpoint):
    ViTImageProcessorPil(size={"height": 20, "width": 20}, do_center_crop=True, crop_size=16).save_pretrained(checkpoint)
    with pytest.raises(ModelError, match="cannot be applied to an image processor with size"):
        load_processor(ModelChoice(name=str(checkpoint)), 16)


def test_an_image_processor_that_cannot_be_loaded_is_named(checkpoint):
    for content in ('{"image_processor_type": "FooImageProcessor"}', "{nonsense"):
        (checkpoint / "preprocessor_config.json").write_text(content)
        with pytest.raises(ModelError, match="--student .* has an image processor that cannot be loaded"):
            load_processor(ModelChoice(name=str(checkpoint), flag="student"), 16)
    (checkpoint / "preprocessor_config.json").unlink()
    assert load_processor(ModelChoice(name=str(checkpoint)), 16).image_mean[0] == 0.485


def test_images_of_a_run_are_judged_whole(checkpoint):
    stock = ViTImageProcessorPil(size={"shortest_edge": 20}, do_center_crop=True, crop_size=16)
    stock.save_pretrained(checkpoint)
    whole = load_processor(ModelChoice(name=str(checkpoint)), 16, crops=False)
    expected = ViTImageProcessorPil(size={"height": 16, "width": 16})
    assert torch.equal(*(one(IMAGE, return_tensors="pt")["pixel_values"] for one in (whole, expected)))


def test_a_model_of_one_size_only_is_refused_before_any_training(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}
    ViTForImageClassification(ViTConfig(image_size=32, num_labels=3, **sizes)).save_pretrained(tmp_path)
    choice = ModelChoice(name=str(tmp_path), flag="teacher")
    model = load_model(choice, IMAGE_CLASSIFICATION, ["a", "b", "c", "d"], 32)
    assert model.config.num_labels == 4
    with pytest.raises(ModelError, match="--teacher .* must take images of 16 x 16 pixels: .*; give the --image_size"):
        load_model(choice, IMAGE_CLASSIFICATION, ["a", "b", "c", "d"], 16)
