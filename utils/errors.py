"""The two ways a run fails, and how other errors become one of them (contracts, section 6)."""

import errno
import os
import re
from collections.abc import Iterable


class InputError(Exception):
    """Bad input, found before the first write: one line on stderr, exit code 2."""


class RunError(Exception):
    """A failure after the first write: one line on stderr, exit code 1."""


class Terminated(SystemExit):
    """SIGTERM arrived.

    A SystemExit, since libraries that catch everything let that one and KeyboardInterrupt through
    (tqdm's logging handler swallows any other BaseException).
    """


def one_line(error: BaseException) -> str:
    """The message of `error` on one line.

    A DataLoader worker hands its exception over as a multi-line traceback whose last line is
    `module.Type: message`; only that message is wanted.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Original Traceback" not in str(error):
        return " ".join(lines)
    prefix, separator, message = lines[-1].partition(": ")
    return message if separator and " " not in prefix else lines[-1]


def printable(text: str) -> str:
    """`text` for an error message: bytes that are no UTF-8 and control characters as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in os.fsencode(text).decode("utf-8", errors="backslashreplace")
    )


def check_utf8(text: str) -> None:
    """Refuse an argument or a path that stamps, reports and predictions could not quote.

    Raises:
        InputError: it holds bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{printable(text)} is not UTF-8; rename it") from error


# How torch says that memory ran out (CPU, MPS, CUDA) or that a loader process died. They arrive as
# plain RuntimeErrors; every other RuntimeError is a defect and keeps its traceback. Python says the
# last one where there is no memory for a thread's stack.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "can't start new thread")
_LOST_LOADER = ("DataLoader worker (pid",)
# What gloo says when another process of the run is not there any more.
_LOST_PROCESS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class OutOfMemory(RunError):
    """Memory ran out in one of the processes of a run, and all know."""


class Alone(RunError):
    """A failure that the other processes of the run do not know of: each speaks for itself."""


def lost_process(error: BaseException) -> str:
    """What to say of an error for which `is_lost_process`."""
    # gloo begins with the place in its source.
    what = re.sub(r"^\[\S+\.cc:\d+\] ", "", one_line(error))
    return f"another process of this run is gone ({what})"


def is_lost_process(error: RuntimeError) -> bool:
    """Whether gloo says that another process of the run is not there any more."""
    return not isinstance(error, RunError) and _says(error, _LOST_PROCESS)


def is_lost_loader(error: BaseException) -> bool:
    """Whether torch says that a loader process died."""
    return _says(error, _LOST_LOADER)


def _says(error: BaseException, texts: Iterable[str]) -> bool:
    return any(text in str(error) for text in texts)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_torchs = isinstance(error, RuntimeError) and _says(error, _OUT_OF_MEMORY)
    return isinstance(error, MemoryError | OutOfMemory) or is_torchs


def failure_behind(error: BaseException) -> BaseException:
    """`error`, or the failure that was on its way when it, a signal, came.

    torchrun sends SIGTERM to the processes that are left, which may just be ending for the same
    reason; that one is to be told.
    """
    behind = error.__context__ if isinstance(error, KeyboardInterrupt | Terminated) else None
    while behind is not None:
        is_lost = isinstance(behind, RuntimeError) and is_lost_process(behind)
        if is_lost or isinstance(behind, RunError | InputError):
            return behind
        behind = behind.__context__
    return error
