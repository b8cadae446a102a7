"""utils/data/readers/matlab.py: MATLAB 5 files, read or refused before scipy trips over them."""

import io
import resource
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_objects import cells
from scipy.io import savemat
from scipy.sparse import coo_array

from utils.data.readers.matlab import (
    HEADER,
    MAX_UNPACKED,
    load_mat,
    read_numbers,
    read_texts,
    whole_numbers,
)
from utils.errors import InputError

NUMBERS = [[3, 1, 2]]


def mat(is_compressed: bool = False) -> bytes:
    """A file of three numbers, a text in a cell, and a struct."""
    file = io.BytesIO()
    variables = {"numbers": np.array(NUMBERS), "names": cells(["rose"]), "one": {"a": 1.5}}
    savemat(file, variables, do_compression=is_compressed)
    return file.getvalue()


def compressed(content: bytes) -> bytes:
    """A file of one compressed element."""
    return mat()[:HEADER] + struct.pack("<II", 15, len(content)) + content


def with_type(kind: int) -> bytes:
    """A file whose first numbers are said to be of another type; scipy dies of 8 and of 200."""
    data = bytearray(mat())
    tag = data.index(struct.pack("<II", 12, 24))  # three of type int64
    data[tag : tag + 4] = struct.pack("<I", kind)
    return bytes(data)


def matrix(kind: int, *sizes: int) -> bytes:
    """A matrix of a class that says how many items it has, and holds none."""
    about = struct.pack(f"<6I{len(sizes)}i", 6, 8, kind, 0, 5, 4 * len(sizes), *sizes)
    content = about + struct.pack("<II", 1, 0)  # no name
    return struct.pack("<II", 14, len(content)) + content


CELL, STRUCT, CHAR = 1, 2, 4
HALF = struct.pack("<II", 2, MAX_UNPACKED // 2) + bytes(MAX_UNPACKED // 2)
TOO_MUCH = {
    "cells": mat()[:HEADER] + matrix(CELL, 40_000, 40_000),
    "packed cells": compressed(zlib.compress(matrix(CELL, 1, 2_000_000_000))),
    "packed texts": compressed(zlib.compress(matrix(CHAR, 2**30, 1))),
    "structs": mat()[:HEADER] + matrix(STRUCT, 2**20, 2**5, 2**5, 2**2),
    "zeros": compressed(zlib.compress(bytes(MAX_UNPACKED + 1))),
    "zeros in two parts": mat()[:HEADER] + 2 * compressed(zlib.compress(HALF))[HEADER:],
}

DAMAGED = {
    "empty": b"",
    "another file": b"<html><body>404 Not Found</body></html>" * 9,
    "header alone, cut": mat()[: HEADER - 1],
    "tag cut": mat() + b"\x0f\0\0\0",
    "content cut": mat()[:-8],
    "compressed content cut": mat(is_compressed=True)[:-8],
    "more than there is": mat() + struct.pack("<II", 14, 8),
    "rubbish at the end": mat() + b"rubbish " * 4,
    **{f"type {kind}": with_type(kind) for kind in (0, 8, 10, 11, 19, 20, 200)},
    "a stream without its end": compressed(zlib.compress(mat()[HEADER:])[:-6]),
    "a stream with a wrong checksum": compressed(zlib.compress(mat()[HEADER:])[:-1] + b"?"),
}


class TestLoadMat:
    @pytest.mark.parametrize("is_compressed", [True, False])
    def test_gives_the_variables(self, tmp_path, is_compressed):
        (tmp_path / "a.mat").write_bytes(mat(is_compressed))
        variables = load_mat(tmp_path / "a.mat", "fetch it again")
        assert variables["numbers"].tolist() == NUMBERS
        assert read_texts(tmp_path, "names", variables["names"], "") == ["rose"]

    @pytest.mark.parametrize("size", [1, 3])  # one is small enough to stand in its tag
    @pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    def test_takes_numbers_of_every_type(self, tmp_path, kind, size):
        savemat(tmp_path / "a.mat", {"a": np.arange(size, dtype=kind), "b": "text after it"})
        variables = load_mat(tmp_path / "a.mat", "fetch it again")
        assert whole_numbers(variables["a"]).tolist() == list(range(size))
        assert variables["b"].tolist() == ["text after it"]

    def test_reads_the_other_byte_order(self, tmp_path):
        # One 8-byte float called `a`, from a machine with the other order.
        name, number = struct.pack(">HHcxxx", 1, 1, b"a"), struct.pack(">IId", 9, 8, 7.0)
        matrix = struct.pack(">IIIIIIii", 6, 8, 6, 0, 5, 8, 1, 1) + name + number
        header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\0MI"
        content = header + struct.pack(">II", 14, len(matrix)) + matrix
        (tmp_path / "a.mat").write_bytes(content)
        assert load_mat(tmp_path / "a.mat", "fetch it again")["a"].tolist() == [[7]]

    @pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
    def test_refuses_what_is_damaged(self, tmp_path, content):
        (tmp_path / "a.mat").write_bytes(content)
        with pytest.raises(
            InputError, match=r"a.mat is not a readable MATLAB 5 file \(\w+\); fetch it again$"
        ):
            load_mat(tmp_path / "a.mat", "fetch it again")

    @pytest.mark.parametrize("content", TOO_MUCH.values(), ids=TOO_MUCH)
    def test_refuses_what_would_take_gigabytes(self, tmp_path, content):
        (tmp_path / "a.mat").write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError, match=r"a.mat is not a readable MATLAB 5 file"):
            load_mat(tmp_path / "a.mat", "fetch it again")
        unit = 1 if sys.platform == "darwin" else 1024
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
        assert taken < 4 * MAX_UNPACKED

    def test_takes_a_sparse_matrix(self, tmp_path):
        savemat(tmp_path / "a.mat", {"a": coo_array(([7], ([3], [4])), shape=(10**4, 10**4))})
        assert load_mat(tmp_path / "a.mat", "fetch it again")["a"].sum() == 7

    @settings(max_examples=200)
    @given(data=st.data())
    def test_survives_random_damage(self, tmp_path_factory, data):
        """Of a compressed file, as the official ones are."""
        content = bytearray(mat(is_compressed=True))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(HEADER, len(content)))
            content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        path = tmp_path_factory.getbasetemp() / "damaged.mat"
        path.write_bytes(content)
        try:
            variables = load_mat(path, "fetch it again")
        except InputError as error:
            assert str(error).endswith("; fetch it again")  # noqa: PT017 - either will do
        else:  # damage that put back what was there, or took a variable away as a whole
            assert variables.get("numbers", np.array(NUMBERS)).tolist() == NUMBERS


class TestValues:
    @pytest.mark.parametrize(
        ("values", "numbers"),
        [
            ([[1, 2]], [1, 2]),
            ([[1.0], [-2.0]], [1, -2]),
            ([[True]], None),
            ([[1.5]], None),
            ([[np.nan]], None),
            ([[np.inf]], None),
            ([[1e300]], None),
            ([["1"]], None),
            ([[1j]], None),
            ([], []),
            (7, [7]),
        ],
    )
    def test_whole_numbers(self, values, numbers):
        found = whole_numbers(np.array(values))
        assert (found if found is None else found.tolist()) == numbers
        assert whole_numbers(values) is None  # no array

    @pytest.mark.parametrize(
        ("value", "said"),
        [(["a b"], "a b"), ("a", "a"), ([""], None), (["a", "b"], None), ([1], None), ([], None)],
    )
    def test_texts(self, value, said):
        cell = cells(["a", np.array(value)])
        if said is not None:
            assert read_texts(Path("a.mat"), "names", cell, "fetch it again") == ["a", said]
            return
        with pytest.raises(InputError, match=r"^a.mat: names 2 is empty or not a text; fetch it"):
            read_texts(Path("a.mat"), "names", cell, "fetch it again")

    @pytest.mark.parametrize("values", [None, "text", np.ones(3)])
    def test_of_another_kind_are_refused(self, values):
        with pytest.raises(InputError, match=r"^a.mat has no 'x' made of texts; fetch it again$"):
            read_texts(Path("a.mat"), "x", values, "fetch it again")
        with pytest.raises(InputError, match=r"^a.mat has no 'x' made of whole numbers; fetch it"):
            read_numbers(Path("a.mat"), "x", np.array(["1"]), "fetch it again")
