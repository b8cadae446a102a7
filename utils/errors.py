"""Define the two ways in which a run fails, and recognise other errors that become one of them."""

import difflib
import errno
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


class InputError(Exception):
    """Bad input, found before the first write: one line on stderr, exit code 2."""


class RunError(Exception):
    """A failure after the first write: one line on stderr, exit code 1."""


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived; `signum` says which.

    It is a SystemExit because libraries that catch everything let that one and KeyboardInterrupt
    through.
    """

    signum: int = signal.SIGTERM


class HungUp(Terminated):
    """The terminal was closed."""

    signum = signal.SIGHUP


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line; without a message, the name of its type.

    Our own messages have one line: what else breaks them is a name's, and is written as an escape.
    Libraries' messages are joined. A DataLoader worker hands its exception over as a multi-line
    traceback whose last line is `module.Type: message`; only that message is returned.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Original Traceback" not in str(error):
        is_ours = isinstance(error, InputError | RunError)
        return printable(str(error).strip()) if is_ours else " ".join(lines)
    prefix, separator, message = lines[-1].partition(": ")
    return message if separator and " " not in prefix else lines[-1]


# Format characters that are spelling in Persian and Indic names (zero width non-joiner and joiner).
JOINERS = "\u200c\u200d"


def _is_shown(character: str) -> bool:
    is_space = unicodedata.category(character) == "Zs"  # of a Mac's screenshots, of Chinese names
    return character.isprintable() or is_space or character in JOINERS


def printable(text: str) -> str:
    """Return `text` with all that could change how a terminal shows it written as escapes.

    That is control characters, invisible ones, those that turn the direction of text around, and
    bytes that are not UTF-8.
    """
    if text.isprintable():  # nearly all, and quick
        return text
    try:
        data = text.encode("utf-8", "surrogateescape")  # a file name's bytes
    except UnicodeEncodeError:  # halves of characters, from a JSON text
        data = text.encode("utf-8", "backslashreplace")
    return "".join(
        character if _is_shown(character) else character.encode("unicode_escape").decode()
        for character in data.decode("utf-8", "backslashreplace")
    )


def _spelling(name: str) -> str:
    """Return `name` without what is easily confused: case, hyphens, blanks, leading zeros."""
    return re.sub(r"[-_\s]|(?<![0-9])0+(?=[0-9])", "", name.casefold())


def near_miss(name: str, choices: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for at most two choices that `name` nearly spells, or "".

    A choice is also meant by what begins with it ("validation" for val), or by its beginning.
    """
    spelled = {_spelling(choice): choice for choice in choices}
    key = _spelling(name)
    close = [key] if key in spelled else difflib.get_close_matches(key, spelled, n=2, cutoff=0.75)
    if not close and len(key) > 2:
        close = [
            other
            for other in spelled
            if len(other) > 2 and (other.startswith(key) or key.startswith(other))
        ][:2]
    return f", did you mean {' or '.join(repr(spelled[key]) for key in close)}?" if close else ""


def check_utf8(text: str) -> None:
    """Check that stamps, reports and predictions can quote an argument or a path.

    Raises:
        InputError: `text` holds bytes that are not UTF-8, or Python did not read them as UTF-8.
    """
    try:
        text.encode()
        os.fsencode(text)
    except UnicodeEncodeError as error:
        trouble = "is not UTF-8; rename it"
        with suppress(UnicodeError):
            text.encode("utf-8", "surrogateescape").decode()  # its bytes are UTF-8 after all
            trouble = f"is read as {sys.getfilesystemencoding()}; set PYTHONUTF8=1"
        raise InputError(f"{printable(text)} {trouble}") from error


@contextmanager
def os_errors_are_input_errors(
    paths: Mapping[str, Any] | None = None, otherwise: str = "--data_root"
) -> Iterator[None]:
    """Turn the system's refusal of a path (too long, not to be entered) into an `InputError`.

    Args:
        paths: paths in use, by the flag that named them.
        otherwise: what to blame where the path lies in none of them.

    Raises:
        InputError: names the flag, the path and the reason.
    """
    try:
        yield
    except OSError as error:
        named = [
            (len(str(path)), flag)
            for flag, path in (paths or {}).items()
            if str(path) in str(error.filename or "")
        ]
        # The longest: one folder may lie in another, as the cache does in the output folder.
        flag = max(named)[1] if named else otherwise
        where = error.filename or ", ".join(map(str, (paths or {}).values())) or "its files"
        # macOS keeps programs out of Documents and external disks until the user lets them in.
        is_private = error.errno == errno.EPERM
        hint = "; let the terminal in: System Settings, Privacy & Security" if is_private else ""
        raise InputError(f"{flag} {where}: {error.strerror}{hint}") from error


# How torch says that memory ran out (CPU, MPS, CUDA) or that a loader process died. Both arrive as
# plain RuntimeErrors; any other RuntimeError is a defect and keeps its traceback. The last text is
# Python's own, if there is no memory for a thread's stack.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "can't start new thread")
_LOST_LOADER = ("DataLoader worker (pid",)
# What gloo says when another process of the run is gone.
_LOST_PROCESS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class OutOfMemory(RunError):
    """Memory ran out in one of the processes of a run, and all of them know."""


class Alone(RunError):
    """The other processes of the run do not know of this failure: each prints its own line."""


def lost_process(error: BaseException) -> str:
    """Return the message for an error that `is_lost_process` recognises."""
    # gloo's own message begins with a place in its source.
    what = re.sub(r"^\[\S+\.cc:\d+\] ", "", one_line(error))
    return f"another process of this run is gone ({what})"


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether gloo says that another process of the run is gone."""
    return not isinstance(error, RunError) and _says(error, _LOST_PROCESS)


def is_lost_loader(error: BaseException) -> bool:
    """Return whether torch says that a loader process died."""
    return _says(error, _LOST_LOADER)


def _says(error: BaseException, texts: Iterable[str]) -> bool:
    return any(text in str(error) for text in texts)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on any device."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_torchs = isinstance(error, RuntimeError) and _says(error, _OUT_OF_MEMORY)
    return isinstance(error, MemoryError | OutOfMemory) or is_torchs


def failure_behind(error: BaseException) -> BaseException:
    """Return the failure that a signal interrupted, or else `error` itself.

    torchrun sends SIGTERM to the remaining processes of a run. They may just be ending by a failure
    of their own, and that failure is to be reported, not the signal.
    """
    behind = error.__context__ if isinstance(error, KeyboardInterrupt | Terminated) else None
    while behind is not None:
        is_lost = isinstance(behind, RuntimeError) and is_lost_process(behind)
        if is_lost or isinstance(behind, RunError | InputError):
            return behind
        behind = behind.__context__
    return error
