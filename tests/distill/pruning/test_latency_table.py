"""Latency tables: parts by hand, prices that made the times are found again, refusals, files, and pruning by a table."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import PLAIN_PROCESSOR

from distill.latency import main as latency
from distill.prune import main as prune
from distill.pruning.budgets import plan_pruning
from distill.pruning.costs import Costs
from distill.pruning.importance import Importance, measure_importance
from distill.pruning.latency_table import (
    AS_THEY_ARE,
    DERIVED_FROM,
    REST,
    LatencyTable,
    LatencyTableError,
    fit_table,
    parts_of,
)
from distill.pruning.sampling import different, shapes_of_family, shapes_of_pruning
from distill.pruning.shapes import BETWEEN, family, scaled, shape_for
from distill.pruning.table_files import read_shapes, read_times
from distill.pruning.targets import BOTTLENECK, parse_targets
from edge.compare.candidates import write_candidates
from edge.compare.macs import count_macs
from edge.device.artefact import sha256_of
from edge.device.bench import bench_in_turns
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfConfig, SwinHfForImageClassification
from swin_hf.presets_swin_hf import PRESETS

SIZES = {  # what a table's shapes may differ in
    *("embed_dim", "stage_dims", "depths", "num_heads", "mlp_ratio", "mbconv_ratio", "block_shifts"),
    *("block_num_heads", "block_head_dim", "block_value_head_dim", "block_mlp_dim"),
}
OF_NO_COST = {  # of one image: regularisation, weights and outputs that no program of a classifier has
    *("calibration_temperature", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "label_smoothing"),
    *("initializer_range", "weight_init", "zero_init_residual", "layer_norm_eps", "encoder_stride", "pretrained_window_sizes"),
    *("_out_features", "_out_indices"),
}


def test_every_field_of_a_config_is_known_to_the_table():
    inherited = {name for base in SwinHfConfig.__mro__[1:] for name in getattr(base, "__annotations__", {})}
    own = {field.name for field in dataclasses.fields(SwinHfConfig)} - inherited
    assert own <= {*AS_THEY_ARE, *DERIVED_FROM, *SIZES, *OF_NO_COST} and {*AS_THEY_ARE, *DERIVED_FROM} <= own


def test_parts_by_hand(make_config):
    sizes = {"image_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4]}
    widths = {"block_num_heads": [[2], [4, 3]], "block_head_dim": [[4], [4, 6]], "block_value_head_dim": [[4], [4, 2]]}
    parts = parts_of(make_config(**sizes, **widths, block_mlp_dim=[[32], [64, 40]]))
    # Windows of 16 positions: 4 in the map of 64 positions, and 1 in that of 16.
    expected = {"stage 0: blocks": 1, "stage 0: heads": 2, "stage 0: hidden layers": 64 * 2 * 8 * 32}
    expected |= {"stage 0: projections of attention": 64 * 8 * (2 * 8 + 2 * 8)}
    expected |= {"stage 0: products of attention": 4 * 2 * 16 * 16 * (4 + 4), "stage 0: downsampling": 16 * 32 * 16}
    expected |= {"stage 1: blocks": 2, "stage 1: heads": 7, "stage 1: hidden layers": 16 * 2 * 16 * (64 + 40)}
    expected |= {"stage 1: projections of attention": 16 * 16 * (2 * 16 + 2 * 16 + 2 * 18 + 2 * 6)}
    expected |= {"stage 1: products of attention": 16 * 16 * (4 * (4 + 4) + 3 * (6 + 2)), "stem": 64 * 12 * 8, REST: 1}
    numbers = (REST, "blocks", "heads")
    assert parts == pytest.approx({name: own / (1 if name.endswith(numbers) else 1e6) for name, own in expected.items()})


@pytest.mark.parametrize("kind", ["V1", "V2", "conv"])
def test_parts_are_all_that_is_computed(make_config, kind):
    more = {"V1": {}, "V2": {"version": 2}, "conv": {"stem": "conv", "downsample": "conv", "stage_blocks": ["conv", "window"]}}
    config = make_config(**more[kind])
    classifier = config.stage_dim(len(config.depths) - 1) * config.num_labels
    example = torch.zeros(1, config.num_channels, *config.image_height_width)
    macs = count_macs(SwinHfForImageClassification(config), example)
    counted = sum(value for part, value in parts_of(config).items() if not part.endswith(("blocks", "heads")) and part != REST)
    assert counted * 1e6 == pytest.approx(macs - classifier, abs=1)


def random_prices(config: SwinHfConfig) -> dict[str, float]:
    rng = np.random.default_rng(0)
    return {part: rng.uniform(0.1, 1) / max(amount, 1e-3) for part, amount in parts_of(config).items()}


def priced(prices: dict[str, float], config: SwinHfConfig) -> float:
    return sum(prices[part] * amount for part, amount in parts_of(config).items())


def uniform(config: SwinHfConfig) -> Importance:
    return Importance(channels=measure_importance(SwinHfForImageClassification(config), criterion="magnitude"))


def table_of(shapes: list[SwinHfConfig], prices: dict[str, float], noise=1.0) -> LatencyTable:
    return fit_table(shapes, (np.array([priced(prices, shape) for shape in shapes]) * noise).tolist(), "int8", 1, "a device")


def test_prices_that_made_the_times_explain_other_shapes(make_config):
    config = make_config()
    prices = random_prices(config)
    shapes = different(shapes_of_pruning(config, BOTTLENECK, 2, seed=0), 40)
    assert shapes[0] == config and len(shapes) == 40
    smallest = {(widths.num_heads, widths.head_dim, widths.mlp_dim) for widths in [shapes[1].block_widths(1, 0)]}
    assert smallest == {(1, 2, 2)}
    table = table_of(shapes, prices)
    assert table.largest_error < 1e-6 and table.num_programs == 40 and "off by 0.0% in the median" in table.described()
    for other in different(shapes_of_pruning(config, BOTTLENECK, 2, seed=1), 6):
        assert table(other) == pytest.approx(priced(prices, other))


def test_the_error_is_that_of_programs_that_were_left_out(make_config):
    config = make_config()
    shapes = different(shapes_of_pruning(config, BOTTLENECK, 2, seed=0), 30)
    noise = np.random.default_rng(1).normal(1, 0.05, len(shapes))
    prices = random_prices(config)
    table = table_of(shapes, prices, noise)
    in_sample = [abs(table(shape) / (priced(prices, shape) * factor) - 1) for shape, factor in zip(shapes, noise)]
    assert np.median(in_sample) < table.median_error < 0.15 and max(in_sample) < table.largest_error
    assert all(price >= 0 for price in table.prices.values())


def test_what_no_program_had_is_refused(make_config):
    config = make_config()
    shapes = different(shapes_of_pruning(config, BOTTLENECK, 2, seed=0), 30)
    table = table_of(shapes, random_prices(config))
    with pytest.raises(
        LatencyTableError, match="with stage 1: blocks from 2 to 2 blocks, and this shape has 4; make one anew with"
    ):
        table(make_config(depths=[1, 4]))
    with pytest.raises(LatencyTableError, match=r"with stem from .* M MACs, and this shape has"):
        table(make_config(embed_dim=32))
    with pytest.raises(LatencyTableError, match=r"is for models with windows \[\[4, 4\], .*\], and this one has"):
        table(make_config(depths=[1, 2, 1], num_heads=[2, 4, 8]))
    with pytest.raises(LatencyTableError, match=r"is for models with image_size \[16, 16\], and this one has \[32, 32\]"):
        table(make_config(image_size=32))
    with pytest.raises(LatencyTableError, match="is for models with hidden_act 'gelu', and this one has 'relu'"):
        table(make_config(hidden_act="relu"))
    window = config.window_size
    assert table(make_config(window_size=[window, window], stage_windows=None)) == table(config)


def test_tables_that_cannot_be_made_or_read_are_refused(make_config, tmp_path):
    config = make_config()
    shapes = different(shapes_of_pruning(config, BOTTLENECK, 2, seed=0), 30)
    table = table_of(shapes, random_prices(config))
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json", "int8", 1) == table
    with pytest.raises(LatencyTableError, match="table of programs with --recipe int8, and --recipe is fp32"):
        LatencyTable.load(tmp_path / "table.json", "fp32", 1)
    with pytest.raises(LatencyTableError, match="table of programs with --threads 1, and --threads is 4"):
        LatencyTable.load(tmp_path / "table.json", "int8", 4)
    whole = json.loads((tmp_path / "table.json").read_text())
    damaged = ["", "[]", '{"format": "other"}', '{"format": "swin-hf latency table 1"}']
    damaged += [
        json.dumps(whole | change) for change in ({"architecture": []}, {"prices": {REST: "a"}}, {"amounts": {REST: [1]}})
    ]
    for text in damaged:
        (tmp_path / "damaged.json").write_text(text)
        with pytest.raises(LatencyTableError, match="is no latency table that can be read"):
            LatencyTable.load(tmp_path / "damaged.json", "int8", 1)
    with pytest.raises(LatencyTableError, match=r"made of \d+ programs or more, each with its latency, got 5 programs and 5"):
        fit_table(shapes[:5], [1.0] * 5, "int8", 1, "a device")
    with pytest.raises(LatencyTableError, match="positive numbers of milliseconds, got 0.0"):
        fit_table(shapes, [0.0] + [1.0] * 29, "int8", 1, "a device")
    with pytest.raises(LatencyTableError, match="must be of one architecture"):
        fit_table([*shapes[1:], make_config(hidden_act="relu")], [1.0] * 30, "int8", 1, "a device")


def test_targets_are_met_by_the_table_without_programs(make_config):
    config = make_config()
    prices = random_prices(config)
    table = table_of(different(shapes_of_pruning(config, BOTTLENECK, 2, seed=0), 30), prices)
    costs = Costs(SwinHfForImageClassification, config, config.image_height_width, table=table)
    for text, target in (("latency=0.7x", 0.7), (f"latency_ms={0.8 * priced(prices, config)}", 0.8)):
        achieved = plan_pruning(config, uniform(config), parse_targets(text), costs, BOTTLENECK, 2)
        assert priced(prices, achieved.config) == pytest.approx(target * priced(prices, config), rel=0.03)
        assert "a table of 30 programs on a device" in achieved.described()
        assert achieved.as_metrics()["latency_source"] == table.described()
    assert (
        "latency_source"
        not in plan_pruning(config, uniform(config), parse_targets("macs=0.7"), costs, BOTTLENECK, 2).as_metrics()
    )


def test_a_table_of_the_students_covers_all_that_auto_chooses_from():
    configs = [PRESETS["swin_edge_small"](num_labels=10, image_size=32, depths=[1, 1, depth, 1]) for depth in (1, 2)]
    prices = random_prices(configs[0])
    table = table_of(different(shapes_of_family(configs, seed=0), 44), prices)
    costs = Costs(SwinHfForImageClassification, configs[0], (32, 32), table=table)
    row = family(configs, costs)
    for shape in [*row, *(scaled(shape, 1.0, hidden_factor=BETWEEN) for shape in (row[0], row[-1]))]:
        assert table(shape) == pytest.approx(priced(prices, shape), rel=1e-3)
    target = 0.6 * priced(prices, configs[1])
    found = shape_for(configs, parse_targets(f"latency_ms={target}"), costs)
    assert priced(prices, found) == pytest.approx(target, rel=0.03)


def run(command, *arguments) -> int:
    return command([str(argument) for argument in arguments])


@pytest.fixture
def programs(make_model, tmp_path, monkeypatch, capsys):
    """A checkpoint and its programs, which are small texts with a manifest."""

    def write_candidates(folders, configs, recipe, processes):
        for folder, config in zip(folders, configs, strict=True):
            folder.mkdir()
            (folder / "edge.json").write_text(str(config.block_mlp_dim))
            yield f"sha of {folder.name}"

    monkeypatch.setattr("distill.pruning.table_files.write_candidates", write_candidates)
    make_model().save_pretrained(tmp_path / "model")
    PLAIN_PROCESSOR.save_pretrained(tmp_path / "model")
    assert run(latency, "programs", tmp_path / "model", tmp_path / "programs", "--round_to", 2) == 0
    assert "-> 23 programs in" in capsys.readouterr().out
    return tmp_path / "model", tmp_path / "programs"


def write_times(file, shapes, prices, threads=1, machine="a device"):
    rows = [
        {"artefact": f"C:\\{sha256}", "recipe": "int8", "sha256": sha256}
        | {"latency": [{"threads": threads, "p50_ms": priced(prices, shape)}]}
        for sha256, shape in shapes.items()
    ]
    file.write_text(json.dumps({"programs": rows, "machine": machine}))


def test_a_table_is_made_of_times_and_pruned_by(programs, image_folder, tmp_path, capsys):
    checkpoint, folder = programs
    times, more, table = (tmp_path / name for name in ("times.json", "more.json", "table.json"))
    shapes, recipe = read_shapes(folder)
    assert recipe == "int8" and len(shapes) == 23
    model = SwinHfConfig.from_pretrained(checkpoint)
    prices = random_prices(model)
    write_times(times, dict(list(shapes.items())[:9]), prices)
    write_times(more, dict(list(shapes.items())[9:]), prices)
    assert run(latency, "table", folder, times, more, table) == 0
    out = capsys.readouterr().out
    assert "off by 0.0% in the median" in out and "ms for each of M MACs" in out and "ms for each of heads" in out

    arguments = [checkpoint, tmp_path / "out", "--latency_table", table, "--round_to", 2, "--dataset", image_folder]
    assert run(prune, *arguments, "--target", "latency=0.8x") == 0
    assert f"by a table of {len(shapes)} programs on a device" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert figures["latency"] == pytest.approx(0.8, rel=0.03) and figures["latency_table"] == "table.json"
    pruned = SwinHfConfig.from_pretrained(tmp_path / "out")
    assert priced(prices, pruned) == pytest.approx(0.8 * priced(prices, model), rel=0.03)

    assert run(prune, checkpoint, tmp_path / "no", "--latency_table", table, "--target", "macs=0.8") == 2
    assert "must come with a target of latency or latency_ms, got macs=0.8" in capsys.readouterr().err
    arguments = [checkpoint, tmp_path / "no", "--latency_table", table, "--dataset", tmp_path / "none"]
    assert run(prune, *arguments, "--target", "latency=0.8x", "--scopes", "blocks", "--threads", 2) == 1
    assert "with --threads 1, and --threads is 2" in capsys.readouterr().err  # before the images, which are not there
    arguments = [checkpoint, tmp_path / "no", "--latency_table", table, "--dataset", image_folder]
    assert run(prune, *arguments, "--target", "latency=0.8x", "--scopes", "blocks") == 1
    assert "with stage 1: blocks from 2 to 2 blocks, and this shape has 1" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_bad_times_and_programs_are_refused(programs, tmp_path, capsys):
    checkpoint, folder = programs
    shapes, _ = read_shapes(folder)
    prices = random_prices(SwinHfConfig.from_pretrained(checkpoint))
    times, out = tmp_path / "times.json", tmp_path / "deep" / "table.json"

    def refused(message, *arguments):
        assert run(latency, *arguments) in (1, 2)
        assert message in capsys.readouterr().err and not out.exists()

    write_times(times, dict(list(shapes.items())[2:]), prices)
    refused(f"must have the times of all {len(shapes)} programs, got none of 2: they were not", "table", folder, times, out)
    write_times(times, shapes, prices)
    write_times(tmp_path / "more.json", shapes, prices, machine="another")
    refused("must be of one machine, got a device, another", "table", folder, times, tmp_path / "more.json", out)
    write_times(tmp_path / "more.json", shapes, prices, threads=4)
    refused("must be of one number of threads, got 1, 4", "table", folder, times, tmp_path / "more.json", out)
    refused("must be another folder than", "table", folder, times, times)
    refused("must lie outside", "table", folder, times, folder / "shapes.json")
    own = tmp_path / "own.json"
    own.write_text("{}")
    refused("TABLE must be a new file", "table", folder, times, own)
    refused("must be what `bench DIR/program* --threads 1 --json` printed", "table", folder, own, out)
    refused("must be what `python -m distill.latency programs` wrote", "table", tmp_path / "model", times, out)
    assert times.is_file() and own.read_text() == "{}"

    no = tmp_path / "no"
    refused("--num_programs must be", "programs", checkpoint, no, "--num_programs", 5)
    refused("different shapes, got 1", "programs", checkpoint, no, "--round_to", 512, "--scopes", "scores")
    refused(
        "--image_size must be left to the checkpoint, which has one, got 64", "programs", checkpoint, no, "--image_size", 64
    )
    refused("must be a checkpoint folder, a Hub id, a preset or auto", "programs", tmp_path / "none", no)
    refused("--round_to must be left out with auto, whose widths are multiples of 8", "programs", "auto", no, "--round_to", 16)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"depths": "x"}))
    refused("must be a checkpoint folder, a Hub id, a preset or auto", "programs", checkpoint, no)
    assert not no.exists()


def test_times_of_real_programs_are_read(tmp_path):
    sizes = {
        "image_size": 8,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 8,
        "depths": [1],
        "num_heads": [1],
        "num_labels": 3,
    }
    folders = [tmp_path / name for name in ("small", "large")]
    configs = [SwinHfConfig(**sizes, mlp_ratio=ratio) for ratio in (1.0, 8.0)]
    programs = list(write_candidates(folders, configs, RECIPES["fp32"], processes=2))
    assert programs == [sha256_of((folder / "model.pte").read_bytes()) for folder in folders]
    (tmp_path / "times.json").write_text(json.dumps(bench_in_turns(folders, 5, (1,))))
    latencies, threads, machine = read_times([tmp_path / "times.json"], programs)
    assert list(latencies) == programs and min(latencies.values()) > 0 and threads == 1 and machine
