"""Commands print their own words only: no chatter of the libraries they import, whether they help, work or refuse."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKING = (
    "-m swin_hf.convert checkpoint converted",
    "-m swin_hf.publish checkpoint org/name",
    "-m edge export checkpoint --recipe int8 --dataset photos --output_dir exported",
    "-m distill.prune checkpoint pruned --target macs=0.7 --round_to 4 --dataset photos --num_images 8",
)
HELP = ("-m swin_hf.publish --help", "-m edge export --help", "distill/run.py --help")
REFUSED = {  # with their exit codes
    "-m edge export checkpoint --recipe int88 --output_dir exported": 2,
    "distill/run.py --dataset nowhere/at/all --output_dir run": 1,
    "scripts/finetune.py --dataset photos --model swin_tinny --output_dir tuned": 2,
}


def start(command: str, folder: Path) -> subprocess.Popen:
    argv = [str(ROOT / part) if part.endswith(".py") else part for part in command.split()]
    return subprocess.Popen([sys.executable, *argv], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def folder(image_folder, checkpoint, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_commands_that_work_print_nothing_but_results(folder):
    for command in WORKING:
        process = start(command, folder)
        said, complaints = process.communicate(timeout=300)
        assert (process.returncode, complaints) == (0, ""), command
        assert said, command


def test_help_is_all_that_help_prints(folder):
    for command in HELP:
        process = start(command, folder)
        said, complaints = process.communicate(timeout=300)
        assert (process.returncode, complaints) == (0, ""), command
        assert said.startswith("usage: "), command


def test_refusals_are_one_sentence(folder):
    for command, code in REFUSED.items():
        process = start(command, folder)
        said, complaints = process.communicate(timeout=300)
        lines = [line for line in complaints.splitlines() if line and not line.startswith(("usage: ", " "))]
        assert (process.returncode, said, len(lines)) == (code, "", 1), f"{command}: {said}{complaints}"
        assert "error: " in lines[0]
