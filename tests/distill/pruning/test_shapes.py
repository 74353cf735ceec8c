"""Students of any size: scaled widths, a row of shapes without gaps, and the shape that meets a target."""

import itertools

import pytest
import torch

from distill.pruning.costs import Costs
from distill.pruning.search import MAX_PROGRAMS, MissedError, Search
from distill.pruning.shapes import family, scaled, shape_for
from distill.pruning.targets import PruningError, TargetError, parse_targets
from edge.compare.candidates import ProgramCost
from swin_hf import SwinHfForImageClassification
from swin_hf.presets_swin_hf import PRESETS

EDGE = ("swin_edge_small", "swin_edge_medium")
CONFIGS = [PRESETS["swin_edge_small"](num_labels=10, image_size=64, depths=[1, 1, depth, 1]) for depth in (1, 3)]


def costs_of(config, measure=None) -> Costs:
    return Costs(SwinHfForImageClassification, config, config.image_height_width, measure)


@pytest.mark.parametrize("factor", [0.3, 0.55, 1.0, 1.4])
@pytest.mark.parametrize("name", [*EDGE, "swin_tiny", "tiny_vit_5m"])
def test_widths_are_scaled_and_heads_keep_theirs(name, factor):
    config = PRESETS[name](num_labels=3)
    shape = scaled(config, factor)
    for stage, depth in enumerate(config.depths):
        assert abs(shape.stage_dim(stage) - factor * config.stage_dim(stage)) <= 8 and shape.stage_dim(stage) % 8 == 0
        for block in range(depth):
            own, before = shape.block_widths(stage, block), config.block_widths(stage, block)
            assert own.mlp_dim % 8 == 0 and abs(own.mlp_dim - factor * before.mlp_dim) <= 8
            if before.num_heads > 1:
                assert own.head_dim == before.head_dim and abs(own.num_heads - factor * before.num_heads) <= 1
            elif before.num_heads == 1:
                assert (own.num_heads, own.head_dim) == (1, shape.stage_dim(stage))
    with torch.device("meta"):
        assert SwinHfForImageClassification(shape).config.depths == config.depths


@pytest.mark.parametrize("factor", [0.2, 0.5, 0.86])
@pytest.mark.parametrize("name", [*EDGE, "swin_tiny"])
def test_thin_blocks_leave_the_residual_stream_as_it_is(name, factor):
    config = PRESETS[name](num_labels=3, num_heads=[1, 2, 4, 8], stage_dims=None, embed_dim=32)
    shape = scaled(config, 1.0, factor, 0.9)
    again = scaled(shape, 1.0)  # single heads, which some have become, stay as thin
    for stage, depth in enumerate(config.depths):
        assert shape.stage_dim(stage) == config.stage_dim(stage)
        for block in range(depth):
            own, before = shape.block_widths(stage, block), config.block_widths(stage, block)
            assert abs(own.mlp_dim - 0.9 * factor * before.mlp_dim) <= 8
            if before.num_heads > 1:
                assert own.head_dim == own.value_head_dim == 32 and abs(own.num_heads - factor * before.num_heads) <= 1
            elif before.num_heads == 1:
                assert own.num_heads == 1 and abs(own.head_dim - factor * 32) <= 8
            assert again.block_widths(stage, block) == own
    with torch.device("meta"):
        SwinHfForImageClassification(shape)


def test_a_row_of_shapes_has_no_gaps_and_thins_blocks_before_it_narrows():
    costs = costs_of(CONFIGS[0])
    row = family(CONFIGS, costs)
    macs = [costs.of(shape, "macs") for shape in row]
    assert macs == sorted(macs, reverse=True) and macs[0] > 10 * macs[-1]
    assert max(before / after for before, after in itertools.pairwise(macs)) < 1.2
    full, shallow = CONFIGS[1].stage_dim(3), costs.of(CONFIGS[0], "macs")
    kinds = [
        ("wider" if shape.stage_dim(3) > full else "narrower" if shape.stage_dim(3) < full else "thin", sum(shape.depths))
        for shape in row
    ]
    assert list(dict.fromkeys(kinds)) == [("wider", 6), ("thin", 6), ("thin", 4), ("narrower", 4)]
    assert min(cost for cost, kind in zip(macs, kinds) if kind == ("thin", 6)) > shallow


def test_a_row_computes_less_at_every_place_though_widths_are_rounded():
    args = {"num_labels": 10, "image_size": 64, "embed_dim": 44, "num_heads": [1, 2, 4, 8], "stage_dims": [44, 88, 176, 352]}
    configs = [PRESETS["swin_edge_small"](**args, depths=[1, 1, depth, 1]) for depth in (1, 2)]
    costs = costs_of(configs[0])
    macs = [costs.of(shape, "macs") for shape in family(configs, costs)]
    assert all(before > after for before, after in itertools.pairwise(macs))


@pytest.mark.parametrize("text", ["params=1M", "params=1.13M", "params=0.31M", "latency_ms=1"])
def test_the_shape_that_meets_a_target_is_found(text):
    counted = costs_of(CONFIGS[0])

    def measure(shape) -> ProgramCost:
        latency = 0.3 + 50e-9 * counted.of(shape, "macs")
        return ProgramCost(latency_ms=latency, ratio=1.0, size_mb=1.0)

    costs = costs_of(CONFIGS[0], measure)
    shape = shape_for(CONFIGS, parse_targets(text), costs)
    (target,) = parse_targets(text)
    assert costs.of(shape, target.measure) == pytest.approx(target.value, rel=0.03)


def test_targets_that_say_nothing_or_cannot_be_met_are_refused():
    with pytest.raises(TargetError, match="targets that are numbers, such as latency_ms=5, .* got macs=0.5x"):
        shape_for(CONFIGS, parse_targets("macs=0.5"), costs_of(CONFIGS[0]))
    with pytest.raises(PruningError, match="params=2000 cannot be met: the smallest model in reach costs .*--student_args"):
        shape_for(CONFIGS, parse_targets("params=2000"), costs_of(CONFIGS[0]))


class MeasuredRow:
    """Costs of a row of 100 places, each with 5 % fewer operations than the one before, and the places that were measured."""

    def __init__(self, latency_of):
        self.macs = [1e9 * 0.95**place for place in range(100)]
        self.latencies, self.measured = [latency_of(macs / 1e6) for macs in self.macs], []

    def are_measured(self, targets) -> bool:
        return True

    def of(self, place, measure) -> float:
        return self.macs[place]

    def excess(self, place, targets) -> float:
        self.measured.append(place)
        return targets[0].excess(self.latencies[place], 1.0)

    def search(self, wanted, start) -> Search:
        return Search(lambda place: place, 99, parse_targets(f"latency_ms={wanted}"), self, "give another", start)


@pytest.mark.parametrize(("floor", "power"), [(0.0, 1.0), (0.2, 0.8), (0.05, 0.6), (0.1, 1.1)])
@pytest.mark.parametrize("wanted_at", [3, 30, 60, 90])
@pytest.mark.parametrize("start", [0, 50, 99])
def test_a_search_begins_anywhere_and_lowers_few_programs(start, wanted_at, floor, power):
    row = MeasuredRow(lambda macs: floor + 0.02 * macs**power)
    wanted = row.latencies[wanted_at]
    place = row.search(wanted, start).place()
    assert row.latencies[place] == pytest.approx(wanted, rel=0.03)
    assert row.measured[0] == start and len(row.measured) == len(set(row.measured)) <= 7
    if start == 99:
        assert max(row.latencies[place] for place in row.measured) < 2.5 * wanted


def test_a_search_ends_with_the_largest_where_all_meet_the_target_and_with_the_smallest_where_none_does():
    row = MeasuredRow(lambda macs: 0.02 * macs)
    assert row.search(1000, start=99).place() == 0 and row.measured == [99, 0]
    row.measured.clear()
    assert row.search(1000, start=0).place() == 0 and row.measured == [0]
    row.measured.clear()
    with pytest.raises(PruningError, match="latency_ms=0.0001 cannot be met: the smallest model in reach costs 1246.43 of it"):
        row.search(0.0001, start=99).place()
    assert row.measured == [99]


@pytest.mark.parametrize("start", [0, 99])
@pytest.mark.parametrize("jump", [20, 47, 80])
def test_a_search_finds_what_lies_beside_a_jump_of_the_costs(jump, start):
    """As of programs whose weights no longer fit into a cache: a line through two places on one side of it leads nowhere."""
    row = MeasuredRow(lambda macs: 0.01 * macs)
    row.latencies = [latency * (2.0 if place < jump else 1.0) for place, latency in enumerate(row.latencies)]
    for wanted_at in (jump - 2, jump - 1, jump, jump + 1):
        row.measured.clear()
        assert row.search(row.latencies[wanted_at], start).place() == wanted_at
        assert len(row.measured) <= 10
    row.measured.clear()
    with pytest.raises(MissedError, match="the nearest shapes that were tried cost ") as missed:
        row.search(1.4 * row.latencies[jump], start).place()
    assert missed.value.before == jump - 1 and {jump - 1, jump} <= set(row.measured) and len(row.measured) <= MAX_PROGRAMS


@pytest.mark.parametrize("start", [0, 99])
def test_a_search_in_a_row_whose_costs_fall_in_teeth_meets_every_target(start):
    row = MeasuredRow(lambda macs: 0.02 * macs**0.8)
    row.latencies = [latency * (1 + 0.02 * (place % 10)) for place, latency in enumerate(row.latencies)]
    for wanted in row.latencies[1:]:
        row.measured.clear()
        assert row.latencies[row.search(wanted, start).place()] == pytest.approx(wanted, rel=0.03)
        assert len(row.measured) <= 10


def test_a_search_gives_up_where_costs_hardly_change():
    row = MeasuredRow(lambda macs: 0.9)
    row.latencies[0] = 1.2
    with pytest.raises(PruningError, match="not met within 3% by 12 programs, the nearest of them costs 0.900 of it"):
        row.search(1.0, start=99).place()
    assert len(row.measured) == MAX_PROGRAMS


def test_the_shape_before_a_gap_is_known_though_two_beyond_it_are_nearer():
    """What costs less on both sides of the gap: a search that begins at 0 is no help to whom wants what lies in it."""
    shapes = [PRESETS["swin_edge_small"](num_labels=3, image_size=64, mbconv_ratio=ratio) for ratio in (6, 5, 4, 3, 2, 1)]
    latencies = dict(zip((shape.to_json_string() for shape in shapes), (9.0, 8.0, 7.0, 4.8, 4.7, 4.6)))

    def measure(shape) -> ProgramCost:
        return ProgramCost(latency_ms=latencies[shape.to_json_string()], ratio=1.0, size_mb=1.0)

    costs = costs_of(shapes[0], measure)
    for wanted in (5.0, 5.6, 6.5):
        search = Search(shapes.__getitem__, len(shapes) - 1, parse_targets(f"latency_ms={wanted}"), costs, "give another")
        with pytest.raises(MissedError, match="the nearest shapes that were tried cost ") as missed:
            search.place()
        assert missed.value.before == 2


def test_a_search_that_falls_between_two_shapes_names_both():
    small, large = (PRESETS["swin_edge_small"](num_labels=3, image_size=64, depths=[1, 1, depth, 1]) for depth in (1, 9))
    search = Search([large, small].__getitem__, 1, parse_targets("params=1.5M"), costs_of(large), "give another")
    with pytest.raises(PruningError, match=r"within 3%: .* tried cost 0\.\d+ and 1\.\d+ of it; .* or give another"):
        search.place()
