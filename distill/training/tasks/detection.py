"""Object detection: boxes around objects, by the detectors of transformers."""

# B batch, H W image in pixels, K classes, M boxes of an image, R rows of predictions, Q queries of a detector

import copy
import io
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    DabDetrConfig,
    DeformableDetrConfig,
    Deimv2Config,
    DetrConfig,
    DFineConfig,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrV2Config,
    TableTransformerConfig,
)

from distill.data.examples import collate_boxes
from distill.data.normalisation import Normalisation
from distill.data.targets import BOXES
from distill.data.transforms import BatchTransform, TransformSettings
from distill.errors import SettingsError, require
from distill.training.tasks.task import Metric, Objective, ObjectiveContext, Output, Panels, Task, pictures_of
from edge.device.names import did_you_mean
from edge.device.palette import palette_of
from swin_hf import SwinHfConfig
from swin_hf.configuration_swin_hf import named_classes

TRUTH, FOUND = 0, 1  # kinds of rows
MOST_FOUND = 100  # boxes of an image that are judged, as on COCO
SHOWN = 0.3  # the score from which a box is drawn
SCALE = 1000  # of the numbers that COCO's code sees, which are shares of an image
FRESH = re.compile(r"class_(embed|labels_classifier)|enc_score_head|bbox_(embed|predictor)|enc_bbox_head|label_embed")


class ObjectDetection(Objective):
    """The detector's own loss, whose parts and matching are those of its paper.

    Targets are boxes (B, M, 5), each a class and centre, width and height in shares of the image; -1 is the class of none.

    Predictions of an evaluation are rows (B, R, 7): truth or finding, class, score, and the corners of a box in shares.
    """

    def __init__(self, processor, class_names: list[str], transforms: TransformSettings):
        super().__init__()
        self.normalise, self.transform = Normalisation(processor), BatchTransform(transforms)
        self.class_names = class_names

    def augment(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform.with_boxes(pixels, targets)

    def learn(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, crops: np.ndarray | None = None) -> Output:
        output = model(pixel_values=self.normalise(pixels), labels=labels_of(targets))
        return Output(loss=output.loss, predictions=output.logits)

    def judge(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> Output:
        output = model(pixel_values=self.normalise(pixels), labels=labels_of(targets))
        corners = as_corners(targets[..., 1:])
        kinds = torch.where(targets[..., :1] >= 0, TRUTH, -1)
        truth = torch.cat([kinds, targets[..., :1], torch.ones_like(targets[..., :1]), corners], dim=2)
        return Output(loss=output.loss, predictions=torch.cat([self.found_in(output), truth.to(output.logits.dtype)], dim=1))

    def found_in(self, output) -> torch.Tensor:
        """The best findings (B, R, 7) of a detector.

        A detector with a class for "nothing" (DETR) gives each query its most probable class; others judge each class by
        itself.
        """
        logits, corners = output.logits.float(), as_corners(output.pred_boxes.float())
        if logits.shape[2] > len(self.class_names):
            scores, classes = logits.softmax(dim=2)[..., :-1].max(dim=2)
            queries = torch.arange(logits.shape[1], device=logits.device).expand_as(scores)
        else:
            scores, numbers = logits.sigmoid().flatten(1).sort(dim=1, descending=True)
            classes, queries = numbers % logits.shape[2], numbers // logits.shape[2]
        scores, order = scores.sort(dim=1, descending=True)
        chosen = order[:, :MOST_FOUND]
        places = corners.gather(1, queries.gather(1, chosen)[..., None].expand(-1, -1, 4))
        rows = [torch.full_like(scores[:, :MOST_FOUND], FOUND), classes.gather(1, chosen), scores[:, :MOST_FOUND]]
        return torch.cat([torch.stack([row.float() for row in rows], dim=2), places], dim=2)

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """COCO's mean average precision over IoUs from 0.5 to 0.95 (Lin et al. 2014, arXiv:1405.0312), and at 0.5 and 0.75."""
        precision = average_precision(prediction.predictions, len(self.class_names))
        return {"map": _mean(precision), "map_50": _mean(precision[:1]), "map_75": _mean(precision[5:6])}

    def details(self, prediction: EvalPrediction) -> dict[str, dict[str, float]]:
        """The average precision of every class that occurs."""
        precision = average_precision(prediction.predictions, len(self.class_names))
        by_class = {name: _mean(precision[:, :, number]) for number, name in enumerate(self.class_names)}
        occurs = {name: (precision[:, :, number] > -1).any() for number, name in enumerate(self.class_names)}
        return {"ap_by_class": {name: value for name, value in by_class.items() if occurs[name]}}

    def draw(self, model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> list[Panels]:
        found = self.found_in(model(pixel_values=self.normalise(pixels))).cpu().numpy()
        panels = []
        for picture, own, truth in zip(pictures_of(pixels), found, targets.cpu()):
            known = truth[truth[:, 0] >= 0]
            boxes = [(int(row[0]), as_corners(row[1:]).numpy()) for row in known]
            sure = [(int(row[1]), row[3:]) for row in own if row[2] >= SHOWN]
            names = ", ".join(f"{self.class_names[int(row[1])]} {row[2]:.0%}" for row in own[:2] if row[2] >= SHOWN)
            panels.append(
                Panels(pictures=[drawn(picture, boxes), drawn(picture, sure)], caption=f"true, found: {names or 'nothing'}")
            )
        return panels


def labels_of(targets: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Boxes (B, M, 5) as transformers' detectors take them."""
    known = [own[own[:, 0] >= 0] for own in targets]
    return [{"class_labels": own[:, 0].long(), "boxes": own[:, 1:]} for own in known]


def as_corners(centres: torch.Tensor) -> torch.Tensor:
    """(..., 4) left, top, right and bottom from centre, width and height."""
    half = centres[..., 2:] / 2
    return torch.cat([centres[..., :2] - half, centres[..., :2] + half], dim=-1)


def drawn(picture: np.ndarray, boxes: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """A picture (H, W, 3) in [0, 1] with boxes in the colours of their classes, enlarged so that lines can be seen."""
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    factor = max(256 // min(image.size), 1)
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BILINEAR)
    draw, palette = ImageDraw.Draw(image), palette_of(1 + max((number for number, _ in boxes), default=0) + 1)
    for number, box in boxes:
        left, top, right, bottom = box * np.array([image.width, image.height] * 2)
        corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        draw.rectangle(corners, outline=palette[number + 1], width=3)  # the first colour is dark
    return np.asarray(image) / 255


def average_precision(rows: np.ndarray, num_classes: int) -> np.ndarray:
    """COCO's precisions (10 IoUs, 101 recalls, K classes) of predictions (n, R, 7); -1 for a class that does not occur."""
    images, truths, findings = [{"id": number} for number in range(len(rows))], [], []
    for number, own in enumerate(rows):
        for kind, label, score, left, top, right, bottom in own.tolist():
            if kind not in (TRUTH, FOUND):
                continue
            box = [SCALE * left, SCALE * top, SCALE * (right - left), SCALE * (bottom - top)]
            row = {"image_id": number, "category_id": int(label), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            (truths if kind == TRUTH else findings).append(row | {"id": len(truths) + 1, "score": score})
    truth = COCO()
    categories = [{"id": number, "name": str(number)} for number in range(num_classes)]
    truth.dataset = {"info": {}, "images": images, "annotations": truths, "categories": categories}
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
        if not findings:
            occurs = np.isin(np.arange(num_classes), [row["category_id"] for row in truths])
            return np.broadcast_to(np.where(occurs, 0.0, -1.0), (10, 101, num_classes))
        evaluation = COCOeval(truth, truth.loadRes(findings), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e12]], ["all"]
        evaluation.params.maxDets = [MOST_FOUND]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0]


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


# -- detectors over a Swin ---------------------------------------------------------------------------------------------


def _pyramid(config: SwinHfConfig, head: dict[str, Any]) -> dict[str, Any]:
    """Settings of RT-DETR and its kin for the maps that the backbone returns."""
    stages = [config.stage_names.index(name) - 1 for name in config.out_features]
    strides = [config.patch_height_width[0] * 2**stage for stage in stages]
    dim = head.get("d_model", 128)
    return {
        **{"encoder_in_channels": [config.stage_dim(stage) for stage in stages], "feat_strides": strides},
        **{"decoder_in_channels": [dim] * len(stages), "num_feature_levels": len(stages), "encoder_hidden_dim": dim},
        **{"encode_proj_layers": [len(stages) - 1], "freeze_backbone_batch_norms": False, "d_model": dim},
        **{"encoder_ffn_dim": 4 * dim, "decoder_ffn_dim": 4 * dim, "decoder_layers": 3, "num_denoising": 100},
    }


def _pyramid_of_levels(config: SwinHfConfig, head: dict[str, Any]) -> dict[str, Any]:
    return _pyramid(config, head) | {"decoder_n_levels": len(config.out_features)}


def _transformer(config: SwinHfConfig, head: dict[str, Any]) -> dict[str, Any]:
    """Settings of DETR and its kin, which read the last map."""
    dim = head.get("d_model", 128)
    sizes = {"d_model": dim, "encoder_ffn_dim": 4 * dim, "decoder_ffn_dim": 4 * dim, "encoder_layers": 3, "decoder_layers": 3}
    return sizes | {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}


def _of_levels(config: SwinHfConfig, head: dict[str, Any]) -> dict[str, Any]:
    return _transformer(config, head) | {"num_feature_levels": len(config.out_features)}


def _dynamic_anchors(config: SwinHfConfig, head: dict[str, Any]) -> dict[str, Any]:
    """Settings of DAB-DETR, which calls `d_model` otherwise."""
    settings = _transformer(config, head)
    return settings | {"hidden_size": head.get("hidden_size", settings.pop("d_model"))}


Settings = Callable[[SwinHfConfig, dict[str, Any]], dict[str, Any]]
DETECTORS: dict[str, tuple[type[PreTrainedConfig], Settings, int]] = {  # with the number of last maps that they read
    "rt_detr": (RTDetrConfig, _pyramid, 3),
    "rt_detr_v2": (RTDetrV2Config, _pyramid_of_levels, 3),
    "d_fine": (DFineConfig, _pyramid, 3),
    "deformable_detr": (DeformableDetrConfig, _of_levels, 3),
    "deimv2": (Deimv2Config, _pyramid, 3),
    "conditional_detr": (ConditionalDetrConfig, _transformer, 1),
    "dab_detr": (DabDetrConfig, _dynamic_anchors, 1),
    "detr": (DetrConfig, _transformer, 1),
    "table_transformer": (TableTransformerConfig, _transformer, 1),
}


def detector_over(config: SwinHfConfig, class_names: list[str], head: dict[str, Any]) -> PreTrainedModel:
    """A new detector of transformers on the last feature maps of a Swin.

    head: `detector`, one of `DETECTORS`, by default RT-DETR (Zhao et al. 2023, arXiv:2304.08069), and fields of its config.

    Raises:
        SettingsError: there is no such detector or field, or it cannot be built.
    """
    fields = dict(head)
    name = fields.pop("detector", "rt_detr")
    rule = f"name a detector, {', '.join(DETECTORS)}"
    require(name in DETECTORS, "head_args", rule, name, did_you_mean(str(name), DETECTORS).removeprefix("; "))
    kind, settings, num_maps = DETECTORS[name]
    unknown = set(fields) - set(kind().to_dict())
    require(not unknown, "head_args", f"be fields of {kind.__name__}", ", ".join(sorted(unknown)))
    backbone = copy.deepcopy(config)
    backbone.set_output_features_output_indices(out_features=backbone.stage_names[1:][-num_maps:], out_indices=None)
    try:
        made = kind(backbone_config=backbone, **settings(backbone, fields) | named_classes(class_names) | fields)
        return AutoModelForObjectDetection.from_config(made)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SettingsError(f"--head_args must fit together: {error}") from error


def make_objective(context: ObjectiveContext) -> ObjectDetection:
    return ObjectDetection(context.processor, context.class_names, context.transforms)


OBJECT_DETECTION = Task(
    name="object-detection",
    auto_class=AutoModelForObjectDetection,
    targets=BOXES,
    collate=collate_boxes,
    make_objective=make_objective,
    judged_by=(Metric(name="map", shown_as="validation mAP"), Metric(name="map_50"), Metric(name="map_75")),
    pipeline_tag="object-detection",
    fresh_weights=FRESH,
    over_backbone=detector_over,
)
