"""Define every flag of the entrypoints and the probe in one table; derive what others ask of it.

Parser, config hash, what a resumed run may change and `openapi.yaml` follow from the rows. To add a
flag, add a row to `GROUPS` and run `scripts/dev/make_openapi.py`. Imports no torch.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ml_collections import FrozenConfigDict

from utils.cli import types
from utils.cli.recipes import recipe_names, recipe_or_list
from utils.data.presets import AUGMENTS, DEFAULT_PRESET, PRESETS
from utils.data_utils import (
    DEFAULT_SPLIT_SEED,
    DEFAULT_VAL_FRACTION,
    PROBE_METHODS,
    SYNTHETIC_FOLDER,
)
from utils.errors import near_miss
from utils.files import sha256_file
from utils.hub import is_address

MAX_WARMUP_STEPS = 500
DEFAULT_NUM_STEPS = 1000
DEFAULT_NUM_WORKERS = 2
DEFAULT_SAVE_EVERY = 100
CACHE_FOLDER = ".cache"  # under --output_dir
PUBLIC_WEIGHTS = "public_weights"  # in the config: which weights from the hub the run began with
LAST = "last"  # what `--resume` without a path stands for


REQUIRED = object()  # default of a flag that must be given
TRAIN, EVAL, BOTH = ("train",), ("eval",), ("train", "eval")
PROBE, TRAIN_PROBE, EVERY = ("probe",), ("train", "probe"), ("train", "eval", "probe")


class Flag(NamedTuple):
    """One row of the table."""

    name: str
    # Text to value; or choices, where none are those that the entrypoint hands in; bool: on or off.
    kind: types.Number | Callable[[str], Any] | tuple[str, ...]
    default: Any  # None: something else decides, and the help says what
    programs: tuple[str, ...] = TRAIN
    metavar: str | None = None
    first: Callable[[str], str] | None = None  # sees the text before the choices are checked
    bare: str | None = None  # value of the flag with nothing after it, if that may be
    checkpoint_decides: bool = False  # no default in eval.py, where it may not contradict
    needs: Mapping[str, tuple[str, ...]] = {}  # other flags, and the values that do (empty: any)
    unmet: Any = None  # value in the config where a need is not met
    # How it enters the config hash: by its value; so, unless it is the default (for a flag that is
    # newer than some hashes); by the content of the file that it names; or, of what says only where
    # things lie, how fast they load or how often they are printed, not at all.
    hashed: Literal["value", "if_not_default", "content", "never"] = "value"
    changeable: bool = False  # whether --allow_change may name it
    path: Literal["no", "file", "place"] = "no"  # a file that must exist; what is looked at later
    excludes: str = ""  # flag that may not be given beside it; the two change together
    text: str = ""  # help

    def help(self, text: str) -> "Flag":
        """Return the row with its help text."""
        return self._replace(text=text)

    def default_in(self, program: str) -> Any:  # noqa: ANN401 - as the field
        """Return the default in `train` or `eval`."""
        return None if self.checkpoint_decides and program == "eval" else self.default

    def unmet_need(self, values: Mapping[str, Any]) -> str | None:
        """Return the first need that `values` does not meet, as flags to type, or None."""
        for flag, meanings in self.needs.items():
            if meanings and values[flag] not in meanings:
                return f"--{flag} {meanings[0]}"
            if values[flag] is None:
                return f"--{flag}"
        return None


def changeable_flags(text: str) -> str:
    """Return `a,b`, names of flags that a resumed run may change, without dashes and spaces.

    Raises:
        ArgumentTypeError: one of them may not be changed.
    """
    names = [name.strip().removeprefix("--") for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in CHANGEABLE]
    if wrong or not names:
        meant = near_miss(wrong[0], CHANGEABLE) if wrong else ""
        raise argparse.ArgumentTypeError(
            f"{', '.join(wrong) or 'nothing'} cannot change within a run; what can: "
            f"{', '.join(CHANGEABLE)}{meant}"
        )
    return ",".join(names)


_PARTS, _WEIGHTS = {"head": ("parts",)}, {"pretrained": ()}
_SUBSET = "<dataset>_tiny (two batches) or a text file with one sample id a line"

GROUPS: dict[str, tuple[Flag, ...]] = {
    "run": (
        Flag("name", types.run_name, REQUIRED, EVERY, hashed="never").help(
            "name of the run and of its folder"
        ),
        Flag(
            "recipe",
            ("list", *recipe_names()),
            None,
            metavar="NAME",
            first=recipe_or_list,
            hashed="never",
        ).help(
            f"take the defaults of a published or own recipe: {', '.join(recipe_names())}; list "
            "prints them with their sources"
        ),
        Flag("checkpoint", types.path, REQUIRED, EVAL, hashed="content", path="file").help(
            "checkpoint to evaluate, a run's ckpt.bin"
        ),
        Flag("eval_batch_size", types.batch, 8, BOTH, changeable=True).help(
            "images that are evaluated at a time"
        ),
        Flag("seed", types.seed, 42, EVERY).help("seed of everything that is random"),
        Flag("output_dir", types.path, Path("output"), EVERY, hashed="never", path="place").help(
            "folder that holds all runs"
        ),
        Flag("take_over", bool, False, EVERY, hashed="never").help(
            "write the run although its lock names a process of another host, which has ended"
        ),
        Flag("prefer_mps", bool, True, EVERY, hashed="never").help(
            "with --device auto: MPS if available"
        ),
        Flag("device", ("auto", "mps", "cpu", "cuda"), "auto", EVERY, hashed="never").help(
            "auto is MPS if preferred and available, else CPU; a named device must be available"
        ),
        Flag("export_logits", bool, True, EVERY, changeable=True).help(
            "write all logits into predictions.jsonl"
        ),
        Flag("export_features", bool, False, EVAL, hashed="never").help(
            "write what heads read of each image into features.npy, ids into features.json; kept "
            "in the cache's folder, so that they are computed once"
        ),
        Flag("log_every", types.positive_int, 10, hashed="never").help(
            "steps between TensorBoard points, and between log lines off a terminal"
        ),
    ),
    "data": (
        Flag("dataset", (), "flower102", EVERY, checkpoint_decides=True).help(
            "name of the dataset, one of {names}"
        ),
        Flag("data_root", types.path, None, EVERY, hashed="never", path="place").help(
            "the dataset's official folder or its parent; for csv the file (default: $DATA_ROOT; "
            f"for synthetic <output_dir>/{SYNTHETIC_FOLDER}, drawn if absent)"
        ),
        Flag("train_split", str, "train", TRAIN_PROBE, metavar="SPLIT").help("split to train on"),
        Flag("eval_split", str, None, EVERY, metavar="SPLIT").help(
            "split to evaluate on; all in eval.py: every image of every split (default: val, or "
            "test where there is no val; in eval.py, of images in one heap, those of the run's "
            "val, or all if none was trained on)"
        ),
        Flag(
            "class_depth", types.positive_int, None, EVERY, metavar="N", hashed="if_not_default"
        ).help(
            "with --dataset folder: the folders that make a class name; 2: genus/species (default: "
            "1, and an error where all classes have their images deeper; in eval.py the "
            "checkpoint's)"
        ),
        Flag("unknown_classes", ("refuse", "skip"), "refuse", EVAL, hashed="if_not_default").help(
            "what becomes of images whose class the checkpoint does not know; skip: they are left "
            "out"
        ),
        Flag("val_fraction", types.share, None, TRAIN_PROBE).help(
            "hold out this share of train, class by class, as val where the data has none "
            f"(default: {DEFAULT_VAL_FRACTION} where the data is in one heap, else none)"
        ),
        Flag("split_seed", types.seed, None, TRAIN_PROBE).help(
            f"seed that chooses the held-out images (default: {DEFAULT_SPLIT_SEED})"
        ),
        Flag(
            "tiny_train_subset",
            types.maybe_path,
            None,
            TRAIN_PROBE,
            metavar="SUBSET",
            hashed="content",
            path="place",
        ).help(f"train on {_SUBSET}"),
        Flag(
            "tiny_infer_subset",
            types.maybe_path,
            None,
            EVERY,
            metavar="SUBSET",
            hashed="content",
            path="place",
        ).help(f"evaluate on {_SUBSET}"),
        Flag("img_size", types.image_side, 224, EVERY, checkpoint_decides=True).help(
            "side of the square input in pixels, a multiple of the patch"
        ),
        Flag("num_workers", types.workers, None, EVERY, hashed="never").help(
            f"loader processes; changes no result (default: {DEFAULT_NUM_WORKERS}, or 0 for a "
            "tiny subset)"
        ),
    ),
    "input pipeline": (
        Flag("preset", tuple(PRESETS), DEFAULT_PRESET, TRAIN_PROBE, checkpoint_decides=True).help(
            "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
        ),
        Flag("augment", AUGMENTS, None, changeable=True).help(
            "policy that changes training images after the crop (default: the preset's)"
        ),
        Flag("random_erasing", types.probability, None, changeable=True).help(
            "probability that a box of a training image is erased (default: the preset's)"
        ),
        Flag("mixup", types.alpha, None, changeable=True).help(
            "alpha of mixup (Zhang et al. 2018) within each micro-batch; 0: none (default: the "
            "preset's)"
        ),
        Flag("cutmix", types.alpha, None, changeable=True).help(
            "alpha of CutMix (Yun et al. 2019) within each micro-batch; 0: none (default: the "
            "preset's)"
        ),
        Flag("patch_dropout", types.fraction, 0.0, changeable=True, hashed="if_not_default").help(
            "share of its patches that a training image loses at random, for cheaper steps; "
            "evaluation sees all"
        ),
        Flag("skip_bad_images", types.count, 0, EVERY, changeable=True).help(
            "leave out up to N images that cannot be decoded, those of training and evaluation "
            "together, instead of ending"
        ),
        Flag("tta", ("none", "flip"), "none", BOTH, changeable=True).help(
            "flip: evaluate each image and its mirror image, and take the mean of the logits"
        ),
        Flag("cache", ("none", "disk"), "none", EVERY, first=types.cache_name, hashed="never").help(
            "disk: keep decoded and resized images on disk, mapped into memory; changes no result"
        ),
        Flag(
            "cache_dir",
            types.path,
            None,
            EVERY,
            hashed="never",
            path="place",
        ).help(f"folder of --cache disk and of features (default: <output_dir>/{CACHE_FOLDER})"),
    ),
    "model": (
        Flag("model_type", (), "ViT-B_16", EVERY, checkpoint_decides=True).help(
            "name of the architecture, one of {names}"
        ),
        Flag("head", ("token", "parts"), "token", TRAIN_PROBE).help(
            "token: plain ViT; parts: TransFG, whose last block sees the selected patches only"
        ),
        Flag("split", ("non-overlap", "overlap"), "non-overlap", TRAIN_PROBE).help(
            "whether the patches that the image is cut into overlap"
        ),
        Flag("slide_step", types.positive_int, 12, TRAIN_PROBE, needs={"split": ("overlap",)}).help(
            "pixels between overlapping patches"
        ),
        Flag("dropout", types.fraction, 0.0).help(
            "rate after the position embedding and each dense layer but queries, keys and values"
        ),
        Flag("drop_path", types.fraction, 0.0).help(
            "rate of stochastic depth in the last block, rising linearly from 0 in the first"
        ),
        Flag(
            "pretrained",
            types.maybe_path,
            None,
            TRAIN_PROBE,
            metavar="WEIGHTS",
            hashed="content",
            path="file",
        ).help(
            "start from these weights: a file (Google .npz, timm, Hugging Face, torchvision, "
            "ViT-pytorch, TransFG, or a ckpt.bin of this project; recognised by content); else a "
            "name that `scripts/get_weights.py --list` prints, or hf:owner/repo[@revision][/file], "
            "fetched from the Hugging Face hub (default: random weights)"
        ),
        Flag(
            "pretrained_profile",
            ("auto", "google", "imagenet", "clip", "clip-quickgelu", "siglip"),
            None,
            TRAIN_PROBE,
        ).help(
            "normalisation, activation and LayerNorm eps of the weights; auto: from a config.json "
            "or preprocessor_config.json beside them, else what is usual for the layout; without "
            "--pretrained the normalisation alone, auto being google's (default: auto)"
        ),
        Flag(
            "pretrained_key",
            str,
            None,
            TRAIN_PROBE,
            needs=_WEIGHTS,
            hashed="if_not_default",
            metavar="NAME",
        ).help(
            "where the model is in a file of several, as messages name it, such as model_ema or "
            "student.backbone (default: the only one; a teacher before its student, trained "
            "weights before their average)"
        ),
        Flag("pos_resample", ("bicubic", "bilinear"), "bicubic", TRAIN_PROBE, needs=_WEIGHTS).help(
            "how position embeddings are resized to another grid: bicubic as timm, bilinear as "
            "TransFG's code"
        ),
        Flag(
            "part_init", ("pretrained", "random"), "pretrained", needs={**_WEIGHTS, **_PARTS}
        ).help(
            "with --head parts: the part block starts from the last block of the weights, or "
            "random as in TransFG's code"
        ),
        Flag("freeze", types.frozen_blocks, "none", metavar="{none,backbone,N}").help(
            "none: train all; backbone: only what follows it; N: all but embeddings and first N "
            "blocks"
        ),
    ),
    "optimisation": (
        Flag("optimizer", ("sgd", "adamw"), "sgd").help(
            "rule by which gradients change the weights"
        ),
        Flag(
            "momentum",
            types.fraction,
            0.9,
            needs={"optimizer": ("sgd",)},
            unmet=0.9,  # under AdamW too: configs and hashes from before stay what they are
            changeable=True,
        ).help("with sgd: share of the last step's direction that the next one keeps"),
        Flag("num_steps", types.positive_int, None, changeable=True, excludes="epochs").help(
            f"optimizer steps (default: {DEFAULT_NUM_STEPS})"
        ),
        Flag("epochs", types.positive_int, None, changeable=True, excludes="num_steps").help(
            "instead of --num_steps: passes over the data"
        ),
        Flag("eval_every", types.positive_int, 100, changeable=True).help(
            "steps between evaluations; one follows the last step too"
        ),
        Flag("train_batch_size", types.batch, 16).help("images an optimizer step sees"),
        Flag("learning_rate", types.positive, 0.03, changeable=True).help(
            "learning rate at its peak, after the warm-up"
        ),
        Flag("weight_decay", types.non_negative, 0.0, changeable=True).help(
            "weight decay of matrices; biases, norms, class token and position embeddings have none"
        ),
        Flag("decay_type", ("cosine", "linear"), "cosine", changeable=True).help(
            "how the learning rate falls to 0 after the warm-up"
        ),
        Flag("warmup_steps", types.count, None, changeable=True).help(
            "steps in which the learning rate rises linearly (default: a tenth of the run, at most "
            f"{MAX_WARMUP_STEPS})"
        ),
        Flag("max_grad_norm", types.positive, 1.0, changeable=True).help(
            "L2 norm to which a longer gradient is clipped"
        ),
        Flag("gradient_accumulation_steps", types.batch, 1, changeable=True).help(
            "micro-batches a step is computed in, for less memory; must divide --train_batch_size"
        ),
        Flag("smoothing_value", types.fraction, 0.0, changeable=True).help(
            "label smoothing: share of the target that all classes divide"
        ),
        Flag("class_weights", ("none", "balanced"), "none", changeable=True).help(
            "balanced: rare classes count more, by the inverse of their number of samples"
        ),
        Flag("layer_decay", types.factor, 1.0, needs={"optimizer": ("adamw",)}).help(
            "with adamw: learning rate of each block over that of the next"
        ),
        Flag("grad_checkpointing", bool, False, hashed="never").help(
            "activation checkpointing: compute blocks again in the backward pass, for less memory "
            "and more time; changes no result"
        ),
    ),
    "contrastive loss, with --head parts": (
        Flag("contrastive_weight", types.non_negative, 1.0, needs=_PARTS, changeable=True).help(
            "factor of the contrastive loss; 0: none"
        ),
        Flag("contrastive_margin", types.cosine, 0.4, needs=_PARTS, changeable=True).help(
            "cosine similarity up to which different classes cost nothing"
        ),
        Flag(
            "contrastive_scope", ("micro", "effective"), "micro", needs=_PARTS, changeable=True
        ).help(
            "samples that are compared: a micro-batch's, as in TransFG's code, or the whole "
            "--train_batch_size's, for one more forward pass"
        ),
    ),
    "probe": (
        Flag("method", types.names_of(PROBE_METHODS), None, PROBE, metavar="NAME,...").help(
            f"classifiers to fit, of {', '.join(PROBE_METHODS)} (default: all; where images x "
            "features x classes are over 1e11 all but logistic)"
        ),
        Flag("features", ("auto", "class", "mean", "both"), "auto", PROBE).help(
            "what they read of an image: class token (or what the weights pool by), mean of the "
            "patches, or both; auto: the best on val, or on folds of train where there is no val"
        ),
        Flag("fit", ("auto", "train"), "auto", PROBE).help(
            "what the head is fitted on once all is chosen; auto: train, and val too where another "
            "split is evaluated"
        ),
        Flag("few_shot", types.counts, None, PROBE, metavar="N,...").help(
            "also tell the accuracy with so many images of each class, over 5 draws"
        ),
        Flag("folds", types.fold_count, None, PROBE).help(
            "also tell the accuracy over so many stratified folds of what the head is fitted on"
        ),
    ),
    "durability": (
        Flag("save_every", types.positive_int, DEFAULT_SAVE_EVERY, hashed="never").help(
            "steps between snapshots, from which a run can be resumed; one is also saved at each "
            "evaluation, at Ctrl-C and at SIGTERM"
        ),
        Flag("keep", types.count, 1, hashed="never").help("snapshots to keep besides the newest"),
        Flag(
            "resume",
            types.maybe_path,
            None,
            metavar="PATH",
            bare=LAST,
            hashed="never",
            path="place",
        ).help(
            "resume the run --name from its newest snapshot, or from the snapshot at PATH; or the "
            "run whose folder PATH is, without --name; flags that are not given are the run's"
        ),
        Flag(
            "allow_change",
            changeable_flags,
            None,
            metavar="FLAG,...",
            needs={"resume": ()},
            hashed="never",
        ).help(
            "with --resume: what may differ from the run's: {changeable} (data: images that were "
            "replaced, removed or added)"
        ),
        Flag("ema_decay", types.share, None).help(
            "also keep averaged weights, of which each step keeps this share; evaluated and "
            "exported beside the raw ones (default: none)"
        ),
        Flag("patience", types.positive_int, None, changeable=True).help(
            "end after N evaluations without a better accuracy (default: never)"
        ),
    ),
}

# --- What follows from the rows -------------------------------------------------------------------

FLAGS = {flag.name: flag for group in GROUPS.values() for flag in group}
# What a resumed run may have another value of: neither the model, nor the data and their order, nor
# which numbers its optimizer remembers.
DATA = "data"  # in --allow_change: images that were replaced, removed or added
CHANGEABLE = (*(flag.name for flag in FLAGS.values() if flag.changeable), DATA)


def help_of(flag: Flag, program: str, choices: Sequence[str]) -> str:
    """Return the help text of a flag in `train` or `eval`, with its default.

    Args:
        flag: row of the table.
        program: `train` or `eval`.
        choices: names that the flag takes, if the entrypoint hands them in.
    """
    text = flag.text.format(names=", ".join(choices), changeable=", ".join(CHANGEABLE))
    default = flag.default_in(program)
    if default is None and flag.checkpoint_decides:
        return f"{text} (default: the checkpoint's)"
    if default in (None, REQUIRED) or "(default: " in text:
        return text
    if flag.kind is bool:
        default = "on" if default else "off"
    return f"{text} (default: {default})"


def may_change(allowed: str | None) -> set[str]:
    """Return the keys of the config that `--allow_change` lets differ from the run's."""
    names = allowed.split(",") if allowed else []
    return {*names, *(FLAGS[name].excludes for name in names if name != DATA)} - {""}


def with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config whose paths mean the same in every current folder."""
    paths = ("output_dir", "data_root", "cache_dir", "pretrained")
    given = {name: config[name] for name in paths if config.get(name)}
    absolute = {
        name: str(Path(path).absolute()) for name, path in given.items() if not is_address(path)
    }
    return {**config, **absolute}


def paths_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths among the values of flags, by flag as it is typed."""
    paths = [name for name, flag in FLAGS.items() if flag.path != "no"]
    return {f"--{name}": values[name] for name in paths if values.get(name)}


def experiment_of(
    config: FrozenConfigDict, known: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the experiment that a resolved config describes, equal on every machine.

    A key that is not a flag's is part of the experiment, but for where weights came from.

    Args:
        config: resolved config.
        known: what of it is known already, from files that need not be read again.
    """
    experiment = {}
    for key, value in config.to_dict().items():
        flag = FLAGS.get(key)
        hashed = "value" if flag is None else flag.hashed
        if hashed == "never" or key == PUBLIC_WEIGHTS:
            continue
        if hashed == "if_not_default" and value in (flag.default, flag.unmet):
            continue
        if key in known:
            value = known[key]
        elif key == "pretrained" and is_address(value):
            value = config.get(PUBLIC_WEIGHTS, {}).get("sha256", value)
        elif hashed == "content" and value is not None:
            # Lists of ids are absolute paths by now; named subsets are not, whatever lies around.
            may_be_file = flag.path == "file" or Path(value).is_absolute()
            value = sha256_file(Path(value)) if may_be_file and Path(value).is_file() else value
        experiment[key] = value
    return experiment
