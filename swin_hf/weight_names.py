"""Names of weights in Microsoft's original code and in timm, whose newer versions differ from it in two places."""

import re
from collections.abc import Iterable

from .tiny_vit_weights import AUTHORS_START, TIMM_START
from .weight_config import downsampling_moved
from .weight_files import ConversionError

# The first weights of a Swin in the original code, of a TinyViT, and of a Swin in transformers or here, where a model's own
# parts precede them.
ORIGINAL_STARTS = ("patch_embed.proj.weight", TIMM_START, AUTHORS_START)
OWN_STARTS = tuple(f"embeddings.patch_embeddings.{first}.weight" for first in ("projection", "convs.0.conv"))
OWN_PARTS = r"(^|(?<=\.))(swin|swinv2)\.$"
OWN_PARTS_OF_SEGMENTERS = r"(^|(?<=\.))backbone\.((swin|swinv2)\.)?$"

# Parts of names: here, and in the original code.
NAMES = (
    ("swin.embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("swin.embeddings.norm.", "patch_embed.norm."),
    ("swin.embeddings.position_embeddings", "absolute_pos_embed"),
    ("swin.embeddings.mask_token", "mask_token"),
    ("swin.encoder.layers.", "layers."),
    ("swin.layernorm.", "norm."),
    ("classifier.", "head."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.relative_position_bias.relative_position_bias_table", ".attn.relative_position_bias_table"),
    (".attention.relative_position_bias.continuous_position_bias_mlp.", ".attn.cpb_mlp."),
    (".attention.logit_scale", ".attn.logit_scale"),
    (".attention.o_proj.", ".attn.proj."),
)
# There, queries, keys and values are one matrix; V2 has separate biases for queries and values.
JOINED = {
    ".attention.q_proj.weight": (".attn.qkv.weight", 0),
    ".attention.k_proj.weight": (".attn.qkv.weight", 1),
    ".attention.v_proj.weight": (".attn.qkv.weight", 2),
}
JOINED_BIASES = {
    1: {
        ".attention.q_proj.bias": (".attn.qkv.bias", 0),
        ".attention.k_proj.bias": (".attn.qkv.bias", 1),
        ".attention.v_proj.bias": (".attn.qkv.bias", 2),
    },
    2: {".attention.q_proj.bias": (".attn.q_bias", None), ".attention.v_proj.bias": (".attn.v_bias", None)},
}


def original_name(name: str, version: int) -> tuple[str, int | None]:
    """Name in the original code of a weight of `SwinHfForImageClassification` or `...MaskedImageModeling`.

    Returned with the third of that weight which it is, or None for all of it.
    """
    third = None
    for ours, (theirs, part) in (JOINED | JOINED_BIASES[version]).items():
        if name.endswith(ours):
            name, third = name.removesuffix(ours) + theirs, part
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name, third


def timm_name(name: str) -> str:
    """Name in timm of a weight with this name in the original code.

    In timm, patch merging begins a stage instead of ending one, and the head is a module with a pool and a linear layer.
    """
    return re.sub(r"^head\.", "head.fc.", downsampling_moved(name, 1))


def without_prefix(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Names of weights by those in a file, without what wrappers of a Swin put before them; and names of another copy of it.

    Distributed training puts `module.` before names, `torch.compile` `_orig_mod.`, and larger models have a Swin as their
    `encoder.`, `backbone.` or `model.`: what precedes the patch embeddings precedes all weights of a Swin, and is removed
    where it does. Of a Swin and its moving average in one file, the average is taken.

    Raises:
        ConversionError: there are several Swins, or two weights have one name without the prefix.
    """
    names = list(names)
    own = OWN_PARTS_OF_SEGMENTERS if any("decode_head." in name for name in names) else OWN_PARTS
    prefixes = {re.sub(own, "", before) for before in _before(OWN_STARTS, names)} | _before(ORIGINAL_STARTS, names)
    averaged = sorted(prefix for prefix in prefixes if re.search(r"(^|[._])ema[._]", prefix))
    if len(averaged or prefixes) > 1:
        raise ConversionError(
            f"the weights must be of one Swin, got {len(prefixes)}, whose names begin with {', '.join(sorted(prefixes))}; "
            "save one of them without the others"
        )
    (prefix,) = averaged or prefixes or {""}
    rivals = tuple(other for other in prefixes if other not in (prefix, ""))
    whole = set(names)
    copies = [
        name for name in names if name.startswith(rivals) or (not name.startswith(prefix) and f"{prefix}{name}" in whole)
    ]
    if copies and not averaged:
        raise ConversionError(
            f"the weights must have different names without {prefix}, got {prefix}{copies[0]} and {copies[0]}"
        )
    return {name: name.removeprefix(prefix) for name in names if name not in copies}, copies


def _before(starts: Iterable[str], names: list[str]) -> set[str]:
    """What precedes these first weights in names."""
    ends = re.compile(rf"(^|\.)({'|'.join(map(re.escape, starts))})$")
    return {name[: found.start(2)] for name in names if (found := ends.search(name))}


def original_names(names: Iterable[str]) -> dict[str, str]:
    """Names in a file of weights, of any age and origin, by their names in the original code today.

    Early releases of V2 called the position network `rpe_mlp`.
    """
    plain, _ = without_prefix(names)
    merging_begins_stages = any(".downsample." in name for name in plain.values()) and not any(
        re.search(r"^layers\.0\.downsample\.", name) for name in plain.values()
    )
    found = {}
    for name, original in plain.items():
        original = re.sub(r"^head\.fc\.", "head.", original.replace(".rpe_mlp.", ".cpb_mlp."))
        if merging_begins_stages:
            original = downsampling_moved(original, -1)
        found[original] = name
    return found
