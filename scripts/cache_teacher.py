"""Ask a teacher for a training to come, once for as many students as will learn from it, on one process or many.

accelerate launch scripts/cache_teacher.py --config photos --dataset my_photos --teacher CHECKPOINT --teacher_cache runs/cache
accelerate launch scripts/finetune.py --config photos --dataset my_photos --teacher CHECKPOINT --teacher_cache runs/cache
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without installing the package

from distill.launch import launch


def main() -> int:
    """Write the cache; returns 0 on success, otherwise as `launch`."""

    def work() -> None:
        from distill.training.cache_writing import cache_teacher
        from distill.training.settings import parse_finetune_settings

        settings = parse_finetune_settings()
        figures = cache_teacher(settings)
        if settings.trainer.should_save:
            print(
                f"{settings.teacher_cache}: {figures['epochs']} epochs, {figures['epochs_written']} of them new, "
                f"{figures['size_bytes'] / 1e6:.1f} MB, {figures['bytes_per_image_and_epoch']:.0f} bytes per image and epoch"
            )

    return launch(work, "call it again, it goes on")


if __name__ == "__main__":
    sys.exit(main())
