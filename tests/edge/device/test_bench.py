"""Measuring a program: percentiles, and that what was asked for is measured."""

import json

import pytest

import edge.__main__ as cli
from edge.device.bench import Latency, measure_latency, summarise


def test_percentiles_by_hand():
    # 1 to 101 in any order: the p-th percentile is 1 + p.
    times = [float(value) for value in range(101, 0, -1)]
    assert summarise(times, threads=2) == Latency(p50_ms=51.0, p90_ms=91.0, p99_ms=100.0, repeats=101, threads=2)


def test_runs_take_turns_and_the_warm_up_is_not_counted():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in ("first", "second")}
    measured = measure_latency(runs, repeats=20, threads=3)
    assert calls == ["first", "second"] * 22  # a tenth more, to warm up
    assert {(latency.repeats, latency.threads) for latency in measured.values()} == {(20, 3)}


def test_bench_measures_what_was_asked_for(artefact, capsys):
    assert cli.main(["bench", str(artefact), "--repeats", "7", "--threads", "2,1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [(row["threads"], row["repeats"]) for row in figures["latency"]] == [(2, 7), (1, 7)]
    assert figures["sizes"]["program"] == (artefact / "model.pte").stat().st_size
    assert figures["sizes"]["self-test"] == (artefact / "self_test.bpte").stat().st_size
    assert min(row["p50_ms"] for row in figures["latency"]) > 0


@pytest.mark.parametrize("flag", ["--repeats", "--threads"])
def test_numbers_must_be_positive(artefact, capsys, flag):
    with pytest.raises(SystemExit):
        cli.main(["bench", str(artefact), flag, "0"])
    assert "must be positive, got 0" in capsys.readouterr().err
