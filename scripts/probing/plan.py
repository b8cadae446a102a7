"""Plan a probe: open its data, build the frozen model, decide what is fitted on what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

from utils.cli.flags import experiment_of
from utils.cli.resolve import resolve_config, resolve_workers
from utils.console import log
from utils.data.splits import Split, match_classes
from utils.data_utils import RunPaths
from utils.dataset import Data, EvalData, open_data, prepare_images
from utils.errors import InputError
from utils.run.folder import read_stamp

if TYPE_CHECKING:
    import torch

    from models.build import ModelPlan
    from models.vit import Backbone
    from utils.data.digests import Digests
    from utils.run.weights import Past


class Plan(NamedTuple):
    """All decisions of a probe."""

    config: FrozenConfigDict
    data: Data  # what is fitted and what is evaluated
    val: EvalData | None  # by which choices are made, where another split is evaluated
    judge: Split | None  # by which choices are made; None: folds of train
    digests: Mapping[str, "Digests"]  # of whole splits, by name
    trained: np.ndarray  # set of the images that the weights were trained on
    model: "Backbone"  # on the device
    device: "torch.device"
    stamp: dict[str, Any]
    is_resumed: bool  # whether this probe was interrupted before

    @property
    def paths(self) -> RunPaths:
        """Where the run lies."""
        return RunPaths(Path(self.config.output_dir), self.config.name)

    @property
    def judge_role(self) -> str:
        """What the split by which choices are made is for; `train` where folds of it choose."""
        if self.judge is None:
            return "train"
        return "eval" if self.val is None else "val"

    @property
    def fitted_on(self) -> list[Split]:
        """The splits that the head is fitted on in the end."""
        others = [] if self.val is None or self.config.fit == "train" else [self.val.eval]
        return [self.data.train, *others]

    def _seen(self, fitted_on: Sequence[Split]) -> np.ndarray:
        """Return the set of the images that a head fitted on some splits has seen, by digest."""
        from utils.data.digests import digest_set

        whole = {self.data.full_train.name: self.data.full_train}
        if self.val is not None:
            whole[self.val.full_eval.name] = self.val.full_eval
        return digest_set(
            *(
                self.digests[split.name].at(whole[split.name].positions_of(split))
                for split in fitted_on
            )
        )

    def count_known(self, fitted_on: Sequence[Split]) -> int:
        """Return how many of the evaluated images a head fitted on some splits has seen."""
        from utils.data.digests import union
        from utils.data.subsets import count_trained

        whole, used = self.data.full_eval, self.data.eval
        known = union(self.trained, self._seen(fitted_on))
        return count_trained(whole, used, self.digests[whole.name], known)

    def about(self, fitted_on: Sequence[Split]) -> dict[str, Any]:
        """Return what a checkpoint says beside weights and metrics."""
        from utils.data.digests import digest_set, union
        from utils.run.checkpoint import about_run, to_tensor

        seen = self._seen(fitted_on)
        classes, carving = self.data.train.classes, self.data.facts()["carving"]
        names = [split.name for split in fitted_on]
        return {
            **about_run(self.config, classes, carving, self.stamp["config_hash"], names),
            "trained_images": to_tensor(union(self.trained, seen)),
            "head_images": to_tensor(seen),
            "val_images": to_tensor(digest_set(self.digests[self.data.full_eval.name])),
        }


def open_probe_data(flags: FrozenConfigDict) -> tuple[Data, EvalData | None]:
    """Open train, the split to evaluate, and val where that is another split and there is one.

    Raises:
        InputError: data root, lists, splits or subsets are missing or malformed, or there is
            nothing to tell apart.
    """
    data = open_data(flags)
    classes = np.unique(data.train.labels)
    if len(classes) < 2:
        raise InputError(
            f"{data.train.root}: all {len(data.train)} images of split {data.train.name} are of "
            f"one class, {data.train.classes[classes[0]]!r}; a classifier needs two"
        )
    if data.eval.name == "val" or "val" not in data.source.offered:
        return data, None
    (val,) = data.source.read(["val"]).values()
    whose, remedy = f"split {data.full_train.name}", "train them, or take them out"
    val = match_classes(val, data.train.classes, whose, remedy)
    if _is_fitted(val, data):
        log.info("images of val are in split %s: folds of it choose", data.train.name)
        return data, None
    return data, EvalData(data.source, data.decided, val, val, "")


def _is_fitted(val: Split, data: Data) -> bool:
    """Return whether images of val are among those to fit, as in trainval."""
    return bool(np.isin(val.paths, data.full_train.paths).any())


def _judge_of(data: Data, val: EvalData | None) -> Split | None:
    """Return the split by which choices are made; None: folds of train."""
    if val is not None:
        return val.eval
    is_val = data.eval.name == "val" and not _is_fitted(data.eval, data)
    return data.eval if is_val else None


def plan_probe(
    flags: FrozenConfigDict,
    data: Data,
    val: EvalData | None,
    built: "tuple[ModelPlan, Backbone, Past]",
    device: "torch.device",
    command: str,
) -> Plan:
    """Decide and check everything; writes only images that are still to be drawn or unpacked.

    Args:
        flags: flags of the probe.
        data: what is fitted and what is evaluated.
        val: by which choices are made, if another split is evaluated.
        built: plan of the model, the model on the CPU, what earlier training has left in it.
        device: device of the model.
        command: command line as typed.

    Raises:
        InputError: images are missing or damaged, or the model does not offer the features.
    """
    from utils.dist_util import build_env_stamp, with_session
    from utils.probe.methods import BOTH, PATCHES

    model_plan, model, past = built
    if len(model.feature_kinds) == 1 and flags.features in (PATCHES, BOTH):
        raise InputError(
            f"--features {flags.features}: a head of these weights reads "
            f"{model.feature_kinds[0]} features alone; use --features auto"
        )
    digests = dict(
        zip((data.full_train.name, data.full_eval.name), prepare_images(data, flags), strict=True)
    )
    if val is not None:
        (digests[val.full_eval.name],) = prepare_images(val, flags)
    workers = {"num_workers": resolve_workers(flags, flags.tiny_train_subset)}
    config = resolve_config(flags, data.decided, workers, model_plan.decided | past.decided)
    plan = Plan(
        config=config,
        data=data,
        val=val,
        judge=_judge_of(data, val),
        digests=digests,
        trained=past.trained_images,
        model=model.to(device),
        device=device,
        stamp={},
        is_resumed=False,
    )
    facts = {
        **data.facts(),
        "normalization": model_plan.normalization,
        "selected_on": (plan.judge or data.train).name,
        "fitted_on": [split.name for split in plan.fitted_on],
    }
    stamp = build_env_stamp(config, experiment_of(config), command, device, facts)
    earlier = read_stamp(plan.paths)
    is_same = earlier.get("config_hash") == stamp["config_hash"]
    is_resumed = earlier.get("status") == "unfinished" and is_same
    stamp = with_session(stamp, 0, earlier if is_resumed else None)
    return plan._replace(stamp=stamp, is_resumed=is_resumed)
