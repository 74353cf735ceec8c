"""Ctrl-C, also where a library swallows it.

Python raises KeyboardInterrupt wherever the program is at that moment. In a destructor, in a callback of the garbage collector
or in one from C++, it is reported as "Exception ignored", and the program goes on. So the signal is remembered, and asked for
between steps.
"""

import signal
from types import FrameType

_received: list[int] = []


def watch() -> None:
    """Remember Ctrl-C from now on; it raises KeyboardInterrupt as before."""
    _received.clear()
    signal.signal(signal.SIGINT, _remember)


def came() -> bool:
    """Whether Ctrl-C came since `watch`."""
    return bool(_received)


def check() -> None:
    """Raise the KeyboardInterrupt that was swallowed somewhere.

    Raises:
        KeyboardInterrupt: Ctrl-C came since `watch`.
    """
    if _received:
        raise KeyboardInterrupt


def _remember(signal_number: int, frame: FrameType | None) -> None:
    _received.append(signal_number)
    raise KeyboardInterrupt
