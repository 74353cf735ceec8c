"""How programs end: Ctrl-C in one line, wherever it comes and whoever swallows it."""

import os
import signal
from contextlib import suppress

import pytest

from distill import interruption
from distill.launch import launch
from distill.pipeline.stages import Stage, run_stages


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the handler runs between two instructions
        pass


def in_a_destructor() -> None:
    class Held:
        def __del__(self):
            press_ctrl_c()

    held = Held()
    del held  # Python reports "Exception ignored in" and goes on


def swallowed() -> None:
    with suppress(KeyboardInterrupt):
        press_ctrl_c()


def turned_into_another_error() -> None:
    try:
        press_ctrl_c()
    except KeyboardInterrupt as error:
        raise RuntimeError("an internal error of a library") from error


@pytest.fixture(autouse=True)
def former_handler():
    former = signal.getsignal(signal.SIGINT)
    yield
    interruption.watch()
    signal.signal(signal.SIGINT, former)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", [press_ctrl_c, in_a_destructor, swallowed, turned_into_another_error])
def test_ctrl_c_is_one_line_and_130(work, capsys):
    assert launch(work, "start again to resume") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; start again to resume"


def test_a_run_does_not_go_on_after_a_swallowed_ctrl_c(tmp_path, capsys):
    built = []

    def stage(name: str) -> Stage:
        def build(work_dir):
            built.append(name)
            swallowed()

        return Stage(name=name, title="", folder=name, inputs=(), settings={}, build=build)

    stages = [stage("first"), stage("second")]
    assert launch(lambda: run_stages(stages, ["first", "second"], tmp_path), "start again") == 130
    assert built == ["first"]


def test_other_errors_are_not_hidden():
    def fail():
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        launch(fail, "")
