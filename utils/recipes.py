"""Recipes: named defaults of `train.py`, each value with its source. Imports no torch.

A flag given by hand wins over the recipe. Adding one is adding an entry to `RECIPES`.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from utils.console import drop

ABSENT = object()

# What else a flag given by hand settles: these values of the recipe are left out then.
SETTLES = {
    "epochs": ("num_steps", "warmup_steps"),
    "num_steps": ("warmup_steps",),  # the recipe's could outlast a shorter run
    "val_fraction": ("eval_split",),  # who carves a val split wants to choose on it
    "dataset": ("eval_split",),  # another one may have a val split, or no test
}


class Knob(NamedTuple):
    """The value of one flag, and who says so."""

    value: Any
    source: str


@dataclass(frozen=True)
class Recipe:
    """Defaults for `train.py`."""

    name: str
    about: str
    published: str  # the figure, and the split it is on
    differences: tuple[str, ...]  # where paper, code and this project are known to differ
    knobs: Mapping[str, Knob]  # by flag


# --- TransFG --------------------------------------------------------------------------------------

TRAIN_PY = "TransFG code, train.py default"
DATA_UTILS = "TransFG code, utils/data_utils.py"
PAPER = "TransFG paper, implementation details"
IN_GENERAL = (
    "The code keeps the best of an evaluation every 100 steps on the split of the figure: that "
    "split chose the checkpoint.",
    "The paper says a batch of 16; the code's 16 is of each GPU, and the README has four.",
    "The code trains in fp16 (apex O2) on 4 GPUs; here it is fp32 on one device.",
    "The code's learning rate is one step ahead: it steps the schedule before the optimizer.",
    "The code shuffles once: without set_epoch every epoch has the same batches in the same order.",
    "The code's head starts random (its zero_head is read nowhere); ours starts at zero.",
    "The code drops nothing out after the attention's output (its attention_dropout_rate is 0); "
    "ours does, as Google's code and the ViT paper.",
    "Of two public versions of the code one divides the contrastive loss by 16, not by 16 x 16, "
    "and leaves the last norm new; ours is as the other one and the paper.",
)
BEYOND_README = (
    "The README's only command is for CUB; here are the same flags with the paper's rate and size."
)
AUTOAUGMENT = (
    "The code's AutoAugment has 24 of the policy's 25 pairs, turns images one way only and fills "
    "with grey; ours is torchvision's."
)


def _transfg(
    dataset: str,
    published: str,
    learning_rate: float,
    img_size: int = 448,
    augment: str = "none",
    eval_split: str = "test",
    differences: tuple[str, ...] = (),
) -> Recipe:
    """What the paper's public code runs on one of its five datasets."""
    short = {"CUB_200_2011": "cub", "INat2017": "inat"}.get(dataset, dataset)
    is_small = img_size == 304
    rate_source = TRAIN_PY if learning_rate == 0.03 else f"{PAPER}; the code's default is 0.03"
    size_source = f"{PAPER}; the code's default is 448" if is_small else TRAIN_PY
    squashed = 400 if is_small else 600
    return Recipe(
        f"transfg-{short}",
        f"TransFG (He et al., AAAI 2022) on {dataset}, as its public code runs it",
        published,
        (
            *differences,
            *(() if short == "cub" else (BEYOND_README,)),
            *(() if augment == "none" else (AUTOAUGMENT,)),
            f"The paper says images are resized to {img_size}x{img_size}; the code squashes to "
            f"{squashed}x{squashed} and crops {img_size}.",
            *IN_GENERAL,
        ),
        {
            "dataset": Knob(dataset, "the paper's tables of results"),
            "eval_split": Knob(eval_split, f"{DATA_UTILS}: testset"),
            "model_type": Knob("ViT-B_16", TRAIN_PY),
            "head": Knob("parts", "the paper's model"),
            "split": Knob("overlap", "TransFG code, README command"),
            "slide_step": Knob(12, TRAIN_PY),
            "dropout": Knob(0.1, "TransFG code, models/configs.py, dropout_rate"),
            "part_init": Knob("random", "TransFG code, load_from: the part layer stays random"),
            "pos_resample": Knob("bilinear", "TransFG code, load_from: scipy zoom of order 1"),
            "pretrained_profile": Knob("imagenet", f"{DATA_UTILS}: ImageNet mean and std"),
            "contrastive_weight": Knob(1.0, "TransFG code, models/modeling.py: a plain sum"),
            "contrastive_margin": Knob(0.4, PAPER),
            "contrastive_scope": Knob("micro", "TransFG code: each GPU compares its own 16"),
            "img_size": Knob(img_size, size_source),
            "preset": Knob("transfg", f"{DATA_UTILS}: squash to {squashed}, crop {img_size}, flip"),
            "augment": Knob(augment, f"{DATA_UTILS}: AutoAugment on car and INat2017 only"),
            "train_batch_size": Knob(64, "16 a GPU (train.py default) on 4 GPUs (README)"),
            "gradient_accumulation_steps": Knob(4, "one micro-batch for each of the 4 GPUs"),
            "eval_batch_size": Knob(8, TRAIN_PY),
            "optimizer": Knob("sgd", "TransFG code, train.py"),
            "momentum": Knob(0.9, "TransFG code, train.py"),
            "learning_rate": Knob(learning_rate, rate_source),
            "weight_decay": Knob(0.0, TRAIN_PY),
            "decay_type": Knob("cosine", TRAIN_PY),
            "num_steps": Knob(10_000, TRAIN_PY),
            "warmup_steps": Knob(500, TRAIN_PY),
            "max_grad_norm": Knob(1.0, TRAIN_PY),
            "smoothing_value": Knob(0.0, TRAIN_PY),
            "eval_every": Knob(100, TRAIN_PY),
            "seed": Knob(42, TRAIN_PY),
        },
    )


# --- Others ---------------------------------------------------------------------------------------

VIT_TABLE = "ViT paper, appendix B.1.1, table 4"
VIT_TEXT = "ViT paper, appendix B.1.1"
VIT_CODE = "vision_transformer code"
OURS = "ours"

VIT_FLOWERS = Recipe(
    "vit-flowers",
    "ViT (Dosovitskiy et al., ICLR 2021) fine-tuned on Flowers-102",
    "99.38 % top-1 on test, ViT-B/16 from ImageNet-21k (table 5)",
    (
        "The paper tries learning rates 0.001, 0.003, 0.01 and 0.03 on a held-out tenth of the "
        "training images and does not say which one won.",
        "The paper then trains on the entire training set and evaluates on test; whether val "
        "belongs to that set it does not say. This trains on train and chooses on val.",
        "The paper names no warm-up. Google's later configs have 100 steps of it, not 50.",
        "The paper names no dropout of fine-tuning; the code's first release has 0.1 for ViT-B/16.",
        "The code's random crop takes 5 to 100 % of the area, ours 25 to 100 %; the code squashes "
        "test images to 384x384, ours takes the center.",
        "The code keeps momentum in bfloat16; here it is fp32.",
    ),
    {
        "dataset": Knob("flower102", VIT_TABLE),
        "model_type": Knob("ViT-B_16", "ViT paper, table 5"),
        "pretrained_profile": Knob("google", f"{VIT_CODE}, input_pipeline.py: [-1, 1]"),
        "pos_resample": Knob("bilinear", f"{VIT_CODE}, checkpoint.py: scipy zoom, order 1"),
        "img_size": Knob(384, f"{VIT_TABLE}: unless said otherwise"),
        "preset": Knob("vit", f"{VIT_CODE}, input_pipeline.py: random crop, flip"),
        "train_batch_size": Knob(512, VIT_TABLE),
        "gradient_accumulation_steps": Knob(64, "ours: 8 images at a time, for small memory"),
        "optimizer": Knob("sgd", VIT_TEXT),
        "momentum": Knob(0.9, VIT_TEXT),
        "learning_rate": Knob(0.01, f"{VIT_TABLE}: one of the four tried"),
        "weight_decay": Knob(0.0, VIT_TABLE),
        "decay_type": Knob("cosine", VIT_TABLE),
        "num_steps": Knob(500, VIT_TABLE),
        "warmup_steps": Knob(50, f"{VIT_CODE}, README: 500 / 50, on CIFAR"),
        "max_grad_norm": Knob(1.0, VIT_TABLE),
        "dropout": Knob(0.0, f"{VIT_CODE}, configs/models.py"),
    },
)
SMALL_DATA = Recipe(
    "small-data",
    "for a few thousand images of your own and pretrained weights",
    "none: these are our defaults, tuned on no benchmark",
    (),
    {
        "preset": Knob("strong", f"{OURS}: TrivialAugment, random erasing, mixup and CutMix"),
        "optimizer": Knob("adamw", "BEiT and MAE fine-tuning"),
        "learning_rate": Knob(5e-4, f"{OURS}; MAE's ViT-B command has 6e-5 at this batch"),
        "layer_decay": Knob(0.75, "MAE paper, table 9 (its ViT-B command, BEiT-B: 0.65)"),
        "weight_decay": Knob(0.05, "BEiT and MAE fine-tuning"),
        "drop_path": Knob(0.1, "BEiT and MAE fine-tuning of ViT-B"),
        "smoothing_value": Knob(0.1, "DeiT, BEiT and MAE fine-tuning"),
        "train_batch_size": Knob(32, OURS),
        "gradient_accumulation_steps": Knob(2, "ours: 16 images at a time, which mixup mixes"),
        "decay_type": Knob("cosine", "BEiT and MAE fine-tuning"),
        "num_steps": Knob(2_000, OURS),
        "warmup_steps": Knob(100, OURS),
        "max_grad_norm": Knob(1.0, f"{OURS}; BEiT and MAE do not clip"),
    },
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _transfg(
            "CUB_200_2011",
            "91.7 % top-1 on test (paper, experiments)",
            0.03,
            differences=(
                "Others who ran the code report 91.0 to 91.2 % (issues 2, 14 and 30 of its "
                "repository).",
            ),
        ),
        _transfg(
            "car",
            "94.8 % top-1 on test (paper, experiments)",
            0.03,
            augment="autoaugment",
        ),
        _transfg(
            "dog",
            "92.3 % top-1 on test (paper, experiments)",
            0.003,
            differences=("One who ran the code reports 90.5 % (issue 24 of its repository).",),
        ),
        _transfg("nabirds", "90.8 % top-1 on test (paper, experiments)", 0.03),
        _transfg(
            "INat2017",
            "71.7 % top-1 on val (paper, experiments)",
            0.01,
            img_size=304,
            augment="autoaugment",
            eval_split="val",
            differences=(
                "The code's crop of 304 px does not fit its default of 448; --img_size 304 does.",
                "10,000 steps of 64 are 1.1 epochs; the paper does not say how long it trained.",
            ),
        ),
        VIT_FLOWERS,
        SMALL_DATA,
    )
}


def recipe_names() -> tuple[str, ...]:
    """Every name that `--recipe` takes."""
    return tuple(RECIPES)


def describe_recipes() -> str:
    """The table that `--recipe list` prints."""
    blocks = []
    for recipe in RECIPES.values():
        lines = [f"{recipe.name}: {recipe.about}", f"  published: {recipe.published}"]
        width = max(len(f"{flag} {knob.value}") for flag, knob in recipe.knobs.items())
        for flag, knob in recipe.knobs.items():
            lines += _wrapped(f"  --{f'{flag} {knob.value}'.ljust(width)}  ", knob.source)
        for difference in recipe.differences:
            lines += _wrapped("  differs: ", difference)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _wrapped(start: str, text: str) -> list[str]:
    """The lines of `text` after `start`, which indents those that follow."""
    return textwrap.wrap(text, 98, initial_indent=start, subsequent_indent=" " * len(start))


def _show(text: str) -> None:
    """Print, unless nobody reads."""
    try:
        print(text, flush=True)  # noqa: T201 - as --help, what was asked for
    except BrokenPipeError:
        drop(sys.stdout)


class ListRecipes(argparse.Action):
    """Stores the name of a recipe; for `list` prints them all and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - argparse's signature
        option_string: str | None = None,
    ) -> None:
        """Store or print."""
        if values == "list":
            _show(describe_recipes())
            parser.exit()
        setattr(namespace, self.dest, values)


def _given_by_hand(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The values of the flags that `argv` has."""
    every = vars(parser.parse_args(argv))
    marked = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(every, ABSENT)))
    return {flag: value for flag, value in vars(marked).items() if value is not ABSENT}


def parse_with_recipe(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    means_nothing: Callable[[str, Mapping[str, Any]], bool],
) -> dict[str, Any]:
    """The values of all flags: given by hand, else the recipe's, else the parser's default.

    Args:
        parser: of `train.py`.
        argv: the arguments after the program's name.
        means_nothing: whether a flag means nothing next to the values of all others; such a flag
            of the recipe is left out.

    Returns:
        The values by flag. `recipe` is None or a dict of its name, its values, what was given by
        hand in place of them, and the flags of it that were left out: they mean nothing here, or
        a flag given by hand settles them.

    Raises:
        InputError: a flag is wrong.
        SystemExit: with code 0, after `--help` or `--recipe list`.
    """
    parsed = vars(parser.parse_args(argv))
    if parsed["recipe"] is None:
        return parsed
    recipe, by_hand = RECIPES[parsed["recipe"]], _given_by_hand(parser, argv)
    offered = {flag: knob.value for flag, knob in recipe.knobs.items()}
    open_flags = [flag for flag in offered if flag not in by_hand]
    settled = {other for flag in by_hand for other in SETTLES.get(flag, ())}
    values = parsed | {flag: offered[flag] for flag in open_flags}
    left_out = [flag for flag in open_flags if flag in settled or means_nothing(flag, values)]
    values |= {flag: parsed[flag] for flag in left_out}
    instead = {
        flag: value
        for flag, value in by_hand.items()
        if flag in offered or any(other in offered for other in SETTLES.get(flag, ()))
    }
    values["recipe"] = {
        "name": recipe.name,
        "values": offered,
        "by_hand": instead,
        "left_out": left_out,
    }
    return values
