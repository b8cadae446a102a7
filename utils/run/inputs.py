"""Check that what a run reads does not lie where it writes: a new run moves the one before."""

import os
from pathlib import Path

from ml_collections import FrozenConfigDict

from utils.cli.flags import paths_in
from utils.data.formats import IMAGE_ENDINGS
from utils.data.splits import Split
from utils.data_utils import RunPaths, identity, with_home
from utils.errors import InputError, os_errors_are_input_errors
from utils.files import kind_of
from utils.ownership import is_ours
from utils.processes import is_main

# These may be names that are no paths.
MAY_BE_NAMES = ("--resume", "--tiny_train_subset", "--tiny_infer_subset")


def check_inputs_stay(flags: FrozenConfigDict, paths: RunPaths, is_resumed: bool) -> None:
    """Raise if the data, or something that the flags of a new run name, lie in a folder of the run.

    A resumed run is not moved, so that the weights that it started from may lie in it.

    Raises:
        InputError: names the flag, the path and the folder.
    """
    named = {} if is_resumed else paths_in(flags)
    inputs = {flag: path for flag, path in named.items() if flag != "--output_dir"}
    for flag, path in {**inputs, **_data_root(flags)}.items():
        if flag not in MAY_BE_NAMES or kind_of(Path(path)):
            _check_stays(paths, flag, Path(path))


def check_images_stay(flags: FrozenConfigDict, *splits: Split) -> None:
    """Raise if images lie in a folder that a new run moves aside, as those of a CSV list may.

    Raises:
        InputError: names a folder of such images.
    """
    paths = RunPaths(Path(flags.output_dir), flags.name)
    if not is_main() or not any(map(kind_of, (paths.run, paths.tensorboard))):
        return
    # Folders, not images, and as texts first: there may be 10,000 folders, and Paths are slow.
    own = tuple(f"{folder.resolve()}/".casefold() for folder in (paths.run, paths.tensorboard))
    folders = {
        f"{split.root}/{path.rpartition('/')[0]}"
        for split in splits
        for path in split.paths.tolist()
    }
    with os_errors_are_input_errors(paths_in(flags)):
        for folder in sorted(folders):
            spellings = (folder, os.path.realpath(folder))
            if any(f"{each}/".casefold().startswith(own) for each in spellings):
                _check_stays(paths, "the folder of images", Path(folder))


def _data_root(flags: FrozenConfigDict) -> dict[str, str]:
    """Return where the data lie, by who says so; nothing for those that are drawn."""
    root = flags.data_root
    if root is not None or flags.dataset == "synthetic":
        return {} if root is None else {"--data_root": root}
    root = os.environ.get("DATA_ROOT")
    return {"$DATA_ROOT": with_home(root, "$DATA_ROOT: ")} if root else {}


def _check_stays(paths: RunPaths, what: str, path: Path) -> None:
    for folder in (paths.run, paths.tensorboard):
        if _is_in(path, folder):
            raise InputError(
                f"{what} {path} is in {folder}, where --name {paths.name} is written; choose "
                "another --name or --output_dir"
            )


def _is_in(path: Path, folder: Path) -> bool:
    """Return whether `path`, or a link on the way to it, is in `folder`, whatever its spelling."""
    path = path.absolute()
    links = [each for each in (path, *path.parents) if each.is_symlink()]
    places = {path.resolve(), *(link.parent.resolve() for link in links)}
    if any(place.is_relative_to(folder.resolve()) for place in places):
        return True
    # Names that differ only in case are one folder on a Mac.
    above = {each for place in places for each in (place, *place.parents)}
    itself = identity(folder) if folder.exists() else None
    return itself is not None and any(each.exists() and identity(each) == itself for each in above)


def check_not_among_images(flags: FrozenConfigDict, output_dir: Path) -> None:
    """Raise if the output folder is a class of the data: next time it would be passed over as ours.

    Raises:
        InputError: it is.
    """
    output = output_dir.resolve()
    for flag, root in _data_root(flags).items():
        resolved = Path(root).resolve()
        is_below = (resolved if resolved.is_dir() else resolved.parent) in output.parents
        if is_below and kind_of(output) and not is_ours(output) and _holds_images(output):
            raise InputError(
                f"--output_dir {output_dir} is a folder of the images in {flag} {root}; choose "
                "another"
            )


def _holds_images(folder: Path) -> bool:
    """Return whether images are at most two folders down, as in a split of genera and species."""
    found = (path for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(pattern))
    return any(path.name.lower().endswith(IMAGE_ENDINGS) for path in found)
