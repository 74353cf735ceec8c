"""Checkpoints of timm and of authors' code, wherever a checkpoint of transformers is taken."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from swin_hf.convert import convert
from swin_hf.foreign_swin_hf import is_foreign
from swin_hf.stock_swin_hf import saved_config
from swin_hf.weight_files import why_unreadable

CONVERTED = ("swin", "tiny_vit")  # beginnings of timm's names; other models of timm are left to transformers' wrapper


@cache
def loadable(name: str) -> str:
    """A checkpoint as `from_pretrained` of any class takes it: its name, or the folder of a converted copy of this process.

    Raises:
        ConversionError: it is a Swin or TinyViT of other code that cannot be read or expressed.
    """
    try:
        if not is_foreign(name, {}):
            return name
        is_ours = Path(name).is_file() or str(saved_config(name, {})["architecture"]).startswith(CONVERTED)
    except (OSError, ValueError):  # there is no such checkpoint, which is said where it is loaded
        return name
    if not is_ours:
        return name
    folder = tempfile.mkdtemp(prefix="swin_hf-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    convert(name, Path(folder) / "converted")
    return str(Path(folder) / "converted")


def why_not_loaded(checkpoint: str | Path, error: Exception) -> str:
    """Why a checkpoint cannot be loaded, and what to do if it is not on this disk."""
    if Path(checkpoint).exists():
        return why_unreadable(error)
    instead = "give a folder or a file of weights, or a preset to train from scratch, like swin_tiny"
    return f"{why_unreadable(error).rstrip('.')}; without the Hub, {instead}"
