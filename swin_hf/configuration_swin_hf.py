"""Configuration of the Swin models: the stock `SwinConfig` fields plus the widths of each block."""

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class BlockWidths:
    """Widths of one block: `num_heads` heads of `head_dim` channels each, an MLP of `mlp_dim` hidden channels."""

    num_heads: int
    head_dim: int
    mlp_dim: int


@strict
class SwinHfConfig(PreTrainedConfig):
    """Configuration of a Swin Transformer (Liu et al. 2021, arXiv:2103.14030) with optional widths for each block.

    Fields that the stock `transformers.SwinConfig` has keep its name, meaning and default. The number of stages is
    `len(depths)`; stage `s` works on `embed_dim * 2**s` channels.

    image_size:
        Size of the input in pixels, one integer or (height, width). The model itself takes any size; this is the
        size that absolute position embeddings, image processors and exports are made for.
    patch_size, window_size:
        In pixels and in patches. Any positive integer.
    block_num_heads, block_head_dim, block_mlp_dim:
        One list per stage with one integer per block, as a pruned model has them. `None` is the dense rule:
        `num_heads[stage]` heads, `stage_dim // num_heads[stage]` channels a head, `int(mlp_ratio * stage_dim)`
        hidden channels in the MLP. Attention is always scaled by the block's own `head_dim ** -0.5`.
    weight_init:
        "normal" draws matrices with standard deviation `initializer_range`, the stock rule, right from about 96
        channels up. "fan_in" draws them with `1 / sqrt(fan_in)`: narrower models need it to leave the start.

    Raises:
        ValueError: a field is out of its range or two fields contradict each other; the message names them.
    """

    model_type = "swin_hf"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    encoder_stride: int = 32
    block_num_heads: list[list[int]] | None = None
    block_head_dim: list[list[int]] | None = None
    block_mlp_dim: list[list[int]] | None = None
    weight_init: str = "normal"

    def __post_init__(self, **kwargs):
        self.num_layers = len(self.depths)
        # The channels after the last stage, under the name that composite models such as VisionEncoderDecoder read.
        self.hidden_size = self.stage_dim(self.num_layers - 1)
        super().__post_init__(**kwargs)

    def stage_dim(self, stage: int) -> int:
        """Number of channels of the feature map in `stage` (from 0)."""
        return self.embed_dim * 2**stage

    def block_widths(self, stage: int, block: int) -> BlockWidths:
        """Widths of one block, from the per-block lists where they are given, else by the dense rule."""
        dim, dense_heads = self.stage_dim(stage), self.num_heads[stage]
        return BlockWidths(
            num_heads=self.block_num_heads[stage][block] if self.block_num_heads else dense_heads,
            head_dim=self.block_head_dim[stage][block] if self.block_head_dim else dim // dense_heads,
            mlp_dim=self.block_mlp_dim[stage][block] if self.block_mlp_dim else int(self.mlp_ratio * dim),
        )

    @property
    def image_height_width(self) -> tuple[int, int]:
        """`image_size` as (height, width) in pixels."""
        return _pair(self.image_size)

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """`patch_size` as (height, width) in pixels."""
        return _pair(self.patch_size)

    def validate_sizes(self):
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != 2:
                raise ValueError(f"{name} must be one integer or (height, width), got {value}")
            if min(_pair(value)) < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("num_channels", "embed_dim", "window_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def validate_stages(self):
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths must hold at least one block per stage, got {self.depths}")
        if len(self.num_heads) != len(self.depths):
            raise ValueError(f"num_heads must have one entry per stage like depths {self.depths}, got {self.num_heads}")
        for stage, heads in enumerate(self.num_heads):
            if heads < 1 or (self.block_head_dim is None and self.stage_dim(stage) % heads):
                raise ValueError(
                    f"num_heads[{stage}] must divide the {self.stage_dim(stage)} channels of its stage, got {heads}; "
                    "give block_head_dim for heads of another width"
                )

    def validate_block_widths(self):
        for name in ("block_num_heads", "block_head_dim", "block_mlp_dim"):
            widths = getattr(self, name)
            if widths is None:
                continue
            if [len(stage) for stage in widths] != list(self.depths):
                raise ValueError(f"{name} must have one entry per block like depths {self.depths}, got {widths}")
            if min(min(stage) for stage in widths) < 1:
                raise ValueError(f"{name} must be positive everywhere, got {widths}")

    def validate_weight_init(self):
        if self.weight_init not in ("normal", "fan_in"):
            raise ValueError(f"weight_init must be 'normal' or 'fan_in', got {self.weight_init!r}")


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
