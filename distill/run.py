"""From labelled images to a small Swin in a .pte, with a report of what each step cost.

python distill/run.py                                   # the demo: handwritten digits
python distill/run.py --dataset my_photos               # one folder of images per class
python distill/run.py --config my.yaml --stages edge,report
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without installing the package

from distill.launch import launch


def main() -> int:
    """Run the stages; returns 0 on success, otherwise as `launch`."""

    def work() -> None:
        from distill.pipeline.pipeline import run_pipeline
        from distill.pipeline.settings import parse_settings

        print(run_pipeline(parse_settings()))

    return launch(work, "start again to resume")


if __name__ == "__main__":
    sys.exit(main())
