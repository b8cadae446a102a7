"""What a person at the terminal sees: log lines, progress bars, the closing table, the ending.

Log lines go to stdout; stderr carries only the progress bar of a terminal and the one error line.
"""

import functools
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from utils.errors import InputError, RunError, Terminated, one_line

log = logging.getLogger("fine_vit")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Make SIGTERM unwind the stack as Ctrl-C does, so that `finally` blocks run."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's affair
        return

    def stop(signum: int, frame: object) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Send the project's log lines to the current stdout for the length of one run."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm(loggers=[log]):
            yield
    finally:
        log.removeHandler(handler)


def entrypoint(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], int]:
    """Give `main` the endings of contracts, section 6: it returns the exit code.

    The wrapped function takes the arguments after the program's name; None means `sys.argv[1:]`.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        code, error = 0, None
        try:
            with _log_to_stdout(), _sigterm_raises():
                main(sys.argv[1:] if argv is None else list(argv))
        except InputError as caught:
            code, error = 2, one_line(caught)
        except RunError as caught:
            code, error = 1, one_line(caught)
        except KeyboardInterrupt:
            code, error = 130, "interrupted"
        except Terminated:
            code, error = 143, "terminated"
        if error is not None:
            sys.stderr.write(f"error: {error}\n")
        return code

    return run


def progress(total: int, what: str, unit: str) -> tqdm:
    """A progress bar with rate and ETA on a terminal; silent where there is none."""
    return tqdm(
        total=total, desc=what, unit=unit, file=sys.stderr, disable=not sys.stderr.isatty(),
        dynamic_ncols=True, leave=False,
    )  # fmt: skip


def log_table(title: str, rows: Mapping[str, object]) -> None:
    """Log `rows` as a two-column table under `title`."""
    width = max(len(name) for name in rows)
    log.info("%s", title)
    for name, value in rows.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        log.info("  %s  %s", name.ljust(width), text)
