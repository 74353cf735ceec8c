"""Prune a checkpoint to a budget, without a run.

python -m distill.prune CHECKPOINT OUT --target macs=0.5 --dataset my_photos
python -m distill.prune CHECKPOINT OUT --target latency=0.5x --dataset my_photos --scopes bottleneck,stages
python -m distill.prune CHECKPOINT OUT --target latency_ms=5 --latency_table phone.json --dataset my_photos
python -m distill.prune CHECKPOINT OUT --plan OTHER/pruning_plan.json
"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without installing the package

from distill.errors import SettingsError
from distill.launch import launch
from distill.pruning.flags import add_recipe, add_removal, not_negative
from distill.pruning.targets import CRITERIA, LATENCIES, parse_scopes, parse_targets, read_flag
from edge.device.commands import positive


def main(argv: list[str] | None = None) -> int:
    """Prune; returns 0 on success, otherwise as `launch`."""
    options = vars(make_parser().parse_args(argv))

    def work() -> None:
        from distill.pruning.checkpoints import CheckpointPruning, prune_checkpoint

        target = options.pop("target")
        targets = () if target is None else read_flag("target", parse_targets, target)
        scopes = read_flag("scopes", parse_scopes, options.pop("scopes"))
        if options["latency_table"] is not None and not any(own.measure in LATENCIES for own in targets):
            raise SettingsError(f"--latency_table must come with a target of latency or latency_ms, got {target}")
        figures = prune_checkpoint(CheckpointPruning(**options, targets=targets, scopes=scopes))
        print(described(figures, options))

    return launch(work, "nothing was written; start again")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.prune", description="Prune a checkpoint of ours to a budget.", allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="folder or Hub id of a classifier or a segmenter")
    parser.add_argument("output_dir", type=Path, help="folder to write; it must be empty or not exist yet")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--target",
        help="what the pruned model may cost: macs=0.5, params=2M, latency=0.5x (of its program on this machine), "
        "latency_ms=5 or size_mb=1.5, several joined by commas",
    )
    what.add_argument(
        "--plan", type=Path, help="apply the plan of an earlier pruning; nothing is measured then", metavar="FILE"
    )
    parser.add_argument("--dataset", help="images that importance is measured on: a folder, a data set of the Hub, digits")
    parser.add_argument("--num_images", type=positive, default=640, help="to measure on; as many others show what changed")
    add_removal(parser)
    parser.add_argument("--criterion", default="taylor", choices=CRITERIA, help="importance of channels")
    add_recipe(parser)
    parser.add_argument("--threads", type=positive, default=1, help="of programs")
    parser.add_argument(
        "--latency_table",
        type=Path,
        metavar="FILE",
        help="latencies are those of a device by its table, which `python -m distill.latency` makes",
    )
    parser.add_argument("--seed", type=not_negative, default=0)
    return parser


def described(figures: dict, options: dict) -> str:
    """What came out, and what to type next."""
    out, checkpoint = options["output_dir"], options["checkpoint"]
    lines = [figures["described"]] if "described" in figures else []
    if "agreement" in figures:
        lines.append(f"before recovery it agrees with the model before on {figures['agreement']:.1%} of what both answer")
    if "accuracy_after" in figures:
        lines[-1] += f"; accuracy {figures['accuracy_before']:.1%} -> {figures['accuracy_after']:.1%}"
    words = ["--model", out, "--teacher", checkpoint, "--dataset", options["dataset"] or "DATA"]
    if figures["is_segmenter"]:
        words += ["--task", "semantic-segmentation"]
    if figures["image_size"]:
        words += ["--image_size", figures["image_size"]]
    command = shlex.join(map(str, [*words, "--output_dir", f"{out}-recovered"]))
    lines += [f"-> {out}", f"Recover, with labelled images: accelerate launch scripts/finetune.py {command}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
