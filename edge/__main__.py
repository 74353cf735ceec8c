"""Command line of the device side.

python -m edge export runs/demo/student --output_dir my_model --dataset runs/demo/data/calibration --recipe int8
python -m edge predict runs/demo/edge runs/demo/samples/7_0.png
python -m edge evaluate runs/demo/student --dataset runs/demo/samples
python -m edge bench runs/demo/edge --compare
python -m edge verify runs/demo/edge --dataset runs/demo/samples
python -m edge self-test runs/demo/edge
python -m edge sensitivity runs/demo/student --dataset runs/demo/data/calibration
python -m edge app android runs/demo/edge --output_dir my_app
python -m edge publish runs/demo/edge org/digits-phone --upload

predict and bench of a program, self-test, and verify against labels work where only ExecuTorch is installed. Where a folder of
a program or a checkpoint is taken, so is its name on the Hub, but for publish.
"""

import os
import sys

from edge.device.child import run_in_child

# All else is imported in the process that runs the command: NumPy starts threads, after which a process must not be forked.
# And what is interrupted while Python still imports this module cannot be explained.


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 if it did all it was asked, 1 after an error that was explained on stderr, 130 after Ctrl-C."""
    from edge.device.commands import run_command
    from edge.quiet import quieten

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a checkpoint folder is read in no time
    quieten()
    return run_command(make_parser(), argv)


def make_parser() -> "argparse.ArgumentParser":  # noqa: F821
    import argparse

    from edge.apps.commands import add_app
    from edge.compare.commands import add_bench_with_peers
    from edge.device.commands import add_self_test
    from edge.export.commands import add_export, add_sensitivity, add_verify_with_checkpoint
    from edge.export.publishing import add_publish_command
    from edge.verbs.commands import add_demo, add_evaluate, add_predict_with_any
    from edge.verbs.opening import with_names_of_the_hub

    parser = argparse.ArgumentParser(prog="python -m edge", description="Swin models on the device.")
    commands = parser.add_subparsers(required=True)
    add_predict_with_any(commands)
    add_evaluate(commands)
    add_demo(commands)
    for add, argument in (
        (add_export, "checkpoint"),
        (add_bench_with_peers, "artefacts"),
        (add_verify_with_checkpoint, "artefact"),
        (add_self_test, "artefact"),
        (add_sensitivity, "checkpoint"),
        (add_app, "artefact"),
    ):
        with_names_of_the_hub(add(commands), argument)
    add_publish_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(run_in_child(main))
