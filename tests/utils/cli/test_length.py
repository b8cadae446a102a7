"""utils/cli/length.py: how long run and warm-up are, and what a short run changes of a recipe."""

import contextlib
import math

import pytest
from helpers import CHOICES
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from utils.cli.defaults import MAX_WARMUP_STEPS
from utils.cli.length import describe_length, resolve_length
from utils.cli.recipes import RECIPES
from utils.cli.resolve import parse_train, resolve_config
from utils.data.presets import Augmentation
from utils.errors import InputError


def train_flags(*argv: object) -> FrozenConfigDict:
    """The flags of a training run on data and from weights that nobody opens."""
    base = "--name a --dataset synthetic --model_type testing --img_size 64 --output_dir out"
    return parse_train([*base.split(), *map(str, argv)], CHOICES)


class TestLength:
    @settings(max_examples=40)
    @given(samples=st.integers(1, 10_000), batch=st.integers(1, 512), length=st.integers(1, 10_000))
    def test_said_as_epochs_or_as_steps_is_both(self, samples, batch, length):
        flags = train_flags(f"--train_batch_size={batch}", f"--epochs={length}")
        resolved = resolve_length(flags, samples)
        assert (resolved["num_steps"] - 1) * batch < length * samples
        assert length * samples <= resolved["num_steps"] * batch
        assert resolved["epochs"] == pytest.approx(resolved["num_steps"] * batch / samples)
        flags = train_flags(f"--train_batch_size={batch}", f"--num_steps={length}")
        resolved = resolve_length(flags, samples)
        assert resolved["num_steps"] == length
        assert resolved["epochs"] == pytest.approx(length * batch / samples)
        # Warm-up is at most a tenth.
        assert resolved["warmup_steps"] == min(math.floor(length / 10), MAX_WARMUP_STEPS)

    def test_said_in_two_ways_is_one_config(self):
        configs = []
        for argv in (["--epochs", 3], ["--num_steps", 30]):
            flags = train_flags(*argv)
            configs.append(resolve_config(flags, resolve_length(flags, 160)).to_dict())
        assert configs[0] == configs[1]

    @pytest.mark.parametrize("flag", ["--epochs", "--num_steps", "--train_batch_size"])
    @pytest.mark.parametrize("zeros", [10, 20, 308])
    def test_that_no_run_can_have_does_not_crash(self, flag, zeros):
        with contextlib.suppress(InputError):  # refused or taken, both are well
            assert math.isfinite(resolve_length(train_flags(flag, 10**zeros), 200)["epochs"])

    def test_has_a_default_and_keeps_the_warm_up_of_a_flag(self):
        assert resolve_length(train_flags(), 200)["num_steps"] == 1000
        for asked in (0, 7, 900, 1000):
            flags = train_flags("--num_steps=1000", f"--warmup_steps={asked}")
            assert resolve_length(flags, 200)["warmup_steps"] == asked

    def test_decides_the_workers(self):
        tiny = ["--tiny_train_subset", "synthetic_tiny"]
        assert resolve_length(train_flags(), 200)["num_workers"] == 2
        assert resolve_length(train_flags(*tiny), 8)["num_workers"] == 0
        assert resolve_length(train_flags(*tiny, "--num_workers", 3), 8)["num_workers"] == 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[object]:
    """Names a file that nobody opens, for recipes that start from one."""
    path = tmp_path_factory.mktemp("weights") / "ckpt.bin"
    path.touch()
    return ["--pretrained", path]


OWN = {name: recipe.values("testing") for name, recipe in RECIPES.items()}
SHORT = {name: {} for name in RECIPES} | {
    "small-data": {"drop_path": 0.0, **Augmentation()._asdict()},
}


class TestShortenedRecipe:
    @settings(max_examples=60)
    @given(name=st.sampled_from(list(RECIPES)), num_steps=st.integers(1, 12_000))
    def test_keeps_its_share_of_warm_up_and_lowers_its_rate(self, weights, name, num_steps):
        own, tried = OWN[name], RECIPES[name].tried_steps or OWN[name]["num_steps"]
        flags = train_flags("--recipe", name, "--num_steps", num_steps, *weights)
        config = resolve_config(flags, resolve_length(flags, 1000))
        warmup, rate = config.warmup_steps, config.learning_rate
        changed = {}
        if num_steps < own["num_steps"]:
            share = max(own["warmup_steps"] / own["num_steps"], 0.1)
            assert 0 <= warmup - num_steps * share < 1 + 1e-9 * num_steps
            assert warmup <= num_steps
            changed["warmup_steps"] = warmup
        else:
            assert warmup == own["warmup_steps"]
        if num_steps < tried:
            wanted = own["learning_rate"] * math.sqrt(num_steps / tried)
            assert rate == pytest.approx(wanted, rel=0.005)
            assert rate <= own["learning_rate"]
            changed["learning_rate"] = rate
        else:
            assert rate == own["learning_rate"]
        if 10 * num_steps < own["num_steps"]:
            changed |= SHORT[name]
        for flag in SHORT[name]:
            assert config[flag] == changed.get(flag, own[flag])
        assert config.recipe.get("shortened", FrozenConfigDict()).to_dict() == changed
        lines = describe_length(config, 1000)
        assert len(lines) == 1 + bool(changed)
        for flag, value in changed.items():
            assert f"--{flag} {value} (the recipe's: {own[flag]})" in lines[1]

    @settings(max_examples=40)
    @given(name=st.sampled_from(list(RECIPES)), steps=st.tuples(*[st.integers(1, 12_000)] * 2))
    def test_of_fewer_steps_has_no_higher_rate_and_no_longer_warm_up(self, weights, name, steps):
        shorter, longer = (
            resolve_config(flags, resolve_length(flags, 1000))
            for num_steps in sorted(steps)
            for flags in [train_flags("--recipe", name, "--num_steps", num_steps, *weights)]
        )
        assert shorter.learning_rate <= longer.learning_rate
        # A run of all the recipe's steps may have less than a tenth.
        is_whole = longer.num_steps >= OWN[name]["num_steps"]
        assert is_whole or shorter.warmup_steps <= longer.warmup_steps

    def test_is_the_same_said_in_epochs(self, weights):
        by_steps, by_epochs = (
            resolve_length(train_flags("--recipe", "small-data", *length, *weights), 320)
            for length in (["--num_steps", 60], ["--epochs", 6])
        )
        for key in ("num_steps", "warmup_steps", "learning_rate"):
            assert by_steps[key] == by_epochs[key]
        assert (by_steps["warmup_steps"], by_steps["learning_rate"]) == (6, 8.66e-05)

    def test_leaves_what_was_given_by_hand(self, weights):
        by_hand = "--warmup_steps 20 --learning_rate 5e-4 --augment randaugment --mixup 0.4"
        argv = ["--recipe", "small-data", "--num_steps", 60, *by_hand.split()]
        length = resolve_length(train_flags(*argv, *weights), 320)
        assert length["recipe"]["shortened"] == {
            "drop_path": 0.0,
            "random_erasing": 0.0,
            "cutmix": 0.0,
        }
        assert length["warmup_steps"] == 20
        assert not {"learning_rate", "augment", "mixup"} & length.keys()
        argv += ["--drop_path", 0.2, "--preset", "vit"]
        assert "recipe" not in resolve_length(train_flags(*argv, *weights), 320)


class TestWarmupLongerThanTheRun:
    @pytest.mark.parametrize(
        "argv", ["--num_steps 5 --warmup_steps 6", "--warmup_steps 1001", "--recipe small-data"]
    )
    def test_is_refused_before_data_are_read(self, weights, argv):
        argv = [*argv.split(), "--warmup_steps", 9999, *weights]
        with pytest.raises(InputError, match=r"--warmup_steps 9999 is longer than the run, which"):
            train_flags(*argv)

    def test_is_refused_when_the_length_is_known(self):
        flags = train_flags("--epochs", 1, "--warmup_steps", 20)
        assert resolve_length(flags, 16 * 20)["warmup_steps"] == 20
        with pytest.raises(InputError, match=r"--warmup_steps 20 is longer than the run, .* 19 st"):
            resolve_length(flags, 16 * 19)
