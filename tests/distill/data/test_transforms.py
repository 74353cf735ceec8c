"""Augmentation of whole batches: no change if all are off, half of the images mirrored, rigid rotations, limits kept."""

import numpy as np
import torch
from PIL import Image

from distill.data.transforms import BatchTransform, RandomCrop, TransformSettings

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
