"""Pull from a private and from a gated repository with one token after the other, each time with an empty cache.

tokens: by what they are. A token that is False is none.
"""

import itertools

from prelude import GIVEN, attempt

from swin_hf import SwinHfConfig, SwinHfForImageClassification

numbers = itertools.count()


def pull(name: str, kind: type, token: str | bool) -> str:
    """Name of the class that was pulled."""
    return type(kind.from_pretrained(name, cache_dir=f"cache{next(numbers)}", token=token)).__name__


for who, token in GIVEN["tokens"].items():
    attempt(f"private, {who}", lambda token=token: pull("org/secret", SwinHfForImageClassification, token))
    attempt(f"gated, {who}", lambda token=token: pull("org/gated", SwinHfConfig, token))
