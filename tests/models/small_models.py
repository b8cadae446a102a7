"""Small sizes and non-trivial weights for the tests of this folder."""

import torch
from hypothesis import strategies as st
from ml_collections import ConfigDict
from torch import nn

from models.configs import get_config


def small_config(**sizes: int | str) -> ConfigDict:
    """The `testing` config with other sizes."""
    config = get_config("testing", 32)
    config.update(sizes)
    return config


def randomize(module: nn.Module, seed: int) -> None:
    """Move every parameter away from its initial value, the zero head and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.1 * noise


SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def small_configs(draw, pools=("token", "avg")) -> ConfigDict:
    """Configs of all shapes: one or several blocks, heads, patches; narrow and wide MLPs."""
    heads, patch = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return small_config(
        patch_size=patch,
        img_size=patch * draw(st.integers(1, 4)),
        embed_dim=heads * draw(st.sampled_from((2, 5, 8))),
        num_heads=heads,
        depth=draw(st.integers(1, 3)),
        mlp_dim=draw(st.integers(1, 40)),
        pool=draw(st.sampled_from(pools)),
    )
