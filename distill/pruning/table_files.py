"""The files around a latency table: programs to be timed on a device, and the times that came back."""

import json
import math
from pathlib import Path, PurePath

from transformers import AutoConfig

from distill.compress.channels import NotOursError
from distill.compress.teachers import TeacherError
from distill.pruning.latency_table import MIN_PROGRAMS, LatencyTable, LatencyTableError, fit_table, sampled_shapes
from distill.published import loadable
from edge.compare.candidates import write_candidate
from edge.lower.recipes import find_recipe
from swin_hf import SwinHfConfig
from swin_hf.output_folders import check_apart, new_folder, write_json

SHAPES, PROGRAM = "shapes.json", "program{:02d}"


def write_programs(
    checkpoint: str, output_dir: Path, scopes: tuple[str, ...], round_to: int, recipe: str, num_programs: int, seed: int
) -> list[Path]:
    """Write artefacts of shapes that pruning could make of a checkpoint to a new folder, to be timed on a device.

    Raises:
        TeacherError, NotOursError: the checkpoint cannot be loaded, or is none of our classifiers.
        LatencyTableError: there are too few programs for a table, or too few different shapes.
        OutputError: the folder is not free, or is the checkpoint.
    """
    if num_programs < MIN_PROGRAMS:
        raise LatencyTableError(f"a latency table must be made of {MIN_PROGRAMS} programs or more, got {num_programs}")
    check_apart(output_dir, "DIR", checkpoint=checkpoint)
    with new_folder(output_dir) as work_dir:
        shapes = sampled_shapes(config_of(checkpoint), scopes, round_to, num_programs, seed)
        if len(shapes) < num_programs:
            raise LatencyTableError(
                f"the scopes {', '.join(scopes)} must allow {num_programs} different shapes, got {len(shapes)}; give more "
                "scopes, a smaller --round_to or a smaller --num_programs"
            )
        for number, shape in enumerate(shapes):
            write_candidate(work_dir / PROGRAM.format(number), shape, find_recipe(recipe))
            print(f"program {number + 1} of {num_programs}", flush=True)
        configs = {PROGRAM.format(number): json.loads(shape.to_json_string()) for number, shape in enumerate(shapes)}
        write_json(work_dir / SHAPES, {"recipe": recipe, "shapes": configs})
    return [Path(output_dir) / name for name in configs]


def config_of(checkpoint: str) -> SwinHfConfig:
    """The config of one of our classifiers.

    Raises:
        TeacherError: there is no such checkpoint.
        NotOursError: it is of another kind.
    """
    try:
        config = AutoConfig.from_pretrained(loadable(checkpoint))
    except (OSError, ValueError) as error:
        raise TeacherError(f"{checkpoint} must be a checkpoint folder or Hub id: {error}") from error
    if not isinstance(config, SwinHfConfig):
        raise NotOursError(f"a latency table is made for classifiers of swin_hf, got a checkpoint of {config.model_type}")
    return config


def make_table(programs_dir: Path, times: Path, output_file: Path) -> LatencyTable:
    """Make the table of programs and their times, and write it.

    Raises:
        LatencyTableError: a file cannot be read, or the times are of other programs.
    """
    shapes, recipe = read_shapes(programs_dir)
    latencies, threads, machine = read_times(times, list(shapes))
    table = fit_table(list(shapes.values()), [latencies[name] for name in shapes], recipe, threads, machine)
    table.save(output_file)
    return table


def read_shapes(programs_dir: Path) -> tuple[dict[str, SwinHfConfig], str]:
    """The shapes that `write_programs` wrote, by the names of their folders, and their recipe.

    Raises:
        LatencyTableError: they cannot be read.
    """
    file = Path(programs_dir) / SHAPES
    try:
        found = json.loads(file.read_text())
        return {name: SwinHfConfig.from_dict(config) for name, config in found["shapes"].items()}, found["recipe"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LatencyTableError(
            f"{file} must be what `python -m distill.latency programs` wrote: {type(error).__name__}: {error}"
        ) from error


def read_times(file: Path, names: list[str]) -> tuple[dict[str, float], int, str]:
    """The median latency of each program in milliseconds, by the name of its folder; the number of threads; the machine.

    Raises:
        LatencyTableError: it cannot be read, a program is missing, or they were timed with several numbers of threads.
    """
    try:
        found = json.loads(Path(file).read_text())
        rows = {PurePath(program["artefact"]).name: program["latency"] for program in found["programs"]}
        machine = str(found["machine"])
        threads = sorted({row["threads"] for latencies in rows.values() for row in latencies})
        latencies = {name: float(row[-1]["p50_ms"]) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise LatencyTableError(
            f"{file} must be what `edge bench DIR/program* --threads 1 --json` printed: {type(error).__name__}: {error}"
        ) from error
    if missing := [name for name in names if not math.isfinite(latencies.get(name, math.nan))]:
        raise LatencyTableError(
            f"{file} must have the times of all {len(names)} programs, got none of {', '.join(missing[:3])}"
        )
    if len(threads) != 1:
        raise LatencyTableError(
            f"{file} must have times with one number of threads, got {', '.join(map(str, threads))}; run `edge bench` with "
            "--threads 1"
        )
    return latencies, threads[0], machine
