"""TinyViT (Wu et al. 2022, arXiv:2207.10666) as one of our models and back: its config, and the names of its weights.

Its files have the names of timm, or those of the authors' code, in which a downsampling ends a stage instead of beginning the
next one. Queries, keys and values of a head lie side by side in one matrix, and biases belong to distances |rows|, |columns|.
"""

# C channels, h heads, d head width, w side of a window

import math
import re
from collections.abc import Iterable
from typing import Any

import torch

from .configuration_swin_hf import SwinHfConfig
from .resizing_swin_hf import is_mirrored
from .weight_config import class_names, downsampling_moved, ratio_of, stage_and_block, timm_arguments, timm_image_size
from .weight_files import ConversionError, WeightFiles

TIMM_START, AUTHORS_START = "patch_embed.conv1.conv.weight", "patch_embed.seq.0.c.weight"
ARCHITECTURES = {  # names of timm, by the channels of the last stage; arguments make them any TinyViT
    320: "tiny_vit_5m_224",
    448: "tiny_vit_11m_224",
    576: "tiny_vit_21m_224",
}
FIXED = {  # what makes one of our models a TinyViT
    "version": 1,
    "patch_size": 4,
    "stem": "conv",
    "downsample": "conv",
    "shift_windows": False,
    "block_shifts": None,
    "padding": "tiny_vit",
    "norm_after_pooling": True,
    "norm": "layer",
    "layer_norm_eps": 1e-5,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "mask_padding": False,
    "use_absolute_embeddings": False,
}
# Arguments that timm's TinyViT may have been built with. None: any value; the weights tell it, or it changes no output.
TIMM_ARGUMENTS = {
    **dict.fromkeys(
        ("in_chans", "num_classes", "embed_dims", "depths", "num_heads", "window_sizes", "mlp_ratio", "act_layer")
    ),
    **dict.fromkeys(("mbconv_expand_ratio", "local_conv_size", "use_checkpoint", "img_size")),
    **dict.fromkeys(("drop_rate", "proj_drop_rate", "drop_path_rate")),
    "global_pool": ("avg",),
}
HEAD_DIM = 32  # channels of a head in all published models
PIXELS_OF_TOKEN = 32  # of the last stage
# Parts of names: here, and in timm.
NAMES = (
    (r"swin\.embeddings\.patch_embeddings\.convs\.0\.", "patch_embed.conv1."),
    (r"swin\.embeddings\.patch_embeddings\.convs\.1\.", "patch_embed.conv2."),
    (r"swin\.encoder\.layers\.", "stages."),
    (r"swin\.layernorm\.", "head.norm."),
    (r"classifier\.", "head.fc."),
    (r"\.expand\.", ".conv1."),
    (r"(?<!local_conv)\.depthwise\.", ".conv2."),
    (r"\.project\.", ".conv3."),
    (r"\.local_conv\.depthwise\.", ".local_conv."),
    (r"(conv\d?)\.norm\.", r"\1.bn."),
    (r"\.layernorm_before\.", ".attn.norm."),
    (r"\.layernorm_after\.", ".mlp.norm."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.relative_position_bias\.relative_position_bias_table", ".attn.attention_biases"),
)
JOINED = re.compile(r"\.attention\.([qkv])_proj\.")
# Parts of names in the authors' files, and in timm.
AUTHORS = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.", "stages."),
    (r"\.c\.", ".conv."),
    (r"^norm_head\.", "head.norm."),
    (r"^head\.(?=weight$|bias$)", "head.fc."),
)


def is_tiny_vit(plain: Iterable[str]) -> bool:
    """Whether weights with these names, without what wrappers put before them, are those of a TinyViT."""
    return bool({TIMM_START, AUTHORS_START} & set(plain))


def timm_names(plain: dict[str, str]) -> dict[str, str]:
    """Names in a file by their names in timm. plain: by those in the file, names without what wrappers put before them."""
    if AUTHORS_START not in plain.values():
        return {own: name for name, own in plain.items()}
    found = {}
    for name, own in plain.items():
        for theirs, timm in AUTHORS:
            own = re.sub(theirs, timm, own)
        found[downsampling_moved(own, 1)] = name
    return found


def timm_name(name: str) -> str:
    """Name in timm of a weight of `SwinHfForImageClassification`; queries, keys and values are parts of one."""
    name = JOINED.sub(".attn.qkv.", downsampling_moved(name, 1))
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def tiny_vit_config(source: dict[str, torch.Tensor], files: WeightFiles, image_size: int | None) -> SwinHfConfig:
    """The config for weights with timm's names, from their shapes.

    image_size: in pixels; None takes that of timm's `config.json`, or else the size of which a last window spans the map, as
        in all published models.

    Raises:
        ConversionError: they are not those of a whole TinyViT; the message says what is missing.
    """
    blocks = [match for name in source if (match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name))]
    depths: dict[int, int] = {}
    for match in blocks:
        depths[int(match[1])] = max(depths.get(int(match[1]), 0), 1 + int(match[2]))
    if not depths:
        raise ConversionError(f"{files.name} must be a whole TinyViT of timm or of its authors, but has no blocks of stages")
    try:
        biases = [source.get(f"stages.{stage}.blocks.0.attn.attention_biases") for stage in sorted(depths)]
        kinds = ["conv" if own is None else "window" for own in biases]
        if "window" not in kinds:
            raise ConversionError(f"{files.name} must have a stage with attention_biases, as TinyViT has, got none")
        windowed, first = kinds.index("window"), [f"stages.{stage}.blocks.0" for stage in sorted(depths)]
        dims = [
            len(source[f"{block}.conv3.bn.weight" if kind == "conv" else f"{block}.attn.norm.weight"])
            for block, kind in zip(first, kinds)
        ]
        windows = [0 if own is None else math.isqrt(own.shape[1]) for own in biases]
        widths: dict[str, list[tuple[int, int]]] = {"conv": [], "window": []}  # hidden channels, and those of the stage
        for block, kind, dim in zip(first, kinds, dims):
            widths[kind].append((len(source[f"{block}.{'conv1.conv' if kind == 'conv' else 'mlp.fc1'}.weight"]), dim))
        local_conv = source[f"{first[windowed]}.local_conv.conv.weight"].shape[-1]
        num_channels = source[TIMM_START].shape[1]
    except (KeyError, ValueError) as error:
        raise ConversionError(f"{files.name} must be a whole TinyViT of timm or of its authors, but lacks {error}") from error
    image_size = image_size or timm_image_size(files) or windows[-1] * PIXELS_OF_TOKEN
    if not image_size:
        raise ConversionError(f"{files.name} does not tell its image size; give source_sizes.image_size, 224 for instance")
    arguments = timm_arguments(files, TIMM_ARGUMENTS)
    return SwinHfConfig(
        **FIXED | {"hidden_act": arguments.get("act_layer") or FIXED["hidden_act"]},
        image_size=image_size,
        num_channels=num_channels,
        embed_dim=dims[0],
        stage_dims=dims,
        depths=[depths[stage] for stage in sorted(depths)],
        # A stage without attention has a number too, which means nothing.
        num_heads=[max(1, dim // HEAD_DIM) if own is None else own.shape[0] for own, dim in zip(biases, dims)],
        stage_blocks=kinds,
        stage_windows=[window or windows[windowed] for window in windows],
        window_size=windows[windowed],
        mlp_ratio=ratio_of(widths["window"], arguments.get("mlp_ratio")),
        mbconv_ratio=ratio_of(widths["conv"], arguments.get("mbconv_expand_ratio")) if widths["conv"] else 4.0,
        local_conv=local_conv,
        drop_path_rate=0.0,
        **class_names(files),
    )


def from_timm(name: str, weight: torch.Tensor, config: SwinHfConfig) -> torch.Tensor:
    """The value here, under `name`, of a weight of timm's TinyViT.

    Raises:
        ConversionError: its shape is no such weight's.
    """
    if joined := JOINED.search(name):
        stage, _ = stage_and_block(name)
        if weight.ndim < 1 or len(weight) % (3 * config.num_heads[stage]):
            rows = f"rows for queries, keys and values of {config.num_heads[stage]} heads"
            raise ConversionError(f"{timm_name(name)} must have {rows}, got shape {tuple(weight.shape)}")
        by_head = weight.unflatten(0, (config.num_heads[stage], 3, -1))  # (h, 3, d, ..)
        return by_head[:, "qkv".index(joined[1])].flatten(0, 1).clone()
    if name.endswith("relative_position_bias_table"):
        side = math.isqrt(weight.shape[-1]) if weight.ndim == 2 else 0
        if not side or side**2 != weight.shape[1]:
            rule = f"must hold a bias for each distance in a square window and head, got shape {tuple(weight.shape)}"
            raise ConversionError(f"{timm_name(name)} {rule}")
        distance = torch.arange(1 - side, side).abs()
        return weight.unflatten(1, (side, side))[:, distance[:, None], distance].flatten(1).t().contiguous()
    return weight


def tiny_vit_to_timm(weights: dict[str, torch.Tensor], config: SwinHfConfig) -> dict[str, torch.Tensor]:
    """Weights of a `SwinHfForImageClassification` by their names in timm's TinyViT.

    Raises:
        ConversionError: the biases of a block differ between an offset and its mirror image.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for ours, weight in weights.items():
        if ours.endswith("relative_position_bias_table"):
            weight = _biases_of_distances(weight, ours, config)
        parts.setdefault(timm_name(ours), []).append(weight)
    return {name: own[0] if len(own) == 1 else _joined(name, own, config) for name, own in parts.items()}


def _joined(name: str, weights: list[torch.Tensor], config: SwinHfConfig) -> torch.Tensor:
    """Queries, keys and values of timm's matrix, whose order in a model is theirs."""
    stage = int(re.match(r"stages\.(\d+)\.", name)[1])
    by_head = [weight.unflatten(0, (config.num_heads[stage], -1)) for weight in weights]  # (h, d, ..)
    return torch.stack(by_head, dim=1).flatten(0, 2)


def _biases_of_distances(table: torch.Tensor, name: str, config: SwinHfConfig) -> torch.Tensor:
    """Biases (h, w * w) for each distance, from a table ((2w-1) * (2w-1), h) for each offset.

    Raises:
        ConversionError: an offset and its mirror image have different ones.
    """
    stage, block = stage_and_block(name)
    side = config.stage_window(stage)[0]
    by_offset = table.unflatten(0, (2 * side - 1, 2 * side - 1))
    if not is_mirrored(by_offset):
        raise ConversionError(
            f"timm has no such TinyViT: stage {stage}, block {block} must have position biases that are the same for an "
            "offset and its mirror image, got others, as training makes them; keep it in the format of swin_hf"
        )
    return by_offset[side - 1 :, side - 1 :].flatten(0, 1).t().contiguous()


def difference_to_tiny_vit(config: SwinHfConfig) -> str:
    """What keeps a model from being a TinyViT of timm, in words; empty if nothing does."""
    for name, value in FIXED.items():
        if getattr(config, name) != value:
            return f"{name} must be {value!r}, got {getattr(config, name)!r}"
    kinds = ["conv" if config.is_convolutional(stage) else "window" for stage in range(len(config.depths))]
    if kinds != ["conv", *["window"] * (len(kinds) - 1)] or len(kinds) < 2:
        return f"stage_blocks must be 'conv' in the first stage and 'window' in the others, got {kinds}"
    if not config.local_conv:
        return "local_conv must be the size of a kernel, got 0"
    for stage, depth in enumerate(config.depths):
        rows, columns = config.stage_window(stage)
        if rows != columns:
            return f"stage {stage} must have square windows, got {rows} x {columns}"
        for block in range(depth):
            if difference := _difference_of_block(config, stage, block):
                return f"stage {stage}, block {block} must have {difference}"
    return ""


def _difference_of_block(config: SwinHfConfig, stage: int, block: int) -> str:
    widths, hidden_dim = config.block_widths(stage, block), config.dense_hidden_dim(stage)
    if widths.mlp_dim != hidden_dim:
        return f"{hidden_dim} hidden channels, got {widths.mlp_dim}"
    if config.is_convolutional(stage):
        return ""
    dense = config.stage_dim(stage) / config.num_heads[stage]
    if (widths.num_heads, widths.head_dim, widths.value_head_dim) != (config.num_heads[stage], dense, dense):
        got = f"{widths.num_heads} of {widths.head_dim} and {widths.value_head_dim}"
        return f"{config.num_heads[stage]} heads of {dense:g} channels, got {got}"
    return ""


def tiny_vit_arguments(config: SwinHfConfig) -> dict[str, Any]:
    """`architecture` and `model_args` of timm's `config.json`."""
    arguments = {
        "in_chans": config.num_channels,
        "embed_dims": [config.stage_dim(stage) for stage in range(len(config.depths))],
        "depths": list(config.depths),
        "num_heads": [max(heads, 1) for heads in config.num_heads],  # of a convolutional stage the number means nothing
        "window_sizes": [config.stage_window(stage)[0] for stage in range(len(config.depths))],
        "mlp_ratio": config.mlp_ratio,
        "mbconv_expand_ratio": config.mbconv_ratio,
        "local_conv_size": config.local_conv,
    }
    return {"architecture": ARCHITECTURES.get(config.hidden_size, "tiny_vit_5m_224"), "model_args": arguments}
