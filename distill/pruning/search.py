"""The search for the shape that meets a target, among shapes in a row of which each computes less than the one before."""

import math
from bisect import bisect_left
from collections.abc import Callable

from distill.pruning.costs import Costs
from distill.pruning.targets import PruningError, Target
from swin_hf.configuration_swin_hf import SwinHfConfig

TOLERANCE = 0.03  # of a target
CLOSE_ENOUGH = 0.01  # at which the search for a measured target ends
MAX_PROGRAMS, GUESSED = 12, 4  # lowered and timed in a search; of them, those up to which any guess is taken
# The first guess takes costs to be this power of the multiply-accumulates; later ones lie between those by the other two.
EXPONENT, MIN_EXPONENT, MAX_EXPONENT = 0.8, 0.5, 1.3


class MissedError(PruningError):
    """No shape in the row comes close enough to the target, as far as is known.

    before: the place of the last one that costs too much.
    """

    def __init__(self, message: str, before: int):
        super().__init__(message)
        self.before = before


class Search:
    """The place in a row of shapes, from 0 to `last`, where the targets are met, as far as costs follow what is computed.

    config_at: the shape at a place. advice: how an error ends that says what can be reached. start: the place whose program is
    measured first, where costs are measured; programs of large shapes take long.
    """

    def __init__(
        self,
        config_at: Callable[[int], SwinHfConfig],
        last: int,
        targets: tuple[Target, ...],
        costs: Costs,
        advice: str,
        start: int = 0,
    ):
        self.config_at, self.last, self.targets, self.costs = config_at, last, targets, costs
        self._advice, self._start = advice, start
        self._wanted = ", ".join(map(str, targets))

    def place(self) -> int:
        """The first place where all targets are met, or one where they are missed by less than 3 %.

        Raises:
            PruningError: the last shape costs too much.
            MissedError: the steps between shapes are too large.
        """
        return self._by_measuring() if self.costs.are_measured(self.targets) else self._by_counting()

    def excess(self, place: int) -> float:
        """What a shape costs, over what it may cost."""
        return self.costs.excess(self.config_at(place), self.targets)

    def require_reachable(self) -> None:
        """Raise an error if the last shape costs too much."""
        self._require(self.excess(self.last))

    def _require(self, end: float) -> None:
        if end > 1 + TOLERANCE:
            raise PruningError(
                f"the target {self._wanted} cannot be met: the smallest model in reach costs {end:.2f} of it; {self._advice}"
            )

    def _macs(self, place: int) -> float:
        return self.costs.of(self.config_at(place), "macs")

    def _by_counting(self) -> int:
        """Bisection."""
        low = (0, self.excess(0))
        if low[1] <= 1 + TOLERANCE:
            return 0
        high = (self.last, self.excess(self.last))
        self._require(high[1])
        while high[0] - low[0] > 1:
            place = (low[0] + high[0]) // 2
            middle = (place, self.excess(place))
            low, high = (low, middle) if middle[1] <= 1 else (middle, high)
        for place, excess in (high, low):
            if abs(excess - 1) <= TOLERANCE:
                return place
        raise self._missed(low, high)

    def _by_measuring(self) -> int:
        """Few measurements: the next is where a line through the two nearest, over what they compute, meets the target."""
        points: dict[int, tuple[float, float]] = {}
        place: int | None = self._start
        while place is not None and len(points) < MAX_PROGRAMS:
            excess = self.excess(place)
            points[place] = (self._macs(place), excess)
            if abs(excess - 1) <= CLOSE_ENOUGH or (place == 0 and excess <= 1 + TOLERANCE):
                return place
            place = self._next(points)
        nearest = min(points, key=lambda place: abs(points[place][1] - 1))
        if abs(points[nearest][1] - 1) <= TOLERANCE:
            return nearest
        if self.last in points:
            self._require(points[self.last][1])
        below, above = _around(points)
        if below is None:
            raise PruningError(
                f"the target {self._wanted} was not met within {TOLERANCE:.0%} by {len(points)} programs, the nearest of them "
                f"costs {points[nearest][1]:.3f} of it; take that as the target, or {self._advice}"
            )
        raise self._missed(*((place, points[place][1]) for place in (below, above) if place is not None))

    def _next(self, points: dict[int, tuple[float, float]]) -> int | None:
        """The place to measure after those of `points`; none if they leave nothing between them.

        Where costs jump, guesses fall at an end of what is left, and would shrink it by one place at a time; so it is halved.
        """
        below, above = _around(points)
        first, last = 0 if below is None else below + 1, self.last if above is None else above - 1
        if first > last:
            return None
        nearest = sorted(points.values(), key=lambda point: abs(math.log(point[1])))
        guess = self._place_of(_macs_wanted(*nearest[:2]))
        if below is None or above is None or len(points) <= GUESSED or first < guess < last:
            return min(max(guess, first), last)
        return (first + last) // 2

    def _place_of(self, macs: float) -> int:
        """The first place with no more multiply-accumulates; the last, if there is none."""
        return min(bisect_left(range(self.last + 1), True, key=lambda place: self._macs(place) <= macs), self.last)

    def _missed(self, *nearest: tuple[int, float]) -> MissedError:
        shown = " and ".join(f"{excess:.3f}" for excess in sorted({excess for _, excess in nearest}))
        message = (
            f"the target {self._wanted} cannot be met within {TOLERANCE:.0%}: the nearest shapes that were tried cost {shown} "
            f"of it; take one of these as the target, or {self._advice}"
        )
        return MissedError(message, max(place for place, excess in nearest if excess > 1))


def _around(points: dict[int, tuple[float, float]]) -> tuple[int | None, int | None]:
    """The last place that costs too much, and the next that is known not to; of each place (what it computes, its excess)."""
    below = max((place for place, (_, excess) in points.items() if excess > 1), default=None)
    return below, min((place for place in points if below is None or place > below), default=None)


def _macs_wanted(nearest: tuple[float, float], next_nearest: tuple[float, float] | None = None) -> float:
    """The multiply-accumulates at which the target is met, by one or two shapes (what it computes, its excess)."""
    macs, excess = nearest
    guesses = {exponent: macs * excess ** (-1 / exponent) for exponent in (MIN_EXPONENT, EXPONENT, MAX_EXPONENT)}
    if next_nearest is None or next_nearest[0] == macs:
        return guesses[EXPONENT]
    slope = (excess - next_nearest[1]) / (macs - next_nearest[0])
    on_the_line = macs + (1 - excess) / slope if slope > 0 else guesses[EXPONENT]
    return min(max(on_the_line, min(guesses.values())), max(guesses.values()))
