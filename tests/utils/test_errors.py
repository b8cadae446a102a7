"""Check what a person reads of an error, and which failures get a place and a step."""

import errno
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from utils.entrypoint import named_failures
from utils.errors import (
    Alone,
    InputError,
    RunError,
    Terminated,
    near_miss,
    one_line,
    printable,
)


def raised_in_a_worker(error: Exception) -> BaseException:
    """What the main process catches when `error` was raised in a loader process."""
    try:
        raise error
    except type(error):
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    try:
        wrapped.reraise()
    except Exception as caught:  # noqa: BLE001 - whatever the wrapper makes of it
        return caught


class KillsItsProcess(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


class TestNearMiss:
    @pytest.mark.parametrize(
        ("name", "choices", "meant"),
        [
            ("vit_b16", ["ViT-B_16", "ViT-B_32"], "'ViT-B_16'"),
            ("--learnig-rate", ["--learning_rate", "--layer_decay"], "'--learning_rate'"),
            ("validation", ["train", "val", "test"], "'val'"),
            ("tset", ["train", "val", "test"], "'test'"),
            ("batch_size", ["train_batch_size", "eval_batch_size"], "'eval_batch_size' or "),
            ("Gänseblumchen", ["Gänseblümchen", "Rose"], "'Gänseblümchen'"),
            ("01", ["0", "1", "10"], "'1'?"),  # a spreadsheet leaves zeros out
            ("class 7", ["class_007", "class_070"], "'class_007'?"),
            ("00", ["0", "1"], "'0'?"),
        ],
    )
    def test_names_what_is_meant(self, name, choices, meant):
        assert near_miss(name, choices).startswith(f", did you mean {meant}")

    @pytest.mark.parametrize("name", ["", "x", "resnet50"])
    def test_is_nothing_where_nothing_is_near(self, name):
        assert near_miss(name, ["val", "flower102", "ViT-B_16"]) == ""


class TestPrintable:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("\x1b[2J\r\x07\x9b", r"\x1b[2J\r\x07\x9b"),  # erases the screen, rings, begins again
            ("photo\u202egpj.exe", r"photo\u202egpj.exe"),  # shown as photoexe.jpg
            ("a\u2066b\u2069\u200e\u061c", r"a\u2066b\u2069\u200e\u061c"),
            ("ro\u200bse\ufeff\xad", r"ro\u200bse\ufeff\xad"),
            ("caf\udce9 \udcc3\udca9 \ud83d", r"caf\udce9 \udcc3\udca9 \ud83d"),
            ("caf\udce9 \udcc3\udca9", r"caf\xe9 é"),
            ("a\u2028b\x85", r"a\u2028b\x85"),
        ],
    )
    def test_writes_as_escapes_what_a_terminal_would_obey_or_not_show(self, text, shown):
        assert printable(text) == shown

    @pytest.mark.parametrize(
        "text",
        [
            "Gänseblümchen",
            "می\u200cگویم",
            "क्\u200dष",
            "\U0001f468\u200d\U0001f469",
            "at 3.14\u202fPM\u3000猫",
        ],
    )
    def test_keeps_spelling_and_spaces(self, text):
        assert printable(text) == text


class TestOneLine:
    def test_is_the_message(self):
        assert one_line(InputError("--seed x: not a number")) == "--seed x: not a number"
        assert one_line(ValueError("a\n\n  b\r\nc\n")) == "a b c"
        assert one_line(RunError("image a\nb.jpg is cut\n")) == r"image a\nb.jpg is cut"

    @pytest.mark.parametrize("error", [MemoryError(), RunError(""), RunError(" \n ")])
    def test_of_no_message_is_the_type(self, error):
        assert one_line(error) == type(error).__name__

    @settings(max_examples=50)
    @given(message=st.text())
    def test_is_one_line_that_says_something(self, message):
        for error in (ValueError(message), RunError(message)):
            line = one_line(error)
            assert len(line.splitlines()) == 1
            assert line.strip()
        joined = one_line(ValueError(message))
        assert "".join(joined.split()) in ("".join(message.split()), "ValueError")

    @pytest.mark.parametrize(
        "error",
        [
            RunError("image /x/a b.jpg cannot be decoded (cut)"),
            RunError("a: b: c"),
            RunError("no colon at all"),
            OSError(errno.EIO, "Input/output error", "/x/a.jpg"),
        ],
    )
    def test_of_a_worker_is_its_message_alone(self, error):
        raised = raised_in_a_worker(error)
        assert "Original Traceback" in str(raised)  # torch still hands it over like this
        assert one_line(raised) == str(error)

    def test_of_a_worker_with_a_cause_is_the_last_message(self):
        def fail():
            try:
                raise OSError("cause: first")
            except OSError as cause:
                raise RunError("effect: second") from cause

        with pytest.raises(RunError, match="effect") as caught:
            fail()
        error = raised_in_a_worker(caught.value)
        assert "cause: first" in str(error)
        assert one_line(error) == "effect: second"


class TestNamedFailures:
    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (RunError("image a.jpg cannot be decoded"), "image a.jpg cannot be decoded"),
            (raised_in_a_worker(RunError("image a.jpg is cut")), "image a.jpg is cut"),
            (OSError(errno.ENOSPC, "No space left on device", "/x"), "No space left on device"),
            (FileNotFoundError(errno.ENOENT, "No such file", "/x"), "No such file"),
            (MemoryError(), "memory ran out; use less"),
            (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), "out of memory"),
            (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "CUDA out of memory"),
            (RuntimeError("can't start new thread"), "can't start new thread"),
            (
                RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
                r"DataLoader worker \(pid 7\) is killed.*; .*--num_workers",
            ),
            (OSError(errno.EMFILE, "Too many open files", "/x"), "`ulimit -n` allows more"),
            (raised_in_a_worker(OSError(24, "Too many open files")), "`ulimit -n` allows more"),
            (RuntimeError("received 0 items of ancdata"), "`ulimit -n` allows more"),
            (RuntimeError("Pin memory thread exited unexpectedly"), "Pin memory thread"),
            (FileNotFoundError(2, "No usable temporary directory found in []"), "let TMPDIR"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_become_a_run_error_that_says_where(self, error, text):
        with (
            pytest.raises(RunError, match=f"{text}.*; after step 7$") as caught,
            named_failures(lambda: "after step 7", lambda: "use less"),
        ):
            raise error
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize(
        ("fail", "text"),
        [
            (lambda: torch.empty(2**52, dtype=torch.uint8), "can't allocate memory"),
            (lambda: list(DataLoader(KillsItsProcess(), num_workers=1)), "DataLoader worker"),
        ],
    )
    def test_cover_memory_and_loaders_that_are_really_lost(self, fail, text):
        with (
            pytest.raises(RunError, match=f"{text}.*; here$") as caught,
            named_failures(lambda: "here", lambda: "use less"),
        ):
            fail()
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
            raised_in_a_worker(RuntimeError("stack expects each tensor to be equal size")),
            ValueError("v"),
            InputError("i"),
            KeyboardInterrupt("c"),
            Terminated("s"),
            SystemExit("e"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_let_everything_else_through_as_it_is(self, error):
        with (
            pytest.raises(type(error)) as caught,
            named_failures(lambda: pytest.fail("asked where"), lambda: "use less"),
        ):
            raise error
        assert caught.value is error

    def test_name_the_failure_that_a_signal_interrupted(self):
        """torchrun sends SIGTERM to the processes that are left."""

        def end() -> None:
            try:
                raise RuntimeError("[/x/pair.cc:547] Connection closed by peer [::1]:4")
            finally:
                raise Terminated

        message = r"^another process of this run is gone \(Connection closed by peer .*\); here$"
        with pytest.raises(Alone, match=message), named_failures(lambda: "here", str):
            end()

    def test_ask_where_only_at_the_failure(self):
        steps = []

        def train():
            steps.extend([1, 2, 3])
            raise RunError("x")

        with (
            pytest.raises(RunError, match=r"^x; after step 3$"),
            named_failures(lambda: f"after step {steps[-1]}", str),
        ):
            train()
