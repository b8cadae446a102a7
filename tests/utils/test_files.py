"""Check that a file is written whole or not at all, and that JSON has one spelling."""

import errno
import fcntl
import hashlib
import json
import os
import socket
from pathlib import Path

import pytest
from helpers import files_up_to
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.files import (
    canonical_json,
    kind_of,
    open_atomic,
    open_regular,
    read_regular,
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


class TestText:
    @settings(max_examples=50, deadline=None)
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
    @settings(max_examples=50, deadline=None)
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

    @settings(max_examples=100, deadline=None)
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
    @settings(max_examples=30, deadline=None)
    @given(data=st.binary(max_size=300))
    def test_of_a_file_is_that_of_its_bytes(self, tmp_path_factory, data):
        path = tmp_path_factory.getbasetemp() / "bytes"
        path.write_bytes(data)
        assert sha256_file(path) == hashlib.sha256(data).hexdigest()

    def test_of_text_is_that_of_its_utf8_bytes(self):
        assert sha256_text("ü") == hashlib.sha256(b"\xc3\xbc").hexdigest()
