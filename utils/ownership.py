"""Tell what our programs wrote from what is the user's: only ours is ever moved or passed over."""

import json
import re
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.data_utils import SYNTHETIC_FOLDER, TENSORBOARD_FOLDER
from utils.errors import InputError
from utils.files import (
    CANNOT_REPLACE,
    TEMPORARY,
    clear_if_left,
    kind_of,
    left_of,
    naming,
    open_locked,
    open_regular,
    read_regular,
    temporary,
)

# A file in every folder that our programs make: output folders, reports, caches, drawn flowers.
MARKER = ".fine_vit"
MARKER_TEXT = (
    "The programs of fine-vit made this folder. Because of this file it is passed over where it\n"
    "lies below a folder of images; delete the file if the folder is yours.\n"
)
# Reports and pictures say it among their first bytes: only a file that does is replaced.
SIGNATURE = "written by fine-vit"
FIRST_BYTES = 4096
STAMP = "env_stamp.json"
FILES_OF_A_CACHE = {"pixels.bin", "index.npz", "about.json"}
EVENTS = "events.out.tfevents."
ARCHIVE = re.compile(rb"PK.{1,4000}fine-vit (checkpoint|state)", re.DOTALL)
FOLDERS_OF_A_RUN = ("checkpoints", "fiftyone")


# --- Folders that our programs make ---------------------------------------------------------------


def make_folder(folder: Path, ours: Container[str] = (SYNTHETIC_FOLDER,)) -> None:
    """Make a folder and those above it that do not exist, and mark all that are made.

    A folder that exists is the user's, and stays as it is, unless we filled it.

    Args:
        folder: path of the folder.
        ours: names in it that we gave before it was marked, such as that of drawn images.
    """
    new = [path for path in (folder, *folder.parents) if kind_of(path) is None]
    folder.mkdir(parents=True, exist_ok=True)
    there = _entries(folder)
    if there and all(path.name in ours for path in there):
        new = [folder]
    for path in new:
        mark(path)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a marked folder beside `folder` that takes its name when the block ends without error.

    What killed processes left of it is removed. An empty folder is replaced.

    Raises:
        OSError: it cannot be made, or something else has the name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_left(folder)
    beside = temporary(folder)
    beside.mkdir()
    try:
        with naming(beside):
            with open_locked(beside / MARKER) as marker:
                marker.write(MARKER_TEXT.encode())
                marker.flush()
                yield beside
                # Some disks rename no folder in which a file is open. Without the marker the folder
                # is nobody's, and no other process clears it.
                (beside / MARKER).unlink()
            _rename_folder(beside, folder)
            mark(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def clear_left(folder: Path) -> None:
    """Remove what killed processes left of a folder that `new_folder` was to make."""
    for left in left_of(folder):
        marker = left / MARKER
        if kind_of(left, follow=False) == "folder" and kind_of(marker, follow=False) == "file":
            clear_if_left(left, marker, shutil.rmtree)


def _rename_folder(beside: Path, folder: Path) -> None:
    try:
        beside.rename(folder)
    except OSError as error:
        if error.errno not in CANNOT_REPLACE or holds_more_than(folder, ()):
            raise
        folder.rmdir()  # it is empty, and some disks do not rename over it
        beside.rename(folder)


def holds_more_than(folder: Path, ours: Container[str]) -> bool:
    """Return whether a folder holds more than files of ours, known by these names."""
    return any(not (_is_nothing(path) or path.name in ours) for path in _entries(folder))


def mark(folder: Path) -> None:
    """Write the marker into a folder that our programs made, unless it is there."""
    marker = folder / MARKER
    if kind_of(marker, follow=False) is None:
        with naming(marker):
            marker.write_text(MARKER_TEXT, encoding="utf-8")


# --- What is ours ---------------------------------------------------------------------------------


def is_ours(folder: Path) -> bool:
    """Return whether our programs wrote `folder`, so that it is no data of the user's.

    It holds the marker; or it is a run or a cache; or it holds `tb/` beside a run, as output
    folders do that are older than the marker; or it is a `tb/` with nothing but events.
    """
    try:
        if kind_of(folder / MARKER) == "file" or is_run(folder) or is_cache(folder):
            return True
        if folder.name == TENSORBOARD_FOLDER:
            return _holds_runs_of_tensorboard(folder)
        tensorboard = folder / TENSORBOARD_FOLDER
        if kind_of(tensorboard) != "folder" or _first_but_events(tensorboard, True):
            return False  # nearly all end here, after four looks; the latter is a class `tb`
        return any(is_run(path) for path in _entries(folder) if path.is_dir())
    except OSError:  # who reads the folder next says so
        return False


def is_run(folder: Path) -> bool:
    """Return whether `folder` holds the stamp of a run with its id, or checkpoints of ours."""
    try:
        stamp = {} if (folder / STAMP).is_symlink() else json.loads(read_regular(folder / STAMP))
        if isinstance(stamp, dict) and isinstance(stamp.get("run_id"), str) and stamp["run_id"]:
            return True
    except (OSError, ValueError, RecursionError):
        pass
    checkpoints = folder / "checkpoints"
    return not checkpoints.is_symlink() and any(map(_is_archive, checkpoints.glob("*.bin")))


def is_cache(folder: Path, is_whole: bool = True) -> bool:
    """Return whether `folder` is a cache of resized images, or what a killed builder left of it."""
    if is_whole and kind_of(folder / "pixels.bin") != "file":
        return False
    names = {path.name for path in _entries(folder) if not _is_nothing(path)}
    return not folder.is_symlink() and names <= FILES_OF_A_CACHE


def _is_archive(path: Path) -> bool:
    """Return whether a file says that it is a checkpoint or snapshot of ours, intact or not."""
    # `torch.save` writes the pickle first, and a payload begins with its format.
    return ARCHIVE.match(_first_bytes(path)) is not None


def _first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file; empty if it is not one that can be read."""
    try:
        with open_regular(path) as file:
            return file.read(FIRST_BYTES)
    except OSError:
        return b""


def _holds_runs_of_tensorboard(folder: Path) -> bool:
    """Return whether a folder holds folders with nothing but events, and nothing else."""
    there = [path for path in _entries(folder) if not _is_nothing(path)]
    return bool(there) and not any(not path.is_dir() or why_not_events(path) for path in there)


def _is_events(path: Path) -> bool:
    return path.name.startswith(EVENTS) and kind_of(path, follow=False) == "file"


def _is_nothing(path: Path) -> bool:
    """Return whether nobody would miss `path`: the Finder's notes, unfinished files of ours."""
    return path.name in (".DS_Store", MARKER) or TEMPORARY.fullmatch(path.name) is not None


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing if it does not exist."""
    return sorted(folder.iterdir()) if kind_of(folder) else []


# --- What stands where something is to be written -------------------------------------------------


def why_not_run(folder: Path) -> str:
    """Return what shows that `folder` is not a run's; empty if it is, or holds nothing to miss.

    Raises:
        OSError: it cannot be read.
    """
    return _why_not_folder(folder) or ("" if is_run(folder) else _first_of_a_user(folder))


def _first_of_a_user(folder: Path) -> str:
    """Return which file of a run's folder without stamp and checkpoints is not a temporary one."""
    for path in _entries(folder):
        if _is_nothing(path):
            continue
        if path.name not in FOLDERS_OF_A_RUN or kind_of(path, follow=False) != "folder":
            return f"holds {path.name} and is not the folder of a run"
        if inside := _first_of_a_user(path):
            return inside
    return ""


def why_not_events(folder: Path) -> str:
    """Return what shows that `folder` does not hold events of TensorBoard alone, else nothing.

    Raises:
        OSError: it cannot be read.
    """
    return _why_not_folder(folder) or _first_but_events(folder)


def _first_but_events(folder: Path, may_hold_folders: bool = False) -> str:
    for path in _entries(folder):
        is_folder = may_hold_folders and kind_of(path) == "folder"
        if not (is_folder or _is_events(path) or _is_nothing(path)):
            return f"holds {path.name}, which TensorBoard did not write"
    return ""


def _why_not_folder(folder: Path) -> str:
    kind = kind_of(folder)
    if kind is None and kind_of(folder, follow=False) is not None:
        return "is a link that leads nowhere"
    return "" if kind in (None, "folder") else f"is a {kind}, not a folder"


def check_output_file(path: Path, flag: str, signature: str = SIGNATURE) -> None:
    """Raise if a file that is to be written would replace something that is not ours.

    Args:
        path: path of the file.
        flag: flag that named it, or its folder.
        signature: text among the first bytes of a file that is ours.

    Raises:
        InputError: names the flag and what is there.
    """
    kind = kind_of(path, follow=False)
    if kind is None or (kind == "file" and signature.encode() in _first_bytes(path)):
        return
    what = f"is a {kind}" if kind != "file" else "exists and is not one that this program wrote"
    raise InputError(f"{flag}: {path} {what}; move it away, or give another path")
