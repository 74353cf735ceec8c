"""Silence for the command lines; it lies in `edge.device`, which works as a folder of its own."""

from edge.device.quiet import quieten

__all__ = ["quieten"]
