"""Odd images as people expect them, and one arithmetic on the training side and on the device."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, SegformerImageProcessorPil, ViTImageProcessorPil, pipeline

import swin_hf
from edge.device.image import UnreadableImageError, load_image, to_pixel_values
from edge.device.listing import image_files


def saved(image: Image.Image, **options) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **options})
    stream.seek(0)
    return stream


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: the top left corner goes to the top right
    loaded = load_image(saved(image, exif=exif))
    assert loaded.size == (2, 4)
    assert loaded.getpixel((1, 0)) == (255, 255, 255)


def test_transparency_lies_on_white():
    assert load_image(saved(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(saved(Image.new("LA", (2, 2), (0, 255)))).getpixel((0, 0)) == (0, 0, 0)


def test_sixteen_bit_keeps_its_range():
    levels = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert np.asarray(load_image(saved(Image.fromarray(levels))))[0, :, 0].tolist() == [0, 100, 255]


def test_float_levels_are_stretched():
    image = Image.fromarray(np.array([[-1.0, 0.0, 3.0]], dtype=np.float32))
    assert np.asarray(load_image(saved(image, format="TIFF")))[0, :, 0].tolist() == [0, 64, 255]


def test_palette_and_cmyk_become_rgb():
    palette = Image.new("RGB", (2, 2), (10, 200, 30)).quantize(4)
    assert load_image(saved(palette)).getpixel((0, 0)) == (10, 200, 30)
    cmyk = load_image(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), format="JPEG"))
    assert cmyk.mode == "RGB" and min(cmyk.getpixel((4, 4))) > 250


@pytest.mark.parametrize("crop_pct", [None, 0.9, 0.875, 1.0])
@pytest.mark.parametrize("shape", [(31, 17), (17, 31), (24, 24), (9, 50)])
@pytest.mark.parametrize("size", [(12, 12), (10, 16)])
def test_device_and_processor_agree_on_crops(crop_pct, shape, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    processor = swin_hf.SwinHfImageProcessorPil(size={"height": size[0], "width": size[1]}, crop_pct=crop_pct)
    expected = processor(image, do_normalize=False, return_tensors="np")["pixel_values"]
    actual = to_pixel_values(image, *size, int(processor.resample), crop_pct=crop_pct)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_device_and_processor_agree_on_every_mode(mode):
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (21, 17, 3), dtype=np.uint8))
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((rng.random((21, 17)) * 60000).astype(dtype))
    else:
        image = rgb.convert(mode)
    stream = saved(image, format="TIFF" if mode in ("CMYK", "F", "I") else "PNG")
    processor = swin_hf.SwinHfImageProcessorPil(size={"height": 12, "width": 10})
    expected = processor(Image.open(stream), do_normalize=False, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(to_pixel_values(load_image(stream), 12, 10, int(processor.resample)), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [swin_hf.SwinHfImageProcessorPil, swin_hf.SwinHfImageProcessor])
def test_processor_equals_stock_with_the_same_settings(kind):
    settings = {"size": {"height": 12, "width": 10}, "resample": 3, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    image = np.random.default_rng(0).integers(0, 256, (21, 17, 3), dtype=np.uint8)
    processor = kind(**settings)
    ours = processor(image, return_tensors="pt")["pixel_values"]
    stock = ViTImageProcessorPil(**settings)(image, return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 3, 12, 10)
    on_pillow = isinstance(processor, swin_hf.SwinHfImageProcessorPil)  # also where torchvision is not installed
    torch.testing.assert_close(ours, stock, atol=0 if on_pillow else 0.02, rtol=0)


def test_auto_image_processor_finds_ours(checkpoint):
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert isinstance(processor, (swin_hf.SwinHfImageProcessor, swin_hf.SwinHfImageProcessorPil))
    assert (processor.size.height, processor.size.width) == (16, 16)


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "note.jpg").write_text("not an image")
    with pytest.raises(UnreadableImageError, match=r"note\.jpg cannot be read"):
        load_image(tmp_path / "note.jpg")
    image = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))).getvalue()
    (tmp_path / "half.png").write_bytes(image[: len(image) // 2])
    with pytest.raises(UnreadableImageError, match=r"half\.png"):
        load_image(tmp_path / "half.png")


def test_empty_and_missing_folders_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no images"):
        image_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        image_files(tmp_path / "nowhere")


@pytest.mark.parametrize("sizes", [None, [(20, 30), (8, 5)]])
def test_segments_are_those_of_stock(sizes):
    outputs = SimpleNamespace(logits=torch.randn(2, 4, 8, 6))
    ours = swin_hf.SwinHfImageProcessorPil().post_process_semantic_segmentation(outputs, sizes)
    stock = SegformerImageProcessorPil().post_process_semantic_segmentation(outputs, sizes)
    assert all(torch.equal(own, theirs) for own, theirs in zip(ours, stock, strict=True))
    with pytest.raises(ValueError, match="target_sizes must have one"):
        swin_hf.SwinHfImageProcessorPil().post_process_semantic_segmentation(outputs, [(1, 1)])


def test_crops_are_those_of_stock():
    for shape in ((300, 400), (411, 257), (224, 224), (100, 90)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        ours = swin_hf.SwinHfImageProcessorPil(crop_pct=0.875)
        settings = {"resample": 3, "image_mean": list(ours.image_mean), "image_std": list(ours.image_std)}
        stock = ViTImageProcessorPil(size={"shortest_edge": 256}, do_center_crop=True, crop_size=224, **settings)
        assert torch.equal(ours(image, return_tensors="pt")["pixel_values"], stock(image, return_tensors="pt")["pixel_values"])


def test_every_form_of_an_image_gives_the_same():
    rows = np.random.default_rng(0).integers(0, 256, (21, 17, 3), dtype=np.uint8)
    forms = [
        Image.fromarray(rows),
        rows,
        rows.transpose(2, 0, 1),
        torch.from_numpy(rows),
        torch.from_numpy(rows).permute(2, 0, 1),
    ]
    processor = swin_hf.SwinHfImageProcessor(size={"height": 12, "width": 10}, crop_pct=0.9)
    expected, *others = (processor(form, return_tensors="pt")["pixel_values"] for form in forms)
    assert all(torch.equal(pixels, expected) for pixels in others)
    assert processor(forms, return_tensors="pt")["pixel_values"].shape == (5, 3, 12, 10)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("shape", [(300, 400), (224, 224), (20, 31)])
def test_maps_of_classes_are_those_of_stock(shape, reduced):
    rng = np.random.default_rng(0)
    image, classes = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 256, shape, np.uint8)
    settings = {"size": {"height": 32, "width": 48}, "do_reduce_labels": reduced}
    expected = SegformerImageProcessorPil(resample=3, **settings)(image, classes.copy(), return_tensors="pt")
    for form in (classes, Image.fromarray(classes), torch.from_numpy(classes), classes[None]):
        actual = swin_hf.SwinHfImageProcessor(**settings)([image, image], [form, form], return_tensors="pt")
        assert torch.equal(actual["labels"], expected["labels"].repeat(2, 1, 1)) and actual["labels"].dtype == torch.int64
    pil = swin_hf.SwinHfImageProcessorPil(**settings)(image, classes, return_tensors="pt")
    assert torch.equal(pil["pixel_values"], expected["pixel_values"])


def test_maps_are_cropped_with_their_images():
    # Each pixel of the map is its own number, and of the image its grey level: they must stay together.
    levels = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    image = Image.fromarray(levels)
    for settings in ({"crop_pct": 1.0}, {"do_resize": False, "do_center_crop": True, "crop_size": 8}):
        settings |= {"size": {"height": 12, "width": 12}, "resample": 0, "do_normalize": False}
        batch = swin_hf.SwinHfImageProcessorPil(**settings)(image, levels.astype(np.uint16), return_tensors="np")
        np.testing.assert_array_equal(np.round(batch["pixel_values"][0, 0] * 255), batch["labels"][0])
    wide = swin_hf.SwinHfImageProcessorPil(do_resize=False, do_center_crop=True, crop_size=20)
    padded = wide(image, levels)["labels"][0]
    assert padded.shape == (20, 20) and (padded == 255).sum() == 400 - 12 * 16


def test_wrong_settings_and_maps_are_explained():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"crop_pct must lie in \(0, 1\], got 87.5"):
        swin_hf.SwinHfImageProcessorPil(crop_pct=87.5)(image)
    with pytest.raises(ValueError, match="crop_pct needs a size with height and width"):
        swin_hf.SwinHfImageProcessorPil(crop_pct=0.9, size={"shortest_edge": 8})(image)
    with pytest.raises(ValueError, match="segmentation_maps must be one for each image and of its size"):
        swin_hf.SwinHfImageProcessorPil()(image, np.zeros((8, 9), np.uint8))
    with pytest.raises(ValueError, match="do_pad cannot be used with segmentation_maps"):
        padded = swin_hf.SwinHfImageProcessorPil(do_pad=True, pad_size={"height": 300, "width": 300})
        padded(image, np.zeros((8, 8), np.uint8))
    assert swin_hf.SwinHfImageProcessorPil()(image, crop_pct=1, return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)
    with pytest.raises(ValueError, match="must be integers"):
        swin_hf.SwinHfImageProcessorPil()(image, np.full((8, 8), 0.5))


def test_likeliest_classes_are_those_of_the_pipeline(checkpoint):
    model = swin_hf.SwinHfForImageClassification.from_pretrained(checkpoint)
    processor = swin_hf.SwinHfImageProcessorPil.from_pretrained(checkpoint)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    outputs = model(**processor([image, image], return_tensors="pt"))
    for problem_type in (None, "multi_label_classification", "regression"):
        model.config.problem_type = problem_type
        expected = pipeline("image-classification", model=model, image_processor=processor)(image, top_k=2)
        for answers in processor.post_process_image_classification(outputs, model.config, top_k=2):
            assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
            assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)
    without_names = processor.post_process_image_classification(outputs)
    assert [answers[0]["label"] for answers in without_names] == [str(k) for k in outputs.logits.argmax(dim=1).tolist()]


def test_auto_map_names_both_backends(checkpoint):
    named = json.loads((checkpoint / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"]
    assert [name.split(".")[1] for name in named] == ["SwinHfImageProcessorPil", "SwinHfImageProcessor"]


def odd_images(folder) -> list:
    """Files that transformers' pipelines convert to RGB in another way than our processors."""
    rng = np.random.default_rng(0)
    clear = Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8))
    clear.save(folder / "clear.png")
    Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.random((20, 30), dtype=np.float32)).save(folder / "float.tiff")
    return [folder / name for name in ("clear.png", "deep.png", "float.tiff")]


def test_pipelines_show_the_model_our_pixels_if_they_get_our_images(checkpoint, tmp_path):
    model = swin_hf.SwinHfForImageClassification.from_pretrained(checkpoint).eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    classify = pipeline("image-classification", model=model, image_processor=processor)
    differ = []
    for path in odd_images(tmp_path):
        pixel_values = processor(Image.open(path), return_tensors="pt")["pixel_values"]
        on_device = to_pixel_values(load_image(path), 16, 16, 3)
        np.testing.assert_allclose(pixel_values, (on_device - 0.5) / 0.5, atol=1e-6)
        logits = model(pixel_values).logits
        expected = processor.post_process_image_classification(SimpleNamespace(logits=logits), model.config)[0]
        # The remedy of docs/models.md.
        assert [one["score"] for one in classify(load_image(path))] == pytest.approx([one["score"] for one in expected])
        scores = {one["label"]: one["score"] for one in classify(str(path))}
        differ.append(max(abs(scores[one["label"]] - one["score"]) for one in expected))
    assert max(differ) > 1e-3  # or the remedy is not needed any more
