"""utils/data/splits.py: splits, their identity, carving."""

import hashlib
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.splits import Split


class TestSplit:
    @settings(max_examples=50, deadline=None)
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

    def test_identity_changes_with_ids_labels_and_order_but_not_with_the_place(
        self, make_split, tmp_path
    ):
        def checksum(labels, root=tmp_path):
            return make_split(root, labels, num_classes=3, photos=False).identity()["checksum"]

        split = make_split(tmp_path, [0, 2, 1], photos=False)
        back = Split(
            split.dataset,
            split.name,
            split.root,
            split.classes,
            split.ids[::-1],
            split.paths[::-1],
            split.labels[::-1],
        )
        same = checksum([0, 2, 1], tmp_path / "moved")
        different = [checksum([0, 2, 2]), checksum([0, 2]), back.identity()["checksum"]]
        assert same == split.identity()["checksum"]
        assert len({same, *different}) == 4
