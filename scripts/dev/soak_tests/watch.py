"""A thread that looks at a run all the time: is everything that lies there whole?"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.data_utils import EMA, RunPaths, checkpoint_paths
from utils.errors import RunError

PAUSE = 0.02  # seconds between two looks: the run is to have the processor


def broken_json(folder: Path) -> tuple[int, str | None]:
    """Parse every JSON and JSONL file below a folder, which somebody may be writing to.

    Returns:
        How many files were read, and what is wrong with the first that is not whole.
    """
    read = 0
    try:
        paths = [path for path in folder.rglob("*.json*") if path.suffix in (".json", ".jsonl")]
    except FileNotFoundError:  # a folder was moved while it was listed
        return 0, None
    for path in paths:
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # moved
            continue
        read += 1
        try:
            for text in data.splitlines() if path.suffix == ".jsonl" else [data]:
                json.loads(text)
        except ValueError as error:
            return read, f"{path} cannot be parsed ({error})"
    return read, None


def has_whole_state(paths: RunPaths) -> bool:
    """Whether one of the states of a run, which may be writing one, is whole."""
    from utils.snapshot import is_whole_state

    names = [paths.last, paths.older(1), paths.older(2)]
    # Twice: between two looks a state can get the name that was looked at before.
    return any(is_whole_state(path) for _ in range(2) for path in names)


def broken_best(paths: RunPaths) -> str | None:
    """Which of the best checkpoints of a run, which may be writing one, is there and not whole."""
    from utils.snapshot import is_whole_state

    for variant in ("", EMA):
        path = checkpoint_paths(paths, variant).checkpoint
        if path.exists() and not is_whole_state(path):
            return f"{path} is not whole"
    return None


class Watch:
    """What was seen of a run so far."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.looks = self.files_read = 0
        self.had_state = False
        self.broken: str | None = None  # the first promise that was not kept

    def look(self) -> None:
        """Look once at all files."""
        self.looks += 1
        read, self.broken = broken_json(self.paths.output_dir)
        self.files_read += read
        self.broken = self.broken or broken_best(self.paths)
        if self.broken is None and (self.had_state or self.paths.last.exists()):
            self.had_state = True
            if not has_whole_state(self.paths):
                self.broken = f"{self.paths.run} has no whole state any more"

    def check(self) -> None:
        """Say what was broken.

        Raises:
            RunError: something was.
        """
        if self.broken is not None:
            raise RunError(f"after {self.looks} looks: {self.broken}")


@contextmanager
def watched(paths: RunPaths) -> Iterator[Watch]:
    """Look at a run all the time until the block ends, or something is broken.

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
    watch.look()
    watch.check()
