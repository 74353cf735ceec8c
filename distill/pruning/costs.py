"""What models of other shapes cost: multiply-accumulates and parameters are counted, latency and size those of programs.

Latencies may also come from a table.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from distill.pruning.latency_table import LatencyTable
from distill.pruning.targets import COUNTED, LATENCIES, PruningError, Target, need_programs
from edge.compare.candidates import ProgramCost
from edge.compare.macs import count_macs
from swin_hf.configuration_swin_hf import SwinHfConfig


class Costs:
    """What models of other shapes cost beside the one before; each shape is counted or measured once.

    make: a model of a config, on the meta device. size: (height, width) of the images. measure: of programs, see
    `edge.compare.candidates.ProgramCosts`; without it latency and size cannot be asked for. table: where latencies are taken
    from instead.
    """

    def __init__(
        self,
        make: Callable[[SwinHfConfig], nn.Module],
        before: SwinHfConfig,
        size: tuple[int, int],
        measure: Callable[[SwinHfConfig], ProgramCost] | None = None,
        table: LatencyTable | None = None,
    ):
        self._make, self._size, self._measure, self._table, self._known = make, size, measure, table, {}
        self.before_config = before

    def are_measured(self, targets: Iterable[Target]) -> bool:
        """Whether programs have to be lowered to know what a model costs by these targets, which takes long."""
        return need_programs(targets, self._table is not None)

    def latency_source(self, targets: Iterable[Target]) -> str:
        """Where the latencies of targets come from, in words, if not from programs on this machine."""
        is_asked = any(target.measure in LATENCIES for target in targets)
        return "" if self._table is None or not is_asked else self._table.described()

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
        if self._table is not None and measure in LATENCIES:
            own = self._table(config)
            return own if measure == "latency_ms" else own / self._table(self.before_config)
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


def tell_of_program(cost: ProgramCost, indent: str = "", with_latency: bool = True) -> None:
    """Print what a program costs that was tried; each takes a while. with_latency: not if others count, those of a table."""
    print(f"{indent}tried a program of {cost if with_latency else f'{cost.size_mb:.3g} MB'}", flush=True)
