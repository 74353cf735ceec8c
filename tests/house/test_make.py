"""`make clean` removes what make made, and nothing else."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = {  # the file by which make knows its own
    ".venv": "made_by_make",
    "build/conformance-transformers": "made_by_make",
    "build/arm64": "made.json",
    ".pytest_cache": "CACHEDIR.TAG",
    "swin_hf.egg-info": "PKG-INFO",
}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_clean_removes_what_make_made_and_nothing_else(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = ["runs/demo/report.html", "build/mine.txt", "build/lib/mine.py", "other.egg-info/PKG-INFO", ".ruff_cache/mine"]
    for name in [*kept, *(f"{folder}/{mark}" for folder, mark in MADE.items())]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    done = subprocess.run(["make", "--no-print-directory", "clean"], cwd=tmp_path, capture_output=True, text=True, check=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *kept}
    assert done.stdout.splitlines() == [".ruff_cache is left: it has no CACHEDIR.TAG"]
