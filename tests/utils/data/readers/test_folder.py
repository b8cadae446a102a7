"""utils/data/readers/folder.py: folders read as torchvision reads them, or refused in one line."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from layouts_own import write_folder
from torchvision.datasets import ImageFolder

from utils.data.formats import IMAGE_ENDINGS
from utils.data.readers import folder
from utils.data.readers.walk import SYSTEM_FOLDERS
from utils.errors import InputError
from utils.ownership import mark

SPECIES = ("Acer/rubrum_L", "Acer/rubrum_Marsh", "Rosa/canina")
NAMES = ("oak leaf", "rose", "Épine noire")


def touch(root: Path, *names: str) -> None:
    """Empty files, in folders that are made."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def passed_over(listing) -> str:
    """What the only note of a listing says, without the place."""
    (note,) = listing.notes
    assert note.startswith("passed over in /")
    return note.partition(": ")[2]


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

    def test_refuses_a_file(self, tmp_path):
        (tmp_path / "list.csv").touch()
        with pytest.raises(InputError, match=r"list.csv is a file, .* images is --dataset csv$"):
            folder.find(tmp_path / "list.csv")

    def test_stays_where_it_holds_images_or_is_a_split(self, root):
        (root / "val").rename(root / ".val")
        assert folder.find(root) == root
        assert folder.find(root / "train") == root / "train"
        (root / "train").rename(root / "Training")
        assert folder.find(root) == root
        (root / "alone" / "rose").mkdir(parents=True)
        assert folder.find(root / "alone") == root / "alone"

    def test_says_what_lies_beside_the_only_folder(self, root, caplog):
        caplog.set_level("INFO", logger="fine_vit")
        touch(root.parent, "readme.txt", "output/.fine_vit", "output/rose/a.jpg")
        assert folder.find(root.parent) == root
        assert caplog.messages == [
            f"passed over in {root.parent}: output/ (our own programs wrote it); files that are "
            "not images by their ending: .txt 1"
        ]
        touch(root.parent, "a.jpg")
        with pytest.raises(
            InputError, match=rf"has images \(a.jpg\) beside .* --data_root {root},"
        ):
            folder.find(root.parent)


class TestSplits:
    def test_are_the_folders_that_are_there(self, root):
        assert folder.splits(root) == ("train", "val")
        (root / "val").rename(root / "test")
        assert folder.splits(root) == ("train", "test")
        shutil.rmtree(root / "train")
        assert folder.splits(root) == ("test",)
        assert folder.read(root, "test").classes == NAMES

    def test_that_are_not_asked_for_are_not_looked_at(self, root):
        expected = folder.read(root, "val")
        touch(root, "test/a.jpg", "train/oak leaf/a.jpg", "train/ro\u200bse/a.jpg")
        for split in ("train", "test"):
            with pytest.raises(InputError):
                folder.read(root, split)
        found = folder.read(root, "val")
        assert (found.classes, found.ids.tolist()) == (expected.classes, expected.ids.tolist())

    def test_know_the_classes_of_their_own_and_of_train(self, root):
        touch(root, "val/zinnia/a.jpg", "test/aster/a.jpg")
        assert folder.read(root, "train").classes == NAMES
        assert folder.read(root, "val").classes == ("oak leaf", "rose", "zinnia", "Épine noire")
        shutil.rmtree(root / "train")
        classes = folder.read(root, "val").classes
        assert classes == folder.read(root, "test").classes == ("aster", *classes[1:])


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

    def test_follows_no_link_out_of_a_class_to_all_classes(self, root):
        before = folder.read(root, "train").paths.tolist()
        for name, target in (("up", ".."), ("top", root), ("above", root.parent)):
            (root / "train" / "rose" / name).symlink_to(target)
        assert folder.read(root, "train").paths.tolist() == before

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


class TestPassedOver:
    """What is not read is said in a note."""

    def test_nothing_is_worth_no_note(self, root):
        touch(root, ".DS_Store", "train/Thumbs.db", "val/rose/desktop.ini", "train/rose/Icon\r")
        touch(root, "val/rose/.hidden.jpg", "@eaDir/a.jpg", ".git/config")
        assert folder.read(root, "train").notes == folder.read(root, "val").notes == ()

    def test_files_are_counted_by_ending(self, root):
        rose = root / "train" / "rose"
        touch(rose, *(f"{i}.{'mp4' if i % 2 else 'MP4'}" for i in range(12)), "LICENSE", "a.part")
        touch(rose, ".IMG_1.HEIC.icloud", "Dr. No and co", "deep/a.txt", "a.\x1b[31m", "x.webm")
        os.mkfifo(rose / "wait.for")  # would never be opened
        assert passed_over(folder.read(root, "train")) == (
            "files that are not images by their ending: .mp4 12, no ending 2, .\\x1b[31m 1, "
            ".for 1, .icloud 1, .part 1, .txt 1, .webm 1"
        )
        assert folder.read(root, "val").notes == ()
        touch(rose, "a.zip", "b.zip")
        assert passed_over(folder.read(root, "train")).endswith(".part 1, .txt 1, others 1")

    def test_images_beside_class_folders_are_counted(self, root):
        touch(root, "train/b.HEIC", "train/a.jpg", "train/c.avif", "train/d.jfif", "train/.e.jpg")
        assert passed_over(folder.read(root, "train")) == (
            "images in no class folder: 4 (a.jpg, b.HEIC, c.avif and 1 more)"
        )
        touch(root, "cover.png", "notes.doc")  # beside train/ and val/: of no split
        expected = "images in no class folder: 1 (cover.png); files that are not images by their "
        for split, count in (("train", 2), ("val", 1)):
            notes = folder.read(root, split).notes
            assert len(notes) == count
            assert notes[0] == f"passed over in {root}: {expected}ending: .doc 1"

    def test_what_our_programs_wrote_is_left_out_whole(self, root):
        train = root / "train"
        stamp = '{"run_id": "1"}'
        touch(train, "report/a.jpg", "rose/crops/deep/b.jpg", "runs/a/c.jpg", "runs/tb/a/d")
        mark(train / "report")
        mark(train / "rose" / "crops")
        (train / "runs" / "a" / "env_stamp.json").write_text(stamp)
        mark(train)  # given as the data root it would be read as well
        expected = {f"train/{path}" for path in folder.read(train, "train").paths}
        assert "report" not in str(expected)
        mark(root)
        (train / ".fine_vit").unlink()
        listing = folder.read(root, "train")
        assert set(listing.paths.tolist()) == expected
        assert (listing.classes, len(expected)) == (NAMES, 12)
        assert passed_over(listing) == "report/, runs/, rose/crops/ (our own programs wrote it)"

    def test_what_only_sounds_like_ours_is_a_class(self, root):
        touch(root, "train/output/a.jpg", "train/tb/x/a.jpg", "train/checkpoints/a.jpg")
        (root / "train/output/env_stamp.json").write_text("{}")
        classes = folder.read(root, "train").classes
        assert classes == ("checkpoints", "oak leaf", "output", "rose", "tb", "Épine noire")


class TestEmptyClasses:
    def test_are_refused_where_they_are_trained_on(self, root):
        touch(root, "train/aster/a.mp4", "train/aster/.b.jpg", "train/aster/deep/c.mp4")
        with pytest.raises(
            InputError, match=r"train/aster has no image \(.* ending: \.mp4 2\): put"
        ):
            folder.read(root, "train")

    def test_are_said_where_they_are_evaluated(self, root):
        (root / "val" / "aster").mkdir()
        (root / "train" / "zinnia").mkdir()
        listing = folder.read(root, "val")
        assert listing.classes == ("aster", "oak leaf", "rose", "zinnia", "Épine noire")
        assert listing.notes == (f"class folders without an image in {root / 'val'}: aster",)
        listing = folder.read(root, "train", for_evaluation=True)
        assert listing.notes == (f"class folders without an image in {root / 'train'}: zinnia",)
        shutil.rmtree(root / "train")
        with pytest.raises(InputError, match="val/aster has no image"):
            folder.read(root, "val")  # for a --train_split
        assert len(folder.read(root, "val", for_evaluation=True).ids) == 6

    def test_of_a_split_without_labels_are_to_be_moved_away(self, root):
        """As `test/` of a competition: images in no class folder."""
        (root / "test").mkdir(exist_ok=True)
        for path in [*(root / "test").iterdir()]:
            path.rename(root.parent / f"away {path.name}")
        (root / "test" / "1.jpg").touch()
        message = r"in no class folder: 1 \(1.jpg\)\): put .*/test/<class>/, or move it away$"
        with pytest.raises(InputError, match=message):
            folder.read(root, "test")

    def test_are_refused_if_all_are_empty(self, root):
        for path in (root / "val").glob("*/*"):
            path.rename(path.with_suffix(".mov"))
        for reads in ({}, {"for_evaluation": True}):
            with pytest.raises(InputError, match=r"val has no image in its .* ending: \.mov 6\)$"):
                folder.read(root, "val", **reads)


class TestDepth:
    """Folders in folders: which level names the classes."""

    @pytest.fixture
    def genera(self, tmp_path):
        touch(tmp_path, *(f"{name}/{i}.jpg" for i in range(2) for name in SPECIES))
        return tmp_path

    def test_in_doubt_is_refused_with_the_choice(self, genera):
        message = (
            r"such as Acer/rubrum_L/; --class_depth 2 reads 'Acer/rubrum_L' as a class, "
            r"--class_depth 1 reads 'Acer' as a class with all that lies below it$"
        )
        with pytest.raises(InputError, match=message):
            folder.read(genera, "train")
        (genera / "train").mkdir()
        for genus in ("Acer", "Rosa"):
            (genera / genus).rename(genera / "train" / genus)
        with pytest.raises(InputError, match=message):
            folder.read(genera, "train")
        shutil.copytree(genera / "train", genera / "val")
        assert folder.read(genera, "val").classes == ("Acer", "Rosa")  # as train has them
        assert folder.read(genera, "train", for_evaluation=True).classes == ("Acer", "Rosa")

    def test_names_every_level_that_will_do(self, tmp_path):
        touch(tmp_path, "a/b/c/1.jpg", "d/e/f/g/2.jpg")
        with pytest.raises(
            InputError, match=r"--class_depth 3 reads 'a/b/c' .*_depth 2 .*_depth 1"
        ):
            folder.read(tmp_path, "train")
        classes = [folder.read(tmp_path, "train", depth).classes for depth in (1, 2, 3)]
        assert classes == [("a", "d"), ("a/b", "d/e"), ("a/b/c", "d/e/f")]

    @pytest.mark.parametrize("above", ["", "train/"])
    def test_two_reads_species(self, genera, above):
        if above:
            (genera / "train").mkdir()
            for genus in ("Acer", "Rosa"):
                (genera / genus).rename(genera / "train" / genus)
        listing = folder.read(genera, "train", 2)
        assert listing.classes == ("Acer/rubrum L", "Acer/rubrum Marsh", "Rosa/canina")
        assert listing.paths.tolist()[::2] == [f"{above}{name}/0.jpg" for name in SPECIES]
        assert listing.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert listing.notes == ()

    def test_one_accepts_the_merge_and_says_it(self, genera):
        listing = folder.read(genera, "train", 1)
        assert listing.classes == ("Acer", "Rosa")
        assert listing.notes == (
            "images in folders below their class folder, which count as that class: 6 in "
            f"{genera} (Acer/rubrum_L/, Acer/rubrum_Marsh/, Rosa/canina/)",
        )

    def test_is_not_in_doubt_where_a_class_has_images_of_its_own(self, genera):
        touch(genera, "Rosa/a.jpg")
        listing = folder.read(genera, "train")
        assert listing.classes == ("Acer", "Rosa")
        assert "6 in" in listing.notes[0]

    def test_counts_images_above_and_refuses_branches_without_a_class(self, genera):
        touch(genera, "Rosa/cover.jpg", "a.jpg", "Rosa/canina/2024/a.jpg")
        passed, below = folder.read(genera, "train", 2).notes
        assert passed.endswith("images in no class folder: 2 (a.jpg, Rosa/cover.jpg)")
        assert below.endswith("(Rosa/canina/2024/)")
        touch(genera, "Tulipa/a.jpg")
        with pytest.raises(
            InputError, match=r"Tulipa has no folder .*Tulipa/<class>/, with --class_depth 1 w"
        ):
            folder.read(genera, "train", 2)
        listing = folder.read(genera, "train", 2, for_evaluation=True)
        assert "(a.jpg, Rosa/cover.jpg, Tulipa/a.jpg)" in listing.notes[0]

    def test_that_no_folder_has_is_refused(self, genera):
        with pytest.raises(
            InputError, match=r"has no class folder 3 levels down \(--class_depth 3\)"
        ):
            folder.read(genera, "train", 3, for_evaluation=True)

    def test_takes_two_spellings_of_one_class_apart(self, genera):
        touch(genera, "Acer/rubrum L/a.jpg")
        with pytest.raises(
            InputError, match=r"'Acer/rubrum L' and 'Acer/rubrum_L' are both the cl"
        ):
            folder.read(genera, "train", 2)
        touch(genera, "Acer/rub\u2060rum/a.jpg")
        with pytest.raises(InputError, match=r"rub\\u2060rum: .* U\+2060 \(word joiner\)"):
            folder.read(genera, "train", 2)


class TestRefusals:
    @pytest.mark.parametrize(
        ("folders", "message"),
        [
            (["train/a", "daisy"], r"has train/ and daisy/: put either splits or classes into it"),
            *(
                (["rose", name], rf"has {name}/: splits are called .*; rename it to {meant}/$")
                for name, meant in (("Train", "train"), ("valid", "val"), ("Testing", "test"))
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
