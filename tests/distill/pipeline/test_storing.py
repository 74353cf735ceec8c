"""How images are read while a run stores them."""

import threading

import pytest

from distill.data.reading import READING_THREADS
from distill.pipeline.storing import in_order


def test_results_come_in_order_and_not_far_ahead():
    started = []
    lock = threading.Lock()

    def double(number: int) -> int:
        with lock:
            started.append(number)
        return 2 * number

    results = in_order(double, list(range(500)))
    for expected in range(500):
        assert next(results) == 2 * expected
        assert len(started) <= expected + 1 + 4 * READING_THREADS
    assert next(results, None) is None


def test_an_item_that_fails_ends_it():
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = in_order(fail_at_three, list(range(100)))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
