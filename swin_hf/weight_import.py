"""Checkpoints of other implementations as our models, with a report on every weight."""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from transformers import PreTrainedModel

from .configuration_swin_hf import SwinHfConfig
from .errors import in_one_line
from .modeling_swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfForMaskedImageModeling, SwinHfModel
from .segmentation_swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from .stock_swin_hf import DROPPED_BUFFERS, STOCK_NAMES, from_stock_config, is_stock
from .tiny_vit_weights import from_timm, is_tiny_vit, timm_name, timm_names, tiny_vit_config
from .weight_config import (
    SourceSizes,
    assumed,
    difference_to_timm,
    extended_table,
    original_config,
    stock_v2_difference,
    windows_of_table,
)
from .weight_files import ConversionError, WeightFiles, not_finite
from .weight_names import original_name, original_names, without_prefix

OURS = {
    kind.__name__: kind
    for kind in (
        SwinHfModel,
        SwinHfForImageClassification,
        SwinHfForMaskedImageModeling,
        SwinHfBackbone,
        SwinHfForSemanticSegmentation,
    )
}
# Heads of the stock models by the end of their name.
HEADS = {
    "ForImageClassification": SwinHfForImageClassification,
    "ForMaskedImageModeling": SwinHfForMaskedImageModeling,
    "ForSemanticSegmentation": SwinHfForSemanticSegmentation,
    "Backbone": SwinHfBackbone,
    "Model": SwinHfModel,
}
CLASSIFIERS = re.compile(r"(^|_head\.)classifier\.")
PRETRAINING = re.compile(r"^decoder\.|(^|\.)mask_token$")
BUFFERS = re.compile(rf"(^|\.)({'|'.join(DROPPED_BUFFERS)}|k_bias)$")


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What became of every weight of a checkpoint.

    used: name there -> name here, of weights that were only renamed.
    converted: name there -> names here, of weights that were split or changed.
    dropped: name there -> why it is not needed.
    missing: names here of weights that the checkpoint lacks, which are newly initialised.
    notes: how the outputs may differ nevertheless.
    """

    used: dict[str, str] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lists = {name: entries for name, entries in asdict(self).items() if name != "notes"}
        lines = ["weights: " + ", ".join(f"{len(entries)} {name}" for name, entries in lists.items())]
        for why in dict.fromkeys(self.dropped.values()):
            first, *others = [name for name, own in self.dropped.items() if own == why]
            lines.append(f"dropped, {why}: {first}{f' and {len(others)} more' if others else ''}")
        lines += [f"new: {', '.join(self.missing)}"] if self.missing else []
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """Weights of a checkpoint by their names here.

    kind, config: of the model that they are for. origins: name here -> name in the checkpoint.
    new_head: whether its classifier is a new one, even if the checkpoint has one.
    notes: how outputs may differ from those of the checkpoint's own model.
    """

    kind: type[PreTrainedModel]
    config: SwinHfConfig | SwinHfUperNetConfig
    weights: dict[str, torch.Tensor]
    origins: dict[str, str]
    new_head: bool
    notes: list[str] = field(default_factory=list)

    def make_model(self) -> PreTrainedModel:
        has_token = self.kind is SwinHfModel and "embeddings.mask_token" in self.weights
        return self.kind(self.config, use_mask_token=True) if has_token else self.kind(self.config)


def import_model(
    files: WeightFiles, num_labels: int | None = None, sizes: SourceSizes | None = None, allow_unexpected: bool = False
) -> tuple[PreTrainedModel, ConversionReport]:
    """The model of a checkpoint of ours, of stock transformers, of timm or of Microsoft's code.

    num_labels: classes of a new head where the checkpoint has one for another number, or none.

    Raises:
        ConversionError: it is no such checkpoint, our models cannot express it, weights are missing, or some are unexpected
            and not allowed; the message names them.
    """
    if files.config.get("model_type"):
        renamed = rename_stock(files, num_labels)
    elif is_tiny_vit(without_prefix(files.weights)[0].values()):
        renamed = rename_tiny_vit(files, sizes or SourceSizes(), num_labels)
    else:
        renamed = rename_original(files, sizes or SourceSizes(), num_labels)
    report = ConversionReport(notes=[*files.notes, *renamed.notes])
    if num_labels is not None and num_labels != renamed.config.num_labels:
        renamed.config.num_labels = num_labels
        _drop_head(renamed, report, num_labels)
    if bad := not_finite({renamed.origins[ours]: weight for ours, weight in renamed.weights.items()}):
        raise ConversionError(f"{files.name} must hold finite weights, got {bad}; take an earlier checkpoint of this model")
    with _explained(files), torch.device("meta"):
        expected = renamed.make_model().state_dict()
    _check_missing(expected, renamed, files, report)
    _check_unexpected(renamed, files, report, allow_unexpected)
    model = renamed.make_model()
    names_of: dict[str, list[str]] = {}
    for ours, name in renamed.origins.items():
        names_of.setdefault(name, []).append(ours)
    for name, names in names_of.items():
        if len(names) == 1 and renamed.weights[names[0]] is files.weights[name]:
            report.used[name] = names[0]
        else:
            report.converted[name] = " + ".join(names)
    model.load_state_dict(renamed.weights, strict=False)
    dtypes = {weight.dtype for weight in renamed.weights.values() if weight.is_floating_point()}
    if len(dtypes) == 1:
        model = model.to(dtypes.pop())
    return model.eval(), report


def rename_stock(files: WeightFiles, num_labels: int | None = None) -> Renamed:
    """Weights of stock transformers, old names and new, or of ours.

    Raises:
        ConversionError: the config is of another model.
    """
    config, architecture = files.config, architecture_of(files) or "SwinHfModel"
    kind = OURS.get(architecture) or next((kind for end, kind in HEADS.items() if architecture.endswith(end)), None)
    is_ours = config["model_type"] in (SwinHfConfig.model_type, SwinHfUperNetConfig.model_type) and architecture in OURS
    if not is_ours and (kind is None or not is_stock(config)):
        raise ConversionError(
            f"{files.name} must be a Swin of transformers or of swin_hf, got a {architecture} of type {config['model_type']}"
        )
    with _explained(files):
        fields = {name: value for name, value in config.items() if name != "model_type"}
        own = kind.config_class.from_dict(fields if is_ours else from_stock_config(config, kind.config_class))
    difference = stock_v2_difference(getattr(own, "backbone_config", own)) if is_stock(config) else ""
    notes = [f"transformers computes something else: {difference}"] if difference else []
    given_kind, kind = kind, _with_classes(kind, num_labels)
    origins, (plain, _) = {}, without_prefix(files.weights)
    for name, ours in plain.items():
        for stock, here in STOCK_NAMES.items():
            ours = re.sub(stock, here, ours)
        origins[ours.removeprefix("swin.") if kind is SwinHfModel else ours] = name
    weights = {ours: files.weights[name] for ours, name in origins.items()}
    new_head = kind is not given_kind or num_labels not in (None, own.num_labels)
    return Renamed(kind=kind, config=own, weights=weights, origins=origins, new_head=new_head, notes=notes)


def architecture_of(files: WeightFiles) -> str:
    """The class of a checkpoint's model in `config.json`, empty if it names none.

    Raises:
        ConversionError: `architectures` and `model_type` are not what they should be.
    """
    architectures, model_type = files.config.get("architectures") or [""], files.config.get("model_type", "")
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in [*architectures, model_type]):
        raise ConversionError(
            f"{files.name} must have a model_type and a list of architectures in config.json, got {model_type!r:.60} and "
            f"{architectures!r:.60}"
        )
    return architectures[0]


def rename_original(files: WeightFiles, sizes: SourceSizes, num_labels: int | None = None) -> Renamed:
    """Weights of Microsoft's code or of timm, from which the config is read too.

    Raises:
        ConversionError: they are of another model, or of one that cannot be expressed here.
    """
    names = original_names(files.weights)
    source = {original: files.weights[name] for original, name in names.items()}
    if "patch_embed.proj.weight" not in source:
        raise ConversionError(
            f"{files.name} must be a Swin of transformers, with config.json, or of timm or Microsoft's code, with "
            f"patch_embed.proj.weight; got weights like {', '.join(list(files.weights)[:3])}{beginnings(files.weights)}"
        )
    with _explained(files):
        config, kind = original_config(source, files, sizes), SwinHfModel
    if "decoder.0.weight" in source:
        kind = SwinHfForMaskedImageModeling
        config.encoder_stride = math.isqrt(len(source["decoder.0.weight"]) // config.num_channels)
    elif "head.weight" in source:
        kind, config.num_labels = SwinHfForImageClassification, len(source["head.weight"])
    kind = _with_classes(kind, num_labels)
    with torch.device("meta"):
        expected = kind(config).state_dict()
    weights, origins = {}, {}
    for ours in expected:
        original, third = original_name(f"swin.{ours}" if kind is SwinHfModel else ours, config.version)
        if original not in source:
            continue
        weight = source[original] if third is None else source[original].chunk(3)[third]
        if ours.endswith("relative_position_bias_table"):
            weight = _in_window_table(weight, ours, config)
        weights[ours], origins[ours] = weight, names[original]
    notes = [assumed(files, source, sizes)]
    if "architecture" in files.config and (difference := difference_to_timm(config)):
        notes.append(f"timm computes something else at this image size: in {difference}")
    new_head = "head.weight" not in source or num_labels not in (None, config.num_labels)
    notes = [note for note in notes if note]
    return Renamed(kind=kind, config=config, weights=weights, origins=origins, new_head=new_head, notes=notes)


def rename_tiny_vit(files: WeightFiles, sizes: SourceSizes, num_labels: int | None = None) -> Renamed:
    """Weights of a TinyViT of timm or of its authors, from which the config is read too.

    Raises:
        ConversionError: they are not whole.
    """
    names = timm_names(without_prefix(files.weights)[0])
    source = {timm: files.weights[name] for timm, name in names.items()}
    with _explained(files):
        config = tiny_vit_config(source, files, sizes.image_size)
    given_kind = SwinHfForImageClassification if "head.fc.weight" in source else SwinHfModel
    if given_kind is SwinHfForImageClassification:
        config.num_labels = len(source["head.fc.weight"])
    kind = _with_classes(given_kind, num_labels)
    with torch.device("meta"):
        expected = kind(config).state_dict()
    weights, origins = {}, {}
    for ours in expected:
        full = f"swin.{ours}" if kind is SwinHfModel else ours
        if (timm := timm_name(full)) in source:
            weights[ours], origins[ours] = from_timm(full, source[timm], config), names[timm]
    side = config.image_size
    told = sizes.image_size or files.config.get("pretrained_cfg")
    note = f"the image size is assumed to be {side}, of which a window of the last stage spans the map"
    new_head = given_kind is not SwinHfForImageClassification or num_labels not in (None, config.num_labels)
    notes = [] if told else [note]
    return Renamed(kind=kind, config=config, weights=weights, origins=origins, new_head=new_head, notes=notes)


def beginnings(names: Iterable[str]) -> str:
    """The first parts of names, in words, if there are several."""
    first = list(dict.fromkeys(name.split(".")[0] for name in names))
    return f", under {', '.join(first[:10])}{' and more' if first[10:] else ''}" if len(first) > 1 else ""


@contextmanager
def _explained(files: WeightFiles) -> Iterator[None]:
    """Raise the errors of a config as ConversionErrors."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # values of a wrong type make transformers and PyTorch raise anything
        raise ConversionError(f"{files.name} has an impossible config: {in_one_line(error)}") from error


def _with_classes(kind: type[PreTrainedModel], num_labels: int | None) -> type[PreTrainedModel]:
    """The class of a model of `kind` with so many classes: a classifier, if `kind` has none."""
    has_none = kind in (SwinHfModel, SwinHfForMaskedImageModeling)
    return SwinHfForImageClassification if has_none and num_labels is not None else kind


def _in_window_table(table: torch.Tensor, name: str, config: SwinHfConfig) -> torch.Tensor:
    """A table of position biases for the whole window, from one that may be for a window cut to a small map.

    Raises:
        ConversionError: the window of the block is neither the model's nor cut to its map.
    """
    stage, block, window, fitted = windows_of_table(name, config)
    if len(table) == math.prod(2 * side - 1 for side in window):
        return table
    if len(table) != math.prod(2 * side - 1 for side in fitted):
        raise ConversionError(
            f"stage {stage}, block {block} must have windows of {fitted[0]} x {fitted[1]} like the rest of the model, "
            f"got a table of {len(table)} position biases; windows that differ by stage cannot be expressed"
        )
    return extended_table(table, fitted, window)


def _drop_head(renamed: Renamed, report: ConversionReport, num_labels: int) -> None:
    """Leave out the weights of a head for another number of classes."""
    for ours in [ours for ours in renamed.weights if CLASSIFIERS.search(ours)]:
        classes = len(renamed.weights.pop(ours))
        report.dropped[renamed.origins.pop(ours)] = f"of a head for {classes} classes, not {num_labels}"


def _check_missing(expected: dict[str, torch.Tensor], renamed: Renamed, files: WeightFiles, report: ConversionReport) -> None:
    """Check that every weight of the model, except those of a new head, is there in its shape.

    Raises:
        ConversionError: one is not.
    """
    for ours, weight in renamed.weights.items():
        if ours in expected and weight.shape != expected[ours].shape:
            shapes = f"{tuple(expected[ours].shape)} as {ours}, got {tuple(weight.shape)}"
            raise ConversionError(f"{files.name}: {renamed.origins[ours]} must have shape {shapes}")
    counters = {
        name for name in expected if name.endswith("num_batches_tracked")
    }  # which only training without momentum reads
    report.missing.extend(sorted(set(expected) - set(renamed.weights) - counters))
    lacking = [name for name in report.missing if not (renamed.new_head and CLASSIFIERS.search(name))]
    if lacking:
        raise ConversionError(f"{files.name} lacks weights of {renamed.kind.__name__}: {', '.join(lacking[:5])}")
    for ours in set(renamed.weights) - set(expected):
        del renamed.weights[ours], renamed.origins[ours]


def _check_unexpected(renamed: Renamed, files: WeightFiles, report: ConversionReport, allowed: bool) -> None:
    """Report for every unused weight why it is not used.

    Raises:
        ConversionError: there are weights without such a reason, and they are not allowed.
    """
    used = set(renamed.origins.values())
    left = [name for name in files.weights if name not in used and name not in report.dropped]
    plain, copies = without_prefix(files.weights)
    why_allowed = "unexpected, as was allowed" if allowed else ""
    reasons = {name: _reason_to_drop(plain.get(name, name), renamed.kind) or why_allowed for name in left}
    reasons |= dict.fromkeys(copies, "not averaged; the file has averaged weights too")
    unexpected = [name for name, reason in reasons.items() if not reason]
    if unexpected:
        raise ConversionError(
            f"{files.name} has weights that {renamed.kind.__name__} does not know: {', '.join(unexpected[:5])}"
            f"{f' and {len(unexpected) - 5} more' if unexpected[5:] else ''}; allow_unexpected drops them"
        )
    report.dropped.update(reasons)


def _reason_to_drop(name: str, kind: type[PreTrainedModel]) -> str:
    """Why a model has no use for a weight that others save; empty if there is no reason."""
    if BUFFERS.search(name):
        return "follows from the configuration"
    if name == "n_averaged":
        return "the number of averaged models"
    if kind is not SwinHfForMaskedImageModeling and PRETRAINING.search(name):
        return "of masked-image pre-training"
    if kind in (SwinHfBackbone, SwinHfForSemanticSegmentation) and re.search(r"(^|\.)swin\.layernorm\.", name):
        return "not used by a backbone"
    return ""
