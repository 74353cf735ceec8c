"""Pruning to a budget: multiply-accumulates and parameters are counted, latency and size those of a lowered program.

What can be removed is put in one order, the least important of each kind first and all kinds at the same pace. The search
finds how far to go in it, so that the budget is met within 3 %, or says what can be reached.
"""

from dataclasses import dataclass
from typing import Any

from distill.compress.channels import group_size, groups_of
from distill.pruning.apply import pruned_config
from distill.pruning.costs import Costs
from distill.pruning.importance import Importance, uniform_importance
from distill.pruning.plan import PruningPlan
from distill.pruning.search import TOLERANCE, MissedError, Search
from distill.pruning.targets import BOTTLENECK, COUNTED, ROUND_TO, Target, described_costs
from distill.pruning.units import KINDS, Unit, plan_without, removal_order, units_of
from swin_hf.configuration_swin_hf import SwinHfConfig

LOOK_AHEAD = 64  # units that are tried out of order at the end
ADVICE = "give more scopes, a smaller --round_to, a smaller model or a larger target"


@dataclass(frozen=True, kw_only=True)
class Achieved:
    """A plan and what the pruned model costs by each measure that was asked for.

    before: what the model cost. removed_shares: of all that each scope names. latency_source: where latencies are from, if it
        was not a measurement.
    """

    plan: PruningPlan
    config: SwinHfConfig
    costs: dict[str, float]
    before: dict[str, float]
    removed_shares: dict[str, float]
    latency_source: str = ""

    def described(self) -> str:
        """The costs in words."""
        return described_costs(self.as_metrics()) + (f" ({self.latency_source})" if self.latency_source else "")

    def as_metrics(self) -> dict[str, Any]:
        """JSON values, shares of what it cost before among them."""
        shares = {f"{name}_share": self.costs[name] / self.before[name] for name in self.before}
        return self.costs | shares | ({"latency_source": self.latency_source} if self.latency_source else {})


def plan_pruning(
    config: SwinHfConfig,
    importance: Importance,
    targets: tuple[Target, ...],
    costs: Costs,
    scopes: tuple[str, ...] = BOTTLENECK,
    round_to: int = ROUND_TO,
    is_final: bool = True,
) -> Achieved:
    """The plan that removes the least to meet all targets; the one that binds is met within 3 %.

    is_final: otherwise it is a step towards other targets, which the nearest plan will do for.

    Raises:
        PruningError: a target cannot be met by removing what the scopes name, or no step comes close enough to it; the message
            says what can be reached.
    """
    order = removal_order(units_of(config, importance, scopes, round_to))
    removed = _removed(config, importance, order, targets, costs, is_final)
    plan = plan_without(config, importance, removed)
    measures = dict.fromkeys([*COUNTED, *(target.measure for target in targets)])
    smaller = pruned_config(config, plan)
    gone, everything = _sizes(removed), {scope: _total(config, scope) for scope in scopes}
    return Achieved(
        plan=plan,
        config=smaller,
        costs={measure: costs.of(smaller, measure) for measure in measures},
        before={measure: costs.of(costs.before_config, measure) for measure in measures},
        removed_shares={scope: gone.get(scope, 0) / total for scope, total in everything.items() if total},
        latency_source=costs.latency_source(targets),
    )


def require_reachable(costs: Costs, targets: tuple[Target, ...], scopes: tuple[str, ...], round_to: int) -> None:
    """Find out, without weights or images, whether removing everything that the scopes allow meets the targets.

    Raises:
        PruningError: it does not.
    """
    config = costs.before_config
    importance = uniform_importance(config)
    order = removal_order(units_of(config, importance, scopes, round_to))
    search = _search(config, importance, order, targets, costs)
    search.require_reachable()
    if set(scopes) == {"stages"}:  # whose steps do not depend on scores
        search.place()


def _search(
    config: SwinHfConfig, importance: Importance, order: list[Unit], targets: tuple[Target, ...], costs: Costs
) -> Search:
    def without(count: int) -> SwinHfConfig:
        return pruned_config(config, plan_without(config, importance, order[:count]))

    return Search(without, len(order), targets, costs, ADVICE)


def _removed(
    config: SwinHfConfig,
    importance: Importance,
    order: list[Unit],
    targets: tuple[Target, ...],
    costs: Costs,
    is_final: bool,
) -> list[Unit]:
    """The units to remove: the first ones, or, if the step across the target is too large, another one after these."""
    try:
        return order[: _search(config, importance, order, targets, costs).place()]
    except MissedError as missed:
        if not is_final:
            return order[: missed.before + 1]
        if costs.are_measured(targets):
            raise
        seen = set()
        for unit in order[missed.before : missed.before + LOOK_AHEAD]:
            if (unit.scope, unit.place) in seen:
                continue  # what matters less in a place goes first
            seen.add((unit.scope, unit.place))
            removed = [*order[: missed.before], unit]
            smaller = pruned_config(config, plan_without(config, importance, removed))
            if abs(costs.excess(smaller, targets) - 1) <= TOLERANCE:
                return removed
        raise


def _total(config: SwinHfConfig, scope: str) -> int:
    """All channels, heads or blocks of a scope; of queries, keys and values those of one head of each block."""
    if scope == "blocks":
        return sum(config.depths)
    return sum(group_size(group, config)[-1] for group in groups_of(config) if group.kind == KINDS[scope])


def _sizes(units: list[Unit]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for unit in units:
        sizes[unit.scope] = sizes.get(unit.scope, 0) + unit.size
    return sizes
