"""Augmentation: no change if all is off, rigid turns, limits kept; crops that repeat, grow and stay inside; mixed targets."""

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.transforms import BatchMix, BatchTransform, RandomCrop, TransformSettings, drawn_for

NO_COLOURS = {"randaugment_ops": 0, "color_jitter": 0.0, "random_erasing": 0.0}
WHOLE = {"crop_min_area": 1.0, "crop_max_aspect": 1.0}


def test_no_limits_change_nothing():
    images = torch.rand(3, 3, 8, 12)
    assert torch.equal(BatchTransform(TransformSettings(**NO_COLOURS))(images), images)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    crop = RandomCrop(TransformSettings(**WHOLE, horizontal_flip=0.0), 16, seed=0)
    assert all(np.array_equal(np.asarray(crop(picture, 0, number)[0]), np.asarray(picture)) for number in range(20))


def test_half_of_the_images_are_mirrored():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    crop = RandomCrop(TransformSettings(**WHOLE, horizontal_flip=0.5), 16, seed=0)
    mirrored = np.asarray(picture)[:, ::-1]
    cut = [np.asarray(crop(picture, 0, number)[0]) for number in range(100)]
    assert all(np.array_equal(one, mirrored) or np.array_equal(one, np.asarray(picture)) for one in cut)
    assert 35 < sum(np.array_equal(one, mirrored) for one in cut) < 65


def sampled_maps(settings: TransformSettings, height: int, width: int, count: int = 300) -> np.ndarray:
    """Linear parts (n, 2, 2), in pixels, of the affine maps drawn for a batch."""
    transform = BatchTransform(settings)
    transform(torch.rand(count, 3, height, width))
    (affine,) = transform.steps.children()
    return affine.transform_matrix[:, :2, :2].numpy()


def test_turns_are_rigid_on_rectangles_and_within_their_limit():
    maps = sampled_maps(TransformSettings(**NO_COLOURS, rotation_degrees=30), 40, 20)
    np.testing.assert_allclose(maps @ maps.transpose(0, 2, 1), np.broadcast_to(np.eye(2), maps.shape), atol=1e-4)
    degrees = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert -30 <= degrees.min() < -27 and 27 < degrees.max() <= 30


def test_sizes_and_shears_are_within_their_limits():
    scaled = np.sqrt(np.linalg.det(sampled_maps(TransformSettings(**NO_COLOURS, scale_share=0.2), 20, 20)))
    assert 0.799 < scaled.min() < 0.82 and 1.18 < scaled.max() < 1.201
    sheared = sampled_maps(TransformSettings(**NO_COLOURS, shear_degrees=10), 20, 20)
    np.testing.assert_allclose(np.linalg.det(sheared), 1, atol=1e-4)  # a shear keeps areas
    tangents = np.abs(sheared[:, 0, 1])
    assert 0.16 < tangents.max() <= np.tan(np.radians(10)) + 1e-6


def test_a_crop_depends_on_seed_epoch_and_number_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    crop = RandomCrop(TransformSettings(), 16, seed=1)
    first = np.asarray(crop(image, epoch=2, number=3)[0])
    crop(image, epoch=2, number=4)
    assert np.array_equal(np.asarray(RandomCrop(TransformSettings(), 16, seed=1)(image, 2, 3)[0]), first)
    for other, _ in (crop(image, 3, 3), crop(image, 2, 5), RandomCrop(TransformSettings(), 16, seed=2)(image, 2, 3)):
        assert not np.array_equal(np.asarray(other), first)


def test_the_image_size_grows_from_epoch_to_epoch():
    crop = RandomCrop(TransformSettings(initial_image_size=96), 192, seed=0, num_epochs=4, multiple=32)
    assert [crop.size_at(epoch) for epoch in range(5)] == [96, 128, 160, 192, 192]
    image = Image.new("RGB", (300, 200))
    assert crop(image, 1, 0)[0].size == (128, 128)
    assert RandomCrop(TransformSettings(), 192, seed=0)(image, 0, 0)[0].size == (192, 192)


def test_crops_stay_inside_and_within_their_limits():
    settings = TransformSettings(crop_min_area=0.25, crop_max_aspect=1.5)
    crop, random = RandomCrop(settings, 16, seed=0), np.random.default_rng(0)
    boxes = np.array([crop.sample_box(200, 150, random) for _ in range(500)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 200 and boxes[:, 3].max() <= 150
    area, aspect = width * height / 30000, width / height
    assert 0.24 < area.min() < 0.3 and 0.8 < area.max() <= 1
    assert 0.64 < aspect.min() < 0.75 and 1.35 < aspect.max() < 1.53


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_targets_hold_the_share_of_the_pixels(kind):
    alphas = {"mixup_alpha": 0.8, "cutmix_alpha": 0.0} if kind == "mixup" else {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
    pixels = torch.stack([torch.zeros(3, 20, 30), torch.ones(3, 20, 30)])  # black is class 0, white class 1
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, targets = BatchMix(TransformSettings(**alphas))(pixels, torch.eye(2))
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets[:, 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(2))
        assert (kind == "mixup") == (mixed[0].unique().numel() == 1)
        shares.append(targets[0, 0].item())
    assert min(shares) < 0.3 and max(shares) > 0.7


def test_batch_transforms_repeat_with_the_seed_and_stay_in_range():
    transform = BatchTransform(TransformSettings(rotation_degrees=10, random_erasing=1.0))
    pixels = torch.rand(4, 3, 24, 24)
    torch.manual_seed(5)
    first = transform(pixels)
    torch.manual_seed(5)
    assert torch.equal(transform(pixels), first)
    assert first.min() >= 0 and first.max() <= 1 and not torch.equal(first, pixels)


def test_a_batch_is_augmented_as_its_first_crop_says():
    transform = BatchTransform(TransformSettings(rotation_degrees=10, random_erasing=1.0))
    mix, pixels, targets = BatchMix(TransformSettings()), torch.rand(4, 3, 24, 24), torch.eye(4)

    def augmented(seed: int, epoch: int, number: int) -> torch.Tensor:
        with drawn_for(np.array([[epoch, number], [0, 9]]), seed, torch.device("cpu")):
            return mix(transform(pixels), targets)[0]

    torch.manual_seed(1)
    first = augmented(0, 2, 7)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after  # the numbers of others are as if it had not been
    assert torch.equal(augmented(0, 2, 7), first)
    for other in ((1, 2, 7), (0, 3, 7), (0, 2, 8)):
        assert not torch.equal(augmented(*other), first)
