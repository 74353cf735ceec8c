"""Train or fine-tune an image model on your images, on one CPU, one GPU or many.

accelerate launch scripts/finetune.py --config digits                              # the embedded digits, from scratch
accelerate launch scripts/finetune.py --config photos --dataset my_photos --model org/swin-tiny-custom
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without installing the package

from distill.launch import launch


def main() -> int:
    """Train; returns 0 on success, otherwise as `launch`."""

    def work() -> None:
        from distill.training.finetune import doubt_of, finetune
        from distill.training.settings import parse_finetune_settings
        from swin_hf.model_card import figure_text

        settings = parse_finetune_settings()
        figures = finetune(settings)
        if settings.trainer.should_save:
            if doubt := doubt_of(Path(settings.trainer.output_dir)):
                print(f"{doubt} Start from a pre-trained model (--model CHECKPOINT), train longer, or add images.")
            for name, value in figures.items():
                print(f"{name:24} {figure_text(name, value)}")
            print(f"model: {settings.trainer.output_dir}")

    return launch(work, "resume with --resume true")


if __name__ == "__main__":
    sys.exit(main())
