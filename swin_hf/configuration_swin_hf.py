"""Configuration of the Swin models: the stock `SwinConfig` fields plus version, convolutions and the widths of every part."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .stock_swin_hf import ReadsStockConfigs

# Keywords that `PreTrainedConfig` takes besides its fields, or that older versions of transformers wrote to `config.json`.
BASE_CLASS_KEYWORDS = frozenset(
    {"num_labels", "name_or_path", "torch_dtype", "attn_implementation", "output_attentions", "auto_map", "model_type"}
    | {"out_features", "out_indices", "hidden_size", "num_layers", "num_hidden_layers", "num_attention_heads", "stage_names"}
    | {"quantization_config", "pruned_heads", "tie_word_embeddings", "is_decoder", "tie_encoder_decoder", "num_beams"}
    | {"output_scores", "return_dict_in_generate", "decoder_start_token_id"}
)
MAX_BLOCKS, MAX_LABELS = 1000, 1_000_000  # of a stage, of a head: more than any model has, so a mistake
CHOICES = {
    "version": (1, 2),
    "norm": ("layer", "rms", "batch"),
    "weight_init": ("normal", "fan_in"),
    "stem": ("patch", "conv"),
    "downsample": ("merge", "conv"),
    "padding": ("swin", "tiny_vit"),
}
STEM_STEPS = {2: 1, 4: 2, 8: 3, 16: 4}  # convolutions of stride 2 in a stem, by the patch size
Size = int | list[int] | tuple[int, int]  # one integer or (height, width)
WindowOfEachStage = list[Size] | tuple[Size, ...]
BLOCK_WIDTHS = ("block_num_heads", "block_head_dim", "block_value_head_dim", "block_mlp_dim")


@dataclass(frozen=True, kw_only=True)
class BlockWidths:
    """Widths of one block.

    num_heads: attention heads; 0 in a convolutional block, like the next two.
    head_dim: channels of queries and keys in each head.
    value_head_dim: channels of values in each head.
    mlp_dim: hidden channels of the MLP, or of the inverted residual of a convolutional block.
    """

    num_heads: int
    head_dim: int
    value_head_dim: int
    mlp_dim: int


@strict
class SwinHfConfig(ReadsStockConfigs, BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a Swin Transformer, version 1 or 2, with optional widths for each stage and block.

    Fields that the stock `transformers.SwinConfig` and `Swinv2Config` have keep their name, meaning and default. The number
    of stages is `len(depths)`.

    version:
        1 for Swin (Liu et al. 2021, arXiv:2103.14030): scaled dot-product attention, a table of position biases, norms
        before each branch. 2 for Swin V2 (Liu et al. 2022, arXiv:2111.09883): cosine attention, log-spaced continuous
        position biases, norms after each branch.
    image_size:
        Size of the input in pixels, one integer or (height, width). The model itself takes any size; this is the size that
        absolute position embeddings, V2's position biases, image processors and exports are made for.
    patch_size, window_size:
        In pixels and in patches, one integer or (height, width).
    pretrained_window_sizes:
        V2 only: for each stage the window, one integer or (height, width), that its position network was trained with; 0
        if it is the present one.
    stage_dims:
        Channels of each stage. `None` is the dense rule, `embed_dim * 2**stage`.
    block_num_heads, block_head_dim, block_value_head_dim, block_mlp_dim:
        One list per stage with one integer per block, as a pruned model has them. `None` is the dense rule:
        `num_heads[stage]` heads, `stage_dim // num_heads[stage]` channels of queries and keys a head, as many of values,
        `int(mlp_ratio * stage_dim)` hidden channels in the MLP. V1 attention is scaled by the block's own `head_dim ** -0.5`.
        In convolutional blocks only the last counts, by the dense rule `int(mbconv_ratio * stage_dim)`.
    stem:
        "patch" cuts the image into patches; "conv" halves it with convolutions of 3 x 3 until a token stands for a patch,
        each with batch normalisation, and an activation between them (Xiao et al. 2021, arXiv:2106.14881; TinyViT, Wu et al.
        2022, arXiv:2207.10666, section 3.2). It needs a `patch_size` that is a power of two.
    stage_blocks:
        For each stage "window", attention in windows and an MLP, or "conv", an inverted residual (MBConv: Sandler et al.
        2018, arXiv:1801.04381; with GELU as in TinyViT), which suits large maps. `None` is "window" everywhere.
    mbconv_ratio:
        Hidden channels of an inverted residual per channel of its stage.
    downsample:
        Between stages: "merge" joins groups of 2 x 2 tokens (Swin), "conv" is a depthwise convolution of stride 2 between two
        pointwise ones (TinyViT).
    local_conv:
        Kernel of a depthwise convolution with batch normalisation between the attention and the MLP of each block, 3 in
        TinyViT; 0 for none.
    shift_windows:
        Whether every second block moves its windows by half. False in TinyViT, whose convolutions connect windows.
    block_shifts:
        One list per stage with a truth value per block: whether it moves its windows. `None` is the rule of `shift_windows`,
        which a model no longer follows after blocks were pruned.
    stage_windows:
        The window of each stage, one integer or (height, width). `None` is `window_size` everywhere.
    padding:
        Maps that are not whole windows: "swin" pads them after the norm and cuts windows down to maps that are smaller;
        "tiny_vit" pads them before the norm, and smaller ones up to a window, as TinyViT was trained. V1 only.
    norm_after_pooling:
        Normalise the mean of the last tokens, as in TinyViT, instead of the tokens.
    hidden_act:
        Any name in `transformers.activations.ACT2FN`.
    norm:
        "layer" (the published models), "rms" or "batch", for every norm of the model.
    mask_padding:
        Exclude the tokens that pad a map to whole windows from the attention of real tokens. The published models were
        trained without this mask.
    label_smoothing:
        Share of the label that is spread evenly over all classes (Szegedy et al. 2016), for single-label classification.
    calibration_temperature:
        Logits divided by it give probabilities that can be trusted (Guo et al. 2017, arXiv:1706.04599). The model itself
        returns logits as they are; the image processor's probabilities and exported programs use it.
    weight_init:
        "normal" draws matrices with standard deviation `initializer_range`, the stock rule, which suits models of about 96
        channels or more. "fan_in" draws them with `1 / sqrt(fan_in)`, without which narrower models hardly start to learn.
    zero_init_residual:
        New window blocks start as if they had no branches: the last layer of each branch, or in V2 the norm behind it, starts
        at 0, as the last norm of an inverted residual always does (Goyal et al. 2017, arXiv:1706.02677, section 5.1). Models
        then learn sooner. Batch normalisation of a backbone never starts at 0, since detectors freeze it.
    out_features, out_indices:
        Stages that `SwinHfBackbone` returns, by name ("stem", "stage1", ...) or number. Default: the last one.

    Raises:
        ValueError: a field is unknown but close to a known one, out of its range, or two fields contradict each other; the
            message names them.
    """

    model_type = "swin_hf"
    _auto_class = "AutoConfig"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    version: int = 1
    image_size: Size = 224
    patch_size: Size = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: Size = 7
    pretrained_window_sizes: WindowOfEachStage | None = None
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    hidden_act: str = "gelu"
    norm: str = "layer"
    use_absolute_embeddings: bool = False
    mask_padding: bool = False
    label_smoothing: float | int = 0.0
    calibration_temperature: float | int = 1.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    encoder_stride: int = 32
    stage_dims: list[int] | tuple[int, ...] | None = None
    block_num_heads: list[list[int]] | None = None
    block_head_dim: list[list[int]] | None = None
    block_value_head_dim: list[list[int]] | None = None
    block_mlp_dim: list[list[int]] | None = None
    weight_init: str = "normal"
    zero_init_residual: bool = False
    stem: str = "patch"
    stage_blocks: list[str] | tuple[str, ...] | None = None
    mbconv_ratio: float | int = 4.0
    downsample: str = "merge"
    local_conv: int = 0
    shift_windows: bool = True
    block_shifts: list[list[bool]] | None = None
    stage_windows: WindowOfEachStage | None = None
    padding: str = "swin"
    norm_after_pooling: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        for name, meant in likely_typos(kwargs, type(self)).items():
            raise ValueError(f"SwinHfConfig has no field {name}; did you mean {meant}?")
        if isinstance(kwargs.get("num_labels"), int) and kwargs["num_labels"] > MAX_LABELS:
            raise ValueError(f"num_labels must be at most {MAX_LABELS}, got {kwargs['num_labels']}")
        for derived in ("num_layers", "num_hidden_layers", "hidden_size", "stage_names"):
            kwargs.pop(derived, None)
        self.num_layers = len(self.depths)
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, self.num_layers + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        # The channels after the last stage, under the name that composite models such as VisionEncoderDecoder read.
        self.hidden_size = self.stage_dims[-1] if self.stage_dims else self.stage_dim(self.num_layers - 1)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """The config in a dictionary or a `config.json`, which may hold attributes that others set on it.

        Keywords that are fields take part in what is derived and validated; transformers would set them afterwards.
        """
        own = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        config_dict = config_dict | {name: kwargs.pop(name) for name in own & set(kwargs)}
        set_later = likely_typos(config_dict, cls)
        made = super().from_dict({name: value for name, value in config_dict.items() if name not in set_later}, **kwargs)
        config = made[0] if isinstance(made, tuple) else made  # a pair with return_unused_kwargs
        for name in set_later:
            setattr(config, name, config_dict[name])
        return made

    def stage_dim(self, stage: int) -> int:
        """Number of channels of the feature map in `stage` (from 0)."""
        return self.stage_dims[stage] if self.stage_dims else self.embed_dim * 2**stage

    def stage_window(self, stage: int) -> tuple[int, int]:
        """Window (height, width) that the position biases of `stage` are made for.

        In V1 it is the one of `stage_windows`, or `window_size`. V2 never makes it larger than the stage's map of a
        `image_size` image: its biases are functions of offsets in units of the window.
        """
        window = height_width(self.stage_windows[stage] if self.stage_windows else self.window_size)
        if self.version == 1:
            return window
        return tuple(max(min(side, length // 2**stage), 1) for side, length in zip(window, self.grid))

    def pretrained_window(self, stage: int) -> tuple[int, int]:
        """V2: the window (height, width) whose span is the unit of the position network's coordinates in `stage`."""
        pretrained = height_width(self.pretrained_window_sizes[stage]) if self.pretrained_window_sizes else (0, 0)
        return pretrained if min(pretrained) > 0 else self.stage_window(stage)

    def is_convolutional(self, stage: int) -> bool:
        """Whether the blocks of a stage are inverted residuals."""
        return bool(self.stage_blocks) and self.stage_blocks[stage] == "conv"

    def is_shifted(self, stage: int, block: int) -> bool:
        """Whether a block moves its windows by half."""
        return self.block_shifts[stage][block] if self.block_shifts else self.shift_windows and block % 2 == 1

    def dense_hidden_dim(self, stage: int) -> int:
        """Hidden channels of the blocks of `stage` by the dense rule."""
        return int((self.mbconv_ratio if self.is_convolutional(stage) else self.mlp_ratio) * self.stage_dim(stage))

    def block_widths(self, stage: int, block: int) -> BlockWidths:
        """Widths of one block, from the per-block lists where they are given, else by the dense rule."""
        hidden_dim = self.block_mlp_dim[stage][block] if self.block_mlp_dim else self.dense_hidden_dim(stage)
        if self.is_convolutional(stage):
            return BlockWidths(num_heads=0, head_dim=0, value_head_dim=0, mlp_dim=hidden_dim)
        dim, dense_heads = self.stage_dim(stage), self.num_heads[stage]
        head_dim = self.block_head_dim[stage][block] if self.block_head_dim else dim // dense_heads
        return BlockWidths(
            num_heads=self.block_num_heads[stage][block] if self.block_num_heads else dense_heads,
            head_dim=head_dim,
            value_head_dim=self.block_value_head_dim[stage][block] if self.block_value_head_dim else head_dim,
            mlp_dim=hidden_dim,
        )

    @property
    def image_height_width(self) -> tuple[int, int]:
        """`image_size` as (height, width) in pixels."""
        return height_width(self.image_size)

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """`patch_size` as (height, width) in pixels."""
        return height_width(self.patch_size)

    @property
    def token_height_width(self) -> tuple[int, int]:
        """Pixels (height, width) that a token of the last stage stands for."""
        return tuple(side * 2 ** (len(self.depths) - 1) for side in self.patch_height_width)

    @property
    def grid(self) -> tuple[int, int]:
        """Whole patches (height, width) in an image of `image_size`."""
        return tuple(size // patch for size, patch in zip(self.image_height_width, self.patch_height_width))

    def validate_sizes(self):
        for name in ("image_size", "patch_size", "window_size"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != 2:
                raise ValueError(f"{name} must be one integer or (height, width), got {value}")
            if min(height_width(value)) < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("num_channels", "embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def validate_stages(self):
        if not self.depths or not 1 <= min(self.depths) <= max(self.depths) <= MAX_BLOCKS:
            raise ValueError(f"depths must hold 1 to {MAX_BLOCKS} blocks for each stage, got {self.depths}")
        for name in ("num_heads", "pretrained_window_sizes", "stage_dims", "stage_blocks", "stage_windows"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.depths):
                raise ValueError(f"{name} must have one entry per stage like depths {self.depths}, got {values}")
        if self.stage_dims and (min(self.stage_dims) < 1 or self.stage_dims[0] != self.embed_dim):
            raise ValueError(f"stage_dims must be positive and start with embed_dim {self.embed_dim}, got {self.stage_dims}")
        for name, lowest in (("pretrained_window_sizes", 0), ("stage_windows", 1)):
            windows = getattr(self, name) or ()
            if any(not isinstance(window, int) and len(window) != 2 for window in windows):
                raise ValueError(f"{name} must hold one integer or (height, width) for each stage, got {windows}")
            if min((min(height_width(window)) for window in windows), default=lowest) < lowest:
                raise ValueError(f"{name} must be {'positive' if lowest else '0 or more'}, got {windows}")
        if set(self.stage_blocks or ()) - {"window", "conv"}:
            raise ValueError(f"stage_blocks must be 'window' or 'conv' for each stage, got {self.stage_blocks}")
        for stage, heads in enumerate(self.num_heads):
            if self.is_convolutional(stage):
                if heads < 0:
                    raise ValueError(f"num_heads[{stage}] must be 0 or more in a convolutional stage, got {heads}")
                continue
            if heads < 1 or (self.block_head_dim is None and self.stage_dim(stage) % heads):
                raise ValueError(
                    f"num_heads[{stage}] must divide the {self.stage_dim(stage)} channels of its stage, got {heads}; "
                    "give block_head_dim for heads of another width"
                )
        for stage in range(len(self.depths)):
            if self.block_mlp_dim is None and self.dense_hidden_dim(stage) < 1:
                ratio = "mbconv_ratio" if self.is_convolutional(stage) else "mlp_ratio"
                raise ValueError(
                    f"{ratio} must give each block a hidden channel, got {getattr(self, ratio)} for the "
                    f"{self.stage_dim(stage)} channels of stage {stage}"
                )

    def validate_block_widths(self):
        for name in (*BLOCK_WIDTHS, "block_shifts"):
            widths = getattr(self, name)
            if widths is None:
                continue
            if [len(stage) for stage in widths] != list(self.depths):
                raise ValueError(f"{name} must have one entry per block like depths {self.depths}, got {widths}")
            if name == "block_shifts":
                continue
            counted = [own for stage, own in enumerate(widths) if name == "block_mlp_dim" or not self.is_convolutional(stage)]
            if min((min(own) for own in counted), default=1) < 1:
                raise ValueError(f"{name} must be positive everywhere, got {widths}")

    def validate_convolutions(self):
        sides, steps = self.patch_height_width, STEM_STEPS.get(self.patch_height_width[0], 0)
        if self.stem == "conv" and (sides[0] != sides[1] or not steps):
            raise ValueError(
                f"patch_size must be one of {', '.join(map(str, STEM_STEPS))} for the stem 'conv', got {self.patch_size}"
            )
        if self.stem == "conv" and self.embed_dim % 2 ** (steps - 1):
            raise ValueError(
                f"embed_dim must be a multiple of {2 ** (steps - 1)} for the stem 'conv' of {steps} convolutions, which "
                f"double the channels, got {self.embed_dim}"
            )
        if self.local_conv < 0 or (self.local_conv and self.local_conv % 2 == 0):
            raise ValueError(f"local_conv must be 0 or an odd kernel, got {self.local_conv}")
        if self.padding == "tiny_vit" and self.version == 2:
            raise ValueError("padding must be 'swin' for version 2, got 'tiny_vit'")

    def validate_choices(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                expected = " or ".join(map(repr, choices))
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")
        if self.hidden_act not in ACT2FN:
            near = difflib.get_close_matches(self.hidden_act, list(ACT2FN), n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; one of {', '.join(ACT2FN)}"
            raise ValueError(f"hidden_act must name an activation of transformers, got {self.hidden_act!r}{hint}")

    def validate_numbers(self):
        for name, low in (
            ("mlp_ratio", "above 0"),
            ("mbconv_ratio", "above 0"),
            ("calibration_temperature", "above 0"),
            ("layer_norm_eps", "0 or more"),
            ("initializer_range", "0 or more"),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and low == "above 0"):
                raise ValueError(f"{name} must be a finite number, {low}, got {value}")

    def validate_shares(self):
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


def likely_typos(names: Iterable[str], owner: type) -> dict[str, str]:
    """Names that are no field of the config class `owner` but close to one, with that one."""
    own = {field.name for field in fields(owner)}
    known = ["num_labels", *(field.name for field in fields(owner) if not field.name.startswith("_"))]
    near = {name: difflib.get_close_matches(name, known, n=1) for name in names if name not in own | BASE_CLASS_KEYWORDS}
    return {name: close[0] for name, close in near.items() if close}


def class_names(config: PreTrainedConfig) -> list[str]:
    """The names of a classifier's classes in the order of its logits.

    Raises:
        ValueError: `id2label` does not name the classes 0 to K - 1.
    """
    names, K = config.id2label, config.num_labels
    if set(names) != set(range(K)) or not all(isinstance(name, str | int | float) for name in names.values()):
        raise ValueError(
            f"id2label must name the classes 0 to {K - 1} of the logits, got {names!s:.80}; correct config.json, where they "
            "may be numbered from 1"
        )
    return [str(names[number]) for number in range(K)]


def named_classes(names: list[str]) -> dict[str, dict]:
    """The fields of a config that name its classes, in the order of the logits."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def height_width(size: Size) -> tuple[int, int]:
    """(height, width) of a size that may be given as one integer."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
