"""Silence for messages of other packages that a user of the command lines can do nothing about."""

import logging
import warnings


def quieten() -> None:
    """Hide what torchao and PyTorch report about kernels of other machines; call it before importing them."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's; twice as large is an error
