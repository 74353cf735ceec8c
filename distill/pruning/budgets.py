"""Pruning to a budget: multiply-accumulates and parameters are counted, latency and size are those of a lowered program.

What can be removed is put in one order, the least important of each kind first and all kinds at the same pace. The search
finds how far to go in it, so that the budget is met within 3 %, or says what can be reached.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from distill.compress.channels import group_size, groups_of
from distill.pruning.apply import pruned_config
from distill.pruning.importance import Importance
from distill.pruning.plan import PruningPlan
from distill.pruning.targets import BOTTLENECK, COUNTED, MEASURED, ROUND_TO, PruningError, Target
from distill.pruning.units import Unit, plan_without, removal_order, units_of
from edge.compare.candidates import ProgramCost
from edge.compare.macs import count_macs
from swin_hf.configuration_swin_hf import SwinHfConfig

TOLERANCE = 0.03  # of a target
CLOSE_ENOUGH = 0.01  # at which the search for a measured target ends
MAX_PROGRAMS = 10  # lowered and timed in a search
LOOK_AHEAD = 64  # units that are tried out of order at the end
EXPONENT, MIN_EXPONENT = 0.8, 0.2  # of the multiply-accumulates, to which costs are taken to be proportional at first


@dataclass(frozen=True, kw_only=True)
class Achieved:
    """A plan and what the pruned model costs by each measure that was asked for; `before`: what the model cost."""

    plan: PruningPlan
    config: SwinHfConfig
    costs: dict[str, float]
    before: dict[str, float]
    removed_shares: dict[str, float]

    def described(self) -> str:
        """The costs in words."""
        units = {"macs": ("M MACs", 1e-6), "params": ("K parameters", 1e-3), "latency_ms": ("ms", 1), "size_mb": ("MB", 1)}
        shown = [
            f"{cost * units[name][1]:.4g} {units[name][0]} ({cost / self.before[name]:.1%})"
            for name, cost in self.costs.items()
            if name in units
        ]
        return ", ".join([*shown, *(f"{cost:.1%} of the latency" for name, cost in self.costs.items() if name == "latency")])

    def as_metrics(self) -> dict[str, float]:
        """JSON values, shares of what it cost before among them."""
        own = {name: value for name, value in self.costs.items()}
        return own | {f"{name}_share": self.costs[name] / self.before[name] for name in self.before}


class Costs:
    """What models of other shapes cost beside the one before; each shape is counted or measured once.

    make: a model of a config, on the meta device. size: (height, width) of the images. measure: of programs, see
    `edge.compare.candidates.program_costs`; without it latency and size cannot be asked for.
    """

    def __init__(
        self,
        make: Callable[[SwinHfConfig], nn.Module],
        before: SwinHfConfig,
        size: tuple[int, int],
        measure: Callable[[SwinHfConfig], ProgramCost] | None = None,
    ):
        self._make, self._size, self._measure, self._known = make, size, measure, {}
        self.before_config = before

    def of(self, config: SwinHfConfig, measure: str) -> float:
        key = (config.to_json_string(), measure)
        if key not in self._known:
            self._known[key] = self._find(config, measure)
        return self._known[key]

    def _find(self, config: SwinHfConfig, measure: str) -> float:
        if measure in COUNTED:
            with torch.device("meta"):
                model = self._make(config)
                example = torch.zeros(1, config.num_channels, *self._size)
            if measure == "macs":
                return float(count_macs(model, example))
            return float(sum(parameter.numel() for parameter in model.parameters()))
        if self._measure is None:
            raise PruningError(f"{measure} is that of a lowered program, which this kind of model does not have yet")
        program = self._measure(config)
        return {"latency": program.ratio, "latency_ms": program.latency_ms, "size_mb": program.size_mb}[measure]

    def excess(self, config: SwinHfConfig, targets: Iterable[Target]) -> float:
        """The largest excess over the targets."""
        return max(
            target.excess(
                self.of(config, target.measure), self.of(self.before_config, target.measure) if target.is_share else 1
            )
            for target in targets
        )


def plan_pruning(
    config: SwinHfConfig,
    importance: Importance,
    targets: tuple[Target, ...],
    costs: Costs,
    scopes: tuple[str, ...] = BOTTLENECK,
    round_to: int = ROUND_TO,
) -> Achieved:
    """The plan that removes the least to meet all targets; the one that binds is met within 3 %.

    Raises:
        PruningError: a target cannot be met by removing what the scopes name, or no step comes close enough to it; the message
            says what can be reached.
    """
    order = removal_order(units_of(config, importance, scopes, round_to))
    search = _Search(config, importance, order, targets, costs)
    removed = search.found()
    plan = plan_without(config, importance, removed)
    measures = dict.fromkeys([*COUNTED, *(target.measure for target in targets)])
    smaller, everything = pruned_config(config, plan), _sizes(order)
    gone = _sizes(removed)
    return Achieved(
        plan=plan,
        config=smaller,
        costs={measure: costs.of(smaller, measure) for measure in measures},
        before={measure: costs.of(costs.before_config, measure) for measure in measures},
        removed_shares={scope: gone.get(scope, 0) / total for scope, total in everything.items()},
    )


def require_reachable(costs: Costs, targets: tuple[Target, ...], scopes: tuple[str, ...], round_to: int) -> None:
    """Find out, without weights or images, whether removing everything that the scopes allow meets the targets.

    Raises:
        PruningError: it does not.
    """
    config = costs.before_config
    groups = {group: torch.ones(group_size(group, config)) for group in groups_of(config)}
    blocks = {(stage, block): 1.0 for stage, depth in enumerate(config.depths) for block in range(depth)}
    importance = Importance(channels=groups, blocks=blocks)
    search = _Search(config, importance, units_of(config, importance, scopes, round_to), targets, costs)
    search.require_reachable()


def _sizes(units: list[Unit]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for unit in units:
        sizes[unit.scope] = sizes.get(unit.scope, 0) + unit.size
    return sizes


class _Search:
    """How many units to remove, in their order, to meet the targets."""

    def __init__(self, config, importance, order: list[Unit], targets: tuple[Target, ...], costs: Costs):
        self._config, self._importance, self._order, self._targets, self._costs = config, importance, order, targets, costs
        self._wanted = ", ".join(map(str, targets))

    def found(self) -> list[Unit]:
        start = self._excess([])
        if start <= 1:
            return []
        if any(target.measure in MEASURED for target in self._targets):
            return self._order[: self._by_measuring(start)]
        return self._by_counting(start)

    def _smaller(self, removed: list[Unit]) -> SwinHfConfig:
        return pruned_config(self._config, plan_without(self._config, self._importance, removed))

    def _excess(self, removed: list[Unit]) -> float:
        return self._costs.excess(self._smaller(removed), self._targets)

    def _macs(self, count: int) -> float:
        return self._costs.of(self._smaller(self._order[:count]), "macs")

    def require_reachable(self, excess: float | None = None) -> None:
        """Raise an error if the targets cannot be met; excess: that of removing everything, if it is known."""
        end = self._excess(self._order) if excess is None else excess
        if end > 1 + TOLERANCE:
            raise PruningError(
                f"the target {self._wanted} cannot be met: with everything removed that these scopes allow the model still "
                f"costs {end:.2f} of it; take more scopes, a smaller model or a larger target"
            )

    def _by_counting(self, start: float) -> list[Unit]:
        """Bisection; if the step across the target is too large, another unit after it instead."""
        order, low, high = self._order, (0, start), (len(self._order), self._excess(self._order))
        self.require_reachable(high[1])
        while high[0] - low[0] > 1:
            at = (low[0] + high[0]) // 2
            middle = (at, self._excess(order[:at]))
            low, high = (low, middle) if middle[1] <= 1 else (middle, high)
        for at, excess in (high, low):
            if abs(excess - 1) <= TOLERANCE:
                return order[:at]
        seen = set()
        for unit in order[low[0] : low[0] + LOOK_AHEAD]:
            if (unit.scope, unit.place) not in seen:  # what matters less in a place goes first
                seen.add((unit.scope, unit.place))
                removed = [*order[: low[0]], unit]
                if abs(self._excess(removed) - 1) <= TOLERANCE:
                    return removed
        raise self._missed(low[1], high[1])

    def _by_measuring(self, start: float) -> int:
        """Few measurements: the next is where the costs so far, as a power of the multiply-accumulates, meet the target."""
        everything = len(self._order)
        points = {0: (self._macs(0), start)}
        exponent = EXPONENT
        while len(points) <= MAX_PROGRAMS:
            above = [at for at, (_, excess) in points.items() if excess > 1]
            below = [at for at, (_, excess) in points.items() if excess <= 1]
            low, high = max(above), min(below, default=everything + 1)
            if high - low <= 1 and (below or everything in points):
                break
            macs, excess = points[low]
            if below:
                other_macs, other_excess = points[high]
                exponent = math.log(excess / other_excess) / max(math.log(macs / other_macs), 1e-9)
            wanted = macs * excess ** (-1 / max(exponent, MIN_EXPONENT))
            at = min(max(self._count_for(wanted), low + 1), high - 1)
            points[at] = (self._macs(at), self._excess(self._order[:at]))
            if abs(points[at][1] - 1) <= CLOSE_ENOUGH:
                return at
        self.require_reachable(points.get(everything, (0, 0.0))[1])
        best = min(points, key=lambda at: abs(points[at][1] - 1))
        if abs(points[best][1] - 1) <= TOLERANCE:
            return best
        raise self._missed(min(excess for _, excess in points.values() if excess > 1), points[best][1])

    def _count_for(self, macs: float) -> int:
        """The smallest number of units without which the model has no more multiply-accumulates; all, if none is enough."""
        low, high = 0, len(self._order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._macs(middle) <= macs else (middle, high)
        return high

    def _missed(self, *nearest: float) -> PruningError:
        return PruningError(
            f"the target {self._wanted} cannot be met within {TOLERANCE:.0%}: the nearest steps cost "
            f"{' and '.join(f'{excess:.3f}' for excess in sorted(set(nearest)))} of it; take one of these as the target, more "
            "scopes, or a smaller --round_to"
        )
