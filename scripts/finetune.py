"""Train or fine-tune an image model on your images, on one CPU, one GPU or many.

accelerate launch scripts/finetune.py --config digits                              # the embedded digits, from scratch
accelerate launch scripts/finetune.py --config photos --dataset my_photos --model org/swin-tiny-custom
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # also where the package is not installed

from edge.quiet import quieten


def main() -> int:
    """Train; 0 when all is done, 1 after an error that was explained on stderr, 143 after SIGTERM."""
    quieten()
    from distill.pipeline.pipeline import quieten_libraries
    from distill.training.finetune import EXPLAINED_ERRORS, finetune
    from distill.training.settings import parse_finetune_settings
    from distill.training.trainer import TrainingStopped

    quieten_libraries()
    try:
        settings = parse_finetune_settings()
        figures = finetune(settings)
    except TrainingStopped as stop:
        print(f"\n{stop}; go on with --resume true", file=sys.stderr)
        return 128 + signal.SIGTERM
    except EXPLAINED_ERRORS as error:
        print(f"\nerror: {error}", file=sys.stderr)  # below a progress bar that was cut off
        return 1
    if settings.trainer.should_save:
        for name, value in figures.items():
            print(f"{name:24} {value:.4g}")
        print(f"model: {settings.trainer.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
