"""From labelled images to a small Swin in a .pte, with a report of what each step cost.

python distill/run.py                                   # the demo: handwritten digits
python distill/run.py --dataset my_photos               # one folder of images per class
python distill/run.py --config my.yaml --stages edge,report
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the packages are, installed or not

from edge.quiet import quieten


def main() -> int:
    """Run the stages; 0 when all is done, 1 after an error that was explained on stderr, 143 after SIGTERM."""
    quieten()  # before the imports that have something to say
    try:
        from distill.pipeline.pipeline import run_pipeline
        from distill.pipeline.settings import parse_settings
        from distill.quiet import quieten_libraries
        from distill.training.command_line import explained
    except ModuleNotFoundError as error:
        print(f'error: {error}; pip install "swin-hf[train]"', file=sys.stderr)
        return 1

    quieten_libraries()
    return explained(lambda: print(run_pipeline(parse_settings())), "start again to go on from there")


if __name__ == "__main__":
    sys.exit(main())
