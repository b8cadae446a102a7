"""Find the weights that training starts from: a file, public weights, or a checkpoint of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.cli.flags import PUBLIC_WEIGHTS
from utils.console import log
from utils.data.digests import Digests, digest_set
from utils.data.subsets import is_among
from utils.data_utils import TRAIN_ALONE, RunPaths, checkpoint_paths
from utils.dataset import Data
from utils.errors import InputError
from utils.hub import Fetched, is_address
from utils.processes import on_each_machine
from utils.run.checkpoint import Checkpoint, is_checkpoint, load_checkpoint


class Past(NamedTuple):
    """What earlier training has left in weights."""

    public_weights: Mapping[str, str] = {}  # the public weights behind them, at any remove
    trained_images: np.ndarray = np.empty(0, np.uint64)  # set of image digests
    fitted_on: Sequence[str] = ()  # splits that a probe fitted their head on
    head: str = "token"  # the kind of that head
    head_images: np.ndarray = np.empty(0, np.uint64)  # set of the images of these splits

    @property
    def decided(self) -> dict[str, Any]:
        """What of the run's config it decides."""
        return {PUBLIC_WEIGHTS: dict(self.public_weights)} if self.public_weights else {}


def find_weights(pretrained: str | None, table: Mapping[str, Any]) -> Fetched | None:
    """Return where the weights of `--pretrained` lie, after fetching them if they are on the hub.

    All processes call it together; one of each machine fetches.

    Args:
        pretrained: path, or address on the hub.
        table: public weights by name; a row has the fields of `utils.hub.Source`.

    Raises:
        InputError: they cannot be had, and the user has to change something.
        RunError: network or disk failed.
    """
    if pretrained is None:
        return None
    if is_address(pretrained):
        from utils.hub_fetch import fetch  # half a second that files do not need

        return on_each_machine(fetch, pretrained, table)
    return Fetched(Path(pretrained), {})


def load_own(path: Path, profile: str, key: str | None) -> Checkpoint | None:
    """Load a checkpoint of ours to start from; None: the file is not one.

    Raises:
        InputError: it is damaged, or a flag contradicts it.
    """
    if not is_checkpoint(path):
        return None
    if profile != "auto":
        raise InputError(
            f"--pretrained_profile {profile}: {path} says itself how it was trained; use "
            "--pretrained_profile auto"
        )
    if key is not None:
        raise InputError(f"--pretrained_key {key}: {path} holds one model; leave the flag out")
    own = load_checkpoint(path)
    if own.older_rules:
        log.warning("warning: %s %s", path, own.older_rules)
    return own


def check_head_is_unbiased(
    past: Past, pretrained: str, data: Data, digests: Sequence[Digests]
) -> None:
    """Raise if a probe fitted the head on images to evaluate that are not of the run's train split.

    A probe that fits on val, too, has kept a head beside it that has not seen val. Images in both
    splits of the run, and those that the trunk alone has seen, are warned of later.

    Args:
        past: what the weights say of themselves.
        pretrained: where they lie.
        data: data of the run.
        digests: of its whole splits, train first.

    Raises:
        InputError: it did; says what to do instead.
    """
    if not len(past.head_images):
        return
    known, own = (
        is_among(each, data.full_eval, digests[1])[data.full_eval.positions_of(data.eval)]
        for each in (past.head_images, digest_set(digests[0]))
    )
    seen = int((known & ~own).sum())
    if seen:
        name = checkpoint_paths(RunPaths(Path(), ""), TRAIN_ALONE).checkpoint.name
        beside = Path(pretrained).with_name(name)
        remedy = (
            f"start from {beside}, whose head has seen train alone"
            if len(past.fitted_on) > 1 and beside.exists()
            else "evaluate another split, or probe again with the splits of this run"
        )
        raise InputError(
            f"--pretrained {pretrained}: its head was fitted on {' and '.join(past.fitted_on)}, "
            f"and {seen} of the {len(data.eval)} images of --eval_split {data.eval.name} are among "
            f"them; {remedy}"
        )
