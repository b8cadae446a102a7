"""End a program of ours with its exit code, whatever is at work in it."""

import atexit
import multiprocessing
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass

from utils.environment import end_now


@dataclass
class _Process:
    """What this process does when a signal comes."""

    is_program: bool = False  # ours alone: nobody else needs it after a signal
    unwinds: bool = False  # an exception clears files away and ends with one line
    finishes_step: bool = False  # a first signal only asks
    code: int | None = None  # exit code, once it is decided
    is_said: bool = False  # the error line of that code is printed


process = _Process()
_ending = threading.Lock()


def decide_code(code: int) -> None:
    """Note the exit code of a failure, which no later signal changes."""
    if threading.current_thread() is threading.main_thread():  # of another, signals know nothing
        process.code, process.is_said = code, False


def leave(code: int) -> None:
    """End a program of ours; return in any other process.

    Python's own end takes a tenth of a second in which a signal would print a traceback.
    """
    if not process.is_program:
        return
    process.code, process.is_said = code, True
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or it was from the start
            stream.flush()
    os._exit(code)


def end_at_once(signum: int) -> None:
    """End this process and its loaders by a signal, unless it is just saying how it ended."""
    if process.code and not process.is_said:
        return
    if not _ending.acquire(blocking=False):
        return  # another thread is at it
    for child in multiprocessing.active_children():
        child.kill()
    if process.code:
        os._exit(process.code)
    end_now(signum)
