"""Mean IoU of a segmenter on images with masks, each at its own size.

python scripts/evaluate_segmenter.py --model runs/scenes --dataset digit-scenes
python scripts/evaluate_segmenter.py --model org/name --dataset my_scenes --shorter_side 512 --window 512 --flip true
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without installing the package

from distill.launch import launch


def main() -> int:
    """Evaluate; returns 0 on success, otherwise as `launch`."""

    def work() -> None:
        from distill.training.segmenter_evaluation import evaluate_segmenter, parse_evaluation_settings

        figures = evaluate_segmenter(*parse_evaluation_settings())
        for name, iou in sorted(figures.pop("iou_by_class").items(), key=lambda pair: pair[1]):
            print(f"{name:24} {iou:.1%}")
        print(
            f"mean IoU {figures['mean_iou']:.2%}, pixel accuracy {figures['pixel_accuracy']:.2%}, n = {figures['num_images']}"
        )

    return launch(work, "start again")


if __name__ == "__main__":
    sys.exit(main())
