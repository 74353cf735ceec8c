"""What each step of pruning removed, cost and kept of the accuracy, for the report."""

from dataclasses import dataclass
from typing import Any

from distill.pruning.targets import SCOPES, UNITS, described_costs


@dataclass(frozen=True, kw_only=True)
class PruningStep:
    """One step of pruning.

    targets: as users write them. removed_shares: of all that each scope names. costs: by measure, and as shares of what the
        model cost before the first step, by the measure's name with "_share".
    latency_source: where latencies are from, if they were not measured on this machine.
    pruned, recovered: accuracy on the test images right after it, and after the distillation that follows.
    """

    targets: list[str]
    removed_shares: dict[str, float]
    costs: dict[str, float]
    pruned: float
    recovered: float
    latency_source: str = ""


def pruning_steps(metrics: dict[str, Any], recovered: float) -> list[PruningStep]:
    """The steps in the `metrics.json` of a pruning; none if nothing was removed.

    recovered: the accuracy after the last one's recovery, which is a stage of its own.
    """
    steps = [
        PruningStep(
            targets=step["targets"],
            removed_shares=step["removed_shares"],
            costs={name: step[name] for name in step if name.removesuffix("_share") in ("latency", *UNITS)},
            pruned=step["evaluation"]["value"],
            recovered=step["recovered"]["value"] if "recovered" in step else recovered,
            latency_source=step.get("latency_source", ""),
        )
        for step in metrics["steps"]
    ]
    return steps if any(share for step in steps for share in step.removed_shares.values()) else []


def table_of_pruning(steps: list[PruningStep], figure: str) -> list[dict[str, str]]:
    """figure: what the accuracies are called."""
    rows = []
    for number, step in enumerate(steps, start=1):
        removed = [f"{step.removed_shares[scope]:.0%} of {scope}" for scope in SCOPES if scope in step.removed_shares]
        rows.append(
            {
                "step": str(number),
                "target": ", ".join(step.targets),
                "costs": described_costs(step.costs),
                "removed": ", ".join(removed),
                f"{figure} right after pruning": f"{step.pruned:.1%}",
                "after recovery": f"{step.recovered:.1%}",
            }
        )
    return rows
