"""Swin Transformers for the Hugging Face world. Importing this package makes the Auto classes know them."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .configuration_swin_hf import BlockWidths, SwinHfConfig
from .image_processing_swin_hf import SwinHfImageProcessor, SwinHfImageProcessorPil
from .modeling_swin_hf import SwinHfForImageClassification, SwinHfModel, SwinHfPreTrainedModel

__version__ = "0.1.0"

AutoConfig.register(SwinHfConfig.model_type, SwinHfConfig)
AutoModel.register(SwinHfConfig, SwinHfModel)
AutoModelForImageClassification.register(SwinHfConfig, SwinHfForImageClassification)
AutoImageProcessor.register(
    SwinHfConfig, image_processor_classes={"pil": SwinHfImageProcessorPil, "torchvision": SwinHfImageProcessor}
)

__all__ = [
    "BlockWidths",
    "SwinHfConfig",
    "SwinHfForImageClassification",
    "SwinHfImageProcessor",
    "SwinHfImageProcessorPil",
    "SwinHfModel",
    "SwinHfPreTrainedModel",
]
