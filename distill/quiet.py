"""Less output from libraries that report every small file they read or write."""

import logging
import warnings

import datasets
from transformers.utils import logging as transformers_logging


def quieten_libraries() -> None:
    """Hide the progress bars and hints of transformers and datasets."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every retry
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # matplotlib's, for names in other scripts
