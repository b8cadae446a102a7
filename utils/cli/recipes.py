"""Define the recipes, named defaults of `train.py` with a source for each value. Imports no torch.

A flag given by hand wins over the recipe. To add a recipe, add an entry to `RECIPES`.
"""

import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from utils.cli.defaults import MAE_RATE, Knob
from utils.data.presets import Augmentation
from utils.environment import drop
from utils.errors import InputError

# What else a flag decides that was given by hand and is not as in the recipe: these values of the
# recipe are left out then.
DECIDES = {
    "epochs": ("num_steps",),
    "val_fraction": ("eval_split",),  # who holds out a val split wants to choose on it
    "dataset": ("eval_split",),  # another one may have a val split, or no test
    "preset": Augmentation._fields,  # another one has its own
    # What fits one ruins weights with another.
    "optimizer": ("learning_rate", "layer_decay", "weight_decay"),
}


class Recipe(NamedTuple):
    """Defaults of `train.py` under one name."""

    name: str
    about: str
    published: str  # published figure and its split
    differences: tuple[str, ...]  # known differences between paper, code and this project
    knobs: Mapping[str, Knob]  # by flag
    tried_steps: int | None = None  # shortest run that its rate was tried at; None: its own length
    larger: Mapping[str, Knob] = {}  # what is other for a model type that is not Ti or S
    short: Mapping[str, Knob] = {}  # what is other in less than a tenth of its steps
    start: str = ""  # what --pretrained has to be, if the recipe means nothing without

    def values(self, model_type: str | None = None) -> dict[str, Any]:
        """Return the values by flag, for a model type or for those that were tried."""
        is_small = model_type is None or model_type.startswith(("ViT-Ti_", "ViT-S_", "testing"))
        knobs = {**self.knobs, **({} if is_small else self.larger)}
        return {flag: knob.value for flag, knob in knobs.items()}


# --- TransFG --------------------------------------------------------------------------------------

TRAIN_PY = "TransFG code, train.py default"
DATA_UTILS = "TransFG code, utils/data_utils.py"
PAPER = "TransFG paper, implementation details"
RESULTS = "the paper's tables of results"
AUGMENTED = f"{DATA_UTILS}: AutoAugment on car and INat2017 only"
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


TRANSFG_ON_CUB = {
    "dataset": Knob("CUB_200_2011", RESULTS),
    "eval_split": Knob("test", f"{DATA_UTILS}: testset"),
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
    "img_size": Knob(448, TRAIN_PY),
    "preset": Knob("transfg", f"{DATA_UTILS}: squash to 600, crop 448, flip"),
    "augment": Knob("none", AUGMENTED),
    "train_batch_size": Knob(64, "16 a GPU (train.py default) on 4 GPUs (README)"),
    "gradient_accumulation_steps": Knob(4, "one micro-batch for each of the 4 GPUs"),
    "eval_batch_size": Knob(8, TRAIN_PY),
    "optimizer": Knob("sgd", "TransFG code, train.py"),
    "momentum": Knob(0.9, "TransFG code, train.py"),
    "learning_rate": Knob(0.03, TRAIN_PY),
    "weight_decay": Knob(0.0, TRAIN_PY),
    "decay_type": Knob("cosine", TRAIN_PY),
    "num_steps": Knob(10_000, TRAIN_PY),
    "warmup_steps": Knob(500, TRAIN_PY),
    "max_grad_norm": Knob(1.0, TRAIN_PY),
    "smoothing_value": Knob(0.0, TRAIN_PY),
    "eval_every": Knob(100, TRAIN_PY),
    "seed": Knob(42, TRAIN_PY),
}


def _transfg(
    name: str,
    published: str,
    differences: tuple[str, ...] = (),
    squashed: str = "448x448; the code squashes to 600x600 and crops 448",
    **changes: Knob,
) -> Recipe:
    """Return what the paper's public code runs on one of its datasets, as `changes` to CUB."""
    knobs = {**TRANSFG_ON_CUB, **changes}
    return Recipe(
        f"transfg-{name}",
        f"TransFG (He et al., AAAI 2022) on {knobs['dataset'].value}, as its public code runs it",
        f"{published} (paper, experiments)",
        (
            *differences,
            *((BEYOND_README,) if changes else ()),
            *((AUTOAUGMENT,) if "augment" in changes else ()),
            f"The paper says images are resized to {squashed}.",
            *IN_GENERAL,
        ),
        knobs,
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
        "preset": Knob("strong", OURS),
        "augment": Knob("trivialaugment", "TrivialAugment paper: it has no knob to tune"),
        "random_erasing": Knob(0.25, "DeiT, BEiT and MAE fine-tuning"),
        "mixup": Knob(0.2, "mixup paper, section 3.1: 0.1 to 0.4 on ImageNet"),
        "cutmix": Knob(1.0, "CutMix paper, section 3.1"),
        "optimizer": Knob("adamw", "BEiT and MAE fine-tuning"),
        "learning_rate": Knob(5e-4, f"{OURS}; {MAE_RATE}"),
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
    short={
        "drop_path": Knob(
            0.0, f"{OURS}: with what follows val top-1 41 to 45 % at 60 steps, else 2 to 13"
        ),
        **{flag: Knob(value, OURS) for flag, value in Augmentation()._asdict().items()},
    },
)

MAE_B = "MAE's ViT-B command"
FINETUNE = Recipe(
    "finetune",
    "for pretrained weights and images of your own, from a hundred steps on",
    "none: these are our defaults, tried on the flowers only",
    (),
    {
        "preset": Knob("vit", f"{OURS}: random crop and flip; few steps have no use for more"),
        "optimizer": Knob("adamw", "BEiT and MAE fine-tuning"),
        "learning_rate": Knob(
            3e-4, f"{OURS}: val top-1 56 % after 60 steps at 98 px, DINOv2 ViT-S/14"
        ),
        "layer_decay": Knob(0.65, f"{MAE_B}; BEiT-B"),
        "weight_decay": Knob(0.05, "BEiT and MAE fine-tuning"),
        "drop_path": Knob(0.0, f"{OURS}: with MAE's 0.1, 26 % in place of these 56"),
        "smoothing_value": Knob(0.1, "DeiT, BEiT and MAE fine-tuning"),
        "train_batch_size": Knob(32, OURS),
        "gradient_accumulation_steps": Knob(2, "ours: 16 images at a time, for small memory"),
        "decay_type": Knob("cosine", "BEiT and MAE fine-tuning"),
        "num_steps": Knob(300, OURS),
        "warmup_steps": Knob(30, f"{OURS}: a tenth; BEiT and MAE: 5 of 100 epochs"),
        "max_grad_norm": Knob(1.0, f"{OURS}; BEiT and MAE do not clip"),
    },
    tried_steps=60,
    larger={"learning_rate": Knob(6e-5, MAE_RATE)},
)
PROBE_THEN_FINETUNE = FINETUNE._replace(
    name="probe-then-finetune",
    about="keep a probe's head and train all (Kumar et al. 2022, arXiv 2202.10054)",
    start="the checkpoint of a probe, output/NAME/checkpoints/ckpt.bin",
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _transfg(
            "cub",
            "91.7 % top-1 on test",
            (
                "Others who ran the code report 91.0 to 91.2 % (issues 2, 14 and 30 of its "
                "repository).",
            ),
        ),
        _transfg(
            "car",
            "94.8 % top-1 on test",
            dataset=Knob("car", RESULTS),
            augment=Knob("autoaugment", AUGMENTED),
        ),
        _transfg(
            "dog",
            "92.3 % top-1 on test",
            ("One who ran the code reports 90.5 % (issue 24 of its repository).",),
            dataset=Knob("dog", RESULTS),
            learning_rate=Knob(0.003, f"{PAPER}; the code's default is 0.03"),
        ),
        _transfg("nabirds", "90.8 % top-1 on test", dataset=Knob("nabirds", RESULTS)),
        _transfg(
            "inat",
            "71.7 % top-1 on val",
            (
                "The code's crop of 304 px does not fit its default of 448; --img_size 304 does.",
                "10,000 steps of 64 are 1.1 epochs; the paper does not say how long it trained.",
            ),
            squashed="304x304; the code squashes to 400x400 and crops 304",
            dataset=Knob("INat2017", RESULTS),
            eval_split=Knob("val", f"{DATA_UTILS}: testset"),
            img_size=Knob(304, f"{PAPER}; the code's default is 448"),
            preset=Knob("transfg", f"{DATA_UTILS}: squash to 400, crop 304, flip"),
            augment=Knob("autoaugment", AUGMENTED),
            learning_rate=Knob(0.01, f"{PAPER}; the code's default is 0.03"),
        ),
        VIT_FLOWERS,
        SMALL_DATA,
        FINETUNE,
        PROBE_THEN_FINETUNE,
    )
}


def recipe_names() -> tuple[str, ...]:
    """Return every name that `--recipe` takes."""
    return tuple(RECIPES)


# --- The list -------------------------------------------------------------------------------------


def describe_recipes() -> str:
    """Return the text that `--recipe list` prints: every value with its source."""
    blocks = []
    for recipe in RECIPES.values():
        lines = [f"{recipe.name}: {recipe.about}", f"  published: {recipe.published}"]
        width = max(len(f"{flag} {knob.value}") for flag, knob in recipe.knobs.items())
        for knobs, when in (
            (recipe.knobs, ""),
            (recipe.larger, "from ViT-B on, not measured by us: "),
            (recipe.short, "in less than a tenth of the steps: "),
        ):
            for flag, knob in knobs.items():
                start = f"  --{f'{flag} {knob.value}'.ljust(width)}  "
                lines += _wrapped(start, f"{when}{knob.source}")
        for difference in recipe.differences:
            lines += _wrapped("  differs: ", difference)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _wrapped(start: str, text: str) -> list[str]:
    """Return the lines of `text` after `start`, which indents those that follow."""
    return textwrap.wrap(text, 98, initial_indent=start, subsequent_indent=" " * len(start))


def recipe_or_list(text: str) -> str:
    """Return a value of `--recipe`, whose choices are checked after this; `list` prints them.

    Raises:
        SystemExit: with code 0, after printing.
    """
    if text == "list":
        try:
            print(describe_recipes(), flush=True)  # noqa: T201 - as --help, what was asked for
        except BrokenPipeError:
            drop(sys.stdout)
        raise SystemExit(0)
    return text


# --- The layer ------------------------------------------------------------------------------------


def recipe_layer(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    means_nothing: Callable[[str, Mapping[str, Any]], bool],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what the recipe says where no flag was given, and a record of it for the config.

    Args:
        given: values of the flags given by hand, `recipe` among them or not.
        defaults: values of all flags without a recipe.
        means_nothing: whether a flag means nothing next to the values of all others.

    Returns:
        The values by flag, and None or the recipe's name, its values, what was given by hand in
        place of them, and the flags of it that were left out: they mean nothing here, or a flag
        given by hand decides them.

    Raises:
        InputError: the recipe starts from something that was not given.
    """
    if given.get("recipe") is None:
        return {}, None
    recipe = RECIPES[given["recipe"]]
    if recipe.start and "pretrained" not in given:
        raise InputError(
            f"--recipe {recipe.name} starts from {recipe.start}: name it by --pretrained"
        )
    offered = recipe.values({**defaults, **given}["model_type"])
    layer = {flag: value for flag, value in offered.items() if flag not in given}
    others = [flag for flag, value in given.items() if value != offered.get(flag)]
    decided = {other for flag in others for other in DECIDES.get(flag, ())}
    values = {**defaults, **layer, **given}
    left_out = [flag for flag in layer if flag in decided or means_nothing(flag, values)]
    by_hand = {
        flag: value
        for flag, value in given.items()
        if flag in offered or any(other in offered for other in DECIDES.get(flag, ()))
    }
    record = {
        "name": recipe.name,
        "values": offered,
        "by_hand": by_hand,
        "left_out": left_out,
    }
    return {flag: value for flag, value in layer.items() if flag not in left_out}, record
