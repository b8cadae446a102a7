"""Find and read the weights of `--pretrained`, and build the model that a run starts with.

Programs that train share this file: it is between `models/` and `utils/`, which are strangers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

from models.configs import ModelConfigError, get_config
from models.pretrained.zoo import ZOO, Row
from utils.console import log, log_table
from utils.errors import InputError
from utils.hub import HUB, fetch, is_address
from utils.processes import on_each_machine

if TYPE_CHECKING:
    from models.build import ModelPlan
    from models.pretrained.weights import Pretrained
    from models.vit import Backbone


class Found(NamedTuple):
    """The file of `--pretrained` on this machine."""

    path: Path
    record: Mapping[str, str] = {}  # of weights that come from the hub: which, and their licence
    row: Row | None = None  # of weights in the table


class Start(NamedTuple):
    """The model that a run starts with."""

    plan: "ModelPlan"
    model: "Backbone"
    trained: np.ndarray  # set of the images that its weights were trained on
    public_weights: Mapping[str, str]  # the public weights behind it, at any remove; empty: none

    @property
    def decided(self) -> dict[str, Any]:
        """What of the run's config it decides."""
        model = self.plan.config.to_dict()
        decided = {"model": model, "normalization": self.plan.normalization}
        return decided | (
            {"public_weights": dict(self.public_weights)} if self.public_weights else {}
        )


def find_weights(pretrained: str | None) -> Found | None:
    """Return where the weights lie, after fetching them if they are on the hub.

    All processes call it together; one of each machine fetches.

    Raises:
        InputError: they cannot be had, and the user has to change something.
        RunError: network or disk failed.
    """
    if pretrained is None:
        return None
    if not is_address(pretrained):
        return Found(Path(pretrained))
    path, record = on_each_machine(fetch, pretrained, ZOO)
    return Found(path, record, ZOO.get(pretrained.removeprefix(HUB)))


def read_weights(
    found: Found, profile: str, key: str | None = None
) -> "tuple[Pretrained, np.ndarray, Mapping[str, str]]":
    """Read weights; also return which images and which public weights they were trained on.

    Raises:
        InputError: the file is damaged, or contradicts another flag.
        WeightsError: the weights cannot be used.
        ProfileError: a file beside the weights cannot be used.
    """
    from models.pretrained.weights import open_pretrained, own_pretrained
    from utils.run.checkpoint import is_checkpoint, load_checkpoint

    path = found.path
    if not is_checkpoint(path):
        known = None if found.row is None else found.row.profile
        return open_pretrained(path, profile, key, known), np.empty(0, np.uint64), found.record
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
    weights = own_pretrained(own.state_dict, own.model_config, own.normalization, own.classes)
    return weights, own.known_images.trained, own.public_weights


@contextmanager
def blaming(path: object) -> Iterator[None]:
    """Name the file of weights that cannot be used.

    Raises:
        InputError: they cannot, or a file beside them cannot.
    """
    from models.pretrained.weights import ProfileError, WeightsError

    try:
        yield
    except (WeightsError, ProfileError, OSError) as error:
        raise InputError(f"--pretrained {path}: {error}") from error


def check_weights(path: Path, profile: str, key: str | None, model_type: str) -> None:
    """Raise if the weights in a file are of another model type.

    Raises:
        InputError: they are, or cannot be used.
    """
    from models.pretrained.weights import adapt_config

    with blaming(path):
        adapt_config(get_config(model_type), read_weights(Found(path), profile, key)[0])


def build_planned_model(
    config: FrozenConfigDict, found: Found | None, classes: Sequence[str]
) -> Start:
    """Plan the model that flags and weights ask for, and build it on the CPU.

    Raises:
        InputError: the weights cannot be used.
    """
    from models.build import plan_model

    weights, trained, public = None, np.empty(0, np.uint64), {}
    with blaming(config.pretrained):
        if found is not None:
            told = config.pretrained_profile, config.pretrained_key
            weights, trained, public = read_weights(found, *told)
            if weights.assumed:
                log.warning("warning: %s; --pretrained_profile says otherwise", weights.assumed)
        else:
            log.warning("warning: no --pretrained: starting from random weights")
        plan = plan_model(config, weights, classes)
        model, report = plan.build()
    if report is not None:
        title = f"pretrained {config.pretrained}: layout {plan.weights.layout}"
        log_table(title, {**report.summary(), "notes": "; ".join(plan.weights.notes) or "none"})
    return Start(plan, model, trained, public)


def build_resumed_model(
    config: FrozenConfigDict, before: Mapping[str, Any], classes: Sequence[str]
) -> Start:
    """Build the model of the run that is resumed; its weights come from the snapshot, later.

    Args:
        config: config of the flags.
        before: config of the snapshot, which knows the images that weights were trained on.
        classes: class names.

    Raises:
        InputError: the snapshot describes a model that cannot be.
    """
    from models.build import plan_resumed_model

    try:
        plan = plan_resumed_model(config, before["model"], before["normalization"], len(classes))
    except ModelConfigError as error:
        raise InputError(f"--resume: the snapshot has an unusable {error}") from error
    public = before.get("public_weights", {})
    return Start(plan, plan.build()[0], np.empty(0, np.uint64), public)
