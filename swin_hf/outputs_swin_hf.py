"""What the models return."""

# B batch, H W feature map in patches, C channels, nW windows, N tokens of a window, h heads, K classes

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class SwinHfModelOutput(ModelOutput):
    """Output of `SwinHfModel`.

    last_hidden_state: (B, H * W, C) normalised tokens of the last stage.
    pooler_output: (B, C), their mean.
    hidden_states: with `output_hidden_states`, the embeddings and the output of each stage after its downsampling,
        each (B, H * W, C).
    reshaped_hidden_states: the same as (B, C, H, W) maps.
    block_hidden_states: with `output_block_hidden_states`, the (B, C, H, W) map after every block.
    attentions: with `output_attentions`, for every block the probabilities (B * nW, h, N, N).
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    reshaped_hidden_states: tuple[torch.Tensor, ...] | None = None
    block_hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None

    def intermediates(self) -> dict[str, tuple[torch.Tensor, ...] | None]:
        """What the outputs of the heads have in common with this one."""
        names = ("hidden_states", "reshaped_hidden_states", "block_hidden_states", "attentions")
        return {name: getattr(self, name) for name in names}


@dataclass
class SwinHfImageClassifierOutput(ModelOutput):
    """Output of `SwinHfForImageClassification`.

    loss: scalar, with labels.
    logits: (B, K).
    hidden_states, reshaped_hidden_states, block_hidden_states, attentions: as in `SwinHfModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    reshaped_hidden_states: tuple[torch.Tensor, ...] | None = None
    block_hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SwinHfMaskedImageModelingOutput(ModelOutput):
    """Output of `SwinHfForMaskedImageModeling`.

    loss: scalar, with a mask.
    reconstruction: (B, num_channels, height, width).
    hidden_states, reshaped_hidden_states, block_hidden_states, attentions: as in `SwinHfModelOutput`.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    reshaped_hidden_states: tuple[torch.Tensor, ...] | None = None
    block_hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SwinHfEncoderOutput:
    """Maps of the encoder, (B, H, W, C), and the attention weights of all blocks if asked for.

    hidden_states: the feature maps as (B, H * W, C), from which the following stages are computed.
    feature_maps: the embeddings and the output of each stage after its downsampling.
    stage_maps: the embeddings and the output of each stage before its downsampling.
    block_maps: the output of every block if asked for, else of the last one of each stage.
    """

    hidden_states: list[torch.Tensor]
    feature_maps: list[torch.Tensor]
    stage_maps: list[torch.Tensor]
    block_maps: list[torch.Tensor]
    attentions: list[torch.Tensor]
