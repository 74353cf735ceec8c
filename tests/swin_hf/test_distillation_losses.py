"""Distillation losses: values by hand, definitions written out, pixels as images, and where the gradient leads."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from swin_hf.distillation_losses import (
    LOSSES,
    SHORTEST,
    dist,
    hard_labels,
    kl_divergence,
    nkd,
    normalised_features,
    stage_hints,
)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_divergence_by_hand(temperature):
    # Logits (T log p, 0) give the probabilities p / (1 + p) and 1 / (1 + p) at the temperature T: 3/4 and 1/4 of the teacher,
    # 1/2 and 1/2 of the student.
    teacher, student = torch.tensor([[temperature * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = temperature**2 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert kl_divergence(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)
    # The other way round the divergence is another one.
    expected = temperature**2 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert kl_divergence(teacher, student, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_kl_divergence_of_maps_is_the_mean_of_their_pixels():
    student, teacher = torch.randn(2, 2, 5, 3, 4)  # (B, K, H, W) each
    pixels = [
        kl_divergence(student[image, :, row, column][None], teacher[image, :, row, column][None], 2.0)
        for image in range(2)
        for row in range(3)
        for column in range(4)
    ]
    torch.testing.assert_close(kl_divergence(student, teacher, 2.0), torch.stack(pixels).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_divergence_is_that_of_pytorch(temperature):
    student, teacher = torch.randn(2, 6, 5)  # (B, K) each
    log_probabilities = [(logits / temperature).log_softmax(dim=1) for logits in (student, teacher)]
    expected = torch.nn.functional.kl_div(*log_probabilities, reduction="batchmean", log_target=True)
    torch.testing.assert_close(kl_divergence(student, teacher, temperature), temperature**2 * expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_dist_is_one_minus_the_correlations(temperature):
    student, teacher = np.random.default_rng(0).normal(size=(2, 7, 4))
    first, second = (softmax(logits / temperature, axis=1) for logits in (student, teacher))
    inter = np.mean([1 - np.corrcoef(first[image], second[image])[0, 1] for image in range(7)])
    intra = np.mean([1 - np.corrcoef(first[:, label], second[:, label])[0, 1] for label in range(4)])
    actual = dist(torch.tensor(student), torch.tensor(teacher), temperature).item()
    assert actual == pytest.approx(temperature**2 * (inter + intra), rel=1e-5)


def test_dist_of_opposite_probabilities_is_its_largest_value():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert dist(logits, logits.flip(1)).item() == pytest.approx(4, abs=1e-5)


def test_hard_labels_by_hand():
    # The teacher's first classes are 1 and 0, to which the student gives 1/4 and 1/2.
    student = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    teacher = torch.tensor([[0.1, 0.2], [5.0, 4.0]])
    assert hard_labels(student, teacher).item() == pytest.approx((math.log(4) + math.log(2)) / 2, rel=1e-6)


def nkd_of_image(student: np.ndarray, teacher: np.ndarray, label: int, temperature: float, gamma: float) -> float:
    others = [number for number in range(len(student)) if number != label]
    own = -softmax(teacher)[label] * log_softmax(student)[label]
    weights = softmax(teacher[others] / temperature)
    return own - gamma * temperature**2 * float(weights @ log_softmax(student[others] / temperature))


def test_nkd_by_hand():
    # All classes alike: of 3, the class has 1/3, and each of the others a half of the rest.
    expected = math.log(3) / 3 + 1.5 * math.log(2)
    assert nkd(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([1])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_nkd_of_images_of_mixtures_and_of_pixels(temperature):
    random = np.random.default_rng(1)
    student, teacher, labels = *random.normal(size=(2, 6, 4)), random.integers(0, 4, 6)
    each = [nkd_of_image(student[i], teacher[i], labels[i], temperature, 1.5) for i in range(6)]
    logits = torch.tensor(student), torch.tensor(teacher)
    targets = torch.tensor(labels)
    assert nkd(*logits, targets, temperature).item() == pytest.approx(np.mean(each), rel=1e-5)
    mirrored = [nkd_of_image(student[i], teacher[i], labels[5 - i], temperature, 1.5) for i in range(6)]
    one_hot = torch.nn.functional.one_hot(targets, 4).double()
    mixed = nkd(*logits, one_hot.lerp(one_hot.flip(0), 0.3), temperature)
    assert mixed.item() == pytest.approx(0.7 * np.mean(each) + 0.3 * np.mean(mirrored), rel=1e-5)
    found = [label if i % 2 else int(teacher[i].argmax()) for i, label in enumerate(labels)]  # every other one has no class
    each_found = [nkd_of_image(student[i], teacher[i], found[i], temperature, 1.5) for i in range(6)]
    known = torch.arange(6) % 2 == 1
    for without in (torch.where(known, targets, -1), one_hot * known[:, None]):
        assert nkd(*logits, without, temperature).item() == pytest.approx(np.mean(each_found), rel=1e-5)
    maps = [values.view(2, 3, 1, 4).permute(0, 3, 1, 2) for values in logits]
    classes = targets.view(2, 3, 1).clone()
    assert nkd(*maps, classes, temperature).item() == pytest.approx(np.mean(each), rel=1e-5)
    classes[1, 2, 0] = 255
    assert nkd(*maps, classes, temperature).item() == pytest.approx(np.mean(each[:5]), rel=1e-5)


def test_class_255_of_images_is_a_class():
    student, teacher, label = *torch.randn(2, 1, 300), torch.tensor([255])
    one_hot = torch.nn.functional.one_hot(label, 300).float()
    torch.testing.assert_close(nkd(student, teacher, label), nkd(student, teacher, one_hot))


def test_nkd_without_any_known_pixel_is_nothing():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = nkd(logits, torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("name", ["kl", "dist"])
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4)])
def test_losses_of_equal_logits_are_zero(name, shape):
    logits = torch.randn(shape)
    assert LOSSES[name](logits, logits.clone(), None, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert LOSSES[name](logits, torch.randn(shape), None, 2.0).item() > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_pulls_the_student_towards_the_teacher(name):
    student, teacher, targets = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5), torch.arange(6) % 5
    before = LOSSES[name](student, teacher, targets, 2.0)
    (gradient,) = torch.autograd.grad(before, student)
    assert LOSSES[name](student - 0.05 * gradient, teacher, targets, 2.0) < before


def test_kl_divergence_pulls_class_by_class():
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    (gradient,) = torch.autograd.grad(kl_divergence(student, teacher, 2.0), student)
    # Down the gradient, the class in which the student lags most behind the teacher gains, and the one most ahead loses.
    ahead = (student / 2).softmax(dim=1) - (teacher / 2).softmax(dim=1)
    rows = torch.arange(6)
    assert (gradient[rows, ahead.argmin(dim=1)] < 0).all() and (gradient[rows, ahead.argmax(dim=1)] > 0).all()


def test_normalised_features_by_hand():
    # One position: the teacher's channels (1, 3) are standardised to (-1, 1). Differences 0.5 and 4 cost 0.5^2 / 4 and 4 - 1.
    teacher, student = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), torch.tensor([-0.5, 5.0]).view(1, 2, 1, 1)
    assert normalised_features(student, teacher).item() == pytest.approx((0.0625 + 3) / 2, rel=1e-4)
    torch.testing.assert_close(normalised_features(student, 7 * teacher + 2), normalised_features(student, teacher))


def test_stage_hints_by_hand():
    # Two positions: a right angle (distance squared 2) and opposite directions (4); lengths do not matter.
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).T.view(1, 2, 1, 2)
    teacher = torch.tensor([[0.0, 5.0], [0.0, -1.0]]).T.view(1, 2, 1, 2)
    assert stage_hints(student, teacher).item() == pytest.approx(3, rel=1e-6)
    assert stage_hints(student, 4 * student).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e6])
def test_stage_hints_are_those_of_normalised_maps(scale):
    student, teacher = (scale * torch.randn(2, 5, 3, 4)).requires_grad_(), torch.randn(2, 5, 3, 4)
    with torch.no_grad():
        student[0, :, 0, 0] = 0  # without a direction
        teacher[1, :, 1] = 0
    directions = [torch.nn.functional.normalize(maps, dim=1) for maps in (student, teacher)]
    expected = (directions[0] - directions[1]).square().sum(dim=1).mean()
    (expected_gradient,) = torch.autograd.grad(expected, student)
    (gradient,) = torch.autograd.grad(loss := stage_hints(student, teacher), student)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6 / max(scale, SHORTEST))
