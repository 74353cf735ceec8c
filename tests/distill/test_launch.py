"""How programs end: Ctrl-C in one line, wherever it comes and whoever swallows it."""

import os
import signal
from contextlib import suppress

import pytest
import torch
from filelock import Timeout

from distill import interruption
from distill.data.finding import find_images
from distill.data.sources import DataError
from distill.data.targets import CLASSES
from distill.errors import SettingsError, TrainingStopped
from distill.launch import launch
from distill.pipeline.settings import parse_settings
from distill.pipeline.stages import Stage, run_stages
from distill.training.settings import parse_finetune_settings


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


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SettingsError("--task must be one of a, b, got 'c'"), 2, "error: --task must be one of"),
        (DataError("no images"), 1, "error: no images"),
        (OSError("disk"), 1, "error: disk"),
        (Timeout("runs/demo/.lock"), 1, "error: another run is at work in runs/demo; wait for it"),
        (ModuleNotFoundError("No module named 'kornia'", name="kornia"), 1, 'pip install "swin-hf[train]"'),
    ],
)
def test_mistakes_in_flags_are_2_and_others_1(error, code, words, capsys):
    def fail():
        raise error

    assert launch(fail, "") == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--model", "swin_tinny"], "--model must name a preset, .* got 'swin_tinny'; did you mean swin_tiny"),
        (["--task", "image-clasification"], "did you mean image-classification"),
        (["--config", "phtos"], "must be a YAML file or one of .* did you mean photos"),
        (["--leaning_rate", "1"], "unknown setting --leaning_rate in the command line; did you mean --learning_rate"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(arguments, hint):
    with pytest.raises(SettingsError, match=hint):
        parse_finetune_settings(arguments)
    with pytest.raises(SettingsError, match="did you mean teacher"):
        parse_settings(["--stages", "data,teachr"])
    with pytest.raises(SettingsError, match="did you mean int8"):
        parse_settings(["--recipe", "int88"])


def test_a_misspelt_data_set_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_: pytest.fail("asked the Hub"))
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, near in (("digist", "digits"), ("digit-scene", "digit-scenes"), ("flower", "flowers")):
        with pytest.raises(DataError, match=f"--dataset {name} is neither .*; did you mean {near}"):
            find_images(name, CLASSES)


def test_other_errors_are_not_hidden():
    def fail():
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        launch(fail, "")


@pytest.mark.parametrize(("end", "code"), [(None, 0), (TrainingStopped("stopped at step 1 of 2"), 143)])
def test_the_communication_of_processes_is_ended_before_python_is(tmp_path, end, code):
    def work():
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        torch.distributed.all_reduce(torch.ones(1))
        if end:
            raise end

    assert launch(work, "") == code
    assert not torch.distributed.is_initialized()
