"""Weights of our models as Google's `.npz` files name and arrange them (flax)."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor


def google_arrays(state_dict: Mapping[str, Tensor], heads: int) -> dict[str, np.ndarray]:
    """The weights of a plain model: inputs first, heads apart, convolutions HWIO."""
    weights = {key: value.detach().numpy() for key, value in state_dict.items()}
    arrays = {
        "cls": weights["cls_token"],
        "Transformer/posembed_input/pos_embedding": weights["pos_embed"],
        "embedding/kernel": weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": weights["patch_embed.proj.bias"],
    }

    def write(theirs: str, ours: str) -> None:
        weight = weights[f"{ours}.weight"]
        arrays[f"{theirs}/{'scale' if weight.ndim == 1 else 'kernel'}"] = weight.T
        arrays[f"{theirs}/bias"] = weights[f"{ours}.bias"]

    write("Transformer/encoder_norm", "norm")
    write("head", "head")
    for i in {key.split(".")[1] for key in weights if key.startswith("blocks.")}:
        theirs, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        write(f"{theirs}/LayerNorm_0", f"{ours}.norm1")
        write(f"{theirs}/LayerNorm_2", f"{ours}.norm2")
        write(f"{theirs}/MlpBlock_3/Dense_0", f"{ours}.mlp.fc1")
        write(f"{theirs}/MlpBlock_3/Dense_1", f"{ours}.mlp.fc2")
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        kernels, biases = (
            np.split(weights[f"{ours}.attn.qkv.{leaf}"], 3) for leaf in ("weight", "bias")
        )
        for which, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{attention}/{which}/kernel"] = kernel.T.reshape(len(kernel), heads, -1)
            arrays[f"{attention}/{which}/bias"] = bias.reshape(heads, -1)
        out = weights[f"{ours}.attn.proj.weight"]
        arrays[f"{attention}/out/kernel"] = out.T.reshape(heads, -1, len(out))
        arrays[f"{attention}/out/bias"] = weights[f"{ours}.attn.proj.bias"]
    return arrays
