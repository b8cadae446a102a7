"""Whether and from where a run goes on: what must be the same, what may be another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import FrozenConfigDict

from utils.console import log
from utils.data_utils import RunPaths, checkpoint_paths
from utils.dist_util import experiment_of
from utils.errors import InputError
from utils.flags import CHANGEABLE, CHANGES_WITH, LAST
from utils.processes import on_main
from utils.run.checkpoint import load_checkpoint
from utils.run.folder import read_stamp
from utils.run.snapshot import Snapshot, load_newest, load_snapshot
from utils.training.progress import Progress


class ResumePoint(NamedTuple):
    """What a run goes on from."""

    snapshot: Snapshot
    stamp: dict[str, Any] | None  # of the run of the same name that goes on; None: a new run starts
    is_chosen: bool = False  # an older state of that run, to become its newest

    @property
    def logged_until(self) -> int | None:
        """The last step whose scalars stay, if the run of the same name goes on."""
        training = self.snapshot.training
        return None if self.stamp is None else training["step"] - bool(training["pending"])

    def state(self) -> Progress:
        """How far the run is."""
        state = Progress(**self.snapshot.training)
        if self.stamp is None:  # the checkpoints stay with the other run
            state.best, state.saved, state.since_best = {}, None, 0
            state.evaluated = state.logged = 0
        else:
            state.saved = state.step
        return state


def open_resume_point(config: FrozenConfigDict) -> ResumePoint:
    """The state that `--resume` names.

    Raises:
        InputError: there is none that is whole; or it is of another run, and would replace an
            unfinished one.
    """
    paths = RunPaths(Path(config.output_dir), config.name)
    is_last = config.resume == LAST
    snapshot = load_newest(paths) if is_last else load_snapshot(Path(config.resume))
    stamp = read_stamp(paths)
    if is_last or stamp.get("run_id") == snapshot.run_id:
        is_newest = is_last or Path(config.resume).resolve() == paths.last.resolve()
        return ResumePoint(snapshot, {**stamp, "run_id": snapshot.run_id}, is_chosen=not is_newest)
    if stamp.get("status") == "unfinished":
        raise InputError(
            f"--resume {config.resume} is of another run, and --name {paths.name} is an unfinished "
            "one: choose another name"
        )
    return ResumePoint(snapshot, None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:  # a frozen config turns lists into tuples
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, nested ones with dots; a missing value is None."""
    flat_before, flat_now = _flat(before), _flat(now)
    keys = dict.fromkeys([*flat_before, *flat_now])
    pairs = {key: (flat_before.get(key), flat_now.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _shown(changes: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {before} -> {now}" for key, (before, now) in changes.items())


def check_same_run(
    config: FrozenConfigDict, data: Mapping[str, Any], snapshot: Snapshot
) -> dict[str, tuple[Any, Any]]:
    """Refuse to go on with another experiment or other data than `snapshot` is of.

    Args:
        config: of the run that goes on, resolved; `allow_change` names flags that may differ.
        data: identity of the splits and subsets.
        snapshot: to go on from.

    Returns:
        What differs and may: key to value before and now.

    Raises:
        InputError: lists what differs and may not; or the run is past its last step.
    """
    changes = differences(snapshot.data, data)
    if changes:
        raise InputError(f"--resume: the data are not those of the run: {_shown(changes)}")
    changes = differences(snapshot.experiment, experiment_of(config))
    flags = (config.allow_change or "").split(",")
    allowed = {key for flag in flags for key in (flag, *CHANGES_WITH.get(flag, ()))}
    refused = {key: pair for key, pair in changes.items() if key not in allowed}
    if refused:
        remedy = "give its values, or start another run"
        if set(refused) <= set(CHANGEABLE):
            remedy = f"give its values, or name what may differ: --allow_change {','.join(refused)}"
        raise InputError(f"--resume: the run was started otherwise: {_shown(refused)}; {remedy}")
    if snapshot.training["step"] > config.num_steps:
        raise InputError(
            f"--resume: the run has done {snapshot.training['step']} steps already, more than the "
            f"{config.num_steps} of --num_steps; --resume PATH goes on from an earlier state"
        )
    return changes


def computes_otherwise(past: ResumePoint, stamp: Mapping[str, Any]) -> bool:
    """Whether the last bits may be others than in the session before: other machine, threads."""
    *_, before = (past.stamp or {}).get("sessions") or [{}]
    keys = ("device", "num_threads", "processes", "torch_version", "hosts")
    return any(before.get(key) != stamp[key] for key in keys)


def resolve_best(state: Progress, paths: RunPaths, is_changed: bool) -> None:
    """Forget a best evaluation of `state` whose checkpoint is not there any more, and say so."""
    for variant in on_main(_lost_best, state, paths, is_changed):
        del state.best[variant]
        state.evaluated = 0  # so that there is one, though all steps may be done
        state.since_best = 0  # nor does patience end the run before


def _lost_best(state: Progress, paths: RunPaths, is_changed: bool) -> list[str]:
    """The variants of the weights whose best checkpoint is not there any more.

    A checkpoint of a later step than the state is fine, as long as the flags are the same: its
    evaluation will come again, with the same bits.
    """
    lost = []
    for variant, metrics in state.best.items():
        path = checkpoint_paths(paths, variant).checkpoint
        try:
            there = load_checkpoint(path).metrics
        except InputError as error:
            trouble = str(error)
        else:
            step = there.get("step", 0)
            if there == metrics or (step > state.step and not is_changed):
                continue
            trouble = f"{path} is of step {step}, not of step {metrics['step']}"
        log.warning("warning: %s; the best checkpoint starts anew", trouble)
        lost.append(variant)
    return lost
