"""The parts of the transformer, each against its formula.

Shapes: B batch, N tokens, Q query tokens, H heads, D width.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SEEDS, randomize

from models.layers import Attention, Block, Mlp, PatchEmbed, init_patch_projection, init_weights

# Formulas are compared in float64: in float32 a norm of nearly equal numbers blows up rounding.
SETTINGS = settings(max_examples=30, deadline=None)
EXACT = {"atol": 1e-9, "rtol": 1e-9}


@st.composite
def token_shapes(draw) -> tuple[int, int, int, int, int]:
    """(B, N, Q, H, D)."""
    heads, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    width = heads * draw(st.integers(1, 8))
    return draw(st.integers(1, 3)), tokens, draw(st.integers(1, tokens)), heads, width


def tokens_of(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


# --- Attention ------------------------------------------------------------------------------------


def attention_by_formula(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """Softmax(Q K^T / sqrt(d)) V, head by head (Vaswani et al. 2017, section 3.2)."""
    d = x.shape[-1] // attention.num_heads
    projected = x @ attention.qkv.weight.T + attention.qkv.bias  # (B, N, 3D)
    q, k, v = projected.split(x.shape[-1], dim=-1)
    heads = []
    for head in range(attention.num_heads):
        columns = slice(head * d, (head + 1) * d)
        scores = q[..., columns] @ k[..., columns].mT / math.sqrt(d)  # (B, N, N)
        heads.append(torch.softmax(scores, dim=-1) @ v[..., columns])
    return torch.cat(heads, dim=-1) @ attention.proj.weight.T + attention.proj.bias


@given(shape=token_shapes(), seed=SEEDS)
@SETTINGS
def test_attention_is_the_formula(shape, seed):
    batch, tokens, _, heads, width = shape
    attention = Attention(width, heads).double()
    randomize(attention, seed)
    x = tokens_of(seed, batch, tokens, width)
    torch.testing.assert_close(attention(x), attention_by_formula(attention, x), **EXACT)


def test_attention_of_equal_tokens_is_their_value():
    attention = Attention(8, 2).double()
    randomize(attention, 0)
    x = tokens_of(0, 1, 1, 8).expand(1, 5, 8)
    value = F.linear(x, attention.qkv.weight[16:], attention.qkv.bias[16:])
    torch.testing.assert_close(attention(x), attention.proj(value))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="embed_dim 10 is not a multiple of 4 heads"):
        Attention(10, 4)


# --- Block ----------------------------------------------------------------------------------------


def block_by_formula(block: Block, x: torch.Tensor) -> torch.Tensor:
    """Equations 2 and 3 of Dosovitskiy et al. 2021, for all tokens."""
    x = x + attention_by_formula(block.attn, block.norm1(x))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


@given(shape=token_shapes(), mlp_dim=st.integers(1, 20), seed=SEEDS)
@SETTINGS
def test_a_block_for_q_tokens_is_the_first_q_rows(shape, mlp_dim, seed):
    batch, tokens, query_tokens, heads, width = shape
    block = Block(width, heads, mlp_dim, norm_eps=1e-6).double()
    randomize(block, seed)
    x = tokens_of(seed, batch, tokens, width)
    upstream = tokens_of(seed + 1, batch, query_tokens, width).detach()
    inputs = (x, *block.parameters())
    full, partial = block_by_formula(block, x), block(x, query_tokens)
    torch.testing.assert_close(block(x), full, **EXACT)
    torch.testing.assert_close(partial, full[:, :query_tokens], **EXACT)
    expected = torch.autograd.grad((full[:, :query_tokens] * upstream).sum(), inputs)
    given_back = torch.autograd.grad((partial * upstream).sum(), inputs)
    torch.testing.assert_close(given_back, expected, **EXACT)


def test_a_block_leaves_its_input_alone():
    block = Block(8, 2, 16, norm_eps=1e-6).double()
    randomize(block, 0)
    x = tokens_of(0, 2, 3, 8).detach()
    before = x.clone()
    block(x, 1)
    assert torch.equal(x, before)


# --- Patches --------------------------------------------------------------------------------------


@given(patch=st.integers(1, 4), grid=st.integers(1, 4), seed=SEEDS)
@SETTINGS
def test_token_i_is_the_ith_patch_in_row_major_order(patch, grid, seed):
    embed = PatchEmbed(patch * grid, patch, embed_dim=6).double()
    images = tokens_of(seed, 2, 3, patch * grid, patch * grid)
    tokens = embed(images)
    assert tokens.shape == (2, embed.num_patches, 6) == (2, grid**2, 6)
    for i in range(grid**2):
        row, column = divmod(i, grid)
        rows = slice(row * patch, (row + 1) * patch)
        columns = slice(column * patch, (column + 1) * patch)
        pixels = images[:, :, rows, columns].flatten(1)
        expected = pixels @ embed.proj.weight.flatten(1).T + embed.proj.bias
        torch.testing.assert_close(tokens[:, i], expected, **EXACT)


def test_the_patch_must_divide_the_image():
    with pytest.raises(ValueError, match="img_size 33 is not a multiple of the patch, 16"):
        PatchEmbed(33, 16, 8)


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (16, 16), (48, 48)])
def test_an_image_of_another_size_is_refused(size):
    embed = PatchEmbed(32, 16, 8)
    with pytest.raises(ValueError, match=rf"images are \({size[0]}, {size[1]}\), built for 32"):
        embed(torch.zeros(1, 3, *size))


# --- Initial values -------------------------------------------------------------------------------


def assert_xavier(weight: torch.Tensor, fan_in: int, fan_out: int) -> None:
    """Uniform within sqrt(6 / (in + out)), whose standard deviation is that bound / sqrt(3)."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_linear_layers_start_as_google_s():
    torch.manual_seed(0)
    block = Block(96, 4, 160, norm_eps=1e-6).apply(init_weights)
    for projection in block.attn.qkv.weight.split(96):  # three D x D, not one 3D x D
        assert_xavier(projection, 96, 96)
    assert_xavier(block.attn.proj.weight, 96, 96)
    assert_xavier(block.mlp.fc1.weight, 96, 160)
    assert_xavier(block.mlp.fc2.weight, 160, 96)
    assert not block.attn.qkv.bias.any()
    assert not block.attn.proj.bias.any()
    for bias in (block.mlp.fc1.bias, block.mlp.fc2.bias):
        assert 0 < bias.std() < 2e-6
    for norm in (block.norm1, block.norm2):
        assert torch.equal(norm.weight, torch.ones(96))
        assert torch.equal(norm.bias, torch.zeros(96))


def test_the_patch_projection_starts_as_flax_s():
    torch.manual_seed(0)
    proj = PatchEmbed(32, 8, 192).proj
    init_patch_projection(proj)
    std = (3 * 8 * 8) ** -0.5  # LeCun: variance 1 / fan_in
    assert proj.weight.std().item() == pytest.approx(std, rel=0.03)
    assert proj.weight.abs().max() <= 2 * std / 0.8796  # cut at two deviations
    assert not proj.bias.any()


def test_the_mlp_s_gelu_is_exact():
    mlp = Mlp(1, 1)
    for linear in (mlp.fc1, mlp.fc2):
        torch.nn.init.ones_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    # x * Phi(x); the tanh approximation is 0.841192 at 1.
    assert mlp(torch.ones(1, 1, 1)).item() == pytest.approx(0.8413447, abs=1e-6)
