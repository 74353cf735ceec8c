"""Measure this project against its peers, interleaved in one run, and write the results as JSON and as a table.

python scripts/benchmark.py model                                  # forward and training of Swin-T and SwinV2-T
python scripts/benchmark.py model --batch_sizes 1 --modes eager    # some of the cases
python scripts/benchmark.py train                                  # trainings against the loop of transformers' example
python scripts/benchmark.py edge                                   # programs for the device compared with other engines
python scripts/benchmark.py edge --parts frontier                  # programs compared with timm's models for phones
python scripts/benchmark.py edge --parts grid                      # what choices of a student cost
python scripts/benchmark.py students                               # accuracy and latency of small architectures (hours)
python scripts/benchmark.py distill                                # what a teacher is worth (hours)
python scripts/benchmark.py distill-folder --dataset FOLDER        # what a teacher is worth on a folder of few images
python scripts/benchmark.py distill-steps                          # what a teacher costs in a step
python scripts/benchmark.py prune                                  # pruned students against thin and narrow ones (hours)
python scripts/benchmark.py prune --parts widths table             # what kernels like; how far a latency table is off
python scripts/benchmark.py segmenters CHECKPOINT                  # mean IoU and latency of programs of segmenters
python scripts/benchmark.py explain CHECKPOINT                     # whether explanations point at digits in scenes
python scripts/benchmark.py weight-init                            # two initialisations of a narrow model
"""

import argparse
import json
import math
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # works without installing the package

from edge.quiet import quieten

quieten()  # before the imports that print warnings

import torch
from benchmark_distill import DEFAULT, HYBRID, LADDER, benchmark_distill, work_distill, work_teacher
from benchmark_edge import EDGE_PARTS, benchmark_edge
from benchmark_explain import benchmark_explain
from benchmark_folder import benchmark_folder, work_folder
from benchmark_models import DTYPES, SIDES, benchmark_models, work
from benchmark_outputs import check_report
from benchmark_prune import benchmark_prune, work_prune
from benchmark_segmenters import benchmark_segmenters
from benchmark_steps import benchmark_steps
from benchmark_students import BY_NAME, benchmark_students, work_student
from benchmark_training import CONTENDERS, benchmark_training, compare_weight_inits, work_training

from edge.device.commands import positive
from edge.device.errors import ExplainedError
from edge.lower.recipes import RECIPES
from swin_hf.presets_swin_hf import PRESETS


def main(argv: list[str] | None = None) -> int:
    """Run the measurements that the command line asks for; 1 after an error that was explained on stderr."""
    arguments = make_parser().parse_args(argv)
    try:
        if output_file := getattr(arguments, "output_file", None):
            check_report(output_file)
            output_file.parent.mkdir(parents=True, exist_ok=True)
        arguments.run(arguments)
    except (ExplainedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/benchmark.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, parser_class=partial(argparse.ArgumentParser, allow_abbrev=False))
    for add in (
        add_models,
        add_trainings,
        add_programs,
        add_students,
        add_distillation,
        add_pruning,
        add_checkpoints,
        add_workers,
    ):
        add(commands)
    return parser


def add_models(commands) -> None:
    command = commands.add_parser("model", help="time and memory of the models against stock transformers and timm")
    command.add_argument("--models", nargs="+", default=["swin_tiny", "swinv2_tiny"], choices=sorted(PRESETS))
    command.add_argument("--batch_sizes", nargs="+", type=positive, default=[1, 8])
    command.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=list(DTYPES))
    command.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    command.add_argument("--works", nargs="+", default=["forward", "training"], choices=["forward", "training"])
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--threads", type=positive, default=os.cpu_count(), help="CPU threads")
    command.add_argument(
        "--seconds", type=positive_number, default=20.0, help="per case, for all contenders together, after warm-up"
    )
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/model.json"), metavar="FILE")
    command.set_defaults(run=benchmark_models)


def add_trainings(commands) -> None:
    command = commands.add_parser("weight-init", help="training curves of a narrow model from two initialisations")
    command.add_argument("--seeds", nargs="+", type=seed, action=Distinct, default=[0, 1, 2])
    command.add_argument("--epochs", type=positive, default=30)
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/weight_init.json"), metavar="FILE")
    command.set_defaults(run=compare_weight_inits)
    command = commands.add_parser("train", help="images per second and memory of a training against transformers' example")
    command.add_argument("--model", default="swin_tiny", choices=sorted(PRESETS))
    command.add_argument("--per_device_train_batch_size", type=positive, default=8)
    command.add_argument("--steps", type=positive, default=13, help="steps of each training; the first three are not counted")
    command.add_argument("--repeats", type=positive, default=3, help="trainings of each contender, in turn")
    command.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that load images")
    command.add_argument("--bf16", action="store_true", help="mixed precision")
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/train.json"), metavar="FILE")
    command.set_defaults(run=benchmark_training)


def add_programs(commands) -> None:
    command = commands.add_parser("edge", help="programs for the device against other engines and models")
    command.add_argument("--parts", nargs="+", default=["peers", "grid"], choices=list(EDGE_PARTS))
    command.add_argument(
        "--checkpoints", nargs="+", type=Path, default=[], metavar="DIR", help="fine-tuned classifiers, for --parts accuracy"
    )
    command.add_argument("--recipes", nargs="+", default=["int8", "int8-static", "int8-dynamic"], choices=list(RECIPES))
    command.add_argument("--model", default="swin_tiny", choices=sorted(PRESETS), help="model to compare across engines")
    command.add_argument("--threads", type=positive, default=os.cpu_count())
    command.add_argument("--repeats", type=positive, default=100)
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/edge.json"), metavar="FILE")
    command.set_defaults(run=benchmark_edge)


def add_students(commands) -> None:
    command = commands.add_parser("students", help="accuracy against latency of small architectures, trained here")
    command.add_argument("--seeds", nargs="+", type=seed, action=Distinct, default=[0, 1, 2])
    command.add_argument("--epochs", type=positive, default=36)
    command.add_argument(
        "--students",
        nargs="+",
        action=Distinct,
        default=list(BY_NAME),
        choices=list(BY_NAME),
        metavar="NAME",
        help=f"which of: {'; '.join(BY_NAME)}",
    )
    command.add_argument("--settle_rates", action="store_true", help="settle the learning rates anew, by more trainings")
    add_processes(command)
    command.add_argument("--threads", type=positive, default=os.cpu_count(), help="of the programs, when they are timed")
    command.add_argument("--repeats", type=positive, default=200, help="timed runs of each program")
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/students.json"), metavar="FILE")
    command.set_defaults(run=benchmark_students)


def add_distillation(commands) -> None:
    command = commands.add_parser("distill", help="a student trained alone and with teachers, for the same steps")
    command.add_argument("--seeds", nargs="+", type=seed, action=Distinct, default=[0, 1, 2])
    command.add_argument("--epochs", type=positive, default=12, help="of a student; some are also trained for twice as many")
    command.add_argument("--teacher_epochs", type=positive, default=36)
    command.add_argument("--learning_rate", type=positive_number, default=4e-3, help="of students; teachers have half of it")
    add_processes(command)
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/distill.json"), metavar="FILE")
    command.set_defaults(run=benchmark_distill)
    command = commands.add_parser("distill-folder", help="a student alone and with a teacher, on a folder of few images")
    command.add_argument("--dataset", type=Path, required=True, help="one folder for each class")
    command.add_argument(
        "--distillation", default=DEFAULT, choices=[name for name, own in LADDER.items() if own.teachers == (HYBRID,)]
    )
    command.add_argument("--splits", nargs="+", type=seed, action=Distinct, default=[0, 1, 2, 3, 4])
    command.add_argument("--image_size", type=positive, default=64)
    command.add_argument("--epochs", type=positive, default=150)
    command.add_argument("--teacher_epochs", type=positive, default=150)
    command.add_argument("--learning_rate", type=positive_number, default=4e-3, help="of students; teachers have half of it")
    add_processes(command)
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/distill_folder.json"), metavar="FILE")
    command.set_defaults(run=benchmark_folder)
    command = commands.add_parser("distill-steps", help="steps of distillation against those of the student and the teacher")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--threads", type=positive, default=os.cpu_count(), help="CPU threads")
    command.add_argument("--repeats", type=positive, default=10, help="timed steps of each kind")
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/distill_steps.json"), metavar="FILE")
    command.set_defaults(run=benchmark_steps)


def add_pruning(commands) -> None:
    command = commands.add_parser("prune", help="a student pruned to budgets against those that are as small from the start")
    command.add_argument("--parts", nargs="+", default=["half", "budgets"], choices=["widths", "table", "half", "budgets"])
    command.add_argument("--seeds", nargs="+", type=seed, action=Distinct, default=[0, 1, 2])
    command.add_argument("--epochs", type=positive, default=8, help="of the student")
    command.add_argument("--recovery_epochs", type=positive, default=4, help="after pruning, over all steps")
    command.add_argument("--teacher_epochs", type=positive, default=24)
    rates = "of students; recovery and the teacher have half of it"
    command.add_argument("--learning_rate", type=positive_number, default=4e-3, help=rates)
    add_processes(command)
    command.add_argument("--threads", type=positive, default=1, help="of the programs, when they are timed")
    command.add_argument("--repeats", type=positive, default=200, help="timed runs of each program")
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/prune.json"), metavar="FILE")
    command.set_defaults(run=benchmark_prune)


def add_checkpoints(commands) -> None:
    command = commands.add_parser("segmenters", help="mean IoU, latency and size of segmenters on the digit scenes")
    command.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="segmenters of the digit scenes")
    command.add_argument("--threads", type=positive, default=1, help="of the programs, when they are timed")
    command.add_argument("--repeats", type=positive, default=200, help="timed runs of each program")
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/segmenters.json"), metavar="FILE")
    command.set_defaults(run=benchmark_segmenters)
    command = commands.add_parser("explain", help="pointing game, deletion and insertion of explanations on digit scenes")
    command.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="classifiers of the digit scenes")
    command.add_argument("--num_images", type=positive, default=500, help="test scenes; those that the model has right count")
    command.add_argument("--output_file", type=Path, default=Path("runs/benchmark/explain.json"), metavar="FILE")
    command.set_defaults(run=benchmark_explain)


def add_processes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--processes", type=positive, default=os.cpu_count(), help="trainings at a time, which share the cores"
    )


class Distinct(argparse.Action):
    """Takes a list whose values differ."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(set(values)) < len(values):
            parser.error(f"{option_string} must be different values, got {' '.join(map(str, values))}")
        setattr(namespace, self.dest, values)


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 2**32 - 1, got {value}")
    return value


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def add_workers(commands) -> None:
    """Commands that the others start, a process for each contender or training."""
    command = commands.add_parser("worker", help="one contender; runs a pass for every line that it reads (internal)")
    command.add_argument("case", type=json.loads)
    command.add_argument("side", choices=SIDES)
    command.add_argument("attention")
    command.add_argument("device", type=torch.device)
    command.add_argument("threads", type=int)
    command.set_defaults(run=work)
    command = commands.add_parser("training-worker", help="one training of one contender (internal)")
    command.add_argument("contender", choices=CONTENDERS)
    command.add_argument("photographs", type=Path)
    command.add_argument("model")
    for name in ("per_device_train_batch_size", "steps", "dataloader_num_workers", "bf16"):
        command.add_argument(name, type=int)
    command.set_defaults(run=work_training)
    for name, argument, work_on, what in (
        ("student", "training", work_student, "one training of such an architecture"),
        ("teacher", "teaching", work_teacher, "one teacher, trained or asked"),
        ("distill", "training", work_distill, "one training by one recipe"),
        ("folder", "training", work_folder, "one training of a split"),
        ("prune", "training", work_prune, "one training, or pruning with recovery"),
    ):
        command = commands.add_parser(f"{name}-worker", help=f"{what} (internal)")
        command.add_argument(argument, type=json.loads)
        command.set_defaults(run=work_on)


if __name__ == "__main__":
    sys.exit(main())
