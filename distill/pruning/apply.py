"""Structured pruning of a Swin: a plan says what is kept, and a new model of a smaller config holds exactly that.

The pruned model is an ordinary model: its config alone rebuilds it.
"""

# h heads, d head width

import copy
import re

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from distill.compress.channels import (
    axes_of,
    encoder_of,
    selected,
    stage_of,
)
from distill.pruning.plan import BlockPlan, PruningPlan, check_plan
from distill.pruning.targets import PruningError
from swin_hf.configuration_swin_hf import BLOCK_WIDTHS, SwinHfConfig
from swin_hf.modeling_swin_hf import SwinHfPreTrainedModel
from swin_hf.plain_layers_swin_hf import require_plain_layers
from swin_hf.segmentation_swin_hf import AUXILIARY_STAGE, SwinHfForSemanticSegmentation


def apply_plan(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A new model with only what the plan keeps; `model`, one of ours with any head, is not changed.

    Raises:
        PlanError: the plan is for another model.
        PruningError: layers were wrapped or quantized.
        NotOursError: the model is none of ours.
    """
    config = encoder_of(model).config
    if not isinstance(model, SwinHfPreTrainedModel | SwinHfForSemanticSegmentation):
        raise PruningError(f"the model must be one of swin_hf's own classes to be pruned, got {type(model).__name__}")
    require_plain_layers(model, "pruned", PruningError)
    check_plan(plan, config)
    pruned = of_config(model, pruned_config(config, plan))
    pruned.set_attn_implementation(model.config._attn_implementation)
    kept = kept_weights(model, plan, pruned)
    for name, weight in [*pruned.named_parameters(), *pruned.named_buffers()]:
        weight.data = weight.data.to(kept[name])  # the type and the device, which may differ from layer to layer
    pruned.load_state_dict(kept)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    for name, weight in pruned.named_parameters():
        weight.requires_grad_(_name_before(name, plan) not in frozen)
    return pruned.train(model.training)


def of_config(model: nn.Module, config: SwinHfConfig) -> nn.Module:
    """A new model with the same parts as `model`, whose encoder has this config."""
    if hasattr(model, "empty_copy"):
        return model.empty_copy(config)
    outer = copy.deepcopy(model.config)
    outer.backbone_config = config
    if outer.use_auxiliary_head:
        dim = config.stage_dim(stage_of(config.out_features[AUXILIARY_STAGE]))
        if outer.auxiliary_in_channels is not None:
            outer.auxiliary_in_channels = dim
        if outer.auxiliary_num_convs == 0:  # then the classifier reads the map itself
            outer.auxiliary_channels = dim
    return type(model)(outer)


def kept_weights(model: nn.Module, plan: PruningPlan, pruned: nn.Module) -> dict[str, torch.Tensor]:
    """The weights and statistics of the pruned model."""
    config, axes, state = encoder_of(model).config, axes_of(model), model.state_dict()
    kept = {}
    for name in pruned.state_dict():
        before = _name_before(name, plan)
        kept[name] = selected(state[before], axes.get(before, ()), lambda group: plan.kept(group, config))
    if config.version == 1:
        for name, layer in pruned.named_modules():
            if name.endswith(".attention"):
                before = model.get_submodule(_name_before(name, plan))
                if layer.head_dim != before.head_dim:  # whose scores are scaled by another factor
                    for value in dict(layer.q_proj.named_parameters()):
                        key = f"{name}.q_proj.{value}"
                        kept[key] = kept[key] * (layer.head_dim / before.head_dim) ** 0.5
    return kept


def _name_before(name: str, plan: PruningPlan) -> str:
    """The name that a weight or layer of the pruned model has in the model before."""

    def renumbered(place: re.Match) -> str:
        return f"{place[1]}{plan.stages[int(place[2])].blocks[int(place[3])].source}"

    return re.sub(r"(encoder\.layers\.(\d+)\.blocks\.)(\d+)", renumbered, name)


def pruned_config(config: SwinHfConfig, plan: PruningPlan) -> SwinHfConfig:
    """The config of a pruned model; fields that only say what the rules of the family say are left out."""
    dims = [len(stage.channels) for stage in plan.stages]
    widths = {name: [[own[name] for own in map(_widths, stage.blocks)] for stage in plan.stages] for name in BLOCK_WIDTHS}
    shifts = [[config.is_shifted(number, block.source) for block in stage.blocks] for number, stage in enumerate(plan.stages)]
    fields = {"depths": [len(stage.blocks) for stage in plan.stages], "embed_dim": dims[0], "stage_dims": dims}
    fields |= widths | {"block_shifts": shifts}
    pruned = changed(config, fields)
    for name in (*BLOCK_WIDTHS, "block_shifts", "stage_dims"):
        if getattr(config, name) is not None and name != "block_shifts":
            continue
        try:
            without = changed(config, fields | {name: None})
        except StrictDataclassError:  # no rule gives such widths
            continue
        if _shape(without) == _shape(pruned):
            fields, pruned = fields | {name: None}, without
    return pruned


def changed(config: SwinHfConfig, fields: dict[str, object]) -> SwinHfConfig:
    """A config with other values in some fields, and what is derived from them."""
    derived = ("num_layers", "stage_names")
    return SwinHfConfig.from_dict({name: value for name, value in config.to_dict().items() if name not in derived} | fields)


def _widths(block: BlockPlan) -> dict[str, int]:
    lengths = (len(own[0]) if own else 0 for own in (block.score_channels, block.value_channels))
    return dict(zip(BLOCK_WIDTHS, (len(block.heads), *lengths, len(block.hidden_channels))))


def _shape(config: SwinHfConfig) -> list:
    places = [(stage, block) for stage, depth in enumerate(config.depths) for block in range(depth)]
    return [
        [config.stage_dim(stage) for stage in range(len(config.depths))],
        [(config.block_widths(*place), config.is_shifted(*place)) for place in places],
    ]
