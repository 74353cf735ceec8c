"""Distillation of feature maps: what a student's maps are compared with, and the projectors that make them comparable."""

# B batch, C channels, h w positions of a map

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from swin_hf.distillation_losses import normalised_features, stage_hints


def orthogonal_projector(channels: int, teacher_channels: int) -> nn.Module:
    """A linear map of channels that keeps lengths and angles, as far as the teacher has as many channels as the student.

    Miles et al. 2024, arXiv:2403.06213, section 3.
    """
    return nn.utils.parametrizations.orthogonal(nn.Linear(channels, teacher_channels, bias=False))


@dataclass(frozen=True, kw_only=True)
class FeatureLoss:
    """A way to compare feature maps.

    loss: of the projected map of the student and the map of the teacher, (B, C, h, w) each.
    projector: makes what brings the student's channels to the number of the teacher's.
    every_stage: compare the maps of all resolutions, not only the last ones.
    """

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    projector: Callable[[int, int], nn.Module]
    every_stage: bool


FEATURE_LOSSES = {
    "vkd": FeatureLoss(loss=normalised_features, projector=orthogonal_projector, every_stage=False),
    "hints": FeatureLoss(loss=stage_hints, projector=nn.Linear, every_stage=True),
}


class FeatureDistillation(nn.Module):
    """The feature loss of a student and its teachers, with projectors that are trained with it and do not become part of it.

    student_maps, teachers_maps: of a batch, the latter for each teacher; they show the sizes.
    indices: of the student's maps among its hidden states.
    """

    def __init__(
        self,
        kind: FeatureLoss,
        student_maps: list[torch.Tensor],
        teachers_maps: list[list[torch.Tensor]],
        indices: list[int] | None = None,
    ):
        super().__init__()
        self.kind, self.indices = kind, indices
        self.pairs = [pairs_of_maps(student_maps, maps, kind.every_stage) for maps in teachers_maps]
        self.projectors = nn.ModuleList(
            nn.ModuleList(kind.projector(student_maps[own].shape[1], maps[other].shape[1]) for own, other in pairs)
            for maps, pairs in zip(teachers_maps, self.pairs)
        )

    def forward(self, student_maps: list[torch.Tensor], teachers_maps: list[list[torch.Tensor]]) -> torch.Tensor:
        """The mean over all pairs of maps of all teachers. Of two maps, the finer is averaged to the size of the other."""
        losses = []
        for maps, pairs, projectors in zip(teachers_maps, self.pairs, self.projectors):
            for (own, other), projector in zip(pairs, projectors):
                student, teacher = student_maps[own], maps[other]
                size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:])]
                # (B, C, h, w) -> (B, h, w, C) -> (B, h, w, C of the teacher) -> (B, C of the teacher, h, w)
                projected = projector(_of_size(student, size).movedim(1, -1)).movedim(-1, 1)
                losses.append(self.kind.loss(projected, _of_size(teacher, size)))
        return torch.stack(losses).mean()


def _of_size(feature_map: torch.Tensor, size: list[int]) -> torch.Tensor:
    """A map (B, C, h, w), averaged to a size if it has another; PyTorch would copy it where it has that size."""
    return feature_map if list(feature_map.shape[2:]) == size else adaptive_avg_pool2d(feature_map, size)


def pairs_of_maps(
    student_maps: list[torch.Tensor], teacher_maps: list[torch.Tensor], every_stage: bool
) -> list[tuple[int, int]]:
    """Indices of the maps to compare: the last ones, or each of the student's and the teacher's of the nearest resolution."""
    if not every_stage:
        return [(len(student_maps) - 1, len(teacher_maps) - 1)]

    def distance(own: int, other: int) -> float:
        ratio = student_maps[own][0, 0].numel() / teacher_maps[other][0, 0].numel()
        return max(ratio, 1 / ratio)

    return [(own, min(range(len(teacher_maps)), key=lambda other: distance(own, other))) for own in range(len(student_maps))]
