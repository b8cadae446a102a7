"""Check the learning rate of every step and layer, and which weights decay."""

import math

import pytest
import torch
from helpers import train_config
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from models.build import build_model, freeze
from models.configs import get_config
from utils.training.optimizer import build_optimizer, build_scheduler, lr_factor

DECAYS = ["cosine", "linear"]


def config(**changes) -> FrozenConfigDict:
    length = {"warmup_steps": 2, "num_steps": 10}
    return train_config(**{"learning_rate": 0.1, "weight_decay": 0.05, **length, **changes})


@pytest.fixture(scope="module")
def model():
    return build_model(get_config("testing", 32), 5)


def optimizer_of(model, **changes) -> torch.optim.Optimizer:
    return build_optimizer(model, config(**changes), model.no_weight_decay(), model.layer_of)


class TestLearningRateFactor:
    def test_of_cosine_is_this_sequence(self):
        factor = lr_factor("cosine", warmup_steps=2, num_steps=6)
        half = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(5)]
        assert [factor(i) for i in range(7)] == pytest.approx([1 / 3, 2 / 3, *half])

    def test_of_linear_is_this_sequence(self):
        factor = lr_factor("linear", warmup_steps=3, num_steps=7)
        expected = [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]
        assert [factor(i) for i in range(8)] == pytest.approx(expected)

    def test_of_an_unknown_decay_is_refused(self):
        with pytest.raises(ValueError, match=r"^'step' is not a decay: use cosine or linear$"):
            lr_factor("step", 0, 5)

    @pytest.mark.parametrize("decay", DECAYS)
    @settings(max_examples=150)
    @given(num_steps=st.integers(1, 300), warmup=st.integers(0, 320))
    def test_rises_to_the_peak_then_falls_to_zero(self, decay, num_steps, warmup):
        factor = lr_factor(decay, warmup, num_steps)
        values = [factor(step) for step in range(num_steps)]
        assert all(0 < value <= 1 for value in values)
        up, down = values[: warmup + 1], values[warmup:]
        assert up == sorted(up)
        assert down == sorted(down, reverse=True)
        if warmup < num_steps:
            assert values[warmup] == 1
            assert factor(num_steps) == pytest.approx(0, abs=1e-12)
        for step in range(min(warmup, num_steps)):
            assert values[step] == pytest.approx((step + 1) / (warmup + 1))


class TestOptimizer:
    @pytest.mark.parametrize("pool", ["token", "avg"])
    def test_spares_biases_norms_class_token_and_positions(self, pool):
        model_config = get_config("testing", 32)
        model_config.pool = pool
        model = build_model(model_config, 5)
        made = optimizer_of(model, optimizer="adamw")
        decay_of = {id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
        for name, parameter in model.named_parameters():
            is_spared = (
                name.endswith(".bias") or "norm" in name or name in ("cls_token", "pos_embed")
            )
            assert decay_of[id(parameter)] == (0.0 if is_spared else 0.05), name

    def test_is_what_the_config_says(self, model):
        sgd = optimizer_of(model, momentum=0.7)
        assert isinstance(sgd, torch.optim.SGD)
        assert {group["momentum"] for group in sgd.param_groups} == {0.7}
        assert isinstance(optimizer_of(model, optimizer="adamw"), torch.optim.AdamW)

    def test_that_is_unknown_is_refused(self, model):
        with pytest.raises(ValueError, match=r"^'adam' is not an optimizer: use sgd or adamw$"):
            optimizer_of(model, optimizer="adam")


def groups_of(model, optimizer) -> dict[str, dict]:
    """The optimizer's group of each parameter that it holds, by the parameter's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


# Steps from the head, of every parameter of the `testing` models by the start of its name.
DISTANCES = {
    "token": {
        "head.": 0,
        "norm.": 0,
        "blocks.2.": 1,
        "blocks.1.": 2,
        "blocks.0.": 3,
        "cls_token": 4,
        "pos_embed": 4,
        "patch_embed.": 4,
    },
    "parts": {
        "head.": 0,
        "part_norm.": 0,
        "part_block.": 1,
        "blocks.1.": 2,
        "blocks.0.": 3,
        "cls_token": 4,
        "pos_embed": 4,
        "patch_embed.": 4,
    },
}


def fresh(head: str = "token"):
    return build_model(get_config("testing", 32, head=head), 5)


class TestLayerDecay:
    @pytest.mark.parametrize("head", ["token", "parts"])
    def test_gives_every_layer_its_share_of_the_peak(self, head):
        model, decay = fresh(head), 0.75
        made = optimizer_of(model, optimizer="adamw", layer_decay=decay)
        groups = groups_of(model, made)
        assert groups.keys() == dict(model.named_parameters()).keys()
        for name, group in groups.items():
            (distance,) = [d for start, d in DISTANCES[head].items() if name.startswith(start)]
            assert group["lr"] == pytest.approx(0.1 * decay**distance, rel=1e-12), name
        assert len({group["lr"] for group in made.param_groups}) == 5
        assert made.param_groups[0]["lr"] == 0.1
        for frozen in ("backbone", "3"):
            freeze(model, frozen)
            made = optimizer_of(model, optimizer="adamw", layer_decay=decay)
            assert made.param_groups[0]["lr"] == 0.1  # what the log shows

    @pytest.mark.parametrize("head", ["token", "parts"])
    def test_leaves_weight_decay_as_it_was(self, head):
        model = fresh(head)
        decayed, plain = (
            groups_of(model, optimizer_of(model, optimizer="adamw", layer_decay=decay))
            for decay in (0.7, None)
        )
        for name, group in decayed.items():
            assert group["weight_decay"] == plain[name]["weight_decay"], name
        assert {group["weight_decay"] for group in decayed.values()} == {0.0, 0.05}

    @pytest.mark.parametrize("decay", [None, 1.0])
    def test_of_nothing_is_one_rate_in_two_groups(self, model, decay):
        made = optimizer_of(model, optimizer="adamw", layer_decay=decay)
        assert [group["lr"] for group in made.param_groups] == [0.1, 0.1]
        assert [group["weight_decay"] for group in made.param_groups] == [0.05, 0.0]

    @pytest.mark.parametrize("decay_type", DECAYS)
    def test_keeps_its_shares_through_the_schedule(self, decay_type):
        made = optimizer_of(fresh(), optimizer="adamw", layer_decay=0.5)
        shares = [group["lr"] / 0.1 for group in made.param_groups]
        scheduler = build_scheduler(made, config(decay_type=decay_type))
        factor = lr_factor(decay_type, 2, 10)
        for step in range(10):
            expected = [0.1 * factor(step) * share for share in shares]
            assert scheduler.get_last_lr() == pytest.approx(expected)
            assert scheduler.get_last_lr() == [group["lr"] for group in made.param_groups]
            made.step()
            scheduler.step()


class TestFrozen:
    @pytest.mark.parametrize("head", ["token", "parts"])
    @pytest.mark.parametrize("what", ["backbone", "2"])
    def test_is_not_held_and_not_moved(self, head, what):
        model = fresh(head)
        freeze(model, what)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert 0 < len(trained) < len(list(model.parameters()))
        made = optimizer_of(model, optimizer="adamw", layer_decay=0.5)
        assert groups_of(model, made).keys() == trained
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        made.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) is (name not in trained), name

    def test_layers_keep_their_distance_from_the_top(self):
        """What is frozen counts as a layer: the rest learns as fast as it did."""
        model = fresh()
        every = groups_of(model, optimizer_of(model, optimizer="adamw", layer_decay=0.5))
        freeze(model, "1")
        some = groups_of(model, optimizer_of(model, optimizer="adamw", layer_decay=0.5))
        assert some.keys() < every.keys()
        assert all(group["lr"] == every[name]["lr"] for name, group in some.items())

    def test_all_of_it_is_refused(self):
        model = fresh().requires_grad_(False)
        with pytest.raises(ValueError, match=r"^every parameter is frozen$"):
            optimizer_of(model)
