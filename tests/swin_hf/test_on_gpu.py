"""The models on a GPU: against stock transformers and their own float64 on the CPU, in all precisions; skipped without one."""

import pytest
import torch
from conftest import KINDS
from test_parity import CASES, stock_and_ours
from torch.nn.functional import cross_entropy

from swin_hf import SwinHfForImageClassification
from swin_hf.explanations import attention_rollout, class_maps, grad_cam

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHIFTED = CASES["shifted windows"]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions in float32 too; cuDNN would compute them in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def error_of(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference, relative to that of a reference in float64."""
    return float((values.detach().double().cpu() - reference).norm() / reference.norm())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_float64_on_the_cpu(make_model, kind, attention):
    size = KINDS[kind].get("image_size", 16)
    model, pixels = make_model(**KINDS[kind], attn_implementation=attention), torch.randn(2, 3, size, size)
    model.double()
    reference = model(pixels.double()).logits
    reference.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.float().cuda()
    logits = model(pixels.cuda()).logits
    logits.square().sum().backward()
    assert error_of(logits, reference.detach()) < 1e-5
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        difference = (parameter.grad.double().cpu() - gradients[name]).norm()
        assert difference < 1e-4 * max(float(gradients[name].norm()), 1e-3 * largest), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("version", [1, 2])
def test_lower_precisions_cost_no_more_than_in_the_stock_models(version, dtype):
    """Under autocast, and with weights of the type itself; a forward pass of ours may round in other places."""
    stock, ours = stock_and_ours(version, SHIFTED)
    stock, ours, pixels = stock.eval(), ours.eval(), torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        reference = stock.double()(pixels.double()).logits
        stock.float().cuda()
        ours.float().cuda()
        pixels = pixels.cuda()
        with torch.autocast("cuda", dtype=dtype):
            errors = [error_of(model(pixels).logits, reference) for model in (ours, stock)]
        whole = [error_of(model.to(dtype)(pixels.to(dtype)).logits, reference) for model in (ours, stock)]
    assert errors[0] < max(1.5 * errors[1], 0.02) and whole[0] < max(1.5 * whole[1], 0.02), (errors, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_moves_between_devices_after_it_was_used(make_model, kind):
    """What inference keeps ready (bias tables of attention, say) moves too."""
    size = KINDS[kind].get("image_size", 16)
    model, pixels = make_model(**KINDS[kind]), torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(pixels).logits
        for device in ("cuda", "cpu", "cuda"):
            assert error_of(model.to(device)(pixels.to(device)).logits, expected.double()) < 1e-5


def test_gradient_checkpointing_changes_no_gradient(make_model):
    model, pixels = make_model(drop_path_rate=0.0).cuda().train(), torch.randn(4, 3, 16, 16, device="cuda")
    gradients = []
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = cross_entropy(model(pixels).logits.float(), torch.tensor([0, 1, 2, 0], device="cuda"))
        loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        model.gradient_checkpointing_enable()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_fp16_with_scaled_gradients_trains(make_config, kind):
    size = KINDS[kind].get("image_size", 16)
    model = SwinHfForImageClassification(make_config(**KINDS[kind], drop_path_rate=0.0)).cuda().train()
    pixels, targets = torch.randn(6, 3, size, size, device="cuda"), torch.arange(6, device="cuda") % 3
    optimiser, scaler, losses = torch.optim.AdamW(model.parameters(), 1e-3), torch.amp.GradScaler(), []
    for _ in range(60):
        optimiser.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = cross_entropy(model(pixels).logits.float(), targets)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_compiled_models_give_the_same_logits(make_model):
    model, pixels = make_model().cuda(), torch.randn(2, 3, 16, 16, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(pixels).logits, model(pixels).logits, rtol=1e-3, atol=1e-4)


def test_explanations_are_those_of_the_cpu(make_model):
    model, pixels, classes = make_model(), torch.randn(2, 3, 16, 16), torch.tensor([0, 2])
    ways = {
        "class maps": lambda device: class_maps(model, pixels.to(device)),
        "Grad-CAM": lambda device: grad_cam(model, pixels.to(device), classes.to(device)),
        "rollout": lambda device: attention_rollout(model, pixels.to(device)),
    }
    expected = {name: way("cpu") for name, way in ways.items()}
    model.cuda()
    for name, way in ways.items():
        torch.testing.assert_close(way("cuda").cpu(), expected[name].detach(), rtol=1e-3, atol=1e-4, msg=name)
