"""The config of weights of Microsoft's code or of timm: from their shapes, from buffers beside them, from timm's config."""

# C channels, N tokens of a window, nW windows, wh ww window

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .configuration_swin_hf import SwinHfConfig, named_classes
from .weight_files import ConversionError, WeightFiles

# timm names its models after window and image size: window8_256, or window12to16_192to256 for one fine-tuned at another size.
TIMM_SIZES = re.compile(r"window(\d+)(?:to(\d+))?_(\d+)(?:to(\d+))?")
# Arguments that a timm model may have been built with. None: any value; the weights tell it, or it changes no output.
TIMM_ARGUMENTS = {
    **dict.fromkeys(("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depths", "num_heads", "window_size")),
    **dict.fromkeys(("mlp_ratio", "qkv_bias", "pretrained_window_sizes", "act_layer", "weight_init", "strict_img_size")),
    **dict.fromkeys(("dynamic_img_size", "drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")),
    "global_pool": ("avg",),
    "always_partition": (False,),
    "head_dim": (None,),
}


@dataclass(frozen=True, kw_only=True)
class SourceSizes:
    """Sizes of the model that the weights belong to, in pixels and patches, for files that do not contain them.

    pretrained_window_sizes: V2, for each stage: the window that its position network was trained with, if it is another.
    """

    image_size: int | None = None
    window_size: int | None = None
    pretrained_window_sizes: list[int] | None = None


def original_config(source: dict[str, torch.Tensor], files: WeightFiles, sizes: SourceSizes) -> SwinHfConfig:
    """The config for weights with the names of the original code, from their shapes and from timm's `config.json`.

    Raises:
        ConversionError: a size is neither in the files nor in `sizes`; the message says what to give.
    """
    blocks = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight", name) for name in source]
    counted = [(int(found[1]), int(found[2])) for found in blocks if found]
    depths = [1 + max(block for own, block in counted if own == stage) for stage in sorted({stage for stage, _ in counted})]
    first = [f"layers.{stage}.blocks.0" for stage in range(len(depths))] or ["layers.0.blocks.0"]
    version = 2 if f"{first[0]}.attn.logit_scale" in source else 1
    try:
        heads = ".attn.logit_scale" if version == 2 else ".attn.relative_position_bias_table"
        num_heads = [source[block + heads].shape[0 if version == 2 else 1] for block in first]
        dims = [len(source[f"{block}.norm1.weight"]) for block in first]
        patch = tuple(source["patch_embed.proj.weight"].shape[2:])
        mlp_widths = [(len(source[f"{block}.mlp.fc1.weight"]), dim) for block, dim in zip(first, dims)]
    except KeyError as error:
        raise ConversionError(f"{files.name} must be a whole Swin of timm or Microsoft's code, but lacks {error}") from error
    if dims != [dims[0] * 2**stage for stage in range(len(dims))]:
        raise ConversionError(f"{files.name} must double its channels in every stage, got {dims}")
    arguments = timm_arguments(files, TIMM_ARGUMENTS)
    windows, units = _windows(source, files, sizes, version, patch)
    return SwinHfConfig(
        version=version,
        image_size=_image_size(source, files, sizes, patch),
        patch_size=patch[0] if patch[0] == patch[1] else patch,
        num_channels=source["patch_embed.proj.weight"].shape[1],
        embed_dim=dims[0],
        depths=depths,
        num_heads=num_heads,
        window_size=max(windows),
        pretrained_window_sizes=units,
        mlp_ratio=ratio_of(mlp_widths, arguments.get("mlp_ratio")),
        qkv_bias=f"{first[0]}.attn.{'q_bias' if version == 2 else 'qkv.bias'}" in source,
        use_absolute_embeddings="absolute_pos_embed" in source,
        hidden_act=arguments.get("act_layer") or "gelu",
        **class_names(files),
    )


def timm_arguments(files: WeightFiles, expressible: dict[str, tuple | None]) -> dict[str, Any]:
    """The arguments that timm's `config.json` says the model was built with.

    expressible: the values that our models can express by the name of an argument, or None for any.

    Raises:
        ConversionError: there is another argument or value.
    """
    arguments = files.config.get("model_args") or {}
    for name, value in arguments.items():
        allowed = expressible.get(name, ())
        if allowed is not None and value not in allowed:
            raise ConversionError(f"{files.name} was built with {name}={value}, which cannot be expressed")
    return arguments


def ratio_of(widths: Iterable[tuple[int, int]], told: float | None = None) -> float:
    """The ratio by which all hidden widths are `int(ratio * dim)`: `told` if it is such a ratio.

    widths: hidden channels and channels of the stage. If there is no such ratio, the model does not fit them, which the shapes
    of its weights show.
    """
    widths = set(widths)
    least, above = max(hidden / dim for hidden, dim in widths), min((hidden + 1) / dim for hidden, dim in widths)
    fits = (
        ratio
        for ratio in (told, least, (least + above) / 2)
        if isinstance(ratio, int | float) and all(int(ratio * dim) == hidden for hidden, dim in widths)
    )
    return next(fits, least)


def class_names(files: WeightFiles) -> dict[str, Any]:
    """What a config says of the classes that timm's `config.json` names; nothing if it names none."""
    names = files.config.get("label_names") or (files.config.get("pretrained_cfg") or {}).get("label_names")
    return named_classes(names) if names else {}


def _timm_windows(files: WeightFiles) -> tuple[int | list[int] | None, int | None, int | None]:
    """Window of a timm model, and window and image size of its pretraining if they differ; None if not in `config.json`."""
    arguments = files.config.get("model_args") or {}
    found = TIMM_SIZES.search(files.config.get("architecture", ""))
    window, to_window, image, _ = (int(size) if size else None for size in (found.groups() if found else [None] * 4))
    pretrained = (window, image) if to_window else (None, None)
    return arguments.get("window_size") or to_window or window, *pretrained


def timm_image_size(files: WeightFiles) -> int | list[int] | None:
    """In pixels, height and width where they differ; None if timm's `config.json` does not tell."""
    input_size = (files.config.get("pretrained_cfg") or {}).get("input_size")  # (channels, height, width)
    told = (files.config.get("model_args") or {}).get("img_size") or (input_size[1] if input_size else None)
    if told is None or isinstance(told, int):
        return told
    return told[0] if told[0] == told[1] else list(told)


def _windows(
    source: dict[str, torch.Tensor], files: WeightFiles, sizes: SourceSizes, version: int, patch: tuple[int, int]
) -> tuple[list[int], list[int] | None]:
    """Side of the window of each stage, or one for all; in V2 also of the window of its pretraining."""
    if version == 1:
        tables = [weight for name, weight in source.items() if name.endswith("relative_position_bias_table")]
        return [(math.isqrt(len(table)) + 1) // 2 for table in tables], None
    offsets = [weight for name, weight in sorted(source.items()) if name.endswith("blocks.0.attn.relative_coords_table")]
    if offsets:  # (1, 2wh-1, 2ww-1, 2), whose largest offset tells the unit
        windows = [(table.shape[1] + 1) // 2 for table in offsets]
        if sizes.window_size not in (None, max(windows)):
            raise ConversionError(
                f"{files.name} has windows of {max(windows)}, but source_sizes.window_size is {sizes.window_size}"
            )
        spans = [(8 ** table.max().item() - 1) / 8 for table in offsets]
        units = [round((window - 1) / span) + 1 if span else window for window, span in zip(windows, spans)]
        return windows, [0 if unit == window else unit for unit, window in zip(units, windows)]
    window, pretrained_window, pretrained_image = _timm_windows(files)
    window = sizes.window_size or window
    if isinstance(window, (list, tuple)) and len(set(window)) == 1:
        window = window[0]
    if not isinstance(window, int):
        raise ConversionError(f"{files.name} does not contain its window size; give source_sizes.window_size, 8 for instance")
    given = sizes.pretrained_window_sizes or (files.config.get("model_args") or {}).get("pretrained_window_sizes")
    num_stages = len(set(re.findall(r"^layers\.(\d+)\.", "\n".join(source), re.MULTILINE)))
    if given is None and pretrained_window:
        given = [min(pretrained_window, pretrained_image // patch[0] // 2**stage) for stage in range(num_stages)]
    return [window], list(given) if given and any(given) else None


def assumed(files: WeightFiles, source: Iterable[str], sizes: SourceSizes) -> str:
    """What had to be assumed about the model, in words; empty if the file contains all that matters."""
    names = list(source)
    is_second = any(name.endswith(".attn.logit_scale") for name in names)
    told = any(name.endswith("relative_coords_table") for name in names) or "architecture" in files.config
    if is_second and not told and sizes.pretrained_window_sizes is None:
        return (
            "the windows of the pretraining are unknown: it is assumed that the position networks were trained with the "
            "present ones; if not, give source_sizes.pretrained_window_sizes"
        )
    return ""


def _image_size(
    source: dict[str, torch.Tensor], files: WeightFiles, sizes: SourceSizes, patch: tuple[int, int]
) -> int | list[int]:
    """As it was given, or from timm's config, from the masks of shifted windows (nW, N, N) or from absolute positions."""
    if told := sizes.image_size or timm_image_size(files):
        return told
    masks = {int(name.split(".")[1]): weight for name, weight in source.items() if name.endswith(".attn_mask")}
    stage, mask = min(masks.items(), default=(0, None))
    if mask is not None and math.isqrt(mask.shape[0]) ** 2 == mask.shape[0]:  # other images are not square
        return math.isqrt(mask.shape[0]) * math.isqrt(mask.shape[1]) * 2**stage * patch[0]
    if "absolute_pos_embed" in source:
        return math.isqrt(source["absolute_pos_embed"].shape[1]) * patch[0]
    raise ConversionError(f"{files.name} does not contain its image size; give source_sizes.image_size, 224 for instance")


def map_size(config: SwinHfConfig, stage: int) -> tuple[int, int]:
    """Size (height, width) of a stage's map for an image of the config's size."""
    pixels = zip(config.image_height_width, config.patch_height_width)
    return tuple(-(-size // (patch * 2**stage)) for size, patch in pixels)


def difference_to_timm(config: SwinHfConfig) -> str:
    """Where and how timm's Swin differs from all others at the config's image size; empty if it does not."""
    for stage in range(len(config.depths)):
        lengths, window = map_size(config, stage), config.stage_window(stage)
        spanned = [length <= side for length, side in zip(lengths, window)]
        if any(length % min(side, length) for length, side in zip(lengths, window)):
            return (
                f"stage {stage} a map of {lengths[0]} x {lengths[1]} is not a whole number of windows of "
                f"{window[0]} x {window[1]}; timm pads it after shifting, others before"
            )
        if spanned[0] != spanned[1] and config.depths[stage] > 1:
            return (
                f"stage {stage}, block 1, a window spans the map in one direction; timm shifts it in the other, others do not"
            )
    return ""


def stock_v2_difference(config: SwinHfConfig) -> str:
    """Where and how stock Swin V2 differs from ours at the config's image size; empty if it does not."""
    for stage in range(len(config.depths)):
        rows, columns = config.stage_window(stage)
        if config.version == 2 and rows != columns:
            return (
                f"stage {stage}, block 0 must have a square window for images of {config.image_size}, got {rows} x {columns}, "
                "cut to its map"
            )
    return ""


def stage_and_block(name: str) -> tuple[int, int]:
    """Those that a weight with this name belongs to."""
    stage, block = (int(part) for part in name.split(".") if part.isdigit())
    return stage, block


def downsampling_moved(name: str, by: int) -> str:
    """Name of a weight where the downsampling between two stages belongs to another one; other names stay as they are.

    by: 1 from the end of a stage, as in the original code, to the beginning of the next, as in timm; -1 back.
    """
    return re.sub(r"\b(layers|stages)\.(\d+)\.downsample\.", lambda at: f"{at[1]}.{int(at[2]) + by}.downsample.", name)


def windows_of_table(name: str, config: SwinHfConfig) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
    """Stage and block of a table of position biases, the model's window, and that window limited to the stage's map."""
    stage, block = stage_and_block(name)
    window = config.stage_window(stage)
    return stage, block, window, tuple(map(min, window, map_size(config, stage)))


def extended_table(table: torch.Tensor, fitted: tuple[int, int], window: tuple[int, int]) -> torch.Tensor:
    """V1 position biases of a window cut to a small map, ((2wh-1) * (2ww-1), h), as those of the whole window.

    Offsets that do not occur in the cut window get the bias of the nearest one that does.
    """
    channels_first = table.view(1, *(2 * side - 1 for side in fitted), -1).permute(0, 3, 1, 2)
    top, left = (side - own for side, own in zip(window, fitted))
    padded = torch.nn.functional.pad(channels_first.float(), (left, left, top, top), mode="replicate")
    return padded.permute(0, 2, 3, 1).reshape(-1, table.shape[1]).to(table.dtype)
