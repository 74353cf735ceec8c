"""Export a checkpoint: deploy form, quantization, lowering, and a check of every form on real images."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from edge.device.artefact import FILES, PROGRAM_FILE, SELF_TEST_FILE, Manifest, SelfTest, sha256_of
from edge.device.runner import Runner
from edge.export.job import ExportError, ExportJob, ExportSettings
from edge.export.transformers_format import write_transformers_files
from edge.files import move_into_place
from edge.lower.lowering import lower, trace
from edge.lower.self_test import NUM_IMAGES, bundle
from edge.lower.sensitivity import Sensitivity


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
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(path.name not in FILES for path in out.iterdir())):
        raise ExportError(f"--out {out} must be a new folder or an earlier export, got a folder with other files in it")
    job = ExportJob(Path(checkpoint_dir), settings)
    job.load_images()
    forms = job.make_forms()
    traced = trace({name: (form, torch.from_numpy(job.inputs[name][0])) for name, form in forms.items()})
    job.check_traced(traced)
    temperature = job.temperature()
    constants = {
        "labels": tuple(job.labels),
        "temperature": temperature,
        "input_contract": json.dumps(asdict(job.contract)),
    }
    lowered = lower(traced, job.recipe, constants)
    return _write_checked(job, job.manifest(lowered, temperature, out), lowered.program, out)


def sensitivity(checkpoint_dir: Path, settings: ExportSettings) -> list[Sensitivity]:
    """What rounding each layer alone, as the recipe would, does to the outputs of a checkpoint; the worst first.

    Raises:
        As `export`.
    """
    job = ExportJob(Path(checkpoint_dir), settings)
    if not job.recipe.is_quantized:
        raise ExportError(f"recipe must be one that quantizes layers to have sensitive ones, got {settings.recipe}")
    job.load_images()
    return job.sensitivity(job.deployed("forward"))


def _write_checked(job: ExportJob, manifest: Manifest, program: bytes, out: Path) -> Manifest:
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
                tolerance = job.recipe.self_test_bound * largest
                manifest = replace(manifest, self_test=SelfTest(num_images=len(first), tolerance=tolerance))
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
