"""The whole pipeline as people start it, on tiny models: from class folders to a report, killed and started again."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import start_script

from distill.pruning.plan import PruningPlan

ROOT = Path(__file__).parents[3]
RUN = str(ROOT / "distill" / "run.py")
TINY_CONFIG = """
image_size: 16
validation_share: 0.15
test_share: 0.25
seed: 0
teacher: swin_tiny
teacher_args: "{patch_size: 2, window_size: 4, embed_dim: 24, depths: [1, 1], num_heads: [2, 2], weight_init: fan_in}"
teacher_epochs: 12
teacher_learning_rate: 0.002
student: swin_edge_small
student_args: "{patch_size: 2, window_size: 4, embed_dim: 16, depths: [1, 1], num_heads: [2, 2], stage_blocks: null}"
student_epochs: 12
student_learning_rate: 0.003
recover_epochs: 8
recover_learning_rate: 0.001
per_device_train_batch_size: 8
target: params=0.7
prune_steps: 2
prune_step_epochs: 4
repeats: 10
num_pictures: 0
load_best_model_at_end: false
crop_min_area: 1.0
crop_max_aspect: 1.0
randaugment_ops: 0
color_jitter: 0.0
random_erasing: 0.0
mixup_alpha: 0.0
cutmix_alpha: 0.0
"""


STAGES = {  # folder, and what in its working folder shows that the stage has begun
    "data": ("data", ""),
    "teacher": ("teacher", "checkpoint-*/trainer_state.json"),
    "student": ("student", "checkpoint-*/trainer_state.json"),
    "prune": ("pruned", "step1/recovered/checkpoint-*/trainer_state.json"),
    "recover": ("recovered", "checkpoint-*/trainer_state.json"),
    "edge": ("edge", ""),
    "report": ("report", ""),
}


@pytest.fixture
def command(image_folder, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_CONFIG)

    def make(name: str, *more: str) -> list[str]:
        fixed = ["--dataset", str(image_folder), "--config", str(tmp_path / "tiny.yaml")]
        return [RUN, *fixed, "--output_dir", str(tmp_path / "runs" / name), *more]

    return make


def lasting_figures(run_dir: Path) -> dict:
    """The report without what is measured in seconds."""
    report = json.loads((run_dir / "report.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "latency"} for row in report["rows"]]
    return {"rows": rows, "confusion": report["confusion"], "program_agreement": report["program_agreement"]}


class Started:
    """A run of the pipeline in a process of its own."""

    def __init__(self, command: list[str], folder: Path):
        self.output, self.errors = folder / "output.txt", folder / "errors.txt"
        self.output.write_text("")
        self.process = start_script(command, self.output, self.errors)

    @property
    def said(self) -> str:
        return self.output.read_text()

    def kill_inside(self, run_dir: Path, stage: str, folder: str, begun: str) -> None:
        """Kill the run as soon as a stage has begun, and check that this was before the stage ended."""
        try:
            deadline = time.monotonic() + 120
            while f"] {stage}:" not in self.said or not list(run_dir.glob(f".unfinished/{stage}-*/{begun}".rstrip("/"))):
                assert self.process.is_alive() and time.monotonic() < deadline, f"{stage} was not seen at work"
                time.sleep(0.002)
        finally:
            self.process.kill()
            self.process.join()
        rest = self.said.split(f"] {stage}:")[1]
        assert "done in" not in rest and self.process.exitcode == -signal.SIGKILL
        assert list(run_dir.glob(f".unfinished/{stage}-*")) and not (run_dir / folder).exists()

    def end(self) -> str:
        """What the run printed, which has to end well."""
        self.process.join()
        assert self.process.exitcode == 0, self.errors.read_text()
        return self.said


def test_pipeline_survives_a_kill_in_every_stage(command, tmp_path):
    said = Started(command("whole"), tmp_path).end()
    whole = tmp_path / "runs" / "whole"
    assert f"Try: python -m edge run {whole / 'edge'} {whole / 'samples'}" in said
    report = lasting_figures(whole)
    assert [row["step"] for row in report["rows"]] == ["teacher", "student", "pruned", "recovered", "int8 .pte"]
    teacher, _, pruned, _, program = report["rows"]
    assert teacher["accuracy"] > 0.9  # the colours are easy to tell apart
    assert program["accuracy"] > 0.9
    assert pruned["parameters"] == pytest.approx(0.7 * report["rows"][1]["parameters"], rel=0.03)
    metrics = json.loads((whole / "pruned" / "metrics.json").read_text())
    shares = [step["params_share"] for step in metrics["steps"]]
    assert shares == pytest.approx([0.7**0.5, 0.7], rel=0.03) and metrics["steps"][0]["recovered"]["value"] > 0.5
    for name in ("report.md", "report.html", "report.json"):
        assert "int8 .pte" in (whole / name).read_text()
    plan = PruningPlan.load(whole / "pruned" / "pruning_plan_2.json")
    config = json.loads((whole / "recovered" / "config.json").read_text())
    assert config["block_mlp_dim"] == [[len(block.hidden_channels) for block in stage.blocks] for stage in plan.stages]

    assert Started(command("whole"), tmp_path).end().count("up to date in") == 7

    killed = tmp_path / "runs" / "killed"
    for stage, (folder, begun) in STAGES.items():
        Started(command("killed"), tmp_path).kill_inside(killed, stage, folder, begun)
    assert "resuming an interrupted run" in Started(command("killed"), tmp_path).end()  # of the last stage
    assert lasting_figures(killed) == report
    assert (killed / "edge" / "model.pte").read_bytes() == (whole / "edge" / "model.pte").read_bytes()
    assert sorted(path.name for path in killed.glob(".*")) == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--student_epoch", "3"], 2, "unknown setting --student_epoch in the command line; did you mean --student_epochs?"),
        (["--teacher", "nowhere/at/all"], 1, "must be a checkpoint folder or Hub id"),
        (["--student", "nowhere/at/all"], 1, "--student nowhere/at/all must be a preset"),
        (["--stages", "report"], 1, "add data to --stages"),
    ],
)
def test_mistakes_end_in_one_line_before_any_work(command, tmp_path, arguments, code, message):
    run = Started(command("mistake", *arguments), tmp_path)
    run.process.join()
    assert run.process.exitcode == code
    assert message in run.errors.read_text()
    assert "Traceback" not in run.errors.read_text()
    assert not (tmp_path / "runs" / "mistake" / "data").exists()


@pytest.mark.parametrize("script", ["distill/run.py", "scripts/finetune.py"])
def test_programs_run_the_code_that_they_lie_beside(script, tmp_path):
    for name in ("swin_hf", "edge", "distill", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "measurements"))
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); import distill, edge; print(distill.__file__, edge.__file__)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / script)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == [str(tmp_path / name / "__init__.py") for name in ("distill", "edge")], done.stderr
