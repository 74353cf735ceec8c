"""Distillation losses: pure functions of what a student and its teacher make of the same images."""

# B batch, K classes, C channels, h w positions of a feature map; logits are (B, K), or (B, K, H, W) of the pixels of images

from collections.abc import Callable

import torch
from torch import nn

# -- of logits ---------------------------------------------------------------------------------------------------------


def kl_divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(teacher || student) of probabilities softened by the temperature T, in nats (Hinton et al. 2015, section 2).

    The divergence is summed over the classes and averaged over everything else.
    """
    student = (student_logits.float() / temperature).log_softmax(dim=1)
    teacher = (teacher_logits.float() / temperature).log_softmax(dim=1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(dim=1).mean()


def dist(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 ((1 - r_inter) + (1 - r_intra)) of probabilities softened by T, from 0 to 4 T^2 (DIST: Huang et al. 2022,
    arXiv:2205.10536, section 3).

    r_inter is the correlation (Pearson) of student and teacher over the classes of an image, averaged over the images;
    r_intra that over the images of a batch, averaged over the classes. Of maps, each pixel counts as an image. A batch should
    have many images, 64 or more; with several processes it is that of one process.
    """
    student, teacher = ((_rows(logits).float() / temperature).softmax(dim=1) for logits in (student_logits, teacher_logits))
    inter, intra = _correlation(student, teacher).mean(), _correlation(student.T, teacher.T).mean()
    return temperature**2 * ((1 - inter) + (1 - intra))


def hard_labels(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the teacher's first class as the label, in nats (DeiT: Touvron et al. 2021, arXiv:2012.12877,
    section 4, whose weights of labels and teacher are a half each)."""
    return nn.functional.cross_entropy(student_logits.float(), teacher_logits.argmax(dim=1))


def nkd(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = 1.0,
    gamma: float = 1.5,
    ignored: int = 255,
) -> torch.Tensor:
    """Normalised distillation, in nats (NKD: Yang et al. 2023, arXiv:2303.13005, section 3).

    Of an image of the class c, with the probabilities s and t of student and teacher at the temperature 1, and N(p) what p,
    softened by T, is among all classes but c:

        -t_c log s_c - gamma T^2 sum over i != c of N(t)_i log N(s)_i

    targets: classes (B,), -1 for an image without one; or (B, H, W), where `ignored` counts for nothing; or probabilities
        (B, K) of at most two classes, as mixup makes them, with the mean of both losses, and a sum below 1 for what has none.
        The class of an image without one is the teacher's first.
    """
    student, teacher = _rows(student_logits).float(), _rows(teacher_logits).float()
    if targets.is_floating_point():
        shares, labels = targets.float().topk(min(2, targets.shape[1]), dim=1)
        unknown = (1 - targets.float().sum(dim=1, keepdim=True)).clamp(min=0)
        shares, labels = torch.cat([shares, unknown], dim=1), torch.cat([labels, teacher.argmax(dim=1, keepdim=True)], dim=1)
    elif targets.ndim == 1:
        labels = torch.where(targets == -1, teacher.argmax(dim=1), targets)[:, None]
        shares = torch.ones_like(labels, dtype=torch.float)
    else:
        known = targets.flatten() != ignored
        shares, labels = known.float()[:, None], (targets.flatten() * known)[:, None]
    loss = student.new_zeros(())
    for share, label in zip(shares.T, labels.T):
        own = nn.functional.one_hot(label, student.shape[1]).bool()
        of_class = (own * teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1)
        others = [(logits / temperature).masked_fill(own, -torch.inf).log_softmax(dim=1) for logits in (student, teacher)]
        of_others = (others[1].exp() * others[0].masked_fill(own, 0)).sum(dim=1)
        loss = loss - (share * (of_class + gamma * temperature**2 * of_others)).sum()
    return loss / shares.sum().clamp(min=1)


def _rows(logits: torch.Tensor) -> torch.Tensor:
    """Logits (n, K) of images, or of all pixels of images."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).flatten(0, -2)


def _correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of the rows of two matrices; 0 where a row is constant."""
    centred = [values - values.mean(dim=1, keepdim=True) for values in (first, second)]
    return nn.functional.cosine_similarity(*centred, dim=1)


# Each takes the logits of student and teacher, the targets of the task, and the temperature.
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "kl": lambda student, teacher, targets, temperature: kl_divergence(student, teacher, temperature),
    "dist": lambda student, teacher, targets, temperature: dist(student, teacher, temperature),
    "hard": lambda student, teacher, targets, temperature: hard_labels(student, teacher),
    "nkd": nkd,
}

# -- of feature maps ---------------------------------------------------------------------------------------------------

SHORTEST = 1e-12  # the length that shorter vectors are divided by


def normalised_features(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Smooth L1 (beta 2) between the projected map of the student and the teacher's, whose every position is standardised
    over its channels (VkD: Miles et al. 2024, arXiv:2403.06213, section 3; the projection must be orthogonal).

    student_map, teacher_map: (B, C, h, w); the mean over all values.
    """
    channels_last = teacher_map.float().movedim(1, -1)
    teacher = nn.functional.layer_norm(channels_last, channels_last.shape[-1:]).movedim(-1, 1)
    return nn.functional.smooth_l1_loss(student_map.float(), teacher, beta=2.0)


def stage_hints(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Squared distance of the directions that student and teacher have at each position, from 0 to 4 up to rounding (hints:
    Romero et al. 2015, arXiv:1412.6550, section 2.2; with both normalised over their channels).

    student_map, teacher_map: (B, C, h, w), the student's projected; the mean over images and positions.
    """
    student, teacher = student_map.float(), teacher_map.float()
    # |s / |s| - t / |t||^2, by the products of s and t at each position: that takes less than to normalise whole maps.
    squares = [(own * own).sum(dim=1) for own in (student, teacher)]
    divisors = [own.clamp(min=SHORTEST**2) for own in squares]
    cosines = (student * teacher).sum(dim=1) / (divisors[0].sqrt() * divisors[1].sqrt())
    distances = squares[0] / divisors[0] + squares[1] / divisors[1] - 2 * cosines
    return distances.mean()
