"""utils/data/splits.py: splits, their identity, and a val split held out of train."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.readers.listing import TEXT
from utils.data.splits import (
    PAIRS_AT_ONCE,
    HeldOut,
    Split,
    class_line,
    hold_out,
    match_classes,
    united,
)
from utils.errors import InputError
from utils.files import canonical_json, sha256_text


class TestSplit:
    @settings(max_examples=50)
    @given(data=st.data(), count=st.integers(1, 30))
    def test_select_keeps_the_order_of_the_split(self, make_split, data, count):
        split = make_split(Path("unused"), [i % 3 for i in range(count)], photos=False)
        wanted = data.draw(st.lists(st.integers(0, count - 1), unique=True))
        chosen = split.select(wanted)
        assert chosen.ids.tolist() == [split.ids[i] for i in sorted(wanted)]
        assert chosen.paths.tolist() == [split.paths[i] for i in sorted(wanted)]
        assert chosen.labels.tolist() == [split.labels[i] for i in sorted(wanted)]
        assert (chosen.classes, chosen.root) == (split.classes, split.root)
        assert (chosen.dataset, chosen.name) == (split.dataset, split.name)
        assert len(chosen) == len(wanted)

    def test_identity_says_what_was_used(self, make_split, tmp_path):
        identity = make_split(tmp_path, [0, 2, 1], photos=False).identity()
        text = '[["photo_000",0],["photo_001",2],["photo_002",1]]'
        assert identity == {
            "name": "toy",
            "split": "val",
            "samples": 3,
            "checksum": hashlib.sha256(text.encode()).hexdigest(),
        }
        assert json.loads(json.dumps(identity)) == identity


class TestChecksum:
    def test_is_that_of_the_whole_list(self):
        count = 3 * PAIRS_AT_ONCE + 1
        ids = [f"é{number}" for number in range(count)]
        for size in (1, PAIRS_AT_ONCE, PAIRS_AT_ONCE + 1, count):
            split = split_of(ids[:size], [number % 7 for number in range(size)])
            pairs = [[sample_id, number % 7] for number, sample_id in enumerate(ids[:size])]
            assert split.checksum() == sha256_text(canonical_json(pairs))


def split_of(ids: list[str], labels: list[int]) -> Split:
    """A train split of images that are not there, with 7 classes."""
    classes = tuple(f"class {number}" for number in range(7))
    texts = np.array(ids, dtype=TEXT)
    return Split("toy", "train", Path("unused"), classes, texts, texts, np.array(labels, np.int64))


class TestHoldOut:
    """A val split held out of train."""

    @settings(max_examples=100)
    @given(
        labels=st.lists(st.integers(0, 6), min_size=2, max_size=60),
        fraction=st.floats(0.01, 0.99),
        seed=st.integers(0, 3),
        drawn=st.data(),
    )
    def test_gives_each_class_its_share(self, labels, fraction, seed, drawn):
        ids = [f"image {number}" for number in range(len(labels))]
        counts = np.bincount(labels, minlength=7)
        able = np.maximum(counts - 1, 0)  # one of each class stays to train on
        held_out = HeldOut(fraction, seed)
        try:
            train, val = hold_out(split_of(ids, labels), held_out)
        except InputError as error:
            assert "holds out none; give more" in str(error)  # noqa: PT017 - either will do
            assert (np.minimum(np.floor(counts * fraction), able) == 0).all()
            return
        assert (train.name, val.name) == ("train", "val")
        assert sorted([*train.ids, *val.ids]) == sorted(ids)
        for part in (train, val):  # in the order of the whole
            places = [ids.index(sample_id) for sample_id in part.ids]
            assert places == sorted(places)
            assert part.labels.tolist() == [labels[place] for place in places]
        held = np.bincount(val.labels, minlength=7)
        assert (held <= able).all()
        assert (held <= np.ceil(counts * fraction)).all()
        assert (held >= np.minimum(np.floor(counts * fraction), able)).all()
        asked = round(len(labels) * fraction)
        assert len(val) <= max(asked, 1)
        if (able >= np.ceil(counts * fraction)).all():
            assert len(val) == asked
        # Which ones does not depend on the order of the list.
        order = drawn.draw(st.permutations(range(len(ids))))
        again = split_of([ids[place] for place in order], [labels[place] for place in order])
        assert set(hold_out(again, held_out)[1].ids) == set(val.ids)

    def test_rounds_up_where_most_is_left_over(self):
        labels = [0] * 7 + [1] * 8 + [2] * 9
        _, val = hold_out(split_of([f"{number}" for number in range(24)], labels), HeldOut(0.1, 1))
        assert np.bincount(val.labels).tolist() == [0, 1, 1]  # of 0.7, 0.8 and 0.9

    def test_is_the_same_on_every_machine_and_another_with_another_seed(self):
        ids = [f"image_{number:05d}" for number in range(20)]
        split = split_of(ids, [number % 2 for number in range(20)])
        _, val = hold_out(split, HeldOut(0.3, 42))
        assert [int(sample_id[6:]) for sample_id in val.ids] == [5, 6, 7, 12, 13, 14]
        assert hold_out(split, HeldOut(0.3, 43))[1].ids.tolist() != val.ids.tolist()

    def test_of_one_image_a_class_is_refused(self):
        said = (
            r"--val_fraction 0.9 of 3 samples of toy in 3 classes .*; give more images, two of a "
        )
        with pytest.raises(InputError, match=said):
            hold_out(split_of(["a", "b", "c"], [0, 1, 2]), HeldOut(0.9, 1))


# Some differ only in case, one is a number, one would look like two in a line.
NAMES = st.lists(st.sampled_from(["Rose", "rosa", "1", "2", "10", "é", "a, b"]), unique=True)


class TestMatchClasses:
    @settings(max_examples=100)
    @given(own=NAMES.filter(len), known=NAMES.filter(len), data=st.data())
    def test_keeps_the_name_of_every_sample(self, make_split, own, known, data):
        labels = data.draw(st.lists(st.integers(0, len(own) - 1), min_size=1, max_size=12))
        split = make_split(Path("unused"), labels, photos=False)
        split = replace(split, classes=tuple(own), parents=tuple((f"of {n}",) for n in own))
        names = dict(zip(split.ids.tolist(), (own[label] for label in labels), strict=True))
        unknown = [name for name in names.values() if name not in known]
        if len(unknown) == len(names):
            with pytest.raises(InputError, match=r"all .* images of split val are of classes that"):
                match_classes(split, known, "it", "", skip_unknown=True)
            return
        if unknown:
            message = (
                rf"{len(unknown)} of {len(names)} images of split val .* \({len({*unknown})}\)"
            )
            with pytest.raises(InputError, match=message):
                match_classes(split, known, "it", "do this")
        matched = match_classes(split, known, "it", "", skip_unknown=True)
        assert matched.classes == tuple(known)
        found = {i: known[n] for i, n in zip(matched.ids.tolist(), matched.labels, strict=True)}
        assert found == {i: name for i, name in names.items() if name in known}
        assert all(
            above in ((f"of {n}",), ()) for n, above in zip(known, matched.parents, strict=True)
        )

    def test_says_what_may_be_meant(self, make_split):
        split = replace(make_split(Path("x"), [0, 1, 1], photos=False), classes=("Rosa", "lily"))
        with pytest.raises(
            InputError, match=r"\(1\): 'Rosa' \(1, did you mean 'rosa'\?\); do this"
        ):
            match_classes(split, ("lily", "rosa"), "the checkpoint", "do this")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (2, "2 classes: c0, c1"),
        (12, "12 classes: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11"),
        (13, "13 classes: c0, c1, c2, ..., c10, c11, c12 (all are in out/labelmap.json)"),
    ],
)
def test_a_line_says_which_classes_there_are(count, said):
    assert class_line([f"c{number}" for number in range(count)], "out/labelmap.json") == said


class TestUnited:
    def test_has_each_image_once_and_says_its_split(self, make_split):
        whole = make_split(Path("x"), [0, 1, 0, 1], photos=False)
        parts = [
            replace(whole.select([0, 1]), name="train"),
            replace(whole.select([2]), name="val"),
        ]
        trainval = replace(whole, name="trainval")
        every = united([*parts, trainval], "all")
        assert every.ids.tolist() == [f"photo_{n:03d}" for n in range(4)]
        assert [every.tag_of(n) for n in range(4)] == ["train", "train", "val", "trainval"]
        assert every.select([2, 0]).tag_of(1) == "val"
        assert whole.tag_of(0) == "val"

    def test_of_one_id_for_two_images_is_refused(self, make_split):
        whole = make_split(Path("x"), [0, 1], photos=False)
        other = replace(whole, paths=np.array(["other/1.jpg", "other/2.jpg"]))
        with pytest.raises(InputError, match="have the same id; name one as --eval_split"):
            united([whole, other], "all")
