"""The student of `--student auto`: as large as the target allows, found before anything is trained."""

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from distill.pipeline.prune_stage import announce_check, costs_of, program_costs
from distill.pipeline.run_folder import Run
from distill.pruning.search import TOLERANCE
from distill.pruning.shapes import search_for, shape_for
from distill.pruning.targets import AUTO_PRESETS
from distill.training.models import ModelChoice
from edge.compare.candidates import ProgramCost
from swin_hf import SwinHfConfig
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS

SHAPE, PROGRAMS = "student_shape.json", "programs.json"
FIELDS = (  # of a config, which say how large a model is
    *("embed_dim", "stage_dims", "depths", "num_heads", "mbconv_ratio"),
    *("block_num_heads", "block_head_dim", "block_value_head_dim", "block_mlp_dim"),
)


def student_choice(run: Run) -> ModelChoice:
    """The student of the run, in the shape that was found for it if it had to be."""
    own = run.settings.student
    if not own.is_auto:
        return own.choice
    found = json.loads((run.folder / "shape" / SHAPE).read_text())
    return replace(own.choice, args=own.choice.args | {name: found[name] for name in FIELDS})


def build_shape(run: Run, work_dir: Path) -> None:
    """Find the first student of the family that meets the target, from the one that computes most on.

    Raises:
        PruningError: none does.
    """
    configs, targets, file = family_of(run, len(run.class_names)), run.settings.prune.targets, work_dir / PROGRAMS
    if file.is_file():  # of a search that was interrupted
        run.programs.update({key: ProgramCost(**cost) for key, cost in json.loads(file.read_text())["programs"].items()})

    def keep() -> None:
        write_json(file, {"programs": {key: asdict(cost) for key, cost in run.programs.items()}})

    with program_costs(run, None, run.programs, then=keep) as measure:
        costs = costs_of(run, configs[0], measure)
        found = shape_for(configs, targets, costs)
        source = costs.latency_source(targets)
        figures = {target.measure: costs.of(found, target.measure) for target in targets}
        facts = {"targets": [str(target) for target in targets], "costs": figures, "latency_source": source}
        print(f"      {in_words(facts)}: widths {found.stage_dims}, depths {list(found.depths)}", flush=True)
        if costs.excess(found, targets) < 1 - TOLERANCE:
            print("      this is the largest of the family: no student costs as much as the target", flush=True)
    write_json(work_dir / SHAPE, {name: getattr(found, name) for name in FIELDS} | facts)
    file.unlink(missing_ok=True)


def in_words(facts: dict[str, Any]) -> str:
    """The target of a shape, and what it costs."""
    costs = ", ".join(f"{measure} {cost:.4g}" for measure, cost in facts["costs"].items())
    return f"{', '.join(facts['targets'])} ({', '.join(part for part in (costs, facts['latency_source']) if part)})"


def found_for(run_dir: Path) -> str:
    """What the shape of a run's student was found for, in words."""
    return in_words(json.loads((run_dir / "shape" / SHAPE).read_text(encoding="utf-8")))


def check_shape(run: Run, num_classes: int) -> None:
    """Find out before any work whether the smallest student of the family meets the target; if costs are counted, whether any.

    Raises:
        PruningError: it does not.
    """
    configs, targets = family_of(run, num_classes), run.settings.prune.targets
    with program_costs(run, None, run.programs) as measure:
        costs = costs_of(run, configs[0], measure)
        announce_check(costs, targets)
        if costs.are_measured(targets):
            search_for(configs, targets, costs).require_reachable()
        else:
            shape_for(configs, targets, costs)


def family_of(run: Run, num_classes: int) -> list[SwinHfConfig]:
    """The presets that a student is scaled from; those that `--student_args` do not fit, as of other stages, are left out."""
    settings, configs = run.settings, []
    changes = {"image_size": settings.task.image_size, "num_labels": num_classes} | settings.student.choice.args
    for name in AUTO_PRESETS:
        with suppress(StrictDataclassError, ValueError):
            configs.append(PRESETS[name](**changes))
    return configs
