"""Latency tables: parts by hand, prices that made the times are found again, errors, files, and pruning by a table."""

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
    ARCHITECTURE,
    REST,
    LatencyTable,
    LatencyTableError,
    fit_table,
    parts_of,
    sampled_shapes,
)
from distill.pruning.table_files import read_shapes
from distill.pruning.targets import BOTTLENECK, parse_targets
from edge.compare.macs import count_macs
from swin_hf import SwinHfConfig, SwinHfForImageClassification

SIZES = {  # what a table's shapes may differ in
    *("embed_dim", "stage_dims", "depths", "num_heads", "mlp_ratio", "mbconv_ratio", "block_shifts"),
    *("block_num_heads", "block_head_dim", "block_value_head_dim", "block_mlp_dim"),
}
OF_NO_COST = {  # of one image: regularisation, weights and outputs that no program of a classifier has
    *("image_size", "calibration_temperature", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("initializer_range", "weight_init", "zero_init_residual", "layer_norm_eps", "encoder_stride", "label_smoothing"),
    *("pretrained_window_sizes", "_out_features", "_out_indices", "layer_scale_init"),
}


def test_every_field_of_a_config_is_known_to_the_table():
    own = {field.name for field in dataclasses.fields(SwinHfConfig)}
    inherited = {
        field.name for base in SwinHfConfig.__mro__[1:] if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)
    }
    assert own - inherited <= {*ARCHITECTURE, *SIZES, *OF_NO_COST}
    assert not set(ARCHITECTURE) & SIZES and set(ARCHITECTURE) <= own


def test_parts_by_hand(make_config):
    config = make_config(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 4], window_size=4, mlp_ratio=4.0
    )
    parts = parts_of(config)
    products = 4 * 2 * 4 * 16 * 16 * 4 / 1e6  # windows, heads, of queries and keys and then of values: 16 x 16 x 4
    expected = {"stage 0: blocks": 1, "stage 0: heads": 2, "stage 0: hidden layers": 64 * 2 * 8 * 32 / 1e6}
    expected |= {"stage 0: projections of attention": 64 * 4 * 8 * 8 / 1e6, "stem": 64 * 12 * 8 / 1e6}
    expected |= {"stage 0: downsampling": 16 * 32 * 16 / 1e6, REST: 1, "stage 0: products of attention": products / 2}
    assert {name: parts[name] for name in expected} == pytest.approx(expected)


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


def test_prices_that_made_the_times_explain_other_shapes(make_config):
    config = make_config()
    prices = random_prices(config)
    shapes = sampled_shapes(config, BOTTLENECK, 2, 40, seed=0)
    assert shapes[0] == config and len(shapes) == 40
    table = fit_table(shapes, [priced(prices, shape) for shape in shapes], "int8", 1, "a phone")
    assert table.largest_error < 1e-6 and table.num_programs == 40 and "off by 0.0% in the median" in table.described()
    for other in sampled_shapes(config, BOTTLENECK, 2, 5, seed=1):
        assert table(other) == pytest.approx(priced(prices, other))


def test_the_error_is_that_of_programs_that_were_left_out(make_config):
    config = make_config()
    shapes = sampled_shapes(config, BOTTLENECK, 2, 40, seed=0)
    noise = np.random.default_rng(1).normal(1, 0.05, len(shapes))
    prices = random_prices(config)
    table = fit_table(shapes, [priced(prices, own) * factor for own, factor in zip(shapes, noise)], "int8", 1, "a phone")
    assert 0.02 < table.median_error < 0.09 and all(price.ms_per_unit >= 0 for price in table.prices)


def test_a_target_is_met_by_the_table_without_programs(make_config):
    config = make_config()
    prices = random_prices(config)
    shapes = sampled_shapes(config, BOTTLENECK, 2, 40, seed=0)
    table = fit_table(shapes, [priced(prices, shape) for shape in shapes], "int8", 1, "a phone")
    costs = Costs(SwinHfForImageClassification, config, config.image_height_width, table=table)
    for text, target in (("latency=0.7x", 0.7), (f"latency_ms={0.8 * priced(prices, config)}", 0.8)):
        achieved = plan_pruning(config, uniform(config), parse_targets(text), costs, BOTTLENECK, 2)
        assert priced(prices, achieved.config) == pytest.approx(target * priced(prices, config), rel=0.03)
        assert "a table of 40 programs on a phone" in achieved.described()


def test_tables_of_other_models_are_refused(make_config, tmp_path):
    config = make_config()
    shapes = sampled_shapes(config, BOTTLENECK, 2, 20, seed=0)
    table = fit_table(shapes, [1.0] * 20, "int8", 1, "a phone")
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json", "int8") == table
    with pytest.raises(LatencyTableError, match="must be a table of programs of the recipe fp32, got int8"):
        LatencyTable.load(tmp_path / "table.json", "fp32")
    with pytest.raises(LatencyTableError, match=r"with image_size \[32, 32\], got one for \[16, 16\]"):
        table(make_config(image_size=32))
    with pytest.raises(LatencyTableError, match="with hidden_act 'relu', got one for 'gelu'"):
        table(make_config(hidden_act="relu"))
    for text in ("", "[]", '{"format": "other"}', '{"format": "swin-hf latency table 1"}'):
        (tmp_path / "damaged.json").write_text(text)
        with pytest.raises(LatencyTableError, match="is no latency table that can be read"):
            LatencyTable.load(tmp_path / "damaged.json", "int8")
    with pytest.raises(LatencyTableError, match="12 programs or more, each with its latency, got 5 programs and 5"):
        fit_table(shapes[:5], [1.0] * 5, "int8", 1, "a phone")
    with pytest.raises(LatencyTableError, match="positive numbers of milliseconds, got 0.0"):
        fit_table(shapes, [0.0] + [1.0] * 19, "int8", 1, "a phone")
    with pytest.raises(LatencyTableError, match="must be of one architecture"):
        fit_table([*shapes[1:], make_config(hidden_act="relu")], [1.0] * 20, "int8", 1, "a phone")


def run(command, *arguments) -> int:
    return command([str(argument) for argument in arguments])


def test_a_table_is_made_of_times_and_pruned_by(make_model, image_folder, tmp_path, capsys, monkeypatch):
    checkpoint, programs, times, table = (tmp_path / name for name in ("model", "programs", "times.json", "table.json"))
    make_model().save_pretrained(checkpoint)
    PLAIN_PROCESSOR.save_pretrained(checkpoint)
    monkeypatch.setattr("distill.pruning.table_files.write_candidate", lambda folder, *_: folder.mkdir())
    assert run(latency, "programs", checkpoint, programs, "--round_to", 2, "--num_programs", 20) == 0
    assert "edge bench" in capsys.readouterr().out and len(list(programs.iterdir())) == 21
    shapes, recipe = read_shapes(programs)
    prices = random_prices(shapes["program00"])

    def write_times(threads=1, leave_out=()):
        rows = [
            {"artefact": f"phone/{name}", "recipe": recipe, "latency": [{"threads": threads, "p50_ms": priced(prices, shape)}]}
            for name, shape in shapes.items()
            if name not in leave_out
        ]
        times.write_text(json.dumps({"programs": rows, "machine": "a phone"}))

    write_times()
    assert run(latency, "table", programs, times, table) == 0
    assert "off by 0.0% in the median" in capsys.readouterr().out
    arguments = [checkpoint, tmp_path / "out", "--latency_table", table, "--round_to", 2, "--dataset", image_folder]
    assert run(prune, *arguments, "--target", "latency=0.8x") == 0
    assert "80" in (shown := capsys.readouterr().out) and "by a table of 20 programs on a phone" in shown
    figures = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert figures["latency"] == pytest.approx(0.8, rel=0.03) and figures["latency_table"] == "table.json"
    pruned = SwinHfConfig.from_pretrained(tmp_path / "out")
    assert priced(prices, pruned) == pytest.approx(0.8 * priced(prices, shapes["program00"]), rel=0.03)

    assert run(prune, checkpoint, tmp_path / "no", "--latency_table", table, "--target", "macs=0.8") == 2
    assert "must come with a target of latency or latency_ms, got macs=0.8" in capsys.readouterr().err
    write_times(leave_out=("program03",))
    assert run(latency, "table", programs, times, tmp_path / "no.json") == 1
    assert "must have the times of all 20 programs, got none of program03" in capsys.readouterr().err
    times.write_text("{}")
    assert run(latency, "table", programs, times, tmp_path / "no.json") == 1
    assert "must be what `edge bench DIR/program* --threads 1 --json` printed" in capsys.readouterr().err
    assert run(latency, "table", tmp_path, times, tmp_path / "no.json") == 1
    assert "must be what `python -m distill.latency programs` wrote" in capsys.readouterr().err
    assert run(latency, "programs", checkpoint, tmp_path / "no", "--round_to", 512) == 1
    assert "must allow 40 different shapes, got" in capsys.readouterr().err
    assert not (tmp_path / "no").exists() and not (tmp_path / "no.json").exists()
