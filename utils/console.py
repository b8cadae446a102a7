"""Show a person at the terminal log lines, progress bars and tables.

Log lines go to stdout. Only a terminal's progress bar and the one error line go to stderr. Whatever
a name from outside holds, it is shown: as escapes where the terminal lacks a letter or would obey.
"""

import io
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

from utils.environment import drop
from utils.errors import printable
from utils.processes import is_main

log = logging.getLogger("fine_vit")
# Its own lock would be one between processes, made while the first line is written.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no thread that waits for that lock


def escape_what_cannot_be_shown() -> None:
    """Make stdout and stderr write a letter that their encoding lacks as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None: it was closed from the start
            stream.reconfigure(errors="backslashreplace")


class _Printable(logging.Formatter):
    """Write each record as one line in which nothing moves the cursor or turns the text around."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _BesideTheBar(logging.StreamHandler):
    """Write log lines above a progress bar; what a signal raises passes through."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with tqdm.external_write_mode(file=self.stream):
                super().emit(record)
        except OSError:  # the bar's terminal is gone
            self.handleError(record)


@contextmanager
def log_to_stdout() -> Iterator[None]:
    """Send the project's log lines to the current stdout for the length of the block.

    Of several processes only the main one logs. Lines that nobody reads any more are discarded:
    Ctrl-C ends `| tee` too.
    """
    handler = _BesideTheBar(sys.stdout)
    handler.setFormatter(_Printable("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if is_main() else logging.CRITICAL)
    raises, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        log.removeHandler(handler)
        try:
            if sys.stdout is not None:  # None: it was closed from the start
                sys.stdout.flush()
        except OSError:  # a full disk, too: the error of the run itself is still to be printed
            drop(sys.stdout)


def progress_bar(total: int, what: str, unit: str, done: int = 0) -> tqdm:
    """Return a progress bar with rate and ETA; it is silent if stderr is not a terminal.

    Args:
        total: number of units.
        what: what makes progress.
        unit: name of a unit.
        done: units done before, which say nothing of the rate.
    """
    is_shown = sys.stderr.isatty() and is_main()
    return tqdm(
        total=total,
        initial=done,
        desc=printable(what),
        unit=unit,
        file=sys.stderr,
        disable=not is_shown,
        dynamic_ncols=True,
        miniters=1,
        leave=False,
    )


def show_training(scalars: Mapping[str, float], step: int, bar: tqdm) -> None:
    """Show training scalars beside the progress bar, or in a log line if it is silent.

    Args:
        scalars: values by name, with `loss` and the learning rate `lr`.
        step: number of optimizer steps done.
        bar: progress bar that counts the steps.
    """
    bar.set_postfix(loss=f"{scalars['loss']:.4f}", lr=f"{scalars['lr']:.2e}")
    if bar.disable:
        shown = {name: value for name, value in scalars.items() if name != "wait_fraction"}
        line = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        log.info("step %d/%d  %s", step, bar.total, line)


def log_table(title: str, rows: Mapping[str, object]) -> None:
    """Log `rows` as a two-column table under `title`."""
    width = max(len(name) for name in rows)
    log.info("%s", title)
    for name, value in rows.items():
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        log.info("  %s  %s", name.ljust(width), text)
