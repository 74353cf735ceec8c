"""Checkpoints in a file, in a folder or on the Hub, loaded without executing pickled code."""

import json
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import ExplainedError, in_one_line
from .foreign_swin_hf import WEIGHT_SUFFIXES

# In order of preference; an index names the files that the weights are split into.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LFS_POINTER = b"version https://git-lfs"
# Keys under which training scripts save the weights, beside optimizer and epoch. As in timm, averaged weights come first.
AVERAGED_IN = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
NESTED_IN = (*AVERAGED_IN, "state_dict", "model_state_dict", "model", "module", "net")


class ConversionError(ExplainedError):
    """A checkpoint cannot be read or converted; the message says why."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The contents of a checkpoint.

    name: the path or repository that was given.
    config, processor: `config.json` and `preprocessor_config.json`, empty if there is none.
    notes: which weights were read, if the file has averaged ones.
    """

    name: str
    weights: dict[str, torch.Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class InertDict:
    """Stands in for a class in a pickle: calling it only returns an empty dictionary."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


class InertObject:
    """The same for NumPy's numbers, whose pickled state a dictionary would not accept."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_weight_files(source: str | Path, revision: str | None = None, **hub: Any) -> WeightFiles:
    """Read a .safetensors, .pth, .pt or .bin file, a folder or a Hub repository with weights and `config.json`.

    hub: further arguments of `huggingface_hub.hf_hub_download`, such as `token` and `subfolder`.

    Raises:
        ConversionError: the source does not exist, or contains no weights.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses: no such repository or revision, or no access.
    """
    path = Path(source)
    if path.is_file():
        weights, notes = _read(path)
        return WeightFiles(name=str(source), weights=weights, notes=notes)
    if not path.is_dir() and (path.suffix in WEIGHT_SUFFIXES or path.is_absolute() or len(path.parts) != 2):
        raise ConversionError(f"{source} must be a file of weights, a folder or a Hub repository like org/name; there is none")
    where = {"revision": revision} | hub
    config = _find(source, "config.json", where)
    weights = next(filter(None, (_find(source, name, where) for name in WEIGHT_FILES)), None)
    if weights is None:
        place = " in the local cache" if constants.HF_HUB_OFFLINE and not path.is_dir() else ""
        raise ConversionError(f"{source} must hold {', '.join(WEIGHT_FILES[::2])} or an index of them, got none{place}")
    processor = _find(source, "preprocessor_config.json", where)
    tensors, notes = _read(weights) if weights.suffix != ".json" else ({}, [])
    if weights.suffix == ".json":
        shards = read_json_object(weights).get("weight_map")
        if not isinstance(shards, dict):
            raise ConversionError(f"{weights} must have a weight_map from weights to files, got {type(shards).__name__}")
        for name in sorted(set(map(str, shards.values()))):
            shard = _find(source, Path(name).name, where)  # beside the index, whatever it says
            if shard is None:
                raise ConversionError(f"{source} lacks {name}, which {weights.name} names; fetch it again")
            tensors |= read_weights(shard)
    return WeightFiles(
        name=str(source),
        weights=tensors,
        config=read_json_object(config, finite=True) if config else {},
        processor=read_json_object(processor, finite=True) if processor else {},
        notes=notes,
    )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors file, or of a PyTorch one with `weights_only=True`.

    Other objects in a PyTorch file, such as the configuration that training scripts save beside the weights, are not created:
    inert classes stand in for theirs. Of raw and averaged weights the averaged ones are read.

    Raises:
        ConversionError: the file is neither, or contains no weights.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of `read_weights`, and a note if they are averaged ones."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path), []
        is_zip = zipfile.is_zipfile(path)  # as written since PyTorch 1.6
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
        inert = [(InertObject if name.startswith("numpy") else InertDict, name) for name in unsafe]
        with torch.serialization.safe_globals(inert):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler can raise anything
        raise ConversionError(
            f"{path} must hold weights in the format of safetensors or PyTorch: {_why(path, error)}"
        ) from error
    tensors, where = _weights_in(content)
    if not tensors:
        keys = ", ".join(map(str, list(content)[:10])) if isinstance(content, dict) else type(content).__name__
        raise ConversionError(
            f"{path} must hold a dictionary of weights, alone or under one of {', '.join(NESTED_IN)}, got {keys or 'nothing'}"
        )
    if not set(where) & set(AVERAGED_IN):
        return tensors, []
    others = [name for name in NESTED_IN if name in content and name != where[0]]
    return tensors, [f"read from {'.'.join(where)}, averaged weights" + (f", not from {', '.join(others)}" if others else "")]


def _weights_in(content: Any, depth: int = 4) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a dictionary or of the first of `NESTED_IN` that has any, and the keys that lead to them."""
    if not isinstance(content, dict) or not depth:
        return {}, []
    for name in NESTED_IN:
        tensors, where = _weights_in(content.get(name), depth - 1)
        if tensors:
            return tensors, [name, *where]
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}, []


def not_finite(weights: Mapping[str, torch.Tensor]) -> str:
    """Name and number of bad values of the first weight that is not a finite number everywhere; empty if there is none."""
    for name, weight in weights.items():
        bad = int((~weight.float().isfinite()).sum()) if weight.is_floating_point() else 0
        if bad:
            return f"{name} with {bad} of {weight.numel()} values NaN or infinite"
    return ""


def _why(path: Path, error: Exception) -> str:
    """Why a file cannot be read; PyTorch's own message advises to load it unsafely."""
    if path.is_file() and path.read_bytes()[: len(LFS_POINTER)] == LFS_POINTER:
        return "it is a pointer of git-lfs; fetch the file itself with `git lfs pull`"
    if isinstance(error, (OSError, SafetensorError)):
        return str(error)
    return _forbidden(error) or "it is damaged, or a file of another kind"


def why_unreadable(error: Exception) -> str:
    """Why transformers cannot load a checkpoint, in one line; PyTorch's own message advises to load it unsafely."""
    if isinstance(error, UnpicklingError):
        return f"its weights are pickled: {_forbidden(error) or 'they are damaged, or a file of another kind'}"
    return in_one_line(error)


def _forbidden(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it would call {found[1]}, which is not done" if found else ""


def _find(source: str | Path, name: str, where: dict[str, Any]) -> Path | None:
    """Path of a file of a folder or of a repository, or None if there is no such file. where: arguments for the Hub."""
    if Path(source).is_dir():
        path = Path(source) / (where.get("subfolder") or "") / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(str(source), name, **where))
    except LocalEntryNotFoundError as error:
        cached = {key: where[key] for key in ("cache_dir", "revision") if key in where}
        is_absent = try_to_load_from_cache(str(source), name, **cached) is _CACHED_NO_EXIST
        if constants.HF_HUB_OFFLINE and (is_absent or name in WEIGHT_FILES):
            return None
        raise ConversionError(f"{source} is no folder, and its {name} cannot be fetched from the Hub: {error}") from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ConversionError(f"{source} must be a file, a folder or a Hub repository: {error}") from error


def _refuse_constant(name: str) -> None:
    """Called for NaN and infinities, which Python's JSON has and the standard has not."""
    raise ValueError(f"it must hold finite numbers, got {name}")


def read_json_object(path: Path, finite: bool = False) -> dict[str, Any]:
    """The JSON object in a file.

    finite: refuse NaN and infinities.

    Raises:
        ConversionError: the file is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant if finite else None)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
