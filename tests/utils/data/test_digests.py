"""utils/data/digests.py: which images are in a set, and which were replaced."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.digests import (
    NONE,
    PIECE,
    Digests,
    contains,
    digest_set,
    is_same,
    short_digest,
    twins,
    whole_digest,
)

# Files of few kinds, so that many differ in a few bytes between only: twins.
KINDS = [
    head * PIECE + middle * 3 + tail * PIECE
    for head in (b"a", b"b")
    for middle in (b"m", b"n", b"o")
    for tail in (b"x", b"y")
] + [b"short", b"", b"a" * PIECE]


def digests_of(folder, kinds: list[int]) -> tuple[Digests, list]:
    """The digests of files of these kinds, as the check before a run makes them."""
    paths = []
    for number, kind in enumerate(kinds):
        paths.append(folder / f"{number}_{kind}")
        paths[-1].write_bytes(KINDS[kind])
    short = np.array(
        [short_digest(len(KINDS[k]), KINDS[k][:PIECE], KINDS[k][-PIECE:]) for k in kinds], np.uint64
    )
    whole = np.zeros(len(kinds), np.uint64)
    for position in twins(short):
        whole[position] = whole_digest(paths[position])
    return Digests(short, whole), paths


some = st.lists(st.integers(0, len(KINDS) - 1), max_size=6)


@settings(max_examples=200)
@given(run=some, later=some, used=st.integers(0, 6))
def test_an_image_is_known_whatever_lies_beside_it_then_and_now(tmp_path_factory, run, later, used):
    """The first `used` images of a run are trained on; twins may be there and not be used."""
    folder = tmp_path_factory.mktemp("run")
    of_run, _ = digests_of(folder, run)
    known = digest_set(of_run.at(np.arange(len(run)) < used))
    now, paths = digests_of(folder, later)
    found = contains(known, now, lambda position: whole_digest(paths[position]))
    for kind, is_known in zip(later, found, strict=True):
        had_twins = sum(of_run.short == short_of(kind)) > 1
        trained = [KINDS[each] for each in run[:used]]
        if had_twins:
            assert is_known == (KINDS[kind] in trained)
        else:  # a twin that was not in that run cannot be told from the one that was
            assert is_known == (short_of(kind) in map(short_of, run[:used]))


def short_of(kind: int) -> int:
    content = KINDS[kind]
    return short_digest(len(content), content[:PIECE], content[-PIECE:])


def test_sets_hold_8_bytes_an_image_and_no_damaged_one():
    digests = Digests(np.array([5, 9, NONE, 9], np.uint64), np.zeros(4, np.uint64))
    known = digest_set(digests, digests)
    assert known.tolist() == [5, 9]
    assert digest_set().tolist() == []
    assert contains(known, digests, None).tolist() == [True, True, False, True]
    assert np.array_equal(known.view(np.int64).view(np.uint64), known)


@settings(max_examples=100)
@given(run=some, beside=some, replaced=st.integers(0, len(KINDS) - 1))
def test_a_replaced_image_is_noticed_whatever_lies_beside_it(
    tmp_path_factory, run, beside, replaced
):
    folder = tmp_path_factory.mktemp("run")
    kinds = [*run, 0]
    before = digests_of(folder, [*kinds, *beside])[0].values[: len(kinds)]
    later = [*run, replaced]
    now, paths = digests_of(folder, later)
    same = is_same(before, now, lambda position: whole_digest(paths[position]))
    assert same[:-1].all()
    if short_of(replaced) != short_of(0):
        assert not same[-1]
    elif before[-1] & np.uint64(3) == 2:  # it had a twin, so all its bytes were read
        assert same[-1] == (KINDS[replaced] == KINDS[0])
