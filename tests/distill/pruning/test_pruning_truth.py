"""A pruned model computes what the dense one does whose channels are masked, for every kind of model, scope and share."""

import copy

import pytest
import torch
from conftest import KINDS, TINY
from torch import nn

from distill.pruning.apply import apply_plan
from distill.pruning.importance import Importance, measure_importance
from distill.pruning.plan import PruningPlan, whole_plan
from distill.pruning.targets import SCOPES
from distill.pruning.units import Unit, plan_without, removal_order, units_of
from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfUperNetConfig,
)
from swin_hf.layers_swin_hf import SwinHfBlock

DEEPER = {"depths": [2, 3]}
MODELS = {
    **{name: choices | DEEPER for name, choices in KINDS.items()},
    "BatchNorm": {"norm": "batch", "norm_after_pooling": True} | DEEPER,
    "RMSNorm": {"norm": "rms", "use_absolute_embeddings": True} | DEEPER,
    "conv downsampling": {"stem": "conv", "downsample": "conv", "patch_size": 8, "image_size": 32, "local_conv": 3} | DEEPER,
    "V2, widths of blocks": {
        **{"version": 2, "block_num_heads": [[1], [2, 3]], "block_head_dim": [[6], [8, 3]], "stage_dims": [16, 24]},
        **{"block_value_head_dim": [[5], [3, 4]], "block_mlp_dim": [[24], [9, 40]]},
    },
}
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
EVERY = tuple(SCOPES)


class MaskedNorm(nn.Module):
    """A layer or RMS norm over the kept channels alone; the others become 0."""

    def __init__(self, norm: nn.Module, kept: list[int]):
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own, kept = self.norm, x[..., self.kept]
        if isinstance(own, nn.LayerNorm):
            kept = kept - kept.mean(-1, keepdim=True)
        normed = kept / (kept.square().mean(-1, keepdim=True) + own.eps).sqrt() * own.weight[self.kept]
        if getattr(own, "bias", None) is not None:
            normed = normed + own.bias[self.kept]
        return torch.zeros_like(x).index_copy(-1, torch.tensor(self.kept), normed)


def masked(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of the dense model in which everything that the plan drops is 0 or left out; written apart from the real code."""
    model = copy.deepcopy(model)
    encoder = next(part for part in model.modules() if type(part).__name__ == "SwinHfModel")
    embeddings, dropped = encoder.embeddings, []
    for stage, layers in zip(plan.stages, encoder.encoder.layers):
        total = layers.blocks[0]
        dim = total.mlp.fc1.in_features if isinstance(total, SwinHfBlock) else total.expand.conv.in_channels
        dropped.append(sorted(set(range(dim)) - set(stage.channels)))
    stem = embeddings.patch_embeddings
    if hasattr(stem, "convs"):
        for kept, conv in zip(plan.stem_channels, stem.convs[1:]):
            zero_inputs(conv.conv, kept)
        zero_outputs(stem.convs[-1], dropped[0])
    else:
        zero_rows(stem.projection, dropped[0])
        embeddings.norm = masked_norm(embeddings.norm, plan.stages[0].channels, dropped[0])
    if embeddings.position_embeddings is not None:
        embeddings.position_embeddings.data[..., dropped[0]] = 0
    for number, (stage, layers) in enumerate(zip(plan.stages, encoder.encoder.layers)):
        kept_blocks = {block.source: block for block in stage.blocks}
        for source, block in enumerate(layers.blocks):
            if source in kept_blocks:
                mask_block(block, kept_blocks[source], stage.channels, dropped[number])
            else:
                block.register_forward_hook(lambda module, inputs, outputs: (inputs[0], outputs[1]))
        if layers.downsample is None:
            continue
        after, channels = dropped[number + 1], plan.stages[number + 1].channels
        if hasattr(layers.downsample, "expand"):
            zero_inputs(layers.downsample.project.conv, stage.downsample_channels)
            zero_outputs(layers.downsample.project, after)
            continue
        zero_rows(layers.downsample.reduction, after)
        C = layers.downsample.reduction.in_features // 4
        joined = [copy_ * C + channel for copy_ in range(4) for channel in stage.channels]
        own = (channels, after) if layers.downsample.post_norm else (joined, sorted(set(range(4 * C)) - set(joined)))
        layers.downsample.norm = masked_norm(layers.downsample.norm, *own)
    if encoder.layernorm is not None:
        encoder.layernorm = masked_norm(encoder.layernorm, plan.stages[-1].channels, dropped[-1])
    for part in model.modules():
        if isinstance(part, SwinHfBackbone):
            for name, norm in part.hidden_states_norms.items():
                at = max(part.stage_names.index(name) - 1, 0)
                part.hidden_states_norms[name] = masked_norm(norm, plan.stages[at].channels, dropped[at])
    return model


def mask_block(block: nn.Module, kept, channels: list[int], dropped: list[int]) -> None:
    if not isinstance(block, SwinHfBlock):
        zero_inputs(block.project.conv, kept.hidden_channels)
        zero_outputs(block.project, dropped)
        return
    attention, values, scores = block.attention, [], []
    for head, own_scores, own_values in zip(kept.heads, kept.score_channels, kept.value_channels):
        scores += [head * attention.head_dim + channel for channel in own_scores]
        values += [head * attention.value_head_dim + channel for channel in own_values]
    zero_rows(attention.q_proj, sorted(set(range(attention.q_proj.out_features)) - set(scores)))
    zero_rows(attention.k_proj, sorted(set(range(attention.k_proj.out_features)) - set(scores)))
    zero_inputs(attention.o_proj, values)
    zero_rows(attention.o_proj, dropped)
    zero_inputs(block.mlp.fc2, kept.hidden_channels)
    zero_rows(block.mlp.fc2, dropped)
    block.layernorm_before = masked_norm(block.layernorm_before, channels, dropped)
    block.layernorm_after = masked_norm(block.layernorm_after, channels, dropped)
    if block.local_conv is not None:
        zero_outputs(block.local_conv.depthwise, dropped)


def masked_norm(norm: nn.Module, kept: list[int], dropped: list[int]) -> nn.Module:
    if not isinstance(norm, nn.BatchNorm1d):
        return MaskedNorm(norm, kept)
    norm.weight.data[dropped] = 0
    norm.bias.data[dropped] = 0
    return norm


def zero_rows(layer: nn.Module, rows: list[int]) -> None:
    layer.weight.data[rows] = 0
    if layer.bias is not None:
        layer.bias.data[rows] = 0


def zero_inputs(layer: nn.Module, kept: list[int]) -> None:
    layer.weight.data[:, sorted(set(range(layer.weight.shape[1])) - set(kept))] = 0


def zero_outputs(conv: nn.Module, dropped: list[int]) -> None:
    conv.norm.weight.data[dropped] = 0
    conv.norm.bias.data[dropped] = 0


def random_importance(model: nn.Module) -> Importance:
    """Scores that no weight decides; a head's are those of all its channels."""
    channels = {group: torch.rand_like(scores) for group, scores in measure_importance(model, criterion="magnitude").items()}
    depths = next(part for part in model.modules() if type(part).__name__ == "SwinHfModel").config.depths
    blocks = {(stage, block): float(torch.rand(())) for stage, depth in enumerate(depths) for block in range(depth)}
    return Importance(channels=channels, blocks=blocks)


def first_of(units: list[Unit], share: float) -> list[Unit]:
    """A share of the units, in the order of their removal."""
    return removal_order(units)[: round(share * len(units))]


def side_of(config: SwinHfConfig) -> int:
    return config.image_size


@pytest.mark.parametrize("scopes", [(scope,) for scope in SCOPES] + [EVERY], ids=[*SCOPES, "all"])
@pytest.mark.parametrize("choices", MODELS.values(), ids=MODELS)
def test_a_pruned_model_equals_the_masked_one(make_model, choices, scopes):
    model = make_model(**choices).double()  # V2 and batch norms magnify rounding; softmax stays in float32
    pixel_values = torch.randn(2, 3, side_of(model.config), side_of(model.config)).double()
    importance, last = random_importance(model), model.num_parameters() + 1
    for number, share in enumerate(SHARES):
        units = units_of(model.config, importance, scopes, round_to=(1, 3, 4)[number % 3])
        plan = plan_without(model.config, importance, first_of(units, share))
        pruned, expected = apply_plan(model, plan), masked(model, plan)(pixel_values).logits
        tolerance = 1e-5 * max(float(expected.abs().max()), 1.0)
        torch.testing.assert_close(pruned(pixel_values).logits, expected, atol=tolerance, rtol=0)
        assert SwinHfForImageClassification(pruned.config).state_dict().keys() == pruned.state_dict().keys()
        last = pruned.num_parameters()
    assert last < model.num_parameters() or scopes in (("heads",), ("scores",), ("values",))


@pytest.mark.parametrize("choices", MODELS.values(), ids=MODELS)
def test_nothing_removed_is_the_same_model(make_model, choices):
    model = make_model(**choices)
    same = apply_plan(model, whole_plan(model.config))
    assert same.config.to_dict() == model.config.to_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], weight), name


@pytest.mark.parametrize("choices", MODELS.values(), ids=MODELS)
def test_a_pruned_model_reloads_to_the_bit_and_its_plan_as_well(make_model, tmp_path, choices):
    model = make_model(**choices)
    importance = random_importance(model)
    plan = plan_without(model.config, importance, first_of(units_of(model.config, importance, EVERY, 1), 0.5))
    pruned = apply_plan(model, plan)
    pruned.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, side_of(model.config), side_of(model.config))
    reloaded = SwinHfForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(reloaded(pixel_values).logits, pruned(pixel_values).logits)
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def segmenter(backbone: SwinHfConfig, **head) -> SwinHfForSemanticSegmentation:
    config = {"hidden_size": 8, "auxiliary_channels": 8, "num_labels": 3} | head
    return SwinHfForSemanticSegmentation(SwinHfUperNetConfig(backbone_config=copy.deepcopy(backbone), **config))


def others(choices: dict) -> dict[str, nn.Module]:
    config = SwinHfConfig(**TINY | choices | {"out_features": ["stem", "stage1", "stage2"], "weight_init": "fan_in"})
    stride = config.token_height_width[0]
    masked_config = SwinHfConfig(**TINY | choices | {"encoder_stride": stride, "weight_init": "fan_in"})
    return {
        "backbone": SwinHfBackbone(config),
        "segmentation": segmenter(config),
        "segmentation, light": segmenter(config, decode_head="light"),
        "masked images": SwinHfForMaskedImageModeling(masked_config),
    }


@pytest.mark.parametrize("choices", [KINDS["V1"], KINDS["V2"], KINDS["TinyViT"] | {"norm_after_pooling": False}])
def test_models_with_other_heads_equal_the_masked_ones(choices):
    for model in others(choices | DEEPER).values():
        model = model.eval().double()  # V2's cosines of few channels magnify rounding; softmax stays in float32
        importance, config = random_importance(model), next(p for p in model.modules() if hasattr(p, "embeddings")).config
        plan = plan_without(config, importance, first_of(units_of(config, importance, EVERY, 1), 0.5))
        pixel_values = torch.randn(2, 3, side_of(config), side_of(config), dtype=torch.float64)
        pruned, dense = apply_plan(model, plan)(pixel_values), masked(model, plan)(pixel_values)
        pairs = [(pruned[0], dense[0])] if torch.is_tensor(dense[0]) else list(zip(pruned[0], dense[0]))
        if isinstance(model, SwinHfBackbone):
            names = [max(model.stage_names.index(name) - 1, 0) for name in model.out_features]
            pairs = [(own, other[:, plan.stages[at].channels]) for (own, other), at in zip(pairs, names)]
        for own, other in pairs:
            torch.testing.assert_close(own, other, atol=1e-6 * max(float(other.abs().max()), 1.0), rtol=0)


@pytest.mark.parametrize(
    "head",
    [{"auxiliary_in_channels": 32}, {"auxiliary_concat_input": True}, {"auxiliary_num_convs": 0, "auxiliary_channels": 32}],
)
def test_auxiliary_heads_of_every_kind_are_pruned_with_their_stage(head):
    backbone = SwinHfConfig(**TINY | {"out_features": ["stem", "stage1", "stage2"], "weight_init": "fan_in"})
    model = segmenter(backbone, **head).eval()
    importance = random_importance(model)
    units = units_of(backbone, importance, ("stages",), 4)
    plan = plan_without(backbone, importance, first_of(units, 0.5))
    pruned, labels = apply_plan(model, plan), torch.zeros(2, 16, 16, dtype=torch.int64)
    dense, pixel_values = masked(model, plan), torch.randn(2, 3, 16, 16)
    own, other = (each(pixel_values, labels=labels) for each in (pruned, dense))
    torch.testing.assert_close(own.logits, other.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(own.loss, other.loss, atol=1e-4, rtol=0)  # to which the auxiliary head adds
