"""Flags that the commands around pruning share."""

import argparse

from distill.pruning.targets import ROUND_TO, SCOPES
from edge.device.commands import positive
from edge.lower.recipes import RECIPES


def add_removal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scopes", default="bottleneck", help=f"what may be removed: {', '.join(SCOPES)}; bottleneck: the first four"
    )
    parser.add_argument("--round_to", type=positive, default=ROUND_TO, help="widths stay multiples of it")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    runnable = [name for name, recipe in RECIPES.items() if recipe.executable]
    parser.add_argument("--recipe", default="int8", choices=runnable, help="of programs")


def not_negative(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value
