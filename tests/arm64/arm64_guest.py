"""The part that runs both in the emulator and on this machine: the device's own code on artefacts and images.

python -I arm64_guest.py SITE_PACKAGES REQUEST.json ANSWER.json     # needs only ExecuTorch, torch, NumPy and Pillow
"""

import hashlib
import json
import os
import platform
import sys
import types
from pathlib import Path


def answer(artefacts: list[str], images: list[str]) -> dict:
    """Logits (n, K) of every artefact for all images, the sha256 of its inputs, and the machine and versions used.

    A program that the runtime refuses has an `error` instead of logits.
    """
    from edge.device.artefact import ArtefactError
    from edge.device.environment import installed_versions
    from edge.device.runner import Runner

    programs = []
    for folder in artefacts:
        try:
            runner = Runner(folder)
        except ArtefactError as error:
            programs.append({"error": " ".join(str(error).split())})
            continue
        inputs = [runner.pixel_values(image) for image in images]
        sha256 = hashlib.sha256(b"".join(pixel_values.tobytes() for pixel_values in inputs)).hexdigest()
        programs.append({"logits": [runner.logits(x).tolist() for x in inputs], "inputs_sha256": sha256})
    versions = installed_versions("torch", "executorch", "numpy", "pillow")
    return {"machine": platform.machine(), "versions": versions, "programs": programs}


def main() -> None:
    site_packages, request, out = sys.argv[1:]
    sys.path[:0] = [str(Path(__file__).parents[2]), site_packages]
    # A build of torch with CUDA refers to functions of missing libraries; without lazy binding, it could not be loaded.
    sys.setdlopenflags(os.RTLD_LAZY)
    # The runtime imports one decorator of `executorch.exir`, whose `__init__` would load the whole compiler, which is slow.
    exir = types.ModuleType("executorch.exir")
    exir.__path__ = [str(Path(site_packages) / "executorch" / "exir")]
    sys.modules["executorch.exir"] = exir
    Path(out).write_text(json.dumps(answer(**json.loads(Path(request).read_text()))))


if __name__ == "__main__":
    main()
