"""Packages of npm that tests need."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def npm_packages(name: str, *packages: str) -> Path:
    """`node_modules` with these packages, installed once into `build/`; skips where npm cannot."""
    folder = ROOT / "build/npm" / name
    stamp = folder / "installed.txt"
    if stamp.is_file() and stamp.read_text() == "\n".join(packages):
        return folder / "node_modules"
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # No lifecycle scripts: one would download native libraries. No peers: React Native itself is not needed for the types.
    options = ["--no-save", "--ignore-scripts", "--legacy-peer-deps", "--fetch-retries=0", "--no-audit", "--no-fund"]
    command = ["npm", "install", "--prefix", str(folder), *options, *packages]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("npm took more than five minutes")
    if result.returncode:
        pytest.skip(f"npm cannot install {', '.join(packages)}: {result.stderr.strip()[-200:]}")
    stamp.write_text("\n".join(packages))
    return folder / "node_modules"
