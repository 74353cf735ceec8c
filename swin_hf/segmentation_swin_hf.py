"""Semantic segmentation: transformers' UperNet heads (Xiao et al. 2018, arXiv:1807.10221) over the maps of a Swin."""

import copy

from torch import nn
from transformers import UperNetConfig, UperNetForSemanticSegmentation
from transformers.configuration_utils import SubConfigSpec
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead, UperNetPreTrainedModel

from .auto_map_swin_hf import SavesItsCode
from .configuration_swin_hf import Size, SwinHfConfig, WindowOfEachStage
from .modeling_swin_hf import SwinHfBackbone, SwinHfPreTrainedModel
from .plain_layers_swin_hf import require_kept_sizes, require_plain_layers
from .resizing_swin_hf import RESIZABLE, differing_sizes, freeze_alike
from .stock_swin_hf import ReadsStockConfigs, ReadsStockWeights

AUXILIARY_STAGE = 2  # whose map the auxiliary head reads, counted among those that the backbone returns


class SwinHfUperNetConfig(ReadsStockConfigs, UperNetConfig):
    """Fields of transformers' `UperNetConfig`, with a `SwinHfConfig` as `backbone_config`.

    Raises:
        ValueError: `use_auxiliary_head` for a backbone that returns fewer than three maps.
    """

    model_type = "swin_hf_upernet"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=SwinHfConfig)}
    _auto_class = "AutoConfig"

    def __post_init__(self, **kwargs):
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


class SwinHfForSemanticSegmentation(SavesItsCode, ReadsStockWeights, UperNetForSemanticSegmentation):
    """A class for every pixel of an image: logits (B, K, height, width) of images of any height and width.

    labels: (B, height, width) class indices; `config.loss_ignore_index` marks pixels that do not count.
    """

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
        self.decode_head = UperNetHead(config, in_channels=self.backbone.channels)
        self.auxiliary_head: nn.Module | None = None
        if config.use_auxiliary_head:
            self.auxiliary_head = UperNetFCNHead(config, in_channels=self.backbone.channels, in_index=AUXILIARY_STAGE)
        self.post_init()

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
