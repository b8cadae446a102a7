"""End every entrypoint the same way: with its exit code and at most one error line."""

import atexit
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from utils.console import drop, escape_what_cannot_be_shown, log_to_stdout
from utils.environment import ENDINGS, is_program
from utils.errors import (
    Alone,
    InputError,
    RunError,
    Terminated,
    failure_behind,
    is_lost_loader,
    is_lost_process,
    is_out_of_memory,
    lost_process,
    one_line,
    printable,
    remedy_of_shortage,
)
from utils.processes import is_main
from utils.signals import (
    decide_code,
    end_children,
    handlers_restored,
    raised_by_signal,
    signals_raise,
)
from utils.watch import obey

if TYPE_CHECKING:
    from ml_collections import FrozenConfigDict  # 0.1 s that most scripts do not need


def less_memory(config: "FrozenConfigDict") -> str:
    """Return which flags lower the memory that a run takes."""
    remedies = []
    if "train_batch_size" in config:
        micro_batches = config.gradient_accumulation_steps
        at_a_time = config.train_batch_size // micro_batches
        if at_a_time > 1:
            remedies.append(
                f"more --gradient_accumulation_steps (now {micro_batches}: {at_a_time} images at a "
                "time)"
            )
        if not config.grad_checkpointing:
            remedies.append("--grad_checkpointing")
        remedies.append("a smaller --img_size")
    remedies.append(f"for evaluations, a smaller --eval_batch_size (now {config.eval_batch_size})")
    return f"less is needed with {'; '.join(remedies)}"


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print no traceback of an OSError in a background thread.

    TensorBoard writes in such a thread. It keeps the error and raises it again at the next call.
    """
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError):
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _restart_in_utf8_mode() -> None:
    """Start this program again if Python took another encoding than UTF-8 for names of files.

    Elsewhere than on macOS it takes the locale's, once and for all (PEP 540): an argument, a folder
    or a class would be read and written as other letters than the user sees. The encoding of the
    terminal stays what it is.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    encoding = getattr(sys.stdout or sys.stderr, "encoding", "ascii")
    os.environ |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{encoding}:backslashreplace"}
    # Until utils/environment.py is imported again.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _ending(failure: BaseException) -> tuple[int, str]:
    """Return the exit code and the message of a failure or signal."""
    match failure:
        case KeyboardInterrupt():
            return 130, ENDINGS[signal.SIGINT]
        case Terminated():
            return 128 + failure.signum, ENDINGS[failure.signum]
        case InputError():
            return 2, one_line(failure)
    return 1, one_line(failure)


def _say(line: str) -> None:
    """Write to stderr; if that fails, discard the line."""
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


def _let_go_of(failure: BaseException) -> None:
    """Clear the frames that a failure passed through.

    A loader that they hold then ends its processes in good order. Garbage collection would take
    its queues first, wait in vain for the processes, and may print a traceback of a queue's thread.
    """
    chain: BaseException | None = failure
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain.__traceback__ = None  # a cleared frame keeps what its function closes over
        chain = chain.__cause__ or chain.__context__


def entrypoint(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], int]:
    """Make `main` return an exit code, and print failures as one line (contracts, section 6).

    The returned function takes the arguments after the program's name; None means `sys.argv[1:]`.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        ends_process = argv is None and is_program()
        if argv is None:
            _restart_in_utf8_mode()
        escape_what_cannot_be_shown()
        if ends_process:
            obey()
        with handlers_restored():
            code = _code_of(main, sys.argv[1:] if argv is None else list(argv))
        if ends_process:
            _leave(code)
        return code

    return run


def _code_of(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Call `main`; say how it failed, and return the exit code."""
    try:
        with signals_raise(), log_to_stdout(), _quiet_threads():
            main(argv)
    except (InputError, RunError, KeyboardInterrupt, Terminated) as error:
        caught, failure = error, failure_behind(error)
    except Exception as error:
        # What a library made of the signal's exception.
        caught, failure = error, raised_by_signal()
        if failure is None:
            raise
    else:
        return 0
    code, said = _ending(failure)
    decide_code(code)
    if is_main() or isinstance(failure, Alone):
        _say(f"error: {printable(said)}\n")
    if isinstance(failure, InputError | RunError):
        _let_go_of(caught)
    else:
        end_children()
    return code


def _leave(code: int) -> NoReturn:
    """End this process; in Python's own end, a tenth of a second, a signal has no handler."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


@contextmanager
def refused(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these kinds into bad input.

    Raises:
        InputError: the block raised one of them; the message is `what` and the exception's own.
    """
    try:
        yield
    except kinds as error:
        raise InputError(f"{what} {error}") from error


@contextmanager
def named_failures(where: Callable[[], str], less_memory: Callable[[], str]) -> Iterator[None]:
    """Turn the failures that a machine can produce into a `RunError` that ends with `where()`.

    Args:
        where: function that names the step and the last good checkpoint at the time of the failure.
        less_memory: function that names the flags that lower the memory.

    Raises:
        RunError: the block raised a `RunError` or an `OSError` (damaged image, full disk), memory
            ran out, or a loader process or another process of the run was lost.
        Alone: the same, and the other processes do not know of it.
    """
    try:
        yield
    except (RunError, OSError, MemoryError, RuntimeError, KeyboardInterrupt, Terminated) as caught:
        error = failure_behind(caught)
        if isinstance(error, KeyboardInterrupt | Terminated | InputError):
            raise
        what = one_line(error)
        if remedy := remedy_of_shortage(error):
            what = f"{what}; {remedy}"
        elif is_out_of_memory(error):
            said = what if str(error) else "memory ran out"
            what = f"{said}; {less_memory()}"
        elif isinstance(error, RuntimeError) and is_lost_process(error):
            what = lost_process(error)
        elif isinstance(error, RuntimeError) and not is_lost_loader(error):
            raise
        is_shared = isinstance(error, RunError) and not isinstance(error, Alone)
        kind = RunError if is_shared else Alone
        raise kind(f"{what}; {where()}") from error
