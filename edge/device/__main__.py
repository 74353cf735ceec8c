"""Command line of a device, on which this folder may lie alone: `scp -r edge/device pi:`, and then there

python -m device predict DIR photo.jpg
python -m device bench DIR
python -m device verify DIR --dataset FOLDER
python -m device self-test DIR
"""

import sys

from .child import run_in_child


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 if it did all it was asked, 1 after an error that was explained on stderr, 130 after Ctrl-C."""
    import argparse

    from .commands import add_bench, add_self_test, add_verify, run_command
    from .predict import add_predict
    from .quiet import quieten

    quieten()
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description="Run a Swin program on this device.")
    commands = parser.add_subparsers(required=True)
    for add in (add_predict, add_bench, add_verify, add_self_test):
        add(commands)
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(run_in_child(main))
