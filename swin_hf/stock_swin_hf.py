"""Stock `swin` and `swinv2` checkpoints of transformers as ours: their config and the names of their weights."""

import re
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
STOCK_VERSIONS = {"swin": 1, "swinv2": 2}
# Buffers that every implementation computes from the config, and that some save.
DROPPED_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask", "attention_bias_idxs")

# Names inside a block: in files of the stock models, and here. Files of `swin` have the names that its modules had before
# transformers 5, whichever version wrote them; the modules of `swinv2` still have them. Newer names are the same as here.
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
# All names, as regular expressions and their replacements, applied in order: transformers' `key_mapping`.
STOCK_NAMES = {
    r"^swinv2\.": "swin.",
    r"^embeddings\.": "swin.embeddings.",  # models without a head, and backbones
    r"^encoder\.": "swin.encoder.",
    r"^layernorm\.": "swin.layernorm.",
    r"^backbone\.embeddings\.": "backbone.swin.embeddings.",
    r"^backbone\.encoder\.": "backbone.swin.encoder.",
} | {re.escape(stock): ours for stock, ours in BLOCK_NAMES}
# What distributed training, `torch.compile` and larger models put before names, of a Swin and of a UperNet over one.
WRAPPERS = (
    r"^(?:(?:module|_orig_mod|model|net|backbone|encoder)\.)+"
    r"(?=(?:swin|swinv2|embeddings|encoder|layernorm|classifier|decoder|hidden_states_norms)\.)"
)
WRAPPERS_OF_UPERNET = r"^(?:(?:module|_orig_mod|model|net|encoder)\.)+(?=(?:backbone|decode_head|auxiliary_head)\.)"


def is_stock(config: dict[str, Any], model_types: Collection[str] = STOCK_VERSIONS) -> bool:
    """Whether `config.json` is that of a stock Swin, or of a UperNet over one."""
    if config.get("model_type") == "upernet":
        backbone = config.get("backbone_config")
        return isinstance(backbone, dict) and is_stock(backbone, model_types)
    return config.get("model_type") in tuple(model_types)


def is_timm(config: dict[str, Any]) -> bool:
    """Whether `config.json` is timm's, whose type transformers adds as it reads it."""
    return "architecture" in config and config.get("model_type") in (None, "timm_wrapper")


def from_stock_config(config: dict[str, Any], owner: type) -> dict[str, Any]:
    """The fields of our config class `owner` from a stock `config.json`, for a Swin or for a UperNet over one.

    Fields that older versions of transformers wrote and none reads (`path_norm`, `layer_norm_epsilon`, ...) are left out.

    Raises:
        ValueError: it is a Swin's for the config of a UperNet, or the other way round.
    """
    if (config["model_type"] == "upernet") != ("backbone_config" in owner.sub_configs_defaults):
        kind = "UperNet" if "backbone_config" in owner.sub_configs_defaults else "Swin"
        raise ValueError(f"config.json must be a {kind}'s for {owner.__name__}, got model_type {config['model_type']}")
    kept = known_fields(config, owner)
    if config["model_type"] == "upernet":
        backbone = owner.sub_configs_defaults["backbone_config"].config_class
        return kept | {"backbone_config": from_stock_config(config["backbone_config"], backbone)}
    if kept.get("pretrained_window_sizes") and "depths" in kept:
        kept["pretrained_window_sizes"] = kept["pretrained_window_sizes"][: len(kept["depths"])]  # four zeros by default
    return kept | {"version": STOCK_VERSIONS[config["model_type"]]}


def known_fields(config: dict[str, Any], owner: type) -> dict[str, Any]:
    """The part of a `config.json` that the config class `owner` knows."""
    known = {field.name for field in fields(owner)} | {"num_labels", "out_features", "out_indices", "torch_dtype"}
    return {name: value for name, value in config.items() if name in known and name != "transformers_version"}


class ReadsStockConfigs:
    """A config that `from_pretrained` also reads from a stock `config.json`."""

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """The fields in a `config.json`, which may be a stock one.

        Raises:
            ValueError: it is timm's.
        """
        config, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if is_stock(config):
            config = from_stock_config(config, cls) | {"model_type": cls.model_type}
        elif is_timm(config):
            raise ValueError(
                f"{pretrained_model_name_or_path} must be a checkpoint of transformers to have a config, got timm's "
                f"{config['architecture']}; load the model, or convert it: python -m swin_hf.convert "
                f"{pretrained_model_name_or_path} FOLDER"
            )
        return config, unused


class ReadsStockWeights:
    """A model that `from_pretrained` also loads from a stock checkpoint, whatever names its weights have."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as every model of transformers does, also stock checkpoints, and a stock `config` given as an object."""
        given = kwargs.get("key_mapping")
        kwargs = cls.arguments_for_stock(pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if kwargs["key_mapping"] is not given:
            model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info
            model.__dict__.pop("_weight_conversions", None)  # with which it would be saved under the names in the checkpoint
        return loaded

    @classmethod
    def arguments_for_stock(cls, path, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keywords of `from_pretrained` with a stock `config` as one of ours, and the names that weights may have."""
        config, given = kwargs.get("config"), {}
        wrappers = {WRAPPERS_OF_UPERNET if "backbone_config" in cls.config_class.sub_configs_defaults else WRAPPERS: ""}
        if isinstance(config, PreTrainedConfig) and is_stock(config.to_dict()):
            given = config.to_dict()
            own = from_stock_config(given, cls.config_class)
            kwargs = kwargs | {"config": cls.config_class(**own, attn_implementation=config._attn_implementation)}
        if path is not None and is_stock(saved_config(path, kwargs) or given):
            return kwargs | {"key_mapping": wrappers | STOCK_NAMES}
        return {"key_mapping": wrappers} | kwargs


def saved_config(path, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a folder or repository, empty if there is none, for the keywords of a `from_pretrained`."""
    where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    return PreTrainedConfig.get_config_dict(path, **where)[0]
