"""The flags of both entrypoints: argument groups, parsers. Imports no torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.console import Parser
from utils.data.catalog import dataset_names
from utils.data.presets import AUGMENTS, DEFAULT_PRESET, PRESETS
from utils.data.splits import DEFAULT_VAL_FRACTION
from utils.dependent_flags import DEFAULT_SLIDE_STEP
from utils.flag_types import (
    cache_kind,
    cosine,
    count,
    factor,
    fraction,
    frozen_part,
    non_negative,
    positive,
    positive_int,
    probability,
    run_name,
    seed,
    share,
)
from utils.recipes import ListRecipes, recipe_names

CACHE_FOLDER = ".cache"  # under --output_dir
DEFAULT_SPLIT_SEED = 42
SYNTHETIC_FOLDER = ".synthetic"  # under --output_dir; the dot keeps it apart from run names
MAX_WARMUP_STEPS = 500
DEFAULT_NUM_STEPS = 1000
DEFAULT_NUM_WORKERS = 2
DEFAULT_SAVE_EVERY = 100
LAST = "last"  # what `--resume` without a path stands for
# What a run may go on with another value of: neither the model, nor the data and their order, nor
# which numbers its optimizer remembers.
CHANGEABLE = (
    "num_steps",
    "epochs",
    "eval_every",
    "eval_batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "decay_type",
    "warmup_steps",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "smoothing_value",
    "class_weights",
    "contrastive_weight",
    "contrastive_margin",
    "contrastive_scope",
    "augment",
    "random_erasing",
    "mixup",
    "cutmix",
    "skip_bad_images",
    "tta",
    "export_logits",
    "patience",
)
# Flags that change what others say.
CHANGES_WITH = {"num_steps": ("epochs",), "epochs": ("num_steps",)}


def changeable_flags(text: str) -> str:
    """`a,b`, names of flags that a run may change, without dashes and spaces.

    Raises:
        ArgumentTypeError: one of them may not.
    """
    names = [name.strip().removeprefix("--") for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in CHANGEABLE]
    if wrong or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(wrong) or 'nothing'} cannot change within a run; what can: "
            f"{', '.join(CHANGEABLE)}"
        )
    return ",".join(names)


def _add_data_flags(parser: argparse.ArgumentParser, for_training: bool) -> None:
    group = parser.add_argument_group("data")
    dataset_default = "flower102" if for_training else None
    otherwise = "" if for_training else " (default: the checkpoint's)"
    group.add_argument(
        "--dataset",
        choices=dataset_names(),
        default=dataset_default,
        metavar="NAME",
        help=f"one of {', '.join(dataset_names())}{otherwise}",
    )
    group.add_argument(
        "--data_root",
        type=Path,
        metavar="PATH",
        help="the dataset's official folder or its parent; for csv the file (default: $DATA_ROOT; "
        f"for synthetic <output_dir>/{SYNTHETIC_FOLDER}, drawn if absent)",
    )
    if for_training:
        group.add_argument("--train_split", default="train", metavar="SPLIT", help="train on it")
    group.add_argument(
        "--eval_split",
        metavar="SPLIT",
        help="evaluate on it (default: val, or test where there is no val)",
    )
    if for_training:
        _add_carving_flags(group)
    subset = "<dataset>_tiny (two batches) or a text file with one sample id a line"
    if for_training:
        group.add_argument("--tiny_train_subset", metavar="SUBSET", help=f"train on {subset}")
    group.add_argument("--tiny_infer_subset", metavar="SUBSET", help=f"evaluate on {subset}")
    group.add_argument(
        "--img_size",
        type=positive_int,
        default=224 if for_training else None,
        metavar="PIXELS",
        help=f"side of the square input, a multiple of the patch{otherwise}",
    )
    group.add_argument(
        "--num_workers",
        type=count,
        metavar="N",
        help=f"loader processes; changes no result (default: {DEFAULT_NUM_WORKERS}, or 0 for a "
        "tiny subset)",
    )


def _add_carving_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--val_fraction",
        type=share,
        metavar="SHARE",
        help="carve a val split of this share from train, class by class, where the data has none "
        f"(default: {DEFAULT_VAL_FRACTION} where the data is in one heap, else none)",
    )
    group.add_argument(
        "--split_seed",
        type=seed,
        metavar="N",
        help=f"of the carving (default: {DEFAULT_SPLIT_SEED})",
    )


def _add_input_flags(parser: argparse.ArgumentParser, for_training: bool) -> None:
    group = parser.add_argument_group("input pipeline")
    if for_training:
        group.add_argument(
            "--preset",
            choices=tuple(PRESETS),
            default=DEFAULT_PRESET,
            help="; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items()),
        )
        group.add_argument(
            "--augment", choices=AUGMENTS, help="after the crop (default: the preset's)"
        )
        group.add_argument(
            "--random_erasing",
            type=probability,
            metavar="P",
            help="erase a box with this probability (default: the preset's)",
        )
        for flag, paper in (("mixup", "Zhang et al. 2018"), ("cutmix", "Yun et al. 2019")):
            group.add_argument(
                f"--{flag}",
                type=non_negative,
                metavar="ALPHA",
                help=f"{paper}, of each micro-batch; 0: none (default: the preset's)",
            )
        group.add_argument(
            "--skip_bad_images",
            type=count,
            default=0,
            metavar="N",
            help="leave out up to N images of training that cannot be decoded, instead of ending",
        )
    group.add_argument(
        "--tta",
        choices=("none", "flip"),
        default="none",
        help="flip: evaluate each image and its mirror image, mean of the logits",
    )
    group.add_argument(
        "--cache",
        type=cache_kind,
        choices=("none", "disk"),
        default="none",
        help="disk: keep decoded and resized images on disk, mapped into memory; changes no result",
    )
    group.add_argument(
        "--cache_dir",
        type=Path,
        metavar="PATH",
        help=f"of --cache disk (default: <output_dir>/{CACHE_FOLDER})",
    )


def _add_model_flags(
    parser: argparse.ArgumentParser, model_names: Sequence[str], for_training: bool
) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_type",
        choices=tuple(model_names),
        metavar="NAME",
        default="ViT-B_16" if for_training else None,
        help=f"one of {', '.join(model_names)}"
        + ("" if for_training else " (default: the checkpoint's)"),
    )
    if for_training:
        _add_architecture_flags(group)
        _add_pretrained_flags(group)


def _add_architecture_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--head",
        choices=("token", "parts"),
        default="token",
        help="token: plain ViT; parts: TransFG, whose last block sees the selected patches only",
    )
    group.add_argument(
        "--split",
        choices=("non-overlap", "overlap"),
        default="non-overlap",
        help="how the image is cut into patches",
    )
    group.add_argument(
        "--slide_step",
        type=positive_int,
        metavar="PIXELS",
        help=f"between overlapping patches (default: {DEFAULT_SLIDE_STEP})",
    )
    group.add_argument(
        "--dropout",
        type=fraction,
        default=0.0,
        help="after the position embedding and each dense layer but queries, keys and values",
    )
    group.add_argument(
        "--drop_path",
        type=fraction,
        default=0.0,
        help="stochastic depth of the last block, rising linearly from 0 at the first",
    )


def _add_pretrained_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pretrained",
        type=Path,
        metavar="PATH",
        help="start from these weights: Google .npz, timm, Hugging Face, torchvision, ViT-pytorch, "
        "TransFG, or a ckpt.bin of this project; recognised by content (default: random weights)",
    )
    group.add_argument(
        "--pretrained_profile",
        choices=("auto", "google", "imagenet", "clip", "clip-quickgelu", "siglip"),
        help="normalisation, activation and LayerNorm eps of the weights; auto: from a config.json "
        "or preprocessor_config.json beside them, else what is usual for the layout; without "
        "--pretrained the normalisation alone, auto being google's (default: auto)",
    )
    group.add_argument(
        "--pos_resample",
        choices=("bicubic", "bilinear"),
        help="position embeddings for another grid: bicubic as timm, bilinear as TransFG's code "
        "(default: bicubic)",
    )
    group.add_argument(
        "--part_init",
        choices=("pretrained", "random"),
        help="with --head parts: the part block starts from the last block of the weights, or "
        "random, as TransFG's code has it (default: pretrained)",
    )
    group.add_argument(
        "--freeze",
        type=frozen_part,
        default="none",
        metavar="{none,backbone,N}",
        help="train all; only what follows the backbone; or all but embeddings and first N blocks",
    )


def _add_optimisation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    group.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="optimizer")
    group.add_argument(
        "--momentum",
        type=fraction,
        help="with sgd: share of the last step's direction that the next one keeps (default: 0.9)",
    )
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--num_steps",
        type=positive_int,
        metavar="N",
        help=f"optimizer steps (default: {DEFAULT_NUM_STEPS})",
    )
    length.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        help="instead of --num_steps: passes over the data",
    )
    group.add_argument(
        "--eval_every",
        type=positive_int,
        default=100,
        metavar="N",
        help="evaluate every N steps and after the last",
    )
    group.add_argument(
        "--train_batch_size",
        type=positive_int,
        default=16,
        metavar="N",
        help="samples an optimizer step sees",
    )
    group.add_argument("--learning_rate", type=positive, default=3e-2, help="peak learning rate")
    group.add_argument(
        "--weight_decay",
        type=non_negative,
        default=0.0,
        help="of matrices; biases, norms, class token and position embeddings have none",
    )
    group.add_argument(
        "--decay_type", choices=("cosine", "linear"), default="cosine", help="after the warm-up"
    )
    group.add_argument(
        "--warmup_steps",
        type=count,
        metavar="N",
        help=f"linear warm-up (default: a tenth of the run, at most {MAX_WARMUP_STEPS})",
    )
    group.add_argument(
        "--max_grad_norm", type=positive, default=1.0, help="clip the gradient to this L2 norm"
    )
    group.add_argument(
        "--gradient_accumulation_steps",
        type=positive_int,
        default=1,
        metavar="N",
        help="micro-batches a step; must divide --train_batch_size",
    )
    group.add_argument("--smoothing_value", type=fraction, default=0.0, help="label smoothing")
    group.add_argument(
        "--class_weights",
        choices=("none", "balanced"),
        default="none",
        help="balanced: rare classes count more, by the inverse of their number of samples",
    )
    group.add_argument(
        "--layer_decay",
        type=factor,
        help="with adamw: learning rate of each block over that of the next (default: 1)",
    )
    group.add_argument(
        "--grad_checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="less memory for more time: compute blocks again in the backward pass; changes no "
        "result (default: off)",
    )


def _add_contrastive_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("contrastive loss, with --head parts")
    group.add_argument(
        "--contrastive_weight", type=non_negative, help="times the loss; 0: none (default: 1)"
    )
    group.add_argument(
        "--contrastive_margin",
        type=cosine,
        help="similarity up to which different classes cost nothing (default: 0.4)",
    )
    group.add_argument(
        "--contrastive_scope",
        choices=("micro", "effective"),
        help="samples that are compared: a micro-batch's, as in TransFG's code, or the whole "
        "--train_batch_size's, for one more forward pass (default: micro)",
    )


def _add_durability_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("durability")
    group.add_argument(
        "--save_every",
        type=positive_int,
        default=DEFAULT_SAVE_EVERY,
        metavar="N",
        help="save the whole state every N steps; it is also saved at each evaluation, at Ctrl-C "
        "and SIGTERM",
    )
    group.add_argument(
        "--keep", type=count, default=1, metavar="N", help="states to keep besides the last"
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const=LAST,
        metavar="PATH",
        help="go on with the run --name from its last state, or from the state at PATH",
    )
    group.add_argument(
        "--allow_change",
        type=changeable_flags,
        metavar="FLAG,...",
        help=f"with --resume: flags that may differ from the run's: {', '.join(CHANGEABLE)}",
    )
    group.add_argument(
        "--ema_decay",
        type=share,
        metavar="DECAY",
        help="also keep averaged weights, of which each step keeps this share; evaluated and "
        "exported beside the raw ones (default: none)",
    )
    group.add_argument(
        "--patience",
        type=positive_int,
        metavar="N",
        help="end after N evaluations without a better accuracy (default: never)",
    )


def _add_run_flags(parser: argparse.ArgumentParser, for_training: bool) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--name", type=run_name, required=True, help="of the run, its folder")
    if for_training:
        group.add_argument(
            "--recipe",
            choices=("list", *recipe_names()),
            action=ListRecipes,
            metavar="NAME",
            help=f"defaults of a published or own recipe: {', '.join(recipe_names())}; list prints "
            "them with their sources",
        )
    if not for_training:
        group.add_argument(
            "--checkpoint", type=Path, required=True, metavar="PATH", help="a run's ckpt.bin"
        )
    group.add_argument(
        "--eval_batch_size", type=positive_int, default=8, metavar="N", help="samples at a time"
    )
    group.add_argument("--seed", type=seed, default=42, help="of everything that is random")
    group.add_argument("--output_dir", type=Path, default=Path("output"), help="holds all runs")
    group.add_argument(
        "--prefer_mps",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --device auto: MPS if it is there (default: on)",
    )
    group.add_argument(
        "--device",
        choices=("auto", "mps", "cpu", "cuda"),
        default="auto",
        help="auto is MPS if preferred and available, else CPU; a named device must be there",
    )
    group.add_argument(
        "--export_logits",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write all logits into predictions.jsonl (default: on)",
    )
    if for_training:
        group.add_argument(
            "--log_every",
            type=positive_int,
            default=10,
            metavar="N",
            help="steps between TensorBoard points, and log lines off a terminal",
        )


def build_train_parser(model_names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `train.py`."""
    parser = Parser(prog="train.py", description="Fine-tune a Vision Transformer.")
    _add_run_flags(parser, for_training=True)
    _add_data_flags(parser, for_training=True)
    _add_input_flags(parser, for_training=True)
    _add_model_flags(parser, model_names, for_training=True)
    _add_optimisation_flags(parser)
    _add_contrastive_flags(parser)
    _add_durability_flags(parser)
    return parser


def build_eval_parser(model_names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `eval.py`."""
    parser = Parser(
        prog="eval.py",
        description="Evaluate a checkpoint. Model, image size, preset, carving, class list "
        "and normalisation come from the checkpoint; a flag that contradicts it is an error.",
    )
    _add_run_flags(parser, for_training=False)
    _add_data_flags(parser, for_training=False)
    _add_input_flags(parser, for_training=False)
    _add_model_flags(parser, model_names, for_training=False)
    return parser
