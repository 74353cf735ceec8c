"""Fine-tuning and distillation where ExecuTorch is not installed: a machine that trains need not lower."""

import subprocess
import sys
from pathlib import Path

from conftest import HELD_OUT, STILL, TINY

ROOT = Path(__file__).parents[3]
WITHOUT = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "executorch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
script, *sys.argv[1:] = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def test_fine_tuning_with_a_teacher_needs_no_executorch(image_folder, checkpoint, tmp_path):
    arguments = [
        "--dataset",
        str(image_folder),
        "--teacher",
        str(checkpoint),
        "--output_dir",
        str(tmp_path / "out"),
        *HELD_OUT,
    ]
    arguments += ["--image_size", "16", "--model_args", str(TINY), "--num_train_epochs", "1", "--use_cpu", "true", *STILL]
    arguments += ["--per_device_train_batch_size", "8", "--num_pictures", "2"]
    command = [sys.executable, "-c", WITHOUT, str(ROOT / "scripts" / "finetune.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test_accuracy" in done.stdout and (tmp_path / "out" / "model.safetensors").is_file()


def test_lowering_says_what_is_missing(tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(ROOT / "distill" / "run.py"), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip() == "error: No module named 'executorch'; pip install \"swin-hf[train]\""
    assert not (tmp_path / "run").exists()
