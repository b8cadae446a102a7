"""Activation checkpointing computes the same numbers in less memory."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_mps import pretended_mps
from small_models import SEEDS, kept_bytes
from torch import Tensor, nn

from models.activation_checkpointing import _replay_mps, checkpointed


def layers_of(depth: int, dropout: float = 0.0, width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)) for _ in range(depth)]
    return nn.Sequential(*(part for layer in parts for part in layer))


def input_of(seed: int = 0, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, width, generator=generator, requires_grad=True)


def gradients_of(function, x: Tensor, module: nn.Module, seed: int = 0) -> tuple[Tensor, ...]:
    """The output, the gradients of the input and of all parameters, and the next random number."""
    torch.manual_seed(seed)
    output = function(x)
    gradients = torch.autograd.grad(output.square().sum(), (x, *module.parameters()))
    return output, *gradients, torch.rand(1)


def assert_equal(given_back: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(given_back, expected, rtol=0, atol=0)


class Counter:
    """A function that counts how often it is computed."""

    def __init__(self, function) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.function(*inputs)


# --- The same numbers -----------------------------------------------------------------------------


@given(depth=st.integers(1, 3), dropout=st.sampled_from((0.0, 0.1, 0.5)), seed=SEEDS)
@settings(max_examples=20)
def test_outputs_gradients_and_randomness_are_the_same_bits(depth, dropout, seed):
    layers, x = layers_of(depth, dropout), input_of(seed)
    expected = gradients_of(layers, x, layers, seed)
    assert_equal(gradients_of(functools.partial(checkpointed, layers), x, layers, seed), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_may_be_nested(dropout):
    layers, x = layers_of(3, dropout), input_of()
    pieces = [Counter(layers[3 * i : 3 * i + 3]) for i in range(3)]

    def chain(x: Tensor) -> Tensor:
        for piece in pieces:
            x = checkpointed(piece, x)
        return x

    whole = Counter(chain)
    given_back = gradients_of(functools.partial(checkpointed, whole), x, layers)
    assert_equal(given_back, gradients_of(layers, x, layers))
    assert whole.calls >= 2
    assert all(piece.calls >= 2 for piece in pieces)


def test_it_takes_several_inputs_and_gives_several_outputs():
    x, y = input_of(0), input_of(1)
    product, total = checkpointed(lambda a, b: (a * b, a + b), x, y)
    assert_equal((product, total), (x * y, x + y))
    expected = torch.autograd.grad((x * y).sum() + (x + y).square().sum(), (x, y))
    assert_equal(torch.autograd.grad(product.sum() + total.square().sum(), (x, y)), expected)


# --- When -----------------------------------------------------------------------------------------


def test_it_is_computed_again_in_the_backward_pass():
    function = Counter(layers_of(1))
    output = checkpointed(function, input_of())
    assert function.calls == 1
    output.sum().backward()
    assert function.calls == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_just_called(mode, monkeypatch):
    monkeypatch.setattr("models.activation_checkpointing.checkpoint", None)
    function, x = Counter(layers_of(1)), input_of()
    with mode():
        output = checkpointed(function, x)
        assert torch.equal(output, function.function(x))
    assert function.calls == 1
    assert not output.requires_grad


def test_less_is_kept():
    layers, x = layers_of(8, width=64), input_of(width=64)
    weights = sum(p.numel() * p.element_size() for p in layers.parameters())
    all_kept = kept_bytes(lambda: layers(x))
    assert all_kept > 8 * x.numel() * 4
    # The input, and not the weights either: they live anyway.
    assert kept_bytes(lambda: checkpointed(layers, x)) == x.numel() * 4 < all_kept - weights


# --- The generator of MPS, which torch does not replay --------------------------------------------


class FakeMps:
    """A generator behind the functions of `torch.mps`; its state is the count of draws."""

    def __init__(self, monkeypatch) -> None:
        self.state = 0
        monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([self.state]))
        monkeypatch.setattr(torch.mps, "set_rng_state", self._set)

    def _set(self, state: Tensor) -> None:
        self.state = int(state)

    def draw(self) -> int:
        self.state += 1
        return self.state

    def dropout(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.draw())
        mask = torch.rand(x.shape, generator=generator) < 0.5
        return x * mask.float().to(x.device)


@pytest.fixture
def mps(monkeypatch) -> FakeMps:
    return FakeMps(monkeypatch)


def test_the_second_computation_draws_as_the_first(mps):
    mps.state = 7
    first, second = _replay_mps()
    with first:
        assert [mps.draw(), mps.draw()] == [8, 9]
    mps.state = 20  # what came between

    def compute_again() -> None:
        with second:
            assert [mps.draw(), mps.draw()] == [8, 9]
            raise RuntimeError("early")  # as torch ends a second computation

    for _ in range(2):  # as with `backward(retain_graph=True)`
        with pytest.raises(RuntimeError, match="early"):
            compute_again()
        assert mps.state == 20


def pretended_step(mps: FakeMps, is_checkpointed: bool) -> tuple[Tensor, ...]:
    """Output, gradient and the generator's state after a step of nested functions with dropout."""
    mps.state = 7
    run = checkpointed if is_checkpointed else lambda function, x: function(x)
    with pretended_mps():
        x = input_of().detach().to("mps").requires_grad_()

        def layer(x: Tensor) -> Tensor:
            return mps.dropout(F.gelu(mps.dropout(x)))

        def chain(x: Tensor) -> Tensor:
            for _ in range(2):
                x = run(layer, x)
            return x.square()

        output = run(chain, x)
        mps.draw()  # what came between
        output.sum().backward()
        return output.detach().cpu(), x.grad.cpu(), torch.tensor(mps.state)


def test_on_mps_a_step_is_the_same_bits(mps):
    given_back, expected = pretended_step(mps, True), pretended_step(mps, False)
    assert_equal(given_back, expected)
    assert 0 < (expected[1] == 0).float().mean() < 1


def test_other_devices_are_left_to_torch(mps, monkeypatch):
    def refuse() -> None:
        raise AssertionError("there is no MPS here")

    monkeypatch.setattr(torch.mps, "get_rng_state", refuse)
    checkpointed(layers_of(1, 0.5), input_of()).sum().backward()
