"""Tell what our programs wrote from what is the user's: only ours is ever moved or passed over."""

import json
import stat
from pathlib import Path

from utils.data_utils import TENSORBOARD_FOLDER

# A file in every folder that our programs make: output folders and reports.
MARKER = ".fine_vit"
MARKER_TEXT = (
    "The programs of fine-vit made this folder. Because of this file it is passed over where it\n"
    "lies below a folder of images; delete the file if the folder is yours.\n"
)
STAMP = "env_stamp.json"
EVENTS = "events.out.tfevents."


def mark(folder: Path) -> None:
    """Write the marker into a folder that our programs made, unless it is there."""
    marker = folder / MARKER
    if not marker.exists():
        marker.write_text(MARKER_TEXT, encoding="utf-8")


def is_ours(folder: Path) -> bool:
    """Return whether our programs wrote `folder`, so that it is no data of the user's.

    It holds the marker; or it is a run; or it holds `tb/` beside a run, as output folders do that
    are older than the marker; or it is such a `tb/` itself, with nothing but events.
    """
    if _is_regular(folder / MARKER) or is_stamped(folder):
        return True
    if (folder / TENSORBOARD_FOLDER).is_dir() and _holds_a_run(folder):
        return True
    return folder.name == TENSORBOARD_FOLDER and _is_of_tensorboard(folder)


def is_stamped(folder: Path) -> bool:
    """Return whether `folder` holds the stamp of a run."""
    try:
        if not _is_regular(folder / STAMP):
            return False
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    run_id = stamp.get("run_id") if isinstance(stamp, dict) else None
    return isinstance(run_id, str) and run_id != ""


def holds_events_only(folder: Path) -> bool:
    """Return whether `folder` holds nothing but events of TensorBoard, and at least one file."""
    names = _names_in(folder)
    return bool(names) and all(
        name.startswith(EVENTS) and _is_regular(folder / name) for name in names
    )


def _holds_a_run(folder: Path) -> bool:
    return any(is_stamped(folder / name) for name in _names_in(folder))


def _is_of_tensorboard(folder: Path) -> bool:
    names = _names_in(folder)
    return bool(names) and all(holds_events_only(folder / name) for name in names)


def _names_in(folder: Path) -> list[str]:
    """Return the names in `folder` but the Finder's; none if it cannot be read."""
    try:
        return [path.name for path in folder.iterdir() if path.name != ".DS_Store"]
    except OSError:
        return []


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
