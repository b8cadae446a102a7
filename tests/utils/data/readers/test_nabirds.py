"""utils/data/readers/nabirds.py: the official lists and the tree of classes, read or refused."""

from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_birds import (
    DAMAGES,
    LISTS,
    NABIRDS_CLASSES,
    REAL_NABIRDS,
    edit_lines,
    write_nabirds,
    write_table,
)
from PIL import Image

from utils.data.readers import nabirds
from utils.errors import InputError

NAMES = ("Stone Finch (Male)", "Stone Finch (Female/juvenile)", "Ring Gull")
FINCHES = ("Finches, Sparrows, and Allies", "Birds")


@pytest.fixture
def root(tmp_path):
    """The lists of 12 training and 6 test images; the folder of images is empty."""
    return write_nabirds(tmp_path / "nabirds", photos=False)


def class_of(path: str) -> int:
    """The class id that the folder of an image bears."""
    return int(path.split("/")[1])


class TestRead:
    @pytest.mark.parametrize(("split", "count"), [("train", 4), ("test", 2)])
    def test_gives_the_split_in_the_order_of_images_txt(self, root, split, count):
        listing = nabirds.read(root, split)
        assert listing.classes == NAMES
        assert listing.parents == (FINCHES, FINCHES, ("Ring Gull", "Gulls", "Birds"))
        assert np.bincount(listing.labels).tolist() == [count] * 3
        ids, paths = listing.ids.tolist(), listing.paths.tolist()
        assert [NABIRDS_CLASSES[label] for label in listing.labels] == list(map(class_of, paths))
        assert ids == sorted(ids)
        assert [UUID(sample_id).hex for sample_id in ids] == [path[12:44] for path in paths]

    def test_names_photos_that_are_there(self, tmp_path):
        root = write_nabirds(tmp_path / "nabirds")
        paths = [*nabirds.read(root, "train").paths, *nabirds.read(root, "test").paths]
        photos = [np.asarray(Image.open(root / path).convert("RGB")).tobytes() for path in paths]
        assert len(set(photos)) == 18
        on_disk = {path.relative_to(root).as_posix() for path in root.glob("images/*/*")}
        assert on_disk == set(paths)
        assert sorted(path.name for path in root.iterdir()) == sorted(nabirds.ENTRIES)

    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_has_a_class_that_only_the_other_split_has(self, tmp_path, missing):
        tested = [index for index in range(3) if index != missing]
        root = write_nabirds(tmp_path / "nabirds", test_classes=tested, photos=False)
        listing = nabirds.read(root, "test")
        assert listing.classes == NAMES
        assert sorted(set(listing.labels.tolist())) == tested

    def test_lets_a_name_stand_for_several_nodes_above(self, root):
        edit_lines(root / "classes.txt", lambda lines: [*lines, "5 Ring Gull", "6 Ring Gull"])
        edit_lines(root / "hierarchy.txt", lambda lines: [*lines[:-1], "12 5", "5 6", "6 4"])
        assert nabirds.read(root, "train").parents[2] == (*["Ring Gull"] * 3, "Gulls", "Birds")

    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), newline=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
    def test_gives_back_what_was_written(self, tmp_path_factory, data, newline):
        # A random tree: each node hangs below one that was drawn before it.
        nodes = data.draw(st.lists(st.integers(0, 10**6), min_size=2, max_size=30, unique=True))
        parent_of = {
            node: data.draw(st.sampled_from(nodes[:place]))
            for place, node in enumerate(nodes[1:], start=1)
        }
        above = {nodes[0]: ()}
        for node, parent in parent_of.items():
            above[node] = (f"Bird {parent}", *above[parent])
        keys = data.draw(st.lists(st.uuids(), min_size=1, max_size=30, unique=True))
        images = {key: f"{key.hex}.jpg" for key in keys}
        leaves = [node for node in nodes if node not in parent_of.values()]
        labels = {key: data.draw(st.sampled_from(leaves)) for key in keys}
        splits = {key: data.draw(st.integers(0, 1)) for key in keys}
        classes = {node: f"Bird_{node}" for node in nodes}
        root = tmp_path_factory.getbasetemp() / "nabirds_lists"
        root.mkdir(exist_ok=True)
        write_table(root / "images.txt", images, newline)
        # Only the order of images.txt counts.
        side_tables = (labels, splits, classes, parent_of)
        for name, table in zip((*LISTS[1:], "hierarchy.txt"), side_tables, strict=True):
            write_table(root / name, data.draw(st.permutations(list(table.items()))), newline)

        used = sorted(set(labels.values()))
        for split, value in (("train", 1), ("test", 0)):
            chosen = [key for key in keys if splits[key] == value]
            if not chosen:
                with pytest.raises(InputError, match=f"split.txt has no image of the {split} spl"):
                    nabirds.read(root, split)
                continue
            listing = nabirds.read(root, split)
            assert listing.classes == tuple(f"Bird {node}" for node in used)
            assert listing.parents == tuple(above[node] for node in used)
            assert listing.ids.tolist() == [str(key) for key in chosen]
            assert listing.paths.tolist() == [f"images/{key.hex}.jpg" for key in chosen]
            assert listing.labels.tolist() == [used.index(labels[key]) for key in chosen]


class TestRefusals:
    @pytest.mark.parametrize(("name", "edit", "message"), DAMAGES)
    def test_of_a_damaged_list(self, root, name, edit, message):
        edit_lines(root / name, edit)
        with pytest.raises(InputError, match=message):
            nabirds.read(root, "train")

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda lines: [], r"is empty$"),
            (lambda lines: ["1", *lines[1:]], r"line 1: '1' is no pair"),
            (lambda lines: [*lines, "12 1"], r"has the key 12 more than once"),
            (
                lambda lines: [*lines[:-1], "12 99"],
                r"has the class '99', which .*classes.txt lacks",
            ),
            (lambda lines: [*lines, "99 0"], r"has the class '99', which .*classes.txt lacks"),
            (lambda lines: [*lines, "-1 x"], r"has the class '-1', which .*classes.txt lacks"),
            (lambda lines: lines[:-1], r"gives no parent to 2 classes, 0 and 12 among them"),
            (lambda lines: lines[1:], r"gives no parent to 2 classes, 0 and 1 among them"),
            (lambda lines: [*lines, "0 12"], r"the parents of class 0 go round in a circle"),
            (lambda lines: [*lines, "0 0"], r"the parents of class 0 go round in a circle"),
            (lambda lines: [*lines[:-1], "12 12"], r"the parents of class 12 go round in a circle"),
            # No image has class 9, nor one below it.
            (
                lambda lines: [line.replace("9 1", "9 9") for line in lines],
                r"the parents of class 9 go round in a circle",
            ),
        ],
    )
    def test_of_a_damaged_tree(self, root, edit, message):
        edit_lines(root / "hierarchy.txt", edit)
        with pytest.raises(InputError, match=rf"hierarchy\.txt:? {message}"):
            nabirds.read(root, "train")

    def test_of_an_image_of_a_class_with_classes_below_it(self, root):
        edit_lines(root / "image_class_labels.txt", lambda ls: [f"{ls[0].split()[0]} 0", *ls[1:]])
        with pytest.raises(InputError, match=r"labels.txt gives an image the class 0, which "):
            nabirds.read(root, "train")

    @pytest.mark.parametrize("name", [*LISTS, "hierarchy.txt"])
    def test_of_a_file_that_cannot_be_read(self, root, name):
        (root / name).write_bytes(b"1 \xff\n")
        with pytest.raises(InputError, match=rf"{name} is not UTF-8 \(byte 2\)"):
            nabirds.read(root, "train")
        (root / name).unlink()
        with pytest.raises(InputError, match=f"{name} does not exist"):
            nabirds.read(root, "train")
        (root / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, not a file"):
            nabirds.read(root, "train")

    @pytest.mark.parametrize(("split", "other"), [("train", 0), ("test", 1)])
    def test_of_an_empty_split(self, root, split, other):
        edit_lines(
            root / "train_test_split.txt",
            lambda lines: [f"{line.split()[0]} {other}" for line in lines],
        )
        with pytest.raises(InputError, match=f"split.txt has no image of the {split} split"):
            nabirds.read(root, split)

    def test_of_one_name_for_two_classes_with_images(self, root):
        """They could not be told apart in any result."""
        edit_lines(root / "classes.txt", lambda lines: [*lines[:-1], "12 Stone Finch (Male)"])
        with pytest.raises(InputError, match=r"classes.txt gives 7 and 12 the same class name 'St"):
            nabirds.read(root, "test")

    @settings(max_examples=100, deadline=None)
    @given(content=st.binary(max_size=60), name=st.sampled_from([*LISTS, "hierarchy.txt"]))
    def test_of_random_bytes(self, tmp_path_factory, content, name):
        root = write_nabirds(tmp_path_factory.getbasetemp() / "nabirds_random", photos=False)
        (root / name).write_bytes(content)
        with pytest.raises(InputError, match=r"\.txt"):
            nabirds.read(root, "train")


@pytest.mark.skipif(REAL_NABIRDS is None, reason="the official lists of NABirds are not here")
class TestRealLists:
    @pytest.mark.parametrize(("split", "count"), [("train", 23929), ("test", 24633)])
    def test_have_the_official_counts(self, split, count):
        listing = nabirds.read(REAL_NABIRDS, split)
        assert len(listing.ids) == len(listing.paths) == len(listing.labels) == count
        assert np.unique(listing.labels).tolist() == list(range(555))
        assert len(set(listing.classes)) == len(listing.parents) == 555

    def test_have_the_official_samples(self):
        train, test = (nabirds.read(REAL_NABIRDS, split) for split in ("train", "test"))
        assert train.classes == test.classes
        assert test.ids[0] == "0000139e-21dc-4d0c-bfe1-4cae3c85c829"
        assert test.paths[0] == "images/0817/0000139e21dc4d0cbfe14cae3c85c829.jpg"
        assert train.classes[0] == "Common Eider (Adult male)"
        assert "Blue-winged Teal (Male)" in train.classes  # two blanks in the official file
        assert not set(train.ids.tolist()) & set(test.ids.tolist())
        # Folders bear the official class ids; ours keep their order.
        folders = np.array([class_of(path) for path in [*train.paths, *test.paths]])
        labels = np.concatenate([train.labels, test.labels])
        assert np.array_equal(np.unique(folders)[labels], folders)

    def test_have_the_official_tree(self):
        listing = nabirds.read(REAL_NABIRDS, "test")
        assert {len(names) for names in listing.parents} == {3, 4}
        assert {names[-1] for names in listing.parents} == {"Birds"}
        verdin = listing.parents[listing.classes.index("Verdin")]
        assert verdin[:2] == ("Verdin", "Verdin")  # family and species are called like the leaf
        alike = [
            name in names for name, names in zip(listing.classes, listing.parents, strict=True)
        ]
        assert sum(alike) == 267
