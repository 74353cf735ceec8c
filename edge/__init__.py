"""Swin models on the device: export to ExecuTorch, run, measure and verify `.pte` programs (`python -m edge --help`).

Importing this package imports nothing else: `edge.device` needs only the ExecuTorch wheel, NumPy and Pillow.
"""
