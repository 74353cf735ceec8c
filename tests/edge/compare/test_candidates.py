"""What programs of random weights cost, by fake engines whose times are known."""

import pytest

from edge.compare import candidates
from edge.compare.candidates import CandidateError, ProgramCosts
from edge.compare.engines import EngineError
from edge.lower.recipes import RECIPES
from swin_hf import SwinHfConfig

BEFORE, OTHER = SwinHfConfig(embed_dim=24), SwinHfConfig(embed_dim=48)


class FakeEngine:
    """Turns of runs of `usual` milliseconds, a few slower and one faster; those in `disturbed` take three times as long."""

    def __init__(self, usual, disturbed=()):
        self.usual, self.disturbed, self.turns, self.is_closed = usual, disturbed, [], False

    def turn(self, runs):
        took = self.usual * (3 if len(self.turns) in self.disturbed else 1)
        self.turns.append(runs)
        return [took / 2] + [took] * (runs - 1 - runs // 3) + [10 * took] * (runs // 3)

    def close(self):
        self.is_closed = True


def costs_of(monkeypatch, before, other):
    engines = {BEFORE.embed_dim: before, OTHER.embed_dim: other}
    monkeypatch.setattr(ProgramCosts, "_open", lambda self, config: (engines[config.embed_dim], 5_000))
    return ProgramCosts(BEFORE, RECIPES["int8"], threads=1, repeats=100)


def test_disturbances_change_no_latency(monkeypatch):
    before, other = FakeEngine(0.5, set(range(1, 40))), FakeEngine(0.2, {0, 1, 2, 50})
    with costs_of(monkeypatch, before, other) as measure:
        cost = measure(OTHER)
        assert cost.latency_ms == pytest.approx(0.2) and cost.ratio == pytest.approx(0.4) and cost.size_mb == 0.005
        assert other.is_closed and not before.is_closed
        assert str(cost) == "0.005 MB, 0.2 ms, 40.0% of the latency before"
        assert measure(BEFORE).ratio == 1.0 and measure(BEFORE).latency_ms == pytest.approx(0.5)


def test_programs_are_timed_alone_where_there_is_none_before_them(monkeypatch):
    own, known, told = FakeEngine(0.2), {}, []
    monkeypatch.setattr(ProgramCosts, "_open", lambda self, config: (own, 5_000))
    with ProgramCosts(None, RECIPES["int8"], threads=1, known=known, announce=told.append) as measure:
        cost = measure(OTHER)
        assert measure(OTHER) is cost
    assert cost.latency_ms == pytest.approx(0.2) and cost.ratio == 1.0 and cost.size_mb == 0.005 and own.is_closed
    assert told == [cost] and str(cost) == "0.005 MB, 0.2 ms"
    monkeypatch.setattr(ProgramCosts, "_open", lambda self, config: pytest.fail("it is known"))
    with ProgramCosts(None, RECIPES["int8"], threads=1, known=known) as measure:
        assert measure(OTHER) is cost


def test_short_programs_have_more_turns_and_long_ones_ten(monkeypatch):
    short, long = FakeEngine(0.1), FakeEngine(30.0)
    with costs_of(monkeypatch, short, FakeEngine(0.1)) as measure:
        measure(OTHER)
    of_a_turn = 1e-4 * (0.5 + 6 + 30)
    assert set(short.turns) == {10} and len(short.turns) == pytest.approx(candidates.SECONDS / of_a_turn + 1, abs=1)
    tiny = FakeEngine(0.0001)
    with costs_of(monkeypatch, tiny, FakeEngine(0.0001)) as measure:
        measure(OTHER)
    assert len(tiny.turns) == candidates.MOST_ROUNDS + 1  # and a warm-up
    with costs_of(monkeypatch, long, FakeEngine(20.0)) as measure:
        measure(OTHER)
    assert long.turns == [10] * (candidates.ROUNDS + 1)


def test_a_program_that_ends_is_said_to_be_unfit(monkeypatch):
    def fail(runs):
        raise EngineError("killed")

    engine = FakeEngine(1.0)
    engine.turn = fail
    timed = pytest.raises(CandidateError, match="cannot be timed on this machine: killed")
    with costs_of(monkeypatch, FakeEngine(1.0), engine) as measure, timed:
        measure(OTHER)
    assert engine.is_closed
