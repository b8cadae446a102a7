"""utils/flags.py: every flag takes what it should and refuses the rest in one line."""

import argparse
import contextlib
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.dependent_flags import DEPENDENT
from utils.errors import InputError
from utils.flags import build_eval_parser, build_train_parser

MODELS = ("testing", "ViT-B_16")
REQUIRED = {"train": ["--name", "a"], "eval": ["--name", "a", "--checkpoint", "ckpt.bin"]}

POSITIVE_INTS = {
    "train": [
        "img_size",
        "num_steps",
        "epochs",
        "eval_every",
        "train_batch_size",
        "eval_batch_size",
        "gradient_accumulation_steps",
        "log_every",
        "slide_step",
        "save_every",
        "patience",
    ],
    "eval": ["img_size", "eval_batch_size"],
}
COUNTS = {
    "train": ["num_workers", "warmup_steps", "skip_bad_images", "keep"],
    "eval": ["num_workers"],
}
POSITIVES = {"train": ["learning_rate", "max_grad_norm"], "eval": []}
NON_NEGATIVES = {"train": ["weight_decay", "contrastive_weight", "mixup", "cutmix"], "eval": []}
FRACTIONS = {"train": ["momentum", "smoothing_value", "dropout", "drop_path"], "eval": []}
FACTORS = {"train": ["layer_decay"], "eval": []}
COSINES = {"train": ["contrastive_margin"], "eval": []}
SHARES = {"train": ["val_fraction", "ema_decay"], "eval": []}
PROBABILITIES = {"train": ["random_erasing"], "eval": []}
SEEDS = {"train": ["seed", "split_seed"], "eval": ["seed"]}

NO_NUMBERS = ["", " ", "x", "nan", "inf", "-inf", "0x10", "1,5", "None", "True", "1e999"]
NO_INTEGERS = [*NO_NUMBERS, "1.5", "1e3", "2.0"]


def parser_of(entrypoint: str):
    build = {"train": build_train_parser, "eval": build_eval_parser}[entrypoint]
    return build(MODELS)


def parse(entrypoint: str, *argv: str):
    return parser_of(entrypoint).parse_args([*REQUIRED[entrypoint], *argv])


def cases(table, values):
    return [
        (entrypoint, flag, value)
        for entrypoint, flags in table.items()
        for flag in flags
        for value in values
    ]


class TestNumbers:
    @pytest.mark.parametrize(
        ("entrypoint", "flag", "value"),
        [
            *cases(POSITIVE_INTS, [*NO_INTEGERS, "0", "-1"]),
            *cases(COUNTS, [*NO_INTEGERS, "-1"]),
            *cases(SEEDS, [*NO_INTEGERS, "-1", str(2**32)]),
            *cases(POSITIVES, [*NO_NUMBERS, "0", "-0.0", "-1e-9", "1e-999"]),
            *cases(NON_NEGATIVES, [*NO_NUMBERS, "-1e-9"]),
            *cases(FRACTIONS, [*NO_NUMBERS, "1", "1.0001", "-0.1"]),
            *cases(FACTORS, [*NO_NUMBERS, "0", "-0.0", "-0.5", "1.0001"]),
            *cases(COSINES, [*NO_NUMBERS, "1.0001", "-1.0001"]),
            *cases(SHARES, [*NO_NUMBERS, "0", "1", "-0.1", "1.5"]),
            *cases(PROBABILITIES, [*NO_NUMBERS, "-0.1", "1.0001"]),
        ],
    )
    def test_that_are_wrong_are_refused_by_flag(self, entrypoint, flag, value):
        with pytest.raises(InputError, match=f"--{flag}[: ].*{entrypoint}.py --help") as caught:
            parse(entrypoint, f"--{flag}={value}")
        assert len(str(caught.value).splitlines()) == 1
        assert repr(value) in str(caught.value)

    @pytest.mark.parametrize(
        ("entrypoint", "flag", "value"),
        [
            *cases(POSITIVE_INTS, ["1", "64"]),
            *cases(COUNTS, ["0", "3"]),
            *cases(SEEDS, ["0", str(2**32 - 1)]),
            *cases(POSITIVES, ["1e-9", "3e-2", "7"]),
            *cases(NON_NEGATIVES, ["0", "0.1", "-0.0"]),
            *cases(FRACTIONS, ["0", "0.999"]),
            *cases(FACTORS, ["1e-9", "0.75", "1"]),
            *cases(COSINES, ["-1", "0", "0.4", "1"]),
        ],
    )
    def test_that_are_right_are_taken(self, entrypoint, flag, value):
        assert getattr(parse(entrypoint, f"--{flag}={value}"), flag) == float(value)

    @pytest.mark.parametrize("flag", ["num_steps", "num_workers", "seed"])
    @pytest.mark.parametrize("digits", [400, 5000])
    def test_with_hundreds_of_digits_do_not_crash_the_parser(self, flag, digits):
        with contextlib.suppress(InputError):  # taken or refused, both are well
            assert getattr(parse("train", f"--{flag}", "9" * digits), flag) > 0

    @pytest.mark.parametrize("entrypoint", ["train", "eval"])
    def test_are_all_in_the_tables_above(self, entrypoint):
        """A flag that turns text into a number must be in one of the tables."""
        numeric = set()
        for action in parser_of(entrypoint)._actions:
            for probe in ("0", "1", "0.5"):
                with contextlib.suppress(argparse.ArgumentTypeError):
                    if action.type and isinstance(action.type(probe), int | float):
                        numeric.add(action.dest)
        tables = (
            POSITIVE_INTS,
            COUNTS,
            SEEDS,
            POSITIVES,
            NON_NEGATIVES,
            FRACTIONS,
            FACTORS,
            COSINES,
            SHARES,
            PROBABILITIES,
        )
        assert numeric == {flag for table in tables for flag in table[entrypoint]}

    @settings(max_examples=100, deadline=None)
    @given(value=st.integers(1 - 2**31, 2**31 - 1))
    def test_integers_are_taken_exactly_within_their_range(self, value):
        for flag, is_valid in [
            ("num_steps", value > 0),
            ("num_workers", value >= 0),
            ("seed", 0 <= value < 2**32),
        ]:
            if is_valid:
                assert getattr(parse("train", f"--{flag}={value}"), flag) == value
            else:
                with pytest.raises(InputError, match=f"--{flag}"):
                    parse("train", f"--{flag}={value}")

    @settings(max_examples=100, deadline=None)
    @given(value=st.floats())
    def test_floats_are_taken_exactly_within_their_range(self, value):
        finite = math.isfinite(value)
        for flag, is_valid in [
            ("learning_rate", finite and value > 0),
            ("weight_decay", finite and value >= 0),
            ("momentum", finite and 0 <= value < 1),
        ]:
            if is_valid:
                assert getattr(parse("train", f"--{flag}={value!r}"), flag) == value
            else:
                with pytest.raises(InputError, match=f"--{flag}"):
                    parse("train", f"--{flag}={value!r}")


class TestName:
    @pytest.mark.parametrize("name", ["a", "_", "0", "flower_mps", "a.b-c_D9", "tb2", "A" * 100])
    def test_of_a_run(self, name):
        assert parse("train", "--name", name).name == name

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/a",
            "a\\b",
            ".hidden",
            "a b",
            "a\n",
            "ä",
            "a~1",
            "tb",
            "TB",
            "tB",
            "a:b",
            "a\x00",
            "*",
            "٣",
        ],
    )
    @pytest.mark.parametrize("entrypoint", ["train", "eval"])
    def test_that_is_no_name_is_refused(self, entrypoint, name):
        with pytest.raises(InputError, match=r"--name.*is no run name") as caught:
            parse(entrypoint, f"--name={name}")
        assert len(str(caught.value).splitlines()) == 1

    def test_that_looks_like_a_flag_is_refused(self):
        with pytest.raises(InputError, match="--name"):
            parse("train", "--name", "-a")
        with pytest.raises(InputError, match="is no run name"):
            parse("train", "--name=-a")

    @settings(max_examples=200, deadline=None)
    @given(name=st.text(max_size=8).filter(lambda name: name != "--"))  # argparse eats that one
    def test_is_taken_exactly_if_it_matches(self, name):
        valid = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) and name.lower() != "tb"
        if valid and not name.endswith("\n"):
            assert parse("train", f"--name={name}").name == name
        else:
            with pytest.raises(InputError, match="--name"):
                parse("train", f"--name={name}")


class TestParsers:
    @pytest.mark.parametrize("entrypoint", ["train", "eval"])
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--nam", "x"], "unrecognized arguments: --nam x"),
            (["--eval_batch", "2"], "unrecognized arguments"),
            (["stray"], "unrecognized arguments: stray"),
            (["--dataset", "mnist"], "--dataset: invalid choice.*flower102"),
            (["--model_type", "ViT-X"], "--model_type: invalid choice.*testing"),
            (["--device", "tpu"], "--device: invalid choice.*mps"),
            (["--prefer_mps", "false"], "unrecognized arguments: false"),
            (["--img_size"], "--img_size: expected one argument"),
        ],
    )
    def test_refuse_what_they_do_not_know(self, entrypoint, argv, message):
        with pytest.raises(InputError, match=message):
            parse(entrypoint, *argv)

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--optimizer", "adam"], "--optimizer: invalid choice.*adamw"),
            (["--decay_type", "step"], "--decay_type: invalid choice.*cosine"),
            (["--num_steps", "1", "--epochs", "1"], "not allowed with argument"),
            (["--head", "cls"], "--head: invalid choice.*token.*parts"),
            (["--split", "overlapping"], "--split: invalid choice.*non-overlap.*overlap"),
            (["--pretrained_profile", "vit"], "--pretrained_profile: invalid choice.*auto.*google"),
            (["--pos_resample", "nearest"], "--pos_resample: invalid choice.*bicubic"),
            (["--part_init", "zero"], "--part_init: invalid choice.*pretrained.*random"),
            (["--class_weights", "on"], "--class_weights: invalid choice.*balanced"),
            (["--contrastive_scope", "all"], "--contrastive_scope: invalid choice.*micro"),
            (["--grad_checkpointing", "on"], "unrecognized arguments: on"),
        ],
    )
    def test_train_refuses_choices(self, argv, message):
        with pytest.raises(InputError, match=message):
            parse("train", *argv)

    def test_require_their_flags(self):
        with pytest.raises(InputError, match="required: --name"):
            build_train_parser(MODELS).parse_args([])
        with pytest.raises(InputError, match="required: --checkpoint"):
            build_eval_parser(MODELS).parse_args(["--name", "a"])

    @pytest.mark.parametrize("entrypoint", ["train", "eval"])
    def test_booleans_have_a_no(self, entrypoint):
        for flag in ("prefer_mps", "export_logits"):
            assert getattr(parse(entrypoint), flag) is True
            assert getattr(parse(entrypoint, f"--no-{flag}"), flag) is False
            assert getattr(parse(entrypoint, f"--no-{flag}", f"--{flag}"), flag) is True

    def test_know_the_flags_of_the_contract(self):
        shared = [
            "name",
            "dataset",
            "data_root",
            "eval_split",
            "tiny_infer_subset",
            "img_size",
            "num_workers",
            "model_type",
            "eval_batch_size",
            "seed",
            "output_dir",
            "prefer_mps",
            "device",
            "export_logits",
            "tta",
            "cache",
            "cache_dir",
        ]
        training = [
            "train_split",
            "tiny_train_subset",
            "pretrained",
            "optimizer",
            "momentum",
            "num_steps",
            "epochs",
            "eval_every",
            "train_batch_size",
            "learning_rate",
            "weight_decay",
            "decay_type",
            "warmup_steps",
            "max_grad_norm",
            "gradient_accumulation_steps",
            "smoothing_value",
            "log_every",
            "head",
            "split",
            "slide_step",
            "dropout",
            "drop_path",
            "pretrained_profile",
            "pos_resample",
            "part_init",
            "freeze",
            "class_weights",
            "layer_decay",
            "grad_checkpointing",
            "contrastive_weight",
            "contrastive_margin",
            "contrastive_scope",
            "recipe",
            "val_fraction",
            "split_seed",
            "preset",
            "augment",
            "random_erasing",
            "mixup",
            "cutmix",
            "skip_bad_images",
            "save_every",
            "keep",
            "resume",
            "allow_change",
            "ema_decay",
            "patience",
        ]
        assert set(vars(parse("train"))) == {*shared, *training}
        assert set(vars(parse("eval"))) == {*shared, "checkpoint"}

    @pytest.mark.parametrize("value", ["none", "backbone", "1", "12", "9999"])
    def test_take_what_can_be_frozen(self, value):
        assert parse("train", "--freeze", value).freeze == value

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "0",
            "-1",
            "01",
            "1.5",
            "1e3",
            "all",
            "head",
            "None",
            "Backbone",
            "backbone ",
            " 1",
            "1 ",
            "1\n",
            "10000",
            "٣",
            "1٣",
            "²",
        ],
    )
    def test_refuse_what_cannot_be_frozen(self, value):
        message = r"--freeze: .* is neither none, backbone nor a whole number"
        with pytest.raises(InputError, match=message) as caught:
            parse("train", f"--freeze={value}")
        assert len(str(caught.value).splitlines()) == 1

    def test_remember_nothing_twice_unless_asked(self):
        assert parse("train").grad_checkpointing is False
        assert parse("train", "--grad_checkpointing").grad_checkpointing is True
        assert (
            parse("train", "--grad_checkpointing", "--no-grad_checkpointing").grad_checkpointing
            is False
        )

    def test_dependent_flags_are_flags_without_a_default_of_their_own(self):
        """So that one that was typed can be told from one that was not."""
        values = vars(parse("train"))
        actions = {action.dest: action for action in parser_of("train")._actions}
        for flag, dependence in DEPENDENT.items():
            assert values[flag] is None, flag
            for needed, meanings in dependence.needs.items():
                assert not meanings or set(meanings) <= set(actions[needed].choices), flag

    def test_defaults_of_the_contract(self):
        values = parse("train")
        assert (values.dataset, values.model_type, values.device) == (
            "flower102",
            "ViT-B_16",
            "auto",
        )
        assert (values.head, values.split, values.freeze) == ("token", "non-overlap", "none")
        assert (values.dropout, values.drop_path, values.class_weights) == (0.0, 0.0, "none")
        assert parse("eval").model_type is None
        assert parse("eval").img_size is None

    @pytest.mark.parametrize("entrypoint", ["train", "eval"])
    def test_help_shows_groups_and_defaults(self, entrypoint, capsys):
        with pytest.raises(SystemExit, match="0"):
            parser_of(entrypoint).parse_args(["--help"])
        out, err = capsys.readouterr()
        assert err == ""
        groups = ["data:", "model:", "run:"]
        if entrypoint == "train":
            groups += ["optimisation:", "contrastive loss, with --head parts:"]
        for group in groups:
            assert f"\n{group}\n" in out
        parser = parser_of(entrypoint)
        for action in parser._actions:
            for option in action.option_strings:
                assert option in out
            if action.default not in (None, "==SUPPRESS=="):
                described = parser.formatter_class("x")._expand_help(action)
                assert re.search(r"\(default: .+\)", described), action.dest
