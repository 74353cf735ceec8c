"""Configs by name: the published sizes of Swin, Swin V2 and TinyViT, and three small ones for phones.

Each is a function that returns a new `SwinHfConfig`; keywords change its fields, as in `swin_tiny(num_labels=10)`. The
documentation lists their parameters and multiply-accumulate operations.
"""

from .configuration_swin_hf import SwinHfConfig


def swin_tiny(**changes) -> SwinHfConfig:
    """Swin-T (Liu et al. 2021, arXiv:2103.14030, section 3.3)."""
    return _config(changes, embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], drop_path_rate=0.2)


def swin_small(**changes) -> SwinHfConfig:
    """Swin-S."""
    return _config(changes, embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], drop_path_rate=0.3)


def swin_base(**changes) -> SwinHfConfig:
    """Swin-B."""
    return _config(changes, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], drop_path_rate=0.5)


def swin_large(**changes) -> SwinHfConfig:
    """Swin-L."""
    return _config(changes, embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], drop_path_rate=0.2)


def swinv2_tiny(**changes) -> SwinHfConfig:
    """SwinV2-T for 256 x 256 (Liu et al. 2022, arXiv:2111.09883, section 4)."""
    return swin_tiny(**_V2 | changes)


def swinv2_small(**changes) -> SwinHfConfig:
    """SwinV2-S for 256 x 256."""
    return swin_small(**_V2 | changes)


def swinv2_base(**changes) -> SwinHfConfig:
    """SwinV2-B for 256 x 256."""
    return swin_base(**_V2 | changes)


def swinv2_large(**changes) -> SwinHfConfig:
    """SwinV2-L for 256 x 256, as fine-tuned from 192 x 192 and windows of 12."""
    return swin_large(**_V2 | {"window_size": 16, "pretrained_window_sizes": [12, 12, 12, 6]} | changes)


_V2 = {"version": 2, "image_size": 256, "window_size": 8}

_TINY_VIT = {
    **{"stem": "conv", "downsample": "conv", "local_conv": 3, "shift_windows": False, "padding": "tiny_vit"},
    **{"norm_after_pooling": True, "depths": [2, 2, 6, 2], "stage_blocks": ["conv", "window", "window", "window"]},
}


def tiny_vit_5m(**changes) -> SwinHfConfig:
    """TinyViT-5M (Wu et al. 2022, arXiv:2207.10666, section 3.2)."""
    return _tiny_vit(changes, [64, 128, 160, 320], drop_path_rate=0.0)


def tiny_vit_11m(**changes) -> SwinHfConfig:
    """TinyViT-11M."""
    return _tiny_vit(changes, [64, 128, 256, 448], drop_path_rate=0.1)


def tiny_vit_21m(**changes) -> SwinHfConfig:
    """TinyViT-21M for 224 x 224."""
    return _tiny_vit(changes, [96, 192, 384, 576], drop_path_rate=0.2)


def tiny_vit_21m_384(**changes) -> SwinHfConfig:
    """TinyViT-21M for 384 x 384, whose windows have grown with the image."""
    return tiny_vit_21m(**{"image_size": 384, "drop_path_rate": 0.1, "window_size": 12} | changes)


def tiny_vit_21m_512(**changes) -> SwinHfConfig:
    """TinyViT-21M for 512 x 512."""
    return tiny_vit_21m(**{"image_size": 512, "drop_path_rate": 0.1, "window_size": 16} | changes)


def _tiny_vit(changes: dict, dims: list[int], **preset) -> SwinHfConfig:
    """Windows are twice as large in the third stage, whose map they then span."""
    side = changes.get("window_size", 7)
    twice = [2 * length for length in side] if isinstance(side, list | tuple) else 2 * side
    windows = {"window_size": side, "stage_windows": [side, side, twice, side]}
    heads = [dim // 32 for dim in dims]
    return _config(changes, **_TINY_VIT, **windows, embed_dim=dims[0], stage_dims=dims, num_heads=heads, **preset)


# For phones: convolutions where the map is large, windows where it is small, and most blocks in the third stage. They have the
# shape of TinyViT with smaller windows, heads of 32 channels, since the softmax costs by the head, and less depth where blocks
# cost most. `scripts/benchmark.py edge --parts grid` measures what each choice costs.

_EDGE = {
    **{"stem": "conv", "downsample": "conv", "local_conv": 3, "shift_windows": False, "norm_after_pooling": True},
    **{"stage_blocks": ["conv", "window", "window", "window"], "window_size": 7},
    **{"drop_path_rate": 0.0, "weight_init": "fan_in", "zero_init_residual": True},
}


def swin_edge_small(**changes) -> SwinHfConfig:
    """The smallest student, for the weakest phones."""
    return _config(changes, **_EDGE, embed_dim=32, depths=[1, 1, 4, 1], num_heads=[1, 2, 4, 8], mbconv_ratio=3.0)


def swin_edge_medium(**changes) -> SwinHfConfig:
    """The medium student: the one to start with."""
    widths = {"embed_dim": 48, "stage_dims": [48, 96, 160, 320], "num_heads": [1, 3, 5, 10]}
    return _config(changes, **_EDGE, **widths, depths=[1, 1, 6, 2])


def swin_edge_large(**changes) -> SwinHfConfig:
    """The largest student, for when accuracy counts more than a few milliseconds."""
    widths = {"embed_dim": 64, "stage_dims": [64, 128, 256, 448], "num_heads": [2, 4, 8, 14]}
    return _config(changes, **_EDGE, **widths, depths=[1, 2, 6, 2])


def _config(changes: dict, **preset) -> SwinHfConfig:
    return SwinHfConfig(**preset | changes)


PRESETS = {
    preset.__name__: preset
    for preset in (
        swin_tiny,
        swin_small,
        swin_base,
        swin_large,
        swinv2_tiny,
        swinv2_small,
        swinv2_base,
        swinv2_large,
        tiny_vit_5m,
        tiny_vit_11m,
        tiny_vit_21m,
        tiny_vit_21m_384,
        tiny_vit_21m_512,
        swin_edge_small,
        swin_edge_medium,
        swin_edge_large,
    )
}
