"""Swin and Swin V2 with the names and shapes of Microsoft's weights, written as plainly as possible: a reference.

Attention is over all pairs of tokens of a map, of which those count that lie in one window and were not brought together by
the shift. It is slow and meant for tiny models.
"""

# L tokens of a map, C channels, h heads, d head width

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear, normalize, softmax

BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")


@dataclass(frozen=True, kw_only=True)
class Shape:
    version: int = 1
    image_size: int = 32
    patch_size: int = 2
    embed_dim: int = 16
    depths: tuple[int, ...] = (2, 2)
    num_heads: tuple[int, ...] = (2, 4)
    window_size: int = 4
    pretrained_windows: tuple[int, ...] = ()  # V2; empty: the windows themselves
    num_classes: int = 5

    def map_side(self, stage: int) -> int:
        return self.image_size // self.patch_size // 2**stage

    def window(self, stage: int) -> int:
        return min(self.window_size, self.map_side(stage))


def original_weights(shape: Shape) -> dict[str, torch.Tensor]:
    """Random weights by their original names, with the buffers that lie beside them in Microsoft's files."""
    weights: dict[str, torch.Tensor] = {}

    def add(name: str, *size: int, std: float = 0.15) -> None:
        weights[name] = std * torch.randn(*size)

    def add_norm(name: str, dim: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + 0.2 * torch.randn(dim), 0.1 * torch.randn(dim)

    add("patch_embed.proj.weight", shape.embed_dim, 3, shape.patch_size, shape.patch_size)
    add("patch_embed.proj.bias", shape.embed_dim)
    add_norm("patch_embed.norm", shape.embed_dim)
    for stage, depth in enumerate(shape.depths):
        C, heads, window = shape.embed_dim * 2**stage, shape.num_heads[stage], shape.window(stage)
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            add(f"{block}.attn.qkv.weight", 3 * C, C)
            add(f"{block}.attn.proj.weight", C, C)
            add(f"{block}.attn.proj.bias", C)
            for layer, (inside, outside) in {"fc1": (C, 4 * C), "fc2": (4 * C, C)}.items():
                add(f"{block}.mlp.{layer}.weight", outside, inside)
                add(f"{block}.mlp.{layer}.bias", outside)
            add_norm(f"{block}.norm1", C)
            add_norm(f"{block}.norm2", C)
            weights[f"{block}.attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.long)
            if number % 2 and shape.map_side(stage) > window:
                num_windows = (shape.map_side(stage) // window) ** 2
                weights[f"{block}.attn_mask"] = torch.zeros(num_windows, window**2, window**2)
            if shape.version == 1:
                add(f"{block}.attn.qkv.bias", 3 * C)
                add(f"{block}.attn.relative_position_bias_table", (2 * window - 1) ** 2, heads, std=0.5)
                continue
            add(f"{block}.attn.q_bias", C)
            add(f"{block}.attn.v_bias", C)
            weights[f"{block}.attn.logit_scale"] = math.log(10) + 0.3 * torch.randn(heads, 1, 1)
            add(f"{block}.attn.cpb_mlp.0.weight", 512, 2, std=1.0)
            add(f"{block}.attn.cpb_mlp.0.bias", 512)
            add(f"{block}.attn.cpb_mlp.2.weight", heads, 512)
            weights[f"{block}.attn.relative_coords_table"] = coordinates(shape, stage)[None]
        if stage + 1 < len(shape.depths):
            add(f"layers.{stage}.downsample.reduction.weight", 2 * C, 4 * C)
            add_norm(f"layers.{stage}.downsample.norm", 4 * C if shape.version == 1 else 2 * C)
    C = shape.embed_dim * 2 ** (len(shape.depths) - 1)
    add_norm("norm", C)
    add("head.weight", shape.num_classes, C)
    add("head.bias", shape.num_classes)
    return weights


def timm_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by their original names as today's timm has them: no buffers, merging at the start of a stage, head.fc."""
    renamed = {}
    for name, weight in weights.items():
        if name.endswith(BUFFERS):
            continue
        if ".downsample." in name:
            stage, rest = name.removeprefix("layers.").split(".", 1)
            name = f"layers.{int(stage) + 1}.{rest}"
        renamed[name.replace("head.", "head.fc.")] = weight
    return renamed


def coordinates(shape: Shape, stage: int) -> torch.Tensor:
    """V2: log-spaced coordinates (2w-1, 2w-1, 2) of all offsets inside a window."""
    window = shape.window(stage)
    unit = shape.pretrained_windows[stage] if shape.pretrained_windows else window
    offsets = torch.arange(1 - window, window).float()
    scaled = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1) / (unit - 1) * 8
    return scaled.sign() * (scaled.abs() + 1).log2() / math.log2(8)


def original_logits(weights: dict[str, torch.Tensor], images: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Logits of images (B, 3, height, width)."""
    tokens = last_tokens(weights, images, shape)
    return linear(tokens.mean(dim=(1, 2)), weights["head.weight"], weights["head.bias"])


def last_tokens(weights: dict[str, torch.Tensor], images: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The last map (B, H, W, C), normalised."""
    norm = _Norms(weights)
    projected = conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=shape.patch_size)
    tokens = norm("patch_embed.norm", projected.permute(0, 2, 3, 1))
    for stage, depth in enumerate(shape.depths):
        for number in range(depth):
            tokens = _block(weights, f"layers.{stage}.blocks.{number}", tokens, shape, stage, shifted=number % 2 == 1)
        if stage + 1 < len(shape.depths):
            merged = f"layers.{stage}.downsample"
            corners = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            groups, reduction = torch.cat(corners, dim=-1), weights[f"{merged}.reduction.weight"]
            if shape.version == 1:
                tokens = linear(norm(f"{merged}.norm", groups), reduction)
            else:
                tokens = norm(f"{merged}.norm", linear(groups, reduction))
    return norm("norm", tokens)


class _Norms:
    def __init__(self, weights: dict[str, torch.Tensor]):
        self.weights = weights

    def __call__(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        weight = self.weights[f"{name}.weight"]
        return layer_norm(tokens, weight.shape, weight, self.weights[f"{name}.bias"])


def _block(weights: dict, block: str, tokens: torch.Tensor, shape: Shape, stage: int, shifted: bool) -> torch.Tensor:
    norm = _Norms(weights)

    def mlp(x: torch.Tensor) -> torch.Tensor:
        hidden = gelu(linear(x, weights[f"{block}.mlp.fc1.weight"], weights[f"{block}.mlp.fc1.bias"]))
        return linear(hidden, weights[f"{block}.mlp.fc2.weight"], weights[f"{block}.mlp.fc2.bias"])

    if shape.version == 1:
        tokens = tokens + _attention(weights, f"{block}.attn", norm(f"{block}.norm1", tokens), shape, stage, shifted)
        return tokens + mlp(norm(f"{block}.norm2", tokens))
    tokens = tokens + norm(f"{block}.norm1", _attention(weights, f"{block}.attn", tokens, shape, stage, shifted))
    return tokens + norm(f"{block}.norm2", mlp(tokens))


def _attention(weights: dict, name: str, tokens: torch.Tensor, shape: Shape, stage: int, shifted: bool) -> torch.Tensor:
    B, side, _, C = tokens.shape
    heads, window = shape.num_heads[stage], shape.window(stage)
    shift = window // 2 if shifted and side > window else 0
    place = torch.arange(side * side)
    rows, columns = place // side, place % side
    down, right = rows[:, None] - rows, columns[:, None] - columns  # (L, L), offset of the query from the key
    windows = ((rows - shift) % side // window) * side + (columns - shift) % side // window
    together = (windows[:, None] == windows) & (down.abs() < window) & (right.abs() < window)
    offset = (
        (down.clamp(1 - window, window - 1) + window - 1) * (2 * window - 1) + right.clamp(1 - window, window - 1) + window - 1
    )

    bias = weights.get(f"{name}.qkv.bias")
    if shape.version == 2:
        bias = torch.cat([weights[f"{name}.q_bias"], torch.zeros(C), weights[f"{name}.v_bias"]])
    qkv = linear(tokens.flatten(1, 2), weights[f"{name}.qkv.weight"], bias)
    query, key, value = qkv.view(B, side * side, 3, heads, C // heads).permute(2, 0, 3, 1, 4)  # (B, h, L, d)
    if shape.version == 1:
        table = weights[f"{name}.relative_position_bias_table"]
        scores = query @ key.transpose(2, 3) / math.sqrt(C // heads)
    else:
        hidden = linear(coordinates(shape, stage), weights[f"{name}.cpb_mlp.0.weight"], weights[f"{name}.cpb_mlp.0.bias"])
        table = 16 * torch.sigmoid(linear(hidden.relu(), weights[f"{name}.cpb_mlp.2.weight"])).view(-1, heads)
        scale = weights[f"{name}.logit_scale"].clamp(max=math.log(100)).exp()
        scores = normalize(query, dim=-1) @ normalize(key, dim=-1).transpose(2, 3) * scale
    scores = scores + table[offset].permute(2, 0, 1)
    mixed = softmax(scores.masked_fill(~together, -math.inf), dim=-1) @ value
    mixed = mixed.transpose(1, 2).reshape(B, side, side, C)
    return linear(mixed, weights[f"{name}.proj.weight"], weights[f"{name}.proj.bias"])
