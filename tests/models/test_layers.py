"""The parts of the transformer, each against its formula.

Shapes: B batch, N tokens, Q query tokens, H heads, D width.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SEEDS, randomize, small_config, small_sizes

from models.configs import grid_side
from models.layers import (
    ACTIVATIONS,
    Attention,
    AttentionPool,
    Block,
    LayerScale,
    Mlp,
    PatchEmbed,
    init_patch_projection,
    init_weights,
)

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


@given(shape=token_shapes(), seed=SEEDS)
@SETTINGS
def test_attention_with_its_queries_and_keys_is_the_same(shape, seed):
    batch, tokens, _, heads, width = shape
    attention = Attention(width, heads).double()
    randomize(attention, seed)
    x = tokens_of(seed, batch, tokens, width)
    inputs = (x, *attention.parameters())
    upstream = tokens_of(seed + 1, batch, tokens, width).detach()
    attended, (queries, keys) = attention.with_queries_keys(x)
    expected = attention_by_formula(attention, x)
    torch.testing.assert_close(attended, expected, **EXACT)
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


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="embed_dim 10 is not a multiple of 4 heads"):
        Attention(10, 4)


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


def test_the_norms_take_the_config_s_eps():
    block = block_of(8, 2, 16, layer_norm_eps=0.25)
    assert (block.norm1.eps, block.norm2.eps) == (0.25, 0.25)


def test_a_block_leaves_its_input_alone():
    block = block_of(8, 2, 16)
    randomize(block, 0)
    x = tokens_of(0, 2, 3, 8).detach()
    before = x.clone()
    block(x, 1)
    block.with_queries_keys(x)
    assert torch.equal(x, before)


def test_layer_scale_starts_at_its_initial_value():
    block = block_of(8, 2, 16, layer_scale=1e-5)
    for scale in (block.ls1, block.ls2):
        assert isinstance(scale, LayerScale)
        torch.testing.assert_close(scale.gamma.detach(), torch.full((8,), 1e-5).double())
    names = {name for name, _ in block_of(8, 2, 16).named_parameters()}
    assert {name for name, _ in block.named_parameters()} == names | {"ls1.gamma", "ls2.gamma"}


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


@pytest.mark.parametrize("branch", ["attn.proj", "mlp.fc2"])
def test_drop_path_drops_a_residual_branch_for_whole_samples(branch):
    block = block_of(8, 2, 16, drop_path=0.25)
    randomize(block, 0)
    silent = block.mlp.fc2 if branch == "attn.proj" else block.attn.proj
    torch.nn.init.zeros_(silent.weight)
    torch.nn.init.zeros_(silent.bias)
    x = tokens_of(0, 1000, 3, 8).detach()
    torch.manual_seed(0)
    with torch.no_grad():
        added, residual = block.train()(x) - x, block.eval()(x) - x
    dropped = (added == 0).flatten(1).all(dim=1)  # (B,)
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(added[~dropped], residual[~dropped] / 0.75, **EXACT)


def test_the_two_branches_are_dropped_apart():
    block = block_of(8, 2, 16, drop_path=0.5)
    randomize(block, 0)
    with torch.no_grad():
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.mlp.fc2.weight)
        block.attn.proj.bias.fill_(1.0)
        block.mlp.fc2.bias.fill_(10.0)
        torch.manual_seed(0)
        added = block(torch.zeros(1000, 1, 8).double())[:, 0, 0]
    values, counts = added.unique(return_counts=True)
    assert values.tolist() == [0, 2, 20, 22]
    assert all(200 < count < 300 for count in counts)


# --- Patches --------------------------------------------------------------------------------------


@given(sizes=small_sizes(), pre_norm=st.booleans(), seed=SEEDS)
@SETTINGS
def test_token_i_is_the_ith_patch_in_row_major_order(sizes, pre_norm, seed):
    config = small_config(**sizes, pre_norm=pre_norm)
    embed = PatchEmbed(config).double()
    side, grid, width = config.img_size, grid_side(config), config.embed_dim
    assert (embed.proj.bias is None) == pre_norm
    bias = 0 if pre_norm else embed.proj.bias
    images = tokens_of(seed, 2, 3, side, side)
    tokens = embed(images)
    assert tokens.shape == (2, grid**2, width)
    for i in range(grid**2):
        top, left = (config.patch_stride * k for k in divmod(i, grid))
        rows, columns = slice(top, top + config.patch_size), slice(left, left + config.patch_size)
        pixels = images[:, :, rows, columns].flatten(1)
        expected = pixels @ embed.proj.weight.flatten(1).T + bias
        torch.testing.assert_close(tokens[:, i], expected, **EXACT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"img_size": 33}, "img_size 33 is not a multiple of the patch, 16"),
        ({"img_size": 8, "patch_stride": 4}, "not 0 < stride 4 <= patch 16 <= img_size 8"),
        ({"patch_stride": 17}, "not 0 < stride 17 <= patch 16 <= img_size 32"),
        ({"patch_stride": 0}, "not 0 < stride 0 <= patch 16 <= img_size 32"),
        ({"patch_stride": -4}, "not 0 < stride -4 <= patch 16 <= img_size 32"),
    ],
)
def test_patches_that_do_not_fit_the_image_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbed(small_config(**fields))


def test_overlapping_patches_may_leave_a_rest():
    embed = PatchEmbed(small_config(img_size=33, patch_stride=12))
    assert embed(torch.zeros(1, 3, 33, 33)).shape == (1, 4, 64)


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (16, 16), (48, 48)])
def test_an_image_of_another_size_is_refused(size):
    embed = PatchEmbed(small_config())
    with pytest.raises(ValueError, match=rf"images are \({size[0]}, {size[1]}\), built for 32"):
        embed(torch.zeros(1, 3, *size))


# --- Attention pooling ----------------------------------------------------------------------------


def pool_by_formula(pool: AttentionPool, x: torch.Tensor, activation: str) -> torch.Tensor:
    """One query, head by head, and an MLP with a residual (Zhai et al. 2022, section 3.3)."""
    d = x.shape[-1] // pool.num_heads
    query = pool.q(pool.latent[0])  # (1, D)
    key, value = pool.kv(x).split(x.shape[-1], dim=-1)  # (B, N, D) each
    heads = []
    for head in range(pool.num_heads):
        columns = slice(head * d, (head + 1) * d)
        scores = (key[..., columns] * query[:, columns]).sum(dim=-1) / math.sqrt(d)  # (B, N)
        heads.append((scores.softmax(dim=-1)[..., None] * value[..., columns]).sum(dim=1))
    pooled = pool.proj(torch.cat(heads, dim=-1))  # (B, D)
    return pooled + pool.mlp.fc2(FORMULAS[activation](pool.mlp.fc1(pool.norm(pooled))))


@given(shape=token_shapes(), activation=st.sampled_from(sorted(FORMULAS)), seed=SEEDS)
@SETTINGS
def test_attention_pooling_is_the_formula(shape, activation, seed):
    batch, tokens, _, heads, width = shape
    config = small_config(embed_dim=width, num_heads=heads, activation=activation)
    pool = AttentionPool(config).double()
    randomize(pool, seed)
    x = tokens_of(seed, batch, tokens, width)
    inputs = (x, *pool.parameters())
    pooled, expected = pool(x), pool_by_formula(pool, x, activation)
    assert pooled.shape == (batch, width)
    torch.testing.assert_close(pooled, expected, **EXACT)
    upstream = tokens_of(seed + 1, batch, width).detach()
    torch.testing.assert_close(
        torch.autograd.grad((pooled * upstream).sum(), inputs),
        torch.autograd.grad((expected * upstream).sum(), inputs),
        **EXACT,
    )


def test_attention_pooling_is_blind_to_the_order_of_tokens():
    pool = AttentionPool(small_config()).double()
    randomize(pool, 0)
    x = tokens_of(0, 2, 5, 64)
    torch.testing.assert_close(pool(x.flip(1)), pool(x), **EXACT)


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


def test_a_patch_projection_without_bias_is_initialised_too():
    proj = PatchEmbed(small_config(pre_norm=True)).proj
    before = proj.weight.clone()
    init_patch_projection(proj)
    assert not torch.equal(proj.weight, before)


# --- Activations ----------------------------------------------------------------------------------


def test_the_activations_that_there_are():
    assert ACTIVATIONS.keys() == FORMULAS.keys()
    with pytest.raises(
        ValueError, match="unknown activation 'relu'; known: gelu, gelu_tanh, quick"
    ):
        Mlp(8, 16, "relu")


# At 1. GELU is x * Phi(x); its approximations differ from the fourth and third decimal on.
@pytest.mark.parametrize(
    ("activation", "value"),
    [("gelu", 0.8413447), ("gelu_tanh", 0.8411920), ("quick_gelu", 0.8457958)],
)
def test_what_the_mlp_s_activation_is(activation, value):
    mlp = Mlp(1, 1, activation)
    for linear in (mlp.fc1, mlp.fc2):
        torch.nn.init.ones_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    assert mlp(torch.ones(1, 1, 1)).item() == pytest.approx(value, abs=1e-6)


@given(x=st.floats(-6, 6), activation=st.sampled_from(sorted(FORMULAS)))
@SETTINGS
def test_an_activation_is_its_formula(x, activation):
    x = torch.tensor(x, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[activation](x), FORMULAS[activation](x), **EXACT)


def test_the_mlp_s_activation_is_gelu_unless_asked_for_another():
    assert Mlp(1, 1).act is F.gelu
