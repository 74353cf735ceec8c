"""Models recorded by PyTorch's tools, copied and saved: the numbers stay, also for images of other sizes."""

import copy
import io
import pickle

import pytest
import torch
from conftest import MIXED, TINY_VIT
from torch.utils._pytree import tree_leaves

from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfForSemanticSegmentation,
    SwinHfModel,
    SwinHfUperNetConfig,
)
from swin_hf.windows import attention_mask, log_spaced_offsets, relative_position_index, shifted_token_order

SIZES = [(2, 3, 24, 24), (3, 3, 24, 24), (1, 3, 32, 48), (2, 3, 27, 35)]  # no window spans a map; the last is padded


def upernet(config: SwinHfConfig) -> SwinHfForSemanticSegmentation:
    config.set_output_features_output_indices(out_features=["stage1", "stage2"], out_indices=None)
    return SwinHfForSemanticSegmentation(
        SwinHfUperNetConfig(backbone_config=config, num_labels=3, use_auxiliary_head=False, hidden_size=8)
    )


MODELS = {
    "V1": (SwinHfForImageClassification, {}),
    "V2": (SwinHfForImageClassification, {"version": 2}),
    "TinyViT": (SwinHfForImageClassification, TINY_VIT),
    "mixed": (SwinHfForImageClassification, MIXED),
    "masked padding": (SwinHfForImageClassification, {"mask_padding": True}),
    "absolute positions": (SwinHfForImageClassification, {"use_absolute_embeddings": True}),
    "encoder": (SwinHfModel, {}),
    "backbone": (SwinHfBackbone, {"out_features": ["stage1", "stage2"]}),
    "masked images": (SwinHfForMaskedImageModeling, {"encoder_stride": 4}),
    "segmentation": (upernet, {}),
}


def tensors_of(output) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(dict(output) if isinstance(output, dict) else output) if torch.is_tensor(leaf)]


def assert_same(output, expected, **tolerance):
    for one, other in zip(tensors_of(output), tensors_of(expected), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.fixture
def no_constants():
    """As in a new process: no constant was built before."""
    for function in (attention_mask, log_spaced_offsets, relative_position_index, shifted_token_order):
        function.remembered.cache_clear()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and warns of every size that decides something
def test_traced_model_can_be_saved_and_takes_other_sizes(make_config, no_constants, name, attention):
    build, changes = MODELS[name]
    model = build(make_config(**changes)).eval()
    model.set_attn_implementation(attention)
    traced = torch.jit.trace(model, torch.randn(SIZES[0]), strict=False)  # which traces twice and compares
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for size in SIZES:
        pixel_values = torch.randn(size)
        assert_same(loaded(pixel_values), model(pixel_values), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_traced_model_has_the_same_gradients(make_model):
    model, pixel_values = make_model(), torch.randn(2, 3, 24, 24)
    traced = torch.jit.trace(model, pixel_values, strict=False)
    model(pixel_values).logits.square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    traced(pixel_values)["logits"].square().sum().backward()
    assert_same([parameter.grad for parameter in model.parameters()], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["V1", "V2", "masked images", "encoder", "backbone"])
def test_config_can_ask_for_tuples(make_config, name):
    build, changes = MODELS[name]
    model, pixel_values = build(make_config(**changes)).eval(), torch.randn(SIZES[0])
    expected = model(pixel_values).to_tuple()
    model.config.return_dict = False
    output = model(pixel_values)
    assert isinstance(output, tuple)
    assert_same(output, expected)


def test_a_backbone_that_asks_for_tuples_serves_a_segmenter(make_config, tmp_path):
    build, changes = MODELS["segmentation"]
    model, pixel_values = build(make_config(**changes)).eval(), torch.randn(SIZES[0])
    expected = model(pixel_values).logits
    model.config.backbone_config.return_dict = False
    model.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path).eval()(pixel_values).logits, expected)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("train", [False, True])
def test_one_more_compilation_serves_all_other_sizes(make_model, version, train):
    model = make_model(version=version, depths=[2], num_heads=[2], drop_path_rate=0.0)
    model.train(train)
    shapes = []

    def record(graph, example_inputs):
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        shapes.append([value.shape for value in values if isinstance(value, torch.Tensor)])
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=record, fullgraph=True)
    with torch.set_grad_enabled(train):
        for side in (24, 32, 48, 64):
            pixel_values = torch.randn(2, 3, side, side)
            assert_same(compiled(pixel_values), model(pixel_values))
    assert len(shapes) == 2
    # Sizes that build upon each other, block by block, take minutes to simplify: the window's must be numbers, the map's
    # short expressions of the image's.
    texts = {str(length) for shape in shapes[1] for length in shape}
    assert not [text for text in texts if "Min" in text or "Mod" in text]
    assert max(map(len, texts)) < 100


def test_exported_program_takes_other_batches_and_sizes(make_model):
    model, sides = make_model(depths=[2], num_heads=[2]), torch.export.Dim.DYNAMIC
    batch = torch.export.Dim("batch", min=1, max=64)
    example = torch.randn(2, 3, 24, 32)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch, 2: sides, 3: sides},)).module()
    for size in [(2, 3, 24, 32), (5, 3, 32, 24), (3, 3, 40, 40)]:
        pixel_values = torch.randn(size)
        assert_same(program(pixel_values), model(pixel_values), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_forward_derivative_agrees_with_the_backward_one(make_model, version):
    model = make_model(version=version).double()
    pixel_values, tangent = torch.randn(2, 2, 3, 24, 24, dtype=torch.float64).unbind()
    model.set_attn_implementation("eager")

    def logits(pixels):
        return model(pixels).logits

    output, forwards = torch.func.jvp(logits, (pixel_values,), (tangent,))
    weights = torch.randn_like(output)
    (backwards,) = torch.func.vjp(logits, pixel_values)[1](weights)
    torch.testing.assert_close((forwards * weights).sum(), (backwards * tangent).sum())


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save])
def test_used_model_can_be_copied(make_model, copied):
    model, pixel_values = make_model(), torch.randn(2, 3, 24, 24)
    expected = model(pixel_values).logits
    assert torch.equal(copied(model)(pixel_values).logits, expected)
