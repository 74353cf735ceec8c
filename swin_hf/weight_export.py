"""Our models as models of stock transformers and of timm, where these can express them."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    SegformerImageProcessorPil,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTImageProcessorPil,
)

from .configuration_swin_hf import SwinHfConfig, class_names, height_width
from .errors import in_one_line
from .image_processing_swin_hf import SwinHfImageProcessorPil, resized_to_crop
from .modeling_swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfForMaskedImageModeling, SwinHfModel
from .plain_layers_swin_hf import require_plain_layers
from .segmentation_swin_hf import SwinHfForSemanticSegmentation
from .stock_swin_hf import BLOCK_NAMES
from .tiny_vit_weights import difference_to_tiny_vit, tiny_vit_arguments, tiny_vit_to_timm
from .weight_config import difference_to_timm, extended_table, map_size, stock_v2_difference, windows_of_table
from .weight_files import ConversionError
from .weight_names import original_name, timm_name

STOCK_CLASSES = {
    SwinHfModel: (SwinModel, Swinv2Model),
    SwinHfForImageClassification: (SwinForImageClassification, Swinv2ForImageClassification),
    SwinHfForMaskedImageModeling: (SwinForMaskedImageModeling, Swinv2ForMaskedImageModeling),
    SwinHfBackbone: (SwinBackbone, None),
    SwinHfForSemanticSegmentation: (UperNetForSemanticSegmentation, None),
}
STOCK_FIELDS = (
    *("num_channels", "embed_dim", "qkv_bias", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
    *("hidden_act", "use_absolute_embeddings", "initializer_range", "layer_norm_eps", "encoder_stride"),
    *("id2label", "label2id", "problem_type"),
)
UPERNET_FIELDS = (
    *("hidden_size", "pool_scales", "use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_in_channels"),
    *("auxiliary_channels", "auxiliary_num_convs", "auxiliary_concat_input", "loss_ignore_index"),
    *("id2label", "label2id"),
)
PURE_SWIN = {  # fields whose other values make a model no Swin of other implementations
    "norm": "layer",
    "mask_padding": False,
    "stem": "patch",
    "downsample": "merge",
    "local_conv": 0,
    "shift_windows": True,
    "block_shifts": None,
    "padding": "swin",
    "norm_after_pooling": False,
}
# timm builds a Swin of any shape from the name of one of its models and arguments.
TIMM_ARCHITECTURES = {1: "swin_tiny_patch4_window7_224", 2: "swinv2_tiny_window8_256"}
TIMM_FILTERS = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class DenseShape:
    """The widths that other implementations have one setting for, for all blocks of a Swin."""

    num_heads: list[int]
    mlp_ratio: float
    window_size: int


def dense_shape(config: SwinHfConfig, target: str) -> DenseShape:
    """The shape of a model in the terms of other implementations; evenly pruned models have one too.

    Raises:
        ConversionError: a block has widths of its own, or the model a norm or a window that `target` does not have.
    """

    def refuse(where: str, rule: str, got: object) -> None:
        raise ConversionError(f"{target} has no such Swin: {where} must {rule}, got {got}; keep it in the format of swin_hf")

    for name, value in PURE_SWIN.items():
        if getattr(config, name) != value:
            refuse(name, f"be {value!r}", repr(getattr(config, name)))
    if any(config.is_convolutional(stage) for stage in range(len(config.depths))):
        refuse("stage_blocks", "be 'window' for each stage", config.stage_blocks)
    if config.stage_windows and len({height_width(window) for window in config.stage_windows}) > 1:
        refuse("stage_windows", "be the same for each stage", config.stage_windows)
    for name in ("patch_size",) if config.stage_windows else ("window_size", "patch_size"):
        if len(set(height_width(getattr(config, name)))) > 1:
            refuse(name, "be one integer", getattr(config, name))
    if any(len(set(height_width(window))) > 1 for window in config.pretrained_window_sizes or ()):
        refuse("pretrained_window_sizes", "be one integer for each stage", config.pretrained_window_sizes)
    num_heads, first = [], config.block_widths(0, 0)
    mlp_ratio = config.mlp_ratio
    if first.mlp_dim != int(mlp_ratio * config.stage_dim(0)):
        mlp_ratio = first.mlp_dim / config.stage_dim(0)
    for stage, depth in enumerate(config.depths):
        dim = config.stage_dim(stage)
        if dim != config.embed_dim * 2**stage:
            refuse(f"stage {stage}", f"have {config.embed_dim * 2**stage} channels", dim)
        num_heads.append(config.block_widths(stage, 0).num_heads)
        for block in range(depth):
            widths, where = config.block_widths(stage, block), f"stage {stage}, block {block}"
            if widths.num_heads != num_heads[stage]:
                refuse(where, f"have {num_heads[stage]} heads like its stage", widths.num_heads)
            head_dim = dim / num_heads[stage]
            if (widths.head_dim, widths.value_head_dim) != (head_dim, head_dim):
                refuse(where, f"have heads of {head_dim:g} channels", (widths.head_dim, widths.value_head_dim))
            if widths.mlp_dim != int(mlp_ratio * dim):
                refuse(where, f"have {int(mlp_ratio * dim)} hidden channels in its MLP", widths.mlp_dim)
    window = height_width(config.stage_windows[0] if config.stage_windows else config.window_size)
    if window[0] != window[1]:
        refuse("stage_windows", "be one integer for each stage", config.stage_windows)
    return DenseShape(num_heads=num_heads, mlp_ratio=mlp_ratio, window_size=window[0])


def to_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model of transformers with the same weights and outputs, for use without swin_hf.

    A stock backbone, and with it a stock UperNet, also shifts a window that spans the whole map: its outputs are the same
    for images that are large enough for no window to do so.

    Raises:
        ConversionError: stock transformers has no such model; the message names the block.
    """
    require_plain_layers(model, "converted", ConversionError)
    kind, config = type(model), model.config
    inner = config.backbone_config if kind is SwinHfForSemanticSegmentation else config
    stock_class = STOCK_CLASSES[kind][inner.version - 1]
    if stock_class is None:
        raise ConversionError("transformers has no such Swin: the maps of its Swin V2 backbone have no norms")
    stock_config, is_backbone = stock_swin_config(inner), kind in (SwinHfBackbone, SwinHfForSemanticSegmentation)
    if is_backbone:
        if inner.layer_norm_eps != 1e-5:
            given = inner.layer_norm_eps
            raise ConversionError(f"transformers has no such Swin: the norms of its maps have an eps of 1e-5, not {given}")
        if inner.out_features[-1] != inner.stage_names[-1]:
            raise ConversionError(
                f"transformers has no such Swin: out_features must end with {inner.stage_names[-1]}, got {inner.out_features}"
            )
        stock_config.set_output_features_output_indices(out_features=list(inner.out_features), out_indices=None)
    elif inner.version == 1:
        _check_maps(inner)
    if kind is SwinHfForSemanticSegmentation:
        if config.decode_head != "uper" or not config.resize_logits:
            raise ConversionError(
                "transformers has no such segmenter: decode_head must be uper and resize_logits True, got "
                f"{config.decode_head} and {config.resize_logits}"
            )
        fields = {name: getattr(config, name) for name in UPERNET_FIELDS}
        stock_config = UperNetConfig(backbone_config=stock_config, **fields)
    options = {"use_mask_token": True} if kind is SwinHfModel and model.embeddings.mask_token is not None else {}
    try:
        stock = stock_class(stock_config, **options)
    except (ValueError, RuntimeError) as error:  # it computes with sizes that it does not check, an image of one pixel for one
        raise ConversionError(f"transformers has no such Swin: {in_one_line(error)}") from error
    weights = {_stock_name(name, inner.version): weight for name, weight in model.state_dict().items()}
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    lacking = [name for name in missing if not (is_backbone and "swin.layernorm." in name)]  # which it never uses
    if unexpected or lacking:
        raise ConversionError(f"transformers has no such Swin: it lacks {unexpected[:3]} and needs {lacking[:3]}")
    return stock.to(model.dtype).eval()


def stock_swin_config(config: SwinHfConfig) -> SwinConfig | Swinv2Config:
    """The stock config of the same model.

    Raises:
        ConversionError: there is none; the message names the block.
    """
    shape = dense_shape(config, "transformers")
    fields = {name: getattr(config, name) for name in STOCK_FIELDS} | {
        "image_size": config.image_size,
        "patch_size": height_width(config.patch_size)[0],
        "depths": list(config.depths),
        "num_heads": shape.num_heads,
        "mlp_ratio": shape.mlp_ratio,
        "window_size": shape.window_size,
    }
    if config.version == 2:
        if difference := stock_v2_difference(config):
            raise ConversionError(f"transformers has no such Swin: {difference}; resize the model")
        if config.use_absolute_embeddings:
            raise ConversionError("transformers has no such Swin: V2 must have use_absolute_embeddings False, got True")
        given = config.pretrained_window_sizes or [0] * len(config.depths)
        return Swinv2Config(**fields, pretrained_window_sizes=[height_width(window)[0] for window in given])
    return SwinConfig(**fields)


def _check_maps(config: SwinHfConfig) -> None:
    """Stock Swin V1 has no biases for a window cut to a small map.

    Raises:
        ConversionError: a window is larger than its stage's map; the message names the stage.
    """
    for stage in range(len(config.depths)):
        (height, width), (rows, columns) = map_size(config, stage), config.stage_window(stage)
        if height < rows or width < columns:
            raise ConversionError(
                f"transformers has no such Swin: stage {stage}, block 0 must have a map of at least {rows} x {columns}, its "
                f"window, for images of {config.image_size}, got {height} x {width}; resize the model"
            )


def _stock_name(name: str, version: int) -> str:
    """Name of a weight in the modules of the stock models; those of V1 have the same names as ours."""
    if version == 1:
        return name
    for stock, ours in BLOCK_NAMES:
        name = name.replace(ours, stock)
    return f"swinv2.{name.removeprefix('swin.')}" if name.startswith("swin.") else name


def to_timm(model: PreTrainedModel, processor: SwinHfImageProcessorPil | None = None) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and `config.json` for timm, which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    Raises:
        ConversionError: timm has no such model; the message names the block.
    """
    require_plain_layers(model, "converted", ConversionError)
    kind, config = type(model), model.config
    if kind not in (SwinHfForImageClassification, SwinHfModel):
        raise ConversionError(f"timm has Swins that classify, or without a head, and no {kind.__name__}")
    if kind is SwinHfModel and model.embeddings.mask_token is not None:
        raise ConversionError("timm has no such Swin: none of its models has a mask_token")
    if config.stem == "conv":
        return _to_timm_tiny_vit(model, processor)
    shape = dense_shape(config, "timm")
    for name, value in (("layer_norm_eps", 1e-5), ("use_absolute_embeddings", False)):
        if getattr(config, name) != value:
            raise ConversionError(f"timm has no such Swin: {name} must be {value}, got {getattr(config, name)}")
    if config.hidden_act != "gelu" and (config.version == 1 or config.hidden_act not in ("relu", "silu")):
        raise ConversionError(f"timm has no such Swin: hidden_act must be 'gelu', got {config.hidden_act!r}")
    if difference := difference_to_timm(config):
        raise ConversionError(f"timm has no such Swin: in {difference}; resize the model")
    parts: dict[str, dict[int | None, torch.Tensor]] = {}
    for ours, weight in model.state_dict().items():
        if ours.endswith("relative_position_bias_table"):
            weight = _fitted_table(weight, ours, config)
        original, third = original_name(f"swin.{ours}" if kind is SwinHfModel else ours, config.version)
        parts.setdefault(timm_name(original), {})[third] = weight
    weights = {
        name: torch.cat([own[third] for third in sorted(own)]) if len(own) > 1 else own[None] for name, own in parts.items()
    }
    return weights, _timm_config(model, processor, _swin_arguments(config, shape), "patch_embed.proj")


def _to_timm_tiny_vit(
    model: PreTrainedModel, processor: SwinHfImageProcessorPil | None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if difference := difference_to_tiny_vit(model.config):
        raise ConversionError(f"timm has no such TinyViT: {difference}; keep it in the format of swin_hf")
    prefix = "swin." if type(model) is SwinHfModel else ""
    weights = tiny_vit_to_timm({prefix + name: weight for name, weight in model.state_dict().items()}, model.config)
    return weights, _timm_config(model, processor, tiny_vit_arguments(model.config), "patch_embed.conv1.conv")


def _swin_arguments(config: SwinHfConfig, shape: DenseShape) -> dict[str, Any]:
    """`architecture` and `model_args` of timm's `config.json`."""
    arguments = {
        "img_size": list(config.image_height_width),
        "patch_size": height_width(config.patch_size)[0],
        "in_chans": config.num_channels,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": shape.num_heads,
        "window_size": shape.window_size,
        "mlp_ratio": shape.mlp_ratio,
        "qkv_bias": config.qkv_bias,
    }
    if config.version == 2:
        given = config.pretrained_window_sizes or [0] * len(config.depths)
        arguments["pretrained_window_sizes"] = [height_width(window)[0] for window in given]
        arguments["act_layer"] = config.hidden_act
    return {"architecture": TIMM_ARCHITECTURES[config.version], "model_args": arguments}


def _timm_config(
    model: PreTrainedModel, processor: SwinHfImageProcessorPil | None, described: dict[str, Any], first_conv: str
) -> dict[str, Any]:
    """timm's `config.json`. described: architecture and arguments of the model."""
    config = model.config
    classes = config.num_labels if type(model) is SwinHfForImageClassification else 0
    pretrained = {
        "input_size": [config.num_channels, *config.image_height_width],
        "fixed_input_size": config.stem == "patch",  # timm gives such models the size of the image
        "num_classes": classes,
        "first_conv": first_conv,
        "classifier": "head.fc",
        "pool_size": list(map_size(config, len(config.depths) - 1)),
    }
    if processor is not None:
        if processor.do_center_crop or not (processor.do_resize and processor.do_rescale and processor.do_normalize):
            raise ConversionError("timm resizes images, crops by crop_pct and normalises; the image processor does otherwise")
        pretrained |= {
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "interpolation": TIMM_FILTERS.get(int(processor.resample), "bicubic"),
            "crop_pct": processor.crop_pct or 1.0,
            "crop_mode": "center" if processor.crop_pct else "squash",
        }
    try:
        labels = {"label_names": class_names(config)} if classes else {}
    except ValueError as error:
        raise ConversionError(str(error)) from error
    about = {"num_classes": classes, "num_features": config.hidden_size, "pretrained_cfg": pretrained}
    return described | about | labels


def _fitted_table(table: torch.Tensor, name: str, config: SwinHfConfig) -> torch.Tensor:
    """The middle of a table of position biases, the only part that a window cut to a small map reads.

    Raises:
        ConversionError: the rest is not a copy of its edge, so the model was trained at other sizes.
    """
    stage, block, window, fitted = windows_of_table(name, config)
    if fitted == window:
        return table
    (top, left), sides = ((side - own for side, own in zip(window, fitted)), [2 * side - 1 for side in window])
    whole = table.view(*sides, -1)
    middle = whole[top : sides[0] - top, left : sides[1] - left]
    middle = middle.flatten(0, 1)
    if not torch.equal(extended_table(middle, fitted, window), table):
        raise ConversionError(
            f"timm has no such Swin: stage {stage}, block {block} must have a map of at least {window[0]} x {window[1]}, its "
            f"window, for images of {config.image_size}, got {fitted[0]} x {fitted[1]}; resize the model"
        )
    return middle


def stock_processor(
    processor: SwinHfImageProcessorPil, of_maps: bool = False
) -> ViTImageProcessorPil | SegformerImageProcessorPil:
    """The image processor of stock transformers that does the same to an image, and, if `of_maps`, to maps of classes.

    Raises:
        ConversionError: transformers has none.
    """
    names = ("resample", "image_mean", "image_std", "rescale_factor", "do_resize", "do_rescale", "do_normalize")
    settings = {name: getattr(processor, name) for name in (*names, "do_convert_rgb")} | {"size": dict(processor.size)}
    if processor.num_channels == 1:
        settings["do_convert_rgb"] = False  # it has no conversion to greyscale
    if of_maps:
        if processor.crop_pct is not None or processor.do_center_crop:
            raise ConversionError("transformers has no image processor that crops maps of classes; set crop_pct to None")
        return SegformerImageProcessorPil(**settings, do_reduce_labels=processor.do_reduce_labels)
    settings |= {"do_center_crop": processor.do_center_crop, "crop_size": processor.crop_size and dict(processor.crop_size)}
    if processor.crop_pct is None:
        return ViTImageProcessorPil(**settings)
    crop = (processor.size.height, processor.size.width)
    if crop[0] != crop[1]:
        raise ConversionError(f"transformers has no image processor with crop_pct for a size that is not square, got {crop}")
    shortest = min(resized_to_crop(crop[0], crop[0], crop, processor.crop_pct))
    settings |= {"size": {"shortest_edge": shortest}, "do_center_crop": True, "crop_size": dict(processor.size)}
    return ViTImageProcessorPil(**settings)
