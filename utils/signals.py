"""Let Ctrl-C, SIGTERM and SIGHUP end a program: the first signal in good order, a second at once.

In training the first one asks: the step at work is finished and a snapshot saved. Elsewhere it
raises an exception, so that files and processes are cleared away. Python has one handler of a
signal for the whole process, so this module keeps one state, too. It imports no torch.

Python runs a handler in the main thread, between two of its own instructions. While a library waits
there for another process, only a thread can hear of a signal: each program of ours has one.
"""

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from utils.console import log
from utils.environment import ENDINGS, end_now, take_signals, write_if_read
from utils.errors import HungUp, Terminated, is_lost_loader

T = TypeVar("T")
ECHO_SECONDS = 1.0
MOST_SECONDS = 10  # in which a program ends after its first signal, the time of training aside


class _WaitEnded(BaseException):
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
    is_program: bool = False  # a program of ours, which ends at the second signal
    code: int | None = None  # exit code, once the program is over; nothing is raised any more


_state = _State()
_ending = threading.Lock()


def stop_signal() -> int:
    """Return the signal that asked the run to stop, or 0 if nobody asked."""
    return _state.signum


def stop_by(signum: int) -> BaseException:
    """Return the exception that ends a run after this signal has asked it to stop."""
    kinds = {signal.SIGINT: KeyboardInterrupt, signal.SIGHUP: HungUp}
    return kinds.get(signum, Terminated)()


def raised_by_signal() -> BaseException | None:
    """Return the exception that a signal has raised, whatever became of it."""
    return stop_by(_state.signum) if _state.is_raised else None


def started(items: Iterable[T]) -> Iterator[T]:
    """Return `iter(items)`; processes that it starts ignore a terminal from their first moment on.

    It sends Ctrl-C and SIGHUP to them, too, but the main process is to end them.
    """
    if not _is_main_thread():
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
    while True:
        try:
            item = unless_stopped(lambda: next(batches))
        except StopIteration:
            return
        except RuntimeError as error:
            if _state.signum and is_lost_loader(error):
                return  # the loader was told to end as well
            raise
        if _state.signum:
            return
        yield item


def unless_stopped(wait: Callable[[], T]) -> T | None:
    """Return what `wait` returns, or None if the run is asked to stop meanwhile.

    A loader may wait without end, for a file of a disk that is gone.
    """
    _state.is_waiting = True
    try:
        return None if _state.signum else wait()
    except _WaitEnded:
        return None
    finally:
        _state.is_waiting = False


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
        if _is_main_thread() and not _state.is_program:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            vars(_state).update(vars(_State()))


@contextmanager
def signals_raise(is_program: bool) -> Iterator[None]:
    """End the block by an exception at the first signal.

    Args:
        is_program: whether this process is a program of ours, which ends after the block.
    """
    if not _is_main_thread():
        yield
        return
    try:
        if is_program:
            obey()
        take_signals(_receive)
        yield
    finally:
        _state.code = 0


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
        _state.is_training = True
        try:
            yield
        finally:
            _state.is_training = False
            signal.signal(signal.SIGCHLD, before)


def decide_code(code: int) -> None:
    """Note the exit code of a program that is over; no later signal changes it."""
    if _is_main_thread():
        _state.code = code


def _receive(signum: int, frame: FrameType | None) -> None:
    """Handle a signal that asks the program to end.

    Raises:
        _WaitEnded: the first signal, while training waits for data.
        KeyboardInterrupt: SIGINT, the second signal or outside of training.
        Terminated: the same of SIGTERM.
        HungUp: the same of SIGHUP.
    """
    if _state.code is not None:
        return
    if _state.signum:
        if _state.is_program or _is_echo(signum, _state.since):
            return  # a program's second signal is the watching thread's
    else:
        _state.signum, _state.since = signum, time.monotonic()
        if _state.is_training:
            # Not through a logger or `sys.stdout`: they may have been at work just now.
            write_if_read(1, "stopping after this step; a second signal stops at once\n")
            if _state.is_waiting:
                raise _WaitEnded
            return
        if _state.is_program and _is_importing(frame):
            _end_at_once(signum)  # a library may take the exception for a failed import
    _state.is_raised = True
    raise stop_by(signum)


def _is_echo(signum: int, since: float) -> bool:
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
        if not _state.signum and callable(before):
            before(signum, frame)

    return handle


# --- A program of ours ----------------------------------------------------------------------------


def obey() -> None:
    """Start the thread that ends this process where the main thread cannot."""
    _state.is_program = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    sys.unraisablehook = _end_where_it_is_swallowed
    os.register_at_fork(after_in_child=_leave_to_parent)


def _watch(reader: int) -> None:
    """End this process at the second signal, or if the first has no effect; miss torchrun."""
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    first, since, seconds = 0, 0.0, 0
    while True:
        is_idle = not first and launcher is None
        if not select.select([reader], [], [], None if is_idle else 1.0)[0]:
            if launcher not in (None, os.getppid()):
                launcher = None
                log.warning("warning: torchrun is gone; this run goes on without it")
            seconds += bool(first) and not _state.is_training
            if seconds > MOST_SECONDS:
                _end_at_once(first)
            continue
        for signum in os.read(reader, 1024):
            if first and signum in ENDINGS and not _is_echo(signum, since):
                _end_at_once(signum)
            elif signum in ENDINGS and not first:
                first, since = signum, time.monotonic()


def end_children() -> None:
    """End the loaders of a program; torch would wait 5 s for each that is at work."""
    if _state.is_program:
        if _is_main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises what is meant here
        for child in multiprocessing.active_children():
            child.kill()


def _end_at_once(signum: int) -> None:
    """End this process and its loaders by a signal, or as it is just ending."""
    _ending.acquire()  # for good: one thread says the line
    end_children()
    if _state.code:
        os._exit(_state.code)
    end_now(signum)


def _end_where_it_is_swallowed(unraisable: "sys.UnraisableHookArgs") -> None:
    """Obey a signal that came where Python lets no exception through (`__del__`, a callback)."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
        _end_at_once(_state.signum)
    if not isinstance(unraisable.exc_value, _WaitEnded):  # the run stops after that wait
        sys.__unraisablehook__(unraisable)


def _leave_to_parent() -> None:
    """Let a forked process, such as a loader, end as any other does."""
    signal.set_wakeup_fd(-1)
    _state.is_program = False
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
