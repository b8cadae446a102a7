"""TransFG and ViT-pytorch as their papers and public code compute them, written plainly.

The reference of the parity tests and of `scripts/dev/benchmark.py`: weights under the names of
TACJu's and jeonsworld's state dicts, every layer's attention maps kept, full N x N products inside
autograd, parts gathered by index. Shapes: B batch, N tokens, H heads, D width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def embed(weights: Weights, images: Tensor, stride: int) -> Tensor:
    name = "transformer.embeddings"
    kernel, bias = (weights[f"{name}.patch_embeddings.{part}"] for part in ("weight", "bias"))
    patches = F.conv2d(images, kernel, bias, stride=stride).flatten(2).transpose(1, 2)
    cls_token = weights[f"{name}.cls_token"].expand(len(images), -1, -1)
    return torch.cat((cls_token, patches), dim=1) + weights[f"{name}.position_embeddings"]


def block(weights: Weights, name: str, x: Tensor, heads: int, eps: float) -> tuple[Tensor, Tensor]:
    """(B, N, D) to (B, N, D) and the attention map (B, H, N, N)."""
    normed = norm(weights, f"{name}.attention_norm", x, eps)
    q, k, v = (
        linear(weights, f"{name}.attn.{which}", normed).unflatten(-1, (heads, -1)).transpose(1, 2)
        for which in ("query", "key", "value")
    )
    attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    x = x + linear(weights, f"{name}.attn.out", (attention @ v).transpose(1, 2).flatten(2))
    hidden = F.gelu(linear(weights, f"{name}.ffn.fc1", norm(weights, f"{name}.ffn_norm", x, eps)))
    return x + linear(weights, f"{name}.ffn.fc2", hidden), attention


def select(attention: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, H, N-1) the class token's row of the product of all maps, and its argmax (B, H)."""
    product = attention[0]
    for layer in attention[1:]:
        product = layer @ product
    row = product[:, :, 0, 1:]
    return row, row.max(dim=2).indices


def count_layers(weights: Weights) -> int:
    return len(
        {key.split(".")[3] for key in weights if key.startswith("transformer.encoder.layer.")}
    )


def transfg(
    weights: Weights, images: Tensor, heads: int, stride: int, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, C), the class token after the part norm (B, D), selected patches (B, H)."""
    x, attention = embed(weights, images, stride), []
    for i in range(count_layers(weights)):
        x, weight = block(weights, f"transformer.encoder.layer.{i}", x, heads, eps)
        attention.append(weight)
    _, chosen = select(attention)
    parts = torch.stack([sample[1 + index] for sample, index in zip(x, chosen, strict=True)])
    x = torch.cat((x[:, :1], parts), dim=1)
    x, _ = block(weights, "transformer.encoder.part_layer", x, heads, eps)
    features = norm(weights, "transformer.encoder.part_norm", x, eps)[:, 0]
    return linear(weights, "part_head", features), features, chosen


def vit(
    weights: Weights, images: Tensor, heads: int, stride: int, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and the class token after the last norm (B, D) of ViT-pytorch."""
    x = embed(weights, images, stride)
    for i in range(count_layers(weights)):
        x, _ = block(weights, f"transformer.encoder.layer.{i}", x, heads, eps)
    features = norm(weights, "transformer.encoder.encoder_norm", x, eps)[:, 0]
    return linear(weights, "head", features), features


# --- Our weights under their names ----------------------------------------------------------------

_EMBEDDINGS = {
    "cls_token": "transformer.embeddings.cls_token",
    "pos_embed": "transformer.embeddings.position_embeddings",
    "patch_embed.proj": "transformer.embeddings.patch_embeddings",
    "part_norm": "transformer.encoder.part_norm",
    "norm": "transformer.encoder.encoder_norm",
}
_IN_BLOCK = {
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
    "attn.proj": "attn.out",
    "mlp.fc1": "ffn.fc1",
    "mlp.fc2": "ffn.fc2",
}


def in_their_names(state_dict: Weights) -> dict[str, Tensor]:
    """The weights of one of our plain models under the names of those repositories."""
    is_parts = any(key.startswith("part_block.") for key in state_dict)
    theirs = {}
    for key, value in state_dict.items():
        name, _, leaf = key.rpartition(".")
        if key in _EMBEDDINGS:
            theirs[_EMBEDDINGS[key]] = value
        elif name in _EMBEDDINGS:
            theirs[f"{_EMBEDDINGS[name]}.{leaf}"] = value
        elif name == "head":
            theirs[f"{'part_head' if is_parts else 'head'}.{leaf}"] = value
        else:
            is_part = key.startswith("part_block.")
            _, number, inner = (
                (None, None, name.partition(".")[2]) if is_part else name.split(".", 2)
            )
            prefix = "part_layer" if is_part else f"layer.{number}"
            prefix = f"transformer.encoder.{prefix}"
            if inner == "attn.qkv":
                for which, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    theirs[f"{prefix}.attn.{which}.{leaf}"] = part
            else:
                theirs[f"{prefix}.{_IN_BLOCK[inner]}.{leaf}"] = value
    return theirs
