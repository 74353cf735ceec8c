"""The documentation as a site: it builds without a broken link, and says every error message."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_site_builds_with_every_page(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run([sys.executable, "scripts/build_docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    site = ROOT / "build" / "docs" / "site"
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / "docs" / page.stem / "index.html").is_file()
    assert "Load the artefact in" in (site / "api" / "edge" / "index.html").read_text()  # a docstring
    pictures = re.findall(r'<img alt="[^"]*" src="\.\./(scripts/[^"]+)"', (site / "gallery" / "index.html").read_text())
    assert len(pictures) == len(list((ROOT / "scripts" / "measurements").glob("*.png")))
    assert all((site / picture).is_file() for picture in pictures)


def test_error_messages_are_those_of_the_code():
    messages = runpy.run_path(str(ROOT / "scripts" / "build_docs.py"))["messages"]()
    told = [text for found in messages.values() for _, text in found]
    assert len(told) > 300
    assert "there is no camera {camera}, or another program uses it" in told
    assert "--teacher_epochs" not in " ".join(told)  # it is a flag of a rule for several
    assert (
        "--{f'{stage}_epochs'} must be positive, got {epochs}" in told
        or "--{stage}_epochs must be positive, got {epochs}" in told
    )
