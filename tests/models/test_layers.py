"""The parts of the transformer, each against its formula.

Shapes: B batch, N tokens, Q query tokens, H heads, D width.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SEEDS, randomize, small_config

from models.configs import ACTIVATION_NAMES
from models.layers import (
    ACTIVATIONS,
    Attention,
    AttentionPool,
    Block,
    Mlp,
    PatchEmbed,
    init_patch_projection,
    init_weights,
)

# Formulas are compared in float64: in float32 a norm of nearly equal numbers blows up rounding.
SETTINGS = settings(max_examples=30)
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
def test_attention_is_the_formula_with_its_queries_and_keys_too(shape, seed):
    batch, tokens, _, heads, width = shape
    attention = Attention(small_config(embed_dim=width, num_heads=heads)).double()
    randomize(attention, seed)
    x = tokens_of(seed, batch, tokens, width)
    inputs = (x, *attention.parameters())
    upstream = tokens_of(seed + 1, batch, tokens, width).detach()
    attended, (queries, keys) = attention.with_queries_keys(x)
    expected = attention_by_formula(attention, x)
    torch.testing.assert_close(attended, expected, **EXACT)
    torch.testing.assert_close(attention(x), expected, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad((attended * upstream).sum(), inputs),
        torch.autograd.grad((expected * upstream).sum(), inputs),
        **EXACT,
    )
    # The queries and keys are those that the attention was made of.
    projected = F.linear(x, attention.qkv.weight, attention.qkv.bias)
    shape_of_one = (batch, tokens, heads, width // heads)
    for third, given_back in zip(projected.split(width, dim=-1)[:2], (queries, keys), strict=True):
        assert not given_back.requires_grad
        expected = third.detach().view(shape_of_one).transpose(1, 2)  # (B, H, N, D/H)
        torch.testing.assert_close(given_back, expected, **EXACT)


# --- Block ----------------------------------------------------------------------------------------


def block_of(width: int, heads: int, mlp_dim: int, drop_path: float = 0.0, **fields) -> Block:
    config = small_config(embed_dim=width, num_heads=heads, mlp_dim=mlp_dim, **fields)
    return Block(config, drop_path).double()


FORMULAS = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
}


def block_by_formula(
    block: Block, x: torch.Tensor, activation: str = "gelu", dropout: float = 0.0
) -> torch.Tensor:
    """Equations 2 and 3 of Dosovitskiy et al. 2021, for all tokens, with LayerScale's factors."""
    factors = [getattr(scale, "gamma", 1.0) for scale in (block.ls1, block.ls2)]
    attended = attention_by_formula(block.attn, block.norm1(x))
    x = x + factors[0] * F.dropout(attended, dropout)
    hidden = F.dropout(FORMULAS[activation](block.mlp.fc1(block.norm2(x))), dropout)
    return x + factors[1] * F.dropout(block.mlp.fc2(hidden), dropout)


@given(
    shape=token_shapes(),
    mlp_dim=st.integers(1, 20),
    activation=st.sampled_from(sorted(FORMULAS)),
    layer_scale=st.sampled_from((None, 1e-5, 0.5)),
    seed=SEEDS,
)
@SETTINGS
def test_a_block_for_q_tokens_is_the_first_q_rows(shape, mlp_dim, activation, layer_scale, seed):
    batch, tokens, query_tokens, heads, width = shape
    block = block_of(width, heads, mlp_dim, activation=activation, layer_scale=layer_scale)
    randomize(block, seed)
    x = tokens_of(seed, batch, tokens, width)
    upstream = tokens_of(seed + 1, batch, query_tokens, width).detach()
    inputs = (x, *block.parameters())
    full, partial = block_by_formula(block, x, activation), block(x, query_tokens)
    torch.testing.assert_close(block(x), full, **EXACT)
    torch.testing.assert_close(partial, full[:, :query_tokens], **EXACT)
    expected = torch.autograd.grad((full[:, :query_tokens] * upstream).sum(), inputs)
    given_back = torch.autograd.grad((partial * upstream).sum(), inputs)
    torch.testing.assert_close(given_back, expected, **EXACT)


def test_a_block_with_its_queries_and_keys_is_the_same():
    block = block_of(8, 2, 16, layer_scale=0.5)
    randomize(block, 0)
    x = tokens_of(0, 2, 3, 8)
    given_back, queries_keys = block.with_queries_keys(x)
    torch.testing.assert_close(given_back, block(x), **EXACT)
    expected = block.attn.with_queries_keys(block.norm1(x))[1]
    assert all(map(torch.equal, queries_keys, expected))


def test_layer_scale_and_eps_are_the_config_s():
    block = block_of(8, 2, 16, layer_scale=1e-5, layer_norm_eps=0.25)
    for scale in (block.ls1, block.ls2):
        torch.testing.assert_close(scale.gamma.detach(), torch.full((8,), 1e-5).double())
    assert (block.norm1.eps, block.norm2.eps) == (0.25, 0.25)


# --- Randomness while training --------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_is_after_every_dense_layer_but_queries_keys_and_values(dropout):
    """Dosovitskiy et al. 2021, appendix B.1."""
    block = block_of(8, 2, 16, dropout=dropout)
    randomize(block, 0)
    x = tokens_of(0, 2, 3, 8)
    torch.manual_seed(0)
    expected = block_by_formula(block, x, dropout=dropout)
    torch.manual_seed(0)
    torch.testing.assert_close(block(x), expected, **EXACT)
    torch.manual_seed(0)
    torch.testing.assert_close(block.with_queries_keys(x)[0], expected, **EXACT)
    assert not torch.allclose(block(x), block(x))
    torch.testing.assert_close(block.eval()(x), block_by_formula(block, x), **EXACT)


def test_drop_path_drops_each_branch_by_itself_and_for_whole_samples():
    block = block_of(8, 2, 16, drop_path=0.5)
    randomize(block, 0)
    with torch.no_grad():
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.mlp.fc2.weight)
        block.attn.proj.bias.fill_(1.0)
        block.mlp.fc2.bias.fill_(10.0)
        torch.manual_seed(0)
        added = block(torch.zeros(1000, 3, 8).double())
    assert torch.equal(added, added[:, :1, :1].expand_as(added))
    added = added[:, 0, 0]
    values, counts = added.unique(return_counts=True)
    assert values.tolist() == [0, 2, 20, 22]
    assert all(200 < count < 300 for count in counts)


# --- Patches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 32), (48, 48)])
def test_an_image_of_another_size_is_refused(size):
    embed = PatchEmbed(small_config())
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
    block = block_of(96, 4, 160).apply(init_weights)
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
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_attention_pooling_starts_as_google_s():
    torch.manual_seed(0)
    pool = AttentionPool(small_config(embed_dim=96, mlp_dim=160)).apply(init_weights)
    for projection in (pool.q.weight, *pool.kv.weight.split(96), pool.proj.weight):
        assert_xavier(projection, 96, 96)
    assert_xavier(pool.mlp.fc1.weight, 96, 160)
    for linear in (pool.q, pool.kv, pool.proj):
        assert not linear.bias.any()
    assert pool.latent.std().item() == pytest.approx(96**-0.5, rel=0.2)


def test_the_patch_projection_starts_as_flax_s():
    torch.manual_seed(0)
    proj = PatchEmbed(small_config(patch_size=8, embed_dim=192)).proj
    init_patch_projection(proj)
    std = (3 * 8 * 8) ** -0.5  # LeCun: variance 1 / fan_in
    assert proj.weight.std().item() == pytest.approx(std, rel=0.03)
    assert proj.weight.abs().max() <= 2 * std / 0.8796  # cut at two deviations
    assert not proj.bias.any()


# --- Activations ----------------------------------------------------------------------------------


def test_every_activation_of_a_config_exists_and_is_the_mlp_s():
    assert ACTIVATIONS.keys() == FORMULAS.keys() == set(ACTIVATION_NAMES)
    for name in ACTIVATION_NAMES:
        assert Mlp(small_config(activation=name)).act is ACTIVATIONS[name]
