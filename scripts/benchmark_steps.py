"""What a teacher costs in a step: distillation against the student's own step, the teacher's forward pass, and a cache.

Distillation compares logits and feature maps, by the default losses; a cache holds logits, so it is compared with a step of
logits alone. All are timed in turn on the same batch, without augmentation and without loading of images. On a GPU that
computes in bfloat16, the student is in mixed precision, as trainings are there.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from benchmark_distill import HYBRID, TEACHERS, make_student
from benchmark_outputs import measured_here
from benchmark_students import NUM_CLASSES, SIDE
from transformers import PreTrainedModel

from distill.compress.teachers import Classifier, Teachers
from distill.data.transforms import TransformSettings
from distill.memory import keep_freed_memory
from distill.precision import computes_in_bfloat16
from distill.training.optimisation import parameter_groups
from distill.training.tasks.classification import ImageClassification
from distill.training.tasks.distillation import Distillation, DistillationSettings, compare_features
from distill.training.tasks.task import Objective
from distill.training.teacher_cache import Shard, TeacherCache, begin_epoch, finish_epoch, folder_of
from swin_hf import SwinHfForImageClassification, SwinHfImageProcessorPil
from swin_hf.output_folders import write_json
from swin_hf.presets_swin_hf import PRESETS

STILL = {"randaugment_ops": 0, "color_jitter": 0.0, "random_erasing": 0.0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
WARM_UP = 2


def preset(name: str) -> Callable[[], PreTrainedModel]:
    return lambda: SwinHfForImageClassification(PRESETS[name](num_labels=NUM_CLASSES))


CASES = {  # student, teacher, side of the images and batch size
    "hybrids of the digit scenes": (make_student, TEACHERS[HYBRID], SIDE, 64),
    "swin_edge_small and tiny_vit_21m": (preset("swin_edge_small"), preset("tiny_vit_21m"), 224, 16),
}


def benchmark_steps(arguments: argparse.Namespace) -> None:
    """Time the kinds of steps of every case."""
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as trainings do
    rows = []
    for name, (make, make_teacher, side, batch_size) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            steps = steps_of(make(), make_teacher(), side, batch_size, device, Path(folder))
            times = interleaved(steps, arguments.repeats, device)
        row = {"name": name, "side": side, "batch_size": batch_size} | {f"{step}_ms": times[step] for step in steps}
        row["over_sum"] = times["distillation"] / (times["student"] + times["teacher"])
        row["cache_speed_up"] = times["logits"] / times["cache"]
        rows.append(row)
    report = measured_here("torch", "transformers", device=device) | {
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "rows": rows,
    }
    write_json(arguments.output_file, report)
    print(described(rows))
    print(f"-> {arguments.output_file}")


def steps_of(
    student: PreTrainedModel, teacher: PreTrainedModel, side: int, batch_size: int, device: torch.device, folder: Path
) -> dict[str, Callable[[], object]]:
    """The kinds of steps, by name."""
    processor = SwinHfImageProcessorPil(size={"height": side, "width": side})
    pixels, targets = torch.rand(batch_size, 3, side, side), torch.randint(0, NUM_CLASSES, (batch_size,))
    crops = np.stack([np.zeros(batch_size, int), np.arange(batch_size)], axis=1)
    defaults = DistillationSettings()
    own = ImageClassification(processor, [str(number) for number in range(NUM_CLASSES)], TransformSettings(**STILL))
    teachers = Teachers([Classifier(teacher.eval(), processor)]).requires_grad_(False)
    features = compare_features(defaults.maps_loss, student, own.normalise, teachers, side)
    teachers.hasten(device).to(device)
    pixels, targets = pixels.to(device), targets.to(device)
    with torch.no_grad():
        shard = Shard(0)
        shard.add(crops, teachers(pixels))
    begin_epoch(folder, 0)
    shard.write(folder_of(folder, 0), 0)
    finish_epoch(folder, 0, num_processes=1)
    cache = TeacherCache(folder, NUM_CLASSES, 1)
    objectives = {
        "student": own,
        "distillation": Distillation(own, teachers, defaults, features),
        "logits": Distillation(own, teachers, defaults),
        "cache": Distillation(own, cache, defaults),
    }
    student = student.train().to(device)
    if device.type == "cpu":
        student.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW([*parameter_groups(student, 1e-4, 0.05), {"params": list(features.parameters())}])

    def step_of(objective: Objective) -> Callable[[], None]:
        def step() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_in_bfloat16(device.type)):
                loss = objective(student, pixels, targets, crops).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    @torch.no_grad()
    def ask() -> torch.Tensor:
        return teachers(pixels)

    return {"teacher": ask} | {name: step_of(objective.to(device)) for name, objective in objectives.items()}


def interleaved(steps: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each step, all in turn, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def described(rows: list[dict]) -> str:
    titles = ("student and teacher", "batch", "student, ms", "teacher, ms", "distillation, ms", "of their sum")
    titles += ("of logits alone, ms", "from a cache, ms")
    lines = ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [row["name"], f"{row['batch_size']} x {row['side']} px"]
        cells += [f"{row[f'{step}_ms']:.1f}" for step in ("student", "teacher", "distillation")]
        cells += [f"{row['over_sum']:.2f}", f"{row['logits_ms']:.1f}"]
        cells.append(f"{row['cache_ms']:.1f} (1/{row['cache_speed_up']:.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
