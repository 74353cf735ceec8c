"""Mean IoU of a checkpoint at the images' own size, against scikit-learn and plain loops."""

import numpy as np
import pytest
import torch
from conftest import PLAIN_PROCESSOR, TINY
from PIL import Image
from sklearn.metrics import jaccard_score

from distill.errors import SettingsError
from distill.training.segmenter_evaluation import evaluate_segmenter, parse_evaluation_settings
from swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig


@pytest.fixture
def segmenter(tmp_path):
    """A checkpoint whose classes are in another order than those of `mask_folder`."""
    backbone = TINY | {"out_features": ["stage1", "stage2"], "weight_init": "fan_in"}
    config = SwinHfUperNetConfig(
        backbone_config=backbone, hidden_size=8, use_auxiliary_head=False, id2label={0: "right", 1: "left"}
    )
    model = SwinHfForSemanticSegmentation(config).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.save_pretrained(tmp_path / "model")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def evaluated(model, folder, *more):
    return evaluate_segmenter(*parse_evaluation_settings(["--model", str(model), "--dataset", str(folder), *more]))


@pytest.mark.parametrize(("arguments", "size"), [((), (16, 16)), (("--shorter_side", "40"), (40, 48))])
def test_images_are_judged_at_their_own_size(segmenter, mask_folder, arguments, size):
    figures = evaluated(segmenter, mask_folder, "--split", "all", *arguments)
    model, truth, predicted = SwinHfForSemanticSegmentation.from_pretrained(segmenter).eval(), [], []
    for file in sorted((mask_folder / "images").iterdir()):
        image = Image.open(file)
        pixels = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC), np.float32) / 255
        with torch.no_grad():
            logits = model(torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]).logits
        enlarged = torch.nn.functional.interpolate(logits.softmax(dim=1), size=(20, 24), mode="bilinear")
        predicted.append(1 - enlarged.argmax(dim=1)[0].numpy())  # whose classes are in the other order
        truth.append(np.asarray(Image.open(mask_folder / "masks" / f"{file.stem}.png")))
    truth, predicted = np.stack(truth).ravel(), np.stack(predicted).ravel()
    ious = jaccard_score(truth, predicted, average=None)
    assert figures["mean_iou"] == pytest.approx(ious.mean(), abs=1e-3)
    assert figures["iou_by_class"] == pytest.approx({"left": ious[0], "right": ious[1]}, abs=1e-3)
    assert figures["pixel_accuracy"] == pytest.approx((truth == predicted).mean(), abs=1e-3)
    assert figures["num_images"] == 8


def test_only_the_split_that_is_asked_for_is_judged(segmenter, mask_folder):
    shares = ["--test_share", "0.25", "--validation_share", "0.25"]
    assert evaluated(segmenter, mask_folder, *shares)["num_images"] == 2
    more = ["--split", "train", "--window", "12", "--stride", "8", "--scales", "1", "0.5", "--flip", "true"]
    assert evaluated(segmenter, mask_folder, *shares, *more)["num_images"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model must name a checkpoint folder or a Hub id of a segmenter"),
        (["--model", "x", "--split", "tests"], "--split must be one of train, validation, test, all, got 'tests'"),
        (["--model", "x", "--stride", "4"], "--stride must come with a --window that is no smaller"),
        (["--model", "x", "--scales", "0"], "--scales must be positive"),
        (["--model", "x", "--windw", "4"], "unknown setting --windw in the command line; did you mean --window"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(SettingsError, match=message):
        parse_evaluation_settings(arguments)
