"""The progress bar of a training on a terminal."""

from tqdm import tqdm
from transformers.trainer_callback import ProgressCallback


class ProgressBar(ProgressCallback):
    """A progress bar with images per second, the time left and the latest figures, instead of a line for each log entry.

    shown: keys of the log, and what they are called.
    """

    def __init__(self, shown: dict[str, str]):
        super().__init__()
        self.shown = shown
        self.figures: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.training_bar = tqdm(total=state.max_steps, unit=" images", unit_scale=images, dynamic_ncols=True)
        self.current_step = 0

    def on_prediction_step(self, args, state, control, **kwargs):
        pass  # an evaluation takes seconds and needs no bar

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.figures |= {self.shown[key]: f"{float(value):.3f}" for key, value in logs.items() if key in self.shown}
            self.training_bar.set_postfix(self.figures, refresh=False)
