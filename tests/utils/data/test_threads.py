"""utils/data/threads.py: every item once, and how it ends."""

import os
import signal
import threading
import time

import pytest

from utils.console import progress_bar
from utils.data.threads import in_threads
from utils.errors import RunError


@pytest.mark.parametrize("num_threads", [3, None])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_every_item_is_worked_on_once(count, num_threads):
    done = []
    with progress_bar(count, "work", "item") as bar:
        in_threads(done.append, count, bar, num_threads)
    assert sorted(done) == list(range(count))


def test_it_works_on_several_items_at_a_time():
    barrier = threading.Barrier(4, timeout=30)
    with progress_bar(4, "work", "item") as bar:
        in_threads(lambda position: barrier.wait(), 4, bar, 4)


def test_the_first_failure_ends_it_and_is_raised():
    done = []

    def work(position: int) -> None:
        if position == 5:
            raise RunError("item 5 is bad")
        time.sleep(0.002)
        done.append(position)

    with (
        progress_bar(10_000, "work", "item") as bar,
        pytest.raises(RunError, match="item 5 is bad"),
    ):
        in_threads(work, 10_000, bar, 4)
    assert len(done) < 1000


def test_ctrl_c_ends_it():
    done = []

    def work(position: int) -> None:
        if position == 20:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)
        done.append(position)

    with progress_bar(10_000, "work", "item") as bar, pytest.raises(KeyboardInterrupt):
        in_threads(work, 10_000, bar, 4)
    assert len(done) < 1000
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count  # no thread is left behind
