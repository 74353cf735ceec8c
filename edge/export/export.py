"""Export a checkpoint: deploy form, quantization, lowering, and a check of every form on real images."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from edge.device.artefact import FILES, PROGRAM_FILE, SELF_TEST_FILE, Manifest, SelfTest, Source, sha256_of
from edge.device.environment import installed_versions
from edge.device.json_text import json_text
from edge.device.runner import Runner
from edge.export.form_choice import ChosenForm, choose_form, deployed_form, rank_layers
from edge.export.judgement import Judgement, judge_graph, judge_program
from edge.export.prepare import Prepared, prepare
from edge.export.settings import ExportError, ExportSettings
from edge.export.temperature import fit_temperature
from edge.export.transformers_format import write_transformers_files
from edge.files import move_into_place
from edge.lower.lowering import Lowered, lower, trace
from edge.lower.recipes import find_recipe
from edge.lower.self_test import NUM_IMAGES, bundle
from edge.lower.sensitivity import Sensitivity


def export(checkpoint_dir: Path, output_dir: Path, settings: ExportSettings) -> Manifest:
    """Export the classifier or backbone in `checkpoint_dir` to `output_dir`, which appears only if every check passed.

    Raises:
        CheckpointError: no such checkpoint, or an image processor that a device cannot repeat.
        CalibrationError: no images, too few, or noise.
        DeployError: a model that has no deploy form.
        ExportError: an `output_dir` that is in use, no images, or a program that is too far from the model.
        LoweringError: the backend does not take the whole program.
        NotFiniteError: the model or its program puts out NaN or infinity.
    """
    output_dir = Path(output_dir).resolve()
    if output_dir.exists() and (not output_dir.is_dir() or any(path.name not in FILES for path in output_dir.iterdir())):
        raise ExportError(f"output_dir must be a new folder or an earlier export, got {output_dir} with other files in it")
    prepared = prepare(checkpoint_dir, settings)
    chosen = choose_form(prepared)
    traced = trace({name: (form, torch.from_numpy(chosen.samples[name].inputs[0])) for name, form in chosen.forms.items()})
    of_graph = judge_graph(prepared, chosen, traced)
    if of_graph.misses and not prepared.recipe.executable:  # no program will be run that could tell
        raise ExportError(f"recipe {prepared.recipe.name} {of_graph.misses}; nothing was written")
    temperature = 1.0
    if prepared.held_out is not None:
        temperature = fit_temperature(chosen.held_out_logits, prepared.held_out.classes)
    constants = {
        "labels": tuple(prepared.labels),
        "temperature": temperature,
        "input_contract": json_text(asdict(prepared.contract), indent=None),
    }
    lowered = lower(traced, prepared.recipe, constants)
    manifest = _manifest(prepared, chosen, of_graph, lowered, temperature, output_dir)
    return _write_checked(prepared, chosen, manifest, lowered.program, output_dir)


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
        task="image-classification" if prepared.is_classifier else "feature-maps",
        labels=prepared.labels,
        temperature=temperature,
        input=prepared.contract,
        methods=prepared.methods,
        recipe=prepared.recipe.name,
        backend=prepared.recipe.backend,
        equalised=chosen.equalised,
        kept_in_float=list(chosen.kept_in_float),
        parity={stage: asdict(parity) for stage, parity in (chosen.parity | of_graph.parity).items()},
        accuracy=chosen.accuracy.figures if chosen.accuracy else {},
        program={
            "size_bytes": len(lowered.program),
            "num_delegates": lowered.num_delegates,
            "outside": lowered.outside,
            "planned_memory_bytes": lowered.planned_memory_bytes,
        },
        self_test=None,
        source=Source(
            checkpoint=os.path.relpath(prepared.checkpoint_dir.resolve(), output_dir),
            parameters=sum(parameter.numel() for parameter in prepared.model.parameters()),
        ),
        versions=installed_versions("swin-hf", "torch", "executorch", "torchao", "transformers"),
        sha256={PROGRAM_FILE: sha256_of(lowered.program)},
    )


def _write_checked(prepared: Prepared, chosen: ChosenForm, manifest: Manifest, program: bytes, output_dir: Path) -> Manifest:
    """Write the artefact to a temporary folder, run it from there as a device would, and move it into place if it passes.

    Raises:
        ExportError: the program is too far from the model.
    """
    with _work_dir_of(output_dir) as work_dir:
        (work_dir / PROGRAM_FILE).write_bytes(program)
        manifest.write(work_dir)
        if prepared.recipe.executable:
            manifest = _with_checked_program(prepared, chosen, manifest, work_dir)
        manifest.write(work_dir)
        move_into_place(work_dir, output_dir)
    return manifest


@contextmanager
def _work_dir_of(output_dir: Path) -> Iterator[Path]:
    work_dir = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    try:
        yield work_dir
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


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
    names = write_transformers_files(
        work_dir, prepared.contract, structure[0] if prepared.is_classifier else structure, manifest.versions
    )
    bundled = None
    if prepared.settings.self_test:
        (work_dir / SELF_TEST_FILE).write_bytes(bundle(work_dir / PROGRAM_FILE, first, outputs))
        names.append(SELF_TEST_FILE)
        largest = max(float(np.abs(values).max()) for values in outputs[0])
        bundled = SelfTest(num_images=len(first), tolerance=recipe.self_test_bound * largest)
    return replace(
        manifest,
        parity=manifest.parity | {stage: asdict(parity) for stage, parity in judgement.parity.items()},
        accuracy=judgement.accuracy.figures if judgement.accuracy else {},
        self_test=bundled,
        sha256=manifest.sha256 | {name: sha256_of((work_dir / name).read_bytes()) for name in names},
    )
