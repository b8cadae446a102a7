"""Ctrl-C and SIGTERM in training: the first asks to stop, the second stops. Imports no torch."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from utils.errors import Terminated, is_lost_loader

T = TypeVar("T")
ECHO_SECONDS = 1.0


class Stopped(Exception):
    """The run was asked to stop, and all its processes know; its state is to be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def stop_by(signum: int) -> BaseException:
    """What ends a run at once that was asked to stop by this signal."""
    return KeyboardInterrupt() if signum == signal.SIGINT else Terminated()


def started(items: Iterable[T]) -> Iterator[T]:
    """`iter(items)`; processes that it starts ignore Ctrl-C from their first moment on.

    A terminal sends it to them too; they are the main process's to end.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(items)
    # Blocked, not ignored: one that comes just now is not lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return iter(items)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopRequest:
    """Whether the run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signum = 0  # none yet
        self.since = 0.0

    def receive(self, signum: int, frame: object = None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: the run was asked before (SIGINT).
            Terminated: the run was asked before (SIGTERM).
        """
        # torchrun passes on what it gets, and what ends a service sends it to all its processes.
        is_echo = (
            "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self.since < ECHO_SECONDS
        )
        if self.signum and not is_echo:
            raise stop_by(signum)
        if not self.signum:
            self.signum, self.since = signum, time.monotonic()
            # Not through a logger or `sys.stdout`: they may have been at work just now.
            # Nobody may be reading any more: Ctrl-C ends `| tee` too.
            with suppress(OSError):
                os.write(1, b"stopping after this step; a second signal stops at once\n")

    def watched(self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items` until the run is asked to stop."""
        batches = started(items)
        while not self.signum:
            try:
                item = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if self.signum and is_lost_loader(error):
                    return  # it was told to end as well
                raise
            yield item

    def quiet_about_children(self) -> Callable[[int, FrameType | None], object]:
        """Torch's handler of SIGCHLD, silent once the run is asked to stop.

        It raises wherever the main process is when a loader dies. What ends a machine or a service
        sends SIGTERM to all processes of a run; the step that is under way is to be finished then,
        and who asks for the next batch hears of the loss.
        """
        before = signal.getsignal(signal.SIGCHLD)

        def handle(signum: int, frame: FrameType | None) -> None:
            if not self.signum and callable(before):
                before(signum, frame)

        return handle


@contextmanager
def stop_requests(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Take Ctrl-C and SIGTERM as requests as long as the block lasts; `request` gets them.

    Loaders are to be started before: torch begins to watch over them then.
    """
    request = StopRequest() if request is None else request
    if threading.current_thread() is not threading.main_thread():
        yield request  # signals are the main thread's affair
        return
    handlers = {
        signal.SIGCHLD: request.quiet_about_children(),
        signal.SIGINT: request.receive,
        signal.SIGTERM: request.receive,
    }
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
