"""One export on its way: what is asked for, and every form of the model with its comparison on real images."""

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from edge.deploy.form import deploy, flat
from edge.device.artefact import PROGRAM_FILE, InputContract, Manifest, Source, sha256_of
from edge.device.environment import installed_versions
from edge.device.parity import Parity, compare
from edge.device.runner import Runner
from edge.export.calibration import (
    MAX_CALIBRATION_IMAGES,
    MAX_IMAGES,
    MAX_LABELLED_IMAGES,
    MIN_CALIBRATION_IMAGES,
    ImageSource,
    LabelledImage,
    evenly,
    load_images,
    method_inputs,
    require_real_images,
)
from edge.export.checkpoint import input_contract, input_view, load_checkpoint, model_outputs
from edge.export.temperature import MIN_LABELLED_IMAGES, fit_temperature
from edge.lower.equalisation import equalise
from edge.lower.lowering import Lowered
from edge.lower.quantize import in_precision, quantize
from edge.lower.recipes import CASTS, Recipe, Rule, find_recipe
from edge.lower.sensitivity import Sensitivity, layer_sensitivity

MAX_DEPLOY_DIFFERENCE = 1e-4  # of the deploy form's outputs, relative to the largest one
MAX_COMPACT_DIFFERENCE = 1e-3  # the same with position biases as int8
FEW_IMAGES = 16  # for what takes long and needs no more
HELD_OUT_OF_TRAINING = 4  # every fourth image is kept from quantization-aware training, to compare on


class ExportError(ValueError):
    """A checkpoint cannot be exported, or its program is not close enough to it; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What to export.

    recipe: name of a recipe.
    data: real images to find scales on and to compare the program with the model; for a checkpoint of a run, by default,
        those that the run kept for it.
    validation: held-out images in class folders, for the accuracy and the temperature; by default those of the run.
    input_dtype: "float32" or "uint8", what the program takes.
    sizes: (height, width) of the images of each method, by default the model's alone.
    batch_sizes: of each method.
    self_test: whether to write a bundle for a self-test on the device, as large as the program.
    """

    recipe: str = "int8"
    data: ImageSource | None = None
    validation: ImageSource | None = None
    input_dtype: str = "float32"
    sizes: tuple[tuple[int, int], ...] = ()
    batch_sizes: tuple[int, ...] = (1,)
    self_test: bool = True

    def __post_init__(self):
        find_recipe(self.recipe)
        if any(side < 1 for size in self.sizes for side in size):
            raise ExportError(f"sizes must be positive, got {self.sizes}")
        if self.batch_sizes[:1] != (1,) or min(self.batch_sizes) < 1:
            raise ExportError(f"batch_sizes must be positive and begin with 1, which `forward` takes, got {self.batch_sizes}")


class ExportJob:
    """The model, its images, and what has been found out about its program so far.

    inputs, reference: of each method, what it is compared on, and outputs (n, ..) of the model for it.
    parity, accuracy, equalised, kept_in_float: as in `edge.json`.
    """

    def __init__(self, checkpoint_dir: Path, settings: ExportSettings):
        self.checkpoint_dir, self.settings = checkpoint_dir, settings
        self.versions = installed_versions("swin-hf", "torch", "executorch", "torchao", "transformers")
        self.recipe: Recipe = find_recipe(settings.recipe)
        if settings.input_dtype == "uint8":  # whose cast to floats no backend takes
            self.recipe = replace(self.recipe, outside=(*self.recipe.outside, *CASTS))
        self.model, self.processor = load_checkpoint(checkpoint_dir)
        self.contract: InputContract = input_contract(self.model.config, self.processor, settings.input_dtype)
        self.is_classifier = hasattr(self.model, "classifier")
        self.labels: list[str] = list(getattr(self.model, "out_features", []))
        if self.is_classifier:
            self.labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        self.methods = self._methods()
        self.parity: dict[str, Parity] = {}
        self.accuracy: dict[str, float | int] = {}
        self.equalised, self.kept_in_float = False, []
        if self.recipe.train_epochs:
            self._check_trainable()

    def _methods(self) -> dict[str, dict[str, int]]:
        """Batch size, height and width of each method; the first is `forward`, the others say in their names what differs."""
        sizes = self.settings.sizes or ((self.contract.height, self.contract.width),)
        self.contract = replace(self.contract, height=sizes[0][0], width=sizes[0][1])
        methods = {}
        for height, width in sizes:
            for batch_size in self.settings.batch_sizes:
                name = "forward"
                if (height, width) != sizes[0]:
                    name += f"_{height}x{width}"
                if batch_size != self.settings.batch_sizes[0]:
                    name += f"_batch{batch_size}"
                methods[name] = {"batch_size": batch_size, "height": height, "width": width}
        return methods

    def _check_trainable(self) -> None:
        """What a recipe that trains asks for.

        Raises:
            ExportError: it is not there.
        """
        if not self.is_classifier:
            raise ExportError(f"recipe {self.recipe.name} must have a classifier to train, got a backbone; take int8")
        if len(self.methods) > 1:
            raise ExportError(f"recipe {self.recipe.name} must have one size and batch size, got {', '.join(self.methods)}")
        if importlib.util.find_spec("accelerate") is None:
            raise ExportError(f"recipe {self.recipe.name} needs accelerate; pip install swin-hf[train]")

    def load_images(self) -> None:
        """Images to calibrate and compare on, and labelled ones if there are."""
        images = self._images("data", "calibration", ("train",), MAX_IMAGES)
        if images is None:
            raise ExportError("an export is calibrated and checked on real images; give a folder of them with --data")
        least = MIN_CALIBRATION_IMAGES if self.recipe.is_calibrated else 1
        if self.recipe.train_epochs:
            least *= 2
        require_real_images(images, least, self.recipe.name)
        held_out = self._images("validation", "validation", ("validation",), MAX_LABELLED_IMAGES) or []
        self.validation = [image for image in held_out if self.is_classifier and image.label in self.labels]
        if self.settings.validation is not None and not self.validation:
            raise ExportError(
                f"--validation must hold images of the model's classes ({', '.join(self.labels[:5])}, ..) in class folders, "
                f"got none in {self.settings.validation}"
            )
        self.inputs = {name: method_inputs(images, self.contract, method) for name, method in self.methods.items()}
        # All that PyTorch computes comes before the runtime's first run: two pools of threads that spin slow each other down.
        self.reference = {name: model_outputs(self.model, self.processor, inputs) for name, inputs in self.inputs.items()}
        if self.validation:
            self.held_out = method_inputs(self.validation, self.contract, self.methods["forward"])
            self.expected = model_outputs(self.model, self.processor, self.held_out)
            self.classes = np.array([self.labels.index(image.label) for image in self.validation])

    def _images(self, setting: str, folder_of_run: str, splits: tuple[str, ...], at_most: int) -> list[LabelledImage] | None:
        """Images of a setting, or of the run that the checkpoint belongs to."""
        source = getattr(self.settings, setting)
        of_run = self.checkpoint_dir.parent / "data" / folder_of_run
        if source is None and not of_run.is_dir():
            return None
        return load_images(of_run if source is None else source, self.labels, at_most, splits)

    def deployed(self, method: str) -> nn.Module:
        """The deploy form for a method.

        Raises:
            ExportError: it is another function than the model.
        """
        compact = self.recipe.is_quantized
        form = deploy(self.model, input_view(self.processor, self.contract, **self.methods[method]), compact)
        parity = self.compare(method, [flat(form(torch.from_numpy(x))) for x in self.inputs[method]])
        largest = max(1.0, float(np.abs(self.reference[method]).max()))
        limit = largest * (MAX_COMPACT_DIFFERENCE if compact else MAX_DEPLOY_DIFFERENCE)
        if not parity.max_difference <= limit:
            raise ExportError(f"the deploy form differs from the model by {parity.max_difference:.2e} (limit {limit:.2e})")
        if method == "forward":
            self.parity["deploy form"] = parity
        return form

    def make_forms(self) -> dict[str, nn.Module]:
        """What is lowered for each method."""
        deployed = {name: self.deployed(name) for name in self.methods}
        if self.recipe.is_quantized:
            return self._quantized(deployed)
        images = {name: self._tensors(name, MAX_CALIBRATION_IMAGES) for name in deployed}
        return {name: in_precision(form, self.recipe, images[name]) for name, form in deployed.items()}

    def _tensors(self, method: str, at_most: int = MAX_IMAGES) -> list[torch.Tensor]:
        """At most so many inputs of a method."""
        return [torch.from_numpy(array) for array in evenly(self.inputs[method], at_most)]

    def _quantized(self, deployed: dict[str, nn.Module]) -> dict[str, nn.Module]:
        if self.recipe.train_epochs:
            from edge.lower.qat import train_quantized  # needs accelerate

            images = self._tensors("forward")
            training = [image for number, image in enumerate(images) if number % HELD_OUT_OF_TRAINING]
            form = train_quantized(deployed["forward"], self.recipe, training)
            for of_method in (self.inputs, self.reference):
                of_method["forward"] = of_method["forward"][::HELD_OUT_OF_TRAINING]
            self._holds(form)
            return {"forward": form}
        form, recipe = self._within_bound(deployed["forward"])
        forms = {"forward": form}
        for name in list(self.methods)[1:]:
            images = self._tensors(name, MAX_CALIBRATION_IMAGES)
            rest = equalise(deployed[name], images, behind_norms=True) if self.equalised else deployed[name]
            forms[name] = quantize(rest, recipe, images)
        return forms

    def _within_bound(self, deployed: nn.Module) -> tuple[nn.Module, Recipe]:
        """The quantized form that follows the model as the recipe promises, and the recipe with which it does.

        If it does not at once, ranges of channels are evened, and then as many layers are left in float as that takes.
        """
        images = self._tensors("forward", MAX_CALIBRATION_IMAGES)
        form = quantize(deployed, self.recipe, images)
        if self._holds(form):
            return form, self.recipe
        plain, evened = self.parity["quantized"], equalise(deployed, images, behind_norms=True)
        form = quantize(evened, self.recipe, images)
        holds = self._holds(form)
        if holds or self.parity["quantized"].sqnr_db > plain.sqnr_db:
            self.equalised, deployed = True, evened
        recipe, worst = self.recipe, self.sensitivity(deployed)
        while not holds and len(self.kept_in_float) < len(worst):
            self.kept_in_float = [one.layer for one in worst[: max(1, 2 * len(self.kept_in_float))]]
            recipe = replace(recipe, rules=(*(Rule(layer, "fp32") for layer in self.kept_in_float), *self.recipe.rules))
            form = quantize(deployed, recipe, images)
            holds = self._holds(form)
        return form, recipe

    def sensitivity(self, deployed: nn.Module) -> list[Sensitivity]:
        """What rounding each layer of a deploy form alone does to its outputs, the worst first."""
        images = self._tensors("forward", FEW_IMAGES)
        reference = np.concatenate([flat(deployed(image)) for image in images])
        return layer_sensitivity(deployed, self.recipe, images, reference, self.is_classifier)

    def _holds(self, form: nn.Module) -> bool:
        """Compare the quantized form of `forward` with the model, and say whether it is within the bounds of the recipe."""
        outputs = [flat(form(torch.from_numpy(x))) for x in self.inputs["forward"]]
        self.parity["quantized"] = self.compare("forward", outputs)
        if self.validation:
            self.logits_held_out = np.concatenate([flat(form(torch.from_numpy(x))) for x in self.held_out])
            if self._accuracy_lost(self.logits_held_out):
                return False
        return not self._missed(self.parity["quantized"])

    def _missed(self, parity: Parity) -> str:
        """Which bound of the recipe outputs miss, in words; nothing if none."""
        recipe, agreement = self.recipe, 1.0 if parity.agreement is None else parity.agreement
        if parity.sqnr_db >= recipe.min_sqnr_db and agreement >= recipe.min_agreement:
            return ""
        return (
            f"must keep {recipe.min_sqnr_db:.0f} dB and {recipe.min_agreement:.0%} agreement with the model on "
            f"{parity.num_images} images, got {parity.sqnr_db:.1f} dB and {agreement:.1%}"
        )

    def _accuracy_lost(self, logits: np.ndarray) -> str:
        """How logits for the held-out images miss the recipe's bound on accuracy, in words; nothing if they do not."""
        n = len(self.classes)
        right = [int((values.argmax(axis=1) == self.classes).sum()) for values in (self.expected, logits)]
        self.accuracy = {"num_images": n, "model": right[0] / n, "program": right[1] / n}
        if n < MIN_LABELLED_IMAGES or right[0] - right[1] <= max(1, self.recipe.max_accuracy_drop * n):
            return ""
        return (
            f"must lose {self.recipe.max_accuracy_drop:.1%} of accuracy at most, got {right[1] / n:.1%} after "
            f"{right[0] / n:.1%} on {n} held-out images"
        )

    def check_traced(self, traced: dict[str, ExportedProgram]) -> None:
        """Compare the exported graph of `forward` with the model on a few images.

        Raises:
            ExportError: it is too far from the model, and no program will be run that could tell.
        """
        graph, number = traced["forward"].module(check_guards=False), min(FEW_IMAGES, len(self.inputs["forward"]))
        with torch.no_grad():
            outputs = [flat(graph(torch.from_numpy(x))) for x in self.inputs["forward"][:number]]
        parity = compare(np.concatenate(outputs), self.reference["forward"][:number], self.is_classifier)
        self.parity["exported"] = parity
        if not self.recipe.executable and (why := self._missed(parity)):
            raise ExportError(f"recipe {self.recipe.name} {why}; nothing was written")

    def temperature(self) -> float:
        """The temperature of the probabilities, on held-out images."""
        if not self.validation:
            return 1.0
        return fit_temperature(self.logits_held_out if self.recipe.is_quantized else self.expected, self.classes)

    def compare(self, method: str, outputs: list[np.ndarray]) -> Parity:
        """Outputs for the inputs of a method against the model's."""
        return compare(np.concatenate(outputs), self.reference[method], self.is_classifier)

    def manifest(self, lowered: Lowered, temperature: float, out: Path) -> Manifest:
        """What is known before the program was run."""
        return Manifest(
            task="image-classification" if self.is_classifier else "feature-maps",
            labels=self.labels,
            temperature=temperature,
            input=self.contract,
            methods=self.methods,
            recipe=self.recipe.name,
            backend=self.recipe.backend,
            equalised=self.equalised,
            kept_in_float=self.kept_in_float,
            parity={},
            accuracy={},
            program={
                "size_bytes": len(lowered.program),
                "num_delegates": lowered.num_delegates,
                "outside": lowered.outside,
                "planned_memory_bytes": lowered.planned_memory_bytes,
            },
            self_test=None,
            source=Source(
                checkpoint=os.path.relpath(self.checkpoint_dir.resolve(), out),
                parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            ),
            versions=self.versions,
            sha256={PROGRAM_FILE: sha256_of(lowered.program)},
        )

    def check_program(self, runner: Runner) -> None:
        """Run every method as a device would, on all images.

        Raises:
            ExportError: a method is too far from the model.
        """
        for name, inputs in self.inputs.items():
            stage = "program" if name == "forward" else f"program {name}"
            outputs = [flat(tuple(map(torch.from_numpy, runner.outputs(x, name)))) for x in inputs]
            self.parity[stage] = self.compare(name, outputs)
            if why := self._missed(self.parity[stage]):
                raise self._error(f"{why} in method {name}")
        if self.validation:
            logits = np.concatenate([runner.outputs(x)[0] for x in self.held_out])
            if why := self._accuracy_lost(logits):
                raise self._error(why)

    def _error(self, why: str) -> ExportError:
        advice = "Try recipe fp32, or more and more typical images"
        return ExportError(f"recipe {self.recipe.name} {why}; nothing was written. {advice}")
