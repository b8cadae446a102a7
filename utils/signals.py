"""Let Ctrl-C, SIGTERM and SIGHUP end a program: the first signal in good order, a second at once.

In training the first one asks: the step at work is finished and a snapshot saved. Elsewhere it
raises an exception, so that files and processes are cleared away. Python has one handler of a
signal for the whole process, so this module keeps one state, too. It imports no torch.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from utils.environment import ENDINGS, end_now, take_signals, write_if_read
from utils.errors import HungUp, Terminated, is_lost_loader

T = TypeVar("T")
ECHO_SECONDS = 1.0


class WaitEnded(BaseException):
    """The first signal came in a wait that it ends."""


class Stopped(Exception):
    """The run was asked to stop, and all its processes know; a snapshot is to be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@dataclass
class _State:
    """What signals have asked of this process, and how far it is."""

    signum: int = 0  # the first signal; 0: none came
    since: float = 0.0  # when it came, in seconds of the monotonic clock
    is_raised: bool = False  # it, or a second one, has raised an exception
    is_training: bool = False  # the first signal only asks,
    is_waiting: bool = False  # and ends a wait for data
    is_starting: bool = False  # loaders are being started: its exception comes after that
    is_late: bool = False  # there is one to come
    is_program: bool = False  # a program of ours, which ends at the second signal
    code: int | None = None  # exit code, once the program is over; nothing is raised any more


state = _State()
_ending = threading.Lock()


def stop_signal() -> int:
    """Return the signal that asked the run to stop, or 0 if nobody asked."""
    return state.signum


def stop_by(signum: int) -> BaseException:
    """Return the exception that ends a run after this signal has asked it to stop."""
    kinds = {signal.SIGINT: KeyboardInterrupt, signal.SIGHUP: HungUp}
    return kinds.get(signum, Terminated)()


def raised_by_signal() -> BaseException | None:
    """Return the exception that a signal has raised, whatever became of it."""
    return stop_by(state.signum) if state.is_raised else None


def started(items: Iterable[T]) -> Iterator[T]:
    """Return `iter(items)`; processes that it starts ignore a terminal from their first moment on.

    It sends Ctrl-C and SIGHUP to them, too, but the main process is to end them. A signal raises
    its exception once all are started: before that nobody might know one that is.
    """
    if not _is_main_thread():
        return iter(items)
    # Blocked and not ignored: a Ctrl-C of this very moment is not lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    state.is_starting = True
    try:
        return iter(items)
    finally:
        state.is_starting = False
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if state.is_late:
            state.is_late, state.is_raised = False, True
            raise stop_by(state.signum)


def until_stop(items: Iterable[T]) -> Iterator[T]:
    """Yield `items` until the run is asked to stop."""
    batches = started(items)
    while True:
        try:
            item = unless_stopped(lambda: next(batches))
        except StopIteration:
            return
        except RuntimeError as error:
            if state.signum and is_lost_loader(error):
                return  # the loader was told to end as well
            raise
        if state.signum:
            return
        yield item


def unless_stopped(wait: Callable[[], T]) -> T | None:
    """Return what `wait` returns, or None if the run is asked to stop meanwhile.

    A loader may wait without end, for a file of a disk that is gone.
    """
    state.is_waiting = True
    try:
        return None if state.signum else wait()
    except WaitEnded:
        return None
    finally:
        state.is_waiting = False


# --- Handlers -------------------------------------------------------------------------------------


def _is_main_thread() -> bool:
    """Return whether signals arrive in this thread: elsewhere nothing is taken."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Put handlers back and forget signals at the end of the block, unless a program ends then."""
    before = {signum: signal.getsignal(signum) for signum in (*ENDINGS, signal.SIGCHLD)}
    try:
        yield
    finally:
        if _is_main_thread() and not state.is_program:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            vars(state).update(vars(_State()))


@contextmanager
def signals_raise() -> Iterator[None]:
    """End the block by an exception at the first signal."""
    if not _is_main_thread():
        yield
        return
    try:
        take_signals(_receive)
        yield
    finally:
        state.code = 0


@contextmanager
def stop_requests() -> Iterator[None]:
    """Take signals as requests to stop for the length of the block.

    Loaders are to be started before the block: torch begins to watch over them then.
    """
    if not _is_main_thread():
        yield
        return
    with handlers_restored():
        take_signals(_receive)
        before = signal.signal(signal.SIGCHLD, _quiet_about_children())
        state.is_training = True
        try:
            yield
        finally:
            state.is_training = False
            signal.signal(signal.SIGCHLD, before)


def decide_code(code: int) -> None:
    """Note the exit code of a program that is over; no later signal changes it."""
    if _is_main_thread():
        state.code = code


def _receive(signum: int, frame: FrameType | None) -> None:
    """Handle a signal that asks the program to end.

    Raises:
        WaitEnded: the first signal, while training waits for data.
        KeyboardInterrupt: SIGINT, the second signal or outside of training.
        Terminated: the same of SIGTERM.
        HungUp: the same of SIGHUP.
    """
    if state.code is not None:
        return
    if state.signum:
        if state.is_program or is_echo(signum, state.since):
            return  # a program's second signal is the watching thread's
    else:
        state.signum, state.since = signum, time.monotonic()
        if state.is_training:
            # Not through a logger or `sys.stdout`: they may have been at work just now.
            write_if_read(1, "stopping after this step; a second signal stops at once\n")
            if state.is_waiting:
                raise WaitEnded
            return
        if state.is_starting:
            state.is_late = True
            return
        if state.is_program and _is_importing(frame):
            end_at_once(signum)  # a library may take the exception for a failed import
    state.is_raised = True
    raise stop_by(signum)


def is_echo(signum: int, since: float) -> bool:
    """Return whether a further signal says the same again, and nobody sent it on purpose.

    torchrun passes on what it gets, and what ends a service sends it to all its processes. A
    terminal that is closed sends SIGHUP, and so does the shell in it.
    """
    is_sent_twice = "TORCHELASTIC_RUN_ID" in os.environ or signum == signal.SIGHUP
    return is_sent_twice and time.monotonic() - since < ECHO_SECONDS


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
        if not state.signum and callable(before):
            before(signum, frame)

    return handle


# --- The end at once ------------------------------------------------------------------------------


def end_children() -> None:
    """End the loaders of a program; torch would wait 5 s for each that is at work."""
    if state.is_program:
        if _is_main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises what is meant here
        for child in multiprocessing.active_children():
            child.kill()


def end_at_once(signum: int) -> None:
    """End this process and its loaders by a signal, or as it is just ending."""
    _ending.acquire()  # for good: one thread says the line
    end_children()
    if state.code:
        os._exit(state.code)
    end_now(signum)
