"""Programs of nothing but constants, written by ExecuTorch's own serializer; they take no time to make."""

from executorch.exir import schema
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary


def constant_program(constants: dict[str, list[str | float]]) -> bytes:
    """A program with a method for each name, which puts out the texts and numbers."""
    plans = [
        schema.ExecutionPlan(
            name=name,
            container_meta_type=schema.ContainerMetadata("", ""),
            values=[schema.EValue(schema.String(v) if isinstance(v, str) else schema.Double(v)) for v in values],
            inputs=[],
            outputs=list(range(len(values))),
            chains=[],
            operators=[],
            delegates=[],
            non_const_buffer_sizes=[0],
        )
        for name, values in constants.items()
    ]
    program = schema.Program(
        version=0,
        execution_plan=plans,
        constant_buffer=[],
        backend_delegate_data=[],
        segments=[],
        constant_segment=schema.SubsegmentOffsets(segment_index=0, offsets=[]),
    )
    return bytes(serialize_pte_binary(PTEFile(program)))
