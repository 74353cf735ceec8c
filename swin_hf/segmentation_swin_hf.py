"""Semantic segmentation: transformers' UperNet (Xiao et al. 2018, arXiv:1807.10221) or a light head over a Swin."""

import copy
from math import inf

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import UperNetConfig, UperNetForSemanticSegmentation
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead, UperNetPreTrainedModel
from transformers.utils import can_return_tuple

from .alignment_swin_hf import AlignsWeights
from .auto_map_swin_hf import SavesItsCode
from .configuration_swin_hf import Size, SwinHfConfig, WindowOfEachStage
from .losses_swin_hf import segmentation_loss
from .modeling_swin_hf import SwinHfBackbone, SwinHfPreTrainedModel
from .plain_layers_swin_hf import require_kept_sizes, require_plain_layers
from .resizing_swin_hf import RESIZABLE, differing_sizes, freeze_alike
from .segmentation_heads_swin_hf import SwinHfLightHead, resized
from .stock_swin_hf import ReadsStockConfigs, ReadsStockWeights

DECODE_HEADS = {"uper": 512, "light": 64}  # with the channels that they have by default
AUXILIARY_STAGE = 2  # whose map the auxiliary head reads, counted among those that the backbone returns


@strict
class SwinHfUperNetConfig(ReadsStockConfigs, UperNetConfig):
    """Fields of transformers' `UperNetConfig`, with a `SwinHfConfig` as `backbone_config`, and those of a lighter head.

    decode_head:
        "uper" is UperNet's, "light" a narrow feature pyramid of separable convolutions, for phones.
    hidden_size:
        Channels of the decode head. `None` is 512 for "uper", 64 for "light".
    resize_logits:
        Whether the logits are resized to the image, or left at the size of the largest feature map.
    ohem_threshold, dice_weight:
        Of the loss, as in `losses_swin_hf.segmentation_loss`; the auxiliary head has the same.

    Raises:
        ValueError: `use_auxiliary_head` for a backbone that returns fewer than three maps, or a field out of its range.
    """

    model_type = "swin_hf_upernet"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=SwinHfConfig)}
    _auto_class = "AutoConfig"

    hidden_size: int | None = None
    decode_head: str = "uper"
    resize_logits: bool = True
    ohem_threshold: float | None = None
    dice_weight: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.decode_head not in DECODE_HEADS:
            raise ValueError(f"decode_head must be {' or '.join(DECODE_HEADS)}, got {self.decode_head!r}")
        if self.hidden_size is None:
            self.hidden_size = DECODE_HEADS[self.decode_head]
        if self.backbone_config is None:
            self.backbone_config = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
        if isinstance(self.backbone_config, dict):  # transformers knows the class only after swin_hf was imported
            is_saved = "model_type" in self.backbone_config  # which may hold attributes that others set
            make = SwinHfConfig.from_dict if is_saved else lambda given: SwinHfConfig(**given)
            self.backbone_config = make(self.backbone_config)
        self.backbone_config.return_dict = True  # UperNet reads the maps by name
        super().__post_init__(**kwargs)
        maps = self.backbone_config.out_features
        if self.use_auxiliary_head and len(maps) <= AUXILIARY_STAGE:
            raise ValueError(
                f"use_auxiliary_head needs a backbone that returns {AUXILIARY_STAGE + 1} maps or more, got {maps}; "
                "set it to False"
            )
        self._require_loss()

    def _require_loss(self) -> None:
        """Check the fields of the loss.

        Raises:
            ValueError: one is out of its range.
        """
        for name, rule, holds in (
            ("ohem_threshold", "lie above 0 and up to 1", self.ohem_threshold is None or 0 < self.ohem_threshold <= 1),
            ("dice_weight", "be 0 or more", 0 <= self.dice_weight < inf),
        ):
            if not holds:
                raise ValueError(f"{name} must {rule}, got {getattr(self, name)}")


class SwinHfForSemanticSegmentation(SavesItsCode, ReadsStockWeights, AlignsWeights, UperNetForSemanticSegmentation):
    """A class for every pixel of an image: logits (B, K, height, width) of images of any height and width."""

    config_class = SwinHfUperNetConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = SwinHfBackbone._no_split_modules
    _auto_class = "AutoModelForSemanticSegmentation"
    _keys_to_ignore_on_load_unexpected = [
        *SwinHfPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^backbone\.swin\.layernorm\.",  # of the stock backbone, which never uses it
    ]

    def __init__(self, config: SwinHfUperNetConfig):
        UperNetPreTrainedModel.__init__(self, config)  # UperNet's own looks for a backbone among transformers' models
        self.backbone = SwinHfBackbone(config.backbone_config)
        channels = self.backbone.channels
        if config.decode_head == "light":
            self.decode_head = SwinHfLightHead(channels, config.hidden_size, config.num_labels)
        else:
            self.decode_head = UperNetHead(config, in_channels=channels)
        self.auxiliary_head: nn.Module | None = None
        if config.use_auxiliary_head:
            self.auxiliary_head = UperNetFCNHead(config, in_channels=channels, in_index=AUXILIARY_STAGE)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        class_weights: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        """Logits of images (B, num_channels, height, width), and their loss if there are labels.

        labels: (B, height, width) class indices; `config.loss_ignore_index` marks pixels that do not count.
        class_weights: (K,) numbers by which the pixels of each class count in the loss.

        Raises:
            ValueError: labels for a model of one class.
        """
        config = self.config
        if labels is not None and config.num_labels == 1:
            raise ValueError("num_labels must be 2 or more to learn from labels, got 1")
        outputs = self.backbone(
            pixel_values,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            return_dict=True,
        )
        logits, loss = self.decode_head(outputs.feature_maps), None
        if config.resize_logits:
            logits = resized(logits, pixel_values.shape[2:])
        if labels is not None:
            loss = self._loss(logits, labels, class_weights)
            if self.auxiliary_head is not None:
                auxiliary = self._loss(self.auxiliary_head(outputs.feature_maps), labels, class_weights)
                loss = loss + config.auxiliary_loss_weight * auxiliary
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None) -> torch.Tensor:
        config, labels = self.config, labels.to(logits.device)
        logits = resized(logits, labels.shape[1:])
        return segmentation_loss(
            logits, labels, config.loss_ignore_index, class_weights, config.ohem_threshold, config.dice_weight
        )

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings, for which those who quantize or adapt models ask."""
        return self.backbone.get_input_embeddings()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as every model of transformers does, also stock UperNets over a Swin.

        image_size, window_size, stage_windows: of the backbone; where they are given, the loaded model is resized as
            `resize` does.
        """
        sizes = {name: kwargs.pop(name) for name in RESIZABLE if name in kwargs}
        require_kept_sizes(pretrained_model_name_or_path, kwargs, sizes, cls.config_class)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, *info = loaded if isinstance(loaded, tuple) else (loaded,)
        changed = differing_sizes(sizes, model.config.backbone_config)
        model = model.resize(**changed) if changed else model
        return (model, *info) if info else model

    def resize(
        self,
        image_size: Size | None = None,
        window_size: Size | None = None,
        stage_windows: WindowOfEachStage | None = None,
    ) -> "SwinHfForSemanticSegmentation":
        """A copy of this model whose backbone is for another image size or window, as by `SwinHfPreTrainedModel.resize`."""
        backbone, config = self.backbone.resize(image_size, window_size, stage_windows), copy.deepcopy(self.config)
        config.backbone_config = backbone.config
        resized = type(self)(config)
        require_plain_layers(self, "resized")
        resized.load_state_dict(self.state_dict() | backbone.state_dict(prefix="backbone."))
        freeze_alike(self, resized)
        return resized.to(device=self.device, dtype=self.dtype).train(self.training)
