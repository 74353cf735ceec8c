"""Measuring a program: percentiles, and that what was asked for is measured."""

import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest

import edge.__main__ as cli
from edge.compare.candidates import write_candidate
from edge.device.bench import Latency, measure_latency, summarise
from edge.device.operations import ProfileError
from edge.device.operations import profile as profile_operations
from edge.lower.recipes import RECIPES


def test_percentiles_by_hand():
    # 1 to 101 in any order: the p-th percentile is 1 + p.
    times = [float(value) for value in range(101, 0, -1)]
    assert summarise(times, threads=2) == Latency(p50_ms=51.0, p90_ms=91.0, p99_ms=100.0, repeats=101, threads=2)


def test_runs_take_turns_and_those_that_begin_one_are_not_counted(monkeypatch):
    """The caches hold what ran last: a run after another function takes 50 ms here, in place of 1."""
    clock, calls = [0.0], []

    def run(name):
        clock[0] += 1e-3 if calls[-1:] == [name] else 50e-3
        calls.append(name)

    monkeypatch.setattr("edge.device.bench.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    measured = measure_latency({name: partial(run, name) for name in ("first", "second")}, repeats=24, threads=3)
    long, short = (["first"] * (3 + runs) + ["second"] * (3 + runs) for runs in (3, 2))
    assert calls == 4 * long + 6 * short
    expected = Latency(**dict.fromkeys(("p50_ms", "p90_ms", "p99_ms"), pytest.approx(1.0)), repeats=24, threads=3)
    assert measured == {"first": expected, "second": expected}
    calls.clear()
    assert measure_latency({"alone": partial(run, "alone")}, repeats=30, threads=1)["alone"].p99_ms == pytest.approx(1.0)
    assert len(calls) == 33  # a tenth more, to warm up
    assert measure_latency({"once": partial(run, "once")}, repeats=1, threads=1)["once"].repeats == 1


def test_bench_measures_what_was_asked_for(artefact, capsys):
    assert cli.main(["bench", str(artefact), "--repeats", "7", "--threads", "2,1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [(row["threads"], row["repeats"]) for row in figures["latency"]] == [(2, 7), (1, 7)]
    assert figures["sizes"]["program"] == (artefact / "model.pte").stat().st_size
    assert figures["sizes"]["self-test"] == (artefact / "self_test.bpte").stat().st_size
    assert min(row["p50_ms"] for row in figures["latency"]) > 0


def test_several_programs_are_timed_in_turns(artefact, make_config, tmp_path, capsys):
    write_candidate(tmp_path / "candidate", make_config(), RECIPES["fp32"])
    folders = [str(artefact), str(tmp_path / "candidate")]
    assert cli.main(["bench", *folders, "--repeats", "7", "--threads", "1,2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [program["artefact"] for program in figures["programs"]] == folders and figures["machine"]
    assert [program["recipe"] for program in figures["programs"]] == ["fp32", "fp32"]
    for program in figures["programs"]:
        assert [(row["threads"], row["repeats"]) for row in program["latency"]] == [(1, 7), (2, 7)]
        assert min(row["p50_ms"] for row in program["latency"]) > 0
    assert cli.main(["bench", *folders, "--repeats", "1", "--threads", "1"]) == 0
    assert f"{folders[1]}, recipe fp32\n  1 thread(s): p50" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["bench", *folders, "--compare"])
    assert "--compare takes one DIR, got 2" in capsys.readouterr().err
    (tmp_path / "candidate" / "model.pte").write_bytes(b"damaged")
    assert cli.main(["bench", *folders]) == 1
    assert "candidate" in capsys.readouterr().err


def test_operations_are_those_of_the_model(artefact, capsys, monkeypatch):
    assert cli.main(["bench", str(artefact), "--repeats", "8", "--threads", "1", "--profile", "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)["profile"]
    counts = {row["kind"]: row["count"] for row in profile["operations"]}
    assert counts["Softmax (NC, F32)"] == 2  # of two blocks
    assert sum(count for kind, count in counts.items() if kind.startswith("Batch Matrix Multiply")) == 4
    assert (profile["threads"], profile["repeats"]) == (1, 8)
    assert profile["total_ms"] > sum(row["ms"] for row in profile["operations"]) > 0
    assert sum(row["share"] for row in profile["operations"]) == pytest.approx(1)
    with pytest.raises(SystemExit):
        cli.main(["bench", str(artefact), str(artefact), "--profile"])
    assert "--profile takes one DIR, got 2" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "executorch.devtools.inspector", None)
    with pytest.raises(ProfileError, match="executorch.devtools"):
        profile_operations(artefact, repeats=1, threads=1)


@pytest.mark.parametrize("flag", ["--repeats", "--threads"])
def test_numbers_must_be_positive(artefact, capsys, flag):
    with pytest.raises(SystemExit):
        cli.main(["bench", str(artefact), flag, "0"])
    assert "must be positive, got 0" in capsys.readouterr().err
