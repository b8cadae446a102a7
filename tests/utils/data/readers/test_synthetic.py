"""utils/data/readers/synthetic.py: drawn once, the same everywhere, never over somebody's files."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import files_below, files_up_to
from PIL import Image

from utils.data.readers import flowers, synthetic
from utils.errors import InputError
from utils.files import sha256_file

CLASSES = len(synthetic.SYNTHETIC_CLASSES)


def bytes_of(root):
    return {path: sha256_file(root / path) for path in files_below(root) if (root / path).is_file()}


class TestPlan:
    def test_is_balanced_and_disjoint(self):
        labels, splits = synthetic.plan()
        for name, per_class in {"train": 20, "val": 10, "test": 10, "trainval": 30}.items():
            assert np.bincount(labels[splits[name] - 1]).tolist() == [per_class] * CLASSES
        numbers = np.concatenate([splits[name] for name in ("train", "val", "test")])
        assert sorted(numbers) == list(range(1, len(labels) + 1))


class TestDraw:
    def test_leaves_the_official_layout(self, drawn):
        assert flowers.is_layout(drawn)
        assert synthetic.is_drawn(drawn)
        names = {path.name for path in (drawn / "jpg").iterdir()}
        assert names == {f"image_{number:05d}.jpg" for number in range(1, 401)}
        for name in sorted(names)[::40]:
            with Image.open(drawn / "jpg" / name) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
                assert all(72 <= side <= 104 for side in image.size)

    def test_gives_the_same_bytes_again(self, drawn, tmp_path):
        np.random.seed(5)  # noqa: NPY002 - must not matter
        synthetic.draw(tmp_path / "again")
        first, again = bytes_of(drawn), bytes_of(tmp_path / "again")
        assert first.keys() == again.keys()
        # The .mat files carry the time of writing in their headers.
        assert {path for path in first if first[path] != again[path]} <= {
            path for path in first if path.suffix == ".mat"
        }

    @pytest.mark.parametrize("place", ["a/b", "link"])
    def test_makes_parents_and_fills_an_empty_folder(self, tmp_path, place):
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "empty", target_is_directory=True)
        synthetic.draw(tmp_path / place)
        assert synthetic.is_drawn(tmp_path / place)

    def test_of_the_folder_one_is_in_draws_there_or_is_refused(self, tmp_path, monkeypatch):
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        with contextlib.suppress(InputError):
            synthetic.draw(Path())
            assert synthetic.is_drawn(here)
        assert Path.cwd() == here  # still there: relative paths go on working

    def test_twice_at_the_same_time_does_no_harm(self, drawn, tmp_path, monkeypatch):
        """The other one finishes while this one draws."""
        root, draw_into = tmp_path / "output" / ".synthetic", synthetic._draw_into

        def draw_after_another(beside):
            draw_into(beside)
            with monkeypatch.context() as patch:
                patch.setattr(synthetic, "_draw_into", draw_into)
                patch.setattr(os, "getpid", lambda: 0)
                synthetic.draw(root)

        monkeypatch.setattr(synthetic, "_draw_into", draw_after_another)
        synthetic.draw(root)
        assert [path.name for path in root.parent.iterdir()] == [".synthetic"]
        assert files_below(root) == files_below(drawn)

    def test_that_fails_leaves_nothing(self, tmp_path):
        """No image fits; Pillow itself says nothing of a write that was cut short."""
        with files_up_to(2000), pytest.raises(OSError, match="File too large"):
            synthetic.draw(tmp_path / "drawn")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("existing", ["file", "folder", "photos"])
    def test_never_touches_what_is_not_ours(self, tmp_path, existing):
        root = tmp_path / "mine"
        if existing == "file":
            root.write_text("precious")
        else:
            (root / "jpg").mkdir(parents=True)
            (root / "jpg" / "holiday.jpg").write_text("precious")
        if existing == "photos":
            (root / "imagelabels.mat").touch()
            (root / "setid.mat").touch()
        before = bytes_of(tmp_path)
        message = "mine holds something other than synthetic flowers; name an empty"
        for attempt in (synthetic.draw, synthetic.is_drawn):
            with pytest.raises(InputError, match=message):
                attempt(root)
        assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(
            (bad, r"synthetic.json is damaged; delete .* again")
            for bad in (b"", b"\xff\xfe", b"[]")
        ),
        *((bad, r"was drawn by another version; del") for bad in (b"{}", b'{"version": "1"}')),
    ],
)
def test_a_damaged_marker_or_one_of_another_version_is_refused(tmp_path, content, message):
    assert not synthetic.is_drawn(tmp_path)
    marker = tmp_path / "synthetic.json"
    marker.write_bytes(content)
    for attempt in (synthetic.draw, synthetic.is_drawn):
        with pytest.raises(InputError, match=message):
            attempt(tmp_path)
    assert marker.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic.json"]
