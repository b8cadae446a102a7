"""utils/recipes.py: what each recipe fills in, what wins over it, what is recorded and printed."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from layouts_birds import write_cub, write_nabirds
from layouts_objects import write_cars, write_dogs
from layouts_web import write_inat
from ml_collections import FrozenConfigDict

from models.configs import model_names, patch_sizes
from utils.config import parse_train_args, resolve_length
from utils.dist_util import NOT_THE_EXPERIMENT, config_hash
from utils.errors import InputError
from utils.flags import build_train_parser
from utils.recipes import RECIPES, SETTLES, describe_recipes, recipe_names

PATCHES = patch_sizes()

# --- The papers' values, typed once more: a typo in the table is to be noticed --------------------

TRANSFG = {
    "model_type": "ViT-B_16",
    "head": "parts",
    "split": "overlap",
    "slide_step": 12,
    "dropout": 0.1,
    "part_init": "random",
    "pos_resample": "bilinear",
    "pretrained_profile": "imagenet",
    "contrastive_weight": 1.0,
    "contrastive_margin": 0.4,
    "contrastive_scope": "micro",
    "preset": "transfg",
    "train_batch_size": 64,
    "gradient_accumulation_steps": 4,
    "eval_batch_size": 8,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "decay_type": "cosine",
    "num_steps": 10000,
    "warmup_steps": 500,
    "max_grad_norm": 1.0,
    "smoothing_value": 0.0,
    "eval_every": 100,
    "seed": 42,
}
EXPECTED = {
    "transfg-cub": {
        **TRANSFG,
        "dataset": "CUB_200_2011",
        "eval_split": "test",
        "learning_rate": 0.03,
        "img_size": 448,
        "augment": "none",
    },
    "transfg-car": {
        **TRANSFG,
        "dataset": "car",
        "eval_split": "test",
        "learning_rate": 0.03,
        "img_size": 448,
        "augment": "autoaugment",
    },
    "transfg-dog": {
        **TRANSFG,
        "dataset": "dog",
        "eval_split": "test",
        "learning_rate": 0.003,
        "img_size": 448,
        "augment": "none",
    },
    "transfg-nabirds": {
        **TRANSFG,
        "dataset": "nabirds",
        "eval_split": "test",
        "learning_rate": 0.03,
        "img_size": 448,
        "augment": "none",
    },
    "transfg-inat": {
        **TRANSFG,
        "dataset": "INat2017",
        "eval_split": "val",
        "learning_rate": 0.01,
        "img_size": 304,
        "augment": "autoaugment",
    },
    "vit-flowers": {
        "dataset": "flower102",
        "model_type": "ViT-B_16",
        "pretrained_profile": "google",
        "pos_resample": "bilinear",
        "img_size": 384,
        "preset": "vit",
        "train_batch_size": 512,
        "gradient_accumulation_steps": 64,
        "optimizer": "sgd",
        "momentum": 0.9,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "decay_type": "cosine",
        "num_steps": 500,
        "warmup_steps": 50,
        "max_grad_norm": 1.0,
        "dropout": 0.0,
    },
    "small-data": {
        "preset": "strong",
        "optimizer": "adamw",
        "learning_rate": 0.0005,
        "layer_decay": 0.75,
        "weight_decay": 0.05,
        "drop_path": 0.1,
        "smoothing_value": 0.1,
        "train_batch_size": 32,
        "gradient_accumulation_steps": 2,
        "decay_type": "cosine",
        "num_steps": 2000,
        "warmup_steps": 100,
        "max_grad_norm": 1.0,
    },
}
PUBLISHED = {
    "transfg-cub": "91.7 % top-1 on test",
    "transfg-car": "94.8 % top-1 on test",
    "transfg-dog": "92.3 % top-1 on test",
    "transfg-nabirds": "90.8 % top-1 on test",
    "transfg-inat": "71.7 % top-1 on val",
    "vit-flowers": "99.38 % top-1 on test",
    "small-data": "none",
}

NEED_PARTS = ["part_init", "contrastive_weight", "contrastive_margin", "contrastive_scope"]
NEED_WEIGHTS = ["part_init", "pos_resample"]

of_every_recipe = pytest.mark.parametrize("name", EXPECTED)
of_transfg = pytest.mark.parametrize("name", [name for name in EXPECTED if "transfg" in name])


@pytest.fixture(scope="session")
def all_data(tmp_path_factory) -> Path:
    """A parent of the recipes' datasets, without the photos."""
    parent = tmp_path_factory.mktemp("all")
    writers = {
        "CUB_200_2011": write_cub,
        "nabirds": write_nabirds,
        "car": write_cars,
        "dog": write_dogs,
        "INat2017": write_inat,
    }
    for folder, write in writers.items():
        write(parent / folder, photos=False)
    flowers = parent / "flower102"
    (flowers / "jpg").mkdir(parents=True)
    for name in ("imagelabels.mat", "setid.mat"):
        (flowers / name).touch()
    return parent


@pytest.fixture
def parse(all_data, tmp_path):
    """Parses flags to the config of a run, with weights (a file that nobody opens) or without."""
    weights = tmp_path / "weights.npz"
    weights.touch()

    def parse(*flags: object, weights_given: bool = True) -> FrozenConfigDict:
        base = ["--name", "a", "--data_root", all_data, "--output_dir", tmp_path / "output"]
        if weights_given:
            base += ["--pretrained", weights]
        return parse_train_args([str(flag) for flag in [*base, *flags]], PATCHES)

    return parse


def typed(values: Mapping[str, Any]) -> list[str]:
    """The flags that a person types for `values`."""
    return [text for flag, value in values.items() for text in (f"--{flag}", str(value))]


def experiment(config: FrozenConfigDict) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in NOT_THE_EXPERIMENT}


def parser_defaults() -> dict[str, Any]:
    return vars(build_train_parser(model_names()).parse_args(["--name", "a"]))


class TestTable:
    def test_has_the_named_recipes_in_this_order(self):
        assert recipe_names() == tuple(EXPECTED)
        assert {key: recipe.name for key, recipe in RECIPES.items()} == {n: n for n in EXPECTED}

    @of_every_recipe
    def test_has_the_published_values(self, name):
        values = {flag: knob.value for flag, knob in RECIPES[name].knobs.items()}
        assert values == EXPECTED[name]

    @of_every_recipe
    def test_has_a_source_for_each_value(self, name):
        for flag, knob in RECIPES[name].knobs.items():
            assert knob.source.strip() == knob.source != "", flag

    @of_every_recipe
    def test_states_the_figure_and_its_split(self, name):
        recipe = RECIPES[name]
        assert recipe.about
        assert recipe.published.startswith(PUBLISHED[name])
        if "eval_split" in recipe.knobs:
            assert f"on {recipe.knobs['eval_split'].value} " in recipe.published

    @of_every_recipe
    def test_says_where_paper_and_code_differ_if_there_is_a_paper(self, name):
        differences = RECIPES[name].differences
        assert bool(differences) == (PUBLISHED[name] != "none")
        assert all(text.strip() == text and text.endswith(".") for text in differences)

    @of_every_recipe
    def test_sets_nothing_that_is_a_matter_of_the_machine(self, name):
        """A recipe is an experiment: what it fills in enters the config hash."""
        flags = set(RECIPES[name].knobs)
        assert flags <= parser_defaults().keys()
        assert not flags & (NOT_THE_EXPERIMENT | {"pretrained", "epochs"})

    def test_what_is_settled_has_no_default_of_its_own(self):
        """So that leaving a value out leaves it to the run."""
        defaults = parser_defaults()
        for flag, others in SETTLES.items():
            assert flag in defaults
            assert [defaults[other] for other in others] == [None] * len(others)


class TestFillsIn:
    @of_every_recipe
    def test_parses_to_its_values(self, parse, name):
        config = parse("--recipe", name)
        for flag, value in EXPECTED[name].items():
            assert config[flag] == value, flag
            assert type(config[flag]) is type(value), flag
        assert config.recipe.to_dict() == {
            "name": name,
            "values": EXPECTED[name],
            "by_hand": {},
            "left_out": (),
        }
        assert json.loads(config.to_json())["recipe"]["values"] == EXPECTED[name]

    @of_every_recipe
    def test_leaves_the_rest_at_its_defaults(self, parse, name):
        plain = parse(*typed({"dataset": EXPECTED[name].get("dataset", "flower102")})).to_dict()
        config = parse("--recipe", name).to_dict()
        # What the preset decides follows it.
        follows = {"recipe", "augment", "random_erasing", "mixup", "cutmix"}
        different = {flag for flag in parser_defaults() if config[flag] != plain[flag]}
        assert different - follows <= EXPECTED[name].keys()
        if name == "small-data":
            assert (config["augment"], config["random_erasing"]) == ("trivialaugment", 0.25)
            assert (config["mixup"], config["cutmix"]) == (0.2, 1.0)

    @of_every_recipe
    def test_is_the_same_experiment_as_its_flags_typed_by_hand(self, parse, name):
        by_recipe, by_hand = parse("--recipe", name), parse(*typed(EXPECTED[name]))
        assert by_hand.recipe is None
        assert experiment(by_recipe) == experiment(by_hand)
        assert config_hash(by_recipe) == config_hash(by_hand)

    def test_is_another_experiment_than_another_recipe(self, parse):
        hashes = {config_hash(parse("--recipe", name)) for name in EXPECTED}
        assert len(hashes) == len(EXPECTED)

    def test_no_recipe_is_recorded_as_none(self, parse):
        assert parse().recipe is None

    def test_changes_no_table(self, parse):
        config = parse("--recipe", "transfg-cub", "--learning_rate", 1)
        assert config.learning_rate == 1.0
        assert RECIPES["transfg-cub"].knobs["learning_rate"].value == 0.03
        assert parse("--recipe", "transfg-cub").learning_rate == 0.03


def overridden() -> list[tuple[str, str]]:
    """(recipe, flag) of each value that is not the parser's default, which then can be typed."""
    defaults = parser_defaults()
    return [
        (name, flag)
        for name, values in EXPECTED.items()
        for flag, value in values.items()
        if defaults[flag] not in (None, value)
    ]


class TestByHand:
    @pytest.mark.parametrize(("name", "flag"), overridden())
    def test_wins_with_the_parsers_default_too(self, parse, name, flag):
        default = parser_defaults()[flag]
        by_hand = {flag: default}
        if (name, flag) == ("vit-flowers", "train_batch_size"):
            by_hand["gradient_accumulation_steps"] = 1  # 64 would not divide the batch
        config = parse("--recipe", name, *typed(by_hand))
        assert config[flag] == default != EXPECTED[name][flag]
        assert config.recipe.by_hand.to_dict() == by_hand
        assert config.recipe["values"].to_dict() == EXPECTED[name]

    @of_every_recipe
    def test_wins_with_the_recipes_own_value_and_is_recorded(self, parse, name):
        rate = EXPECTED[name]["learning_rate"]
        config = parse("--recipe", name, "--learning_rate", rate)
        assert config.learning_rate == rate
        assert config.recipe.by_hand.to_dict() == {"learning_rate": rate}
        assert config_hash(config) == config_hash(parse("--recipe", name))

    @pytest.mark.parametrize("first", ["recipe", "flag"])
    def test_wins_wherever_it_stands(self, parse, first):
        recipe, flag = ["--recipe", "transfg-dog"], ["--momentum", "0.5"]
        config = parse(*(recipe + flag if first == "recipe" else flag + recipe))
        assert (config.momentum, config.learning_rate) == (0.5, 0.003)

    def test_the_last_recipe_counts(self, parse):
        config = parse("--recipe", "transfg-cub", "--recipe", "transfg-inat")
        assert (config.recipe.name, config.img_size) == ("transfg-inat", 304)

    def test_says_nothing_of_flags_that_no_recipe_sets(self, parse):
        config = parse(
            "--recipe", "vit-flowers", "--num_workers", 0, "--freeze", "backbone", "--epochs", 1
        )
        assert config.recipe.by_hand.to_dict() == {"epochs": 1}


class TestLength:
    def test_epochs_win_over_steps(self, parse):
        config = parse("--recipe", "transfg-cub", "--epochs", 3)
        assert (config.epochs, config.num_steps) == (3, None)
        assert config.recipe.by_hand.to_dict() == {"epochs": 3}
        assert config.recipe.left_out == ("num_steps", "warmup_steps")
        resolved = resolve_length(config, 5994)
        assert resolved.num_steps == math.ceil(3 * 5994 / 64)
        assert resolved.warmup_steps == resolved.num_steps // 10

    def test_steps_win_and_warm_up_is_a_tenth_again(self, parse):
        """The recipe's 500 steps of warm-up would outlast the run."""
        config = parse("--recipe", "transfg-cub", "--num_steps", 200)
        assert config.recipe.by_hand.to_dict() == {"num_steps": 200}
        assert config.recipe.left_out == ("warmup_steps",)
        resolved = resolve_length(config, 5994)
        assert (resolved.num_steps, resolved.warmup_steps) == (200, 20)

    def test_warm_up_by_hand_wins(self, parse):
        config = parse("--recipe", "transfg-cub", "--num_steps", 200, "--warmup_steps", 7)
        assert config.recipe.by_hand.to_dict() == {"num_steps": 200, "warmup_steps": 7}
        assert config.recipe.left_out == ()
        assert resolve_length(config, 5994).warmup_steps == 7
        config = parse("--recipe", "transfg-cub", "--warmup_steps", 7)
        assert (config.num_steps, config.warmup_steps) == (10000, 7)

    @pytest.mark.parametrize(
        ("name", "warmup"), [("transfg-cub", 500), ("vit-flowers", 50), ("small-data", 100)]
    )
    def test_is_the_recipes_without_a_flag(self, parse, name, warmup):
        resolved = resolve_length(parse("--recipe", name), 1020)
        assert resolved.num_steps == EXPECTED[name]["num_steps"]
        assert resolved.warmup_steps == warmup

    def test_steps_and_epochs_exclude_each_other(self, parse):
        with pytest.raises(InputError, match=r"--epochs.*not allowed with.*--num_steps"):
            parse("--recipe", "transfg-cub", "--num_steps", 2, "--epochs", 2)


class TestSplit:
    def test_who_carves_a_val_split_chooses_on_it(self, parse):
        config = parse("--recipe", "transfg-cub", "--val_fraction", 0.25)
        assert (config.eval_split, config.val_fraction) == ("val", 0.25)
        assert config.recipe.by_hand.to_dict() == {"val_fraction": 0.25}
        assert config.recipe.left_out == ("eval_split",)

    def test_another_dataset_has_its_own(self, parse):
        config = parse("--recipe", "transfg-cub", "--dataset", "flower102")
        assert (config.dataset, config.eval_split) == ("flower102", "val")
        assert config.recipe.left_out == ("eval_split",)
        config = parse("--recipe", "transfg-inat", "--dataset", "CUB_200_2011")
        assert (config.dataset, config.eval_split) == ("CUB_200_2011", "test")

    def test_by_hand_wins(self, parse):
        config = parse("--recipe", "transfg-cub", "--val_fraction", 0.25, "--eval_split", "test")
        assert config.eval_split == "test"
        config = parse("--recipe", "vit-flowers", "--eval_split", "test")
        assert config.eval_split == "test"


class TestLeftOut:
    """What means nothing next to a flag given by hand; by hand itself it would be refused."""

    @of_transfg
    def test_without_weights(self, parse, name):
        config = parse("--recipe", name, weights_given=False)
        assert config.recipe.left_out == tuple(NEED_WEIGHTS)
        assert [config[flag] for flag in NEED_WEIGHTS] == [None] * 2
        assert config.pretrained_profile == "imagenet"  # random weights are fed by it too
        assert config.head == "parts"

    def test_without_weights_in_a_plain_model(self, parse):
        config = parse("--recipe", "vit-flowers", weights_given=False)
        assert config.recipe.left_out == ("pos_resample",)
        assert (config.pretrained_profile, config.pos_resample) == (None, None)

    @of_transfg
    def test_of_the_parts_in_a_plain_model(self, parse, name):
        config = parse("--recipe", name, "--head", "token")
        assert config.recipe.left_out == tuple(NEED_PARTS)
        assert [config[flag] for flag in NEED_PARTS] == [None] * 4
        assert config.recipe.by_hand.to_dict() == {"head": "token"}
        assert (config.pos_resample, config.slide_step) == ("bilinear", 12)

    def test_the_step_of_patches_that_do_not_overlap(self, parse):
        config = parse("--recipe", "transfg-cub", "--split", "non-overlap")
        assert config.recipe.left_out == ("slide_step",)
        assert config.slide_step is None

    def test_layer_decay_of_sgd(self, parse):
        config = parse("--recipe", "small-data", "--optimizer", "sgd")
        assert config.recipe.left_out == ("layer_decay",)
        assert config.layer_decay is None

    @pytest.mark.parametrize(
        ("flags", "needs"),
        [
            (["--head", "token", "--contrastive_weight", 1], "--head parts"),
            (["--split", "non-overlap", "--slide_step", 12], "--split overlap"),
            (["--head", "token", "--part_init", "random"], "--head parts"),
        ],
    )
    def test_by_hand_it_is_refused(self, parse, flags, needs):
        with pytest.raises(InputError, match=f"{flags[2]} means nothing without {needs}"):
            parse("--recipe", "transfg-cub", *flags)


class TestBadInput:
    @pytest.mark.parametrize("name", ["transfg", "TRANSFG-CUB", "transfg-cub ", "", "list,small"])
    def test_an_unknown_name(self, parse, name):
        with pytest.raises(InputError, match=r"argument --recipe: invalid choice: .*transfg-cub"):
            parse("--recipe", name)

    def test_what_a_recipe_fills_in_is_checked(self, parse):
        with pytest.raises(InputError, match="64 does not divide --train_batch_size 16"):
            parse("--recipe", "vit-flowers", "--train_batch_size", 16)
        with pytest.raises(InputError, match="mixed images have no one class"):
            parse("--recipe", "small-data", "--head", "parts")


class TestList:
    def test_prints_every_recipe_and_knob(self, capsys):
        with pytest.raises(SystemExit, match=r"^0$"):
            parse_train_args(["--recipe", "list"], PATCHES)
        out, err = capsys.readouterr()
        assert (out, err) == (f"{describe_recipes()}\n", "")
        blocks = out.split("\n\n")
        assert [block.partition(":")[0] for block in blocks] == list(EXPECTED)
        for block, recipe in zip(blocks, RECIPES.values(), strict=True):
            text = re.sub(r"\s+", " ", block)
            assert text.startswith(f"{recipe.name}: {recipe.about} published: {recipe.published} ")
            for flag, knob in recipe.knobs.items():
                assert f" --{flag} {knob.value} {knob.source}" in text, flag
            for difference in recipe.differences:
                assert f" differs: {difference}" in text

    def test_fits_a_terminal_of_100_columns(self):
        assert max(map(len, describe_recipes().splitlines())) <= 100

    def test_wants_no_other_flag_and_writes_nothing(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=r"^0$"):
            parse_train_args(["--seed", "1", "--recipe", "list", "--name", "a"], PATCHES)
        assert capsys.readouterr().out.startswith("transfg-cub: ")
        assert list(tmp_path.iterdir()) == []
