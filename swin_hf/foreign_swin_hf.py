"""Checkpoints of timm and of authors' code in `from_pretrained`, which are converted on the way."""

import importlib
import os
import tempfile
from typing import Any

from .stock_swin_hf import HUB_ARGUMENTS, is_timm, saved_config

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class ReadsForeignWeights:
    """A model that `from_pretrained` also loads from timm's repositories and folders, and from files of weights."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load as every model of transformers does, also a Swin or TinyViT of timm, of Microsoft or of TinyViT's authors.

        For files that do not tell the size of their images, `python -m swin_hf.convert` takes it as a flag.

        Raises:
            ValueError: such a checkpoint cannot be read, or is no model that ours can express.
        """
        if not is_foreign(pretrained_model_name_or_path, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        where = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            converted(pretrained_model_name_or_path, where).save_pretrained(folder)
            loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info
        model.name_or_path = model.config._name_or_path = str(pretrained_model_name_or_path)
        return loaded


def is_foreign(path: str | os.PathLike | None, kwargs: dict[str, Any]) -> bool:
    """Whether a checkpoint is a file of weights, or has a `config.json` of timm. kwargs: of `from_pretrained`."""
    if path is None or kwargs.get("gguf_file"):
        return False
    if os.path.isfile(path):
        return str(path).endswith(WEIGHT_SUFFIXES)
    return is_timm(saved_config(path, kwargs))


def converted(path: str | os.PathLike, where: dict[str, Any]):
    """One of our models from a foreign checkpoint. where: arguments for the Hub.

    Raises:
        ValueError: it cannot be read or expressed, or swin_hf is not installed: a model's own code cannot convert.
    """
    try:
        files = importlib.import_module(f"{__package__}.weight_files")
        weights = importlib.import_module(f"{__package__}.weight_import")
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} is a checkpoint of other code, which needs swin-hf installed to be converted") from error
    model, _ = weights.import_model(files.read_weight_files(path, **where))
    return model
