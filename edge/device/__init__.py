"""All that a device needs: artefact, images, running, timing and verifying; NumPy, Pillow and ExecuTorch, nothing else."""
