"""The second step of an export: find a form of the model that the recipe allows and that stays close to the model."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from edge.deploy.form import ExplainedClassifier, deploy, flat
from edge.device.parity import Parity
from edge.export.bounds import Accuracy, count_right, missed_accuracy, missed_bound
from edge.export.calibration import MAX_CALIBRATION_IMAGES
from edge.export.checkpoint import input_view
from edge.export.prepare import Prepared, Samples
from edge.export.settings import ExportError
from edge.lower.equalisation import ChannelRanges, channel_ranges, equalise
from edge.lower.quantize import in_precision, quantize
from edge.lower.recipes import Rule
from edge.lower.sensitivity import Sensitivity, layer_sensitivity

MAX_DEPLOY_DIFFERENCE = 1e-4  # of the deploy form's outputs, relative to the largest one
MAX_COMPACT_DIFFERENCE = 1e-3  # the same with position biases as int8
FEW_IMAGES = 16  # for steps that take long and need no more
HELD_OUT_OF_TRAINING = 4  # every fourth image is kept from quantization-aware training, to compare on


@dataclass(frozen=True, kw_only=True)
class ChosenForm:
    """What is lowered.

    forms: of each method.
    samples: of each method, to compare its program on: all images, except those that the form was trained on.
    parity: of the deploy form and, if the recipe quantizes, of the quantized form.
    ranges: that the forms were equalised by; None if they are not. kept_in_float: as in `edge.json`.
    held_out_logits: (n, K) for the held-out images; None without any.
    accuracy: of the quantized form on the held-out images; None without either.
    """

    forms: dict[str, nn.Module]
    samples: dict[str, Samples]
    parity: dict[str, Parity]
    ranges: ChannelRanges | None = None
    kept_in_float: tuple[str, ...] = ()
    held_out_logits: np.ndarray | None
    accuracy: Accuracy | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A quantized form of `forward` and how close it is to the model.

    misses: which bound of the recipe it misses, in words; empty if none.
    """

    form: nn.Module
    parity: Parity
    held_out_logits: np.ndarray | None
    accuracy: Accuracy | None
    misses: str


def choose_form(prepared: Prepared) -> ChosenForm:
    """The form of each method that is lowered.

    Raises:
        DeployError: a model that has no deploy form.
        ExportError: a deploy form that computes another function than the model.
    """
    deployed, parity = {}, {}
    for name in prepared.methods:
        deployed[name], parity[name] = deployed_form(prepared, name)
    if prepared.recipe.train_epochs:
        return _trained(prepared, deployed["forward"], parity["forward"])
    if prepared.recipe.is_quantized:
        return _quantized(prepared, deployed, parity["forward"])
    images = {name: samples.tensors(MAX_CALIBRATION_IMAGES) for name, samples in prepared.samples.items()}
    return ChosenForm(
        forms={name: in_precision(form, prepared.recipe, images[name]) for name, form in deployed.items()},
        samples=prepared.samples,
        parity={"deploy form": parity["forward"]},
        held_out_logits=prepared.held_out.expected if prepared.held_out else None,
    )


def explained_forms(prepared: Prepared, chosen: ChosenForm) -> dict[str, nn.Module]:
    """The chosen forms of a classifier, with class maps as a second output.

    Raises:
        ExportError: one computes other logits than the model.
    """
    recipe, forms = replace(prepared.recipe, rules=_rules(prepared, chosen.kept_in_float)), {}
    for method, samples in prepared.samples.items():
        form, _ = deployed_form(prepared, method, explain=True)
        form = equalise(form, chosen.ranges) if chosen.ranges else form
        forms[method] = in_precision(form, recipe, samples.tensors(MAX_CALIBRATION_IMAGES))
    return forms


def deployed_form(prepared: Prepared, method: str, explain: bool = False) -> tuple[nn.Module, Parity]:
    """The deploy form for a method, and how close it is to the model.

    explain: as for `deploy`.

    Raises:
        DeployError: a model that has no deploy form.
        ExportError: it computes another function than the model.
    """
    samples, view = prepared.samples[method], input_view(prepared.processor, prepared.contract, **prepared.methods[method])
    largest = max(1.0, float(np.abs(samples.reference).max()))
    if prepared.recipe.is_quantized:
        form = deploy(prepared.model, view, compact=True, explain=explain)
        parity = samples.compare(_outputs(form, samples.inputs))
        if parity.max_difference <= largest * MAX_COMPACT_DIFFERENCE:
            return form, parity
    # With position biases in float, where single ones are much larger than the others.
    form = deploy(prepared.model, view, explain=explain)
    parity, limit = samples.compare(_outputs(form, samples.inputs)), largest * MAX_DEPLOY_DIFFERENCE
    if not parity.max_difference <= limit:
        raise ExportError(f"the deploy form differs from the model by {parity.max_difference:.2e} (limit {limit:.2e})")
    return form, parity


def rank_layers(prepared: Prepared, deployed: nn.Module) -> list[Sensitivity]:
    """How far rounding each layer of a deploy form alone moves its outputs, the most sensitive layer first."""
    samples = prepared.samples["forward"]
    images = samples.tensors(FEW_IMAGES)
    reference = np.concatenate([flat(deployed(image)) for image in images])
    return layer_sensitivity(deployed, prepared.recipe, images, reference, samples.are_logits, samples.num_classes)


def _trained(prepared: Prepared, deployed: nn.Module, parity: Parity) -> ChosenForm:
    from edge.lower.qat import train_quantized  # needs accelerate

    samples = prepared.samples["forward"]
    training = [image for number, image in enumerate(samples.tensors()) if number % HELD_OUT_OF_TRAINING]
    form = train_quantized(deployed, prepared.recipe, training)
    every = slice(None, None, HELD_OUT_OF_TRAINING)
    kept = replace(samples, inputs=samples.inputs[every], names=samples.names[every], reference=samples.reference[every])
    candidate = _candidate(prepared, form, kept)
    return ChosenForm(
        forms={"forward": form},
        samples={"forward": kept},
        parity={"deploy form": parity, "quantized": candidate.parity},
        held_out_logits=candidate.held_out_logits,
        accuracy=candidate.accuracy,
    )


def _quantized(prepared: Prepared, deployed: dict[str, nn.Module], parity: Parity) -> ChosenForm:
    candidate, ranges, kept_in_float = _closest(prepared, deployed["forward"])
    recipe = replace(prepared.recipe, rules=_rules(prepared, kept_in_float))
    forms = {"forward": candidate.form}
    for name in list(prepared.methods)[1:]:
        form = equalise(deployed[name], ranges) if ranges else deployed[name]
        forms[name] = quantize(form, recipe, prepared.samples[name].tensors(MAX_CALIBRATION_IMAGES))
    return ChosenForm(
        forms=forms,
        samples=prepared.samples,
        parity={"deploy form": parity, "quantized": candidate.parity},
        ranges=ranges,
        kept_in_float=kept_in_float,
        held_out_logits=candidate.held_out_logits,
        accuracy=candidate.accuracy,
    )


def _closest(prepared: Prepared, deployed: nn.Module) -> tuple[Candidate, ChannelRanges | None, tuple[str, ...]]:
    """A quantized form within the bounds of the recipe, the ranges that it was equalised by, and the layers kept in float.

    Equalisation comes first; if it does not suffice, the most sensitive layers are kept in float, twice as many each time.
    """
    samples = prepared.samples["forward"]
    images = samples.tensors(MAX_CALIBRATION_IMAGES)
    plain = _candidate(prepared, quantize(deployed, prepared.recipe, images), samples)
    if not plain.misses:
        return plain, None, ()
    ranges = channel_ranges(deployed, images, behind_norms=True)
    even_form = equalise(deployed, ranges)
    candidate = _candidate(prepared, quantize(even_form, prepared.recipe, images), samples)
    if not candidate.misses:
        return candidate, ranges, ()
    if candidate.parity.sqnr_db > plain.parity.sqnr_db:
        deployed = even_form
    else:
        ranges = None
    worst, kept = rank_layers(prepared, deployed), ()
    while candidate.misses and len(kept) < len(worst):
        kept = tuple(layer.layer for layer in worst[: max(1, 2 * len(kept))])
        recipe = replace(prepared.recipe, rules=_rules(prepared, kept))
        candidate = _candidate(prepared, quantize(deployed, recipe, images), samples)
    return candidate, ranges, kept


def _rules(prepared: Prepared, kept_in_float: tuple[str, ...]) -> tuple[Rule, ...]:
    return (*(Rule(layer, "fp32") for layer in kept_in_float), *prepared.recipe.rules)


def _candidate(prepared: Prepared, form: nn.Module, samples: Samples) -> Candidate:
    """Compare a quantized form of `forward` with the model."""
    parity, held_out = samples.compare(_outputs(form, samples.inputs)), prepared.held_out
    logits = accuracy = None
    misses = missed_bound(prepared.recipe, parity)
    if held_out is not None:
        logits = np.concatenate(_outputs(form, held_out.inputs))
        accuracy = count_right(held_out.expected, logits, held_out.classes)
        misses = misses or missed_accuracy(prepared.recipe, accuracy)
    return Candidate(form=form, parity=parity, held_out_logits=logits, accuracy=accuracy, misses=misses)


def _outputs(form: nn.Module, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """What a form puts out for inputs, flattened; of one with class maps, the logits."""
    outputs = (form(torch.from_numpy(array)) for array in inputs)
    return [flat(values[0] if isinstance(form, ExplainedClassifier) else values) for values in outputs]
