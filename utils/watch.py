"""Watch over a program of ours in a thread, which hears of signals where the main thread cannot.

Python runs a signal's handler in the main thread, between two of its own instructions: not while a
library waits there for another process.
"""

import os
import select
import signal
import sys
import threading
import time

from utils.console import log
from utils.environment import ENDINGS
from utils.errors import Terminated
from utils.signals import WaitEnded, end_at_once, is_echo, state

_masks: list[set[signal.Signals]] = []  # of blocked signals, before a fork
MOST_SECONDS = 10  # in which a program ends after its first signal, the time of training aside


def obey() -> None:
    """Start the thread that ends this process where the main thread cannot."""
    state.is_program = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    sys.unraisablehook = _end_where_it_is_swallowed
    os.register_at_fork(
        before=_hold_signals, after_in_parent=_take_signals, after_in_child=_leave_to_parent
    )


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
            seconds += bool(first) and not state.is_training
            if seconds > MOST_SECONDS:
                end_at_once(first)
            continue
        for signum in os.read(reader, 1024):
            if first and signum in ENDINGS and not is_echo(signum, since):
                end_at_once(signum)
            elif signum in ENDINGS and not first:
                first, since = signum, time.monotonic()


def _end_where_it_is_swallowed(unraisable: "sys.UnraisableHookArgs") -> None:
    """Obey a signal that came where Python lets no exception through (`__del__`, a callback)."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
        end_at_once(state.signum)
    if not isinstance(unraisable.exc_value, WaitEnded):  # the run stops after that wait
        sys.__unraisablehook__(unraisable)


def _hold_signals() -> None:
    """Let no signal reach a forked process before it is prepared; this one's watch hears them."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS))


def _take_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _leave_to_parent() -> None:
    """Let a forked process, such as a loader, end as any other does."""
    signal.set_wakeup_fd(-1)
    state.is_program = False
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _take_signals()
