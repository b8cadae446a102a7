"""The two ways a run fails, and how other errors become one of them (contracts, section 6)."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


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


# How torch says that memory ran out (CPU, MPS, CUDA) or that a loader process died. They arrive as
# plain RuntimeErrors; every other RuntimeError is a defect and keeps its traceback.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
_LOST_LOADER = ("DataLoader worker (pid",)
# What gloo says when another process of the run is not there any more.
_LOST_PROCESS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class LostProcess(RunError):
    """Another process of the run is gone; each that is left says so for itself."""


def _without_source(error: BaseException) -> str:
    """The message without the place in gloo's source that it begins with."""
    return re.sub(r"^\[\S+\.cc:\d+\] ", "", one_line(error))


def is_lost_loader(error: RuntimeError) -> bool:
    """Whether torch says that a loader process died."""
    return _says(error, _LOST_LOADER)


def _says(error: BaseException, texts: Iterable[str]) -> bool:
    return any(text in str(error) for text in texts)


@contextmanager
def named_failures(where: Callable[[], str], less_memory: Callable[[], str]) -> Iterator[None]:
    """Turn the failures that a machine can produce into a `RunError` that ends with `where()`.

    Args:
        where: says, at the time of the failure, the step and the last good checkpoint.
        less_memory: says which flags lower the memory.

    Raises:
        RunError: for a `RunError` or `OSError` inside (damaged image, disk full), for memory that
            ran out, for a loader process or another process of the run that was lost.
    """
    try:
        yield
    except RunError as error:
        raise type(error)(f"{one_line(error)}; {where()}") from error
    except MemoryError as error:
        raise RunError(f"memory ran out; {less_memory()}; {where()}") from error
    except OSError as error:
        raise RunError(f"{one_line(error)}; {where()}") from error
    except RuntimeError as error:
        if _says(error, _LOST_PROCESS):
            raise LostProcess(
                f"another process of this run is gone ({_without_source(error)}); {where()}"
            ) from error
        if _says(error, _OUT_OF_MEMORY):
            raise RunError(f"{one_line(error)}; {less_memory()}; {where()}") from error
        if is_lost_loader(error):
            raise RunError(f"{one_line(error)}; {where()}") from error
        raise
