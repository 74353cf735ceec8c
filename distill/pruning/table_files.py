"""The files around a latency table: programs to be timed on a device, and the times that came back."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from distill.compress.channels import NotOursError
from distill.compress.teachers import TeacherError
from distill.errors import require
from distill.pruning.latency_table import LatencyTable, LatencyTableError, fit_table, programs_needed
from distill.pruning.sampling import different, shapes_of_family, shapes_of_pruning
from distill.pruning.targets import AUTO, AUTO_PRESETS, ROUND_TO
from distill.published import loadable
from edge.compare.candidates import write_candidates
from edge.lower.recipes import find_recipe
from swin_hf import SwinHfConfig
from swin_hf.output_folders import check_apart, check_file_replaceable, new_folder, write_json
from swin_hf.presets_swin_hf import PRESETS

SHAPES, PROGRAM = "shapes.json", "program{:02d}"
MANY_SHAPES = 20  # enough to see which parts vary
SPARE = 1.25  # times as many programs as a table needs
DEFAULT_SIDE = 224  # pixels


@dataclass(frozen=True, kw_only=True)
class TablePrograms:
    """What a latency table is to be of.

    model: a checkpoint or a preset that is to be pruned, or "auto" for the students that `--student auto` chooses from.
    image_size: of a preset and of "auto"; a checkpoint has its own. scopes, round_to: of the pruning; "auto" is not pruned.
    num_programs: None: as many as the shapes need, and some to spare. processes: that lower programs at the same time.
    """

    model: str
    output_dir: Path
    image_size: int | None
    scopes: tuple[str, ...]
    round_to: int
    recipe: str
    num_programs: int | None
    seed: int
    processes: int

    @property
    def is_checkpoint(self) -> bool:
        return self.model != AUTO and self.model not in PRESETS

    def shapes(self) -> Iterator[SwinHfConfig]:
        """Shapes, without end.

        Raises:
            TeacherError, NotOursError: the checkpoint cannot be loaded, or is none of our classifiers.
        """
        size = self.image_size or DEFAULT_SIDE
        if self.model == AUTO:
            presets = [PRESETS[name](image_size=size) for name in AUTO_PRESETS]
            return shapes_of_family(presets, self.seed)
        config = config_of(self.model) if self.is_checkpoint else PRESETS[self.model](image_size=size)
        return shapes_of_pruning(config, self.scopes, self.round_to, self.seed)


def write_programs(settings: TablePrograms) -> int:
    """Write artefacts of the shapes to a new folder, to be timed on a device; returns their number.

    Raises:
        TeacherError, NotOursError: the checkpoint cannot be loaded, or is none of our classifiers.
        SettingsError: too few programs for a table, or the size of a checkpoint was given.
        LatencyTableError: there are too few different shapes.
        OutputError: the folder is not free, or is the checkpoint.
    """
    has_own = settings.is_checkpoint
    require(
        not (has_own and settings.image_size), "image_size", "be left to the checkpoint, which has one", settings.image_size
    )
    is_usual = settings.model != AUTO or settings.round_to == ROUND_TO
    require(is_usual, "round_to", f"be left out with {AUTO}, whose widths are multiples of {ROUND_TO}", settings.round_to)
    check_apart(settings.output_dir, "DIR", model=settings.model if has_own else None)
    with new_folder(settings.output_dir) as work_dir:
        needed = programs_needed(different(settings.shapes(), MANY_SHAPES))
        count = settings.num_programs or math.ceil(SPARE * needed)
        require(count >= needed, "num_programs", f"be {needed} or more for these shapes", count)
        shapes = different(settings.shapes(), count)
        if len(shapes) < count:
            raise LatencyTableError(
                f"--scopes {','.join(settings.scopes)} with --round_to {settings.round_to} must allow {count} different "
                f"shapes, got {len(shapes)}; give more scopes, or a smaller --round_to"
            )
        folders, record = [work_dir / PROGRAM.format(number) for number in range(count)], {}
        written = write_candidates(folders, shapes, find_recipe(settings.recipe), settings.processes)
        for sha256, shape in zip(written, shapes, strict=True):
            record[sha256] = json.loads(shape.to_json_string())
            print(f"program {len(record)} of {count}", flush=True)
        write_json(work_dir / SHAPES, {"recipe": settings.recipe, "shapes": record})
    return count


def config_of(checkpoint: str) -> SwinHfConfig:
    """The config of one of our classifiers.

    Raises:
        TeacherError: there is no such checkpoint, or it is damaged.
        NotOursError: it is of another kind.
    """
    try:
        config = AutoConfig.from_pretrained(loadable(checkpoint))
    except (OSError, ValueError, StrictDataclassError) as error:
        raise TeacherError(f"{checkpoint} must be a checkpoint folder, a Hub id, a preset or {AUTO}: {error}") from error
    if not isinstance(config, SwinHfConfig):
        raise NotOursError(f"a latency table is of classifiers of swin_hf, got a checkpoint of {config.model_type}")
    return config


def make_table(programs_dir: Path, times: list[Path], output_file: Path) -> LatencyTable:
    """Make the table of programs and their times, and write it.

    Raises:
        LatencyTableError: a file cannot be read, or the times are of other programs.
        OutputError: the file is somebody's own, or one of the inputs, or cannot be written.
    """
    check_apart(output_file, "TABLE", programs=programs_dir, **{f"times{number}": file for number, file in enumerate(times)})
    check_file_replaceable(output_file, "TABLE")
    shapes, recipe = read_shapes(programs_dir)
    latencies, threads, machine = read_times(times, list(shapes))
    table = fit_table(list(shapes.values()), [latencies[sha256] for sha256 in shapes], recipe, threads, machine)
    output_file.parent.mkdir(parents=True, exist_ok=True)
    table.save(output_file)
    return table


def read_shapes(programs_dir: Path) -> tuple[dict[str, SwinHfConfig], str]:
    """The shapes that `write_programs` wrote, by the SHA-256 of their programs, and the recipe.

    Raises:
        LatencyTableError: they cannot be read.
    """
    file = Path(programs_dir) / SHAPES
    try:
        found = json.loads(file.read_text())
        return {sha256: SwinHfConfig.from_dict(config) for sha256, config in found["shapes"].items()}, found["recipe"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise LatencyTableError(
            f"{file} must be what `python -m distill.latency programs` wrote: {type(error).__name__}: {error}"
        ) from error


def read_times(files: list[Path], wanted: list[str]) -> tuple[dict[str, float], int, str]:
    """The median latency of each program in milliseconds, by its SHA-256; the number of threads; the machine.

    Raises:
        LatencyTableError: they cannot be read, one of the programs `wanted` is missing, or they come from several machines or
            numbers of threads.
    """
    latencies, threads, machines = {}, set(), set()
    for file in files:
        try:
            found = json.loads(Path(file).read_text())
            for program in found["programs"]:
                (row,) = program["latency"]
                latencies[program["sha256"]] = float(row["p50_ms"])
                threads.add(int(row["threads"]))
            machines.add(str(found["machine"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LatencyTableError(
                f"{file} must be what `bench DIR/program* --threads 1 --json` printed, with one number of threads: "
                f"{type(error).__name__}: {error}"
            ) from error
    if missing := [sha256 for sha256 in wanted if sha256 not in latencies]:
        raise LatencyTableError(
            f"{', '.join(map(str, files))} must have the times of all {len(wanted)} programs, got none of {len(missing)}: "
            "they were not timed, or are other programs than those in DIR"
        )
    for name, values in (("number of threads", threads), ("machine", machines)):
        if len(values) != 1:
            raise LatencyTableError(f"times must be of one {name}, got {', '.join(map(str, sorted(values)))}")
    return latencies, threads.pop(), machines.pop()
