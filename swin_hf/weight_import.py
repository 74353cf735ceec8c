"""Checkpoints of other implementations as models of ours, with a report of what became of every weight."""

# C channels, N tokens of a window, nW windows, wh ww window

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from .configuration_swin_hf import SwinHfConfig, height_width
from .modeling_swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfForMaskedImageModeling, SwinHfModel
from .segmentation_swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig
from .stock_swin_hf import DROPPED_BUFFERS, STOCK_NAMES, from_stock_config, is_stock, known_fields
from .weight_files import ConversionError, WeightFiles
from .weight_names import original_name, original_names

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
HEAD_WEIGHTS = re.compile(r"(^|_head\.)classifier\.|^decoder\.|(^|\.)mask_token$")
PRETRAINING = re.compile(r"^decoder\.|(^|\.)mask_token$")
BUFFERS = re.compile(rf"(^|\.)({'|'.join(DROPPED_BUFFERS)}|k_bias)$")
# timm names its models after window and image size: window8_256, or window12to16_192to256 for one fine-tuned at another size.
TIMM_SIZES = re.compile(r"window(\d+)(?:to(\d+))?_(\d+)(?:to(\d+))?")


@dataclass(frozen=True, kw_only=True)
class SourceSizes:
    """Of the model that the weights are of, in pixels and patches, for files that do not tell them."""

    image_size: int | None = None
    window_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What became of every weight of a checkpoint.

    used: name there -> name here, of weights that were only renamed.
    converted: name there -> names here, of weights that were split or changed.
    dropped: name there -> why it is not needed.
    missing: names here of weights that the checkpoint lacks, which are new.
    notes: in what the outputs may differ all the same.
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
        kind, config, weights, origins = _from_transformers(files, num_labels)
    else:
        kind, config, weights, origins = _from_original(files, sizes or SourceSizes(), num_labels)
    if num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels
    model, report = _fill(kind, config, weights, origins, files, allow_unexpected)
    if "architecture" in files.config and (difference := difference_to_timm(config)):
        report.notes.append(f"timm computes something else at this image size: in {difference}")
    return model, report


def difference_to_timm(config: SwinHfConfig) -> str:
    """Where timm's Swin computes something else than all others at the config's image size, and what; nothing if nowhere."""
    for stage in range(len(config.depths)):
        lengths, window = map_size(config, stage), config.stage_window(stage)
        spanned = [length <= side for length, side in zip(lengths, window)]
        if any(length % min(side, length) for length, side in zip(lengths, window)):
            return (
                f"stage {stage} a map of {lengths[0]} x {lengths[1]} is no whole number of windows of "
                f"{window[0]} x {window[1]}; timm pads it after shifting, others before"
            )
        if spanned[0] != spanned[1] and config.depths[stage] > 1:
            return (
                f"stage {stage}, block 1, a window spans the map in one direction; timm shifts it in the other, others do not"
            )
    return ""


def _from_transformers(files: WeightFiles, num_labels: int | None):
    """Class, config, and weights by their names here, with the names that they have in the file."""
    config, architecture = files.config, (files.config.get("architectures") or ["SwinHfModel"])[0]
    kind = OURS.get(architecture) or next((kind for end, kind in HEADS.items() if architecture.endswith(end)), None)
    backbone = config.get("backbone_config") or {}
    if config["model_type"] in (SwinHfConfig.model_type, SwinHfUperNetConfig.model_type) and architecture in OURS:
        own = kind.config_class(**{name: value for name, value in config.items() if name != "model_type"})
    elif is_stock(config) and kind not in (None, SwinHfForSemanticSegmentation):
        own = SwinHfConfig(**from_stock_config(config, SwinHfConfig))
    elif config["model_type"] == "upernet" and is_stock(backbone):
        fields = known_fields(config, SwinHfUperNetConfig) | {"backbone_config": from_stock_config(backbone, SwinHfConfig)}
        own = SwinHfUperNetConfig(**fields)
    else:
        raise ConversionError(
            f"{files.name} must be a Swin of transformers or of swin_hf, got a {architecture} of type {config['model_type']}"
        )
    kind = _with_classes(kind, num_labels)
    origins = {}
    for name in files.weights:
        ours = name
        for stock, here in STOCK_NAMES.items():
            ours = re.sub(stock, here, ours)
        origins[ours.removeprefix("swin.") if kind is SwinHfModel else ours] = name
    return kind, own, {ours: files.weights[name] for ours, name in origins.items()}, origins


def _with_classes(kind: type[PreTrainedModel], num_labels: int | None) -> type[PreTrainedModel]:
    """The class that a model of `kind` becomes if it shall have so many classes."""
    has_none = kind in (SwinHfModel, SwinHfForMaskedImageModeling)
    return SwinHfForImageClassification if has_none and num_labels is not None else kind


def _from_original(files: WeightFiles, sizes: SourceSizes, num_labels: int | None):
    """The same for the names of the original code and of timm, where the config is read from the weights."""
    names = original_names(files.weights)
    source = {original: files.weights[name] for original, name in names.items()}
    if "patch_embed.proj.weight" not in source:
        raise ConversionError(
            f"{files.name} must be a Swin of transformers, with config.json, or of timm or Microsoft's code, with "
            f"patch_embed.proj.weight; got weights like {', '.join(list(files.weights)[:3])}"
        )
    config = original_config(source, files, sizes)
    kind = SwinHfModel
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
        full = f"swin.{ours}" if kind is SwinHfModel else ours
        original, third = original_name(full, config.version)
        if original not in source:
            continue
        weight = source[original] if third is None else source[original].chunk(3)[third]
        if ours.endswith("relative_position_bias_table"):
            weight = _in_window_table(weight, ours, config)
        weights[ours], origins[ours] = weight, names[original]
    return kind, config, weights, origins


def original_config(source: dict[str, torch.Tensor], files: WeightFiles, sizes: SourceSizes) -> SwinHfConfig:
    """The config of weights with the names of the original code, from their shapes and from timm's `config.json`.

    Raises:
        ConversionError: something is neither to be seen from the weights nor told; the message says what to give.
    """
    blocks = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight", name) for name in source]
    counted = [(int(found[1]), int(found[2])) for found in blocks if found]
    depths = [1 + max(block for own, block in counted if own == stage) for stage in sorted({stage for stage, _ in counted})]
    first = [f"layers.{stage}.blocks.0" for stage in range(len(depths))]
    try:
        version = 2 if f"{first[0]}.attn.logit_scale" in source else 1
        heads = ".attn.logit_scale" if version == 2 else ".attn.relative_position_bias_table"
        num_heads = [source[block + heads].shape[0 if version == 2 else 1] for block in first]
        dims = [len(source[f"{block}.norm1.weight"]) for block in first]
        patch = tuple(source["patch_embed.proj.weight"].shape[2:])
        mlp_ratio = len(source[f"{first[0]}.mlp.fc1.weight"]) / dims[0]
    except (KeyError, IndexError) as error:
        raise ConversionError(
            f"{files.name} must be a whole Swin of timm or of Microsoft's code, but it lacks {error}"
        ) from error
    if dims != [dims[0] * 2**stage for stage in range(len(dims))]:
        raise ConversionError(f"{files.name} must double its channels in every stage, got {dims}")
    windows, units = _windows(source, files, sizes, version, patch)
    return SwinHfConfig(
        version=version,
        image_size=_image_size(source, files, sizes, patch, windows),
        patch_size=patch[0] if patch[0] == patch[1] else patch,
        num_channels=source["patch_embed.proj.weight"].shape[1],
        embed_dim=dims[0],
        depths=depths,
        num_heads=num_heads,
        window_size=max(windows),
        pretrained_window_sizes=units,
        mlp_ratio=mlp_ratio,
        qkv_bias=f"{first[0]}.attn.{'q_bias' if version == 2 else 'qkv.bias'}" in source,
        use_absolute_embeddings="absolute_pos_embed" in source,
        **_labels(files),
    )


def _labels(files: WeightFiles) -> dict[str, Any]:
    names = files.config.get("label_names") or files.config.get("pretrained_cfg", {}).get("label_names")
    if not names:
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def _timm_sizes(files: WeightFiles) -> tuple[int | None, int | None, int | None, int | None]:
    """Window and image size of a timm model, and those that it was pretrained with, as far as `config.json` tells them."""
    arguments = files.config.get("model_args") or {}
    found = TIMM_SIZES.search(files.config.get("architecture", ""))
    window, to_window, image, _ = (int(size) if size else None for size in (found.groups() if found else [None] * 4))
    input_size = (files.config.get("pretrained_cfg") or {}).get("input_size")
    image_size = arguments.get("img_size") or (input_size[1] if input_size else None)
    return (
        arguments.get("window_size") or to_window or window,
        image_size,
        window if to_window else None,
        image if to_window else None,
    )


def _windows(
    source: dict[str, torch.Tensor], files: WeightFiles, sizes: SourceSizes, version: int, patch: tuple[int, int]
) -> tuple[list[int], list[int] | None]:
    """Side of the window of each stage, or of all; in V2 also that of the window each position network was trained with."""
    if version == 1:
        tables = [weight for name, weight in source.items() if name.endswith("relative_position_bias_table")]
        return [(math.isqrt(len(table)) + 1) // 2 for table in tables], None
    offsets = [weight for name, weight in sorted(source.items()) if name.endswith("blocks.0.attn.relative_coords_table")]
    if offsets and sizes.window_size is None:  # (1, 2wh-1, 2ww-1, 2), whose largest offset tells what its unit was
        windows = [(table.shape[1] + 1) // 2 for table in offsets]
        spans = [(8 ** table.max().item() - 1) / 8 for table in offsets]
        units = [round((window - 1) / span) + 1 if span else window for window, span in zip(windows, spans)]
        return windows, [0 if unit == window else unit for unit, window in zip(units, windows)]
    window, _, pretrained_window, pretrained_image = _timm_sizes(files)
    window = sizes.window_size or window
    if not isinstance(window, int):
        raise ConversionError(f"{files.name} does not tell its window size; give it, --source-window-size 8 for instance")
    given = (files.config.get("model_args") or {}).get("pretrained_window_sizes")
    num_stages = len(set(re.findall(r"^layers\.(\d+)\.", "\n".join(source), re.MULTILINE)))
    if given is None and pretrained_window:
        given = [min(pretrained_window, pretrained_image // patch[0] // 2**stage) for stage in range(num_stages)]
    return [window], list(given) if given and any(given) else None


def _image_size(
    source: dict[str, torch.Tensor], files: WeightFiles, sizes: SourceSizes, patch: tuple[int, int], windows: list[int]
) -> int | list[int]:
    """From the masks of shifted windows (nW, N, N), from absolute positions, from timm's config, or as it was given."""
    told = sizes.image_size or _timm_sizes(files)[1]
    if told:
        return told if isinstance(told, int) else told[0] if told[0] == told[1] else list(told)
    masks = {int(name.split(".")[1]): weight for name, weight in source.items() if name.endswith(".attn_mask")}
    stage, mask = min(masks.items(), default=(0, None))
    if mask is not None and math.isqrt(mask.shape[0]) ** 2 == mask.shape[0]:  # an image that is not square cannot be told
        return math.isqrt(mask.shape[0]) * math.isqrt(mask.shape[1]) * 2**stage * patch[0]
    if "absolute_pos_embed" in source:
        return math.isqrt(source["absolute_pos_embed"].shape[1]) * patch[0]
    raise ConversionError(f"{files.name} does not tell its image size; give it, --source-image-size 224 for instance")


def _in_window_table(table: torch.Tensor, name: str, config: SwinHfConfig) -> torch.Tensor:
    """A table of position biases, which may be of a window cut to a small map, in the middle of one for the whole window.

    Raises:
        ConversionError: the window of the block is neither the model's nor cut to its map.
    """
    stage, block = map(int, re.findall(r"layers\.(\d+)\.blocks\.(\d+)\.", name)[0])
    window = height_width(config.window_size)
    fitted = tuple(map(min, window, map_size(config, stage)))
    if len(table) == math.prod(2 * side - 1 for side in window):
        return table
    if len(table) != math.prod(2 * side - 1 for side in fitted):
        raise ConversionError(
            f"stage {stage}, block {block} must have windows of {fitted[0]} x {fitted[1]} like the rest of the model, "
            f"got a table of {len(table)} position biases; windows that differ by stage cannot be expressed"
        )
    whole = table.new_zeros(*(2 * side - 1 for side in window), table.shape[1])
    top, left = (side - own for side, own in zip(window, fitted))
    whole[top : top + 2 * fitted[0] - 1, left : left + 2 * fitted[1] - 1] = table.view(*(2 * side - 1 for side in fitted), -1)
    return whole.flatten(0, 1)


def map_size(config: SwinHfConfig, stage: int) -> tuple[int, int]:
    """Size (height, width) of a stage's map for an image of the config's size."""
    pixels = zip(config.image_height_width, config.patch_height_width)
    return tuple(-(-size // (patch * 2**stage)) for size, patch in pixels)


def _fill(
    kind: type[PreTrainedModel],
    config: SwinHfConfig | SwinHfUperNetConfig,
    weights: dict[str, torch.Tensor],
    origins: dict[str, str],
    files: WeightFiles,
    allow_unexpected: bool,
) -> tuple[PreTrainedModel, ConversionReport]:
    """A model with these weights, and the report.

    Raises:
        ConversionError: a weight is of another shape, missing or unexpected.
    """
    model, report = kind(config), ConversionReport()
    expected = model.state_dict()
    for ours in list(weights):
        shapes = [tuple(values[ours].shape) for values in (weights, expected) if ours in values]
        if len(shapes) == 2 and shapes[0] != shapes[1]:
            if not HEAD_WEIGHTS.search(ours):
                raise ConversionError(f"{origins[ours]} must have shape {shapes[1]} as {ours}, got {shapes[0]}")
            report.dropped[origins[ours]] = f"of a head of {shapes[0][0]} outputs, not {shapes[1][0]}"
            del weights[ours]
    report.missing.extend(sorted(set(expected) - set(weights)))
    lacking = [name for name in report.missing if not HEAD_WEIGHTS.search(name) and not name.endswith("num_batches_tracked")]
    if lacking:
        raise ConversionError(f"{files.name} lacks weights of {kind.__name__}: {', '.join(lacking[:5])}")
    taken: dict[str, list[str]] = {}
    for ours in expected:
        if ours in weights:
            taken.setdefault(origins[ours], []).append(ours)
    unexpected = [name for name in files.weights if name not in taken and name not in report.dropped]
    for name in list(unexpected):
        if BUFFERS.search(name):
            report.dropped[name] = "follows from the configuration"
        elif kind is not SwinHfForMaskedImageModeling and PRETRAINING.search(name):
            report.dropped[name] = "of masked-image pre-training"
        elif kind in (SwinHfBackbone, SwinHfForSemanticSegmentation) and re.search(r"(^|\.)swin\.layernorm\.", name):
            report.dropped[name] = "not used by a backbone"
        elif allow_unexpected:
            report.dropped[name] = "unexpected, as was allowed"
        else:
            continue
        unexpected.remove(name)
    if unexpected:
        raise ConversionError(
            f"{files.name} has weights that {kind.__name__} does not know: {', '.join(unexpected[:5])}"
            f"{f' and {len(unexpected) - 5} more' if unexpected[5:] else ''}; --allow-unexpected drops them"
        )
    for name, names in taken.items():
        if len(names) == 1 and weights[names[0]] is files.weights[name]:
            report.used[name] = names[0]
        else:
            report.converted[name] = " + ".join(names)
    model.load_state_dict(weights, strict=False)
    dtypes = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    if len(dtypes) == 1:
        model = model.to(dtypes.pop())
    return model.eval(), report
