"""Let Ctrl-C and SIGTERM stop training: the first asks, the second ends it at once.

Python has one handler of a signal for the whole process, so this module keeps one request, too. It
imports no torch.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from utils.errors import (
    NOT_STARTED,
    Alone,
    Terminated,
    is_lost_loader,
    is_out_of_memory,
    one_line,
)

T = TypeVar("T")
ECHO_SECONDS = 1.0


class Stopped(Exception):
    """The run was asked to stop, and all its processes know; a snapshot is to be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@dataclass
class _Asked:
    """The signal that asked the run to stop."""

    signum: int = 0  # 0: nobody asked
    since: float = 0.0  # seconds of the monotonic clock
    is_waiting: bool = False  # for loaders

    def reset(self) -> None:
        """Forget it."""
        self.signum, self.since = 0, 0.0


_asked = _Asked()


def stop_signal() -> int:
    """Return the signal that asked the run to stop, or 0 if nobody asked."""
    return _asked.signum


def stop_by(signum: int) -> BaseException:
    """Return the exception that ends a run after this signal has asked it to stop."""
    return KeyboardInterrupt() if signum == signal.SIGINT else Terminated()


def started(items: Iterable[T]) -> Iterator[T]:
    """Return `iter(items)`; processes that it starts ignore Ctrl-C from their first moment on.

    A terminal sends Ctrl-C to them, too, but the main process is to end them.

    Raises:
        Alone: no process, thread, open file or semaphore can be had.
    """
    # Blocked and not ignored: a Ctrl-C of this very moment is not lost.
    is_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT} if is_main_thread else ())
    try:
        return iter(items)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        # What torch tidies up of a loader half begun raises an error that Python would print.
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        traceback.clear_frames(error.__traceback__)
        sys.unraisablehook = hook
        raise Alone(f"loader {NOT_STARTED} ({one_line(error)})") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def losses_raised() -> Iterator[None]:
    """Raise a loader's loss in the block even if the run is asked to stop.

    One that dies while it sends a batch through the pipe leaves half of it, and a wait for the rest
    would have no end.
    """
    _asked.is_waiting = True
    try:
        yield
    finally:
        _asked.is_waiting = False


def until_stop(items: Iterable[T]) -> Iterator[T]:
    """Yield `items` until the run is asked to stop."""
    batches = started(items)
    while not _asked.signum:
        try:
            with losses_raised():
                item = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if _asked.signum and is_lost_loader(error):
                return  # the loader was told to end as well
            raise
        yield item


@contextmanager
def stop_requests() -> Iterator[None]:
    """Take Ctrl-C and SIGTERM as requests to stop for the length of the block.

    Loaders are to be started before the block: torch begins to watch over them then. In another
    thread than the main one nothing is taken, since signals arrive in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {
        signal.SIGCHLD: _quiet_about_children(),
        signal.SIGINT: _receive,
        signal.SIGTERM: _receive,
    }
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _asked.reset()


def _receive(signum: int, frame: FrameType | None) -> None:
    """Handle a signal that asks the run to stop.

    Raises:
        KeyboardInterrupt: SIGINT, after the run was asked before.
        Terminated: SIGTERM, after the run was asked before.
    """
    # torchrun passes on what it gets, and what ends a service sends it to all its processes.
    is_echo = "TORCHELASTIC_RUN_ID" in os.environ and (
        time.monotonic() - _asked.since < ECHO_SECONDS
    )
    if _asked.signum and not is_echo:
        raise stop_by(signum)
    if not _asked.signum:
        _asked.signum, _asked.since = signum, time.monotonic()
        # Not through a logger or `sys.stdout`: they may have been at work just now.
        # Nobody may be reading any more: Ctrl-C ends `| tee`, too.
        with suppress(OSError):
            os.write(1, b"stopping after this step; a second signal stops at once\n")


def _quiet_about_children() -> Callable[[int, FrameType | None], object]:
    """Return torch's handler of SIGCHLD, made silent once the run is asked to stop.

    torch's handler raises wherever the main process is when a loader dies. What ends a machine or a
    service sends SIGTERM to all processes of a run; the step at work is to be finished then, and
    whoever waits for the next batch hears of the loss.
    """
    before = signal.getsignal(signal.SIGCHLD)

    def handle(signum: int, frame: FrameType | None) -> None:
        if (_asked.is_waiting or not _asked.signum) and callable(before):
            before(signum, frame)

    return handle
