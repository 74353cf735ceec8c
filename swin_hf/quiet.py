"""Silence for the commands of this package, which transformers and what it imports would begin with messages of their own."""

import logging
import sys
import warnings

LOADED_BY_TRANSFORMERS = ("torchao", "torch.utils._pytree")  # report kernels of other machines, and deprecations


def quieten_command() -> None:
    """Hide what a user of `python -m swin_hf.NAME` can do nothing about; call it before importing transformers.

    Where the package is imported as a library, messages are the user's to choose: nothing is changed.
    """
    if sys.argv[0] != "-m" or not any(argument.startswith("swin_hf.") for argument in sys.orig_argv):
        return  # Python sets sys.argv[0] to "-m" while it looks for the module to run
    for name in LOADED_BY_TRANSFORMERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def hide_progress() -> None:
    """Hide transformers' progress bars and hints, whose files are written and read in no time."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
