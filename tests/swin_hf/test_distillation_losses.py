"""Distillation losses: values by hand, pixels as images, PyTorch's own divergence, and where the gradient leads."""

import math

import pytest
import torch

from swin_hf.distillation_losses import LOSSES, kl_divergence


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


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4)])
def test_every_loss_is_zero_where_the_logits_are_equal(name, shape):
    logits = torch.randn(shape)
    assert LOSSES[name](logits, logits.clone(), 2.0).item() == pytest.approx(0, abs=1e-6)
    assert LOSSES[name](logits, torch.randn(shape), 2.0).item() > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_pulls_the_student_towards_the_teacher(name):
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    before = LOSSES[name](student, teacher, 2.0)
    (gradient,) = torch.autograd.grad(before, student)
    # Down the gradient, the class in which the student lags most behind the teacher gains, and the one most ahead loses.
    ahead = (student / 2).softmax(dim=1) - (teacher / 2).softmax(dim=1)
    rows = torch.arange(6)
    assert (gradient[rows, ahead.argmin(dim=1)] < 0).all() and (gradient[rows, ahead.argmax(dim=1)] > 0).all()
    after = LOSSES[name](student - 0.1 * gradient, teacher, 2.0)
    assert after < before
