"""Distillation losses: pure functions of the logits of a student and of its teacher."""

from collections.abc import Callable

import torch


def kl_divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(teacher || student) of probabilities softened by the temperature T, in nats (Hinton et al. 2015, section 2).

    student_logits, teacher_logits: (B, K), or (B, K, H, W) of pixels. The divergence is summed over the K classes and
    averaged over everything else.
    """
    student = (student_logits.float() / temperature).log_softmax(dim=1)
    teacher = (teacher_logits.float() / temperature).log_softmax(dim=1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=1).mean()


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {"kl": kl_divergence}
