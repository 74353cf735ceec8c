"""From labelled images to a small Swin in a .pte, with a report of what each step cost.

python distill/run.py                                   # the demo: handwritten digits
python distill/run.py --dataset my_photos               # one folder of images per class
python distill/run.py --config my.yaml --stages edge,report
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # works without installing the package

from edge.quiet import quieten


def main() -> int:
    """Run the stages; returns 0 on success, 1 after an error that is explained on stderr, 143 after SIGTERM."""
    quieten()  # before the imports that print warnings
    from distill.pipeline.pipeline import run_pipeline
    from distill.pipeline.settings import parse_settings
    from distill.quiet import quieten_libraries
    from distill.training.command_line import explained

    quieten_libraries()
    return explained(lambda: print(run_pipeline(parse_settings())), "run the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
