"""utils/data/readers/folder.py: folders read as torchvision reads them, or refused in one line."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_own import write_folder
from torchvision.datasets import ImageFolder

from utils.data.formats import IMAGE_ENDINGS
from utils.data.readers import folder
from utils.data.readers.walk import SYSTEM_FOLDERS
from utils.errors import InputError

NAMES = ("oak leaf", "rose", "Épine noire")


@pytest.fixture
def root(tmp_path):
    """Class folders below train/ and val/, with empty files for images."""
    return write_folder(tmp_path / "own", photos=False)


class TestFind:
    """The root of images that were unpacked into a folder of their own."""

    @pytest.mark.parametrize("split_folders", [True, False])
    def test_goes_into_the_only_folder(self, tmp_path, split_folders):
        root = write_folder(tmp_path / "own", split_folders=split_folders, photos=False)
        (tmp_path / "__MACOSX" / "own").mkdir(parents=True)
        (tmp_path / "readme.txt").touch()
        assert folder.find(tmp_path) == root
        assert folder.find(root) == root

    def test_stays_where_it_holds_images_or_is_a_split(self, root):
        (root / "val").rename(root / ".val")
        assert folder.find(root) == root
        assert folder.find(root / "train") == root / "train"
        (root / "train").rename(root / "Training")
        assert folder.find(root) == root
        (root / "alone" / "rose").mkdir(parents=True)
        assert folder.find(root / "alone") == root / "alone"


class TestSplits:
    def test_are_the_folders_that_are_there(self, root):
        assert folder.splits(root) == ("train", "val")
        (root / "val").rename(root / "test")
        assert folder.splits(root) == ("train", "test")


class TestRead:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_gives_what_torchvision_gives(self, root, split):
        listing = folder.read(root, split)
        reference = ImageFolder(root / split)
        expected = sorted(
            (reference.classes[label].replace("_", " "), path) for path, label in reference.samples
        )
        found = [
            (listing.classes[label], str(root / path))
            for path, label in zip(listing.paths, listing.labels, strict=True)
        ]
        assert found == expected
        assert listing.classes == NAMES

    def test_names_samples_by_their_path(self, root):
        listing = folder.read(root, "val")
        assert listing.paths[0] == "val/oak_leaf/IMG_0014.JPG"
        assert listing.ids[0] == "val/oak_leaf/IMG_0014"
        assert listing.labels.dtype == np.int64

    def test_of_a_heap_is_all_train(self, tmp_path):
        root = write_folder(tmp_path, split_folders=False, photos=False)
        assert folder.splits(root) == ("train",)
        listing = folder.read(root, "train")
        assert len(listing.ids) == 18
        assert listing.paths[0] == "oak_leaf/IMG_0004.JPG"

    def test_keeps_the_classes_that_a_split_lacks(self, tmp_path):
        root = write_folder(tmp_path, test_classes=[2], photos=False)
        assert folder.read(root, "val").classes == NAMES
        assert set(folder.read(root, "val").labels.tolist()) == {1}

    def test_looks_below_and_passes_over_what_is_hidden_or_no_image(self, root):
        rose = root / "train" / "rose"
        names = ("deep/er/a.png", ".hidden/b.png", "._a.jpg", ".DS_Store", "Thumbs.db", "c.txt")
        for name in names:
            (rose / name).parent.mkdir(parents=True, exist_ok=True)
            (rose / name).touch()
        for name in SYSTEM_FOLDERS:
            for place in (root, root / "train", rose):
                (place / name).mkdir()
                (place / name / "SYNOPHOTO_THUMB_M.jpg").touch()
        (root / ".cache").mkdir()
        (root / "train" / "note.txt").touch()
        listing = folder.read(root, "train")
        new = {path for path in listing.paths.tolist() if "IMG_" not in path}
        assert new == {"train/rose/deep/er/a.png"}

    def test_follows_links_but_not_in_circles(self, root, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "far.jpg").touch()
        rose = root / "train" / "rose"
        (rose / "more").symlink_to(tmp_path / "elsewhere")
        (rose / "link").symlink_to(tmp_path / "elsewhere")
        (rose / "circle").symlink_to(rose)
        (tmp_path / "elsewhere" / "back").symlink_to(rose)
        paths = folder.read(root, "train").paths.tolist()
        assert "train/rose/link/far.jpg" in paths
        assert len([path for path in paths if path.endswith("far.jpg")]) == 1

    def test_enters_folders_that_link_to_each_other_once(self, root):
        """As many ways to them as there are permutations."""
        folders = [root / "train" / "rose" / f"{i:02}" for i in range(12)]
        for path in folders:
            path.mkdir()
            (path / "a.png").touch()
            for other in folders:
                (path / f"to{other.name}").symlink_to(other)
        paths = [path for path in folder.read(root, "train").paths if path.endswith("a.png")]
        assert paths == [f"train/rose/{i:02}/a.png" for i in range(12)]

    def test_tells_folders_from_images_by_what_they_are(self, root):
        album = root / "train" / "rose" / "album.jpg"
        album.mkdir()
        (album / "a.gif").touch()
        (album.parent / "link.tiff").symlink_to(album / "a.gif")
        paths = folder.read(root, "train").paths.tolist()
        assert "train/rose/album.jpg/a.gif" in paths
        assert "train/rose/link.tiff" in paths
        assert "train/rose/album.jpg" not in paths

    @pytest.mark.parametrize("ending", [*IMAGE_ENDINGS, ".WebP", ".TIF"])
    def test_takes_every_ending(self, tmp_path, ending):
        (tmp_path / "rose").mkdir()
        (tmp_path / "rose" / f"a{ending}").touch()
        assert folder.read(tmp_path, "train").paths.tolist() == [f"rose/a{ending}"]

    def test_sorts_by_class_name_not_by_folder(self, tmp_path):
        for name in ("a b", "a_A"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.png").touch()
        listing = folder.read(tmp_path, "train")
        assert listing.classes == ("a A", "a b")
        assert listing.paths.tolist() == ["a_A/x.png", "a b/x.png"]
        assert listing.labels.tolist() == [0, 1]

    def test_matches_classes_whose_folders_are_spelled_otherwise(self, root):
        (root / "val" / "oak_leaf").rename(root / "val" / "oak leaf")
        listing = folder.read(root, "val")
        assert listing.classes == NAMES
        assert listing.paths[0] == "val/oak leaf/IMG_0014.JPG"
        assert listing.labels[0] == 0

    @settings(deadline=None)
    @given(paths=st.lists(st.from_regex(r"[ab](\.(jpg|png)){0,3}", fullmatch=True), unique=True))
    def test_gives_different_paths_different_ids(self, paths):
        ids = folder.short_ids(paths)
        assert len(set(ids)) == len(paths)
        assert all(path.startswith(name) for path, name in zip(paths, ids, strict=True))

    def test_composes_ids_and_leaves_paths(self, tmp_path):
        """A Mac's file system hands out decomposed names."""
        name = unicodedata.normalize("NFD", "Épine")
        (tmp_path / name).mkdir()
        (tmp_path / name / "é.jpg").touch()
        listing = folder.read(tmp_path, "train")
        assert listing.classes == ("Épine",)
        assert listing.ids.tolist() == ["Épine/é"]
        assert (tmp_path / listing.paths[0]).exists()

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_has_one_order_on_every_file_system(self, tmp_path, form):
        (tmp_path / "rose").mkdir()
        for name in ("é.jpg", "f.jpg", "e.jpg"):
            (tmp_path / "rose" / unicodedata.normalize(form, name)).touch()
        assert folder.read(tmp_path, "train").ids.tolist() == ["rose/e", "rose/f", "rose/é"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("folders", "message"),
        [
            (["train/a", "daisy"], r"has train/ and daisy/: put either splits or classes into it"),
            *(
                (["rose", name], rf"has {name}/: splits are called train, val and test; rename it")
                for name in ("Train", "VAL", "valid", "validation", "Testing")
            ),
            (["train"], r"train has no class folder: put images into .*/train/<class>/"),
            (["train/rose"], r"train/rose has no image: put images \(\.jpg"),
            (["a_b", "a b"], r"'a b' and 'a_b' are both the class 'a b'"),
            (["_"], r"/_: '_' does not name a class; rename it"),
        ],
    )
    def test_of_folders_that_are_not_classes_of_images(self, tmp_path, folders, message):
        for name in folders:
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "a.jpg").touch()  # in no class
        with pytest.raises(InputError, match=message):
            folder.read(tmp_path, "train")

    @pytest.mark.parametrize("name", ["a\nb.jpg", "a\\b.jpg", "a\x1b/b.jpg"])
    def test_of_names_that_lists_cannot_hold(self, root, name):
        path = root / "train" / "rose" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        with pytest.raises(InputError, match=r"rose/a.* has a backslash or control char") as caught:
            folder.read(root, "train")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"caf\xe9/a.jpg"])
    def test_of_names_that_are_not_utf8(self, root, name):
        path = os.fsencode(root / "train" / "rose") + b"/" + name
        try:
            Path(os.fsdecode(path)).parent.mkdir(exist_ok=True)
            os.close(os.open(path, os.O_CREAT))
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        with pytest.raises(InputError, match=r"rose/caf\\xe9[^/]* has a name that is not UTF-8"):
            folder.read(root, "train")
        # What is not an image is nobody's concern.
        os.rename(root / "train/rose" / os.fsdecode(name.partition(b"/")[0]), root / "moved")  # noqa: PTH104
        (root / "moved").rename(root / "train" / "rose" / ".moved")
        os.close(os.open(path.partition(b"/caf")[0] + b"/caf\xe9.txt", os.O_CREAT))
        assert len(folder.read(root, "train").ids) == 12
