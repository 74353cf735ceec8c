"""What runs on both sides: the device's own code over artefacts and images, inside the emulator and on the machine itself.

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
    """Logits (n, K) of every artefact for all images, the sha256 of its inputs, and what they were computed with.

    A program that the runtime does not take has an `error` instead of logits.
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
    # A build of torch with CUDA names functions of libraries that are not here; unless it is lazy, it looks for them at once.
    sys.setdlopenflags(os.RTLD_LAZY)
    # The runtime wants one decorator of `executorch.exir`, whose `__init__` brings the whole compiler: most of the time here.
    exir = types.ModuleType("executorch.exir")
    exir.__path__ = [str(Path(site_packages) / "executorch" / "exir")]
    sys.modules["executorch.exir"] = exir
    Path(out).write_text(json.dumps(answer(**json.loads(Path(request).read_text()))))


if __name__ == "__main__":
    main()
