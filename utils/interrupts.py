"""Ctrl-C and SIGTERM in training: the first asks to stop, the second stops. Imports no torch."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from utils.errors import Terminated

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
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return iter(items)
    finally:
        signal.signal(signal.SIGINT, before)


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
        # torchrun may pass Ctrl-C, which every process gets from the terminal, on as SIGTERM.
        is_echo = (
            "TORCHELASTIC_RUN_ID" in os.environ
            and signum != self.signum
            and time.monotonic() - self.since < ECHO_SECONDS
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
        for item in started(items):
            if self.signum:
                return
            yield item


@contextmanager
def stop_requests(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Take Ctrl-C and SIGTERM as requests as long as the block lasts; `request` gets them."""
    request = StopRequest() if request is None else request
    if threading.current_thread() is not threading.main_thread():
        yield request  # signals are the main thread's affair
        return
    before = {
        signum: signal.signal(signum, request.receive) for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
