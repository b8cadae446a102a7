"""utils/data/readers/pet.py: the official lists, read exactly or refused in one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_birds import edit_lines
from layouts_objects import write_pet
from PIL import Image

from utils.data.readers import pet
from utils.errors import InputError

TRAIN, TEST = "annotations/trainval.txt", "annotations/test.txt"
NAMES = ("Abyssinian", "american bulldog", "British Shorthair")


@pytest.fixture
def root(tmp_path):
    """The lists of 12 training and 6 test images; the folder of images is empty."""
    return write_pet(tmp_path / "oxford-iiit-pet", photos=False)


class TestRead:
    def test_gives_the_split_in_the_order_of_its_list(self, root):
        train, test = pet.read(root, "train"), pet.read(root, "test")
        assert train.classes == test.classes == NAMES
        assert train.parents == test.parents == ()
        assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert test.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2
        assert train.ids[3:5].tolist() == ["Abyssinian_103", "american_bulldog_104"]
        assert train.paths[4] == "images/american_bulldog_104.jpg"

        edit_lines(root / TRAIN, lambda lines: lines[::-1])
        assert pet.read(root, "train").ids.tolist() == train.ids[::-1].tolist()

    def test_names_photos_that_are_there(self, tmp_path):
        root = write_pet(tmp_path / "pet")
        paths = [*pet.read(root, "train").paths, *pet.read(root, "test").paths]
        photos = {np.asarray(Image.open(root / path)).tobytes() for path in paths}
        assert len(photos) == len(paths) == 18
        assert {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")} == set(paths)
        assert sorted(path.name for path in root.iterdir()) == sorted(pet.ENTRIES)

    def test_has_every_class_where_a_split_lacks_one(self, tmp_path):
        root = write_pet(tmp_path / "pet", test_classes=[0, 2], photos=False)
        assert pet.read(root, "test").classes == NAMES
        assert pet.read(root, "test").labels.tolist() == [0, 0, 2, 2]
        edit_lines(root / TRAIN, lambda lines: [line for line in lines if "Abyss" not in line])
        edit_lines(root / TEST, lambda lines: [*lines, "american_bulldog_999 2 2 1"])
        assert pet.read(root, "train").classes == NAMES
        assert pet.read(root, "train").labels.tolist() == [1] * 4 + [2] * 4

    def test_takes_archives_that_lie_in_folders_of_their_names(self, tmp_path):
        root = write_pet(tmp_path / "pet")
        for name in pet.ENTRIES:
            (root / name).rename(root / "aside")
            (root / name).mkdir()
            (root / "aside").rename(root / name / name)
        for split, count in (("train", 12), ("test", 6)):
            listing = pet.read(root, split)
            assert len(listing.paths) == count
            assert all((root / path).is_file() for path in listing.paths)

    @pytest.mark.parametrize(("split", "theirs"), [("train", "trainval"), ("test", "test")])
    def test_agrees_with_torchvision(self, root, split, theirs):
        from torchvision.datasets import OxfordIIITPet

        theirs = OxfordIIITPet(root.parent, theirs)
        ours = pet.read(root, split)
        assert [root / path for path in ours.paths] == theirs._images
        assert ours.labels.tolist() == theirs._labels
        # Theirs makes titles of the names: American Bulldog.
        assert [name.title() for name in ours.classes] == theirs.classes

    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), newline=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
    def test_gives_back_what_was_written(self, tmp_path_factory, data, newline):
        num_classes = data.draw(st.integers(1, 12))
        root = tmp_path_factory.getbasetemp() / "pet_lists"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        # Each class has its first image in either split, and a list must not be empty.
        images = [(number, data.draw(st.booleans())) for number in range(1, num_classes + 1)]
        images += [(1, True), (data.draw(st.integers(1, num_classes)), False)]
        images = [
            (f"Big_{'dog' if label % 2 else 'cat'}_no{label}_{number}", label, is_train)
            for number, (label, is_train) in enumerate(data.draw(st.permutations(images)))
        ]
        for file, wanted in ((TRAIN, True), (TEST, False)):
            lines = [f"{name} {label} 1  7" for name, label, train in images if train == wanted]
            text = "".join(f"{line}{newline}" for line in lines)
            (root / file).write_text(text, encoding="utf-8", newline="")
        for split, wanted in (("train", True), ("test", False)):
            listing = pet.read(root, split)
            chosen = [(name, label) for name, label, train in images if train == wanted]
            assert listing.ids.tolist() == [name for name, _ in chosen]
            assert listing.paths.tolist() == [f"images/{name}.jpg" for name, _ in chosen]
            assert (listing.labels + 1).tolist() == [label for _, label in chosen]
            assert listing.classes == tuple(
                f"Big {'dog' if label % 2 else 'cat'} no{label}"
                for label in range(1, num_classes + 1)
            )


def _first(line):
    return lambda lines: [line, *lines[1:]]


# The first line of a list is `Abyssinian_1xx 1 1 1`.
DAMAGES = [
    (lambda lines: [], r" is empty$"),
    *(
        (_first(bad), r" line 1: .* is no name, class id, species and breed id$")
        for bad in ("Abyssinian_1", "Abyssinian_1 1 1", "Abyssinian_1 1 1 1 1", "# a b c d")
    ),
    *(
        (_first(f"{bad} 1 1 1"), r" line 1: '.*' is no breed, `_` and number$")
        for bad in (
            "Abyssinian",
            "Abyssinian_",
            "_1",
            "Abyssinian_x",
            "Abyssinian_1.jpg",
            "1",
            "a/Abyssinian_1",
            "../Abyssinian_1",
            r"a\Abyssinian_1",
            "Abyssinian_\uff13",
        )
    ),
    *(
        (
            _first(f"Abyssinian_1 {bad} 1 1"),
            r": the class id of line 1 is '.*', not a whole number$",
        )
        for bad in ("x", "-1", "1.0", "1_0", "\uff13")
    ),
    (_first("Abyssinian_1 1 cat 1"), r": the species of line 1 is 'cat', not a whole number$"),
    (_first("Abyssinian_1 1 1 x"), r": the breed id of line 1 is 'x', not a whole number$"),
    (_first("Abyssinian_1 0 1 1"), r" gives 'Abyssinian_1' the class id 0, not 1 or more$"),
    (_first("Persian_1 1 1 1"), r" gives .* the class id 1, which is that of '\w+'$"),
    (_first("abyssinian_1 1 1 1"), r" gives .* the class id 1, which is that of '(A|a)byssinian'$"),
    (_first("Persian_1 5 1 1"), r" and .*test.txt have images of class id 5, but none of 4$"),
    (
        _first("Abyssinian_1 4 1 1"),
        r" and .*test.txt gives class id 1 and class id 4 the same class name 'Abyssi",
    ),
    (_first("__1 4 1 1"), r" and .*test.txt give class id 4 no name$"),
    (lambda lines: [*lines, lines[0]], r" has the image 'Abyssinian_1\d\d' more than once$"),
]


class TestRefusals:
    @pytest.mark.parametrize("name", [TRAIN, TEST])
    @pytest.mark.parametrize(("edit", "message"), DAMAGES)
    def test_of_a_damaged_list(self, root, name, edit, message):
        """Of either list, whichever split is read."""
        edit_lines(root / name, edit)
        for split in ("train", "test"):
            with pytest.raises(InputError, match=rf"\.txt{message}") as refusal:
                pet.read(root, split)
            assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("name", [TRAIN, TEST])
    def test_of_a_file_that_cannot_be_read(self, root, name):
        (root / name).write_bytes(b"1 \xff\n")
        with pytest.raises(InputError, match=rf"{name} is not UTF-8 \(byte 2\)"):
            pet.read(root, "train")
        (root / name).unlink()
        with pytest.raises(InputError, match=f"{name} does not exist"):
            pet.read(root, "train")
        (root / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, not a file"):
            pet.read(root, "train")

    def test_of_an_image_that_both_splits_have(self, root):
        edit_lines(root / TEST, lambda lines: [*lines, "Abyssinian_100 1 1 1"])
        for split in ("train", "test"):
            with pytest.raises(
                InputError, match=r"test.txt has the image 'Abyssinian_100' and so has .*val.txt"
            ):
                pet.read(root, split)

    @settings(max_examples=40, deadline=None)
    @given(content=st.binary(max_size=60), name=st.sampled_from([TRAIN, TEST]))
    def test_of_random_bytes(self, tmp_path_factory, content, name):
        root = write_pet(tmp_path_factory.getbasetemp() / "pet_random", photos=False)
        (root / name).write_bytes(content)
        with pytest.raises(InputError, match=r"\.txt"):
            pet.read(root, "train")
