"""The student of `--student auto`: as large as the target allows."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from distill.pipeline.prune_stage import costs_of, program_costs
from distill.pipeline.run_folder import Run
from distill.pruning.shapes import search_for, shape_for
from distill.pruning.targets import AUTO_PRESETS
from distill.training.models import ModelChoice
from swin_hf import SwinHfConfig
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS

SHAPE = "student_shape.json"
FIELDS = (  # of a config, which say how large a model is
    *("embed_dim", "stage_dims", "depths", "num_heads", "mbconv_ratio"),
    *("block_num_heads", "block_head_dim", "block_value_head_dim", "block_mlp_dim"),
)


def student_choice(run: Run, work_dir: Path) -> ModelChoice:
    """The student of the run; one that is to be found is found once, and written to `work_dir`."""
    own = run.settings.student
    if not own.is_auto:
        return own.choice
    file = work_dir / SHAPE
    if not file.is_file():
        found = find_shape(run)
        write_json(file, {name: getattr(found, name) for name in FIELDS})
    found = json.loads(file.read_text())
    return replace(own.choice, args=own.choice.args | {name: found[name] for name in FIELDS})


def find_shape(run: Run) -> SwinHfConfig:
    """The first student of the family that meets the target, from the one that computes most on.

    Raises:
        PruningError: none does.
    """
    configs, targets = family_of(run, len(run.class_names)), run.settings.prune.targets
    with program_costs(run, configs[0]) as measure:
        costs = costs_of(run, configs[0], measure)
        found = shape_for(configs, targets, costs)
        source = costs.latency_source(targets)
        figures = ", ".join(f"{target.measure} {costs.of(found, target.measure):.4g}" for target in targets)
        print(
            f"      {', '.join(map(str, targets))}: widths {found.stage_dims}, depths {list(found.depths)}; {figures}"
            f"{f' ({source})' if source else ''}",
            flush=True,
        )
    return found


def check_shape(run: Run, num_classes: int) -> None:
    """Find out before any work whether the smallest student of the family meets the target.

    Raises:
        PruningError: it does not.
    """
    configs = family_of(run, num_classes)
    with program_costs(run, configs[0]) as measure:
        search_for(configs, run.settings.prune.targets, costs_of(run, configs[0], measure)).require_reachable()


def family_of(run: Run, num_classes: int) -> list[SwinHfConfig]:
    """The presets that a student is scaled from; those that `--student_args` do not fit, as of other stages, are left out."""
    settings, configs = run.settings, []
    changes = {"image_size": settings.task.image_size, "num_labels": num_classes} | settings.student.choice.args
    for name in AUTO_PRESETS:
        with suppress(StrictDataclassError, ValueError):
            configs.append(PRESETS[name](**changes))
    return configs
