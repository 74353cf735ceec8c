"""Odd images as people expect them, and one arithmetic on the training side and on the device."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, SegformerImageProcessorPil, ViTImageProcessorPil

import swin_hf
from edge.image import UnreadableImageError, find_images, load_image, to_pixel_values


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


def test_processor_equals_stock_with_the_same_settings():
    settings = {"size": {"height": 12, "width": 10}, "resample": 3, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    image = np.random.default_rng(0).integers(0, 256, (21, 17, 3), dtype=np.uint8)
    ours = swin_hf.SwinHfImageProcessor(**settings)(image, return_tensors="pt")["pixel_values"]
    stock = ViTImageProcessorPil(**settings)(image, return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 3, 12, 10)
    torch.testing.assert_close(ours, stock, atol=0.02 if "Pil" not in type(ours).__name__ else 0, rtol=0)


def test_auto_image_processor_finds_ours(checkpoint):
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert isinstance(processor, (swin_hf.SwinHfImageProcessor, swin_hf.SwinHfImageProcessorPil))
    assert (processor.size.height, processor.size.width) == (16, 16)


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "note.jpg").write_text("not an image")
    with pytest.raises(UnreadableImageError, match=r"note\.jpg is not an image"):
        load_image(tmp_path / "note.jpg")
    image = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))).getvalue()
    (tmp_path / "half.png").write_bytes(image[: len(image) // 2])
    with pytest.raises(UnreadableImageError, match=r"half\.png"):
        load_image(tmp_path / "half.png")


def test_empty_and_missing_folders_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no images"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_images(tmp_path / "nowhere")


@pytest.mark.parametrize("sizes", [None, [(20, 30), (8, 5)]])
def test_segments_are_those_of_stock(sizes):
    outputs = SimpleNamespace(logits=torch.randn(2, 4, 8, 6))
    ours = swin_hf.SwinHfImageProcessorPil().post_process_semantic_segmentation(outputs, sizes)
    stock = SegformerImageProcessorPil().post_process_semantic_segmentation(outputs, sizes)
    assert all(torch.equal(own, theirs) for own, theirs in zip(ours, stock, strict=True))
    with pytest.raises(ValueError, match="target_sizes must have one"):
        swin_hf.SwinHfImageProcessorPil().post_process_semantic_segmentation(outputs, [(1, 1)])
