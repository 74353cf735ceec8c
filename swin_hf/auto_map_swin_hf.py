"""Saved models that load without swin_hf installed: their code lies beside them, with a map of the Auto classes to it."""

MODELS = {
    "swin_hf": {
        "AutoConfig": "configuration_swin_hf.SwinHfConfig",
        "AutoModel": "modeling_swin_hf.SwinHfModel",
        "AutoModelForImageClassification": "modeling_swin_hf.SwinHfForImageClassification",
        "AutoModelForMaskedImageModeling": "modeling_swin_hf.SwinHfForMaskedImageModeling",
        "AutoBackbone": "modeling_swin_hf.SwinHfBackbone",
    },
    "swin_hf_upernet": {
        "AutoConfig": "segmentation_swin_hf.SwinHfUperNetConfig",
        "AutoModelForSemanticSegmentation": "segmentation_swin_hf.SwinHfForSemanticSegmentation",
    },
}
# For Pillow and for torchvision, in the order that AutoImageProcessor expects.
IMAGE_PROCESSORS = ["image_processing_swin_hf.SwinHfImageProcessorPil", "image_processing_swin_hf.SwinHfImageProcessor"]


class SavesItsCode:
    """A model that `save_pretrained` writes together with its code and with a map for every Auto class that fits.

    For classes with an `_auto_class` transformers does so itself, but with that one Auto class in the map.
    """

    def save_pretrained(self, *args, **kwargs):
        auto_map, own = MODELS.get(self.config.model_type, {}), f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        if own in auto_map.values():  # not a class derived from one of ours, which transformers itself saves
            self.config.auto_map = dict(auto_map)
        super().save_pretrained(*args, **kwargs)
