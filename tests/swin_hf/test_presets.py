"""The presets against the published sizes, and the README's table against the presets."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from swin_hf import SwinHfForImageClassification
from swin_hf.presets_swin_hf import PRESETS, swin_edge_large, swin_edge_medium, swin_edge_small

README = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
# Millions of parameters and billions of multiply-adds, as the authors' repository lists them for 1,000 classes.
PUBLISHED = {
    "swin_tiny": (28, 4.5),
    "swin_small": (50, 8.7),
    "swin_base": (88, 15.4),
    "swin_large": (197, 34.5),
    "swinv2_tiny": (28, 5.9),
    "swinv2_small": (50, 11.6),
    "swinv2_base": (88, 20.3),
    "swinv2_large": (197, 47.5),
    "tiny_vit_5m": (5.4, 1.3),
    "tiny_vit_11m": (11, 2.0),
    "tiny_vit_21m": (21, 4.3),
    "tiny_vit_21m_384": (21, 13.8),
    "tiny_vit_21m_512": (21, 27.0),
}


def size_of(name: str) -> tuple[float, float]:
    """Millions of parameters and billions of multiply-accumulate operations, with 1,000 classes."""
    config = PRESETS[name](num_labels=1000)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = SwinHfForImageClassification(config).eval()
        model.set_attn_implementation("eager")
        model(torch.zeros(1, 3, config.image_size, config.image_size))
    return model.num_parameters() / 1e6, counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name):
    parameters, macs = size_of(name)
    published, published_macs = PUBLISHED[name]
    assert parameters == pytest.approx(published, abs=0.05 if isinstance(published, float) else 0.55)  # as they are rounded
    assert macs == pytest.approx(published_macs, rel=0.01, abs=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_readme_lists_the_preset_as_it_is(name):
    table = README.split("| preset |")[1].split("\n\n")[0]
    (row,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, image_size, window_size, embed_dim, depths, parameters, macs, _ = (cell.strip() for cell in row.split("|"))
    config = PRESETS[name]()
    assert [int(image_size), int(window_size), int(embed_dim)] == [config.image_size, config.window_size, config.embed_dim]
    assert depths == "-".join(map(str, config.depths))
    assert [parameters, macs] == [f"{size_of(name)[0]:.2f} M", f"{size_of(name)[1]:.2f} G"]


def test_keywords_change_a_preset():
    config = swin_edge_small(num_labels=7, window_size=14, hidden_act="gelu")
    assert (config.num_labels, config.window_size, config.hidden_act, config.embed_dim) == (7, 14, "gelu", 32)
    with pytest.raises(ValueError, match="did you mean window_size"):
        swin_edge_small(windowsize=14)


def test_windows_of_a_tiny_vit_are_twice_as_large_in_its_third_stage():
    assert PRESETS["tiny_vit_21m_384"]().stage_windows == [12, 12, 24, 12]
    assert PRESETS["tiny_vit_21m_512"](window_size=8).stage_windows == [8, 8, 16, 8]
    assert PRESETS["tiny_vit_5m"](window_size=[4, 6]).stage_windows == [[4, 6], [4, 6], [8, 12], [4, 6]]
    assert PRESETS["tiny_vit_5m"](window_size=4, stage_windows=[4, 4, 4, 2]).stage_windows == [4, 4, 4, 2]


@pytest.mark.parametrize("preset", [swin_edge_small, swin_edge_medium, swin_edge_large])
def test_students_are_pure_by_their_settings(preset):
    pure = preset(stem="patch", stage_blocks=None, downsample="merge", local_conv=0, shift_windows=True)
    with torch.device("meta"):
        hybrid, model = SwinHfForImageClassification(preset()), SwinHfForImageClassification(pure)
    convolutions = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Conv2d)]
    assert convolutions == ["swin.embeddings.patch_embeddings.projection"]
    assert sum(isinstance(part, torch.nn.Conv2d) for part in hybrid.modules()) > 10
