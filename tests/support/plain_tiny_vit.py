"""TinyViT with the names and shapes of timm's weights, written as plainly as possible: a reference.

Each window is computed alone, and the bias of each pair of its tokens is looked up by its distance. It is slow and meant for
tiny models.
"""

# C channels, h heads, d head width

from dataclasses import dataclass
from itertools import product

import torch
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, linear, pad


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    dims: tuple[int, ...] = (16, 24, 32)
    depths: tuple[int, ...] = (1, 2, 1)
    num_heads: tuple[int, ...] = (1, 3, 2)
    windows: tuple[int, ...] = (4, 4, 3)
    mlp_ratio: int = 3
    mbconv_ratio: int = 2
    kernel: int = 3
    num_classes: int = 5


def tiny_vit_weights(shape: TinyShape) -> dict[str, torch.Tensor]:
    """Random weights by their names in timm."""
    weights: dict[str, torch.Tensor] = {}

    def add_conv(name: str, dim: int, out_dim: int, kernel: int = 1, groups: int = 1) -> None:
        weights[f"{name}.conv.weight"] = torch.randn(out_dim, dim // groups, kernel, kernel) / (dim // groups) ** 0.5 / kernel
        weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"] = 1 + 0.2 * torch.randn(out_dim), 0.1 * torch.randn(out_dim)
        weights[f"{name}.bn.running_mean"] = 0.1 * torch.randn(out_dim)
        weights[f"{name}.bn.running_var"] = 0.5 + torch.rand(out_dim)
        weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)

    def add_linear(name: str, dim: int, out_dim: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 0.2 * torch.randn(out_dim, dim), 0.1 * torch.randn(out_dim)

    def add_norm(name: str, dim: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + 0.2 * torch.randn(dim), 0.1 * torch.randn(dim)

    add_conv("patch_embed.conv1", 3, shape.dims[0] // 2, 3)
    add_conv("patch_embed.conv2", shape.dims[0] // 2, shape.dims[0], 3)
    for stage, (C, depth) in enumerate(zip(shape.dims, shape.depths)):
        if stage:
            before = f"stages.{stage}.downsample"
            add_conv(f"{before}.conv1", shape.dims[stage - 1], C)
            add_conv(f"{before}.conv2", C, C, 3, groups=C)
            add_conv(f"{before}.conv3", C, C)
        for number in range(depth):
            block = f"stages.{stage}.blocks.{number}"
            if stage == 0:
                hidden = shape.mbconv_ratio * C
                add_conv(f"{block}.conv1", C, hidden)
                add_conv(f"{block}.conv2", hidden, hidden, 3, groups=hidden)
                add_conv(f"{block}.conv3", hidden, C)
                continue
            weights[f"{block}.attn.attention_biases"] = 0.5 * torch.randn(shape.num_heads[stage], shape.windows[stage] ** 2)
            add_norm(f"{block}.attn.norm", C)
            add_linear(f"{block}.attn.qkv", C, 3 * C)
            add_linear(f"{block}.attn.proj", C, C)
            add_norm(f"{block}.mlp.norm", C)
            add_linear(f"{block}.mlp.fc1", C, shape.mlp_ratio * C)
            add_linear(f"{block}.mlp.fc2", shape.mlp_ratio * C, C)
            add_conv(f"{block}.local_conv", C, C, shape.kernel, groups=C)
    add_norm("head.norm", shape.dims[-1])
    add_linear("head.fc", shape.dims[-1], shape.num_classes)
    return weights


def authors_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by their names in the authors' files: a downsampling ends a stage, convolutions are called c."""
    renamed = {}
    for name, weight in weights.items():
        parts = name.split(".")
        if parts[:2] in (["patch_embed", "conv1"], ["patch_embed", "conv2"]):
            parts = ["patch_embed", "seq", "0" if parts[1] == "conv1" else "2", *parts[2:]]
        if parts[0] == "stages":
            parts[0] = "layers"
            if parts[2] == "downsample":
                parts[1] = str(int(parts[1]) - 1)
        if parts[0] == "head":
            parts = ["norm_head" if parts[1] == "norm" else "head", *parts[2:]]
        renamed[".".join("c" if part == "conv" else part for part in parts)] = weight
    return renamed


@dataclass(frozen=True)
class PlainTinyViT:
    """The model for images (B, 3, height, width) of any size."""

    weights: dict[str, torch.Tensor]
    shape: TinyShape

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The map (B, C, H, W) after every stage."""
        feature_map = self.conv("patch_embed.conv2", gelu(self.conv("patch_embed.conv1", images, stride=2)), stride=2)
        maps = []
        for stage, depth in enumerate(self.shape.depths):
            if stage:
                feature_map = self.inverted(f"stages.{stage}.downsample", feature_map, stride=2)
            for number in range(depth):
                block = f"stages.{stage}.blocks.{number}"
                if stage == 0:
                    feature_map = gelu(feature_map + self.inverted(block, feature_map))
                else:
                    feature_map = self.block(block, feature_map, stage)
            maps.append(feature_map)
        return maps

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.norm("head.norm", self.maps(images)[-1].mean(dim=(2, 3)))
        return self.linear("head.fc", pooled)

    def conv(self, name: str, feature_map: torch.Tensor, stride: int = 1) -> torch.Tensor:
        kernel = self.weights[f"{name}.conv.weight"]
        groups = feature_map.shape[1] // kernel.shape[1]
        feature_map = conv2d(feature_map, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, variance, weight, bias = (
            self.weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return batch_norm(feature_map, mean, variance, weight, bias)

    def inverted(self, name: str, feature_map: torch.Tensor, stride: int = 1) -> torch.Tensor:
        hidden = gelu(self.conv(f"{name}.conv1", feature_map))
        return self.conv(f"{name}.conv3", gelu(self.conv(f"{name}.conv2", hidden, stride)))

    def block(self, block: str, feature_map: torch.Tensor, stage: int) -> torch.Tensor:
        side, (height, width) = self.shape.windows[stage], feature_map.shape[2:]
        tokens = pad(feature_map, (0, -width % side, 0, -height % side)).permute(0, 2, 3, 1)
        attended = torch.empty_like(tokens)
        for top, left in product(range(0, tokens.shape[1], side), range(0, tokens.shape[2], side)):
            window = tokens[:, top : top + side, left : left + side].flatten(1, 2)
            attended[:, top : top + side, left : left + side] = self.attention(block, window, stage).unflatten(1, (side, side))
        feature_map = feature_map + attended[:, :height, :width].permute(0, 3, 1, 2)
        tokens = self.conv(f"{block}.local_conv", feature_map).permute(0, 2, 3, 1)
        hidden = gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.mlp.norm", tokens)))
        return (tokens + self.linear(f"{block}.mlp.fc2", hidden)).permute(0, 3, 1, 2)

    def attention(self, block: str, window: torch.Tensor, stage: int) -> torch.Tensor:
        """Attention over the tokens (B, N, C) of one window."""
        heads, side = self.shape.num_heads[stage], self.shape.windows[stage]
        projected = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.attn.norm", window))
        places = list(product(range(side), range(side)))
        distance = torch.tensor([[abs(a - c) * side + abs(b - d) for c, d in places] for a, b in places])
        results = []
        for head, own in enumerate(projected.chunk(heads, dim=-1)):
            query, key, value = own.chunk(3, dim=-1)
            scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
            scores = scores + self.weights[f"{block}.attn.attention_biases"][head][distance]
            results.append(scores.softmax(dim=-1) @ value)
        return self.linear(f"{block}.attn.proj", torch.cat(results, dim=-1))

    def norm(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        weight = self.weights[f"{name}.weight"]
        return layer_norm(tokens, weight.shape, weight, self.weights[f"{name}.bias"])

    def linear(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        return linear(tokens, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])
