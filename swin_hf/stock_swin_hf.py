"""Checkpoints of the stock `swin` and `swinv2` models of transformers as ours: their config and the names of their weights."""

import re
from dataclasses import fields
from typing import Any

STOCK_VERSIONS = {"swin": 1, "swinv2": 2}
DROPPED_BUFFERS = (
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
)  # worked out from the config, here and there

# Names inside a block in files of the stock models, and here. Files of `swin` have the names that its modules bore before
# transformers 5, whichever version wrote them; `swinv2` bears them still. Newer names are those here.
BLOCK_NAMES = (
    (".attention.self.query.", ".attention.q_proj."),
    (".attention.self.key.", ".attention.k_proj."),
    (".attention.self.value.", ".attention.v_proj."),
    (".attention.self.logit_scale", ".attention.logit_scale"),
    (".attention.self.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (".attention.self.continuous_position_bias_mlp.", ".attention.relative_position_bias.continuous_position_bias_mlp."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
# All names, as regular expressions and what takes their place, one after the other: transformers' `key_mapping`.
STOCK_NAMES = {
    r"^swinv2\.": "swin.",
    r"^embeddings\.": "swin.embeddings.",  # models without a head, and backbones
    r"^encoder\.": "swin.encoder.",
    r"^layernorm\.": "swin.layernorm.",
    r"^backbone\.embeddings\.": "backbone.swin.embeddings.",
    r"^backbone\.encoder\.": "backbone.swin.encoder.",
} | {re.escape(stock): ours for stock, ours in BLOCK_NAMES}


def is_stock(config: dict[str, Any]) -> bool:
    """Whether `config.json` is that of a stock Swin."""
    return config.get("model_type") in STOCK_VERSIONS


def from_stock_config(config: dict[str, Any], owner: type) -> dict[str, Any]:
    """A stock Swin's `config.json` in the fields of our config class, `owner`.

    What older versions of transformers wrote and none reads (`path_norm`, `layer_norm_epsilon`, ...) is left out.
    """
    kept = known_fields(config, owner)
    if kept.get("pretrained_window_sizes") and "depths" in kept:
        kept["pretrained_window_sizes"] = kept["pretrained_window_sizes"][: len(kept["depths"])]  # four zeros by default
    return kept | {"model_type": "swin_hf", "version": STOCK_VERSIONS[config["model_type"]]}


def known_fields(config: dict[str, Any], owner: type) -> dict[str, Any]:
    """What of a `config.json` the config class `owner` knows."""
    known = {field.name for field in fields(owner)} | {"num_labels", "out_features", "torch_dtype"}
    return {name: value for name, value in config.items() if name in known and name != "transformers_version"}
