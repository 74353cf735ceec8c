"""Commands in a process of their own: what its exit codes, signals and interrupts become."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what nohup started ignores this
from edge.device.child import run_in_child

def wait():
    print(os.getpid(), flush=True)
    time.sleep(60)

def command():
    {body}

sys.exit(run_in_child(command))
"""


def start(body: str) -> subprocess.Popen:
    """A process that runs `body` as its command, in a group of its own as a terminal has it."""
    return subprocess.Popen(
        [sys.executable, "-c", START.replace("{body}", body.replace("\n", "\n    "))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(("body", "code"), [("return 0", 0), ("return 1", 1), ("sys.exit(2)", 2), ("os._exit(7)", 7)])
def test_exit_codes_are_those_of_the_command(body, code):
    process = start(body)
    assert process.communicate() == ("", "")
    assert process.returncode == code


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_a_crash_is_a_sentence(name):
    process = start(f"os.kill(os.getpid(), signal.{name})")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"error: the process of this command crashed ({name}): a program that it ran is damaged or forged")
    assert err.count("\n") == 1


def test_a_kill_is_a_sentence():
    process = start("os.kill(os.getpid(), signal.SIGKILL)")
    expected = "error: the process of this command was killed (SIGKILL), most often for lack of memory\n"
    assert process.communicate()[1] == expected
    assert process.returncode == 1


def test_a_mistake_in_the_command_keeps_its_traceback():
    process = start("raise ValueError('a mistake in the program')")
    assert "ValueError: a mistake in the program" in process.communicate()[1]
    assert process.returncode == 1


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the parent", "from a terminal"])
@pytest.mark.parametrize(
    "body",
    [
        "wait()",
        "try: wait()\nfinally: time.sleep(0.1)",
        "try: wait()\nexcept KeyboardInterrupt: raise ImportError('half imported')",
        "try: wait()\nexcept KeyboardInterrupt: return 0",
    ],
    ids=["waits", "cleans up", "turns it into another error", "goes on to the end"],
)
def test_an_interrupt_is_one_line(send, body):
    process = start(body)
    child = int(process.stdout.readline())
    time.sleep(0.1)  # it falls asleep
    send(process.pid, signal.SIGINT)
    assert process.communicate(timeout=10) == ("", "interrupted\n")
    assert process.returncode == 130
    assert has_ended(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_child_ends_with_its_parent(number):
    process = start("wait()")
    child = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(timeout=10) == -number
    assert has_ended(child)
    process.communicate()


@pytest.mark.parametrize("module", ["edge.__main__", "edge.device.__main__"])
def test_nothing_has_started_threads_when_a_command_is_forked(module):
    code = f"import sys, {module}; print(*[name for name in ('numpy', 'torch', 'PIL', 'executorch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def has_ended(process: int) -> bool:
    """Whether a process ends within seconds; one that nobody has waited for yet has ended too."""
    for _ in range(200):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False
