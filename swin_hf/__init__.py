"""Swin Transformers for Hugging Face. Importing this package registers them with the Auto classes."""

from .quiet import quieten_command

quieten_command()  # before transformers is imported

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
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
from .segmentation_swin_hf import SwinHfForSemanticSegmentation, SwinHfUperNetConfig

__version__ = "0.1.0"

IMAGE_PROCESSORS = {"pil": SwinHfImageProcessorPil, "torchvision": SwinHfImageProcessor}

AutoConfig.register(SwinHfConfig.model_type, SwinHfConfig)
AutoModel.register(SwinHfConfig, SwinHfModel)
AutoModelForImageClassification.register(SwinHfConfig, SwinHfForImageClassification)
AutoModelForMaskedImageModeling.register(SwinHfConfig, SwinHfForMaskedImageModeling)
AutoBackbone.register(SwinHfConfig, SwinHfBackbone)
AutoImageProcessor.register(SwinHfConfig, image_processor_classes=IMAGE_PROCESSORS)
AutoConfig.register(SwinHfUperNetConfig.model_type, SwinHfUperNetConfig)
AutoModelForSemanticSegmentation.register(SwinHfUperNetConfig, SwinHfForSemanticSegmentation)
AutoImageProcessor.register(SwinHfUperNetConfig, image_processor_classes=dict(IMAGE_PROCESSORS))

__all__ = [
    "BlockWidths",
    "SwinHfBackbone",
    "SwinHfConfig",
    "SwinHfForImageClassification",
    "SwinHfForMaskedImageModeling",
    "SwinHfForSemanticSegmentation",
    "SwinHfImageProcessor",
    "SwinHfImageProcessorPil",
    "SwinHfModel",
    "SwinHfPreTrainedModel",
    "SwinHfUperNetConfig",
]
