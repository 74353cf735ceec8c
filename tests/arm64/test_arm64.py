"""The comparison with emulated processors: its figures, its bounds, and when it is skipped; no emulator, no network."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

import arm64
import arm64_guest
import arm64_machine
from arm64_machine import PROCESSORS, Machine, NoMachineError, missing_libraries, prepare_machine

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(20, 5)) + 10 * np.eye(5)[np.arange(20) % 5]


def answered(logits: np.ndarray, inputs_sha256: str = "a") -> dict:
    return {"logits": logits.tolist(), "inputs_sha256": inputs_sha256}


@pytest.fixture
def compared(monkeypatch):
    """A function that compares a program's logits on a processor with `LOGITS`, without reading an artefact."""

    def compare(there: dict, recipe: str = "int8", processor: str = "cortex-a76"):
        monkeypatch.setattr(arm64, "read_artefact", lambda folder: (SimpleNamespace(recipe=recipe), b""))
        return arm64.compare_programs(Path("programs/mine"), processor, there, answered(LOGITS))

    return compare


def test_equal_logits_are_within_every_bound(compared):
    for recipe in ("fp32", "int8"):
        row = compared(answered(LOGITS), recipe)
        assert (row.same_logits, row.max_difference, row.agreement, row.same_inputs) == (1.0, 0.0, 1.0, True)
        assert row.within_bounds


def test_float_difference_is_relative_to_the_largest_logit(compared):
    for factor, holds in ((0.9, True), (1.1, False)):
        logits = LOGITS.copy()
        logits[3, 2] += factor * arm64.MAX_FLOAT_DIFFERENCE * np.abs(LOGITS).max()
        row = compared(answered(logits), "fp32")
        assert row.relative_difference == pytest.approx(factor * arm64.MAX_FLOAT_DIFFERENCE)
        assert row.same_logits == 0.95
        assert row.within_bounds is holds


def test_quantized_program_misses_on_agreement_and_on_error(compared):
    swapped = LOGITS.copy()
    swapped[:2] = np.roll(swapped[:2], 1, axis=1)  # the top class of two of twenty images changes
    assert compared(answered(swapped)).agreement == 0.9
    assert not compared(answered(swapped)).within_bounds
    noisy = LOGITS * np.where(np.arange(5) % 2, 1.2, 0.8)
    row = compared(answered(noisy))
    assert row.agreement == 1.0 and row.sqnr_db < arm64.MIN_SQNR_DB
    assert not row.within_bounds


def test_other_inputs_are_reported(compared):
    assert compared(answered(LOGITS, "b")).same_inputs is False


def test_logits_that_are_no_numbers_miss(compared):
    logits = LOGITS.copy()
    logits[4:7, 1] = np.nan
    row = compared(answered(logits))
    assert row.error == "logits of 3 of 20 images are NaN or infinite"
    assert not row.within_bounds
    assert arm64.describe(row).startswith("MISSED")


@pytest.mark.parametrize(
    ("recipe", "processor", "verdict"),
    [("fp16", "cortex-a53", "refuses"), ("fp16", "cortex-a76", "MISSED"), ("int8", "cortex-a53", "MISSED")],
)
def test_only_a_processor_without_float16_may_refuse_a_float16_program(compared, recipe, processor, verdict):
    row = compared({"error": "the runtime cannot run it"}, recipe, processor)
    assert arm64.describe(row).split()[0] == verdict
    assert row.within_bounds is (verdict == "refuses")


def test_identity_is_what_the_processor_would_say():
    assert PROCESSORS["cortex-a53"].midr == 0x410FD030  # as in Arm's reference manual, except for the revision
    lines = PROCESSORS["cortex-a76"].cpuinfo.splitlines()
    assert "CPU part : 0xd0b" in lines and "CPU implementer : 0x41" in lines
    assert sum(line.startswith("processor") for line in lines) == arm64_machine.NUM_CORES


def test_missing_libraries_are_read_from_the_trace_of_the_linker():
    trace = "\tlibc.so.6 => /lib/libc.so.6 (0x55)\n\tlibcudnn.so.9 => not found\n\tlibnccl.so.2 => not found\n"
    assert missing_libraries(trace + "\tlibnccl.so.2 => not found\n") == {"libcudnn.so.9", "libnccl.so.2"}


def test_skips_with_the_reason_where_there_is_no_emulator(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(arm64_machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(arm64_machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(arm64_machine.shutil, "which", lambda name: None)
    assert arm64.main(["--work_dir", str(tmp_path / "arm64")]) == 0
    assert "skipped: apt-get, which fetches Debian's packages for AArch64, is not on this machine" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "arm64").iterdir()] == [arm64.RECORD]


def test_skips_on_a_machine_of_that_kind_and_elsewhere_than_linux(monkeypatch, tmp_path):
    for system, machine in (("Linux", "aarch64"), ("Darwin", "x86_64")):
        monkeypatch.setattr(arm64_machine.platform, "system", lambda system=system: system)
        monkeypatch.setattr(arm64_machine.platform, "machine", lambda machine=machine: machine)
        with pytest.raises(NoMachineError, match=f"this is {system} {machine}"):
            prepare_machine(tmp_path / "machine")


def test_reason_is_the_last_line_of_what_failed():
    with pytest.raises(NoMachineError, match="apt-get update failed: E: no network"):
        arm64_machine._check(["sh", "-c", "echo first >&2; echo E: no network >&2; exit 100"], "apt-get update")


def test_machine_that_was_built_is_used_again(monkeypatch, tmp_path):
    monkeypatch.setattr(arm64_machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(arm64_machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(arm64_machine.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    built = []

    def build(work_dir, **_):
        built.append(work_dir)
        (work_dir / "root").mkdir()

    monkeypatch.setattr(arm64_machine, "_unpack_debian", build)
    for step in ("_install_wheels", "_complete_torch"):
        monkeypatch.setattr(arm64_machine, step, lambda *_: None)
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / arm64_machine.STAMP).write_text("of other versions")
    for _ in range(2):
        machine = prepare_machine(tmp_path / "machine")
    assert len(built) == 1
    assert machine.emulator == Path("/usr/bin/qemu-aarch64-static")
    assert (tmp_path / "machine" / "processors" / "armv9" / "proc" / "cpuinfo").read_text() == PROCESSORS["armv9"].cpuinfo


def test_failure_inside_the_emulator_is_an_error_not_a_skip(tmp_path):
    emulator = tmp_path / "emulator"
    emulator.write_text("#!/bin/sh\necho it broke >&2\nexit 3\n")
    emulator.chmod(0o755)
    machine = Machine(folder=tmp_path, emulator=emulator)
    with pytest.raises(RuntimeError, match=r"job\.py on armv9 ended with 3: it broke"):
        machine.run(PROCESSORS["armv9"], Path("job.py"))


def test_folders_and_files_of_others_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert arm64.main(["--work_dir", str(tmp_path / "mine"), "--output_file", str(tmp_path / "new.json")]) == 1
    assert arm64.main(["--work_dir", str(tmp_path / "new"), "--output_file", str(tmp_path / "mine" / "thesis.txt")]) == 1
    assert "--work_dir must be a new" in (errors := capsys.readouterr().err) and "output_file must be a new" in errors
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_record_holds_every_comparison_and_a_miss_is_the_exit_code(monkeypatch, tmp_path):
    worse = {"cortex-a53": LOGITS, "cortex-a76": LOGITS[:, ::-1]}
    monkeypatch.setattr(arm64, "prepare_machine", lambda folder: SimpleNamespace(version="an emulator"))
    monkeypatch.setattr(arm64, "write_digits", lambda folder: folder.mkdir(parents=True) or folder)
    monkeypatch.setattr(arm64, "image_files", lambda folder: [Path("digit.png")])
    monkeypatch.setattr(arm64, "export_small_programs", lambda *_: [Path("programs/small")])
    monkeypatch.setattr(arm64, "read_artefact", lambda folder: (SimpleNamespace(recipe="int8"), b""))
    here = {"machine": "x86_64", "versions": {"torch": "1"}, "programs": [answered(LOGITS)]}
    monkeypatch.setattr(arm64_guest, "answer", lambda artefacts, images: here)
    monkeypatch.setattr(arm64, "ask", lambda machine, name, request: here | {"programs": [answered(worse[name])]})
    command = ["--work_dir", str(tmp_path), "--output_file", str(tmp_path / "record.json"), "--processors"]
    assert arm64.main([*command, "cortex-a53"]) == 0
    (tmp_path / "digits").rmdir()
    assert arm64.main([*command, "cortex-a53", "cortex-a76"]) == 1
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["within_bounds"] for row in record["comparisons"]] == [True, False]
    assert record["emulator"] == "an emulator"


def test_artefact_that_cannot_be_run_has_an_error_instead_of_logits(tmp_path):
    (program,) = arm64_guest.answer([str(tmp_path / "none")], [])["programs"]
    assert "has no edge.json" in program["error"]


def test_wrong_artefact_is_an_error_before_anything_is_fetched(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    assert arm64.main([str(tmp_path)]) == 1
    assert "has no edge.json" in capsys.readouterr().err
