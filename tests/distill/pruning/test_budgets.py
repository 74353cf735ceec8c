"""Budgets: targets as users write them, plans that meet them, counts by hand, searches by measurement, and what cannot be."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import KINDS, TINY

from distill.compress.channels import HEADS, HIDDEN, SCORES, STAGE, VALUES, Group
from distill.pruning.apply import apply_plan
from distill.pruning.budgets import plan_pruning, require_reachable
from distill.pruning.costs import Costs
from distill.pruning.importance import Importance, measure_importance
from distill.pruning.plan import PlanError, PruningPlan, check_plan, whole_plan
from distill.pruning.targets import BOTTLENECK, PruningError, Target, TargetError, parse_scopes, parse_targets, steps_towards
from distill.pruning.units import Unit, plan_without, removal_order, units_of
from edge.compare.candidates import ProgramCost, ProgramCosts, lower_unchecked, random_classifier
from edge.compare.macs import count_macs
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfBackbone, SwinHfConfig, SwinHfForImageClassification


def share(measure, value):
    return Target(measure=measure, value=value, is_share=True)


def absolute(measure, value):
    return Target(measure=measure, value=value, is_share=False)


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("macs=0.5", [share("macs", 0.5)]),
        ("macs=0.5x, params=2M", [share("macs", 0.5), absolute("params", 2e6)]),
        ("macs=1.2G,latency=0.5x", [absolute("macs", 1.2e9), share("latency", 0.5)]),
        ("latency=0.5,latency_ms=5,size_mb=1.5", [share("latency", 0.5), absolute("latency_ms", 5), absolute("size_mb", 1.5)]),
        ("params=90000", [absolute("params", 90000)]),
        ("macs=1", [share("macs", 1)]),
    ],
)
def test_targets_are_read(text, targets):
    assert list(parse_targets(text)) == targets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flops=0.5", r"a target must be one of macs=.., params=.., latency=.., .* got 'flops=0.5'"),
        ("", "a target must be one of"),
        ("macs", "macs must be a share above 0 and up to 1, or a number with K, M or G, got ''"),
        *((f"macs={value}", f"got '{value}'") for value in ("0", "-0.5", "nan", "inf", "1.5", "half", "2x", "12")),
        ("latency=1.2", "latency must be a share"),
        ("latency_ms=0.5x", "latency_ms must be a positive number, got '0.5x'"),
        ("size_mb=1.5M", "size_mb must be a positive number, got '1.5M'"),
        ("latency=0.0005K", "latency must be a share"),
        ("macs=0.5,macs=0.4", "each target must be given once"),
    ],
)
def test_targets_that_cannot_be_read_are_explained(text, message):
    with pytest.raises(TargetError, match=message):
        parse_targets(text)


def test_scopes_are_read():
    assert parse_scopes("bottleneck") == BOTTLENECK
    assert parse_scopes("stages, hidden,stages") == ("stages", "hidden")
    with pytest.raises(TargetError, match="or bottleneck, joined by commas, got 'widths'"):
        parse_scopes("hidden,widths")


def test_steps_remove_equal_shares():
    steps = steps_towards(parse_targets("macs=0.125"), 8.0, 3)
    assert [targets[0].value for targets in steps] == pytest.approx([0.5, 0.25, 0.125])
    assert steps_towards(parse_targets("macs=0.5"), 0.7, 3) == [parse_targets("macs=0.5")]  # which costs less already


def uniform(config, **scores) -> Importance:
    model = SwinHfForImageClassification(config)
    found = {group: torch.rand_like(own) for group, own in measure_importance(model, criterion="magnitude").items()}
    blocks = {(stage, block): 1.0 + block for stage, depth in enumerate(config.depths) for block in range(depth)}
    return Importance(channels=found, blocks=blocks)


def costs_of(config, measure=None):
    return Costs(SwinHfForImageClassification, config, config.image_height_width, measure)


@pytest.mark.parametrize("text", ["macs=0.7", "macs=0.4,params=0.9", "params=0.5"])
@pytest.mark.parametrize("kind", KINDS)
def test_counted_targets_are_met_by_the_model_itself(make_config, kind, text):
    config = make_config(**KINDS[kind] | {"depths": [2, 2]})
    model, targets = SwinHfForImageClassification(config), parse_targets(text)
    achieved = plan_pruning(config, uniform(config), targets, costs_of(config), BOTTLENECK, 2)
    pruned = apply_plan(model, achieved.plan)
    example = torch.zeros(1, 3, config.image_size, config.image_size)
    found = {
        "macs": count_macs(pruned, example) / count_macs(model, example),
        "params": pruned.num_parameters() / model.num_parameters(),
    }
    excess = [found[target.measure] / target.value for target in targets]
    assert 0.97 <= max(excess) <= 1.03
    assert achieved.as_metrics()["macs_share"] == pytest.approx(found["macs"])
    assert achieved.costs["params"] == pruned.num_parameters()


def test_operations_are_those_counted_by_hand():
    config = SwinHfConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=2, num_labels=3)
    # 16 tokens in windows of 4: patches, q k v o, scores and context, MLP, classifier.
    attention = 4 * 16 * 8 * 8 + 2 * 16 * 4 * 8
    assert costs_of(config).of(config, "macs") == 16 * 48 * 8 + attention + 2 * 16 * 8 * 32 + 8 * 3
    heads = config.__class__.from_dict(config.to_dict() | {"block_num_heads": [[1]], "block_head_dim": [[4]]})
    assert costs_of(config).of(heads, "macs") == 16 * 48 * 8 + attention // 2 + 2 * 16 * 8 * 32 + 8 * 3


def unit(kind, score, size=1, place=(0, 0)):
    return Unit(scope=kind, kind=kind, place=place, score=score, size=size, removed=[0])


def test_kinds_are_removed_at_the_same_pace_and_each_by_importance():
    units = [unit("heads", 0.9), unit("hidden", 0.1, 8), unit("hidden", 0.2, 8), unit("heads", 0.3), unit("hidden", 0.5, 16)]
    order = removal_order(sorted(units, key=lambda own: own.score))
    assert [(own.kind, own.score) for own in order] == [
        ("hidden", 0.1),
        ("hidden", 0.2),
        ("heads", 0.3),
        ("hidden", 0.5),
        ("heads", 0.9),
    ]


def test_the_least_important_goes_first_and_something_stays(make_config):
    config = make_config()  # heads [2], [4, 4] of 8 channels, hidden channels [64], [128, 128]
    importance = uniform(config)
    hidden = Group(kind=HIDDEN, stage=1, block=1)
    importance.channels[hidden][:] = 1.0
    importance.channels[hidden][[5, 17, 90]] = torch.tensor([1e-3, 1e-4, 1e-5])
    units = [own for own in units_of(config, importance, ("hidden",), 3) if own.place == (1, 1)]
    assert units[0].size == 2 and set(units[0].removed) == {17, 90}  # 128 = 2 + 42 * 3
    assert 5 in units[1].removed and units[1].size == 3 and sum(own.size for own in units) == 125
    for scopes in (*((scope,) for scope in BOTTLENECK), ("stages",), ("blocks",)):
        plan = plan_without(config, importance, units_of(config, importance, scopes, 8))
        check_plan(plan, config)
        smallest = whole_plan(config) if scopes in (("scores",), ("values",)) else plan  # heads of 8 channels stay
        assert plan == smallest
    widths = [unit_.size for unit_ in units_of(config, importance, ("stages",), 8)]
    assert widths == [8, 8, 8, 8]  # 16 -> 8, 32 -> 8


def test_heads_of_equal_scores_differ_in_channels(make_config):
    config = make_config()
    importance = uniform(config)
    group = Group(kind=SCORES, stage=1, block=0)
    units = [own for own in units_of(config, importance, ("scores",), 4) if own.place == (1, 0)]
    assert len(units) == 1 and [len(own) for own in units[0].removed] == [4] * 4
    for head, removed in enumerate(units[0].removed):
        assert set(removed) == set(importance.channels[group][head].argsort()[:4].tolist())


def test_a_search_by_measurement_is_short_and_ends_near_the_target(make_config):
    config, measured = make_config(depths=[2, 4]), []
    counted = costs_of(config)

    def measure(own: SwinHfConfig) -> ProgramCost:
        measured.append(own)
        noise = 1 + 0.004 * math.sin(17 * len(measured))
        ratio = 0.2 + 0.8 * (counted.of(own, "macs") / counted.of(config, "macs")) ** 0.6
        return ProgramCost(latency_ms=5 * ratio * noise, ratio=ratio * noise, size_mb=ratio)

    for text, target in (("latency=0.6x", 0.6), ("latency_ms=4", 0.8), ("size_mb=0.7", 0.7)):
        measured.clear()
        costs = costs_of(config, measure)
        achieved = plan_pruning(config, uniform(config), parse_targets(text), costs, BOTTLENECK, 2)
        ratio = 0.2 + 0.8 * (counted.of(achieved.config, "macs") / counted.of(config, "macs")) ** 0.6
        assert ratio == pytest.approx(target, rel=0.03) and len(measured) <= 7
    with pytest.raises(PruningError, match="the target latency_ms=0.5 cannot be met: the smallest"):
        plan_pruning(config, uniform(config), parse_targets("latency_ms=0.5"), costs_of(config, measure), BOTTLENECK, 2)


def test_what_cannot_be_met_is_explained_with_what_can(make_config):
    config = make_config()
    with pytest.raises(PruningError, match=r"macs=0.05x cannot be met: .* costs \d+\.\d+ of it; give more scopes"):
        plan_pruning(config, uniform(config), parse_targets("macs=0.05"), costs_of(config))
    with pytest.raises(PruningError, match="macs=0.05x cannot be met"):
        require_reachable(costs_of(config), parse_targets("macs=0.05"), BOTTLENECK, 8)
    require_reachable(costs_of(config), parse_targets("macs=0.5"), BOTTLENECK, 8)
    with pytest.raises(PruningError, match=r"within 3%: the nearest shapes that were tried cost .* a smaller --round_to"):
        plan_pruning(config, uniform(config), parse_targets("macs=0.9"), costs_of(config), ("stages",))
    with pytest.raises(PruningError, match="latency is that of a lowered program, which this kind of model does not have"):
        plan_pruning(config, uniform(config), parse_targets("latency=0.5"), costs_of(config))
    bare = Importance(channels=uniform(config).channels)
    with pytest.raises(PruningError, match="'blocks' needs the importance of blocks, which is measured on images"):
        plan_pruning(config, bare, parse_targets("macs=0.5"), costs_of(config), ("blocks",))


def test_a_target_that_is_met_already_removes_nothing(make_config):
    config = make_config()
    achieved = plan_pruning(config, uniform(config), parse_targets("macs=1,params=9M"), costs_of(config))
    assert achieved.plan == whole_plan(config) and achieved.config.to_dict() == config.to_dict()


def test_programs_are_lowered_and_timed(make_config):
    config = make_config(depths=[1, 1], num_labels=3)
    smaller = make_config(depths=[1, 1], num_labels=3, block_mlp_dim=[[8], [16]])
    with ProgramCosts(config, RECIPES["fp32"], threads=1, repeats=20) as measure:
        own, other = measure(config), measure(smaller)
        assert measure(smaller) is other
    assert own.ratio == 1 and own.latency_ms > 0 and other.latency_ms > 0
    assert 0 < other.size_mb < own.size_mb


def test_plans_are_read_back_and_damage_is_named(make_config, tmp_path):
    config = make_config(stem="conv", downsample="conv", patch_size=4, image_size=32)
    importance, file = uniform(config), tmp_path / "plan.json"
    every = (*BOTTLENECK, "stages", "blocks")
    plan = plan_without(config, importance, removal_order(units_of(config, importance, every, 2))[:20])
    plan.save(file)
    assert PruningPlan.load(file) == plan
    text = json.loads(file.read_text())
    assert text["stages"][1]["blocks"][0]["source"] in (0, 1) and isinstance(text["stages"][0]["channels"], str)
    block = text["stages"][0]["blocks"][0] | {"source": "0"}
    wrong = json.dumps(text | {"stages": [text["stages"][0] | {"blocks": [block]}]})
    for damage in ("", "{", "[]", '{"format": "other"}', json.dumps(text | {"stages": [{}]}), wrong):
        file.write_text(damage)
        with pytest.raises(PlanError, match=r"plan\.json"):
            PruningPlan.load(file)
    with pytest.raises(PlanError, match="FileNotFoundError"):
        PruningPlan.load(tmp_path / "none.json")


def test_plans_for_other_models_are_refused(make_model):
    model, plan = make_model(), whole_plan(make_model().config)
    first, second = plan.stages

    def changed(stage=first, **fields):
        return dataclasses.replace(plan, stages=[dataclasses.replace(stage, **fields), second])

    block = first.blocks[0]
    cases = [
        (whole_plan(make_model(depths=[1, 1, 1], num_heads=[2, 2, 2]).config), "have 2 stages"),
        (whole_plan(make_model(embed_dim=32).config), "stage 0 must be different numbers below 16"),
        (changed(channels=[]), "stage 0 must keep something, got nothing"),
        (changed(channels=[3, 1]), "in ascending order, got 3,1"),
        (changed(blocks=[]), "the blocks of stage 0 must keep something"),
        (changed(blocks=[dataclasses.replace(block, heads=[0])]), "score_channels must keep as many channels of each head"),
        (
            changed(blocks=[dataclasses.replace(block, hidden_channels=[64])]),
            "stage 0, block 0: hidden channels must be differ",
        ),
    ]
    for wrong, message in cases:
        with pytest.raises(PlanError, match=message):
            apply_plan(model, wrong)


def test_plans_of_parts_can_be_applied_in_any_order_and_more_than_once(make_model):
    model = make_model()
    config, importance = model.config, uniform(model.config)

    def without(scope):
        return plan_without(config, importance, units_of(config, importance, (scope,), 4))

    pixels = torch.randn(2, 3, 16, 16)
    both = plan_without(config, importance, units_of(config, importance, ("hidden", "stages"), 4))
    expected = apply_plan(model, both)
    stages_last = apply_plan(model, without("hidden"))
    kept = without("stages")
    after = whole_plan(stages_last.config)
    stages_last = apply_plan(
        stages_last,
        dataclasses.replace(
            after, stages=[dataclasses.replace(own, channels=new.channels) for own, new in zip(after.stages, kept.stages)]
        ),
    )
    assert torch.equal(expected(pixels).logits, stages_last(pixels).logits)
    again = apply_plan(expected, whole_plan(expected.config))
    assert torch.equal(expected(pixels).logits, again(pixels).logits)


def test_weights_stay_frozen_and_modes_and_types_as_they_were(make_model):
    model = make_model().train().double()
    model.swin.encoder.layers[1].blocks[1].mlp.fc1.weight.requires_grad_(False)
    importance = Importance(channels=uniform(model.config).channels, blocks={(0, 0): 1.0, (1, 0): 0.1, (1, 1): 0.9})
    pruned = apply_plan(model, plan_without(model.config, importance, units_of(model.config, importance, ("blocks",))))
    assert pruned.config.depths == [1, 1] and pruned.training and pruned.dtype == torch.float64
    frozen = [name for name, weight in pruned.named_parameters() if not weight.requires_grad]
    assert frozen == ["swin.encoder.layers.1.blocks.0.mlp.fc1.weight"]
    assert pruned.config.block_shifts == [[False], [True]]  # the second block stays a shifted one
    assert model.swin.encoder.layers[1].blocks[1].shifted and pruned.swin.encoder.layers[1].blocks[0].shifted


def test_shifts_that_follow_the_rule_again_are_not_written(make_model):
    model = make_model(depths=[1, 4])

    def without_first(own):
        blocks = dict.fromkeys([(0, 0), (1, 1), (1, 2), (1, 3)], 1.0) | {(1, 0): 0.0}
        importance = Importance(channels=uniform(own.config).channels, blocks=blocks)
        return apply_plan(own, plan_without(own.config, importance, units_of(own.config, importance, ("blocks",))[:1]))

    once = without_first(model)
    assert once.config.block_shifts == [[False], [True, False, True]]
    assert without_first(once).config.block_shifts is None


def test_weights_keep_their_types_and_values(make_model):
    model = make_model().double()
    model.set_attn_implementation("eager")
    same = apply_plan(model, whole_plan(model.config))
    for name, weight in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], weight) and same.state_dict()[name].dtype == weight.dtype
    assert same.config._attn_implementation == "eager"
    mixed = make_model().bfloat16()
    mixed.classifier.float()
    pruned = apply_plan(mixed, whole_plan(mixed.config))
    assert pruned.classifier.weight.dtype == torch.float32 and pruned.dtype == torch.bfloat16


def test_blocks_that_a_backbone_does_not_build_are_not_removed():
    config = SwinHfConfig(**TINY | {"depths": [2, 3], "out_features": ["stage1"]})
    model = SwinHfBackbone(config).eval()
    importance = Importance(channels=uniform(config).channels, blocks={(0, 0): 0.1, (0, 1): 0.2})
    units = units_of(config, importance, ("blocks",))
    assert [(unit_.place, unit_.removed) for unit_ in units] == [((0, -1), [0])]
    assert apply_plan(model, plan_without(config, importance, units)).config.depths == [1, 3]


def test_models_of_others_around_our_encoder_are_refused(make_model):
    other = torch.nn.Sequential(make_model().swin)
    with pytest.raises(PruningError, match="must be one of swin_hf's own classes to be pruned, got Sequential"):
        apply_plan(other, whole_plan(make_model().config))


def test_steps_on_the_way_may_be_missed(make_config):
    config = make_config()
    targets = parse_targets("macs=0.9")
    with pytest.raises(PruningError, match="within 3%"):
        plan_pruning(config, uniform(config), targets, costs_of(config), ("stages",))
    achieved = plan_pruning(config, uniform(config), targets, costs_of(config), ("stages",), is_final=False)
    assert achieved.as_metrics()["macs_share"] < 0.9
    with pytest.raises(PruningError, match="within 3%"):
        require_reachable(costs_of(config), targets, ("stages",), 8)


def test_shares_are_of_all_that_a_scope_names(make_config):
    config = make_config()  # heads [2], [4, 4]: 10, of which 7 can be removed
    achieved = plan_pruning(config, uniform(config), parse_targets("params=0.75"), costs_of(config), ("heads", "hidden"))
    heads = sum(map(sum, achieved.config.block_num_heads))
    assert achieved.removed_shares["heads"] == pytest.approx(1 - heads / 10)
    hidden = sum(map(sum, achieved.config.block_mlp_dim))
    assert achieved.removed_shares["hidden"] == pytest.approx(1 - hidden / 320)


def test_greyscale_models_are_lowered_and_the_random_state_is_kept(make_config):
    config = make_config(num_channels=1, depths=[1, 1])
    state = torch.random.get_rng_state()
    model = random_classifier(config)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(weight.any() for weight in model.parameters())
    assert lower_unchecked(model, RECIPES["int8"]).num_delegates == 1


def test_groups_have_the_sizes_of_the_model(make_model):
    model = make_model()
    found = {group: tuple(scores.shape) for group, scores in measure_importance(model, criterion="magnitude").items()}
    assert found[Group(kind=STAGE, stage=1)] == (32,) and found[Group(kind=HIDDEN, stage=0)] == (64,)
    assert found[Group(kind=VALUES, stage=1, block=1)] == (4, 8) and found[Group(kind=HEADS, stage=1)] == (4,)
