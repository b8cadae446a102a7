"""utils/data/readers/cub.py: the official lists, read exactly or refused in one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_birds import DAMAGES, LISTS, REAL_CUB, edit_lines, write_cub, write_table
from PIL import Image

from utils.data.readers import cub
from utils.errors import InputError

NAMES = ("Red crested Finch", "Blue winged Finch", "Green tailed Finch")


@pytest.fixture
def root(tmp_path):
    """The lists of 12 training and 6 test images; the folder of images is empty."""
    return write_cub(tmp_path / "cub", photos=False)


class TestRead:
    def test_gives_the_split_in_the_order_of_images_txt(self, root):
        train, test = cub.read(root, "train"), cub.read(root, "test")
        assert train.classes == test.classes == NAMES
        assert train.parents == test.parents == ()
        assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert test.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2
        assert train.ids[:2].tolist() == [
            "Red_crested_Finch_0001_993",
            "Red_crested_Finch_0002_986",
        ]
        assert test.paths[0] == "images/001.Red_crested_Finch/Red_crested_Finch_0005_965.jpg"
        assert not set(train.ids.tolist()) & set(test.ids.tolist())

    def test_names_photos_that_are_there(self, tmp_path):
        root = write_cub(tmp_path / "cub")
        paths = [*cub.read(root, "train").paths, *cub.read(root, "test").paths]
        photos = [np.asarray(Image.open(root / path).convert("RGB")).tobytes() for path in paths]
        assert len(set(photos)) == 18
        on_disk = {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")}
        assert on_disk == set(paths)
        assert sorted(path.name for path in root.iterdir()) == sorted(cub.ENTRIES)

    def test_has_every_class_where_a_split_lacks_one(self, tmp_path):
        test = cub.read(write_cub(tmp_path / "cub", test_classes=[0, 2], photos=False), "test")
        assert test.classes == NAMES
        assert test.labels.tolist() == [0, 0, 2, 2]

    def test_orders_classes_by_number_not_by_text(self, root):
        edit_lines(root / "classes.txt", lambda lines: ["10 010.Tenth_Bird", *reversed(lines)])
        edit_lines(root / "image_class_labels.txt", lambda lines: ["1 10", *lines[1:]])
        train = cub.read(root, "train")
        assert train.classes == (*NAMES, "Tenth Bird")
        assert train.labels.tolist() == [3] + [0] * 3 + [1] * 4 + [2] * 4

    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), newline=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
    def test_gives_back_what_was_written(self, tmp_path_factory, data, newline):
        class_ids = data.draw(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
        classes = {key: f"{key:03d}.Bird_{key}" for key in class_ids}
        keys = data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True))
        images = {key: f"{key % 7}/Bird_{key}.v2.jpg" for key in keys}
        labels = {key: data.draw(st.sampled_from(class_ids)) for key in keys}
        splits = {key: data.draw(st.integers(0, 1)) for key in keys}
        root = tmp_path_factory.getbasetemp() / "cub_lists"
        root.mkdir(exist_ok=True)
        write_table(root / "images.txt", images, newline)
        # Only the order of images.txt counts.
        for name, table in zip(LISTS[1:], (labels, splits, classes), strict=True):
            write_table(root / name, data.draw(st.permutations(list(table.items()))), newline)

        for split, value in (("train", 1), ("test", 0)):
            chosen = [key for key in keys if splits[key] == value]
            if not chosen:
                with pytest.raises(InputError, match=f"split.txt has no image of the {split} spl"):
                    cub.read(root, split)
                continue
            listing = cub.read(root, split)
            assert listing.ids.tolist() == [f"Bird_{key}.v2" for key in chosen]
            assert listing.paths.tolist() == [f"images/{images[key]}" for key in chosen]
            assert listing.classes == tuple(f"Bird {key}" for key in sorted(class_ids))
            named = [listing.classes[label] for label in listing.labels]
            assert named == [f"Bird {labels[key]}" for key in chosen]


class TestRefusals:
    @pytest.mark.parametrize(("name", "edit", "message"), DAMAGES)
    def test_of_a_damaged_list(self, root, name, edit, message):
        edit_lines(root / name, edit)
        with pytest.raises(InputError, match=message):
            cub.read(root, "train")

    @pytest.mark.parametrize("name", LISTS)
    def test_of_a_file_that_cannot_be_read(self, root, name):
        (root / name).write_bytes(b"1 \xff\n")
        with pytest.raises(InputError, match=rf"{name} is not UTF-8 \(byte 2\)"):
            cub.read(root, "train")
        (root / name).unlink()
        with pytest.raises(InputError, match=f"{name} does not exist"):
            cub.read(root, "train")
        (root / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, not a file"):
            cub.read(root, "train")

    @pytest.mark.parametrize(("split", "other"), [("train", 0), ("test", 1)])
    def test_of_an_empty_split(self, root, split, other):
        edit_lines(
            root / "train_test_split.txt",
            lambda lines: [f"{line.split()[0]} {other}" for line in lines],
        )
        with pytest.raises(InputError, match=f"split.txt has no image of the {split} split"):
            cub.read(root, split)

    def test_of_names_that_differ_in_their_number_only(self, root):
        edit_lines(root / "classes.txt", lambda lines: [*lines[:2], "3 003.Red__crested Finch"])
        with pytest.raises(
            InputError, match=r"classes.txt gives 1 and 3 the same class name 'Red crested Finch'"
        ):
            cub.read(root, "train")

    def test_of_a_sample_id_that_both_splits_have(self, root):
        """Images 1, of the training split, and 18, of the test split."""
        edit_lines(root / "images.txt", lambda lines: [*lines[:-1], "18 a/" + lines[0][-30:]])
        with pytest.raises(InputError, match=r"images.txt gives 1 and 18 the same sample id 'Red_"):
            cub.read(root, "train")

    @settings(max_examples=100, deadline=None)
    @given(content=st.binary(max_size=60), name=st.sampled_from(LISTS))
    def test_of_random_bytes(self, tmp_path_factory, content, name):
        root = write_cub(tmp_path_factory.getbasetemp() / "cub_random", photos=False)
        (root / name).write_bytes(content)
        with pytest.raises(InputError, match=r"\.txt"):
            cub.read(root, "train")


@pytest.mark.skipif(REAL_CUB is None, reason="the official lists of CUB-200-2011 are not here")
class TestRealLists:
    @pytest.mark.parametrize(("split", "count"), [("train", 5994), ("test", 5794)])
    def test_have_the_official_counts(self, split, count):
        listing = cub.read(REAL_CUB, split)
        assert len(listing.ids) == len(listing.paths) == len(listing.labels) == count
        assert np.unique(listing.labels).tolist() == list(range(200))
        assert len(set(listing.classes)) == 200
        per_class = np.bincount(listing.labels)
        assert (per_class.min(), per_class.max()) == ((29, 30) if split == "train" else (11, 30))

    def test_have_the_official_samples(self):
        train, test = cub.read(REAL_CUB, "train"), cub.read(REAL_CUB, "test")
        assert train.classes[0] == "Black footed Albatross"
        assert train.classes[199] == "Common Yellowthroat"
        assert test.ids[0] == "Black_Footed_Albatross_0046_18"
        assert (
            test.paths[-1] == "images/200.Common_Yellowthroat/Common_Yellowthroat_0055_190967.jpg"
        )
        assert not set(train.ids.tolist()) & set(test.ids.tolist())
        for listing in (train, test):  # every file lies in the folder of its class
            folders = [path.split("/")[1] for path in listing.paths]
            assert [int(folder[:3]) - 1 for folder in folders] == listing.labels.tolist()
