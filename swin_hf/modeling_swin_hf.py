"""Swin Transformer models, V1 and V2, with the interface of transformers' models."""

# B batch, H W feature map in patches, C channels, nW windows, N tokens of a window, h heads, K classes, P patches

import copy
import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import XIELUActivation
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .alignment_swin_hf import AlignsWeights
from .auto_map_swin_hf import SavesItsCode
from .configuration_swin_hf import Size, SwinHfConfig, WindowOfEachStage
from .foreign_swin_hf import ReadsForeignWeights
from .layers_swin_hf import (
    SwinHfCosineAttention,
    SwinHfEmbeddings,
    SwinHfRelativePositionBias,
    SwinHfStage,
    apply_norm,
    make_norm,
    pixels_of_patches,
)
from .losses_swin_hf import classification_loss, infer_problem_type, masked_reconstruction_loss
from .outputs_swin_hf import (
    SwinHfEncoderOutput,
    SwinHfImageClassifierOutput,
    SwinHfMaskedImageModelingOutput,
    SwinHfModelOutput,
)
from .plain_layers_swin_hf import require_kept_sizes, require_plain_layers
from .resizing_swin_hf import RESIZABLE, differing_sizes, freeze_alike, resized_config, resized_weights, wanted_sizes
from .stock_swin_hf import DROPPED_BUFFERS, HUB_ARGUMENTS, ReadsStockWeights, saved_config


class SwinHfEncoder(nn.Module):
    """The first `num_stages` stages in a row; a downsampling follows those that have a next one here."""

    def __init__(self, config: SwinHfConfig, num_stages: int):
        super().__init__()
        self.layers = nn.ModuleList(
            SwinHfStage(config, stage, downsample=stage + 1 < num_stages) for stage in range(num_stages)
        )

    def forward(
        self, feature_map: torch.Tensor, output_attentions: bool = False, output_block_maps: bool = False
    ) -> SwinHfEncoderOutput:
        output = SwinHfEncoderOutput([feature_map.flatten(1, 2)], [feature_map], [feature_map], [], [])
        for stage in self.layers:
            feature_map = output.hidden_states[-1].view_as(feature_map)  # so that gradients pass through what is returned
            feature_map, block_maps, attentions = stage(feature_map, output_attentions, output_block_maps)
            output.hidden_states.append(feature_map.flatten(1, 2))
            output.feature_maps.append(feature_map)
            output.stage_maps.append(block_maps[-1])
            output.block_maps.extend(block_maps)
            output.attentions.extend(attentions)
        return output


class LoadsInOtherSizes:
    """A model that `from_pretrained` can load for another image size or window than the checkpoint's."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as every model of transformers does, if need be for another resolution than the checkpoint's.

        image_size, window_size, stage_windows: here or in `config`; where they differ from the checkpoint's, the loaded model
            is resized as `resize` does.

        Raises:
            ValueError: they differ, and the checkpoint is quantized, or is to be as it is loaded.
        """
        config = kwargs.get("config")
        sizes = {name: kwargs.pop(name) for name in RESIZABLE if name in kwargs}
        # Not by its class: of code in a local folder, transformers loads the config's file and this one apart.
        is_saved = getattr(config, "model_type", "") == SwinHfConfig.model_type and pretrained_model_name_or_path is not None
        if is_saved and saved_config(pretrained_model_name_or_path, kwargs):
            # Auto classes put such keywords into the config; the weights have to be loaded in their own sizes first.
            where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            saved = SwinHfConfig.from_pretrained(pretrained_model_name_or_path, **where)
            sizes = wanted_sizes(config, saved) | sizes
            kwargs["config"] = copy.deepcopy(config)
            for name in (*RESIZABLE, "pretrained_window_sizes"):
                setattr(kwargs["config"], name, getattr(saved, name))
        if pretrained_model_name_or_path is not None:
            require_kept_sizes(pretrained_model_name_or_path, kwargs, sizes, SwinHfConfig)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, *info = loaded if isinstance(loaded, tuple) else (loaded,)  # a pair with output_loading_info
        if changed := differing_sizes(sizes, model.config):
            model = model.resize(**changed)
        return (model, *info) if info else model


class SwinHfPreTrainedModel(
    SavesItsCode, ReadsForeignWeights, ReadsStockWeights, LoadsInOtherSizes, AlignsWeights, PreTrainedModel
):
    """Loading, saving, resizing and initialisation shared by the Swin models."""

    config_class = SwinHfConfig
    base_model_prefix = "swin"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SwinHfEmbeddings"]  # with the kinds of blocks that a model has: FSDP refuses what it does not find
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embeddings"
    _keys_to_ignore_on_load_unexpected = [rf"\.{name}$" for name in DROPPED_BUFFERS]

    def resize(
        self,
        image_size: Size | None = None,
        window_size: Size | None = None,
        stage_windows: WindowOfEachStage | None = None,
    ) -> "SwinHfPreTrainedModel":
        """A copy of this model for another image size or window; `stage_windows` are those of a model with one for each stage.

        V1 tables of position biases and absolute positions are interpolated (bicubic). V2's position networks keep the
        units that they were trained with, which `pretrained_window_sizes` then records.

        Raises:
            ValueError: a size is not positive, `window_size` is given for a model with a window for each stage, or layers
                were wrapped, replaced or quantized.
        """
        config = resized_config(self.config, image_size, window_size, stage_windows)
        resized = self.empty_copy(config)
        require_plain_layers(self, "resized")
        resized.load_state_dict(resized_weights(self.state_dict(), self.config, config))
        freeze_alike(self, resized)
        return resized.to(device=self.device, dtype=self.dtype).train(self.training)

    def empty_copy(self, config: SwinHfConfig) -> "SwinHfPreTrainedModel":
        """A new model of another config with the same parts."""
        return type(self)(config)

    def train(self, mode: bool = True) -> "SwinHfPreTrainedModel":
        """As in every module, but batch normalisation whose weights are frozen keeps its statistics too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            std = self.config.initializer_range
            # A norm divides by the deviation: small matrices before it would only make the first steps large.
            if self.config.weight_init == "fan_in" or getattr(module, "is_normed", False):
                std = module.weight[0].numel() ** -0.5
            init.normal_(module.weight, std=0.0 if getattr(module, "starts_at_zero", False) else std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, _BatchNorm)):
            init.constant_(module.weight, 0.0 if getattr(module, "starts_at_zero", False) else 1.0)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
            if isinstance(module, _BatchNorm):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, SwinHfEmbeddings):
            for parameter in (module.position_embeddings, module.mask_token):
                if parameter is not None:
                    init.zeros_(parameter)
        elif isinstance(module, SwinHfRelativePositionBias):
            init.zeros_(module.relative_position_bias_table)
        elif isinstance(module, SwinHfCosineAttention):
            init.constant_(module.logit_scale, math.log(10.0))
        elif isinstance(module, (nn.PReLU, XIELUActivation)):
            for name, value in type(module)().state_dict().items():
                init.copy_(getattr(module, name), value)


class SwinHfModel(SwinHfPreTrainedModel):
    """The Swin encoder: from images to the tokens of the last stage and their mean.

    use_mask_token: add a learned token that replaces masked patches.
    num_stages: build only so many stages and no norm after them, for a backbone.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: SwinHfConfig, use_mask_token: bool = False, num_stages: int | None = None):
        super().__init__(config)
        self.embeddings = SwinHfEmbeddings(config, use_mask_token)
        self.num_stages = num_stages
        self.encoder = SwinHfEncoder(config, len(config.depths) if num_stages is None else num_stages)
        self.layernorm = make_norm(config, config.hidden_size, config.layer_norm_eps) if num_stages is None else None
        kinds = {type(block).__name__ for stage in self.encoder.layers for block in stage.blocks}
        self._no_split_modules = [*type(self)._no_split_modules, *sorted(kinds)]
        if num_stages is not None:
            for part in self.encoder.modules():
                if isinstance(part, _BatchNorm):
                    part.starts_at_zero = False  # detectors freeze the scales of batch normalisation
        self.post_init()

    def empty_copy(self, config: SwinHfConfig) -> "SwinHfModel":
        return type(self)(config, self.embeddings.mask_token is not None, self.num_stages)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_block_hidden_states: bool = False,
        interpolate_pos_encoding: bool = True,
        pooling: bool = True,
    ) -> SwinHfModelOutput:
        """Encode images (B, num_channels, height, width) of any height and width.

        bool_masked_pos: (B, P), True for patches that the mask token replaces.
        pooling: compute `pooler_output`. Without it the last tokens are normalised, also with `norm_after_pooling`.
        interpolate_pos_encoding: accepted for code written for the stock model; positions are always interpolated.

        Raises:
            ValueError: `pixel_values` or `bool_masked_pos` has another shape than the config asks for.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        maps = self.encode(pixel_values, bool_masked_pos, output_attentions, output_block_hidden_states)
        last_hidden_state = maps.hidden_states[-1]
        pooled_first = pooling and self.config.norm_after_pooling
        if self.layernorm is not None and not pooled_first:
            last_hidden_state = apply_norm(self.layernorm, last_hidden_state, self.config.norm)
        pooler_output = last_hidden_state.mean(dim=1) if pooling else None
        if self.layernorm is not None and pooled_first:
            pooler_output = apply_norm(self.layernorm, pooler_output, self.config.norm)
        return SwinHfModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=pooler_output,
            hidden_states=tuple(maps.hidden_states) if output_hidden_states else None,
            reshaped_hidden_states=_channels_first(maps.feature_maps) if output_hidden_states else None,
            block_hidden_states=_channels_first(maps.block_maps) if output_block_hidden_states else None,
            attentions=tuple(maps.attentions) if output_attentions else None,
        )

    def encode(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_block_maps: bool = False,
    ) -> SwinHfEncoderOutput:
        """The maps of the encoder for images (B, num_channels, height, width)."""
        return self.encoder(self.embeddings(pixel_values, bool_masked_pos), output_attentions, output_block_maps)


def _channels_first(feature_maps: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(feature_map.permute(0, 3, 1, 2) for feature_map in feature_maps)


class SwinHfForImageClassification(SwinHfPreTrainedModel):
    """The Swin encoder with a linear classifier on the mean of its last tokens."""

    _auto_class = "AutoModelForImageClassification"

    def __init__(self, config: SwinHfConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.swin = SwinHfModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    # No **kwargs: the Trainer would take them to mean that the model scales the loss of accumulated gradients itself.
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_block_hidden_states: bool = False,
        interpolate_pos_encoding: bool = True,
    ) -> SwinHfImageClassifierOutput:
        """Classify images (B, num_channels, height, width).

        labels: (B,) class indices, or (B, K) class probabilities (mixup), or (B, K) for the
            `config.problem_type` "multi_label_classification", or numbers for "regression". Without a `problem_type` it
            is inferred from the first labels, and set in the config, as in the stock model; but (B, K) numbers whose rows
            sum to 1 are class probabilities.
        """
        outputs = self.swin(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            output_block_hidden_states=output_block_hidden_states,
            return_dict=True,  # also where the config asks for tuples
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            if self.config.problem_type is None and not torch.compiler.is_compiling():
                self.config.problem_type = infer_problem_type(labels, logits.shape[1])
            loss = classification_loss(logits, labels, self.config.problem_type, self.config.label_smoothing)
        return SwinHfImageClassifierOutput(loss=loss, logits=logits, **outputs.intermediates())


class SwinHfForMaskedImageModeling(SwinHfPreTrainedModel):
    """The Swin encoder with a linear decoder to pixels: SimMIM pre-training (Xie et al. 2022, arXiv:2111.09886)."""

    _auto_class = "AutoModelForMaskedImageModeling"

    def __init__(self, config: SwinHfConfig):
        super().__init__(config)
        # Each token of the last stage is decoded into the pixels that it stands for.
        stride = config.token_height_width
        if stride != (config.encoder_stride, config.encoder_stride):
            raise ValueError(
                f"encoder_stride must be the pixels that a token of the last stage stands for, patch_size * 2 ** (stages - 1) "
                f"= {stride[0]} x {stride[1]} and square, got {config.encoder_stride}"
            )
        self.swin = SwinHfModel(config, use_mask_token=True)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.hidden_size, config.encoder_stride**2 * config.num_channels, kernel_size=1),
            nn.PixelShuffle(config.encoder_stride),
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_block_hidden_states: bool = False,
        interpolate_pos_encoding: bool = True,
    ) -> SwinHfMaskedImageModelingOutput:
        """Reconstruct images (B, num_channels, height, width) of any size, square or not.

        bool_masked_pos: (B, P) for the P patches of the images, True where masked. The loss is over these pixels.
        """
        outputs = self.swin(
            pixel_values,
            bool_masked_pos,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            output_block_hidden_states=output_block_hidden_states,
            pooling=False,
            return_dict=True,  # also where the config asks for tuples
        )
        height, width = pixel_values.shape[2:]
        rows, columns = (-(-size // self.config.encoder_stride) for size in (height, width))
        feature_map = outputs.last_hidden_state.transpose(1, 2).unflatten(2, (rows, columns))
        reconstruction = self.decoder(feature_map)[:, :, :height, :width]
        loss = None
        if bool_masked_pos is not None:
            masked = self.swin.embeddings.masked_patches(bool_masked_pos, pixel_values)
            masked_pixels = pixels_of_patches(masked, self.config.patch_height_width, (height, width))
            loss = masked_reconstruction_loss(reconstruction, pixel_values, masked_pixels)
        return SwinHfMaskedImageModelingOutput(loss=loss, reconstruction=reconstruction, **outputs.intermediates())


class SwinHfBackbone(BackboneMixin, SwinHfPreTrainedModel):
    """The Swin encoder as a backbone: the maps of `config.out_features` before their downsampling, each with its own norm.

    Stages after the last one asked for are not built, so that every parameter gets a gradient. As in the classifier, a map
    that a window spans is not shifted; the stock backbone shifts it, which matters for small images only.
    """

    _auto_class = "AutoBackbone"
    _keys_to_ignore_on_load_unexpected = [
        *SwinHfPreTrainedModel._keys_to_ignore_on_load_unexpected,
        *(r"swin\.layernorm\.", r"swin\.encoder\.layers\.", r"classifier\.", r"decoder\."),
    ]

    def __init__(self, config: SwinHfConfig):
        super().__init__(config)
        stages = range(len(config.depths))
        self.num_features = [config.embed_dim, *map(config.stage_dim, stages)]
        num_stages = self.stage_names.index(self.out_features[-1])  # out_indices may count from the end
        self.swin = SwinHfModel(config, num_stages=num_stages)
        norms = {name: make_norm(config, C, config.layer_norm_eps) for name, C in zip(self.out_features, self.channels)}
        self.hidden_states_norms = nn.ModuleDict(norms)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """Feature maps (B, C, H, W) of images (B, num_channels, height, width), one for each name in `out_features`."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        maps = self.swin.encode(pixel_values, output_attentions=output_attentions)
        chosen = [
            apply_norm(norm, maps.stage_maps[self.stage_names.index(name)], self.config.norm)
            for name, norm in self.hidden_states_norms.items()
        ]
        return BackboneOutput(
            feature_maps=tuple(feature_map.permute(0, 3, 1, 2).contiguous() for feature_map in chosen),
            hidden_states=_channels_first(maps.stage_maps) if output_hidden_states else None,
            attentions=tuple(maps.attentions) if output_attentions else None,
        )
