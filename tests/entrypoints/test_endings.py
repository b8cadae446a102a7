"""A signal ends a program at any moment: its exit code, one line, and nothing lost."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forked import CONTEXT, begin
from helpers import REPO, TINY_TRAIN

from utils.console import log
from utils.data_utils import RunPaths
from utils.run.snapshot import SnapshotStore, load_snapshot

ENDINGS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
SIGNALS = pytest.mark.parametrize("signum", ENDINGS, ids=lambda signum: signum.name)
# Sends the signal when `WHERE` is imported, from a library's view in the midst of it.
AT_IMPORT = """
import os, runpy, sys
signum, where, *sys.argv = sys.argv[1:]
sent = []
def hook(event, arguments):
    if event == "import" and arguments[0] == where and not sent:
        sent.append(True)
        os.kill(os.getpid(), int(signum))
sys.addaudithook(hook)
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@SIGNALS
@pytest.mark.parametrize(
    "command",
    [
        "ml_collections train.py --name a --dataset nowhere",
        "numpy._core.multiarray train.py --name a --dataset nowhere",
        "torch.nn train.py --name a --dataset synthetic",
        "models.configs eval.py --name a --checkpoint nowhere",
        "utils.console scripts/get_flowers.py --out nowhere",
        "utils.data.image_checks scripts/check_data.py synthetic nowhere",
        "utils.console scripts/draw_parts.py --predictions nowhere",
        "utils.console scripts/dev/soak.py kills",
    ],
    ids=lambda command: " ".join(command.split()[:2]),
)
def test_imports_end_with_one_line(signum, command, tmp_path, drawn):
    where, *argv = shlex.split(command)
    if where == "torch.nn":
        argv += [*shlex.split(TINY_TRAIN), "--data_root", str(drawn)]
        argv += ["--output_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, str(int(signum)), where, *argv],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (128 + signum, f"error: {ENDINGS[signum]}\n")


RUN = f"--name run --dataset synthetic {TINY_TRAIN} --log_every 1 --save_every 3"


def _train_and_signal(
    argv: list[str], output: Path, at_save: bool, signums: list[int], is_ignored: bool
) -> None:
    """Train in this forked process; signals come in the second step or while it is saved."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    place, name = (SnapshotStore, "save") if at_save else (log, "info")
    real, waiting = getattr(place, name), [signums]

    def told(*args: object) -> object:
        is_now = at_save or args[:2] == ("step %d/%d  %s", 2)
        for signum in waiting.pop() if waiting and is_now else ():
            os.kill(os.getpid(), signum)
        return real(*args)

    setattr(place, name, told)
    begin("train.py", argv, output, {}, None)


@pytest.mark.parametrize(
    ("signums", "at_save", "is_ignored", "code", "saved"),
    [
        ([signal.SIGHUP], False, False, 129, 2),
        ([signal.SIGHUP, signal.SIGHUP], False, False, 129, 2),  # a terminal and its shell
        ([signal.SIGHUP], False, True, 0, 4),  # nohup
        ([signal.SIGTERM, signal.SIGINT], False, False, 130, 0),
        ([signal.SIGINT, signal.SIGTERM], True, False, 143, None),
        ([signal.SIGHUP, signal.SIGTERM], True, False, 143, None),
        ([signal.SIGHUP], True, False, 129, None),
    ],
)
def test_training_obeys(signums, at_save, is_ignored, code, saved, drawn, tmp_path):
    argv = [*shlex.split(RUN), "--data_root", str(drawn), "--output_dir", str(tmp_path / "out")]
    output, paths = tmp_path / "said", RunPaths(tmp_path / "out", "run")
    told = (argv, output, at_save, signums, is_ignored)
    process = CONTEXT.Process(target=_train_and_signal, args=told)
    process.start()
    process.join()
    said = [line for line in output.read_text("utf-8").splitlines() if "error" in line.lower()]
    expected = [f"error: {ENDINGS[code - 128]}"] if code else []
    assert (process.exitcode, said) == (code, expected), output.read_text("utf-8")
    assert "Traceback" not in output.read_text("utf-8")
    if saved is not None:
        assert load_snapshot(paths.last).header.step == saved
