"""Part selection against the paper's code: the chosen row, the model's numbers, what it costs.

Shapes: B batch, N tokens, P patches, H heads, D width, L blocks.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from paper_transfg import block, count_layers, embed, in_their_names, select, transfg
from small_models import (
    SEEDS,
    Operators,
    kept_bytes,
    loss_and_gradients,
    random_images,
    random_model,
    small_config,
    small_sizes,
)
from torch import Tensor

from models.build import build_model
from models.configs import grid_side, num_tokens
from models.layers import QueriesKeys
from models.losses import Objective
from models.transfg import MAX_SLICE_BYTES, TransFG, class_token_rollout, patch_centers
from models.vit import ViTOutput

EVERYTHING = 2**40  # bytes
OBJECTIVE = Objective(smoothing=0.1, contrastive_weight=1.0, margin=0.4)


def parts_config(**fields: object) -> ConfigDict:
    return small_config(head="parts", **fields)


SPLITS = {
    "non-overlap": {"img_size": 64},
    "overlap": {"img_size": 64, "patch_stride": 12},  # 5 x 5 patches
}
splits = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)


def gaps(row: Tensor) -> Tensor:
    """How much less than the largest number of a row the second is, relative to it."""
    first, second = row.topk(2, dim=-1).values.unbind(-1)
    return (first - second) / first


# --- The class token's row of the product ---------------------------------------------------------

# (N, B, H): 224 pixels, 448 pixels, and 448 pixels with overlap, all of patch 16.
SHAPES = ((197, 2, 2), (785, 1, 2), (1370, 1, 1))
DEPTHS = (3, 12)


def random_layers(depth: int, batch: int, heads: int, tokens: int) -> list[QueriesKeys]:
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, batch, heads, tokens, 4)
    # Peaked: some tokens have a hundred times the mean weight.
    return [QueriesKeys(*(2 * torch.randn(shape, generator=generator))) for _ in range(depth)]


@functools.cache
def case(tokens: int, batch: int, heads: int) -> tuple[list[QueriesKeys], dict[int, Tensor]]:
    """Layers, and by how many of them: the class token's row of the full product in float64."""
    layers = random_layers(max(DEPTHS), batch, heads, tokens)
    product, rows = None, {}
    for depth, (queries, keys) in enumerate(layers, start=1):
        scores = queries.double() @ keys.double().mT / queries.shape[-1] ** 0.5
        attention = scores.softmax(dim=-1)  # (B, H, N, N)
        product = attention if product is None else attention @ product
        if depth in DEPTHS:
            rows[depth] = product[:, :, 0].clone()
    return layers, rows


@pytest.mark.parametrize("queries", [100, None], ids=["ragged", "everything"])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("tokens", "batch", "heads"), SHAPES)
def test_the_row_is_that_of_the_full_product(tokens, batch, heads, depth, queries):
    layers, rows = case(tokens, batch, heads)
    expected = rows[depth]
    assert (expected.amax(dim=-1) > 5 / tokens).all()  # it is not a row of equal weights
    bound = EVERYTHING if queries is None else queries * batch * heads * tokens * 4
    row = class_token_rollout(layers[:depth][::-1], bound)
    assert row.shape == (batch, heads, tokens)
    # The largest error is of one query at a time: 12 sums of 1370 numbers, one after another.
    torch.testing.assert_close(row.double(), expected, rtol=2e-5, atol=0)
    torch.testing.assert_close(row.sum(dim=-1), torch.ones(batch, heads))
    clear = gaps(expected) > 1e-6
    assert clear.any()
    assert torch.equal(row.argmax(dim=-1)[clear], expected.argmax(dim=-1)[clear])


@given(
    depth=st.integers(1, 4),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 20),
    width=st.integers(1, 5),
    bound=st.integers(0, 4000),
    seed=SEEDS,
)
@settings(max_examples=50)
def test_the_row_of_any_sizes_and_any_bound(depth, batch, heads, tokens, width, bound, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (depth, 2, batch, heads, tokens, width)
    made = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    product = torch.eye(tokens, dtype=torch.float64)
    for queries, keys in made:
        product = (queries @ keys.mT / width**0.5).softmax(dim=-1) @ product
    row = class_token_rollout([QueriesKeys(*pair) for pair in reversed(made)], bound)
    torch.testing.assert_close(row, product[:, :, 0], atol=1e-12, rtol=0)


def test_the_row_leaves_queries_and_keys_alone_and_no_gradient_passes_it():
    layers = random_layers(3, 2, 2, 9)
    before = [QueriesKeys(*(part.clone() for part in layer)) for layer in layers]
    for part in layers[0]:
        part.requires_grad_()
    assert not class_token_rollout(layers[::-1], 200).requires_grad
    torch.testing.assert_close(layers, before, rtol=0, atol=0)


@given(sizes=small_sizes(), class_token=st.booleans(), registers=st.integers(0, 3))
@settings(max_examples=50)
def test_a_patch_s_center_is_the_mean_of_its_pixels_centers(sizes, class_token, registers):
    fields = {"class_token": class_token, "num_registers": registers, "pool": "avg"}
    config = small_config(**sizes, **fields)
    middles = (torch.arange(config.img_size, dtype=torch.float64) + 0.5) / config.img_size
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    # As a convolution visits them: row by row.
    pixels = F.unfold(torch.stack((x, y))[:, None], config.patch_size, stride=config.patch_stride)
    centers = patch_centers(config)
    assert len(centers) == grid_side(config) ** 2 == num_tokens(config) - registers - class_token
    torch.testing.assert_close(centers, pixels.mean(dim=1).T.float(), rtol=0, atol=1e-6)


# --- The model is the paper's ---------------------------------------------------------------------


def naive_row(weights: dict[str, Tensor], config: ConfigDict, images: Tensor) -> Tensor:
    """(B, H, P) of the paper's code: what its argmax chooses from."""
    with torch.no_grad():
        x, attention = embed(weights, images, config.patch_stride), []
        for i in range(count_layers(weights)):
            name = f"transformer.encoder.layer.{i}"
            x, weight = block(weights, name, x, config.num_heads, config.layer_norm_eps)
            attention.append(weight)
        return select(attention)[0]


def by_the_paper(
    model: TransFG, config: ConfigDict, images: Tensor, labels: Tensor
) -> tuple[ViTOutput, dict[str, Tensor]]:
    """Output and, of a training step under our names, loss and gradients."""
    ours = {k: v.detach().clone().requires_grad_() for k, v in model.state_dict().items()}
    logits, features, chosen = transfg(
        in_their_names(ours), images, config.num_heads, config.patch_stride, config.layer_norm_eps
    )
    centers = patch_centers(config).to(images.dtype)
    output = ViTOutput(logits, features, centers[chosen])
    loss = OBJECTIVE(output, labels)
    loss.backward()
    return output, {"loss": loss.detach(), **{name: leaf.grad for name, leaf in ours.items()}}


def clear_case(config: ConfigDict, batch: int = 4) -> tuple[TransFG, Tensor, Tensor]:
    """A model, images and labels for which rounding decides no selection."""
    model, images = random_model(config, 5, seed=1), random_images(config, batch, seed=1)
    weights = in_their_names({key: value.double() for key, value in model.state_dict().items()})
    assert gaps(naive_row(weights, config, images.double())).min() > 1e-4
    return model, images, torch.tensor([0, 1, 1, 4])[:batch]


def assert_close_to_the_largest(given_back: dict, expected: dict, tolerance: float) -> None:
    assert given_back.keys() == expected.keys()
    far = {
        name: error
        for name, tensor in expected.items()
        if not (error := ((given_back[name] - tensor).abs().max() / tensor.abs().max()).item())
        <= tolerance
    }
    assert far == {}


@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 6])
@splits
def test_outputs_and_all_gradients_are_the_paper_s(split, depth, grad_checkpointing):
    config = parts_config(depth=depth, **split)
    model, images, labels = clear_case(config)
    model.grad_checkpointing = grad_checkpointing
    output = model(images)
    theirs, their_gradients = by_the_paper(model, config, images, labels)
    assert torch.equal(output.parts, theirs.parts)
    assert len(output.parts.flatten(0, 1).unique(dim=0)) > 2  # of several patches
    torch.testing.assert_close(output.logits, theirs.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.features, theirs.features, atol=1e-5, rtol=0)
    gradients = loss_and_gradients(model, images, labels, OBJECTIVE)
    assert_close_to_the_largest(gradients, their_gradients, 1e-5)


@given(sizes=small_sizes(min_depth=2), batch=st.integers(1, 3), seed=SEEDS)
@settings(max_examples=30)
def test_models_of_any_sizes_are_the_paper_s(sizes, batch, seed):
    config = parts_config(**sizes)
    model = random_model(config, 5, seed).double()
    images = random_images(config, batch, seed).double()
    if num_tokens(config) > 2:
        row = naive_row(in_their_names(model.state_dict()), config, images)
        assume(gaps(row).min() > 1e-9)
    labels = torch.arange(batch) % 2
    theirs, their_gradients = by_the_paper(model, config, images, labels)
    torch.testing.assert_close(model(images), theirs, atol=1e-9, rtol=1e-9)
    gradients = loss_and_gradients(model, images, labels, OBJECTIVE)
    torch.testing.assert_close(gradients, their_gradients, atol=1e-9, rtol=1e-7)


@splits
def test_the_others_in_the_batch_play_no_part(split):
    model, images, _ = clear_case(parts_config(**split))
    together = model.eval()(images)
    for i in range(len(images)):
        alone = model(images[i : i + 1])
        in_batch = ViTOutput(*(part[i : i + 1] for part in together))
        assert torch.equal(alone.parts, in_batch.parts)
        torch.testing.assert_close(alone, in_batch, atol=1e-5, rtol=0)


@splits
def test_patches_that_were_dropped_play_no_part_and_the_others_keep_their_places(split):
    config = parts_config(**split)
    model, images, _ = clear_case(config)
    generator = torch.Generator().manual_seed(0)
    patches = grid_side(config) ** 2
    orders = [torch.randperm(patches, generator=generator) for _ in images]
    kept = torch.stack([order[:7].sort().values for order in orders])
    with torch.no_grad():
        output, tokens, centers = model(images, kept), model._tokens(images), model.patch_centers
        for i, own in enumerate(kept):
            model._tokens = lambda *_, i=i, own=own: tokens[i : i + 1, [0, *(1 + own)]]
            model.patch_centers = centers[own]
            alone = model(images[i : i + 1])
            in_batch = ViTOutput(*(part[i : i + 1] for part in output))
            assert torch.equal(alone.parts, in_batch.parts)
            torch.testing.assert_close(alone, in_batch, atol=1e-5, rtol=0)


# --- Registers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [1, 4])
def test_a_register_is_never_selected(registers):
    config = parts_config(num_registers=registers, img_size=64, pre_norm=True)
    model, images = random_model(config, 5, seed=0), random_images(config, 4, seed=0)
    seen = {}
    model.norm_pre.register_forward_hook(lambda module, inputs, output: seen.update(first=output))
    model.part_block.register_forward_pre_hook(lambda module, inputs: seen.update(part=inputs[0]))
    with torch.no_grad():
        # Peaked attention, which some head of some image gives to a register.
        for each in model.blocks:
            each.attn.qkv.weight[: 2 * config.embed_dim] *= 3
        output = model(images)
        x, product = seen["first"], None
        for each in model.blocks:
            x, (queries, keys) = each.with_queries_keys(x)
            attention = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(dim=-1)
            product = attention if product is None else attention @ product
    row, prefix = product[:, :, 0], 1 + registers
    assert x.shape[1] == row.shape[-1] == prefix + 16
    of_all = row.argmax(dim=-1)
    assert ((of_all > 0) & (of_all < prefix)).any()
    index = row[:, :, prefix:].argmax(dim=-1)  # (B, H)
    assert gaps(row[:, :, prefix:]).min() > 1e-4
    centers = patch_centers(config)
    torch.testing.assert_close(output.parts, centers[index])
    for i, chosen in enumerate(index):
        expected = torch.cat((x[i, :1], x[i, prefix:][chosen]))
        torch.testing.assert_close(seen["part"][i], expected, atol=1e-5, rtol=0)


# --- What it costs --------------------------------------------------------------------------------

# 197 tokens so narrow that an N x N matrix is larger than everything else.
NARROW = {"patch_size": 4, "img_size": 56, "embed_dim": 8, "num_heads": 2, "mlp_dim": 8}


@pytest.mark.parametrize("grad_checkpointing", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("queries", [30, 50])
def test_no_matrix_of_all_tokens_exists(monkeypatch, queries, is_training, grad_checkpointing):
    config = parts_config(depth=4, **NARROW)
    model, images = random_model(config, 5, seed=0), random_images(config, 1, seed=0)
    model.grad_checkpointing = grad_checkpointing
    slice_numbers = queries * 2 * 197
    monkeypatch.setitem(MAX_SLICE_BYTES, "cpu", 4 * slice_numbers + 100)
    with torch.set_grad_enabled(is_training), Operators() as operators:
        loss = OBJECTIVE(model.train(is_training)(images), torch.tensor([1]))
        if is_training:
            loss.backward()
    largest = max(numbers for _, numbers in operators.seen)
    assert largest == slice_numbers < 197**2
    assert ("softmax", slice_numbers) in operators.seen


@pytest.mark.parametrize("bound", [0, 1, 4 * 2 * 197])
def test_a_slice_is_at_least_one_query(monkeypatch, bound):
    config = parts_config(**NARROW)
    model, images = random_model(config, 5, seed=0), random_images(config, 1, seed=0)
    monkeypatch.setitem(MAX_SLICE_BYTES, "cpu", bound)
    with torch.no_grad(), Operators() as operators:
        model(images)
    sizes = [numbers for name, numbers in operators.seen if name == "softmax"]
    assert sizes == [2 * 197] * 197


@pytest.mark.parametrize("fields", [{}, {"num_registers": 2}, SPLITS["overlap"]])
@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_no_value_is_read_and_nothing_is_indexed(fields, grad_checkpointing):
    config = parts_config(**fields)
    model, images = random_model(config, 5, seed=0), random_images(config, 4, seed=0)
    model.grad_checkpointing = grad_checkpointing
    objective = OBJECTIVE._replace(class_weights=torch.ones(5))
    kept = torch.tensor([[0, 2]] * 4)
    with Operators() as operators:
        objective(model(images, kept), torch.tensor([0, 1, 1, 4])).backward()
    assert {"argmax", "convolution_backward"} <= operators.names
    assert operators.unwanted == set()


def test_selection_keeps_no_memory():
    parts, plain = (
        random_model(small_config(head=head, img_size=64, depth=6), 5, seed=0)
        for head in ("parts", "token")
    )
    images = random_images(parts_config(img_size=64), 4, seed=0)
    # The parts and what chose them are less than the queries and keys of one block.
    kept = kept_bytes(lambda: parts(images)) - kept_bytes(lambda: plain(images))
    assert kept < 2 * 4 * 17 * 64 * 4


# --- Activation checkpointing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "randomness",
    [{}, {"dropout": 0.2, "drop_path": 0.5, "layer_scale": 0.5}],
    ids=["none", "random"],
)
@splits
def test_activation_checkpointing_changes_no_bit_and_keeps_less_memory(split, randomness):
    config = parts_config(depth=6, **split, **randomness)
    model, images = random_model(config, 5, seed=1), random_images(config, 4, seed=1)
    labels = torch.tensor([0, 1, 1, 4])
    plain, again = (loss_and_gradients(model, images, labels, OBJECTIVE) for _ in range(2))
    torch.testing.assert_close(again, plain, rtol=0, atol=0)  # the same input gives the same bits
    kept = kept_bytes(lambda: model(images))
    model.grad_checkpointing = True
    checkpointed = loss_and_gradients(model, images, labels, OBJECTIVE)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)
    assert kept_bytes(lambda: model(images)) < kept / 3


# --- Names ----------------------------------------------------------------------------------------


def test_the_last_block_and_norm_are_the_part_s():
    fields = {"num_registers": 1, "layer_scale": 0.1, "depth": 12}
    plain, parts = (
        build_model(small_config(head=head, **fields), 5) for head in ("token", "parts")
    )
    renamed = {"blocks.11.": "part_block.", "norm.": "part_norm."}
    expected = {}
    for name, value in plain.named_parameters():
        old = next((old for old in renamed if name.startswith(old)), "")
        ours = renamed.get(old, "") + name.removeprefix(old)
        expected[ours] = (value.shape, plain.layer_of(name))
    given_back = {name: (p.shape, parts.layer_of(name)) for name, p in parts.named_parameters()}
    assert given_back == expected


def test_the_backbone_is_what_selects():
    model = build_model(parts_config(num_registers=1), 5)
    names = dict(model.named_parameters())
    rest = {name.partition(".")[0] for name in names if not model.is_backbone(name)}
    assert rest == {"part_block", "part_norm", "head"}
