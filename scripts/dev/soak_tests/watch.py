"""Watch from a thread that every file of a run is whole at every moment."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.data_utils import EMA, RunPaths, checkpoint_paths
from utils.errors import RunError

PAUSE = 0.02  # seconds between two looks: the run needs the processor


def broken_json(folder: Path) -> str | None:
    """Return what is wrong with the first JSON or JSONL file below `folder` that is damaged."""
    try:
        paths = [path for path in folder.rglob("*.json*") if path.suffix in (".json", ".jsonl")]
    except FileNotFoundError:  # a folder was moved while it was listed
        return None
    for path in paths:
        try:
            data = path.read_bytes()
            for text in data.splitlines() if path.suffix == ".jsonl" else [data]:
                json.loads(text)
        except FileNotFoundError:  # moved
            continue
        except ValueError as error:
            return f"{path} cannot be parsed ({error})"
    return None


def broken_checkpoint(paths: RunPaths) -> str | None:
    """Return which best checkpoint of a run exists and is not whole."""
    from utils.run.snapshot import is_whole_snapshot

    for variant in ("", EMA):
        path = checkpoint_paths(paths, variant).checkpoint
        if path.exists() and not is_whole_snapshot(path):
            return f"{path} is not whole"
    return None


def has_whole_snapshot(paths: RunPaths) -> bool:
    """Return whether a snapshot of a run, which may be writing one, is whole."""
    from utils.run.snapshot import is_whole_snapshot

    names = [paths.last, paths.older(1), paths.older(2)]
    # Twice: between two looks a snapshot can get a name that was looked at before.
    return any(is_whole_snapshot(path) for _ in range(2) for path in names)


class Watch:
    """Counts the looks at a run and keeps the first promise that was broken."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.looks = 0
        self.had_snapshot = False
        self.broken: str | None = None

    def look(self) -> None:
        """Look once at all files."""
        self.looks += 1
        self.broken = broken_json(self.paths.output_dir) or broken_checkpoint(self.paths)
        self.had_snapshot = self.had_snapshot or self.paths.last.exists()
        if self.had_snapshot and self.broken is None and not has_whole_snapshot(self.paths):
            self.broken = f"{self.paths.run} no longer has a whole snapshot"

    def check(self) -> None:
        """Raise what was broken, if anything.

        Raises:
            RunError: a file was not whole; names it.
        """
        if self.broken is not None:
            raise RunError(f"after {self.looks} looks: {self.broken}")


@contextmanager
def watched(paths: RunPaths) -> Iterator[Watch]:
    """Look at a run all the time until the block ends or something is broken.

    Raises:
        RunError: something was not whole.
    """
    watch, over = Watch(paths), threading.Event()

    def work() -> None:
        while watch.broken is None and not over.wait(PAUSE):
            watch.look()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
    watch.check()
    watch.look()
    watch.check()
