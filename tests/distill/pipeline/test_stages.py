"""Stages: skipping, invalidation, and kills and full disks, which leave complete folders or none."""

import errno
import shutil
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from distill.pipeline.stages import Stage, StageError, run_stages, stages_to_build
from swin_hf.output_folders import OutputError


class Kill(BaseException):
    pass


@pytest.fixture
def stages(tmp_path):
    """Two stages that record their builds; `fail` names a stage that stops half-way, and its exception.

    measured: what the first one writes, if it measures.
    """
    built, fail = [], {}

    def make(first_setting=1, second_setting=1, measured=""):
        def build(name):
            def fill(work_dir):
                built.append(name)
                (work_dir / "half").write_text("half")
                if name in fail:
                    raise fail[name]
                (work_dir / "whole").write_text(measured or "whole")

            return fill

        return [
            Stage(
                name="first",
                title="",
                folder="first",
                inputs=(),
                settings={"a": first_setting},
                build=build("first"),
                is_measured=bool(measured),
            ),
            Stage(
                name="second", title="", folder="2nd", inputs=("first",), settings={"b": second_setting}, build=build("second")
            ),
        ]

    make.built, make.fail, make.run_dir = built, fail, tmp_path
    return make


def run(stages, names=("first", "second"), force=False, **settings):
    stages.built.clear()
    run_stages(stages(**settings), list(names), stages.run_dir, force)
    return list(stages.built)


def test_unchanged_stages_are_skipped(stages):
    assert run(stages) == ["first", "second"]
    assert run(stages) == []
    assert stages_to_build(stages(), ["first", "second"], stages.run_dir) == []
    assert stages_to_build(stages(second_setting=2), ["first", "second"], stages.run_dir) == ["second"]
    assert run(stages, force=True) == ["first", "second"]


def test_a_change_reaches_what_depends_on_it(stages):
    run(stages)
    assert run(stages, second_setting=2) == ["second"]
    assert run(stages, first_setting=2, second_setting=2) == ["first", "second"]


def test_what_was_measured_anew_reaches_what_depends_on_it(stages):
    assert run(stages, measured="5 ms") == ["first", "second"] and run(stages, measured="6 ms") == []
    assert run(stages, names=["first"], force=True, measured="6 ms") == ["first"]
    assert run(stages, measured="7 ms") == ["second"]  # which was made of the 5 ms
    shutil.rmtree(stages.run_dir / "first")
    assert run(stages, measured="6 ms") == ["first"]  # nothing else was found
    shutil.rmtree(stages.run_dir / "first")
    stages.fail["second"] = Kill()
    with pytest.raises(Kill):
        run(stages, measured="8 ms")
    (left,) = (stages.run_dir / ".unfinished").glob("second-*")
    shutil.rmtree(stages.run_dir / "first")
    with pytest.raises(Kill):
        run(stages, measured="9 ms")
    assert list((stages.run_dir / ".unfinished").glob("second-*")) not in ([], [left])  # nothing of it is taken up
    stages.fail.clear()
    assert run(stages, measured="9 ms") == ["second"] and run(stages, measured="9 ms") == []


def test_picked_stage_needs_its_inputs(stages):
    with pytest.raises(StageError, match="stage second reads .*first, which is missing; add first to --stages"):
        run(stages, names=["second"])
    run(stages, names=["first"])
    assert run(stages, names=["second"]) == ["second"]
    with pytest.raises(StageError, match="was made with other settings"):
        run(stages, names=["second"], first_setting=2)


@pytest.mark.parametrize("failure", [Kill(), OSError(errno.ENOSPC, "No space left on device")])
def test_kill_or_full_disk_leaves_no_half_folder_and_keeps_the_old_one(stages, failure):
    run(stages)
    stages.fail["second"] = failure
    with pytest.raises(type(failure)):
        run(stages, second_setting=2)
    assert (stages.run_dir / "2nd" / "whole").is_file()  # the former result is still complete
    with pytest.raises(StageError):
        run(stages, names=["second"], first_setting=9)
    stages.fail.clear()
    assert run(stages, second_setting=2) == ["second"]
    assert sorted(path.name for path in stages.run_dir.iterdir()) == ["2nd", "first"]


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),  # as torch.save has it
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_full_disk_is_said_in_plain_words(stages, failure):
    stages.fail["second"] = failure
    with pytest.raises(OutputError, match="is full; stage second was not finished; free some space and start again"):
        run(stages)
    assert not (stages.run_dir / "2nd").exists()


def test_other_errors_are_not_taken_for_a_full_disk(stages, monkeypatch):
    stages.fail["second"] = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        run(stages)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(OutputError, match="is full"):
        run(stages)


def test_first_build_that_is_killed_leaves_nothing_visible(stages):
    stages.fail["first"] = Kill()
    with pytest.raises(Kill):
        run(stages)
    assert not (stages.run_dir / "first").exists()
    stages.fail.clear()
    assert run(stages) == ["first", "second"]
