"""What people look for in a run, the samples and the report, copied to the top of its folder."""

import hashlib
from pathlib import Path

from swin_hf.output_folders import OutputError, copy_whole, read_record, remove_if_empty, shown, write_json

RECORD = "run.json"  # of the run, and of the copies that it made: their sha256


def check_layout(run_dir: Path) -> None:
    """Refuse to replace a file where a copy will lie, unless it is a copy that this run made.

    Raises:
        OutputError: it is another file, or was changed since.
    """
    copies, samples = recorded_copies(run_dir), run_dir / "samples"
    names = {*copies, *(f"report.{kind}" for kind in ("json", "md", "html"))}
    others = [name for name in names if not _is_copy(run_dir / name, copies.get(name, []))]
    if samples.is_symlink() or (samples.exists() and not samples.is_dir()) or (not copies and any(samples.glob("*"))):
        others.append("samples")
    if others:
        raise OutputError(
            f"the run copies its samples and its report to {run_dir}, which holds other files of these names, or some that "
            f"were changed since: {shown(others)}; they are left as they are: move them elsewhere and start again"
        )


def lay_out(run_dir: Path) -> None:
    """Copy the samples and the report; copies of former ones are removed, other files are left as they are.

    Raises:
        OutputError: a file that is not such a copy is in the way.
    """
    report = (run_dir / "report").glob("report*")
    samples = (run_dir / "data" / "samples").glob("*")
    wanted = {file.name: file for file in report} | {f"samples/{file.name}": file for file in samples}
    hashes = {name: _sha256(file) for name, file in wanted.items()}
    former = recorded_copies(run_dir)
    if former == {name: [own] for name, own in hashes.items()} and all((run_dir / name).is_file() for name in wanted):
        return
    in_the_way = [name for name, own in hashes.items() if not _is_copy(run_dir / name, [*former.get(name, []), own])]
    if in_the_way:
        raise OutputError(
            f"{run_dir} holds {shown(in_the_way)}, which this run did not make, where it would copy its own; move these files "
            "elsewhere and start again"
        )
    # Both the former and the new ones are recorded until all is copied, so that a kill in between leaves nothing unknown.
    both = {name: [*former.get(name, []), *([hashes[name]] if name in hashes else [])] for name in {*former, *hashes}}
    write_json(run_dir / RECORD, {"files": {}, "copies": both})
    for name in former:
        if name not in wanted and (run_dir / name).is_file() and _is_copy(run_dir / name, former[name]):
            (run_dir / name).unlink()
    for name, file in wanted.items():
        (run_dir / name).parent.mkdir(exist_ok=True)
        copy_whole(file, run_dir / name)
    remove_if_empty(run_dir / "samples")
    write_json(run_dir / RECORD, {"files": {}, "copies": {name: [own] for name, own in hashes.items()}})


def recorded_copies(run_dir: Path) -> dict[str, list[str]]:
    """The copies that a run made, by their paths: each one's sha256, or several if it was being replaced."""
    copies = (read_record(run_dir, RECORD) or {}).get("copies", {})
    return copies if isinstance(copies, dict) else {}


def _is_copy(path: Path, hashes: list[str]) -> bool:
    """Whether there is nothing at a path, or a copy with one of these hashes."""
    if path.is_symlink():
        return False
    return not path.exists() or (path.is_file() and _sha256(path) in hashes)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
