"""The deploy form equals the model, for sizes that need padding, for pruned widths and for single heads."""

import copy

import pytest
import torch

from edge.deploy import DeployError, deploy

CASES = {
    "dense": {},
    "one head": {"block_num_heads": [[1], [3, 1]], "block_head_dim": [[8], [8, 8]], "block_mlp_dim": [[24], [40, 8]]},
    "padded patches and windows": {"image_size": [21, 38], "patch_size": 4, "window_size": 3, "depths": [2, 2]},
    "odd maps": {"image_size": 36, "patch_size": 4, "window_size": 4, "depths": [2, 2, 2], "num_heads": [2, 2, 2]},
    "positions, no qkv bias, relu": {"use_absolute_embeddings": True, "qkv_bias": False, "hidden_act": "relu"},
    "values of another width": {"block_value_head_dim": [[4], [8, 16]]},
    "padding masked": {"image_size": [21, 38], "patch_size": 4, "window_size": 3, "depths": [2, 2], "mask_padding": True},
    "rectangular windows": {"image_size": 32, "window_size": [2, 3], "depths": [2, 2]},
    "stage widths": {"stage_dims": [16, 24], "depths": [2, 2]},
    "one stage": {"depths": [2], "num_heads": [4]},
}


@pytest.mark.parametrize("case", CASES)
def test_deploy_form_equals_the_model(make_model, case):
    model = make_model(**CASES[case])
    before = copy.deepcopy(model.state_dict())
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    pixels = torch.rand(1, 3, *model.config.image_height_width)
    normalised = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(deploy(model, mean, std)(pixels), model(normalised).logits, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("changes", "message"), [({"version": 2}, "version 1 only"), ({"norm": "rms"}, "norm 'layer' only")])
def test_models_without_a_deploy_form_are_refused(make_model, changes, message):
    with pytest.raises(DeployError, match=message):
        deploy(make_model(**changes), (0.5,) * 3, (0.5,) * 3)
