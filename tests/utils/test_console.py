"""Check exit codes, the one line on stderr, log lines on stdout, progress bars and tables."""

import fcntl
import io
import logging
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from helpers import REPO

from utils.console import log, log_table, progress_bar
from utils.entrypoint import entrypoint
from utils.errors import InputError, RunError, Terminated
from utils.signals import _state


def raising(error: BaseException):
    @entrypoint
    def main(argv):
        log.info("before")
        raise error

    return main


class TestEntrypoint:
    def test_success_is_0_and_silent_on_stderr(self, capsys):
        @entrypoint
        def main(argv):
            log.info("hello %s", argv)
            log.warning("warning: random weights")

        assert main(["--a", "b"]) == 0
        assert capsys.readouterr() == ("hello ['--a', 'b']\nwarning: random weights\n", "")

    @pytest.mark.parametrize(
        ("error", "code", "line"),
        [
            (InputError("--name: bad"), 2, "error: --name: bad\n"),
            (RunError("disk full; after step 3"), 1, "error: disk full; after step 3\n"),
            (KeyboardInterrupt(), 130, "error: interrupted\n"),
            (Terminated(), 143, "error: terminated\n"),
            (InputError("two\nlines\n"), 2, "error: two\\nlines\n"),
            (RunError("two\r\n\u2028lines"), 1, "error: two\\r\\n\\u2028lines\n"),
        ],
    )
    def test_a_failure_is_a_code_and_one_line(self, capsys, error, code, line):
        assert raising(error)([]) == code
        assert capsys.readouterr() == ("before\n", line)

    @pytest.mark.parametrize(
        ("closed", "code", "said"),
        [
            ("", 0, ""),
            ("", 130, "error: interrupted\n"),
            ("2>&1", 1, ""),
            (">&-", 1, "error: disk full\n"),
            ("> /dev/full", 0, ""),
            ("> /dev/full", 1, "error: disk full\n"),
        ],
    )
    def test_nobody_needs_to_read_what_is_logged(self, closed, code, said):
        """Ctrl-C ends `| tee` too, `| head` ends by itself, and a log's disk may be full."""
        if closed == "> /dev/full" and not Path("/dev/full").exists():
            pytest.skip("only Linux has it")
        program = (
            "import sys\n"
            "from utils.entrypoint import entrypoint; from utils.console import log\n"
            "from utils.errors import RunError\n"
            "@entrypoint\n"
            "def main(argv):\n"
            "    for number in range(2): log.info('step %d', number)\n"
            "    print('and what is printed')\n"
            "    if argv[0] == '130': raise KeyboardInterrupt\n"
            "    if argv[0] == '1': raise RunError('disk full')\n"
            "sys.exit(main())\n"
        )
        buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        with subprocess.Popen(
            ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program, str(code)],
            cwd=REPO,
            env=buffered,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            process.stdout.close()
            assert process.stderr.read() == said
        assert process.returncode == code

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_real_signal_unwinds_the_stack(self, capsys, number, code):
        cleaned = []

        @entrypoint
        def main(argv):
            try:
                signal.raise_signal(number)
            finally:
                cleaned.append(True)

        before = signal.getsignal(signal.SIGTERM)
        assert main([]) == code
        assert cleaned == [True]
        assert capsys.readouterr().err.count("\n") == 1
        assert signal.getsignal(signal.SIGTERM) is before

    def test_sigterm_while_it_is_said_why_a_run_ends_changes_nothing(self, monkeypatch):
        said = []

        def write(text: str) -> None:
            signal.raise_signal(signal.SIGTERM)
            said.append(text)

        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys.stderr, "write", write)
        assert raising(RunError("disk full"))([]) == 1
        assert said == ["error: disk full\n"]
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize("error", [ZeroDivisionError("division"), SystemExit(0)])
    def test_a_defect_and_the_end_of_help_pass_through(self, error):
        with pytest.raises(type(error)) as caught:
            raising(error)([])
        assert caught.value is error

    def test_no_arguments_are_those_of_the_process(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["train.py", "--x"])
        seen = []
        main = entrypoint(seen.append)
        assert (main(), main(("--y",))) == (0, 0)
        assert seen == [["--x"], ["--y"]]

    @pytest.mark.parametrize("error", [None, RunError("x")])
    def test_leaves_the_log_as_it_was(self, capsys, error):
        handlers = list(log.handlers)

        @entrypoint
        def main(argv):
            log.info("once")
            if error:
                raise error

        main([])
        main([])
        assert capsys.readouterr().out == "once\nonce\n"
        assert log.handlers == handlers

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_no_line_is_lost_and_none_is_obeyed(self, monkeypatch, encoding):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)

        @entrypoint
        def main(argv):
            log_table("t\u202eitle", {"class": "猫\n\x1b[31m", "loss": 0.5})
            sys.stdout.write("printed 猫\n")
            raise RunError("猫\x1b[2J é")

        assert main([]) == 1
        cat = "猫" if encoding == "utf-8" else "\\u732b"
        e = "\\xe9" if encoding == "ascii" else "é"
        said = [stream.buffer.getvalue().decode(encoding) for stream in (out, err)]
        assert said == [
            f"t\\u202eitle\n  class  {cat}\\n\\x1b[31m\n  loss   0.5000\nprinted {cat}\n",
            f"error: {cat}\\x1b[2J {e}\n",
        ]

    def test_works_off_the_main_thread(self, capsys):
        codes = []
        main = raising(InputError("x"))
        thread = threading.Thread(target=lambda: codes.append(main([])))
        thread.start()
        thread.join()
        assert codes == [2]
        assert _state.code is None  # else no signal would be obeyed any more
        assert capsys.readouterr().err == "error: x\n"


class TestProgress:
    def test_is_silent_off_a_terminal(self, capsys):
        with progress_bar(3, "train", "step") as bar:
            bar.update()
            assert bar.disable
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(("done", "remaining"), [(0, "33:19"), (232, "29:27"), (1999, "00:00")])
    def test_what_was_done_before_does_not_count_as_speed(self, monkeypatch, done, remaining):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with progress_bar(2000, "train", "step", done) as bar:
            one_step = {**bar.format_dict, "n": done + 1, "elapsed": 1.0}  # which took a second
        assert f"{done + 1}/2000 [00:01<{remaining}, " in bar.format_meter(**one_step)

    def test_shows_rate_and_eta_on_a_terminal(self, monkeypatch):
        controller, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        with os.fdopen(terminal, "w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            with progress_bar(4, "train", "step") as bar:
                bar.update(2)
                bar.refresh()
            shown = ""
            while "2/4" not in shown and select.select([controller], [], [], 10)[0]:
                shown += os.read(controller, 10_000).decode()  # a terminal gives it in pieces
        os.close(controller)
        assert "train" in shown
        assert "2/4" in shown
        assert "step" in shown
        assert "<" in shown  # elapsed<remaining


def test_the_table_is_aligned(caplog):
    with caplog.at_level(logging.INFO, logger=log.name):
        log_table("metrics on val", {"loss": 0.5, "samples": 4, "a longer name": "x"})
    assert caplog.messages == [
        "metrics on val",
        "  loss           0.5000",
        "  samples        4",
        "  a longer name  x",
    ]
