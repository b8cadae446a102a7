"""Check that a file is written whole or not at all, and that JSON has one spelling."""

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import REPO, files_up_to
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data_utils import free_bytes
from utils.errors import InputError, os_errors_are_input_errors
from utils.files import (
    canonical_json,
    kind_of,
    open_atomic,
    open_regular,
    read_regular,
    remove_unfinished,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestOpenRegular:
    def test_opens_a_file_and_what_links_to_one(self, tmp_path):
        (tmp_path / "a").write_bytes(b"x")
        (tmp_path / "b").symlink_to("a")
        for name in ("a", "b"):
            assert read_regular(tmp_path / name) == b"x"

    @pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", None])
    def test_refuses_anything_else_at_once(self, tmp_path, monkeypatch, kind):
        monkeypatch.chdir(tmp_path)  # a socket's path has at most 107 bytes
        path = Path("x")
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind("x")
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        assert kind_of(path) == kind
        reason = {"folder": "Is a directory", None: "No such file"}.get(
            kind, f"it is a {kind}, not"
        )
        with pytest.raises(OSError, match=reason) as caught:
            open_regular(path)
        assert caught.value.filename == "x"


class TestOpenAtomic:
    def test_writes_the_file_and_its_parents(self, tmp_path):
        path = tmp_path / "a" / "b" / "c.bin"
        with open_atomic(path) as file:
            file.write(b"\x00new")
        assert path.read_bytes() == b"\x00new"
        assert names_in(path.parent) == ["c.bin"]

    def test_a_reader_sees_the_old_file_until_the_end(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(b"old")
        with open_atomic(path) as file:
            file.write(b"new" * 100_000)
            file.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new" * 100_000

    @pytest.mark.parametrize("stop", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
    @pytest.mark.parametrize("old", [b"old", None])
    def test_a_failure_midway_leaves_what_was_there(self, tmp_path, stop, old):
        path = tmp_path / "f"
        if old is not None:
            path.write_bytes(old)
        with pytest.raises(stop, match="midway"), open_atomic(path) as file:  # noqa: PT012
            file.write(b"half")
            raise stop("midway")
        assert (path.read_bytes() if path.exists() else None) == old
        assert names_in(tmp_path) == ([] if old is None else ["f"])

    @pytest.mark.parametrize("is_known", [True, False])
    def test_asks_a_macs_drive_itself(self, tmp_path, monkeypatch, is_known):
        """fsync leaves bytes in the memory of the drive there."""
        asked = []

        def full_sync(descriptor: int, command: int) -> None:
            asked.append(command)
            if not is_known:
                raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", full_sync)
        monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append("fsync"))
        with open_atomic(tmp_path / "f") as file:
            file.write(b"content")
        assert asked == ([51] if is_known else [51, "fsync"]) * 2  # the file, then its folder
        assert (tmp_path / "f").read_bytes() == b"content"

    def test_a_disk_that_is_full_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(b"old")
        with (
            files_up_to(1000),
            pytest.raises(OSError, match="File too large"),
            open_atomic(path) as file,
        ):
            file.write(b"x" * 100_000)
        assert path.read_bytes() == b"old"
        assert names_in(tmp_path) == ["f"]

    def test_the_parent_being_a_file_is_an_os_error(self, tmp_path):
        (tmp_path / "f").write_text("x")
        with pytest.raises(OSError, match="f"), open_atomic(tmp_path / "f" / "g"):
            pass
        assert (tmp_path / "f").read_text() == "x"


def failing(code: int):
    """Stands in for a call of the system that fails without naming a file."""

    def call(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


class TestOtherFileSystems:
    """What SMB, exFAT, FUSE and network drives do not know is done without, or named."""

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
    def test_that_cannot_be_waited_for_keep_the_file(self, tmp_path, monkeypatch, code):
        monkeypatch.setattr(os, "fsync", failing(code))
        write_text(tmp_path / "f", "new")
        assert read_regular(tmp_path / "f") == b"new"

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL])
    def test_whose_folders_cannot_be_opened_keep_the_file(self, tmp_path, monkeypatch, code):
        monkeypatch.setattr(os, "open", failing(code))
        write_text(tmp_path / "f", "new")
        assert read_regular(tmp_path / "f") == b"new"

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
    def test_whose_disk_fails_are_a_failure_that_names_the_file(self, tmp_path, monkeypatch, code):
        write_text(tmp_path / "f", "old")
        monkeypatch.setattr(os, "fsync", failing(code))
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            write_text(tmp_path / "f", "new")
        assert caught.value.filename == str(tmp_path / "f")
        assert names_in(tmp_path) == ["f"]
        assert read_regular(tmp_path / "f") == b"old"

    @pytest.mark.parametrize("code", [errno.EEXIST, errno.EPERM, errno.ENOTSUP])
    def test_that_replace_no_file_are_named_with_the_remedy(self, tmp_path, monkeypatch, code):
        write_text(tmp_path / "f", "old")
        monkeypatch.setattr(os, "replace", failing(code))
        message = r"this disk does not replace files; use a folder on another disk: '.*/f'$"
        with pytest.raises(OSError, match=message):
            write_text(tmp_path / "f", "new")
        assert names_in(tmp_path) == ["f"]
        assert read_regular(tmp_path / "f") == b"old"

    def test_an_error_of_reading_names_the_file(self, tmp_path):
        """Reading a folder opens it well, and fails without a name."""
        message = rf"^--data_root {tmp_path}: Is a directory$"
        with pytest.raises(InputError, match=message), os_errors_are_input_errors():
            read_regular(tmp_path)

    def test_that_do_not_say_how_full_they_are(self, tmp_path, monkeypatch):
        assert free_bytes(tmp_path) > 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", failing(errno.ENOSYS))
            assert free_bytes(tmp_path) is None
        usage = shutil.disk_usage(tmp_path)._replace(total=0, free=0)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        assert free_bytes(tmp_path) is None

    @pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, ".hidden" + "x" * 200])
    def test_hold_a_file_of_as_long_a_name_as_they_take(self, tmp_path, name):
        write_text(tmp_path / name, "new")
        assert names_in(tmp_path) == [name]


# Writes a file, and stands still in the middle.
WRITER = """
import sys
from pathlib import Path
from utils.files import open_atomic
with open_atomic(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """A process that writes `f`, and is in the middle of it."""
    argv = [sys.executable, "-c", WRITER, str(tmp_path / "f")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, cwd=REPO, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "half\n"
    yield process
    process.kill()
    process.communicate()


class TestWhatKilledWritersLeft:
    def test_is_cleared_by_the_next_and_that_of_a_live_one_is_kept(self, tmp_path, writer):
        mine = [".notes.tmp", "f.1.tmp", ".g.123.tmp", ".f.tmp", ".f.x.tmp"]
        for name in mine:
            (tmp_path / name).touch()
        (half,) = set(names_in(tmp_path)) - {*mine}
        write_text(tmp_path / "f", "new")
        remove_unfinished(tmp_path / "none")
        assert names_in(tmp_path) == sorted([*mine, "f", half])
        writer.kill()
        writer.wait()
        assert (tmp_path / half).read_bytes() == b"half"
        write_text(tmp_path / "f", "new")
        assert names_in(tmp_path) == sorted([*mine, "f"])

    def test_of_a_run_is_cleared_wherever_it_is_in_its_folder(self, tmp_path, writer):
        kept = names_in(tmp_path)
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / ".last.bin.77.tmp").touch()  # of an older version
        remove_unfinished(tmp_path)
        assert names_in(tmp_path) == [*kept, "checkpoints"]
        assert names_in(tmp_path / "checkpoints") == []
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        remove_unfinished(tmp_path)
        assert names_in(tmp_path) == ["checkpoints"]

    @pytest.mark.parametrize("why", ["no locks", "another host"])
    def test_is_cleared_after_a_week_where_a_lock_says_nothing(
        self, tmp_path, writer, monkeypatch, why
    ):
        writer.kill()
        writer.wait()
        (half,) = names_in(tmp_path)
        if why == "no locks":
            monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
        else:
            monkeypatch.setattr(platform, "node", lambda: "another.host")
        for days, is_kept in ((0, True), (6, True), (8, False)):
            then = time.time() - days * 24 * 3600
            os.utime(tmp_path / half, (then, then))
            write_text(tmp_path / "f", "new")
            assert (tmp_path / half).exists() == is_kept


class TestText:
    @settings(max_examples=50)
    @given(text=st.text())
    def test_is_written_in_utf8_byte_for_byte(self, tmp_path_factory, text):
        path = tmp_path_factory.getbasetemp() / "text"
        write_text(path, text)
        assert path.read_bytes() == text.encode()

    def test_that_is_not_unicode_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "f"
        path.write_text("old")
        with pytest.raises(UnicodeEncodeError, match="surrogates"):
            write_text(path, "\ud800")
        assert path.read_text() == "old"
        assert names_in(tmp_path) == ["f"]


class TestJson:
    @settings(max_examples=50)
    @given(value=JSON_VALUES)
    def test_comes_back_as_it_was(self, tmp_path_factory, value):
        path = tmp_path_factory.getbasetemp() / "value.json"
        write_json(path, value)
        text = path.read_text(encoding="utf-8")
        assert json.loads(text) == value
        assert text.endswith("\n")

    def test_names_stay_readable(self, tmp_path):
        write_json(tmp_path / "f", {"name": "Pelargonie - ü"})
        assert "Pelargonie - ü" in (tmp_path / "f").read_text(encoding="utf-8")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_a_number_that_is_not_finite_is_refused(self, tmp_path, bad):
        path = tmp_path / "f"
        path.write_text("old")
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"deep": [{"loss": bad}]})
        assert path.read_text() == "old"
        assert names_in(tmp_path) == ["f"]
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json([bad])

    @settings(max_examples=100)
    @given(value=st.dictionaries(st.text(), JSON_VALUES), seed=st.randoms(use_true_random=False))
    def test_the_canonical_spelling_ignores_the_order_of_keys(self, value, seed):
        shuffled = list(value.items())
        seed.shuffle(shuffled)
        assert canonical_json(dict(shuffled)) == canonical_json(value)
        assert json.loads(canonical_json(value)) == value

    def test_the_canonical_spelling_is_compact_and_sorted(self):
        assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'
        assert canonical_json((1, 2)) == canonical_json([1, 2])


class TestSha256:
    @settings(max_examples=30)
    @given(data=st.binary(max_size=300))
    def test_of_a_file_is_that_of_its_bytes(self, tmp_path_factory, data):
        path = tmp_path_factory.getbasetemp() / "bytes"
        path.write_bytes(data)
        assert sha256_file(path) == hashlib.sha256(data).hexdigest()

    def test_of_text_is_that_of_its_utf8_bytes(self):
        assert sha256_text("ü") == hashlib.sha256(b"\xc3\xbc").hexdigest()
