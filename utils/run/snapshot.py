"""Save and restore a run's snapshots: `last.bin`, and `last~1.bin` and on before it."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, Protocol

from utils.console import log
from utils.data.presets import DATA_RULES
from utils.data_utils import RunPaths
from utils.errors import InputError
from utils.files import open_atomic, open_regular
from utils.processes import failing_together, is_main
from utils.run.tensor_file import is_whole, load_archive, write_archive
from utils.schema import Check, is_count, is_dict, is_json_object, is_text, wrong_fields

FORMAT = "fine-vit state"
VERSION = 3


class Part(Protocol):
    """Something that must survive a kill."""

    STATE: Mapping[str, Check]  # the fields of its state, with the check that each must pass

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data; all processes call it together."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; all processes call it together."""


class Header(NamedTuple):
    """What a snapshot says of itself before any part is looked at."""

    run_id: str
    step: int  # optimizer steps done
    epoch: int  # for people, as the next field
    samples_of_epoch: int  # samples of this epoch that were seen
    config: dict[str, Any]  # resolved
    experiment: dict[str, Any]  # what of it enters the config hash
    data: dict[str, Any]  # identity of the splits and subsets
    data_rules: int = DATA_RULES  # version of the rules by which its images are read
    # The stamp, with the digests of the files beside this one; older snapshots do not have it.
    stamp: Mapping[str, Any] = MappingProxyType({})


_HEADER = {
    "run_id": is_text,
    "step": is_count,
    "epoch": is_count,
    "samples_of_epoch": is_count,
    "config": is_json_object,
    "experiment": is_json_object,
    "data": is_json_object,
    "data_rules": is_count,
    "stamp": is_json_object,
}


class Snapshot(NamedTuple):
    """All that a run needs to continue as if nothing had happened."""

    header: Header
    parts: dict[str, dict[str, Any]]  # the state of each part by name


class SnapshotStore:
    """Write the snapshots of a run, and keep the newest and some before it."""

    def __init__(
        self, paths: RunPaths, keep: int, renew_lock: Callable[[], None] = lambda: None
    ) -> None:
        """Describe the files.

        Args:
            paths: paths of the run.
            keep: number of snapshots to keep besides the newest.
            renew_lock: what `run_lock` yields.
        """
        self.paths = paths
        self.keep = keep
        self.renew_lock = renew_lock
        # Files that are known to be, wherever they are; others somebody else may have written.
        self._whole: set[tuple[int, ...]] = set()

    def save(self, header: Header, parts: Mapping[str, Part]) -> None:
        """Make the present states of `parts` the newest snapshot; all processes call it together.

        Raises:
            RunError: it could not be written, or reads back otherwise; those before are whole.
        """
        states = {name: part.state_dict() for name, part in parts.items()}
        fields = {**header._asdict(), "stamp": json.dumps(dict(header.stamp))}  # one text: quick
        payload = {"format": FORMAT, "version": VERSION, **fields, "parts": states}
        with failing_together():
            if is_main():
                self.renew_lock()
                self.replace(lambda file: write_archive(file, payload))

    def promote(self, path: Path) -> None:
        """Make the snapshot at `path` the newest one.

        Raises:
            OSError: as for `replace`.
        """

        def copy(file: BinaryIO) -> None:
            with open_regular(path) as source:
                shutil.copyfileobj(source, file)

        self.replace(copy)

    def replace(self, write: Callable[[BinaryIO], None]) -> None:
        """Have `write` make the newest snapshot; the one before stays until this one is verified.

        At every moment there is a whole snapshot under one of the names, once there was one. Those
        that somebody removed are not missed.

        Raises:
            OSError: it could not be written, or reads back otherwise; those before are whole.
        """
        try:
            self._write(write)
        except FileNotFoundError:  # a file or the folder was removed under our hands
            self._write(write)
        self._whole.add(_identity(self.paths.last))
        for path in older_snapshots(self.paths)[self.keep :]:
            path.unlink(missing_ok=True)

    def _write(self, write: Callable[[BinaryIO], None]) -> None:
        with open_atomic(self.paths.last, self._verify_and_make_room) as file:
            write(file)

    def _verify_and_make_room(self, finished: BinaryIO) -> None:
        last = self.paths.last
        if not _is_whole(finished):
            raise OSError(f"{last} reads back otherwise than it was written")
        for newer in [*reversed(older_snapshots(self.paths)), last] if self.keep else []:
            number = 0 if newer == last else int(newer.stem.removeprefix("last~"))
            if number >= self.keep:
                continue
            older = self.paths.older(number + 1)
            identity = _identity(newer)
            # A damaged snapshot must not take the place of a whole one.
            if identity and (identity in self._whole or is_whole_snapshot(newer)):
                self._whole.add(identity)
                newer.replace(older)


def _identity(path: Path) -> tuple[int, ...]:
    """Return what a file keeps when it is renamed and no other file has; empty without a file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def is_whole_snapshot(path: Path) -> bool:
    """Return whether the snapshot at `path` exists, can be read, and is what was once written."""
    try:
        with open_regular(path) as file:
            return _is_whole(file)
    except OSError:
        return False


def _is_whole(file: BinaryIO) -> bool:
    try:
        return is_whole(file)
    except (OSError, EOFError):
        return False


def older_snapshots(paths: RunPaths) -> list[Path]:
    """Return the snapshots before the newest that exist, newest first."""
    numbered = {
        int(match[1]): path
        for path in paths.last.parent.glob("last~*.bin")
        if (match := re.fullmatch(r"last~(\d+)\.bin", path.name))
    }
    return [numbered[number] for number in sorted(numbered)]


def _parsed(stamp: object) -> object:
    if isinstance(stamp, str):
        with suppress(ValueError, RecursionError):
            return json.loads(stamp)
    return stamp


def load_snapshot(path: Path, parts: Mapping[str, type[Part]] | None = None) -> Snapshot:
    """Read the snapshot at `path` onto the CPU, without running any code that it may hold.

    Args:
        path: file of the snapshot.
        parts: parts that it must hold; None: any.

    Raises:
        InputError: it is missing, truncated, damaged, foreign, of another version, or a field is
            missing or cannot be used.
    """
    remedy = "name a run's checkpoints/last.bin"
    payload = load_archive(path)
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise InputError(f"{path} is not a snapshot of a run; {remedy}")
    payload["stamp"] = _parsed(payload.get("stamp", {}))
    version = payload.get("version")
    rules = payload.get("data_rules")
    version = version if type(version) is int else f"{version!s:.40}"
    is_older = version == VERSION and type(rules) is int and 0 < rules < DATA_RULES
    if version in (1, 2) or is_older:
        raise InputError(
            f"{path} was saved by an older version of this code (format {version}, this code reads "
            f"{VERSION}), which decodes images and orders classes otherwise: finish that run with "
            "the code that began it, or start from its ckpt.bin with --pretrained"
        )
    if version != VERSION:
        raise InputError(
            f"{path} has format version {version}, this code reads {VERSION}; use the code that "
            "wrote it"
        )
    wrong = wrong_fields(payload, {**_HEADER, "parts": is_dict})
    if not wrong:
        states = payload["parts"]
        wrong = [
            f"parts.{name}"
            for name, part in (parts or {}).items()
            if not is_dict(states.get(name)) or wrong_fields(states[name], part.STATE)
        ]
    if wrong:
        raise InputError(f"{path} has no usable {', '.join(wrong)}; {remedy}")
    return Snapshot(Header(*(payload[field] for field in Header._fields)), payload["parts"])


def load_newest(
    paths: RunPaths, parts: Mapping[str, type[Part]] | None = None, run_id: str | None = None
) -> Snapshot:
    """Return the newest snapshot of a run that is whole; warn if it is not the newest of all.

    Args:
        paths: paths of the run.
        parts: parts that it must hold; None: any.
        run_id: what the run's stamp says that it is; None: it does not say.

    Raises:
        InputError: none is; names what is wrong with the newest.
    """
    errors = []
    for path in filter(Path.exists, (paths.last, *older_snapshots(paths))):
        try:
            snapshot = load_snapshot(path, parts)
            if run_id not in (None, snapshot.header.run_id):
                raise InputError(
                    f"{path} is of another run than {paths.env_stamp}; remove the one that does "
                    "not belong here"
                )
        except InputError as error:
            errors.append(error)
            continue
        for error in errors:
            log.warning("warning: %s", error)
        if path != paths.last:
            log.warning("warning: going back to %s, step %d", path, snapshot.header.step)
        return snapshot
    if errors:
        raise errors[0]
    raise InputError(
        f"--resume: {paths.run} has no snapshot to resume from; start it without --resume"
    )
