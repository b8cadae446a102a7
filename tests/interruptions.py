"""Interrupt a run at a log line, and compare what two runs left."""

import logging
import re
import signal
from collections.abc import Callable
from contextlib import contextmanager

import torch
from helpers import SUBSETS, TINY_TRAIN, read_json, read_scalars

from utils.data_utils import EMA, RunPaths, checkpoint_paths
from utils.run.snapshot import load_snapshot

# Log lines every 3 steps, evaluations every 4, snapshots every 2: none falls where another does.
LONG = (
    f"--dataset synthetic {TINY_TRAIN} {SUBSETS} --num_steps 10 --eval_every 4 --save_every 2 "
    "--log_every 3"
)
TIMES = ("train/images_per_second", "data/wait_fraction")


class Crash(SystemExit):
    """The end of a process, as far as a test within it can have one."""


@contextmanager
def when_logged(pattern: str, act: Callable[[], object]):
    """Call `act` when the first log line comes that matches."""
    log = logging.getLogger("fine_vit")
    waiting = [act]

    class Watcher(logging.Handler):
        def emit(self, record):
            if waiting and re.search(pattern, record.getMessage()):
                waiting.pop()()

    watcher = Watcher()
    log.addHandler(watcher)
    try:
        yield
    finally:
        log.removeHandler(watcher)
    assert not waiting, f"nothing matched {pattern}"


def signals(*signums: int) -> Callable[[], object]:
    return lambda: [signal.raise_signal(signum) for signum in signums]


def crash() -> None:
    raise Crash


def is_equal(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def untimed_scalars(paths: RunPaths) -> dict:
    scalars = read_scalars(paths.tensorboard)
    return {tag: points for tag, points in scalars.items() if tag not in TIMES}


def assert_same_end(paths: RunPaths, reference: RunPaths) -> None:
    """All that the two runs left is equal, but times, names and the number of starts."""
    snapshots = [load_snapshot(each.last) for each in (paths, reference)]
    headers = [s.header._replace(run_id="", config={}, stamp={})._asdict() for s in snapshots]
    assert is_equal(*headers)
    assert is_equal(*(s.parts for s in snapshots))
    for variant in ("", *([EMA] if snapshots[0].parts["progress"]["best"].get(EMA) else [])):
        one, other = (checkpoint_paths(each, variant) for each in (paths, reference))
        assert one.checkpoint.read_bytes() == other.checkpoint.read_bytes()
        assert one.metrics.read_bytes() == other.metrics.read_bytes()
        assert one.per_class.read_bytes() == other.per_class.read_bytes()
    digests = [
        {key: value for key, value in read_json(each.env_stamp).items() if "digest" in key}
        for each in (paths, reference)
    ]
    assert digests[0] == digests[1]
    assert untimed_scalars(paths) == untimed_scalars(reference)
