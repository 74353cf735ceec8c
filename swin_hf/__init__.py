"""Swin Transformers for the Hugging Face world. Importing this package makes the Auto classes know them."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

from .configuration_swin_hf import BlockWidths, SwinHfConfig
from .image_processing_swin_hf import SwinHfImageProcessor, SwinHfImageProcessorPil
from .modeling_swin_hf import (
    SwinHfBackbone,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfModel,
    SwinHfPreTrainedModel,
)

__version__ = "0.1.0"

AutoConfig.register(SwinHfConfig.model_type, SwinHfConfig)
AutoModel.register(SwinHfConfig, SwinHfModel)
AutoModelForImageClassification.register(SwinHfConfig, SwinHfForImageClassification)
AutoModelForMaskedImageModeling.register(SwinHfConfig, SwinHfForMaskedImageModeling)
AutoBackbone.register(SwinHfConfig, SwinHfBackbone)
AutoImageProcessor.register(
    SwinHfConfig, image_processor_classes={"pil": SwinHfImageProcessorPil, "torchvision": SwinHfImageProcessor}
)

__all__ = [
    "BlockWidths",
    "SwinHfBackbone",
    "SwinHfConfig",
    "SwinHfForImageClassification",
    "SwinHfForMaskedImageModeling",
    "SwinHfImageProcessor",
    "SwinHfImageProcessorPil",
    "SwinHfModel",
    "SwinHfPreTrainedModel",
]
