"""XNNPACK's passes over a graph, changed in two places.

XNNPACK keeps maps channels last, so that tokens and maps are the same numbers in memory. ExecuTorch's passes do not see that.
Between tokens and a convolution they leave a permutation, which moves the channels to the front, and a copy, which moves them
back. Here both become one view. And padding of what was dequantized stays in float.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack._passes.xnnpack_pass import XNNPACKPass
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant
from executorch.exir.dialects._ops import ops
from executorch.exir.pass_base import PassResult
from torch import fx

CHANNELS_LAST = ChannelsLastTaggedReshapePass.XNN_NHWC_NODE  # marks nodes whose output is a map in XNNPACK's order
TO_MAP, TO_TOKENS = [0, 3, 1, 2], [0, 2, 3, 1]
PERMUTE, COPY, VIEW = ops.edge.aten.permute_copy.default, ops.edge.aten._to_copy.default, ops.edge.aten.view_copy.default


class JoinLayouts(XNNPACKPass):
    """Replaces a permutation and the copy that undoes it by a view."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        for node in list(graph_module.graph.nodes):
            if node.target == PERMUTE and list(node.args[1]) in (TO_MAP, TO_TOKENS):
                self._join(graph_module.graph, node)
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
        return PassResult(graph_module, True)

    def _join(self, graph: fx.Graph, permute: fx.Node) -> None:
        to_map = list(permute.args[1]) == TO_MAP
        between, copy = _copy_after(permute)
        undone = torch.channels_last if to_map else torch.contiguous_format
        if copy is None or copy.kwargs.get("memory_format") != undone or to_map == _is_map(permute.args[0]):
            return
        with graph.inserting_before(permute):
            view = graph.call_function(VIEW, (permute.args[0], list(permute.meta["val"].shape)))
        view.meta = dict(permute.meta)
        permute.replace_all_uses_with(view)
        for node in (view, *between):
            node.meta.pop(CHANNELS_LAST, None)
            if to_map:
                node.meta[CHANNELS_LAST] = True
        last = between[-1] if between else view
        if between and len(copy.users) == 1 and is_quant(again := next(iter(copy.users))):  # dequantize, copy, quantize
            again.replace_all_uses_with(between[-2])
        else:
            copy.replace_all_uses_with(last)


def _copy_after(permute: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
    """The only copy that reads a permutation, and the quantization between the two: nothing, or a pair of nodes."""
    between: list[fx.Node] = []
    node = permute
    while len(node.users) == 1 and len(between) <= 2:
        node = next(iter(node.users))
        if node.target == COPY:
            return (between, node) if len(between) in (0, 2) else ([], None)
        if not (is_quant(node) or is_dequant(node)):
            break
        between.append(node)
    return [], None


def _is_map(node: fx.Node) -> bool:
    return ChannelsLastTaggedReshapePass.is_nhwc_node(node)


class _PassManager(XNNPACKPassManager):
    def __init__(self, exported_program, passes=None):
        super().__init__(exported_program, passes)
        if not passes:
            self.passes.insert(self.passes.index(ChannelsLastTaggedReshapePass) + 1, JoinLayouts)
            # It would make the output of a padding int8 whose input is float, and XNNPACK refuses that.
            self.passes = [own for own in self.passes if own.__name__ != "InsertPadQDQPass"]


@contextmanager
def own_passes() -> Iterator[None]:
    """Let XNNPACK's lowering use these passes inside the block."""
    before = xnnpack_preprocess.XNNPACKPassManager
    xnnpack_preprocess.XNNPACKPassManager = _PassManager
    try:
        yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = before
