"""Every command of the tutorial, on small pictures, as it is written but for the models that it would fetch."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_image_folder

import edge.__main__ as cli

ROOT = Path(__file__).parents[3]
TINY = """\
image_size: 16
validation_share: 0.2
test_share: 0.25
teacher: swin_tiny
teacher_args: "{patch_size: 2, embed_dim: 16, depths: [1, 1], num_heads: [2, 2], window_size: 4}"
teacher_epochs: 2
student: swin_edge_small
student_args: "{patch_size: 2, embed_dim: 16, depths: [1, 1], num_heads: [2, 2], window_size: 4, stage_blocks: null}"
student_epochs: 2
per_device_train_batch_size: 8
dataloader_drop_last: false
save_total_limit: 1
recipe: int8
repeats: 10
"""


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def test_every_command_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "my_photos")
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = set()
    for python, *words in commands():
        assert python == "python"
        if words[0] == "distill/run.py":
            assert words[-2:] == ["--config", "small"]  # whose models are fetched from the Hub
            command = [sys.executable, str(ROOT / words[0]), *words[1:-1], "tiny.yaml"]
            subprocess.run(command, check=True, capture_output=True, timeout=600)
            assert (tmp_path / "runs" / "my_photos" / "report.html").is_file()
            report = json.loads((tmp_path / "runs" / "my_photos" / "report.json").read_text())
            parameters = {row["step"]: row["parameters"] for row in report["rows"]}
            assert list(parameters) == ["teacher", "student", "int8 .pte"] and report["pruning"] == []
            assert parameters["int8 .pte"] == parameters["student"] != parameters["teacher"]
            assert [own["stage"] for own in report["stages"]] == ["data", "teacher", "student", "edge"]
            assert list(report["history"]) == ["teacher", "student"] and (tmp_path / "runs/my_photos/edge/model.pte").is_file()
        elif words[2] == "demo":  # test_demo.py opens it
            with pytest.raises(SystemExit):
                cli.main(["demo", "--help"])
        else:
            assert words[:2] == ["-m", "edge"]
            assert cli.main(words[2:]) == 0, capsys.readouterr().err
        done.add(words[2] if words[0] == "-m" else words[0])
    assert done == {"distill/run.py", "predict", "evaluate", "bench", "demo", "app", "publish"}
    assert (tmp_path / "my_app" / "app" / "src" / "main" / "assets" / "model.pte").is_file()
