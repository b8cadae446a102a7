"""utils/cli/types.py: the text of a flag becomes a value, or one line says what is expected."""

import argparse
import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.cli import types

NO_NUMBERS = ["", " ", "x", "nan", "inf", "-inf", "0x10", "1,5", "None", "True", "1e999"]
NO_INTEGERS = [*NO_NUMBERS, "1.5", "1e3", "2.0", "-1"]
# Texts that each type of numbers takes, and texts that it refuses.
NUMBERS = {
    "image_side": (["1", "224", "65536"], [*NO_INTEGERS, "0", "65537"]),
    "positive_int": (["1", "64", str(2**31 - 1)], [*NO_INTEGERS, "0", str(2**31)]),
    "batch": (["1", "1048576"], [*NO_INTEGERS, "0", "1048577"]),
    "count": (["0", "3"], [*NO_INTEGERS, str(2**31)]),
    "seed": (["0", str(2**32 - 1)], [*NO_INTEGERS, str(2**32)]),
    "workers": (["0", "1024"], [*NO_INTEGERS, "1025"]),
    "alpha": (["0", "0.001", "0.2", "1000"], [*NO_NUMBERS, "-0.1", "1e-320", "1e-4", "1e308"]),
    "positive": (["1e-9", "3e-2", "7"], [*NO_NUMBERS, "0", "-0.0", "-1e-9", "1e-999"]),
    "non_negative": (["0", "0.1", "-0.0"], [*NO_NUMBERS, "-1e-9"]),
    "fraction": (["0", "0.999"], [*NO_NUMBERS, "1", "1.0001", "-0.1"]),
    "factor": (["1e-9", "0.75", "1"], [*NO_NUMBERS, "0", "-0.0", "-0.5", "1.0001"]),
    "share": (["1e-9", "0.5"], [*NO_NUMBERS, "0", "1", "-0.1", "1.5"]),
    "probability": (["0", "0.25", "1"], [*NO_NUMBERS, "-0.1", "1.0001"]),
    "fold_count": (["2", "5", "1000"], [*NO_INTEGERS, "1", "1001"]),
    "cosine": (["-1", "0", "0.4", "1"], [*NO_NUMBERS, "1.0001", "-1.0001"]),
}


def refused(kind, text: str) -> str:
    """What is said of a text that a type refuses."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        kind(text)
    message = str(caught.value)
    assert message.startswith(f"{text!r} is ")
    assert len(message.splitlines()) == 1
    return message


def test_every_type_of_numbers_is_in_the_table_above():
    found = {name for name, value in vars(types).items() if isinstance(value, types.Number)}
    assert found == NUMBERS.keys()


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, (_, bad) in NUMBERS.items() for t in bad])
def test_wrong_numbers_are_refused(name, text):
    kind = getattr(types, name)
    assert refused(kind, text) == f"{text!r} is not {kind.meaning}"


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, (ok, _) in NUMBERS.items() for t in ok])
def test_right_numbers_are_taken(name, text):
    kind = getattr(types, name)
    assert kind(text) == float(text)
    assert type(kind(text)) is kind.kind


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("non_negative", "1e-320"),
        ("positive", "1e308"),
        ("fraction", "5e-324"),
        ("cosine", "-1e-310"),
    ],
)
def test_numbers_that_nothing_computes_with_are_refused(name, text):
    assert "0, or from 1e-307 to 3e+38" in refused(getattr(types, name), text)


@pytest.mark.parametrize("digits", [400, 5000])
def test_hundreds_of_digits_crash_nothing(digits):
    for name in NUMBERS:
        with contextlib.suppress(argparse.ArgumentTypeError):  # taken or refused, both are well
            assert getattr(types, name)("9" * digits) > 0


@pytest.mark.parametrize("name", ["a", "_", "0", "flower_mps", "a.b-c_D9", "tb2", "A" * 200])
def test_run_names_are_taken(name):
    assert types.run_name(name) == name


BAD_NAMES = (
    *("", ".", "..", "../x", "a/b", "/a", "a\\b", ".hidden", "-a", "a b", "a\n", "ä", "a~1"),
    *("tb", "TB", "tB", "a:b", "a\x00", "*", "٣", "A" * 201),
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_not_a_run_name_is_refused(name):
    assert "is not a run name" in refused(types.run_name, name)


@settings(max_examples=60)
@given(name=st.text(max_size=8))
def test_a_run_name_is_taken_exactly_if_it_matches(name):
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) and name.lower() != "tb":
        assert types.run_name(name) == name
    else:
        refused(types.run_name, name)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~", "HOME"),
        ("~/photos/a b", "HOME/photos/a b"),
        ("./~", "~"),
        ("photos/~", "photos/~"),
        ("/x/~y", "/x/~y"),
    ],
)
def test_a_path_begins_at_home_where_it_says_so(monkeypatch, tmp_path, text, expanded):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(types.path(text)) == expanded.replace("HOME", str(tmp_path))


@pytest.mark.parametrize("text", ["none", "backbone", "1", "12", "9999"])
def test_what_can_be_frozen_is_taken(text):
    assert types.frozen_blocks(text) == text


NOT_FROZEN = (
    *("", "0", "-1", "01", "1.5", "1e3", "all", "head", "None", "Backbone", "backbone ", " 1"),
    *("1 ", "1\n", "10000", "٣", "1٣", "²", "none,backbone"),
)


@pytest.mark.parametrize("text", NOT_FROZEN)
def test_what_cannot_be_frozen_is_refused(text):
    message = f"{text!r} is neither none, backbone nor a whole number"
    assert refused(types.frozen_blocks, text) == message


def test_the_cache_that_no_longer_exists_is_refused_with_what_does_its_work():
    with pytest.raises(argparse.ArgumentTypeError, match="use --cache disk"):
        types.cache_name("ram")
    assert types.cache_name("disk") == "disk"
