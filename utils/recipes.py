"""Recipes: named defaults of `train.py`, each value with its source. Imports no torch.

A flag given by hand wins over the recipe. Adding one is adding an entry to `RECIPES`.
"""

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ABSENT = object()


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
RESIZED = (
    "The paper says images are resized to 448x448; the code squashes to 600x600 and crops 448."
)
NOT_FP16 = "The code trains in fp16 (apex O2) on 4 GPUs; here it is fp32 on one device."
RATE_AHEAD = (
    "The code's learning rate is one step ahead: it steps the schedule before the optimizer."
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
    rate_source = TRAIN_PY if learning_rate == 0.03 else f"{PAPER}; the code's default is 0.03"
    resize = "400, crop 304" if img_size == 304 else "600, crop 448"
    return Recipe(
        f"transfg-{short}",
        f"TransFG (He et al., AAAI 2022) on {dataset}, as its public code runs it",
        published,
        (
            *differences,
            "The best of an evaluation every 100 steps on the split of the figure was published: "
            "that split chose the checkpoint.",
            "The paper says a batch of 16; the code's 16 is of each GPU, and the README has four.",
            *((RESIZED,) if img_size == 448 else ()),
            NOT_FP16,
            RATE_AHEAD,
        ),
        {
            "dataset": Knob(dataset, "the table of results"),
            "eval_split": Knob(eval_split, f"{DATA_UTILS}: testset"),
            "model_type": Knob("ViT-B_16", TRAIN_PY),
            "head": Knob("parts", "the paper's model"),
            "split": Knob("overlap", "TransFG code, README command"),
            "slide_step": Knob(12, TRAIN_PY),
            "dropout": Knob(0.1, "TransFG code, models/configs.py, dropout_rate"),
            "part_init": Knob("random", "TransFG code, load_from leaves the part layer random"),
            "pos_resample": Knob("bilinear", "TransFG code, load_from: scipy zoom of order 1"),
            "pretrained_profile": Knob("imagenet", f"{DATA_UTILS}: ImageNet mean and std"),
            "contrastive_weight": Knob(1.0, "TransFG code, models/modeling.py"),
            "contrastive_margin": Knob(0.4, PAPER),
            "contrastive_scope": Knob("micro", "TransFG code: each GPU compares its own 16"),
            "img_size": Knob(img_size, f"{DATA_UTILS}: RandomCrop"),
            "preset": Knob("transfg", f"{DATA_UTILS}: resize to {resize}, flip"),
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
VIT_CODE = "vision_transformer code"
OURS = "ours"

VIT_FLOWERS = Recipe(
    "vit-flowers",
    "ViT (Dosovitskiy et al., ICLR 2021) fine-tuned on Flowers-102",
    "99.38 % top-1 on test, ViT-B/16 from ImageNet-21k (table 5)",
    (
        "The paper tries learning rates 0.001, 0.003, 0.01 and 0.03 on held-out training images "
        "and does not say which one won.",
        "The paper then trains on all images that are not test; this trains on train and chooses "
        "on val. --train_split trainval --eval_split test is the paper's.",
        "The code's random crop takes 5 to 100 % of the area, ours 25 to 100 %; the code squashes "
        "test images to 384x384, ours takes the center.",
        "The code keeps momentum in bfloat16; here it is fp32.",
    ),
    {
        "dataset": Knob("flower102", VIT_TABLE),
        "model_type": Knob("ViT-B_16", "ViT paper, table 5"),
        "pretrained_profile": Knob("google", f"{VIT_CODE}: pixels in [-1, 1]"),
        "pos_resample": Knob("bilinear", f"{VIT_CODE}: scipy zoom of order 1"),
        "img_size": Knob(384, "ViT paper, section 4.1: 384 px unless said otherwise"),
        "preset": Knob("vit", f"{VIT_CODE}: random resized crop, flip"),
        "train_batch_size": Knob(512, VIT_TABLE),
        "gradient_accumulation_steps": Knob(64, "ours: 8 images at a time fit 8 GB"),
        "optimizer": Knob("sgd", VIT_TABLE),
        "momentum": Knob(0.9, VIT_TABLE),
        "learning_rate": Knob(0.01, f"{VIT_TABLE}: one of the four tried"),
        "weight_decay": Knob(0.0, VIT_TABLE),
        "decay_type": Knob("cosine", VIT_TABLE),
        "num_steps": Knob(500, VIT_TABLE),
        "warmup_steps": Knob(50, f"{VIT_CODE}, README: 500 steps with 50 of warm-up"),
        "max_grad_norm": Knob(1.0, VIT_TABLE),
        "dropout": Knob(0.0, "ViT paper, appendix B.1.1: none"),
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
        "learning_rate": Knob(5e-4, f"{OURS}: MAE's 5e-4 at batch 1,024 is for 100 epochs"),
        "layer_decay": Knob(0.75, "MAE fine-tuning of ViT-B (BEiT: 0.65)"),
        "weight_decay": Knob(0.05, "BEiT and MAE fine-tuning"),
        "drop_path": Knob(0.1, "BEiT and MAE fine-tuning of ViT-B"),
        "smoothing_value": Knob(0.1, "DeiT, BEiT and MAE fine-tuning"),
        "train_batch_size": Knob(32, OURS),
        "gradient_accumulation_steps": Knob(2, "ours: 16 images at a time, which mixup mixes"),
        "decay_type": Knob("cosine", "BEiT and MAE fine-tuning"),
        "num_steps": Knob(2_000, OURS),
        "warmup_steps": Knob(100, OURS),
        "max_grad_norm": Knob(1.0, OURS),
    },
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _transfg("CUB_200_2011", "91.7 % top-1 on test (paper, experiments)", 0.03),
        _transfg(
            "car", "94.8 % top-1 on test (paper, experiments)", 0.03, augment="autoaugment",
        ),
        _transfg(
            "dog", "92.3 % top-1 on test (paper, experiments)", 0.003,
            differences=("The README's command has the default rate, 0.03.",),
        ),
        _transfg("nabirds", "90.8 % top-1 on test (paper, experiments)", 0.03),
        _transfg(
            "INat2017", "71.7 % top-1 on val (paper, experiments)", 0.01, img_size=304,
            augment="autoaugment", eval_split="val",
            differences=(
                "The README's command has the default rate, 0.03, and 448 px, for which the "
                "code's crop of 304 does not fit.",
            ),
        ),
        VIT_FLOWERS,
        SMALL_DATA,
    )
}  # fmt: skip


def recipe_names() -> tuple[str, ...]:
    """Every name that `--recipe` takes."""
    return tuple(RECIPES)


def describe_recipes() -> str:
    """The table that `--recipe list` prints."""
    blocks = []
    for recipe in RECIPES.values():
        lines = [f"{recipe.name}: {recipe.about}", f"  published: {recipe.published}"]
        width = max(len(f"{flag} {knob.value}") for flag, knob in recipe.knobs.items())
        lines += [
            f"  --{f'{flag} {knob.value}'.ljust(width)}  {knob.source}"
            for flag, knob in recipe.knobs.items()
        ]
        for difference in recipe.differences:
            lines += textwrap.wrap(
                difference, 98, initial_indent="  differs: ", subsequent_indent="    "
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


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
            print(describe_recipes())  # noqa: T201 - as --help, what was asked for
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
        The values by flag. `recipe` is None or a dict of its name, its values, the values given by
        hand instead, and the flags that were left out.

    Raises:
        InputError: a flag is wrong.
        SystemExit: with code 0, after `--help` or `--recipe list`.
    """
    values = vars(parser.parse_args(argv))
    if values["recipe"] is None:
        return values
    recipe, by_hand = RECIPES[values["recipe"]], _given_by_hand(parser, argv)
    offered = {flag: knob.value for flag, knob in recipe.knobs.items()}
    # The two say the same thing: the length.
    overrides = {"epochs": "num_steps"}
    settled = {flag: by_hand[flag] for flag in offered if flag in by_hand}
    settled |= {old: None for new, old in overrides.items() if new in by_hand and old in offered}
    values |= {flag: value for flag, value in offered.items() if flag not in settled}
    if "epochs" in by_hand:
        values["num_steps"] = None
    left_out = [flag for flag in offered if flag not in settled and means_nothing(flag, values)]
    values |= dict.fromkeys(left_out)
    values["recipe"] = {
        "name": recipe.name, "values": offered, "by_hand": _plain(settled), "left_out": left_out,
    }  # fmt: skip
    return values


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str | None) else str(v) for k, v in values.items()}
