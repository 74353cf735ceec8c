"""Export a checkpoint: deploy form, quantization, lowering, and a check of every form on real images."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge.artefact import (
    FILES,
    PROGRAM_FILE,
    SELF_TEST_FILE,
    InputContract,
    Manifest,
    sha256_of,
)
from edge.calibration import (
    MAX_CALIBRATION_IMAGES,
    MIN_CALIBRATION_IMAGES,
    ImageSource,
    LabelledImage,
    evenly,
    load_images,
    method_inputs,
    require_real_images,
)
from edge.checkpoint import flat, input_contract, input_view, load_checkpoint, model_outputs
from edge.deploy import deploy
from edge.environment import installed_versions
from edge.files import move_into_place
from edge.half import HalfPrecision
from edge.lowering import Lowered, lower
from edge.parity import Parity, compare
from edge.quantize import quantize
from edge.recipes import CASTS, Recipe, Rule, find_recipe
from edge.runner import Runner
from edge.self_test import NUM_IMAGES, SELF_TEST_BOUND, bundle
from edge.sensitivity import Sensitivity, layer_sensitivity, quantized_layers
from edge.temperature import fit_temperature
from edge.transformers_format import write_transformers_files

MAX_DEPLOY_DIFFERENCE = 1e-4  # of the deploy form's outputs, relative to the largest one
MAX_COMPACT_DIFFERENCE = 1e-2  # the same with position biases as int8
SENSITIVITY_IMAGES = 16


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
        for name, values in (
            ("batch_sizes", self.batch_sizes),
            ("sizes", tuple(side for size in self.sizes for side in size)),
        ):
            if any(value < 1 for value in values) or (name == "batch_sizes" and not values):
                raise ExportError(f"{name} must be positive, got {getattr(self, name)}")


def export(checkpoint_dir: Path, out: Path, settings: ExportSettings) -> Manifest:
    """Export the classifier or backbone in `checkpoint_dir` to `out`, which appears only if every check held.

    Raises:
        CheckpointError: no such checkpoint, or an image processor that a device cannot repeat.
        CalibrationError: no images, too few, or noise.
        DeployError: a model that has no deploy form.
        ExportError: a folder `out` that is in use, or a program that is too far from the model.
        LoweringError: the backend does not take the whole program.
        ValueError: an unknown recipe.
    """
    checkpoint_dir, out = Path(checkpoint_dir), Path(out)
    job = _Job(checkpoint_dir, settings)
    if out.exists() and (not out.is_dir() or any(path.name not in FILES for path in out.iterdir())):
        raise ExportError(f"--out {out} must be a new folder or an earlier export, got a folder with other files in it")
    job.load_images()
    forms, kept = job.quantized_forms()
    constants = {
        "labels": tuple(job.labels) or ("",),
        "temperature": float(job.temperature(forms["forward"])),
        "input_contract": json.dumps(asdict(job.contract)),
    }
    lowered = lower(
        {name: (form, torch.from_numpy(job.inputs[name][0])) for name, form in forms.items()}, job.recipe, constants
    )
    manifest = job.manifest(lowered, kept, constants["temperature"], out)
    return _write_checked(job, manifest, lowered.program, out)


def sensitivity(checkpoint_dir: Path, settings: ExportSettings) -> list[Sensitivity]:
    """What rounding each layer alone, as the recipe would, does to the outputs of a checkpoint; the worst first.

    Raises:
        As `export`.
    """
    job = _Job(Path(checkpoint_dir), settings)
    job.load_images()
    method = job.methods["forward"]
    deployed = deploy(job.model, input_view(job.processor, job.contract, **method))
    images = [torch.from_numpy(array) for array in evenly(job.inputs["forward"], SENSITIVITY_IMAGES)]
    reference = np.concatenate([flat(deployed(image)) for image in images])
    return layer_sensitivity(deployed, job.recipe, images, reference, job.is_classifier)


class _Job:
    """One export on its way: the model, its images, and what has been found out so far.

    reference: outputs (n, ..) of the model for the inputs of each method.
    """

    def __init__(self, checkpoint_dir: Path, settings: ExportSettings):
        self.checkpoint_dir, self.settings = checkpoint_dir, settings
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

    def load_images(self) -> None:
        """Images to calibrate and compare on, and labelled ones if there are."""
        self.images = self._images("data", "calibration")
        if self.images is None:
            raise ExportError("an export is calibrated and checked on real images; give a folder of them with --data")
        least = MIN_CALIBRATION_IMAGES if self.recipe.is_quantized else 1
        require_real_images(self.images, least, self.recipe.name)
        held_out = self._images("validation", "validation") if self.is_classifier else None
        self.validation = [image for image in held_out or () if image.label in self.labels]
        self.inputs = {name: method_inputs(self.images, self.contract, method) for name, method in self.methods.items()}
        # All that PyTorch computes comes before the runtime's first run: two pools of threads that spin slow each other down.
        self.reference = {name: model_outputs(self.model, self.processor, inputs) for name, inputs in self.inputs.items()}
        if self.validation:
            self.held_out = method_inputs(self.validation, self.contract, self.methods["forward"])
            self.expected = model_outputs(self.model, self.processor, self.held_out)[: len(self.validation)]

    def _images(self, setting: str, folder_of_run: str) -> list[LabelledImage] | None:
        """Images of a setting, or of the run that the checkpoint belongs to."""
        source = getattr(self.settings, setting)
        of_run = self.checkpoint_dir.parent / "data" / folder_of_run
        if source is None and not of_run.is_dir():
            return None
        return load_images(of_run if source is None else source, self.labels)

    def quantized_forms(self) -> tuple[dict[str, nn.Module], list[str]]:
        """What is lowered for each method, and the layers that were kept in float for the sake of the bound."""
        compact = self.recipe.is_quantized
        deployed = {
            name: deploy(self.model, input_view(self.processor, self.contract, **method), compact)
            for name, method in self.methods.items()
        }
        for name, form in deployed.items():
            limit = MAX_COMPACT_DIFFERENCE if compact else MAX_DEPLOY_DIFFERENCE
            self._check_deploy_form(name, form, limit)
        if self.recipe.float_dtype == "float16" and self.recipe.backend == "xnnpack":
            images = {name: evenly(self.inputs[name], MAX_CALIBRATION_IMAGES) for name in deployed}
            deployed = {
                name: HalfPrecision(form, list(map(torch.from_numpy, images[name]))) for name, form in deployed.items()
            }
        if not self.recipe.is_quantized:
            return deployed, []
        images = [torch.from_numpy(array) for array in self.inputs["forward"]]
        if self.recipe.train_epochs:
            if len(self.methods) > 1:
                raise ExportError(f"recipe {self.recipe.name} takes one size and batch size, got {', '.join(self.methods)}")
            from edge.qat import train_quantized  # needs accelerate

            return {"forward": train_quantized(deployed["forward"], self.recipe, images)}, []
        form, recipe, kept = self._within_bound(deployed["forward"], images)
        forms = {"forward": form}
        for name in list(self.methods)[1:]:
            others = [torch.from_numpy(array) for array in self.inputs[name]]
            forms[name] = quantize(deployed[name], recipe, evenly(others, MAX_CALIBRATION_IMAGES))
        return forms, kept

    def _check_deploy_form(self, method: str, deployed: nn.Module, relative_limit: float) -> None:
        parity = self.compare(method, [flat(deployed(torch.from_numpy(x))) for x in self.inputs[method]])
        limit = relative_limit * max(1.0, float(np.abs(self.reference[method]).max()))
        if not parity.max_difference <= limit:
            raise ExportError(f"the deploy form differs from the model by {parity.max_difference:.2e} (limit {limit:.2e})")
        if method == "forward":
            self.parity["deploy form"] = parity

    def _within_bound(self, deployed: nn.Module, images: list[torch.Tensor]) -> tuple[nn.Module, Recipe, list[str]]:
        """The quantized form that follows the model as the recipe promises, with as many layers in float as that takes."""
        recipe, worst, kept = self.recipe, None, []
        while True:
            form = quantize(deployed, recipe, evenly(images, MAX_CALIBRATION_IMAGES))
            parity = self.compare("forward", [flat(form(x)) for x in images])
            if _holds(parity, self.recipe) or len(kept) == len(quantized_layers(deployed, self.recipe)):
                self.parity["quantized"] = parity
                return form, recipe, kept
            if worst is None:
                few = evenly(images, SENSITIVITY_IMAGES)
                reference = np.concatenate([flat(deployed(x)) for x in few])
                worst = layer_sensitivity(deployed, self.recipe, few, reference, self.is_classifier)
            kept = [sensitivity.layer for sensitivity in worst[: max(1, 2 * len(kept))]]
            recipe = replace(self.recipe, rules=(*(Rule(layer, "fp32") for layer in kept), *self.recipe.rules))

    def temperature(self, form: nn.Module) -> float:
        """The temperature of the probabilities, on held-out images."""
        if not self.validation:
            return 1.0
        outputs = self.expected
        if self.recipe.is_quantized:
            outputs = np.concatenate([flat(form(torch.from_numpy(x))) for x in self.held_out])[: len(self.validation)]
        return fit_temperature(outputs, self.classes)

    @property
    def classes(self) -> np.ndarray:
        """Class numbers (n,) of the held-out images."""
        return np.array([self.labels.index(image.label) for image in self.validation])

    def compare(self, method: str, outputs: list[np.ndarray]) -> Parity:
        """Outputs for the inputs of a method against the model's."""
        return compare(np.concatenate(outputs), self.reference[method], self.is_classifier)

    def manifest(self, lowered: Lowered, kept: list[str], temperature: float, out: Path) -> Manifest:
        return Manifest(
            task="image-classification" if self.is_classifier else "feature-maps",
            labels=self.labels,
            temperature=temperature,
            input=self.contract,
            methods=self.methods,
            recipe=self.recipe.name,
            backend=self.recipe.backend,
            kept_in_float=kept,
            parity={},
            accuracy={},
            program={
                "size_bytes": len(lowered.program),
                "num_delegates": lowered.num_delegates,
                "outside": lowered.outside,
            },
            self_test={},
            source={
                "checkpoint": os.path.relpath(self.checkpoint_dir.resolve(), out.resolve()),
                "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            },
            versions=installed_versions("swin-hf", "torch", "executorch", "torchao", "transformers"),
            sha256={PROGRAM_FILE: sha256_of(lowered.program)},
        )

    def check_program(self, runner: Runner) -> None:
        """Run every method as a device would, on all images.

        Raises:
            ExportError: a method is too far from the model.
        """
        for name, inputs in self.inputs.items():
            parity = self.compare(name, [flat(tuple(map(torch.from_numpy, runner.outputs(x, name)))) for x in inputs])
            self.parity["program" if name == "forward" else f"program {name}"] = parity
            if not _holds(parity, self.recipe):
                raise ExportError(
                    f"recipe {self.recipe.name} must keep {self.recipe.min_sqnr_db:.0f} dB and "
                    f"{self.recipe.min_agreement:.0%} agreement with the model on {parity.num_images} images, got "
                    f"{parity.sqnr_db:.1f} dB and {parity.agreement or 0:.1%} in method {name}; nothing was written. Try "
                    "recipe fp32, or more and more typical images"
                )
        if self.validation:
            n = len(self.validation)
            logits = np.concatenate([runner.outputs(x)[0] for x in self.held_out])[:n]
            self.accuracy = {
                "num_images": n,
                "model": float((self.expected.argmax(axis=1) == self.classes).mean()),
                "program": float((logits.argmax(axis=1) == self.classes).mean()),
            }


def _holds(parity: Parity, recipe: Recipe) -> bool:
    """Whether outputs are as close to the model's as the recipe promises."""
    agrees = parity.agreement is None or parity.agreement >= recipe.min_agreement
    return agrees and parity.sqnr_db >= recipe.min_sqnr_db


def _write_checked(job: _Job, manifest: Manifest, program: bytes, out: Path) -> Manifest:
    """Write the artefact aside, run it from there as a device would, and give it its name if it follows the model."""
    work_dir = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    try:
        (work_dir / PROGRAM_FILE).write_bytes(program)
        manifest.write(work_dir)
        names = []
        if job.recipe.executable:
            runner = Runner(work_dir)
            job.check_program(runner)
            first = job.inputs["forward"][:NUM_IMAGES]
            outputs = [runner.outputs(x) for x in first]
            structure = [torch.from_numpy(values) for values in outputs[0]]
            returned = structure[0] if job.is_classifier else tuple(structure)
            names = write_transformers_files(work_dir, job.contract, returned, manifest.versions)
            if job.settings.self_test:
                (work_dir / SELF_TEST_FILE).write_bytes(bundle(work_dir / PROGRAM_FILE, first, outputs))
                names.append(SELF_TEST_FILE)
                largest = max(float(np.abs(values).max()) for values in outputs[0])
                manifest = replace(manifest, self_test={"num_images": len(first), "tolerance": SELF_TEST_BOUND * largest})
        manifest = replace(
            manifest,
            parity={stage: asdict(parity) for stage, parity in job.parity.items()},
            accuracy=job.accuracy,
            sha256=manifest.sha256 | {name: sha256_of((work_dir / name).read_bytes()) for name in names},
        )
        manifest.write(work_dir)
        move_into_place(work_dir, out)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return manifest
