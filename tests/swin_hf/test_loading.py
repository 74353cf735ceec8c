"""Loading is safe: nothing random, nothing garbage, no surprise in the dtype; what is missing is said and initialised."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import MIXED, TINY_VIT
from safetensors import safe_open
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling
from transformers.activations import ACT2FN

from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfModel,
    SwinHfUperNetConfig,
)

WIDTHS = {"block_num_heads": [[1], [3, 2]], "block_head_dim": [[8], [8, 8]], "block_mlp_dim": [[24], [40, 8]]}
KINDS = {
    "V1": {},
    "V2": {"version": 2},
    "pruned": WIDTHS,
    "V2 with other widths": WIDTHS | {"version": 2, "block_value_head_dim": [[4], [16, 8]], "stage_dims": [16, 40]},
    "batch norm, rectangles": {
        "norm": "batch",
        "window_size": [4, 2],
        "image_size": [16, 24],
        "use_absolute_embeddings": True,
    },
    "TinyViT": TINY_VIT,
    "mixed": MIXED,
}


IN_A_FRESH_PROCESS = """
import sys, torch, swin_hf
from transformers import AutoModelForImageClassification

pixel_values, logits = torch.load(sys.argv[1])
different = [
    folder
    for folder, expected in logits.items()
    if not torch.equal(AutoModelForImageClassification.from_pretrained(folder)(pixel_values).logits, expected)
]
sys.exit(f"different: {different}" if different else 0)
"""


def test_reload_in_a_fresh_process_gives_equal_logits(make_model, tmp_path):
    pixel_values, logits = torch.randn(2, 3, 20, 20), {}
    for kind, changes in KINDS.items():
        model = make_model(**changes)
        for buffer in model.buffers():  # statistics of batch norms
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
        model.save_pretrained(tmp_path / kind)
        logits[str(tmp_path / kind)] = model(pixel_values).logits
    torch.save((pixel_values, logits), tmp_path / "expected.pt")
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("hidden_act", list(ACT2FN))
def test_every_activation_trains_and_reloads(make_model, tmp_path, hidden_act):
    model, pixel_values = make_model(hidden_act=hidden_act), torch.randn(2, 3, 16, 16)
    model(pixel_values, labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    loaded, info = SwinHfForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)


def test_loaded_weights_lie_where_new_ones_would(make_model, make_config, tmp_path):
    """Of 64 bytes each, PyTorch's own alignment: elsewhere, kernels round in another way on some processors."""
    backbone = make_config(out_features=["stage1", "stage2"])
    heads = {"hidden_size": 9, "auxiliary_channels": 7, "use_auxiliary_head": False}
    segmenter = SwinHfForSemanticSegmentation(SwinHfUperNetConfig(backbone_config=backbone, num_labels=3, **heads))
    for model in (make_model(num_labels=3, norm="batch"), segmenter):
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert any(file.get_tensor(name).data_ptr() % 64 for name in file.keys())  # noqa: SIM118  it is no dict
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        tensors = [*loaded.state_dict().items(), *type(model).from_pretrained(tmp_path).state_dict().items()]
        for name, tensor in tensors:
            assert tensor.data_ptr() % 64 == 0 and torch.equal(tensor, model.state_dict()[name]), name


def test_auto_classes_know_the_models(checkpoint, make_config):
    assert type(AutoConfig.from_pretrained(checkpoint)) is SwinHfConfig
    assert type(AutoModel.from_pretrained(checkpoint)) is SwinHfModel
    assert type(AutoModelForImageClassification.from_pretrained(checkpoint)) is SwinHfForImageClassification
    config = make_config(encoder_stride=4)
    assert type(AutoModelForMaskedImageModeling.from_config(config)) is SwinHfForMaskedImageModeling
    assert type(AutoBackbone.from_config(config)) is SwinHfBackbone


@pytest.mark.parametrize("version", [1, 2])
def test_missing_weights_are_named_and_initialised(make_model, tmp_path, version):
    model = make_model(version=version)
    missing = {name for name in model.state_dict() if "layers.1.blocks.0" in name}
    kept = {name: weight for name, weight in model.state_dict().items() if name not in missing}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded, info = SwinHfForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == missing
    fresh = SwinHfForImageClassification(model.config).state_dict()
    for name, weight in loaded.state_dict().items():
        if name not in missing:
            assert torch.equal(weight, model.state_dict()[name])
        elif fresh[name].std() < 1e-6:  # norms, biases, tables, scales: constants
            torch.testing.assert_close(weight, fresh[name])
        elif weight.numel() > 100:
            assert weight.std().item() == pytest.approx(fresh[name].std().item(), rel=0.35)


def test_new_head_on_a_loaded_body(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = SwinHfForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (7, 32)
    assert loaded.classifier.weight.std().item() == pytest.approx(32**-0.5, rel=0.3)  # fan-in
    body, expected = loaded.swin.state_dict(), model.swin.state_dict()
    assert all(torch.equal(body[name], weight) for name, weight in expected.items())


def test_masked_image_model_becomes_a_classifier(make_config, tmp_path):
    pretrained = SwinHfForMaskedImageModeling(make_config(encoder_stride=4))
    pretrained.save_pretrained(tmp_path)
    model, info = SwinHfForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    pixel_values = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = pretrained.eval().swin(pixel_values).last_hidden_state
        torch.testing.assert_close(model.swin(pixel_values).last_hidden_state, expected)


def test_classes_derived_from_ours_are_saved_as_themselves(make_config, tmp_path):
    class OwnConfig(SwinHfConfig):
        model_type = "own_swin"

    class OwnModel(SwinHfForImageClassification):
        config_class = OwnConfig

    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 4}
    OwnModel(OwnConfig(**sizes)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert saved["AutoModelForImageClassification"].endswith(".OwnModel") and "AutoModel" not in saved


def test_dtype_is_what_was_asked_for(make_model, tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert SwinHfForImageClassification.from_pretrained(tmp_path).dtype == torch.bfloat16
    model = SwinHfForImageClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(torch.randn(1, 3, 16, 16)).logits.dtype == torch.float32


def test_initialisation_by_hand(make_config):
    model = SwinHfForImageClassification(SwinHfConfig(embed_dim=64, num_heads=[2, 4, 8, 16], weight_init="fan_in"))
    assert model.swin.encoder.layers[0].blocks[0].mlp.fc2.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    model = SwinHfForImageClassification(SwinHfConfig(version=2))
    block = model.swin.encoder.layers[2].blocks[0]
    assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.logit_scale.exp().flatten().tolist() == pytest.approx([10.0] * 12)
    assert block.attention.k_proj.bias is None
    table = SwinHfForImageClassification(make_config()).swin.encoder.layers[0].blocks[0].attention.relative_position_bias
    assert not table.relative_position_bias_table.any()


@pytest.mark.parametrize("road", ["constructor", "auto class", "lacking weights"])
@pytest.mark.parametrize("weight_init", ["normal", "fan_in"])
def test_convolutions_are_initialised_for_the_norms_behind_them(make_config, tmp_path, road, weight_init):
    config = make_config(**TINY_VIT | {"embed_dim": 32, "weight_init": weight_init})
    if road == "constructor":
        model = SwinHfForImageClassification(config)
    elif road == "auto class":
        model = AutoModelForImageClassification.from_config(config)
    else:
        whole = SwinHfForImageClassification(config)
        torch.nn.init.ones_(whole.swin.encoder.layers[0].blocks[0].project.norm.weight)
        kept = {name: weight for name, weight in whole.state_dict().items() if "classifier" in name}
        whole.save_pretrained(tmp_path, state_dict=kept)
        model = SwinHfForImageClassification.from_pretrained(tmp_path)
    block, downsample = model.swin.encoder.layers[0].blocks[0], model.swin.encoder.layers[0].downsample
    for layer in (block.expand, block.depthwise, block.project, downsample.depthwise):
        fan_in = layer.conv.weight[0].numel()
        assert layer.conv.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.15)
    assert not block.project.norm.weight.any()
    scales = (block.expand, block.depthwise, downsample.expand, downsample.depthwise, downsample.project)
    assert all(torch.equal(layer.norm.weight, torch.ones_like(layer.norm.weight)) for layer in scales)
    feature_map = torch.randn(1, 4, 4, 32)
    torch.testing.assert_close(block(feature_map)[0], block.activation_fn(feature_map))  # the branch adds nothing yet
    std = 0.02 if weight_init == "normal" else 32**-0.5
    assert model.swin.encoder.layers[1].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(std, rel=0.5)


def test_weights_of_activations_are_initialised_when_a_file_lacks_them(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    for name in ("prelu", "xielu"):
        model = SwinHfForImageClassification.from_pretrained(tmp_path, hidden_act=name)
        expected, found = ACT2FN[name].state_dict(), model.swin.encoder.layers[0].blocks[0].mlp.activation_fn.state_dict()
        assert expected and all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("changes", [{}, {"version": 2}, {"norm": "rms"}, TINY_VIT], ids=["V1", "V2", "RMSNorm", "TinyViT"])
def test_branches_that_start_at_zero_add_nothing(make_config, changes):
    changes = changes | ({"local_conv": 0} if "local_conv" in changes else {})  # which is in no branch
    feature_map = torch.randn(2, 4, 4, 32)
    for starts_at_zero in (True, False):
        model = SwinHfForImageClassification(make_config(**changes, zero_init_residual=starts_at_zero))
        block = model.swin.encoder.layers[1].blocks[0]
        assert torch.equal(block(feature_map)[0], feature_map) == starts_at_zero
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss = model.train()(torch.randn(4, 3, 16, 16), labels=torch.tensor([0, 1, 2, 0])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(parameter.grad.any() for parameter in block.parameters() if parameter.numel() > 100)  # all learn in time


WITHOUT_SWIN_HF = """
import sys

sys.modules["swin_hf"] = None  # as if it were not installed
import torch
from transformers import AutoModelForImageClassification

given, found = sys.argv[1:]
images, cases = torch.load(given)
logits = {}
for folder, sizes in cases.items():
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, **sizes).eval()
    logits[folder] = model(images).logits.detach()
torch.save(logits, found)
"""


def test_code_in_a_folder_resizes_as_the_package_does(make_model, tmp_path):
    images = torch.randn(1, 3, 24, 24)
    kinds = {
        "V1": ({}, {"image_size": 24, "window_size": 6}),
        "V2": ({"version": 2, "image_size": 32, "window_size": 8}, {"image_size": 64}),
        "TinyViT": (TINY_VIT, {"stage_windows": [3, 5]}),
    }
    cases, expected = {}, {}
    for kind, (changes, sizes) in kinds.items():
        model, folder = make_model(**changes), str(tmp_path / kind)
        model.save_pretrained(folder)
        cases[folder], expected[folder] = sizes, model.resize(**sizes)(images).logits
    torch.save((images, cases), tmp_path / "given.pt")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", WITHOUT_SWIN_HF, str(tmp_path / "given.pt"), str(tmp_path / "found.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), expected)
