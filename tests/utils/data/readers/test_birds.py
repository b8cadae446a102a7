"""utils/data/readers/birds.py, cub.py and nabirds.py: lists that must agree, a tree of classes."""

from uuid import UUID

import numpy as np
import pytest
from layouts import edit_lines
from layouts_birds import LISTS, NABIRDS_CLASSES, REAL_CUB, REAL_NABIRDS, write_cub, write_nabirds

from utils.data.readers import cub, nabirds
from utils.errors import InputError

CUB_NAMES = ("Red crested Finch", "Blue winged Finch", "Green tailed Finch")
NABIRDS_NAMES = ("Stone Finch (Male)", "Stone Finch (Female/juvenile)", "Ring Gull")
FINCHES = ("Finches, Sparrows, and Allies", "Birds")
IMAGES, LABELS, SPLITS, CLASSES = LISTS


@pytest.fixture
def root(tmp_path):
    """The lists of CUB of 12 training and 6 test images; the folder of images is empty."""
    return write_cub(tmp_path / "cub", photos=False)


@pytest.fixture
def tree(tmp_path):
    """The lists of NABirds, likewise."""
    return write_nabirds(tmp_path / "nabirds", photos=False)


def class_of(path: str) -> int:
    """The class id that the folder of an image of NABirds bears."""
    return int(path.split("/")[1])


class TestCub:
    def test_gives_the_split_in_the_order_of_images_txt(self, root):
        train, test = cub.read(root, "train"), cub.read(root, "test")
        assert train.classes == test.classes == CUB_NAMES
        assert train.parents == test.parents == ()
        assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert test.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2
        assert train.ids[:2].tolist() == [
            "Red_crested_Finch_0001_993",
            "Red_crested_Finch_0002_986",
        ]
        assert test.paths[0] == "images/001.Red_crested_Finch/Red_crested_Finch_0005_965.jpg"
        for name in LISTS[1:]:  # only the order of images.txt counts
            edit_lines(root / name, lambda lines: lines[::-1])
        again = cub.read(root, "train")
        assert again.classes == train.classes
        assert again.ids.tolist() == train.ids.tolist()
        assert again.labels.tolist() == train.labels.tolist()

    def test_orders_classes_by_number_not_by_text(self, root):
        edit_lines(root / CLASSES, lambda lines: ["10 010.Tenth_Bird", *reversed(lines)])
        edit_lines(root / LABELS, lambda lines: ["1 10", *lines[1:]])
        train = cub.read(root, "train")
        assert train.classes == (*CUB_NAMES, "Tenth Bird")
        assert train.labels.tolist() == [3] + [0] * 3 + [1] * 4 + [2] * 4

    @pytest.mark.parametrize(
        ("name", "edit", "message"),
        [
            *(
                (name, lambda lines: lines[1:], rf"{name} lacks .*, which .*images.txt has")
                for name in (LABELS, SPLITS)
            ),
            (LABELS, lambda lines: [*lines, "extra 1"], r"labels.txt has extra, which .* lacks"),
            (
                IMAGES,
                lambda lines: [lines[0], f"2 {lines[0][2:]}", *lines[2:]],
                r"images.txt gives 1 and 2 the same path '.*\.jpg'",
            ),
            (
                IMAGES,  # images 1, of the training split, and 18, of the test split
                lambda lines: [*lines[:-1], "18 a/" + lines[0][-30:]],
                r"images.txt gives 1 and 18 the same sample id 'Red_",
            ),
            *(
                (LABELS, lambda lines, bad=bad: [f"1 {bad}", *lines[1:]], rf"1 the class '{bad}'")
                for bad in ("99", "1.0", "1 1")
            ),
            *(
                (SPLITS, lambda lines, bad=bad: [f"1 {bad}", *lines[1:]], rf"'{bad}', not 0 or 1")
                for bad in ("2", "1 0", "01")
            ),
            (
                SPLITS,
                lambda lines: [f"{x.split()[0]} 0" for x in lines],
                r"has no image of the tra",
            ),
            (CLASSES, lambda lines: lines[:-1], r"labels.txt gives .*, which .*classes.txt lacks"),
            (CLASSES, lambda lines: [*lines, "x Bird"], r"a class id is 'x', not a whole number"),
        ],
    )
    def test_refuses_lists_that_contradict(self, root, name, edit, message):
        edit_lines(root / name, edit)
        with pytest.raises(InputError, match=message):
            cub.read(root, "train")


class TestNabirds:
    @pytest.mark.parametrize(("split", "count"), [("train", 4), ("test", 2)])
    def test_gives_the_split_in_the_order_of_images_txt(self, tree, split, count):
        listing = nabirds.read(tree, split)
        assert listing.classes == NABIRDS_NAMES
        assert listing.parents == (FINCHES, FINCHES, ("Ring Gull", "Gulls", "Birds"))
        assert np.bincount(listing.labels).tolist() == [count] * 3
        ids, paths = listing.ids.tolist(), listing.paths.tolist()
        assert [NABIRDS_CLASSES[label] for label in listing.labels] == list(map(class_of, paths))
        assert ids == sorted(ids)
        assert [UUID(sample_id).hex for sample_id in ids] == [path[12:44] for path in paths]

    def test_lets_a_name_stand_for_several_nodes_above(self, tree):
        edit_lines(tree / CLASSES, lambda lines: [*lines, "5 Ring Gull", "6 Ring Gull"])
        edit_lines(tree / "hierarchy.txt", lambda lines: [*lines[:-1], "12 5", "5 6", "6 4"])
        assert nabirds.read(tree, "train").parents[2] == (*["Ring Gull"] * 3, "Gulls", "Birds")

    @pytest.mark.parametrize(
        ("name", "edit", "message"),
        [
            ("hierarchy.txt", lambda lines: [*lines, "99 0"], r"the class '99', which .* lacks"),
            ("hierarchy.txt", lambda lines: [*lines[:-1], "12 99"], r"has the class '99', which "),
            ("hierarchy.txt", lambda lines: [*lines, "0 12"], r"parents of class 7 go round in a "),
            # They could not be told apart in any result.
            (
                CLASSES,
                lambda lines: [*lines[:-1], "12 Stone Finch (Male)"],
                r"class 7 and class 12",
            ),
        ],
    )
    def test_refuses_a_damaged_tree(self, tree, name, edit, message):
        edit_lines(tree / name, edit)
        with pytest.raises(InputError, match=message):
            nabirds.read(tree, "train")

    def test_refuses_an_image_of_a_class_with_classes_below_it(self, tree):
        edit_lines(tree / "image_class_labels.txt", lambda ls: [f"{ls[0].split()[0]} 0", *ls[1:]])
        with pytest.raises(InputError, match=r"labels.txt gives an image the class 0, which "):
            nabirds.read(tree, "train")


@pytest.mark.skipif(REAL_CUB is None, reason="the official lists of CUB-200-2011 are not here")
class TestRealCub:
    def test_has_the_official_samples(self):
        train, test = cub.read(REAL_CUB, "train"), cub.read(REAL_CUB, "test")
        assert (len(train.ids), len(test.ids), len(set(train.classes))) == (5994, 5794, 200)
        assert (np.bincount(train.labels).min(), np.bincount(test.labels).min()) == (29, 11)
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


@pytest.mark.skipif(REAL_NABIRDS is None, reason="the official lists of NABirds are not here")
class TestRealNabirds:
    def test_has_the_official_samples(self):
        train, test = (nabirds.read(REAL_NABIRDS, split) for split in ("train", "test"))
        assert train.classes == test.classes
        assert (len(train.ids), len(test.ids), len(set(train.classes))) == (23929, 24633, 555)
        assert test.ids[0] == "0000139e-21dc-4d0c-bfe1-4cae3c85c829"
        assert test.paths[0] == "images/0817/0000139e21dc4d0cbfe14cae3c85c829.jpg"
        assert train.classes[0] == "Common Eider (Adult male)"
        assert "Blue-winged Teal (Male)" in train.classes  # two blanks in the official file
        assert not set(train.ids.tolist()) & set(test.ids.tolist())
        # Folders bear the official class ids; ours keep their order.
        folders = np.array([class_of(path) for path in [*train.paths, *test.paths]])
        labels = np.concatenate([train.labels, test.labels])
        assert np.array_equal(np.unique(folders)[labels], folders)

    def test_has_the_official_tree(self):
        listing = nabirds.read(REAL_NABIRDS, "test")
        assert {len(names) for names in listing.parents} == {3, 4}
        assert {names[-1] for names in listing.parents} == {"Birds"}
        verdin = listing.parents[listing.classes.index("Verdin")]
        assert verdin[:2] == ("Verdin", "Verdin")  # family and species are called like the leaf
        alike = [
            name in names for name, names in zip(listing.classes, listing.parents, strict=True)
        ]
        assert sum(alike) == 267
