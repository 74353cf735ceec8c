"""Files with which stock transformers loads an artefact, without this project.

exported = ExportedModel.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
exported(**processor(image, return_tensors="pt")).logits
"""

from dataclasses import asdict
from pathlib import Path

import torch
from transformers.exporters.base import EXPORT_SCHEMA_VERSION
from transformers.exporters.metadata import ExportMetadata
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, SemanticSegmenterOutput

from edge.device.artefact import PROCESSOR_FILE, PROGRAM_FILE, TRANSFORMERS_FILE, InputContract
from edge.device.json_text import json_text
from swin_hf import SwinHfBackbone, SwinHfForImageClassification, SwinHfForSemanticSegmentation, SwinHfImageProcessorPil
from swin_hf.weight_export import stock_processor


def write_transformers_files(
    folder: Path, contract: InputContract, kind: type, outputs: tuple[torch.Tensor, ...], versions: dict[str, str]
) -> list[str]:
    """Write the manifest of transformers' exporters and, for a float input, an image processor; returns the files' names.

    kind: of the model. outputs: of the method `forward`, for their structure; class maps behind logits become `hidden_states`.
    """
    pytree = torch.utils._pytree
    returned = {
        SwinHfForImageClassification: lambda: ImageClassifierOutput(logits=outputs[0], hidden_states=outputs[1:] or None),
        SwinHfForSemanticSegmentation: lambda: SemanticSegmenterOutput(logits=outputs[0]),
        SwinHfBackbone: lambda: BackboneOutput(feature_maps=outputs),
    }[kind]()
    shape = contract.shape()
    pixel_values = torch.empty(shape, dtype=getattr(torch, contract.dtype))
    metadata = ExportMetadata(
        architecture=kind.__name__,
        packages={name: version for name, version in versions.items() if name != "python"},
        export_dtype="float32",
        export_device="cpu",
        kwargs={"pixel_values": {"rank": len(shape), "shape": list(shape), "dtype": contract.dtype}},
        in_spec=pytree.treespec_dumps(pytree.tree_structure(((), {"pixel_values": pixel_values}))),
        out_spec=pytree.treespec_dumps(pytree.tree_structure(returned)),
    )
    manifest = {
        "schema_version": EXPORT_SCHEMA_VERSION,
        "export_format": "executorch",
        "components": {"model": {"file": PROGRAM_FILE, "metadata": asdict(metadata)}},
    }
    (folder / TRANSFORMERS_FILE).write_text(json_text(manifest) + "\n", encoding="utf-8")
    if contract.dtype != "float32" or (contract.crop_pct is not None and contract.height != contract.width):
        return [TRANSFORMERS_FILE]  # no image processor of transformers leaves bytes alone or crops to a rectangle like ours
    processor = SwinHfImageProcessorPil(
        size={"height": contract.height, "width": contract.width},
        resample=contract.resample,
        crop_pct=contract.crop_pct,
        num_channels=contract.channels,
        do_normalize=False,  # the program does it
    )
    stock_processor(processor).save_pretrained(folder)
    return [TRANSFORMERS_FILE, PROCESSOR_FILE]
