"""Copies of images, which have the same pixels, in several splits: which of them are left out, and what is said about it."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from distill.data.reading import Place
from distill.data.sources import FoundImages

KEPT_FIRST = ("test", "validation", "train")  # an image stays in the first of the splits that have it

Splits = dict[str, tuple[str, list[int]]]  # the split in which the images of each split were found, and their numbers there


def copies_of_held_out(splits: Splits, copies: Sequence[Sequence[Place]]) -> dict[str, list[Place]]:
    """For each split the images that are copies of those in a split which comes before it in `KEPT_FIRST`."""
    split_of = _split_of(splits)
    left_out: dict[str, list[Place]] = defaultdict(list)
    for group in copies:
        present = {split_of[place] for place in group if place in split_of}
        kept = next((split for split in KEPT_FIRST if split in present), None)
        for place in group:
            if place in split_of and split_of[place] != kept:
                left_out[split_of[place]].append(place)
    return dict(left_out)


def describe_copies(
    found: FoundImages, splits: Splits, copies: Sequence[Sequence[Place]], left_out: dict[str, list[Place]]
) -> list[str]:
    """What people should know about copies, a sentence each."""
    told = [
        f"left out as copies of held-out images (the same pixels): {len(places)} of {len(splits[split][1])} {split} images: "
        f"{_names(found, places)}"
        for split, places in left_out.items()
    ]
    split_of, gone = _split_of(splits), {place for places in left_out.values() for place in places}
    groups = [[place for place in group if place in split_of and place not in gone] for group in copies]
    together = Counter(split_of[group[0]] for group in groups for _ in group[1:])
    if together:
        counts = ", ".join(f"{count} in {split}" for split, count in together.items())
        told.append(f"copies of other images in the same split: {sum(together.values())} ({counts})")
    ambiguous = [group for group in copies if len({found.labels[split][number] for split, number in group}) > 1]
    if ambiguous:
        told.append(f"images with copies in another class: {len(ambiguous)}, such as {_names(found, ambiguous[0])}")
    return told


def _split_of(splits: Splits) -> dict[Place, str]:
    return {(source, number): split for split, (source, numbers) in splits.items() for number in numbers}


def _names(found: FoundImages, places: Sequence[Place]) -> str:
    names = [found.images[split][number].name for split, number in places[:3]]
    return ", ".join(names) + (", .." if len(places) > 3 else "")
