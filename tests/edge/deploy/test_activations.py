"""Every activation of transformers as XNNPACK computes it, in single and in half precision."""

import copy

import numpy as np
import pytest
import torch
from executorch.runtime import Runtime
from torch import nn
from transformers.activations import ACT2FN

from edge.deploy.activations import deploy_activation
from edge.deploy.half import half_activation
from edge.lower.lowering import lower, trace
from edge.lower.recipes import RECIPES

NAMES = sorted(ACT2FN)


class AllActivations(nn.Module):
    """One output for each activation, of a doubled input: the runtime takes no program that computes nothing."""

    def __init__(self, half: bool):
        super().__init__()
        self.half_precision = half
        self.activations = nn.ModuleList(deploy_activation(name, copy.deepcopy(ACT2FN[name])) for name in NAMES)
        if half:
            for activation in self.activations:
                half_activation(activation)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = 2.0 * (x.half() if self.half_precision else x)
        return tuple(activation(x).float() for activation in self.activations)


@pytest.mark.parametrize("recipe", ["fp32", "fp16"])
def test_every_activation_is_computed_whole_and_right(recipe):
    half = recipe == "fp16"
    module = AllActivations(half).eval().requires_grad_(False)
    if half:
        module.half()
    x = torch.cat([torch.linspace(-12, 12, 97), torch.tensor([-100.0, 30.0, 100.0])]).view(1, -1) / 2
    lowered = lower(trace({"forward": (module, x)}), RECIPES[recipe], {})
    outputs = Runtime.get().load_program(lowered.program).load_method("forward").execute([x])
    for name, output in zip(NAMES, outputs):
        expected = ACT2FN[name].float()(2 * x).detach().numpy()
        tolerance = 8e-3 if half else 1e-5  # sqrtsoftplus has the root of what float16 takes for 0
        np.testing.assert_allclose(output.numpy(), expected, rtol=tolerance, atol=tolerance, err_msg=name)
