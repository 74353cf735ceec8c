"""Temperature scaling: calibrated probabilities (Guo et al. 2017, arXiv:1706.04599)."""

import numpy as np

from .parity import log_softmax

MIN_LABELLED_IMAGES = 50
LOWEST, HIGHEST = 0.25, 8.0
GOLDEN = (5**0.5 - 1) / 2


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of softmax(logits / temperature) with the highest likelihood on held-out images; 1 if they are too few.

    logits: (n, K). labels: (n,) class numbers.
    """
    if len(labels) < MIN_LABELLED_IMAGES:
        return 1.0

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature))[np.arange(len(labels)), labels].mean()

    low, high = np.log(LOWEST), np.log(HIGHEST)  # the loss is unimodal: golden-section search
    while high - low > 1e-4:
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))
