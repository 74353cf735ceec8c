"""Export a checkpoint: deploy form, quantization, lowering, and a check of every form on real images."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge.deploy.segmenters import ClassMap
from edge.device.artefact import (
    PROGRAM_FILE,
    SELF_TEST_FILE,
    Manifest,
    SelfTest,
    Source,
    checkpoint_name,
    constants_of,
    recorded_files,
    sha256_of,
)
from edge.device.environment import installed_versions
from edge.device.runner import Runner
from edge.device.temperature import MIN_LABELLED_IMAGES, fit_temperature
from edge.export.checkpoint import task_of
from edge.export.form_choice import ChosenForm, choose_form, deployed_form, explained_forms, rank_layers
from edge.export.judgement import Judgement, judge_graph, judge_program
from edge.export.prepare import Prepared, prepare
from edge.export.settings import ExportError, ExportSettings
from edge.export.transformers_format import write_transformers_files
from edge.lower.lowering import Lowered, lower, trace
from edge.lower.recipes import find_recipe
from edge.lower.self_test import NUM_IMAGES, bundle
from edge.lower.sensitivity import Sensitivity
from swin_hf.output_folders import check_apart, check_free, check_holds_only, new_folder


def export(checkpoint_dir: Path, output_dir: Path, settings: ExportSettings) -> Manifest:
    """Export the model in `checkpoint_dir` to `output_dir`, which appears only if every check passed.

    Raises:
        CheckpointError: no such checkpoint, or an image processor that a device cannot repeat.
        CalibrationError: no images, too few, or noise.
        DeployError: a model that has no deploy form.
        ExportError: no images, or a program that is too far from the model.
        OutputError: an `output_dir` that is in use, or one of the inputs, or that cannot be written.
        LoweringError: the backend does not take the whole program.
        NotFiniteError: the model or its program puts out NaN or infinity.
    """
    output_dir = Path(output_dir).resolve()
    folders = {name: value for name in ("dataset", "validation") if isinstance(value := getattr(settings, name), str | Path)}
    check_apart(output_dir, checkpoint=checkpoint_dir, **folders)
    with new_folder(output_dir, check_replaceable) as work_dir:
        return export_into(work_dir, checkpoint_dir, output_dir, settings)


def check_replaceable(output_dir: Path) -> None:
    """Refuse an output folder that is in use for anything but an earlier export, whose files are those of its `edge.json`.

    Raises:
        OutputError: it is.
    """
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return check_free(output_dir)
    return check_holds_only(output_dir, recorded_files(output_dir), "an earlier export")


def export_into(work_dir: Path, checkpoint_dir: Path, output_dir: Path, settings: ExportSettings) -> Manifest:
    """Export to the folder `work_dir`, which will be moved to `output_dir`.

    Raises:
        As `export`.
    """
    prepared = prepare(checkpoint_dir, settings)
    chosen = choose_form(prepared)
    forms = with_class_maps(prepared, chosen.forms) if settings.class_map else chosen.forms
    forms = explained_forms(prepared, chosen) if settings.explain else forms
    traced = trace({name: (form, torch.from_numpy(chosen.samples[name].inputs[0])) for name, form in forms.items()})
    of_graph = judge_graph(prepared, chosen, traced)
    if of_graph.misses and not prepared.recipe.executable:  # no program will be run that could tell
        raise ExportError(f"recipe {prepared.recipe.name} {of_graph.misses}; nothing was written")
    temperature = float(getattr(prepared.model.config, "calibration_temperature", 1.0))
    if prepared.held_out is not None and len(prepared.held_out.classes) >= MIN_LABELLED_IMAGES:
        temperature = fit_temperature(chosen.held_out_logits, prepared.held_out.classes)
    lowered = lower(traced, prepared.recipe, constants_of(prepared.labels, temperature, prepared.contract, prepared.palette))
    manifest = _manifest(prepared, chosen, of_graph, lowered, temperature, output_dir)
    return _write_checked(prepared, chosen, manifest, lowered.program, work_dir)


def with_class_maps(prepared: Prepared, forms: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Forms of a segmenter that put out the class of every pixel."""
    return {name: ClassMap(form, *prepared.class_map_size(name)) for name, form in forms.items()}


def sensitivity(checkpoint_dir: Path, settings: ExportSettings) -> list[Sensitivity]:
    """How far rounding each layer alone, as the recipe would, moves the outputs of a checkpoint; the worst layer first.

    Raises:
        As `export`.
    """
    if not find_recipe(settings.recipe).is_quantized:
        raise ExportError(f"recipe must be one that quantizes layers to have sensitive ones, got {settings.recipe}")
    prepared = prepare(checkpoint_dir, settings)
    form, _ = deployed_form(prepared, "forward")
    return rank_layers(prepared, form)


def _manifest(
    prepared: Prepared, chosen: ChosenForm, of_graph: Judgement, lowered: Lowered, temperature: float, output_dir: Path
) -> Manifest:
    """The manifest before the program is run."""
    return Manifest(
        task=task_of(prepared.model),
        labels=prepared.labels,
        temperature=temperature,
        input=prepared.contract,
        methods=prepared.methods,
        recipe=prepared.recipe.name,
        backend=prepared.recipe.backend,
        equalised=chosen.ranges is not None,
        kept_in_float=list(chosen.kept_in_float),
        parity={stage: asdict(parity) for stage, parity in (chosen.parity | of_graph.parity).items()},
        accuracy=chosen.accuracy.figures if chosen.accuracy else {},
        program=lowered.as_manifest(),
        self_test=None,
        source=Source(
            checkpoint=checkpoint_name(prepared.checkpoint_dir, output_dir),
            parameters=sum(parameter.numel() for parameter in prepared.model.parameters()),
        ),
        versions=installed_versions("swin-hf", "torch", "executorch", "torchao", "transformers"),
        sha256={PROGRAM_FILE: sha256_of(lowered.program)},
        palette=prepared.palette,
        map_size=prepared.map_size,
        class_map=prepared.settings.class_map,
        explains=prepared.settings.explain,
    )


def _write_checked(prepared: Prepared, chosen: ChosenForm, manifest: Manifest, program: bytes, work_dir: Path) -> Manifest:
    """Write the artefact to a folder, and run it from there as a device would.

    Raises:
        ExportError: the program is too far from the model.
    """
    (work_dir / PROGRAM_FILE).write_bytes(program)
    manifest.write(work_dir)
    if prepared.recipe.executable:
        manifest = _with_checked_program(prepared, chosen, manifest, work_dir)
    manifest.write(work_dir)
    return manifest


def _with_checked_program(prepared: Prepared, chosen: ChosenForm, manifest: Manifest, work_dir: Path) -> Manifest:
    """Run the program in `work_dir`, write the files that need its outputs, and complete the manifest."""
    recipe, runner = prepared.recipe, Runner(work_dir)
    judgement = judge_program(prepared, chosen, runner)
    if judgement.misses:
        raise ExportError(
            f"recipe {recipe.name} {judgement.misses}; nothing was written. Try recipe fp32, or more and more typical images"
        )
    first = chosen.samples["forward"].inputs[:NUM_IMAGES]
    outputs = [runner.outputs(array) for array in first]
    structure = tuple(torch.from_numpy(values) for values in outputs[0])
    names = write_transformers_files(work_dir, prepared.contract, type(prepared.model), structure, manifest.versions)
    bundled = None
    if prepared.settings.self_test:
        (work_dir / SELF_TEST_FILE).write_bytes(bundle(work_dir / PROGRAM_FILE, first, outputs))
        names.append(SELF_TEST_FILE)
        largest = 1.0 if manifest.class_map else max(float(np.abs(values).max()) for values in outputs[0])
        bundled = SelfTest(num_images=len(first), tolerance=recipe.self_test_bound * largest)
    return replace(
        manifest,
        parity=manifest.parity | {stage: asdict(parity) for stage, parity in judgement.parity.items()},
        accuracy=judgement.accuracy.figures if judgement.accuracy else {},
        self_test=bundled,
        sha256=manifest.sha256 | {name: sha256_of((work_dir / name).read_bytes()) for name in names},
    )
