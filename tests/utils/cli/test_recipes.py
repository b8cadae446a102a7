"""utils/cli/recipes.py: what each recipe fills in, what wins over it, what is recorded, printed."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
from helpers import CHOICES
from ml_collections import FrozenConfigDict

from utils.cli.flags import FLAGS, experiment_of
from utils.cli.length import resolve_length
from utils.cli.recipes import DECIDES, RECIPES, describe_recipes
from utils.cli.resolve import parse_train
from utils.data.presets import Augmentation
from utils.errors import InputError

# --- The papers' values, typed once more: a typo in the table is to be noticed --------------------

TRANSFG = (
    "--model_type ViT-B_16 --head parts --split overlap --slide_step 12 --dropout 0.1 "
    "--part_init random --pos_resample bilinear --pretrained_profile imagenet "
    "--contrastive_weight 1.0 --contrastive_margin 0.4 --contrastive_scope micro --preset transfg "
    "--train_batch_size 64 --gradient_accumulation_steps 4 --eval_batch_size 8 --optimizer sgd "
    "--momentum 0.9 --weight_decay 0.0 --decay_type cosine --num_steps 10000 --warmup_steps 500 "
    "--max_grad_norm 1.0 --smoothing_value 0.0 --eval_every 100 --seed 42 "
)
FINETUNE = (
    "--preset vit --optimizer adamw --learning_rate 0.0003 --layer_decay 0.65 --weight_decay 0.05 "
    "--drop_path 0.0 --smoothing_value 0.1 --train_batch_size 32 --gradient_accumulation_steps 2 "
    "--decay_type cosine --num_steps 300 --warmup_steps 30 --max_grad_norm 1.0"
)
PLAIN = "--eval_split test --img_size 448"
COMMANDS = {
    "transfg-cub": f"{TRANSFG} {PLAIN} --learning_rate 0.03 --augment none --dataset CUB_200_2011",
    "transfg-car": f"{TRANSFG} {PLAIN} --learning_rate 0.03 --augment autoaugment --dataset car",
    "transfg-dog": f"{TRANSFG} {PLAIN} --learning_rate 0.003 --augment none --dataset dog",
    "transfg-nabirds": f"{TRANSFG} {PLAIN} --learning_rate 0.03 --augment none --dataset nabirds",
    "transfg-inat": f"{TRANSFG} --dataset INat2017 --eval_split val --learning_rate 0.01 "
    "--img_size 304 --augment autoaugment",
    "vit-flowers": "--dataset flower102 --model_type ViT-B_16 --pretrained_profile google "
    "--pos_resample bilinear --img_size 384 --preset vit --train_batch_size 512 "
    "--gradient_accumulation_steps 64 --optimizer sgd --momentum 0.9 --learning_rate 0.01 "
    "--weight_decay 0.0 --decay_type cosine --num_steps 500 --warmup_steps 50 --max_grad_norm 1.0 "
    "--dropout 0.0",
    "small-data": "--preset strong --augment trivialaugment --random_erasing 0.25 --mixup 0.2 "
    "--cutmix 1.0 --optimizer adamw --learning_rate 0.0005 --layer_decay 0.75 "
    "--weight_decay 0.05 --drop_path 0.1 --smoothing_value 0.1 --train_batch_size 32 "
    "--gradient_accumulation_steps 2 --decay_type cosine --num_steps 2000 --warmup_steps 100 "
    "--max_grad_norm 1.0",
    "finetune": FINETUNE,
    "probe-then-finetune": FINETUNE,
}


def values_of(command: str) -> dict[str, Any]:
    """The values of the flags in a command line, by name."""
    words = command.split()
    kinds = {flag: FLAGS[flag[2:]].kind for flag in words[::2]}
    return {
        flag[2:]: text if isinstance(kinds[flag], tuple) else kinds[flag](text)
        for flag, text in zip(words[::2], words[1::2], strict=True)
    }


EXPECTED = {name: values_of(command) for name, command in COMMANDS.items()}
# What is other from ViT-B on, which is the default: these values were not tried.
FROM_B = {"learning_rate": 6e-5}
LARGER = {"finetune": FROM_B, "probe-then-finetune": FROM_B}
OF_B = {name: values | LARGER.get(name, {}) for name, values in EXPECTED.items()}
PUBLISHED = {
    "transfg-cub": "91.7 % top-1 on test",
    "transfg-car": "94.8 % top-1 on test",
    "transfg-dog": "92.3 % top-1 on test",
    "transfg-nabirds": "90.8 % top-1 on test",
    "transfg-inat": "71.7 % top-1 on val",
    "vit-flowers": "99.38 % top-1 on test",
    "small-data": "none",
    "finetune": "none",
    "probe-then-finetune": "none",
}

NEED_PARTS = ["part_init", "contrastive_weight", "contrastive_margin", "contrastive_scope"]
NEED_WEIGHTS = ["part_init", "pos_resample"]

of_every_recipe = pytest.mark.parametrize("name", EXPECTED)


@pytest.fixture
def parse(tmp_path):
    """Parses flags to the flags of a run, with weights (a file that nobody opens) or without."""
    weights = tmp_path / "weights.npz"
    weights.touch()

    def parse(*flags: object, weights_given: bool = True) -> FrozenConfigDict:
        base = ["--name", "a", "--output_dir", tmp_path / "output"]
        if weights_given:
            base += ["--pretrained", weights]
        return parse_train([str(flag) for flag in [*base, *flags]], CHOICES)

    return parse


def typed(values: Mapping[str, Any]) -> list[str]:
    """The flags that a person types for `values`."""
    return [text for flag, value in values.items() for text in (f"--{flag}", str(value))]


class TestTable:
    @of_every_recipe
    def test_has_the_published_values_each_with_a_source(self, name):
        recipe = RECIPES[name]
        assert recipe.values() == EXPECTED[name]
        assert all(knob.source.strip() == knob.source != "" for knob in recipe.knobs.values())
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
        assert {FLAGS[flag].hashed for flag in RECIPES[name].knobs} == {"value"}

    def test_what_another_flag_decides_has_no_default_of_its_own(self):
        """So that leaving a value out leaves it to the run."""
        for flag, others in DECIDES.items():
            assert flag in FLAGS
            own = [FLAGS[other].default for other in others if other != "weight_decay"]
            assert own == [None] * len(own)
        assert FLAGS["weight_decay"].default == 0  # which fits every optimizer


class TestFillsIn:
    @of_every_recipe
    def test_is_recorded_with_its_values(self, parse, name):
        config = parse("--recipe", name)
        assert config.recipe.to_dict() == {
            "name": name,
            "values": OF_B[name],
            "by_hand": {},
            "left_out": (),
        }
        assert json.loads(config.to_json())["recipe"]["values"] == OF_B[name]

    @of_every_recipe
    def test_is_the_same_experiment_as_its_flags_typed_by_hand(self, parse, name):
        by_recipe, by_hand = parse("--recipe", name), parse(*typed(OF_B[name]))
        assert by_hand.recipe is None
        assert experiment_of(by_recipe) == experiment_of(by_hand)
        plain = parse(*typed({"dataset": OF_B[name].get("dataset", "flower102")}))
        # A flag that the recipe gives a meaning has its default.
        different = {
            flag for flag in plain if by_recipe[flag] not in (plain[flag], FLAGS[flag].default)
        }
        # What the preset decides follows it.
        follows = {"recipe", "augment", "random_erasing", "mixup", "cutmix"}
        assert different - follows <= OF_B[name].keys()

    @pytest.mark.parametrize("name", LARGER)
    def test_is_what_was_tried_where_the_model_is_as_small(self, parse, name):
        for model_type in ("ViT-S_14", "ViT-Ti_16", "ViT-B_14", "ViT-L_16"):
            expected = (OF_B if model_type[4] in "BL" else EXPECTED)[name]
            config = parse("--recipe", name, "--model_type", model_type)
            assert config.recipe["values"].to_dict() == expected
            assert {flag: config[flag] for flag in expected} == expected
        assert set(LARGER[name]) == set(RECIPES[name].larger)


class TestByHand:
    @pytest.mark.parametrize(
        ("name", "flag"), [("transfg-cub", "dataset"), ("vit-flowers", "img_size")]
    )
    def test_wins_with_the_flags_default_too(self, parse, name, flag):
        default = FLAGS[flag].default
        by_hand = {flag: default}
        config = parse("--recipe", name, *typed(by_hand))
        assert config[flag] == default != EXPECTED[name][flag]
        assert config.recipe.by_hand.to_dict() == by_hand
        assert config.recipe["values"].to_dict() == EXPECTED[name]
        assert RECIPES[name].knobs[flag].value == EXPECTED[name][flag]

    def test_wins_with_the_recipes_own_value_and_is_recorded(self, parse):
        config = parse("--recipe", "transfg-dog", "--learning_rate", 0.003)
        assert config.recipe.by_hand.to_dict() == {"learning_rate": 0.003}
        assert experiment_of(config) == experiment_of(parse("--recipe", "transfg-dog"))

    def test_wins_wherever_it_stands_and_the_last_recipe_counts(self, parse):
        recipe, flag = ["--recipe", "transfg-dog"], ["--momentum", "0.5"]
        for argv in (recipe + flag, flag + recipe, ["--recipe", "transfg-cub", *flag, *recipe]):
            config = parse(*argv)
            assert (config.momentum, config.learning_rate) == (0.5, 0.003)

    def test_says_nothing_of_flags_that_no_recipe_sets(self, parse):
        argv = ["--num_workers", 0, "--freeze", "backbone", "--epochs", 1]
        assert parse("--recipe", "vit-flowers", *argv).recipe.by_hand.to_dict() == {"epochs": 1}


class TestDecides:
    """A flag given by hand that decides what the recipe says of others."""

    @pytest.mark.parametrize(
        ("argv", "left_out", "expected"),
        [
            ("--epochs 3", ("num_steps",), (math.ceil(3 * 5994 / 64), 29)),
            # The recipe's 500 steps of warm-up would outlast the run.
            ("--num_steps 200", (), (200, 20)),
            ("--num_steps 200 --warmup_steps 7", (), (200, 7)),
            ("--warmup_steps 7", (), (10000, 7)),
            ("", (), (10000, 500)),
        ],
    )
    def test_the_length(self, parse, argv, left_out, expected):
        config = parse("--recipe", "transfg-cub", *argv.split())
        by_hand = dict(zip(argv.split()[::2], argv.split()[1::2], strict=True))
        assert config.recipe.by_hand.to_dict() == {k[2:]: int(v) for k, v in by_hand.items()}
        assert config.recipe.left_out == left_out
        resolved = resolve_length(config, 5994)
        assert (resolved["num_steps"], resolved["warmup_steps"]) == expected

    @pytest.mark.parametrize(
        ("argv", "eval_split"),
        [
            ("--val_fraction 0.25", None),
            ("--dataset flower102", None),
            ("--dataset CUB_200_2011", "test"),  # the recipe's own
            ("--val_fraction 0.25 --eval_split val", "val"),
            ("--seed 7", "test"),
        ],
    )
    def test_the_split(self, parse, argv, eval_split):
        """Whoever holds out a val split chooses on it; another dataset has its own."""
        config = parse("--recipe", "transfg-cub", *argv.split())
        assert config.eval_split == eval_split
        assert config.recipe.left_out == (() if eval_split else ("eval_split",))

    @pytest.mark.parametrize(
        ("argv", "augmentation"),
        [
            ("--preset strong", ("trivialaugment", 0.25, 0.2, 1.0)),
            ("--preset vit", ("none", 0.0, 0.0, 0.0)),
            ("--preset vit --mixup 0.4", ("none", 0.0, 0.4, 0.0)),
        ],
    )
    def test_the_augmentation(self, parse, argv, augmentation):
        """Another preset has its own."""
        config = parse("--recipe", "small-data", *argv.split())
        assert tuple(config[flag] for flag in Augmentation._fields) == augmentation

    @pytest.mark.parametrize(
        ("argv", "rate", "layer_decay"),
        [
            ("finetune --optimizer sgd", 0.003, None),
            ("finetune --optimizer adamw", 6e-5, 0.65),  # the recipe's own
            ("finetune --optimizer sgd --learning_rate 0.01", 0.01, None),
            ("vit-flowers --optimizer adamw", 1e-4, 0.75),
        ],
    )
    def test_the_rate(self, parse, tmp_path, argv, rate, layer_decay):
        """Another optimizer has its own: what fits one ruins weights with another."""
        config = parse("--recipe", *argv.split(), "--pretrained", tmp_path / "weights.npz")
        assert (config.learning_rate, config.layer_decay) == (rate, layer_decay)
        assert config.weight_decay == (0.05 if "finetune --optimizer adamw" in argv else 0)

    def test_what_another_optimizer_leaves_out_is_recorded(self, parse):
        config = parse("--recipe", "small-data", "--optimizer", "sgd", weights_given=False)
        assert {*config.recipe.left_out} == {"learning_rate", "layer_decay", "weight_decay"}
        assert config.layer_decay is None


class TestLeftOut:
    """What means nothing next to a flag given by hand; by hand itself it would be refused."""

    @pytest.mark.parametrize(
        ("name", "argv", "left_out"),
        [
            *[(name, "", NEED_WEIGHTS) for name in EXPECTED if "transfg" in name],
            ("vit-flowers", "", ["pos_resample"]),
            ("transfg-cub", "--head token --pretrained WEIGHTS", NEED_PARTS),
            ("transfg-inat", "--head token --pretrained WEIGHTS", NEED_PARTS),
            ("transfg-cub", "--split non-overlap --pretrained WEIGHTS", ["slide_step"]),
        ],
    )
    def test_is_recorded_and_has_no_value(self, parse, tmp_path, name, argv, left_out):
        argv = argv.replace("WEIGHTS", str(tmp_path / "weights.npz"))
        config = parse("--recipe", name, *argv.split(), weights_given=False)
        assert config.recipe.left_out == tuple(left_out)
        assert [config[flag] for flag in left_out] == [None] * len(left_out)
        if "transfg" in name:
            assert config.pretrained_profile == "imagenet"  # random weights are fed by it too


class TestBadInput:
    def test_a_recipe_that_goes_on_from_a_checkpoint_wants_one(self, parse):
        with pytest.raises(InputError, match=r"starts from the checkpoint of a probe, .*ckpt.bin"):
            parse("--recipe", "probe-then-finetune", weights_given=False)

    def test_what_a_recipe_fills_in_is_checked(self, parse):
        with pytest.raises(InputError, match="64 does not divide --train_batch_size 16"):
            parse("--recipe", "vit-flowers", "--train_batch_size", 16)
        with pytest.raises(InputError, match="mixed images have no one class"):
            parse("--recipe", "small-data", "--head", "parts")
        with pytest.raises(InputError, match=r"--epochs.*not allowed with.*--num_steps"):
            parse("--recipe", "transfg-cub", "--num_steps", 2, "--epochs", 2)


class TestList:
    def test_prints_every_recipe_and_knob_and_wants_no_other_flag(
        self, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        for argv in (["--recipe", "list"], ["--seed", "1", "--recipe", "list", "--name", "a"]):
            with pytest.raises(SystemExit, match=r"^0$"):
                parse_train(argv, CHOICES)
            out, err = capsys.readouterr()
            assert (out, err) == (f"{describe_recipes()}\n", "")
        assert list(tmp_path.iterdir()) == []
        blocks = out.split("\n\n")
        assert [block.partition(":")[0] for block in blocks] == list(EXPECTED)
        for block, recipe in zip(blocks, RECIPES.values(), strict=True):
            text = re.sub(r"\s+", " ", block)
            assert text.startswith(f"{recipe.name}: {recipe.about} published: {recipe.published} ")
            for flag, knob in recipe.knobs.items():
                assert f" --{flag} {knob.value} {knob.source}" in text, flag
            for difference in recipe.differences:
                assert f" differs: {difference}" in text

            for flag, knob in recipe.larger.items():
                said = "from ViT-B on, not measured by us: "
                assert f" --{flag} {knob.value} {said}{knob.source}" in text, flag
            for flag, knob in recipe.short.items():
                said = "in less than a tenth of the steps: "
                assert f" --{flag} {knob.value} {said}{knob.source}" in text, flag

    def test_fits_a_terminal_of_100_columns(self):
        assert max(map(len, describe_recipes().splitlines())) <= 100
