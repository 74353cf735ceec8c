"""From an exported graph to the bytes of a program: partition, lower, and check it against the budget of its recipe."""

import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.utils.configs import (
    get_transform_passes,
    get_xnnpack_edge_compile_config,
    get_xnnpack_executorch_backend_config,
)
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from executorch.exir.backend.partitioner import Partitioner
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.traceback import NodeSource

from edge.device.errors import ExplainedError
from edge.lower.constant_names import short_constant_names
from edge.lower.passes import JoinViews, own_passes
from edge.lower.recipes import Recipe

DELEGATE_CALL = "executorch_call_delegate"


class LoweringError(ExplainedError):
    """The backend does not take the program as the recipe demands; the message names what it left out."""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A program and its figures.

    num_delegates: largest number of delegates in a method.
    outside: number of each operator left to the portable runtime, over all methods.
    planned_memory_bytes: memory that the runtime plans for values between operators, of the method that needs most. The
        memory inside the backend's delegate is not known before it runs.
    """

    program: bytes
    num_delegates: int
    outside: dict[str, int]
    planned_memory_bytes: int

    def as_manifest(self) -> dict[str, int | dict[str, int]]:
        """The entry "program" of a manifest."""
        return {
            "size_bytes": len(self.program),
            "num_delegates": self.num_delegates,
            "outside": self.outside,
            "planned_memory_bytes": self.planned_memory_bytes,
        }


@contextmanager
def _shared_provenance() -> Iterator[None]:
    """Share the nodes' records of where they come from: otherwise passes spend half of their time copying them."""
    NodeSource.__deepcopy__ = lambda self, memo: self
    try:
        yield
    finally:
        del NodeSource.__deepcopy__


@contextmanager
def _quiet_backends() -> Iterator[None]:
    """Keep what backends report of their work from the terminal, unless they fail."""
    root, said = logging.getLogger(), io.StringIO()
    level, handlers = root.level, root.handlers[:]  # which executorch's modules change
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch and executorch
            yield
    except LoweringError:
        raise
    except Exception:
        sys.stderr.write(said.getvalue())
        raise
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)
        root.handlers[:] = handlers


@_shared_provenance()
def trace(methods: dict[str, tuple[nn.Module, torch.Tensor]]) -> dict[str, ExportedProgram]:
    """The exported graph of each method, given as a module and an example of its input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch
        return {name: torch.export.export(module, (example,), strict=True) for name, (module, example) in methods.items()}


@_shared_provenance()
def lower(exported: dict[str, ExportedProgram], recipe: Recipe, constants: dict[str, object]) -> Lowered:
    """Lower methods into one program; weights that they share are stored once.

    constants: values that the program returns by name, for readers that have only the program.

    Raises:
        LoweringError: more delegates, or other operators outside of them, than the recipe allows.
    """
    with _quiet_backends(), own_passes(), short_constant_names():
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[_partitioner(recipe)],
            constant_methods=constants,
            transform_passes=get_transform_passes([JoinViews()]),
            compile_config=get_xnnpack_edge_compile_config(skip_dim_order=recipe.backend != "xnnpack"),
        )
        num_delegates, outside = check_budget(edge, recipe)
        whole = edge.to_executorch(get_xnnpack_executorch_backend_config())
        plans = whole.executorch_program.execution_plan
        planned = max((sum(plan.non_const_buffer_sizes) for plan in plans if plan.name in exported), default=0)
    return Lowered(program=whole.buffer, num_delegates=num_delegates, outside=outside, planned_memory_bytes=planned)


def check_budget(edge: EdgeProgramManager, recipe: Recipe) -> tuple[int, dict[str, int]]:
    """The largest number of delegates in a method, and the number of each operator outside delegates.

    Raises:
        LoweringError: the recipe does not allow them.
    """
    most_delegates, outside, culprits, cuts = 0, Counter(), [], []
    for method in sorted(edge.methods):
        nodes = [node for node in edge.exported_program(method).graph.nodes if node.op == "call_function"]
        calls = [node for node in nodes if node.target.__name__ == DELEGATE_CALL]
        most_delegates, cuts = max(most_delegates, len(calls)), cuts + calls[1:]
        left = [node for node in nodes if node not in calls and node.target.__name__ != "getitem"]
        outside.update(_operator_name(node) for node in left)
        culprits += [node for node in left if _operator_name(node) not in recipe.outside]
    if culprits:
        first = culprits[0]
        raise LoweringError(
            f"recipe {recipe.name} must leave {', '.join(recipe.outside) or 'nothing'} to the portable runtime, "
            f"got {', '.join(f'{count} x {name}' for name, count in outside.items())}; the first comes from "
            f"{origin(first)}. Change that layer, or choose another recipe or backend"
        )
    if most_delegates > recipe.max_delegates:
        raise LoweringError(
            f"recipe {recipe.name} must have {recipe.max_delegates} delegates at most, got {most_delegates}, cut at "
            f"{', '.join(dict.fromkeys(map(_start_of, cuts)))}"
        )
    return most_delegates, dict(outside)


def origin(node: fx.Node) -> str:
    """Name of the module of the deploy form that a node of a lowered graph comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths and paths[-1] else f"the operation {node.name}"


def _start_of(delegate_call: fx.Node) -> str:
    """Name of the module that a delegate begins with."""
    delegate = getattr(delegate_call.graph.owning_module, delegate_call.args[0].target)
    return next(origin(node) for node in delegate.original_module.graph.nodes if node.op == "call_function")


def _operator_name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else node.target.__name__


def _partitioner(recipe: Recipe) -> Partitioner:
    """The partitioner of the recipe's backend.

    Raises:
        LoweringError: a package that the backend needs for lowering is not installed.
    """
    if recipe.backend == "xnnpack":
        return XnnpackPartitioner()
    if recipe.backend == "vulkan":
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return VulkanPartitioner({})
    try:
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    except ImportError as error:
        raise LoweringError(f"backend coreml needs coremltools ({error}); pip install coremltools") from error
    return CoreMLPartitioner()
