"""Passes over a graph that leave XNNPACK no more to move than it must.

XNNPACK keeps maps channels last, so that tokens and maps are the same numbers in memory. ExecuTorch's passes do not see that.
Between tokens and a convolution they leave a permutation, which moves the channels to the front, and a copy, which moves them
back. Here both become one view. Views of views become one, and clones that change nothing go; they would keep what lies
around them in float where all is int8. And padding of what was dequantized stays in float.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager, XNNPACKRemoveCloneOpsTransform
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack._passes.xnnpack_pass import XNNPACKPass
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant
from executorch.exir.dialects._ops import ops
from executorch.exir.pass_base import ExportPass, PassResult
from torch import fx

CHANNELS_LAST = ChannelsLastTaggedReshapePass.XNN_NHWC_NODE  # marks nodes whose output is a map in XNNPACK's order
TO_MAP, TO_TOKENS = [0, 3, 1, 2], [0, 2, 3, 1]
PERMUTE, COPY, VIEW = ops.edge.aten.permute_copy.default, ops.edge.aten._to_copy.default, ops.edge.aten.view_copy.default


def join_views(graph: fx.Graph) -> None:
    """Let each view read what the view before it reads, also across a pair that rounds int8 numbers to themselves."""
    for view in graph.find_nodes(op="call_function", target=VIEW):
        while (reader := _reader_of_view(view)) is not None:
            read = reader.args[0].args[0]
            if reader is not view:  # a dequantization, of which each reader of a tensor has its own
                earlier = read.args[0]
                reader.meta |= {key: earlier.meta[key] for key in ("val", CHANNELS_LAST) if key in earlier.meta}
                read = earlier.args[0]
            reader.update_arg(0, read)
    graph.eliminate_dead_code()


def drop_idle_views(graph: fx.Graph) -> None:
    """Remove views that change neither shape nor layout."""
    for view in graph.find_nodes(op="call_function", target=VIEW):
        source = view.args[0]
        if view.meta["val"].shape == source.meta["val"].shape and _is_map(view) == _is_map(source):
            _replace(view, source)
    graph.eliminate_dead_code()


def _replace(node: fx.Node, source: fx.Node) -> None:
    """Let what reads a node read `source`, or the int8 numbers behind it if it would only round to them again."""
    for reader in list(node.users):
        if is_dequant(source) and is_quant(reader) and reader.args[1:] == source.args[1:]:
            reader.replace_all_uses_with(source.args[0])
    node.replace_all_uses_with(source)


def _reader_of_view(view: fx.Node) -> fx.Node | None:
    """What reads the earlier view that `view` can do without; None if there is none.

    It is `view` itself, or the dequantization before it if, in between, int8 numbers are only rounded to themselves.
    """
    source = view.args[0]
    if _is_view(source):
        return view
    rounding = source.args[1:]
    chain = [source]
    for expected in (is_dequant, is_quant, _is_view, is_dequant):
        if not expected(chain[-1]) or (expected is not _is_view and chain[-1].args[1:] != rounding):
            return None
        chain.append(chain[-1].args[0])
    return source if len(source.users) == 1 else None


def _is_view(node: fx.Node) -> bool:
    return node.target == VIEW


class JoinViews(ExportPass):
    """Before the backend takes its part of a graph: no clones that change nothing, and no views of views."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        graph_module = XNNPACKRemoveCloneOpsTransform()(graph_module).graph_module
        join_views(graph_module.graph)
        graph_module.recompile()
        return PassResult(graph_module, True)


class JoinLayouts(XNNPACKPass):
    """Replaces a permutation and the copies that undo it by a view, then joins views and drops those that change nothing."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        for node in list(graph_module.graph.nodes):
            if node.target == PERMUTE and list(node.args[1]) in (TO_MAP, TO_TOKENS):
                self._join(graph_module.graph, node)
        join_views(graph_module.graph)
        drop_idle_views(graph_module.graph)
        graph_module.recompile()
        return PassResult(graph_module, True)

    def _join(self, graph: fx.Graph, permute: fx.Node) -> None:
        to_map = list(permute.args[1]) == TO_MAP
        undone = torch.channels_last if to_map else torch.contiguous_format
        paths = _paths_to_copies(permute, undone)
        if not paths or to_map == _is_map(permute.args[0]):
            return
        with graph.inserting_before(permute):
            view = graph.call_function(VIEW, (permute.args[0], list(permute.meta["val"].shape)))
        view.meta = dict(permute.meta)
        permute.replace_all_uses_with(view)
        for node in {view, *(node for between, _ in paths for node in between)}:
            node.meta.pop(CHANNELS_LAST, None)
            if to_map:
                node.meta[CHANNELS_LAST] = True
        for between, copy in paths:
            _replace(copy, between[-1] if between else view)


def _paths_to_copies(permute: fx.Node, memory_format: torch.memory_format) -> list[tuple[list[fx.Node], fx.Node]]:
    """The copies in a memory format that read a permutation, each with what lies between: nothing, or an int8 rounding.

    An empty list if anything else reads it.
    """
    paths, ahead = [], [([], reader) for reader in permute.users]
    while ahead:
        between, node = ahead.pop()
        if node.target == COPY and len(between) in (0, 2) and node.kwargs.get("memory_format") == memory_format:
            paths.append((between, node))
        elif len(between) < 2 and (is_quant, is_dequant)[len(between)](node):
            ahead += [([*between, node], reader) for reader in node.users]
        else:
            return []
    return paths


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
