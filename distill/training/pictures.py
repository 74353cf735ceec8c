"""Pictures of predictions for some validation images, for the output folder of a training and its trackers."""

import math
from pathlib import Path

import matplotlib
import numpy as np
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from distill.public_names import picture_text
from distill.training.tasks.task import Panels
from distill.training.trainer import TaskTrainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANEL_INCHES = 1.5


class PredictionPictures(TrainerCallback):
    """Draws predictions after every evaluation, as a picture in `predictions/` of the output folder.

    It is also sent to TensorBoard, Weights & Biases and Trackio if `--report_to` names them.
    """

    def __init__(self, trainer: TaskTrainer, images: Dataset, count: int):
        self.trainer = trainer
        count = min(count, len(images))
        spread = [round(number * (len(images) - 1) / max(count - 1, 1)) for number in range(count)]  # over all classes
        rows = [images[number] for number in spread]
        collated = trainer.data_collator([{name: row[name] for name in ("pixels", "targets")} for row in rows])
        self.batch = {name: collated[name] for name in ("pixels", "targets")}

    def on_evaluate(self, args, state, control, **kwargs):
        panels = self.trainer.draw(self.batch)  # in all processes, since they may share the weights
        if state.is_world_process_zero:
            path = Path(args.output_dir) / "predictions" / f"step-{state.global_step:07}.png"
            path.parent.mkdir(exist_ok=True)
            draw(panels, path)
            self._send(path, state.global_step)

    def _send(self, path: Path, step: int) -> None:
        trackers = self.trainer.args.report_to
        if "tensorboard" in trackers:
            (callback,) = (own for own in self.trainer.callback_handler.callbacks if isinstance(own, TensorBoardCallback))
            callback.tb_writer.add_image("eval/predictions", plt.imread(path)[..., :3], step, dataformats="HWC")
        if "wandb" in trackers:
            import wandb

            wandb.log({"eval/predictions": wandb.Image(str(path)), "train/global_step": step})
        if "trackio" in trackers:
            import trackio

            trackio.log({"eval/predictions": trackio.Image(str(path))}, step=step)


def draw(panels: list[Panels], path: Path) -> None:
    """Draw the panels of each image side by side, with its caption above, as a PNG."""
    width = len(panels[0].pictures)
    columns = math.ceil(math.sqrt(len(panels) / width))
    rows = math.ceil(len(panels) / columns)
    size = (PANEL_INCHES * width * columns, (PANEL_INCHES + 0.3) * rows)
    figure, axes = plt.subplots(rows, columns * width, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        own = axes[row, column * width : (column + 1) * width]
        for ax, picture in zip(own, panel.pictures):
            ax.imshow(np.clip(picture, 0, 1), interpolation="nearest")
        title = picture_text(panel.caption, at_most=60)
        own[0].set_title(title, fontsize=8, loc="left", color="black" if panel.right else "red", parse_math=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
