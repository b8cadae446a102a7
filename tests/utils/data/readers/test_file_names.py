"""utils/data/readers/file_names.py: names that mean one file though they are not its name."""

import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.readers import file_names
from utils.data.readers.file_names import Folders, find_files

FILES = ("a/Rose 1.JPG", "a/Straße.jpg", "a/b.png", "B/x.jpg", "B/X.jpg", "c.jpg", "cafe\u0301.tif")


@pytest.fixture
def root(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


class TestFindFiles:
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            *((name, name) for name in FILES),
            ("A/rose 1.jpg", "a/Rose 1.JPG"),
            ("a/ROSE 1", "a/Rose 1.JPG"),
            ("a/STRASSE.JPG", "a/Straße.jpg"),
            ("b/x.jpg", "B/x.jpg"),
            ("CAF\u00c9", "cafe\u0301.tif"),
        ],
    )
    def test_takes_one_that_fits(self, root, name, file):
        found = find_files(root, ["c.jpg", name])
        assert found.paths == ["c.jpg", file]
        assert (found.other, found.missing) == ([1] * (name != file), [])

    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("B/x", ", did you mean 'B/X.jpg' or 'B/x.jpg'?"),
            ("a/b.jpg", ", did you mean 'a/b.png'?"),
            ("a/Rose 2.JPG", ""),
            ("a/Rose l.JPG", ", did you mean 'Rose 1.JPG'?"),
            ("Rose 1.JPG", ", did you mean 'a/Rose 1.JPG'?"),
            ("photos/a/b.png", ", did you mean 'a/b.png'?"),
            ("d/x.jpg", ", there is no folder 'd'"),
            ("x" * 300, ""),
            ("a/\ud800", ""),
        ],
    )
    def test_leaves_a_name_that_none_or_several_fit(self, root, name, near):
        found = find_files(root, ["c.jpg", name])
        assert (found.paths, found.other, found.missing) == (["c.jpg", name], [], [1])
        assert found.near == near

    def test_a_link_that_leads_nowhere_is_not_near_itself(self, root):
        (root / "a" / "gone.jpg").symlink_to("nowhere")
        assert Folders(root).near("a/gone.jpg") == ""

    def test_lists_each_folder_once_and_no_more(self, root, monkeypatch):
        listed = []
        monkeypatch.setattr(
            file_names.os, "listdir", lambda path: listed.append(path) or ["a", "1.jpg", "2.jpg"]
        )
        find_files(root, ["a/1.jpg", "2.jpg", "a/2.jpg", "a/2.JPG", "1"])
        assert len(listed) == len(set(listed)) == 2

    def test_tells_folders_apart_where_the_system_does_not(self, root, monkeypatch):
        """On a Mac, `A/b.png` opens `a/b.png`; two rows that mean one file must be noticed."""
        listdir = os.listdir
        monkeypatch.setattr(
            file_names.os, "listdir", lambda path: listdir(path.replace(f"{root}/A", f"{root}/a"))
        )
        assert find_files(root, ["A/b.png", "a/b.png"]).paths == ["a/b.png", "a/b.png"]

    def test_believes_names_in_a_folder_that_may_not_be_listed(self, root, monkeypatch):
        def refuse(path):
            raise PermissionError

        monkeypatch.setattr(file_names.os, "listdir", refuse)
        found = find_files(root, ["a/1.jpg", "2.jpg"])
        assert (found.paths, found.missing) == (["a/1.jpg", "2.jpg"], [])

    @settings(max_examples=60)
    @given(stem=st.text(st.characters(categories=("L", "N")), min_size=1, max_size=20))
    def test_takes_any_script_in_any_form(self, tmp_path_factory, stem):
        root = tmp_path_factory.mktemp("names")
        file = f"{unicodedata.normalize('NFD', stem)}.jpg"
        (root / file).touch()
        for form in ("NFC", "NFD"):
            name = unicodedata.normalize(form, stem)
            assert find_files(root, [name, f"{name}.JPG"]).paths == [file, file]
