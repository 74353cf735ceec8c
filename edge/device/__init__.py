"""All that a device needs: reading an artefact and images, running, timing and verifying.

It imports NumPy, Pillow, ExecuTorch with the PyTorch that it brings, and its own modules relatively: this folder alone can be
copied to a device (`python -m device --help`).
"""
