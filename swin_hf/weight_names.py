"""Names of weights in Microsoft's original code and in timm, whose newer versions differ from it in two places."""

import re
from collections.abc import Iterable

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
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", name)
    return re.sub(r"^head\.", "head.fc.", name)


def original_names(names: Iterable[str]) -> dict[str, str]:
    """Names in a file of weights, of any age and origin, by their names in the original code today.

    A SimMIM checkpoint has a Swin as its `encoder`; distributed training puts `module.` before all; early releases of V2
    called the position network `rpe_mlp`.
    """
    names = list(names)
    merging_begins_stages = any(".downsample." in name for name in names) and not any(
        re.search(r"(^|\.)layers\.0\.downsample\.", name) for name in names
    )
    found = {}
    for name in names:
        original = re.sub(r"^(module\.)?(encoder\.)?", "", name).replace(".rpe_mlp.", ".cpb_mlp.")
        original = re.sub(r"^head\.fc\.", "head.", original)
        if merging_begins_stages:
            original = re.sub(r"^layers\.(\d+)\.downsample\.", lambda at: f"layers.{int(at[1]) - 1}.downsample.", original)
        found[original] = name
    return found
