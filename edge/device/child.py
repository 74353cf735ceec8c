"""Commands in a process of their own: where a program crashes the process that runs it, its command ends with a sentence.

The runtime verifies a program before it loads it, but it trusts the instructions and the data of the backends in it. A forked
process costs a millisecond, which a new interpreter does not.
"""

import _thread
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
SAME_INTERRUPT_S = 0.5  # a terminal sends Ctrl-C to both processes, and the parent passes it on as well
PASSED_ON = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


def run_in_child(command: Callable[[], int]) -> int:
    """Run a command in a forked process and return its exit code; 1 if a signal ended it, which is explained on stderr.

    Call it before anything starts threads: NumPy and PyTorch do when they are imported. Where the system cannot fork, the
    command runs in this process.
    """
    if not hasattr(os, "fork"):
        return command()
    passed_on = {number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    alive, parent_end = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    child = os.fork()
    if child == 0:
        os.close(parent_end)
        _thread.start_new_thread(_end_with_parent, (alive,))  # not of threading, which takes time to import
        _end(_run(command, passed_on))
    os.close(alive)
    received: list[int] = []

    def pass_on(number: int, _) -> None:
        received.append(number)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    for number in passed_on:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    _, status = os.waitpid(child, 0)
    for number in passed_on:
        signal.signal(number, signal.SIG_DFL if number in received and number != signal.SIGINT else signal.SIG_IGN)
    return _exit_code(status, received)


def _exit_code(status: int, received: list[int]) -> int:
    """Exit code for the status of a child, which is explained if it crashed. received: signals that were passed on to it."""
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    if signal.SIGINT in received or code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if code is not None:
        return code
    number = os.WTERMSIG(status)
    if number in received:
        os.kill(os.getpid(), number)
    print(f"error: {explain_signal(number)}", file=sys.stderr)
    return 1


def explain_signal(number: int) -> str:
    """Why a signal most likely ended a process that ran a program."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return f"the process of this command was killed ({name}), most often for lack of memory"
    return (
        f"the process of this command crashed ({name}): a program that it ran is damaged or forged, or cannot be run by this "
        "runtime and processor. Copy the artefact again or export it again, and run only programs from people you trust"
    )


def _run(command: Callable[[], int], passed_on: set[int]) -> int:
    """Run the command in the child; 130 if it was interrupted, whatever it or other packages made of that.

    After an interrupt its stderr is discarded, so that it may clean up but not tell of all that breaks off: PyTorch prints C++
    exceptions when it is interrupted while it is imported. The parent says that it was interrupted.
    """
    last = -SAME_INTERRUPT_S

    def interrupt(*_) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > SAME_INTERRUPT_S:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stderr__.fileno())
            raise KeyboardInterrupt

    if signal.SIGINT in passed_on:
        signal.signal(signal.SIGINT, interrupt)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
        code = command()
    except SystemExit as stop:  # of argparse, with a number
        code = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    return code if last < 0 else INTERRUPTED


def _end(code: int) -> None:
    """End the process at once: PyTorch takes a second to be taken down, and a damaged program can crash it even then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted
    try:
        sys.stdout.flush()
    except OSError as error:  # a full disk, or a reader that has ended
        print(f"error: {error}", file=sys.stderr)
        code = code or 1
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)  # ends with the parent, which never writes
    os._exit(1)
