"""Keep a run's folder: its name, its stamp, earlier runs of the name, retention."""

import json
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from utils.cli.flags import LAST, paths_in
from utils.data.formats import IMAGE_ENDINGS
from utils.data_utils import TENSORBOARD_FOLDER, RunPaths, check_file, check_writable
from utils.errors import InputError, os_errors_are_input_errors
from utils.files import kind_of, read_regular, write_text
from utils.ownership import why_not_events, why_not_run
from utils.processes import is_main
from utils.run.inputs import check_images_stay as check_images_stay
from utils.run.inputs import check_inputs_stay, check_not_among_images
from utils.run.lock import check_not_locked
from utils.schema import dict_of, is_dict, is_json_object, is_text, list_of, wrong_fields
from utils.training.progress import Progress

RETENTION_DAYS = 90


def check_run_can_start(flags: FrozenConfigDict, is_resumed: bool = False) -> None:
    """Raise if a run cannot be written under its name, or not be resumed.

    Only the main process looks: the others write nothing, and may be on another machine.

    Args:
        flags: flags of `train.py`, `eval.py` or the probe.
        is_resumed: whether the run of this name goes on, so that nothing is moved.

    Raises:
        InputError: the name or output folder cannot be used, or something that is not ours stands
            there; an input lies in a folder that would be moved; another process writes the run, an
            unfinished run would be replaced, or there is nothing to resume.
    """
    if not is_main():
        return
    paths = RunPaths(Path(flags.output_dir), flags.name)
    with os_errors_are_input_errors(paths_in(flags)):
        check_run_name(paths)
        check_not_locked(paths, flags.take_over)
        if "resume" in flags:
            _check_training(paths, flags.resume)
        else:
            _check_evaluation(paths)
        check_inputs_stay(flags, paths, is_resumed)
        check_not_among_images(flags, paths.output_dir)


def check_can_be_resumed(paths: RunPaths, resume: str) -> None:
    """Raise, before a snapshot is read, if a run cannot be written or resumed.

    Args:
        paths: paths of the run.
        resume: `--resume`.

    Raises:
        InputError: as `check_run_can_start`.
    """
    if is_main():
        with os_errors_are_input_errors({"--output_dir": paths.output_dir, "--resume": resume}):
            check_run_name(paths)
            check_not_locked(paths, take_over=True)  # the flag is not parsed yet
            _check_training(paths, resume)


def check_only_ours(paths: RunPaths, is_resumed: bool = False) -> None:
    """Raise if something that no run wrote stands where a run is to be written.

    Args:
        paths: paths of the run.
        is_resumed: whether it goes on: its folder is not moved then, and may be a symbolic link.

    Raises:
        InputError: says what stands there.
        OSError: a folder cannot be read.
    """
    for folder, why_not in ((paths.run, why_not_run), (paths.tensorboard, why_not_events)):
        if is_resumed and folder == paths.run:
            continue
        why = why_not(folder)
        if not why and not is_resumed and folder.is_symlink():
            why = "is a symbolic link, which is never moved"
        if why:
            raise InputError(
                f"--name {paths.name}: {folder} {why}; it stays as it is: choose another --name or "
                "--output_dir"
            )


def where_it_failed(flags: FrozenConfigDict, progress: Progress) -> str:
    """Return, for an error message, how far training is and what of it is on disk."""
    checkpoint = RunPaths(Path(flags.output_dir), flags.name).checkpoint
    last_good = checkpoint if progress.best else "none"
    saved = progress.saved
    resume = "" if saved is None else f"; --resume continues from step {saved}"
    return f"after step {progress.step}, last good checkpoint: {last_good}{resume}"


def _check_training(paths: RunPaths, resume: str | None) -> None:
    if resume is None and _is_unfinished(paths):
        run, events = (shlex.quote(str(path)) for path in (paths.run, paths.tensorboard))
        raise InputError(
            f"--name {paths.name} is an unfinished run: `train.py --resume {run}` resumes it, "
            f"`rm -r {run} {events}` throws it away; or choose another name"
        )
    is_own = resume is not None and has_snapshot(paths)  # it proves itself when it is read
    check_only_ours(paths, is_resumed=is_own)
    if resume not in (None, LAST):
        check_file(Path(resume), "--resume")
    elif resume == LAST and not is_own:
        raise InputError(
            f"--resume: {paths.run} has no snapshot to resume from; start it without --resume"
        )


def _check_evaluation(paths: RunPaths) -> None:
    if _is_unfinished(paths):
        raise InputError(f"--name {paths.name} is an unfinished training run; choose another name")
    check_only_ours(paths)


def has_snapshot(paths: RunPaths) -> bool:
    """Return whether a run has a snapshot, whole or not."""
    return any(paths.last.parent.glob("last*.bin"))


def _is_unfinished(paths: RunPaths) -> bool:
    """Return whether there is a run of this name that did not end and can be resumed."""
    return has_snapshot(paths) and read_stamp(paths).get("status") == "unfinished"


# What is read of a stamp again, if it is there.
_STAMP = {
    "run_id": is_text,
    "timestamp": is_text,
    "status": is_text,
    "sessions": list_of(is_dict),
    "artifacts": dict_of(is_text),
    "events": list_of(lambda value: isinstance(value, list) and [*map(type, value)] == [int, str]),
}


def read_stamp(paths: RunPaths) -> dict[str, Any]:
    """Return what the stamp of a run says; empty if there is none that can be used."""
    try:
        return usable_stamp(json.loads(read_regular(paths.env_stamp)))
    except (OSError, ValueError, RecursionError):
        return {}


def usable_stamp(stamp: object) -> dict[str, Any]:
    """Return the stamp of a run; empty if what is read of it again cannot be used."""
    if not is_json_object(stamp):
        return {}
    return {} if wrong_fields(stamp, {k: _STAMP[k] for k in _STAMP if k in stamp}) else stamp


def check_run_name(paths: RunPaths) -> None:
    """Raise if a run cannot be written: an output folder that is a file, a name that folds.

    Raises:
        InputError: the output folder cannot be written into, or a run whose name differs only in
            case exists (Mac file systems would mix the two).
    """
    check_writable(paths.output_dir, "--output_dir")
    tensorboard = paths.output_dir / TENSORBOARD_FOLDER
    if (kind := kind_of(tensorboard)) not in ("folder", None):
        raise InputError(
            f"--output_dir {paths.output_dir}: {tensorboard} is a {kind}, not a folder"
        )
    entries = sorted(tensorboard.iterdir()) if kind else []
    images = [path.name for path in entries if path.name.lower().endswith(IMAGE_ENDINGS)]
    if images:  # a class of photographs: nothing of ours belongs there
        raise InputError(
            f"--output_dir {paths.output_dir}: {tensorboard} holds images ({images[0]}); choose "
            "another --output_dir"
        )
    for parent in (paths.output_dir, tensorboard):
        taken = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        for name in taken:
            if name != paths.name and name.casefold() == paths.name.casefold():
                raise InputError(
                    f"--name {paths.name} differs only in case from the run {name} in {parent}; "
                    "choose another name"
                )


def keep_previous_run(paths: RunPaths) -> RunPaths | None:
    """Move a run of the same name and its TensorBoard folder to `<name>~1`, `~2`, ...

    Moves that a kill cut short are finished first: the note of such a run has its old name still.

    Returns:
        Where the previous run is now, or None if there was none.
    """
    number = 1
    while _is_taken(kept := RunPaths(paths.output_dir, f"{paths.name}~{number}")):
        number += 1
        if f"run: {paths.name}\n" in _note_of(kept):
            # Where older code put the events of such a run.
            later = RunPaths(paths.output_dir, f"{paths.name}~{number}")
            _finish_move(kept, paths, later)
    if not _is_taken(paths):
        return None
    if paths.run.exists():
        paths.run.rename(kept.run)
    _finish_move(kept, paths)
    return kept


def _finish_move(kept: RunPaths, *before: RunPaths) -> None:
    """Have the events of a run follow it, and then its note say where it lies now."""
    for each in before:
        if kind_of(each.tensorboard) and not any(map(kind_of, (each.run, kept.tensorboard))):
            each.tensorboard.rename(kept.tensorboard)
    date = re.search(r"^keep until: (\S+)$", _note_of(kept), re.MULTILINE)
    if date is not None:
        beside = kept.probe if kept.probe.exists() else kept.last
        held = [kept.checkpoint, beside] if kept.checkpoint.exists() else []
        held += [kept.features] if kept.features.exists() else []
        write_text(kept.retention, retention_note(kept, date[1], held))


def _note_of(paths: RunPaths) -> str:
    if kind_of(paths.retention) != "file":
        return ""
    return paths.retention.read_text(encoding="utf-8", errors="replace")


def _is_taken(paths: RunPaths) -> bool:
    return any(kind_of(path, follow=False) for path in (paths.run, paths.tensorboard))


def retention_note(paths: RunPaths, keep_until: str, made: Sequence[Path]) -> str:
    """Return the note that says how long to keep the run, where it is, and what it holds.

    Args:
        paths: paths of the run.
        keep_until: date.
        made: what it has made beside an evaluation: its checkpoint and what belongs to it.
    """
    held = [
        *made,
        paths.predictions,
        paths.metrics,
        paths.per_class,
        paths.labelmap,
        paths.env_stamp,
        paths.tensorboard,
    ]
    lines = [
        f"run: {paths.name}",
        f"retention: at least {RETENTION_DAYS} days",
        f"keep until: {keep_until}",
        f"location: {paths.run.resolve()}",
        "artifacts:",
        *(f"  - {path.relative_to(paths.output_dir).as_posix()}" for path in held),
        "rule: checkpoints are never committed to version control.",
    ]
    return "\n".join(lines) + "\n"


def write_retention(paths: RunPaths, made: Sequence[Path]) -> None:
    """Write the retention note of a new run, as `retention_note`."""
    until = (datetime.now(UTC) + timedelta(days=RETENTION_DAYS)).date()
    write_text(paths.retention, retention_note(paths, until.isoformat(), made))
