"""The device of a process, which the arguments of any `transformers.Trainer` set for all others."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_device() -> Iterator[None]:
    """Leave the device of the process, and all else that accelerate keeps for it, as it was before."""
    from accelerate.state import AcceleratorState, GradientState, PartialState  # not needed by those who do not train

    states = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    try:
        yield
    finally:
        for state, own in zip(states, before):
            state.clear()
            state.update(own)
