"""Find the snapshot from which a run is resumed, and check that it is the same run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import FrozenConfigDict

from utils.cli.flags import CHANGEABLE, DATA, LAST, may_change
from utils.data_utils import EMA, RunPaths, checkpoint_paths
from utils.errors import InputError
from utils.files import kind_of
from utils.processes import from_main, on_main
from utils.run.checkpoint import is_normalization
from utils.run.folder import read_stamp, usable_stamp
from utils.run.run_images import RunImages
from utils.run.scalars import EventLog
from utils.run.snapshot import Header, Part, load_newest, load_snapshot, older_snapshots
from utils.schema import dict_of, is_dict, is_finite, is_positive, is_text, wrong_fields
from utils.training.learner import Learner
from utils.training.meter import TrainMeter
from utils.training.progress import Progress
from utils.training.random_state import RandomState
from utils.training.step_loader import BadImages

# What a snapshot of training consists of, in the order in which it is saved and restored: the first
# four in the plan, before anything else exists; the random state last, after all that draws.
PARTS: dict[str, type[Part]] = {
    "progress": Progress,
    "scalars": EventLog,
    "bad_images": BadImages,
    "images": RunImages,
    "learner": Learner,
    "meter": TrainMeter,
    "random_state": RandomState,
}

# What of the data's identity follows from images that were replaced, removed or added.
OF_IMAGES = {f"dataset.{key}" for key in ("samples", "checksum", "eval_samples", "eval_checksum")}


# What is read of a snapshot's config besides the values of flags, which are checked as such.
_CONFIG = {
    "num_steps": is_positive,
    "train_batch_size": is_positive,
    "epochs": lambda value: is_finite(value) and value > 1e-18,
    "model": is_dict,
    "normalization": is_normalization,
    "public_weights": dict_of(is_text),
}


@dataclass(frozen=True)
class ResumePoint:
    """The snapshot from which a run is resumed."""

    header: Header
    # Stamp of the run of this name, which is resumed. None: a new run starts from another's
    # snapshot, and that run keeps its checkpoints and scalars.
    stamp: dict[str, Any] | None
    chosen: Path | None  # an older snapshot of that run, to become its newest
    states: dict[str, Any]  # the states of the parts in the main process; empty in the others

    def restore(self, parts: Mapping[str, Part]) -> None:
        """Hand each part its state; all processes call it together."""
        for name, part in parts.items():
            # One at a time: the others need not have gigabytes at once.
            part.load_state_dict(from_main(self.states.pop(name, None)))


class StartPoint(NamedTuple):
    """Where training starts, and what has to be known of it before the first writes."""

    resume: ResumePoint | None  # None: at step 0
    progress: Progress
    events: EventLog
    bad_images: BadImages
    images: RunImages

    @property
    def known(self) -> dict[str, Any]:
        """What the experiment says of the weights' file, which a resumed run does not read."""
        before = {} if self.resume is None else self.resume.header.experiment
        return {key: before[key] for key in ("pretrained",) if key in before}

    @property
    def parts(self) -> dict[str, Part]:
        """The parts of a snapshot that it holds."""
        return {
            "progress": self.progress,
            "scalars": self.events,
            "bad_images": self.bad_images,
            "images": self.images,
        }


def open_start_point(
    config: FrozenConfigDict, progress: Progress, resume: ResumePoint | None
) -> StartPoint:
    """Return the start of a new run, or of one that is resumed; all processes call it together.

    Args:
        config: config of the flags.
        progress: progress at step 0; it takes that of the snapshot.
        resume: the snapshot to resume from.

    Raises:
        InputError: the snapshot cannot be used.
    """
    bad_images = BadImages(config.skip_bad_images)
    start = StartPoint(resume, progress, EventLog(), bad_images, RunImages())
    if resume is not None:
        resume.restore(start.parts)
        if resume.stamp is None:
            progress.forget_best(*progress.best)
            start.events.logged = 0
        else:
            progress.saved = progress.step
            start.events.earlier = resume.stamp.get("events", [])
    return start


def open_resume_point(paths: RunPaths, resume: str) -> ResumePoint:
    """Read the snapshot that `--resume` names.

    All processes call it together; only the main process reads.

    Args:
        paths: paths of the run to write.
        resume: `--resume`.

    Raises:
        InputError: there is none that is whole; or it is of another run and would replace an
            unfinished one.
    """
    states: dict[str, Any] = {}
    return ResumePoint(*on_main(_open, paths, resume, states), states)


def _open(
    paths: RunPaths, resume: str, states: dict[str, Any]
) -> tuple[Header, dict[str, Any] | None, Path | None]:
    """Return what all processes have to know of the resume point; fill in `states`."""
    chosen = None if resume == LAST else Path(resume)
    stamp = read_stamp(paths)
    if chosen is None:
        header, parts = load_newest(paths, PARTS, stamp.get("run_id"))
    else:
        header, parts = load_snapshot(chosen, PARTS)
    wrong = wrong_fields({"public_weights": {}, **header.config}, _CONFIG)
    if wrong:
        raise InputError(
            f"--resume: the snapshot's config has no usable {', '.join(wrong)}; name another one"
        )
    states.update(parts)
    in_own_folder = chosen is not None and chosen.resolve().parent == paths.last.parent.resolve()
    # Without a stamp, the folder says whose snapshot it is.
    of_name = stamp.get("run_id", header.run_id if in_own_folder else None)
    if chosen is None or of_name == header.run_id:
        _check_files(paths)
        if chosen is not None and chosen.resolve() == paths.last.resolve():
            chosen = None
        return header, _whole_stamp(stamp, header), chosen
    if stamp.get("status") == "unfinished":
        raise InputError(
            f"--resume {resume} is of another run, and --name {paths.name} is an unfinished "
            "one: choose another name"
        )
    return header, None, None


def _check_files(paths: RunPaths) -> None:
    """Raise if something stands where a resumed run is to replace files of its own."""
    both = [checkpoint_paths(paths, variant) for variant in ("", EMA)]
    files = [paths.last, *older_snapshots(paths), paths.labelmap, paths.env_stamp, paths.retention]
    files += [p for o in both for p in (o.checkpoint, o.predictions, o.metrics, o.per_class)]
    kinds = {path: (kind_of(path, follow=False), "file") for path in files}
    for folder in (paths.last.parent, paths.predictions.parent):  # may lie on another disk
        kinds[folder] = kind_of(folder), "folder"
    for path, (kind, expected) in kinds.items():
        if kind not in (None, expected):
            raise InputError(
                f"--resume: {path} is a {kind}, not the {expected} of the run; move it away"
            )


def _whole_stamp(there: Mapping[str, Any], header: Header) -> dict[str, Any]:
    """Return the stamp of a run as its snapshot has it, with the starts that came after it.

    Args:
        there: stamp on the disk; empty if it cannot be used.
        header: header of the snapshot; older ones have no stamp.
    """
    known = usable_stamp(header.stamp)
    before, sessions = known.get("sessions", []), there.get("sessions", [])
    if sessions[: len(before)] != before:
        sessions = before
    return {**there, **known, "run_id": header.run_id, "sessions": sessions}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:  # a frozen config turns lists into tuples
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, nested ones with dots; a missing value is None."""
    flat_before, flat_now = _flat(before), _flat(now)
    keys = dict.fromkeys([*flat_before, *flat_now])
    pairs = {key: (flat_before.get(key), flat_now.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _shown(changes: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {before} -> {now}" for key, (before, now) in changes.items())


def check_same_run(
    config: FrozenConfigDict,
    experiment: Mapping[str, Any],
    data: Mapping[str, Any],
    before: Header,
) -> None:
    """Check that a resumed run has the experiment and the data that it was started with.

    Args:
        config: config of this start, resolved; `allow_change` names flags that may differ.
        experiment: what of it enters the config hash.
        data: identity of the splits and subsets.
        before: header of the snapshot.

    Raises:
        InputError: lists what differs and may not; or the run is past its last step.
    """
    allowed = may_change(config.allow_change)
    changes = differences(before.data, data)
    is_of_images = changes.keys() <= OF_IMAGES
    if changes and not (is_of_images and DATA in allowed):
        remedy = ", or resume with these by --allow_change data" if is_of_images else ""
        raise InputError(
            f"--resume: the data are not those of the run: {_shown(changes)}; bring them back"
            f"{remedy}"
        )
    changes = differences(before.experiment, experiment)
    refused = {key: pair for key, pair in changes.items() if key not in allowed}
    if refused:
        remedy = "leave such flags out, or start another run"
        if set(refused) <= set(CHANGEABLE):
            remedy = f"leave them out, or name what may differ: --allow_change {','.join(refused)}"
        raise InputError(f"--resume: the run was started otherwise: {_shown(refused)}; {remedy}")
    if before.step > config.num_steps:
        raise InputError(
            f"--resume: the run has done {before.step} steps already, more than the "
            f"{config.num_steps} of --num_steps; --resume PATH resumes from an earlier snapshot"
        )


def is_changed(
    resume: ResumePoint, experiment: Mapping[str, Any], stamp: Mapping[str, Any]
) -> bool:
    """Return whether flags, images or machine differ from the start before, and so the results."""
    *_, before = (resume.stamp or {}).get("sessions") or [{}]
    has_other_images = "data_changes" in stamp["sessions"][-1]
    keys = ("device", "num_threads", "processes", "torch_version", "hosts")
    is_other_machine = any(before.get(key) != stamp[key] for key in keys)
    is_other_experiment = bool(differences(resume.header.experiment, experiment))
    return is_other_machine or has_other_images or is_other_experiment
