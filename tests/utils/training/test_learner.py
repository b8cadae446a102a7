"""Check that training resumed from a learner's state ends with the same bits."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import train_config
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from models.build import build_model
from models.configs import get_config
from models.vit import Backbone
from utils.data_utils import EMA_RULE
from utils.run.tensor_file import load_archive, save_archive
from utils.training.learner import Learner, build_learner
from utils.training.optimizer import lr_factor

SIZE, CLASSES = 32, 5
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3, "layer_decay": 0.7},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps are so small here that a second thread costs more time than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(**changes: object) -> FrozenConfigDict:
    length = {"warmup_steps": 2, "num_steps": 10}
    return train_config(**{"learning_rate": 0.05, "weight_decay": 0.05, **length, **changes})


def small_model(seed: int) -> Backbone:
    """A `testing` model, narrower still, whose weights no other seed has."""
    sizes = {"embed_dim": 8, "num_heads": 2, "mlp_dim": 8, "depth": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(get_config("testing", SIZE, **sizes), CLASSES)
        torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def learner_of(seed: int = 1, **changes: object) -> Learner:
    """A learner of a small model, by the flags that are given."""
    return build_learner(small_model(seed), config(**changes))


def train(learner: Learner, begin: int, end: int) -> None:
    """Steps `begin` to `end`, each with images of its own."""
    for step in range(begin, end):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(2, 3, SIZE, SIZE, generator=generator)
        labels = torch.randint(0, CLASSES, (2,), generator=generator)
        F.cross_entropy(learner.model(images).logits, labels).backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        learner.advance()


def pass_steps(learner: Learner, count: int) -> None:
    """Do steps without a gradient: the schedule moves, the weights do not."""
    for _ in range(count):
        learner.optimizer.step()
        learner.advance()


def saved_bytes(learner: Learner, path) -> bytes:
    save_archive(path, learner.state_dict())
    return path.read_bytes()


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def numbers_of(learner: Learner) -> dict[str, torch.Tensor]:
    """What the optimizer remembers, by parameter and name."""
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value.clone()
        for parameter, state in learner.optimizer.state.items()
        for key, value in state.items()
    }


class TestResuming:
    @pytest.mark.parametrize("ema_decay", [None, 0.9])
    @pytest.mark.parametrize("flags", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_is_bit_equal(self, tmp_path, flags, ema_decay):
        whole = learner_of(**flags, ema_decay=ema_decay)
        train(whole, 0, 8)
        first = learner_of(**flags, ema_decay=ema_decay)
        train(first, 0, 3)
        second = learner_of(seed=2, **flags, ema_decay=ema_decay)
        second.load_state_dict(first.state_dict())  # not by a file, as below
        assert second.scheduler.get_last_lr() == first.scheduler.get_last_lr()
        train(second, 3, 8)
        assert saved_bytes(second, tmp_path / "a") == saved_bytes(whole, tmp_path / "b")
        assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
        for variant, model in whole.variants().items():
            assert torch.equal(weights_of(second.variants()[variant]), weights_of(model))

    @pytest.mark.parametrize("flags", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_after_every_single_step_is_bit_equal(self, tmp_path, flags):
        whole = learner_of(**flags, ema_decay=0.8)
        train(whole, 0, 5)
        learner = learner_of(seed=10, **flags, ema_decay=0.8)
        learner.load_state_dict(learner_of(**flags, ema_decay=0.8).state_dict())  # of step 0
        for step in range(5):
            train(learner, step, step + 1)
            save_archive(tmp_path / "state", learner.state_dict())
            learner = learner_of(seed=11 + step, **flags, ema_decay=0.8)
            learner.load_state_dict(load_archive(tmp_path / "state"))
        assert saved_bytes(learner, tmp_path / "a") == saved_bytes(whole, tmp_path / "b")

    def test_saving_changes_nothing(self, tmp_path):
        learner = learner_of(ema_decay=0.9)
        train(learner, 0, 2)
        before = weights_of(learner.model)
        first = saved_bytes(learner, tmp_path / "a")
        assert saved_bytes(learner, tmp_path / "b") == first
        assert torch.equal(weights_of(learner.model), before)


class TestOtherFlags:
    """What the config says now counts from the next step on; what was learned stays."""

    def resume(self, before: dict, now: dict) -> tuple[Learner, Learner]:
        first = learner_of(**before)
        train(first, 0, 3)
        second = learner_of(seed=2, **now)
        second.load_state_dict(first.state_dict())
        assert torch.equal(weights_of(second.model), weights_of(first.model))
        return first, second

    @pytest.mark.parametrize(
        ("optimizer", "changes"),
        [
            ("sgd", {"num_steps": 4}),
            ("sgd", {"warmup_steps": 6}),
            ("sgd", {"weight_decay": 0.0}),
            ("sgd", {"learning_rate": 0.2, "num_steps": 50, "decay_type": "linear"}),
            ("adamw", {"learning_rate": 0.2}),
            ("adamw", {"layer_decay": 0.5}),
        ],
        ids=str,
    )
    def test_set_the_rates_of_a_run_that_had_them_always(self, optimizer, changes):
        flags = OPTIMIZERS[optimizer]
        first, second = self.resume(flags, {**flags, **changes})
        remembered = numbers_of(first)
        assert remembered
        for name, value in numbers_of(second).items():
            assert torch.equal(value, remembered[name]), name
        always = learner_of(seed=3, **{**flags, **changes})
        pass_steps(always, 3)
        for step in range(3, 8):
            now = config(**{**flags, **changes})
            factor = lr_factor(now.decay_type, now.warmup_steps, now.num_steps)(step)
            assert second.scheduler.get_last_lr()[0] == now.learning_rate * factor
            for ours, theirs in zip(
                second.optimizer.param_groups, always.optimizer.param_groups, strict=True
            ):
                assert {k: v for k, v in ours.items() if k != "params"} == {
                    k: v for k, v in theirs.items() if k != "params"
                }
            assert second.scheduler.get_last_lr() == [
                group["lr"] for group in second.optimizer.param_groups
            ]
            pass_steps(second, 1)
            pass_steps(always, 1)

    @pytest.mark.parametrize(("before", "now"), [(0.0, 0.9), (0.9, 0.0)])
    def test_may_switch_momentum_on_and_off(self, before, now):
        _, second = self.resume({"momentum": before}, {"momentum": now})
        train(second, 3, 5)
        assert {group["momentum"] for group in second.optimizer.param_groups} == {now}
        assert torch.isfinite(weights_of(second.model)).all()


class TestAverage:
    @settings(max_examples=8)
    @given(decay=st.floats(0.01, 0.999), rule=st.sampled_from([EMA_RULE, None]))
    def test_is_a_copy_first_and_then_follows_the_formula(self, decay, rule):
        """Without a rule in its config, as runs from before it, it keeps the same share always."""
        learner = learner_of(ema_decay=decay, ema_rule=rule)
        expected = None
        for step in range(4):
            train(learner, step, step + 1)
            weights = weights_of(learner.model)
            average = weights_of(learner.variants()["ema"])
            if expected is None:
                assert torch.equal(average, weights)
                expected = weights.double()
            else:
                kept = decay if rule is None else min(decay, (1 + step) / (10 + step))
                expected = kept * expected + (1 - kept) * weights.double()
                assert torch.allclose(average.double(), expected, rtol=1e-5, atol=1e-7)

    def test_leaves_the_weights_alone(self):
        plain, averaged = learner_of(), learner_of(ema_decay=0.5)
        for learner in (plain, averaged):
            train(learner, 0, 4)
        assert torch.equal(weights_of(plain.model), weights_of(averaged.model))
        assert not torch.equal(weights_of(averaged.variants()["ema"]), weights_of(plain.model))

    def test_is_of_every_weight_and_has_none_of_its_own(self):
        learner = learner_of(ema_decay=0.5)
        raw, averaged = learner.variants()[""].state_dict(), learner.variants()["ema"].state_dict()
        assert raw.keys() == averaged.keys()
        for name, weights in raw.items():
            assert torch.equal(averaged[name], weights)
            assert averaged[name].data_ptr() != weights.data_ptr()


def test_variants_are_the_raw_weights_and_the_averaged_if_any():
    plain, averaged = learner_of(), learner_of(ema_decay=0.5)
    assert plain.variants() == {"": plain.model}
    assert plain.shared is plain.model  # of one process
    assert averaged.variants() == {"": averaged.model, "ema": averaged.ema.module}
    assert list(averaged.variants()) == ["", "ema"]
    assert type(averaged.ema.module) is type(averaged.model)


def test_a_frozen_backbone_is_resumed_too(tmp_path):
    def frozen(seed: int) -> Learner:
        model = small_model(seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head"))
        return build_learner(model, config(ema_decay=0.5))

    whole, first = frozen(1), frozen(1)
    train(whole, 0, 4)
    train(first, 0, 2)
    second = frozen(2)
    second.load_state_dict(first.state_dict())
    train(second, 2, 4)
    assert saved_bytes(second, tmp_path / "a") == saved_bytes(whole, tmp_path / "b")
