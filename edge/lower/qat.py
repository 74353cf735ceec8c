"""Quantization-aware training: weights are trained with simulated rounding (Jacob et al. 2018, arXiv:1712.05877).

The loss is the distillation loss with the unquantized deploy form as the teacher, so that no labels are needed.
"""

import tempfile

import torch
from torch import nn
from torch.utils.data import Dataset
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase, allow_exported_model_train_eval, disable_observer
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from edge.lower.process_device import kept_device
from edge.lower.quantize import converted, prepare_for_calibration, prepare_for_training
from edge.lower.recipes import Recipe
from swin_hf.distillation_losses import kl_divergence

TEMPERATURE = 2.0  # of the distillation loss
LEARNING_RATE = 1e-5
IMAGES_PER_STEP = 16


class CalibrationImages(Dataset):
    """Inputs of a program with the teacher's outputs for them."""

    def __init__(self, images: list[torch.Tensor], targets: torch.Tensor):
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "targets": self.targets[index]}


class Follower(nn.Module):
    """A graph for single images that returns its mean distillation loss over a batch."""

    def __init__(self, graph: nn.Module):
        super().__init__()
        self.graph = graph

    def forward(self, pixel_values: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.cat([self.graph(image) for image in pixel_values])  # the graph has a fixed batch size
        return {"loss": kl_divergence(logits, targets, TEMPERATURE)}


def train_quantized(deployed: nn.Module, recipe: Recipe, images: list[torch.Tensor], seed: int = 0) -> nn.Module:
    """The quantized graph of a deploy form, its weights trained to follow it on `images`, inputs of one image each.

    The scales of activations come from calibration and are not trained.
    """
    calibrated = prepare_for_calibration(deployed, recipe, images)
    graph = prepare_for_training(deployed, recipe, images[0])
    allow_exported_model_train_eval(graph)
    with torch.no_grad():
        targets = torch.cat([deployed(pixel_values) for pixel_values in images])
        graph(images[0])  # allocates the scales
    _copy_scales(calibrated, graph)
    with tempfile.TemporaryDirectory() as folder, kept_device():
        _train(graph, CalibrationImages(images, targets), recipe.train_epochs, folder, seed)
    graph.eval()
    return converted(graph).requires_grad_(False)


def _copy_scales(calibrated: nn.Module, graph: nn.Module) -> None:
    """Copy the calibrated scales of activations into a graph to be trained."""
    observers = dict(calibrated.named_modules())
    for name, module in graph.named_modules():
        observer = observers.get(name)
        if not isinstance(module, FakeQuantizeBase) or not isinstance(observer, ObserverBase) or module.ch_axis != -1:
            continue
        scale, zero_point = observer.calculate_qparams()
        module.scale.copy_(scale)
        module.zero_point.copy_(zero_point)
        module.activation_post_process.min_val.copy_(((module.quant_min - zero_point) * scale).squeeze())
        module.activation_post_process.max_val.copy_(((module.quant_max - zero_point) * scale).squeeze())
        disable_observer(module)


def _train(graph: nn.Module, dataset: Dataset, epochs: int, folder: str, seed: int) -> None:
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=min(IMAGES_PER_STEP, len(dataset)),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=seed,
        use_cpu=True,  # an exported graph makes its constants on the device that it was exported on
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=Follower(graph), args=arguments, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)  # which the Trainer adds where there is no progress bar
    trainer.train()
