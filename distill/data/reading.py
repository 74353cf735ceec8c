"""Every image read once before a training: which cannot be used, and which are copies of each other."""

import hashlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from distill.data.boxes import check_boxes
from distill.data.examples import Example, check_mask
from distill.data.sources import ImageSource
from edge.device.image import UnreadableImageError

READING_THREADS = 8
Place = tuple[str, int]  # an image: the split in which it was found, and its number there


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was learned from reading all images and masks.

    errors: why an image or its mask cannot be used.
    copies: groups of two or more images with the same pixels.
    may_be_turned: names of images that are turned by a note in their files, where nothing tells whether their masks are too.
    mask_classes: the classes that occur in masks.
    """

    errors: dict[Place, str]
    copies: list[list[Place]]
    may_be_turned: list[str]
    mask_classes: set[int]

    def notes(self) -> list[str]:
        """What people should know, a sentence each."""
        if not self.may_be_turned:
            return []
        names = ", ".join(sorted(self.may_be_turned)[:3]) + (", .." if len(self.may_be_turned) > 3 else "")
        return [
            f"images that a note in their files (EXIF) turns, while nothing tells whether their masks are turned: "
            f"{len(self.may_be_turned)}, such as {names}; the masks are taken as they are, save these images upright"
        ]


def read_all(examples: dict[Place, Example], num_classes: int) -> Reading:
    """Read every image and its mask."""
    reading = Reading(errors={}, copies=[], may_be_turned=[], mask_classes=set())
    groups: dict[bytes, list[Place]] = defaultdict(list)

    def read(place: Place) -> bytes | UnreadableImageError:
        example = examples[place]
        try:
            image, mask = example.source.load(), example.load_mask()
            if example.boxes is not None:
                check_boxes(example.boxes, image.size, example.source.name)
            if mask is not None:
                reading.mask_classes.update(check_mask(example, image, mask, num_classes))
                if example.may_be_turned:
                    reading.may_be_turned.append(example.source.name)
        except UnreadableImageError as error:
            return error
        return digest(image)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        try:
            results = tqdm(pool.map(read, examples), total=len(examples), desc="checking images", mininterval=1.0)
            for place, result in zip(examples, results):
                if isinstance(result, UnreadableImageError):
                    reading.errors[place] = str(result)
                else:
                    groups[result].append(place)
        except BaseException:  # Ctrl-C does not wait for all images
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    reading.copies.extend(group for group in groups.values() if len(group) > 1)
    return reading


@dataclass(frozen=True, kw_only=True)
class KnownImages:
    """Images whose copies are recognised, `image in known`; for others a few pixels tell that they are none.

    few_pixels, digests: of every known image that can be read.
    """

    few_pixels: frozenset[bytes]
    digests: frozenset[bytes]

    def __contains__(self, image: Image.Image) -> bool:
        return few_pixels(image) in self.few_pixels and digest(image) in self.digests

    @classmethod
    def of(cls, sources: list[ImageSource]) -> "KnownImages":
        def read(source: ImageSource) -> tuple[bytes, bytes] | None:
            try:
                image = source.load()
            except UnreadableImageError:
                return None
            return few_pixels(image), digest(image)

        with ThreadPoolExecutor(READING_THREADS) as pool:
            found = [pair for pair in pool.map(read, sources) if pair is not None]
        return cls(few_pixels=frozenset(pair[0] for pair in found), digests=frozenset(pair[1] for pair in found))


def digest(image: Image.Image) -> bytes:
    """A hash of the pixels of an upright RGB image, the same for a copy in another lossless file or with other metadata."""
    pixels = hashlib.blake2b(np.array(image.size, dtype=np.int64), digest_size=16, usedforsecurity=False)
    pixels.update(image.tobytes())
    return pixels.digest()


def few_pixels(image: Image.Image) -> bytes:
    """Some pixels of an image, which are the same in all its copies."""
    return image.resize((8, 8), Image.Resampling.NEAREST).tobytes()
