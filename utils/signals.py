"""Let Ctrl-C, SIGTERM and SIGHUP stop training: the first asks, the second ends it at once.

Python has one handler of a signal for the whole process, so this module keeps one request, too. It
imports no torch.

Outside of training the first signal raises an exception, so that files are cleared away. A program
of ours (`obey`) also has a thread that hears of signals where the main thread cannot: a library is
at work or waits for another process, or swallows the exception. It ends the process at the second
signal, or if the first has had no effect.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from utils.ending import end_at_once, process
from utils.environment import ENDINGS, take_signals
from utils.errors import HungUp, Terminated, is_lost_loader
from utils.processes import is_main

T = TypeVar("T")
ECHO_SECONDS = 1.0
MOST_SECONDS = 10.0  # in which a first signal has to end what is not training


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
    is_raised: bool = False  # it, or a second one, has raised an exception

    def reset(self) -> None:
        """Forget it."""
        self.signum, self.since, self.is_raised = 0, 0.0, False

    def is_echo(self, signum: int) -> bool:
        """Return whether a further signal says the same again, and nobody sent it on purpose.

        torchrun passes on what it gets, and what ends a service sends it to all its processes. A
        terminal that is closed sends SIGHUP, and so does the shell in it.
        """
        is_sent_twice = "TORCHELASTIC_RUN_ID" in os.environ or signum == signal.SIGHUP
        return is_sent_twice and time.monotonic() - self.since < ECHO_SECONDS


_asked = _Asked()


def stop_signal() -> int:
    """Return the signal that asked the run to stop, or 0 if nobody asked."""
    return _asked.signum


def was_interrupted() -> bool:
    """Return whether a signal has raised an exception, whatever became of it."""
    return _asked.is_raised


def stop_by(signum: int) -> BaseException:
    """Return the exception that ends a run after this signal has asked it to stop."""
    kinds = {signal.SIGINT: KeyboardInterrupt, signal.SIGHUP: HungUp}
    return kinds.get(signum, Terminated)()


def started(items: Iterable[T]) -> Iterator[T]:
    """Return `iter(items)`; processes that it starts ignore a terminal from their first moment on.

    It sends Ctrl-C and SIGHUP to them, too, but the main process is to end them.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(items)
    # Blocked and not ignored: a Ctrl-C of this very moment is not lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        return iter(items)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def until_stop(items: Iterable[T]) -> Iterator[T]:
    """Yield `items` until the run is asked to stop."""
    batches = started(items)
    while not _asked.signum:
        try:
            item = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if _asked.signum and is_lost_loader(error):
                return  # the loader was told to end as well
            raise
        yield item


@contextmanager
def signals_taken() -> Iterator[None]:
    """Take the signals that end a program for the length of the block, unless it is a program.

    In another thread than the main one nothing is taken, since signals arrive in the main thread.
    """
    if process.is_program or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in ENDINGS}
    take_signals(_receive)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _asked.reset()
        process.code = None


@contextmanager
def stop_requests() -> Iterator[None]:
    """Take signals as requests to stop for the length of the block.

    Loaders are to be started before the block: torch begins to watch over them then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with signals_taken():
        before = signal.signal(signal.SIGCHLD, _quiet_about_children())
        process.finishes_step = True
        try:
            yield
        finally:
            process.finishes_step = False
            signal.signal(signal.SIGCHLD, before)


def _receive(signum: int, frame: FrameType | None) -> None:
    """Handle a signal that asks the program to end.

    Raises:
        KeyboardInterrupt: SIGINT, the second signal or outside of training.
        Terminated: the same of SIGTERM.
        HungUp: the same of SIGHUP.
    """
    if process.code is not None:
        if process.is_program:
            end_at_once(signum)
        return
    if _asked.signum:
        if _asked.is_echo(signum):
            return
        if process.is_program:
            end_at_once(signum)
        _asked.is_raised = True
        raise stop_by(signum)
    _asked.signum, _asked.since = signum, time.monotonic()
    if not process.finishes_step:
        # A library may take the exception for a failed import.
        if process.is_program and (not process.unwinds or _is_importing(frame)):
            end_at_once(signum)
        _asked.is_raised = True
        raise stop_by(signum)
    # Not through a logger or `sys.stdout`: they may have been at work just now.
    # Nobody may be reading any more: Ctrl-C ends `| tee`, too.
    with suppress(OSError):
        os.write(1, b"stopping after this step; a second signal stops at once\n")


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _quiet_about_children() -> Callable[[int, FrameType | None], object]:
    """Return torch's handler of SIGCHLD, made silent once the run is asked to stop.

    torch's handler raises wherever the main process is when a loader dies. What ends a machine or a
    service sends SIGTERM to all processes of a run; the step at work is to be finished then, and
    whoever asks for the next batch hears of the loss.
    """
    before = signal.getsignal(signal.SIGCHLD)

    def handle(signum: int, frame: FrameType | None) -> None:
        if not _asked.signum and callable(before):
            before(signum, frame)

    return handle


# --- A program of ours ----------------------------------------------------------------------------


def obey() -> None:
    """Have this process, which runs a program of ours, end by every signal; see above."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process.is_program = True
    take_signals(_receive)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    sys.unraisablehook = _end_where_it_is_swallowed
    os.register_at_fork(after_in_child=_leave_to_parent)


def _watch(reader: int) -> None:
    """End this process at the second signal, or if the first has no effect.

    It also says that torchrun is gone.
    """
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    first, since, is_due = 0, 0.0, False
    while True:
        if not select.select([reader], [], [], 1.0)[0]:
            if launcher not in (None, os.getppid()):
                launcher = None
                _say_launcher_is_gone()
            if is_due and time.monotonic() - since > MOST_SECONDS:
                is_due = False
                if not process.finishes_step:
                    end_at_once(first)
            continue
        for signum in os.read(reader, 1024):
            if signum not in ENDINGS:
                continue
            if not first:
                first, since, is_due = signum, time.monotonic(), True
            elif not _Asked(first, since).is_echo(signum):
                end_at_once(signum)


def _say_launcher_is_gone() -> None:
    if is_main():
        with suppress(OSError):
            os.write(1, b"warning: torchrun is gone; this run goes on without it\n")


def _end_where_it_is_swallowed(unraisable: "sys.UnraisableHookArgs") -> None:
    """Obey a signal that came where Python lets no exception through (`__del__`, a callback)."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
        end_at_once(_asked.signum)
    sys.__unraisablehook__(unraisable)


def _leave_to_parent() -> None:
    """Let a forked process, such as a loader, end as any other does."""
    signal.set_wakeup_fd(-1)
    if process.is_program:
        process.is_program = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
