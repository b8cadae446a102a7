"""The flags of both entrypoints: value types, argument groups, parsers. Imports no torch."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.console import Parser
from utils.data_utils import TENSORBOARD_FOLDER
from utils.dataset import dataset_names

RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MAX_NAME_LENGTH = 200  # file systems take 255 bytes, and a kept run's name gets longer
SYNTHETIC_FOLDER = ".synthetic"  # under --output_dir; the dot keeps it apart from run names
MAX_WARMUP_STEPS = 500
DEFAULT_NUM_STEPS = 1000
DEFAULT_NUM_WORKERS = 2
DEFAULT_SLIDE_STEP = 12

# Flags that mean nothing without another one: the flag that they need, its values that give them a
# meaning (empty: any), and their default then. Given without it they are refused, not ignored.
DEPENDENT = {
    "slide_step": ("split", ("overlap",), DEFAULT_SLIDE_STEP),
    "contrastive_weight": ("head", ("parts",), 1.0),
    "contrastive_margin": ("head", ("parts",), 0.4),
    "contrastive_scope": ("head", ("parts",), "micro"),
    "layer_decay": ("optimizer", ("adamw",), 1.0),
    "pretrained_profile": ("pretrained", (), "auto"),
    "pos_resample": ("pretrained", (), "bicubic"),
    "part_init": ("pretrained", (), "pretrained"),
}


# --- Types of flag values -------------------------------------------------------------------------


def _number(
    kind: type[int] | type[float], is_valid: Callable[[float], bool], meaning: str
) -> Callable[[str], int | float]:
    def parse(text: str) -> int | float:
        try:
            value = kind(text)
            is_good = math.isfinite(value) and is_valid(value)
        except (ValueError, OverflowError):  # no number; a whole number beyond every float
            is_good = False
        if not is_good:
            raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
        return value

    return parse


positive_int = _number(int, lambda x: 0 < x < 2**31, "a whole number above 0 and below 2**31")
_count = _number(int, lambda x: 0 <= x < 2**31, "a whole number, 0 or above, below 2**31")
_seed = _number(int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 4294967295")
_positive = _number(float, lambda x: x > 0, "a finite number above 0")
_non_negative = _number(float, lambda x: x >= 0, "a finite number, 0 or above")
_fraction = _number(float, lambda x: 0 <= x < 1, "a number from 0 up to but not including 1")
_factor = _number(float, lambda x: 0 < x <= 1, "a number above 0, up to 1")
_cosine = _number(float, lambda x: -1 <= x <= 1, "a number from -1 to 1")


def _frozen_part(text: str) -> str:
    if text not in ("none", "backbone") and not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither none, backbone nor a whole number")
    return text


def _run_name(text: str) -> str:
    if (
        not RUN_NAME.fullmatch(text)
        or len(text) > MAX_NAME_LENGTH
        or text.casefold() == TENSORBOARD_FOLDER
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no run name: letters, digits, '.', '_' and '-', not starting with '.' or "
            f"'-', at most {MAX_NAME_LENGTH}, and not '{TENSORBOARD_FOLDER}'"
        )
    return text


# --- Flags ----------------------------------------------------------------------------------------


def _add_data_flags(parser: argparse.ArgumentParser, for_training: bool) -> None:
    group = parser.add_argument_group("data")
    dataset_default = "flower102" if for_training else None
    otherwise = "" if for_training else " (default: the checkpoint's)"
    group.add_argument(
        "--dataset", choices=dataset_names(), default=dataset_default, metavar="NAME",
        help=f"one of {', '.join(dataset_names())}{otherwise}",
    )  # fmt: skip
    group.add_argument(
        "--data_root", type=Path, metavar="PATH",
        help="folder with jpg/, imagelabels.mat and setid.mat, or its parent (default: $DATA_ROOT; "
        f"for synthetic <output_dir>/{SYNTHETIC_FOLDER}, drawn if absent)",
    )  # fmt: skip
    if for_training:
        group.add_argument("--train_split", default="train", metavar="SPLIT", help="train on it")
    group.add_argument("--eval_split", default="val", metavar="SPLIT", help="evaluate on it")
    subset = "<dataset>_tiny (two batches) or a text file with one sample id a line"
    if for_training:
        group.add_argument("--tiny_train_subset", metavar="SUBSET", help=f"train on {subset}")
    group.add_argument("--tiny_infer_subset", metavar="SUBSET", help=f"evaluate on {subset}")
    group.add_argument(
        "--img_size", type=positive_int, default=224 if for_training else None, metavar="PIXELS",
        help=f"side of the square input, a multiple of the patch{otherwise}",
    )  # fmt: skip
    group.add_argument(
        "--num_workers", type=_count, metavar="N",
        help=f"loader processes; changes no result (default: {DEFAULT_NUM_WORKERS}, or 0 for a "
        "tiny subset)",
    )  # fmt: skip


def _add_model_flags(
    parser: argparse.ArgumentParser, model_names: Sequence[str], for_training: bool
) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_type", choices=tuple(model_names), metavar="NAME",
        default="ViT-B_16" if for_training else None,
        help=f"one of {', '.join(model_names)}"
        + ("" if for_training else " (default: the checkpoint's)"),
    )  # fmt: skip
    if for_training:
        _add_architecture_flags(group)
        _add_pretrained_flags(group)


def _add_architecture_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--head", choices=("token", "parts"), default="token",
        help="token: plain ViT; parts: TransFG, whose last block sees the selected patches only",
    )  # fmt: skip
    group.add_argument(
        "--split", choices=("non-overlap", "overlap"), default="non-overlap",
        help="how the image is cut into patches",
    )  # fmt: skip
    group.add_argument(
        "--slide_step", type=positive_int, metavar="PIXELS",
        help=f"between overlapping patches (default: {DEFAULT_SLIDE_STEP})",
    )  # fmt: skip
    group.add_argument(
        "--dropout", type=_fraction, default=0.0,
        help="after the position embedding and each dense layer but the attention's",
    )  # fmt: skip
    group.add_argument(
        "--drop_path", type=_fraction, default=0.0,
        help="stochastic depth of the last block, rising linearly from 0 at the first",
    )  # fmt: skip


def _add_pretrained_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pretrained", type=Path, metavar="PATH",
        help="start from these weights: Google .npz, timm, Hugging Face, torchvision, ViT-pytorch, "
        "TransFG, or a ckpt.bin of this project; recognised by content (default: random weights)",
    )  # fmt: skip
    group.add_argument(
        "--pretrained_profile",
        choices=("auto", "google", "imagenet", "clip", "clip-quickgelu", "siglip"),
        help="normalisation, activation and LayerNorm eps of the weights; auto: from a config.json "
        "or preprocessor_config.json beside them, else what is usual for the layout "
        "(default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--pos_resample", choices=("bicubic", "bilinear"),
        help="position embeddings for another grid: bicubic as timm, bilinear as TransFG's code "
        "(default: bicubic)",
    )  # fmt: skip
    group.add_argument(
        "--part_init", choices=("pretrained", "random"),
        help="with --head parts: the part block starts from the last block of the weights, or "
        "random, as TransFG's code has it (default: pretrained)",
    )  # fmt: skip
    group.add_argument(
        "--freeze", type=_frozen_part, default="none", metavar="{none,backbone,N}",
        help="train all; only what follows the backbone; or all but embeddings and first N blocks",
    )  # fmt: skip


def _add_optimisation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    group.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="optimizer")
    group.add_argument("--momentum", type=_fraction, default=0.9, help="of SGD")
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--num_steps", type=positive_int, metavar="N",
        help=f"optimizer steps (default: {DEFAULT_NUM_STEPS})",
    )  # fmt: skip
    length.add_argument(
        "--epochs", type=positive_int, metavar="N",
        help="instead of --num_steps: passes over the data",
    )  # fmt: skip
    group.add_argument(
        "--eval_every", type=positive_int, default=100, metavar="N",
        help="evaluate every N steps and after the last",
    )  # fmt: skip
    group.add_argument(
        "--train_batch_size", type=positive_int, default=16, metavar="N",
        help="samples an optimizer step sees",
    )  # fmt: skip
    group.add_argument("--learning_rate", type=_positive, default=3e-2, help="peak learning rate")
    group.add_argument(
        "--weight_decay", type=_non_negative, default=0.0,
        help="of matrices; biases, norms, class token and position embeddings have none",
    )  # fmt: skip
    group.add_argument(
        "--decay_type", choices=("cosine", "linear"), default="cosine", help="after the warm-up"
    )
    group.add_argument(
        "--warmup_steps", type=_count, metavar="N",
        help=f"linear warm-up (default: a tenth of the run, at most {MAX_WARMUP_STEPS})",
    )  # fmt: skip
    group.add_argument(
        "--max_grad_norm", type=_positive, default=1.0, help="clip the gradient to this L2 norm"
    )
    group.add_argument(
        "--gradient_accumulation_steps", type=positive_int, default=1, metavar="N",
        help="micro-batches a step; must divide --train_batch_size",
    )  # fmt: skip
    group.add_argument("--smoothing_value", type=_fraction, default=0.0, help="label smoothing")
    group.add_argument(
        "--class_weights", choices=("none", "balanced"), default="none",
        help="balanced: rare classes count more, by the inverse of their number of samples",
    )  # fmt: skip
    group.add_argument(
        "--layer_decay", type=_factor,
        help="with adamw: learning rate of each block over that of the next (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--grad_checkpointing", action=argparse.BooleanOptionalAction, default=False,
        help="less memory for more time: compute blocks again in the backward pass; changes no "
        "result (default: off)",
    )  # fmt: skip


def _add_contrastive_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("contrastive loss, with --head parts")
    group.add_argument(
        "--contrastive_weight", type=_non_negative, help="times the loss; 0: none (default: 1)"
    )
    group.add_argument(
        "--contrastive_margin", type=_cosine,
        help="similarity up to which different classes cost nothing (default: 0.4)",
    )  # fmt: skip
    group.add_argument(
        "--contrastive_scope", choices=("micro", "effective"),
        help="samples that are compared: a micro-batch's, as in TransFG's code, or the whole "
        "--train_batch_size's, for one more forward pass (default: micro)",
    )  # fmt: skip


def _add_run_flags(parser: argparse.ArgumentParser, for_training: bool) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--name", type=_run_name, required=True, help="of the run, its folder")
    if not for_training:
        group.add_argument(
            "--checkpoint", type=Path, required=True, metavar="PATH", help="a run's ckpt.bin"
        )
    group.add_argument(
        "--eval_batch_size", type=positive_int, default=8, metavar="N", help="samples at a time"
    )
    group.add_argument("--seed", type=_seed, default=42, help="of everything that is random")
    group.add_argument("--output_dir", type=Path, default=Path("output"), help="holds all runs")
    group.add_argument(
        "--prefer_mps", action=argparse.BooleanOptionalAction, default=True,
        help="with --device auto: MPS if it is there (default: on)",
    )  # fmt: skip
    group.add_argument(
        "--device", choices=("auto", "mps", "cpu", "cuda"), default="auto",
        help="auto is MPS if preferred and available, else CPU; a named device must be there",
    )  # fmt: skip
    group.add_argument(
        "--export_logits", action=argparse.BooleanOptionalAction, default=True,
        help="write all logits into predictions.jsonl (default: on)",
    )  # fmt: skip
    if for_training:
        group.add_argument(
            "--log_every", type=positive_int, default=10, metavar="N",
            help="steps between TensorBoard points, and log lines off a terminal",
        )  # fmt: skip


def build_train_parser(model_names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `train.py`."""
    parser = Parser(prog="train.py", description="Fine-tune a Vision Transformer.")
    _add_run_flags(parser, for_training=True)
    _add_data_flags(parser, for_training=True)
    _add_model_flags(parser, model_names, for_training=True)
    _add_optimisation_flags(parser)
    _add_contrastive_flags(parser)
    return parser


def build_eval_parser(model_names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `eval.py`."""
    parser = Parser(
        prog="eval.py",
        description="Evaluate a checkpoint. Model, image size, class list and normalisation "
        "come from the checkpoint; a flag that contradicts it is an error.",
    )
    _add_run_flags(parser, for_training=False)
    _add_data_flags(parser, for_training=False)
    _add_model_flags(parser, model_names, for_training=False)
    return parser
