"""Pull files that are dropped, cut short or changed on the way, each the first time that it is asked for."""

import hashlib
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from prelude import attempt, say

from edge.device.runner import Runner
from swin_hf import SwinHfForImageClassification

path = Path(hf_hub_download("org/large", "model.safetensors"))
say("dropped and resumed", hashlib.sha256(path.read_bytes()).hexdigest())
attempt("cut short", lambda: SwinHfForImageClassification.from_pretrained("org/swin-tiny-custom"))
say("and tried again", type(SwinHfForImageClassification.from_pretrained("org/swin-tiny-custom")).__name__)

folder = snapshot_download("org/program")
attempt("changed on the way", lambda: Runner(folder))
folder = snapshot_download("org/program", force_download=True)
say("and fetched again", list(Runner(folder).logits(torch.rand(1, 3, 16, 16).numpy()).shape))
