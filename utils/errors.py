"""The two ways a run fails, and how other errors become one of them (contracts, section 6)."""

from collections.abc import Callable, Iterator
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
_EXPECTED_RUNTIME_ERRORS = ("out of memory", "can't allocate memory", "DataLoader worker (pid")


@contextmanager
def named_failures(where: Callable[[], str]) -> Iterator[None]:
    """Turn the failures that a machine can produce into a `RunError` that ends with `where()`.

    Args:
        where: says, at the time of the failure, the step and the last good checkpoint.

    Raises:
        RunError: for a `RunError` or `OSError` inside (damaged image, disk full), for memory that
            ran out, and for a loader process that was lost.
    """
    try:
        yield
    except (RunError, OSError, MemoryError) as error:
        raise RunError(f"{one_line(error)}; {where()}") from error
    except RuntimeError as error:
        if not any(text in str(error) for text in _EXPECTED_RUNTIME_ERRORS):
            raise
        raise RunError(f"{one_line(error)}; {where()}") from error
