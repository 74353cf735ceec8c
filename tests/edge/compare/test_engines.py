"""Engines in turns: that only one is at work at a time, and what is said about those that cannot be run."""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import edge.__main__ as cli
import edge.compare.peers as peers
from edge.compare.engines import Contender, Engine, EngineError, take_turns
from edge.compare.macs import count_macs
from edge.compare.peers import PRODUCTS, SQUARE, rows_of, with_limits
from edge.export.export import ExportSettings, export

SQUARES = Contender(name="squares", engine="matmul", file="", shape=(8, 8), options={"products": "2"})
ABSENT = Contender(name="absent", engine="executorch", file="no/such.pte", shape=(1, 3, 8, 8))


def stops(engine: Engine) -> bool:
    """Whether its process is stopped soon: the system delivers the signal when it gets to it."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if Path(f"/proc/{engine._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return True
    return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the state of a process is read from /proc")
def test_an_engine_is_stopped_between_its_turns():
    engine = Engine(SQUARES, threads=1)
    try:
        for runs in (4, 2):
            times = engine.turn(runs)
            assert len(times) == runs and min(times) > 0
            assert stops(engine)
        engine._process.kill()
        with pytest.raises(EngineError, match="ended with exit code -9"):
            engine.turn(1)
    finally:
        engine.close()


def test_those_that_cannot_be_run_do_not_stop_the_others():
    measured = take_turns([ABSENT, SQUARES], rounds=3, runs=2, threads=1)
    assert "No such file" in measured["absent"]["error"][0]
    assert (len(measured["squares"]["alone"]), len(measured["squares"]["turns"])) == (2, 6)
    rows = rows_of([SQUARES, ABSENT], {"other": "not installed"}, repeats=10, threads=1)
    assert [row["name"] for row in rows] == ["squares", "other", "absent"]
    assert rows[0]["ratio"] == 1.0 and rows[0]["repeats"] == 10
    assert rows[1]["skipped"] == "not installed"


def test_bench_compares_with_what_can_be_compared(make_model, checkpoint, image_folder, tmp_path, capsys, monkeypatch):
    # A pruned model: stock transformers has none of its shape.
    monkeypatch.setattr(peers, "prepare_limits", partial(lambda limits, *_: limits([], tmp_path), peers.prepare_limits))
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    make_model(block_mlp_dim=[[24], [40, 8]]).save_pretrained(checkpoint)
    export(checkpoint, tmp_path / "edge", ExportSettings(recipe="fp32", dataset=image_folder, self_test=False))
    assert cli.main(["bench", str(tmp_path / "edge"), "--compare", "--repeats", "10", "--threads", "1", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["compared"]}
    assert rows["ours, fp32"]["ratio"] == 1.0
    assert rows["PyTorch, our model"]["p50_ms"] > 0
    assert "transformers has no such Swin: stage 1, block 0" in rows["stock transformers"]["skipped"]
    assert rows["its products alone, PyTorch, fp32"]["p50_ms"] < rows["PyTorch, our model"]["p50_ms"]
    assert {row["threads"] for row in rows.values() if "p50_ms" in row} == {1}
    assert all("p50_ms" in row or row["skipped"] for row in rows.values())
    monkeypatch.setattr("edge.device.bench.bench", lambda *_: pytest.fail("something was measured"))
    assert cli.main(["bench", str(tmp_path / "edge"), "--compare", "--checkpoint", str(tmp_path / "no")]) == 1
    assert "checkpoint_dir must be the checkpoint to compare with" in capsys.readouterr().err


def test_limits_are_scaled_to_the_products_of_the_model():
    limit = Contender(name="limit", engine="matmul", file="", shape=(SQUARE, SQUARE))
    rows = [{"name": "ours", "p50_ms": 6.0, "ratio": 1.0}, {"name": "limit", "p50_ms": 10.0, "ratio": 2.0}]
    scaled = with_limits(rows, [limit], macs=PRODUCTS * SQUARE**3 // 2)
    assert scaled == [{"name": "limit", "p50_ms": 5.0, "ratio": 1.0}, rows[0]]


def test_products_of_a_model_by_hand(make_model):
    # One block on 4 x 4 patches of 2 x 2 x 3, width 8, one window of 16 tokens.
    model = make_model(image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[2], window_size=4, mlp_ratio=2.0)
    patches, attention, mlp = 16 * 12 * 8, 4 * 16 * 8 * 8 + 2 * 16 * 16 * 8, 2 * 16 * 8 * 16
    assert count_macs(model, torch.zeros(1, 3, 8, 8)) == patches + attention + mlp + 8 * 3
