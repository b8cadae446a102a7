"""Have a program obey signals from its first line on, and say what its environment lacks.

Every file that a user runs imports this module first. Importing it exits with code 2 under a Python
version that the project does not support, or where a package is missing. It uses the standard
library only, and nothing that Python 3.7 lacks, so that an old version reaches the message.
"""

import os
import signal
import sys

# What is said of the signals that end a program; its exit code is 128 + their number.
ENDINGS = {signal.SIGHUP: "hung up", signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def end_now(signum, frame=None):  # noqa: ANN001, ANN201 - utils/signals.py has types
    """End this process at once, as a signal asks: with one line and its exit code."""
    if os.environ.get("RANK", "0") in ("", "0"):  # of several processes the main one speaks
        try:  # noqa: SIM105 - no import before the signals are taken
            os.write(2, ("error: " + ENDINGS[signum] + "\n").encode())
        except OSError:
            pass  # nobody reads it any more
    os._exit(128 + signum)


def is_program():  # noqa: ANN201
    """Return whether this process runs one of our programs: not a test, a notebook, a loader."""
    repo = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    started = os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or "/")
    folders = (repo, repo + "/scripts", repo + "/scripts/dev")
    return os.path.dirname(started) in folders  # noqa: PTH120


def take_signals(handler):  # noqa: ANN001, ANN201
    """Set the handler of the signals that end a program; SIGHUP may be ignored (nohup)."""
    for signum in ENDINGS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handler)


if is_program():
    take_signals(end_now)
    # Blocked where the program started itself again (utils/entrypoint.py).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)

import importlib.util  # noqa: E402
from pathlib import Path  # noqa: E402

OLDEST, NEWEST = (3, 11), (3, 13)  # scripts/env.sh names them, too

# The packages of requirements.txt, by the names of their modules. Only the tests need pytest.
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "ml_collections",
    "tensorboard",
    "tqdm",
    "PIL",
    "pi_heif",
    "safetensors",
    "yaml",
)


def find_problem() -> str:
    """Return what this Python lacks; an empty text if it lacks nothing."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        version = ".".join(str(number) for number in sys.version_info[:3])
        return f"Python 3.11, 3.12 or 3.13 is needed, but {sys.executable} is {version}"
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return f"{sys.executable} has no {', '.join(missing[:3])}{more}"
    return ""


def name_remedy() -> str:
    """Return the commands that help, with paths relative to the current folder."""
    repo = Path(__file__).resolve().parent.parent
    here = Path(os.path.relpath(str(repo)))
    make, activate = here / "scripts" / "smoke.sh", here / ".venv" / "bin" / "activate"
    if activate.exists() and Path(sys.prefix) != repo / ".venv":
        return f"activate the environment: source {activate}"
    return f"make the environment with {make}, then activate it: source {activate}"


def check_environment() -> None:
    """Exit with code 2 and one line on stderr if this Python cannot run the project."""
    problem = find_problem()
    if problem:
        sys.stderr.write(f"error: {problem}; {name_remedy()}\n")
        sys.exit(2)


check_environment()
