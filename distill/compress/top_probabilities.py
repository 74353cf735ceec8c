"""The largest probabilities of a teacher, as a cache keeps them (TinyViT: Wu et al. 2022, arXiv:2207.10666, section 3.1)."""

# B batch, K classes, k of them that are kept

import math

import torch


def compress(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithms of the `k` largest probabilities of logits (B, K, ...), float16 (B, k, ...), and their classes, int32."""
    values, classes = logits.float().log_softmax(dim=1).topk(k, dim=1)
    return values.half(), classes.int()


def restore(values: torch.Tensor, classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Logits (B, K, ...) of compressed ones; what is left of the probability is shared evenly among the other classes."""
    values = values.float()
    others = num_classes - values.shape[1]
    rest = (1 - values.exp().sum(dim=1, keepdim=True)).clamp(min=torch.finfo(torch.float16).eps)
    logits = (rest.log() - math.log(max(others, 1))).expand(-1, num_classes, *values.shape[2:])
    return logits.scatter(1, classes.long(), values)


def rounded(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Logits (B, K, ...) as they come out of a cache that keeps `k` probabilities; unchanged if `k` is 0."""
    return restore(*compress(logits, min(k, logits.shape[1])), logits.shape[1]) if k else logits
