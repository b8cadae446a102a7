"""Have a program obey signals from its first line on, and say what its environment lacks.

Every file that a user runs imports this module first. Importing it exits with code 2 under a Python
version that the project does not support, where a package is missing, or where an environment
variable cannot be used. It uses the standard library only, and nothing that Python 3.7 lacks, so
that an old version reaches the message.
"""

import os
import select
import signal
import sys

# What is said of the signals that end a program; its exit code is 128 + their number.
ENDINGS = {signal.SIGHUP: "hung up", signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def write_if_read(descriptor, line):  # noqa: ANN001, ANN201 - utils/signals.py has types
    """Write a short line, unless the other side is closed or takes nothing (Ctrl-S, `| less`)."""
    try:
        if select.select([], [descriptor], [], 1.0)[1]:
            os.write(descriptor, line.encode())
    except OSError:
        pass


def end_now(signum, frame=None):  # noqa: ANN001, ANN201
    """End this process at once, as a signal asks: with one line and its exit code."""
    if os.environ.get("RANK", "0") in ("", "0"):  # of several processes the main one speaks
        write_if_read(2, "error: " + ENDINGS[signum] + "\n")
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
import re  # noqa: E402
import resource  # noqa: E402
import warnings  # noqa: E402
from contextlib import suppress  # noqa: E402
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
    "huggingface_hub",
    "yaml",
    "sklearn",
    "matplotlib",
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


def _number(name: str, least: int, most: int) -> "tuple[int, str]":
    """Return the whole number that a variable holds, or what is wrong with it."""
    text = os.environ[name]
    if re.fullmatch(r"[0-9]{1,9}", text) and least <= int(text) <= most:
        return int(text), ""
    return 0, f"{name} is {text!r}, not a whole number from {least} to {most}"


def find_wrong_variable() -> str:
    """Return what is wrong with a variable by which processes are started; "": nothing.

    torchrun sets those of several processes all together. torch and tqdm would say the rest in
    lines of their own, or in a traceback.
    """
    limits = {"WORLD_SIZE": (1, 10**6), "RANK": (0, 10**6), "MASTER_PORT": (0, 65535)}
    found = {}
    for name, (least, most) in limits.items():
        if name in os.environ:
            found[name], wrong = _number(name, least, most)
            if wrong:
                return f"{wrong}; unset it, or start with torchrun"
    if "RANK" in found or found.get("WORLD_SIZE", 1) > 1:
        needed = ["WORLD_SIZE", "RANK"]
        if found.get("WORLD_SIZE", 1) > 1:
            needed += ["MASTER_ADDR", "MASTER_PORT"]
        missing = [name for name in needed if not os.environ.get(name)]
        if missing:
            there = "RANK" if "RANK" in found else "WORLD_SIZE"
            return f"{there} is set without {', '.join(missing)}; unset it, or start with torchrun"
        if found["RANK"] >= found["WORLD_SIZE"]:
            return f"RANK is {found['RANK']}, not below WORLD_SIZE, {found['WORLD_SIZE']}"
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if not re.fullmatch(r"\s*[1-9][0-9]{0,4}\s*(,\s*[1-9][0-9]{0,4}\s*)*", threads):
        return f"OMP_NUM_THREADS is {threads!r}, not a number of threads; unset it"
    return ""


def drop_what_stops_imports() -> None:
    """Open /dev/null where a standard stream is closed, and let no warning be an error.

    A closed stream's number would be the next file's, and errors would be written into that file.
    Under PYTHONWARNINGS=error a library's harmless warning would end a run.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free: this one
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115, PTH123
    if any(option.partition(":")[0] == "error" for option in sys.warnoptions):
        warnings.filters[:] = [each for each in warnings.filters if each[0] != "error"]


def allow_more_open_files() -> None:
    """Raise the soft limit of open files: a Mac's is 256, and loader processes take many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (65_536, 10_240):  # macOS refuses more than its own limit, and says no hard one
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
                return


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
    wrong = find_wrong_variable()
    if wrong:
        sys.stderr.write(f"error: {wrong}\n")
        sys.exit(2)


drop_what_stops_imports()
allow_more_open_files()
check_environment()
