"""Detection: boxes in every layout of annotations, boxes that move with their images, and trainings of each detector."""

import json

import numpy as np
import pytest
import torch
from conftest import PROCESSOR, STILL, settings_for
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForObjectDetection, EvalPrediction, pipeline

from distill.data.boxes import as_boxes, as_centres, clipped, cropped
from distill.data.examples import EvaluationImages, Example, TrainingImages, collate_boxes
from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.targets import BOXES
from distill.data.transforms import BatchTransform, RandomCrop, TransformSettings
from distill.errors import SettingsError
from distill.training.finetune import finetune
from distill.training.tasks.detection import DETECTORS, FOUND, TRUTH, ObjectDetection, average_precision

STILL_SETTINGS = TransformSettings(randaugment_ops=0, color_jitter=0, random_erasing=0)
SMALL = "d_model: 32, num_queries: 4, decoder_layers: 2, decoder_attention_heads: 2, encoder_attention_heads: 2"
HEADS = {
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2"), f"{SMALL}, num_denoising: 2, encoder_ffn_dim: 16"),
    **dict.fromkeys(("deformable_detr", "conditional_detr", "detr", "table_transformer"), f"{SMALL}, encoder_layers: 1"),
    "dab_detr": f"{SMALL.replace('d_model', 'hidden_size')}, encoder_layers: 1",
}


def paint(number: int) -> tuple[Image.Image, list[tuple[str, list[int]]]]:
    """An image with a red square, every second one with a blue one too, and the boxes as COCO describes them."""
    rng = np.random.default_rng(number)
    pixels, boxes = rng.integers(0, 60, (24, 30, 3)).astype(np.uint8), []
    for name, channel, left in (("red", 0, 1), ("blue", 2, 16))[: 1 + number % 2]:
        top, side = int(rng.integers(1, 10)), int(rng.integers(8, 13))
        pixels[top : top + side, left : left + side] = 0
        pixels[top : top + side, left : left + side, channel] = 255
        boxes.append((name, [left, top, side, side]))
    return Image.fromarray(pixels), boxes


def write_coco(folder, numbers, images_in="", name="annotations.json"):
    """Images and a COCO file; the classes have numbers with gaps, and one has no box."""
    (folder / images_in).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in numbers:
        image, boxes = paint(number)
        image.save(folder / images_in / f"{number}.png")
        images.append({"id": 100 + number, "file_name": f"{number}.png", "width": 30, "height": 24})
        for label, box in boxes:
            own = {"image_id": 100 + number, "category_id": {"red": 7, "blue": 3}[label], "bbox": box, "iscrowd": 0}
            annotations.append(own | {"id": len(annotations)})
    annotations.append({"id": 999, "image_id": 100 + numbers[0], "category_id": 3, "bbox": [0, 0, 30, 24], "iscrowd": 1})
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}, {"id": 1, "name": "never"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def boxes_folder(tmp_path):
    return write_coco(tmp_path / "things", range(16))


def assert_painted(found, split, numbers):
    """The boxes of a split are those that were painted, whatever the order of classes."""
    for source, boxes in zip(found.images[split], found.boxes[split], strict=True):
        number = int(source.name.split("/")[-1].removesuffix(".png"))
        assert number in numbers
        expected = {(name, left, top, left + w, top + h) for name, (left, top, w, h) in paint(number)[1]}
        assert {(found.class_names[int(row[0])], *map(int, row[1:])) for row in boxes} == expected
    assert len(found.images[split]) == len(numbers)


@pytest.mark.parametrize("images_in", ["", "images"])
def test_a_coco_file_beside_its_images(tmp_path, images_in):
    found = find_images(str(write_coco(tmp_path / "things", range(6), images_in)), BOXES)
    assert_painted(found, "all", range(6))
    assert found.class_names == ["blue", "red"]  # by their numbers; crowds and classes without a box are left out


def test_splits_with_their_own_files(tmp_path):
    for split, numbers in (("train", range(4)), ("valid", range(4, 6)), ("test", range(6, 8))):
        write_coco(tmp_path / "roboflow" / split, numbers, name="_annotations.coco.json")
        write_coco(tmp_path / "coco" / f"{split}2017", numbers, name=f"../annotations/instances_{split}2017.json")
    for layout in ("roboflow", "coco"):
        found = find_images(str(tmp_path / layout), BOXES)
        for split, numbers in (("train", range(4)), ("validation", range(4, 6)), ("test", range(6, 8))):
            assert_painted(found, split, numbers)


@pytest.mark.parametrize("layout", ["lists", "objects"])
@pytest.mark.parametrize("opened_as", ["folder", "table"])
def test_metadata_of_an_image_folder(tmp_path, layout, opened_as):
    lines = []
    for number in range(6):
        image, boxes = paint(number)
        image.save(tmp_path / f"{number}.png")
        lists = {"bbox": [box for _, box in boxes], "category": [name for name, _ in boxes]}
        cell = lists if layout == "lists" else [{"bbox": box, "category": name} for name, box in boxes]
        lines.append(json.dumps({"file_name": f"{number}.png", "objects": cell}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = find_images(str(tmp_path if opened_as == "folder" else tmp_path / "metadata.jsonl"), BOXES)
    assert_painted(found, "all", range(6))


def test_the_scenes_have_a_box_each():
    found = find_images("digit-scenes", BOXES)
    assert found.class_names == list("0123456789") and {len(own) for own in found.boxes["test"]} == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"must have one file with the boxes of its images, annotations\.json, .* got none"),
        ({"images": []}, "must be a COCO file with images, annotations and categories: KeyError"),
        (
            {"images": [{"id": 1, "file_name": "gone.png"}], "annotations": [], "categories": []},
            r"1 of 1 images that .*annotations\.json names are not beside it: gone\.png",
        ),
        (
            {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [], "categories": [{"id": 1, "name": "a"}]},
            "has 1 images|has no boxes",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "0.png"}],
                "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}],
                "categories": [{"id": 1, "name": "a"}],
            },
            "a box must be four numbers, left, top, width and height",
        ),
    ],
)
def test_annotations_that_cannot_be_used_are_explained(tmp_path, content, message):
    for number in range(4):
        paint(number)[0].save(tmp_path / f"{number}.png")
    if content is not None:
        (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        find_images(str(tmp_path), BOXES)


def marked(boxes: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """An image that is white inside of the first box."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    left, top, right, bottom = boxes[0, 1:].astype(int)
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


def extent(pixels: torch.Tensor) -> list[int]:
    """Left, top, right and bottom of what is white in (3, H, W)."""
    rows, columns = np.nonzero(pixels[0].numpy() > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_are_cropped_and_mirrored_with_their_images():
    boxes = as_boxes([2], [[24, 15, 48, 45]])
    example = Example(type("Source", (), {"load": lambda self: marked(boxes, (80, 60))})(), 0, boxes=boxes)
    images, seen = TrainingImages([example], RandomCrop(TransformSettings(crop_min_area=0.3), 64, seed=0)), 0
    for epoch in range(40):
        images.begin_epoch(epoch)
        row = images[0]
        if len(row["targets"]):
            label, *centre = row["targets"][0].tolist()
            x, y, width, height = (64 * value for value in centre)
            found = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            assert label == 2 and np.abs(np.subtract(found, extent(row["pixels"]))).max() <= 1.5
            seen += 1
    assert seen > 30


def test_boxes_that_leave_the_crop_are_dropped():
    boxes = as_boxes([0, 1, 2], [[0, 0, 10, 10], [8, 0, 18, 10], [40, 40, 50, 50]])
    kept = cropped(boxes, (10, 0, 30, 20), (40, 40), mirrored=False)
    assert kept.tolist() == [[1, 0, 0, 16, 20]]  # the first touches, the third is outside
    assert cropped(boxes, (10, 0, 30, 20), (40, 40), mirrored=True).tolist() == [[1, 24, 0, 40, 20]]
    assert not len(cropped(boxes, (15.5, 0, 30, 20), (40, 40), mirrored=False))  # a quarter is left
    assert clipped(boxes, (45, 45))[2].tolist() == [2, 40, 40, 45, 45]
    assert as_centres(boxes, (20, 40))[0].tolist() == pytest.approx([0, 0.25, 0.125, 0.5, 0.25])


def test_boxes_turn_and_shift_with_their_images():
    settings = TransformSettings(rotation_degrees=10, translate_share=0.1, randaugment_ops=0, color_jitter=0, random_erasing=0)
    boxes = as_boxes([1], [[20, 16, 44, 40]])
    pixels = torch.from_numpy(np.array(marked(boxes, (64, 64)))).permute(2, 0, 1)[None].repeat(8, 1, 1, 1).float() / 255
    targets = torch.from_numpy(as_centres(boxes, (64, 64)))[None].repeat(8, 1, 1)
    targets = torch.cat([targets, torch.full((8, 1, 5), -1.0)], dim=1)  # filled up with none
    moved_pixels, moved = BatchTransform(settings).with_boxes(pixels, targets)
    assert not torch.equal(moved, targets) and (moved[:, 1] == -1).all() and (moved[:, 0, 0] == 1).all()
    for picture, (_, x, y, width, height) in zip(moved_pixels, moved[:, 0].tolist()):
        found = [64 * value for value in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]
        assert np.abs(np.subtract(found, extent(255 * picture))).max() <= 2
    still, same = BatchTransform(STILL_SETTINGS).with_boxes(pixels, targets)
    assert torch.equal(same, targets) and torch.equal(still, pixels)


def test_batches_are_filled_up_with_boxes_of_no_class():
    rows = [{"pixels": torch.zeros(3, 4, 4), "targets": torch.rand(count, 5)} for count in (2, 0, 1)]
    targets = collate_boxes(rows)["targets"]
    assert targets.shape == (3, 2, 5) and (targets[:, :, 0] == -1).sum(dim=1).tolist() == [0, 2, 1]
    boxes = as_boxes([1], [[0, 0, 15, 12]])
    example = Example(type("Source", (), {"load": lambda self: Image.new("RGB", (30, 24))})(), 0, boxes=boxes)
    assert EvaluationImages([example], PROCESSOR)[0]["targets"].tolist() == [[1, 0.25, 0.25, 0.5, 0.5]]


def test_average_precision_is_that_of_coco():
    rng = np.random.default_rng(0)
    rows, truth, found = np.full((6, 12, 7), -100.0), [], []  # filled up as the trainer does
    for image in range(6):
        for place in range(4):
            label, (left, top) = int(rng.integers(3)), rng.uniform(0, 0.5, 2)
            corners = np.array([left, top, left + 0.3, top + 0.4])
            rows[image, place] = [TRUTH, label, 1, *corners]
            box = 1000 * np.array([*corners[:2], *(corners[2:] - corners[:2])])
            own = {"image_id": image, "category_id": label, "bbox": box.tolist(), "area": box[2] * box[3], "iscrowd": 0}
            truth.append(own | {"id": len(truth) + 1})
            moved, score = corners + rng.normal(0, 0.03, 4), rng.random()
            label = label if rng.random() < 0.8 else int(rng.integers(3))
            rows[image, 4 + place] = [FOUND, label, score, *moved]
            box = 1000 * np.array([*moved[:2], *(moved[2:] - moved[:2])])
            found.append({"image_id": image, "category_id": label, "bbox": box.tolist(), "score": score})
    coco = COCO()
    coco.dataset = {"info": {}, "images": [{"id": n} for n in range(6)], "annotations": truth}
    coco.dataset["categories"] = [{"id": n} for n in range(4)]
    coco.createIndex()
    plain = COCOeval(coco, coco.loadRes(found), "bbox")
    plain.evaluate(), plain.accumulate(), plain.summarize()
    task = ObjectDetection(PROCESSOR, list("abcd"), STILL_SETTINGS)
    figures = task.metrics(EvalPrediction(predictions=rows, label_ids=None))
    assert 0.05 < figures["map"] < 0.95
    assert [figures[name] for name in ("map", "map_50", "map_75")] == pytest.approx(plain.stats[:3].tolist())
    by_class = task.details(EvalPrediction(predictions=rows, label_ids=None))["ap_by_class"]
    assert set(by_class) == set("abc") and np.mean(list(by_class.values())) == pytest.approx(figures["map"], abs=0.02)
    nothing = np.where(rows[..., :1] == FOUND, -100.0, rows)
    assert _map(average_precision(nothing, 4)) == 0


def _map(precision):
    return precision[precision > -1].mean()


DETECT = ["--task", "object-detection", "--per_device_train_batch_size", "4", *STILL]
DETECT += ["--validation_share", "0.25", "--test_share", "0.25"]


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_trains_saves_and_loads(boxes_folder, tmp_path, detector):
    head = f"{{detector: {detector}, {HEADS[detector]}}}"
    arguments = ["--dataset", str(boxes_folder), *DETECT, "--head_args", head, "--image_size", "32"]
    figures = finetune(settings_for(tmp_path, *arguments, "--num_pictures", "2"))
    assert 0 <= figures["test_map"] <= figures["test_map_50"] <= 1 and figures["num_test_images"] == 4
    assert list((tmp_path / "out" / "predictions").glob("*.png"))
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "blue", 1: "red"}
    detect = pipeline("object-detection", model=str(tmp_path / "out"), threshold=0.0)
    found = detect(paint(1)[0])
    assert found and {"score", "label", "box"} == set(found[0])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert dict(processor.size) == {"height": 32, "width": 32} and processor.image_mean == PROCESSOR.image_mean


def test_a_classifier_becomes_the_backbone_of_a_detector(boxes_folder, checkpoint, tmp_path):
    head = f"{{{HEADS['rt_detr']}}}"
    arguments = ["--dataset", str(boxes_folder), *DETECT, "--model", str(checkpoint), "--model_args", "", "--head_args", head]
    figures = finetune(settings_for(tmp_path, *arguments, "--learning_rate", "0"))
    assert np.isfinite(figures["train_loss"])
    detector = AutoModelForObjectDetection.from_pretrained(tmp_path / "out")
    classifier = load_file(checkpoint / "model.safetensors")
    own = {name.split(".swin.", 1)[1]: weight for name, weight in detector.state_dict().items() if ".swin." in name}
    assert own and all(torch.equal(weight, classifier[f"swin.{name}"]) for name, weight in own.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--head_args", "{detector: rtdetr}"],
            "--head_args must name a detector, rt_detr, .* got 'rtdetr'; did you mean rt_d",
        ),
        (["--head_args", "{d_modl: 3}"], "--head_args must be fields of RTDetrConfig, got 'd_modl'"),
        (["--teacher", "somewhere"], "teacher"),
    ],
)
def test_mistakes_are_explained(boxes_folder, tmp_path, arguments, message):
    with pytest.raises(SettingsError, match=message):
        finetune(settings_for(tmp_path, "--dataset", str(boxes_folder), *DETECT, *arguments))


def test_boxes_outside_of_their_images_are_named_and_left_out(boxes_folder, tmp_path, capsys):
    content = json.loads((boxes_folder / "annotations.json").read_text())
    content["annotations"][0]["bbox"] = [50, 50, 5, 5]
    (boxes_folder / "annotations.json").write_text(json.dumps(content))
    head = f"{{{HEADS['rt_detr']}}}"
    more = ["--max_unreadable_share", "0.1", "--head_args", head, "--num_pictures", "0", "--image_size", "32"]
    finetune(settings_for(tmp_path, "--dataset", str(boxes_folder), *DETECT, *more))
    assert "has a box without area inside of its 30 x 24 pixels" in capsys.readouterr().out
