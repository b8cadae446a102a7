"""A signal ends a program at any moment: its exit code, one line, and nothing lost."""

import errno
import gc
import importlib
import os
import pty
import resource
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
from forked import CONTEXT, begin
from helpers import REPO, TINY_EVAL, TINY_TRAIN

from utils import watch
from utils.data import loaders
from utils.data.resized_images import FileImages
from utils.data_utils import RunPaths
from utils.evaluation.predictions import predictions_digest
from utils.files import UNFINISHED
from utils.run.snapshot import SnapshotStore, load_snapshot
from utils.training.progress import Progress

INT, TERM, HUP, QUIT = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT
ENDINGS = {INT: "interrupted", TERM: "terminated", HUP: "hung up"}
# Sends the signals at an event: an import, a call of the system, or where Python ends.
AT_EVENT = """
import atexit, os, runpy, sys
signums, where, *sys.argv = sys.argv[1:]
left = signums.split(",")
def send():
    while left:
        os.kill(os.getpid(), int(left.pop()))
def hook(event, arguments):
    if where == (arguments[0] if event == "import" else event):
        send()
sys.addaudithook(hook)
if where == "end":
    atexit.register(send)
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_at_event(
    signums: list[int], where: str, argv: list[str], **variables: str
) -> tuple[int, str]:
    """Run a program to which signals come at an event; return its exit code and stderr."""
    numbers = ",".join(str(int(signum)) for signum in signums)
    done = subprocess.run(
        [sys.executable, "-c", AT_EVENT, numbers, where, *argv],
        cwd=REPO,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("where", "signum", "command"),
    [
        *(("numpy._core.multiarray", each, "train.py --name a --dataset no") for each in ENDINGS),
        ("ml_collections", HUP, "train.py --name a --dataset no"),
        ("torch.nn", INT, f"train.py --name a --dataset synthetic {TINY_TRAIN}"),
        ("torch._C", TERM, f"train.py --name a --dataset synthetic {TINY_TRAIN}"),
        ("models.configs", TERM, "eval.py --name a --checkpoint no"),
        ("utils.console", INT, "scripts/draw_parts.py --predictions no"),
        ("utils.data.image_checks", TERM, "scripts/check_data.py synthetic no"),
        ("utils.console", HUP, "scripts/dev/soak.py kills"),
        ("socket.getaddrinfo", INT, "scripts/get_flowers.py DATA"),
        ("os.exec", TERM, "train.py --name a --dataset no"),  # it starts itself again
    ],
)
def test_imports_and_waits_end_with_one_line(where, signum, command, tmp_path, drawn):
    argv = command.replace("DATA", str(tmp_path / "data")).split()
    if "synthetic" in argv and argv[0] == "train.py":
        argv += ["--data_root", str(drawn), "--output_dir", str(tmp_path)]
    ascii_names = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    variables = ascii_names if where == "os.exec" else {}
    ended = run_at_event([signum], where, argv, **variables)
    assert ended == (128 + signum, f"error: {ENDINGS[signum]}\n")


@pytest.mark.parametrize(
    ("signums", "argv", "code"),
    [
        ([TERM], ["train.py", "--recipe", "list"], 0),
        ([TERM, INT], ["eval.py", "--name", "a", "--checkpoint", "nowhere"], 2),
    ],
)
def test_what_ends_is_left_to_end(signums, argv, code):
    """Its exit code is decided, and its line is said."""
    ended, said = run_at_event(signums, "end", argv)
    assert (ended, said.count("\n"), "nowhere" in said) == (code, code // 2, code == 2), said


RUN = f"--name run --dataset synthetic {TINY_TRAIN} --log_every 1 --save_every 3"


def _begin_and_act(
    place: type | str, name: str, calls: int, act: Callable[[], None], *arguments: object
) -> None:
    """Run a program in this forked process, which acts before such a call of a function.

    The function is one of a class, or of the module of that name.
    """
    for signum in (HUP, QUIT):  # which whoever started the tests may have ignored
        signal.signal(signum, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    place = importlib.import_module(place) if isinstance(place, str) else place
    real, left = getattr(place, name), [None] * calls

    def told(*args: object, **kwargs: object) -> object:
        if left:
            left.pop()
            if not left:
                act()
        return real(*args, **kwargs)

    setattr(place, name, told)
    begin(*arguments)


class Send:
    """Send signals to this process or to its parent."""

    def __init__(self, *signums: int, to_parent: bool = False) -> None:
        self.signums, self.to_parent = signums, to_parent

    def __call__(self) -> None:
        for signum in self.signums:
            os.kill(os.getppid() if self.to_parent else os.getpid(), signum)


class Ignoring(Send):
    """As `nohup` does."""

    def __call__(self) -> None:
        signal.signal(HUP, signal.SIG_IGN)
        super().__call__()


class SendAndHang(Send):
    """What a loader does that waits for a file of a disk that is gone."""

    def __call__(self) -> None:
        super().__call__()
        threading.Event().wait()


class SwallowAndHang(Send):
    """What a library does that takes every exception for a failure of its own."""

    def __call__(self) -> None:
        watch.MOST_SECONDS = 0
        with suppress(BaseException):
            super().__call__()
        threading.Event().wait()


class SendInDel(Send):
    """Where Python lets no exception through."""

    def __call__(self) -> None:
        send = super().__call__

        class Deleted:
            def __del__(self) -> None:
                send()

        Deleted()
        threading.Event().wait()


def run_forked(script: str, argv: list[str], output: Path, when: tuple) -> tuple[int, str]:
    """Run a program in a forked process; return its exit code and what it says."""
    process = CONTEXT.Process(
        target=_begin_and_act, args=(*when, script, [*map(str, argv)], output, {}, None)
    )
    process.start()
    process.join()
    return process.exitcode, output.read_text("utf-8")


# Called once a step after the step, and as often as there are saves: at step 0, 2, 3, 4.
IN_STEP, IN_SAVE = (Progress, "is_save_due"), (SnapshotStore, "save")


@pytest.mark.parametrize(
    ("when", "code", "saved"),
    [
        ((*IN_STEP, 1, Send(HUP)), 129, 1),
        ((*IN_STEP, 1, Send(HUP, HUP)), 129, 1),  # a terminal and its shell
        ((*IN_STEP, 1, Ignoring(HUP)), 0, 4),
        ((*IN_STEP, 3, Send(QUIT)), -QUIT, 2),
        ((*IN_STEP, 1, SendAndHang(TERM, INT)), 130, 0),
        ((*IN_SAVE, 2, SendAndHang(INT, TERM)), 143, 0),
        ((*IN_SAVE, 2, SendAndHang(HUP, TERM)), 143, 0),
        ((*IN_SAVE, 2, Send(HUP)), 129, 2),
        ((*IN_SAVE, 3, Send(QUIT)), -QUIT, 2),
    ],
)
def test_training_obeys(when, code, saved, drawn, tmp_path):
    paths = RunPaths(tmp_path / "out", "run")
    argv = [*shlex.split(RUN), "--data_root", drawn, "--output_dir", paths.output_dir]
    ended, said = run_forked("train.py", argv, tmp_path / "said", when)
    errors = [line for line in said.splitlines() if "error" in line.lower()]
    expected = [f"error: {ENDINGS[code - 128]}"] if code > 0 else []
    assert (ended, errors) == (code, expected), said
    assert "Traceback" not in said
    assert load_snapshot(paths.last).header.step == saved


@pytest.mark.parametrize(
    ("script", "view"),
    [("train.py", "TrainView"), ("train.py", "EvalView"), ("eval.py", "EvalView")],
)
def test_a_wait_for_a_loader_ends(script, view, drawn, finished_run, tmp_path):
    """The loader sends the signal to the main process, and never gives it the batch."""
    flags = f"{RUN} --num_workers 1"
    if script == "eval.py":
        flags = f"--name run {TINY_EVAL} --num_workers 1 --checkpoint {finished_run.checkpoint}"
    argv = [*shlex.split(flags), "--data_root", drawn, "--output_dir", tmp_path / "out"]
    when = (getattr(loaders, view), "__call__", 7, SendAndHang(TERM, to_parent=True))
    code, said = run_forked(script, argv, tmp_path / "said", when)
    assert (code, said.count("error: terminated\n")) == (143, 1), said
    assert "Traceback" not in said
    if script == "train.py":
        assert "stopped by SIGTERM after step" in said
        load_snapshot(RunPaths(tmp_path / "out", "run").last)


@pytest.mark.parametrize(
    ("place", "name", "calls", "signum"),
    [
        ("utils.data.readers.synthetic", "draw_flower", 20, TERM),
        (FileImages, "load", 5, INT),  # into the cache
    ],
)
def test_what_is_half_built_is_cleared_away(place, name, calls, signum, drawn, tmp_path):
    argv = [*shlex.split(RUN), "--cache", "disk", "--output_dir", tmp_path / "out"]
    if name == "load":
        argv += ["--data_root", drawn]
    when = (place, name, calls, Send(signum))
    ended = run_forked("train.py", argv, tmp_path / "said", when)
    assert ended[0] == 128 + signum
    assert ended[1].endswith(f"error: {ENDINGS[signum]}\n")
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(UNFINISHED)] == []


@pytest.mark.parametrize("act", [SwallowAndHang(TERM), SendInDel(TERM)])
def test_a_signal_whose_exception_is_lost_is_obeyed(act, tmp_path):
    argv = [*shlex.split(RUN), "--output_dir", tmp_path / "out"]
    when = ("utils.data.readers.synthetic", "draw_flower", 3, act)
    code, said = run_forked("train.py", argv, tmp_path / "said", when)
    assert (code, said.count("error: terminated\n"), "Traceback" in said) == (143, 1, False), said


class ThenCollect:
    """Do something, and collect garbage when the process ends."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __call__(self) -> None:
        Finalize(None, gc.collect, exitpriority=0)
        self.act()


class FailToFork:
    """What the system does where a user may have no more processes."""

    def __call__(self) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize(
    ("act", "code", "line"),
    [
        (Send(TERM), 143, "error: terminated\n"),
        (Send(INT), 130, "error: interrupted\n"),
        (FailToFork(), 1, "error: "),
    ],
)
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_a_loader_that_is_half_made_adds_no_line(
    script, act, code, line, drawn, finished_run, tmp_path
):
    """It has started one of two processes, and torch's own clearing misses what was to follow.

    That comes when Python collects garbage, here when the process ends at the latest.
    """
    flags = RUN
    if script == "eval.py":
        flags = f"--name run {TINY_EVAL} --checkpoint {finished_run.checkpoint}"
    argv = [*shlex.split(flags), "--num_workers", 2, "--data_root", drawn]
    when = (BaseProcess, "start", 2, ThenCollect(act))
    argv += ["--output_dir", tmp_path / "out"]
    ended, said = run_forked(script, argv, tmp_path / "said", when)
    assert (ended, said.count(line), said.count("error")) == (code, 1, 1), said
    assert "Traceback" not in said


class CloseTerminal:
    """Put stderr on a terminal, and close it and stdout after the second step."""

    def __call__(self) -> None:
        ours, theirs = pty.openpty()
        os.dup2(theirs, 2)
        os.close(theirs)

        def close(self: Progress, config: object) -> bool:
            if self.step == 2:
                os.close(ours)
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, 1)
            return real(self, config)

        real, Progress.is_save_due = Progress.is_save_due, close


def test_nobody_needs_to_see_the_bar(drawn, tmp_path):
    argv = [*shlex.split(RUN), "--data_root", drawn, "--output_dir", tmp_path / "out"]
    when = (*IN_SAVE, 1, CloseTerminal())
    code, said = run_forked("train.py", argv, tmp_path / "said", when)
    assert code == 0, said
    assert load_snapshot(RunPaths(tmp_path / "out", "run").last).header.step == 4


def _state_of(pid: int) -> str:
    command = ["ps", "-o", "state=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout[:1]


def test_what_is_stopped_and_continued_ends_the_same(drawn, tmp_path):
    results = []
    for name, act in (("whole", Send()), ("stopped", Send(signal.SIGSTOP))):
        paths = RunPaths(tmp_path / name, "run")
        argv = [*shlex.split(RUN), "--data_root", str(drawn), "--num_workers", "1"]
        argv += ["--output_dir", str(paths.output_dir)]
        started = (*IN_STEP, 1, act, "train.py", argv, tmp_path / f"{name}.txt", {}, None)
        process = CONTEXT.Process(target=_begin_and_act, args=started)
        process.start()
        while name == "stopped" and _state_of(process.pid) != "T":
            process.join(0.02)
            assert process.is_alive()
        os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert process.exitcode == 0, (tmp_path / f"{name}.txt").read_text("utf-8")
        digest = predictions_digest(paths.predictions)
        results.append((paths.checkpoint.read_bytes(), paths.metrics.read_bytes(), digest))
    assert results[0] == results[1]
