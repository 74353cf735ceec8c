"""Command line of the device side.

python -m edge export runs/demo/recovered --output_dir my_model --dataset runs/demo/data/calibration --recipe int8
python -m edge run runs/demo/edge runs/demo/samples/7_0.png
python -m edge bench runs/demo/edge --compare
python -m edge verify runs/demo/edge --dataset runs/demo/samples
python -m edge self-test runs/demo/edge
python -m edge sensitivity runs/demo/recovered --dataset runs/demo/data/calibration
python -m edge app android runs/demo/edge --output_dir my_app
python -m edge publish runs/demo/edge org/digits-phone --upload

run, bench, self-test, and verify against labels work where only ExecuTorch is installed.
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
    from edge.device.commands import add_run, add_self_test
    from edge.export.commands import add_export, add_sensitivity, add_verify_with_checkpoint
    from edge.export.publishing import add_publish_command

    parser = argparse.ArgumentParser(prog="python -m edge", description="Swin models on the device.")
    commands = parser.add_subparsers(required=True)
    for add in (
        add_export,
        add_run,
        add_bench_with_peers,
        add_verify_with_checkpoint,
        add_self_test,
        add_sensitivity,
        add_app,
        add_publish_command,
    ):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(run_in_child(main))
