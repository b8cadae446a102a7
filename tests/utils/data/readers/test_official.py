"""What the readers of all official datasets have in common."""

import re
from itertools import permutations
from pathlib import Path

import layouts_birds  # noqa: F401 - enters its writers in LAYOUTS
import layouts_web  # noqa: F401
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, edit_lines
from layouts_objects import DOG_FOLDERS, write_dog_list
from PIL import Image

from utils.data.catalog import DatasetSpec, get_spec
from utils.data.readers.listing import Listing, without_ending
from utils.errors import InputError

# Those that have an official format, written by the modules above.
OFFICIAL = {name: layout for name, layout in LAYOUTS.items() if get_spec(name).entries}
of_every_dataset = pytest.mark.parametrize("name", OFFICIAL)
of_every_file = pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, kind in OFFICIAL.items() for file in kind.files]
)


def write_lists(name: str, root: Path, **counts: object) -> Path:
    """Write a dataset whose folders of images are empty; the lists of CIFAR hold its images."""
    photos = {} if name.startswith("cifar") else {"photos": False}
    return OFFICIAL[name].write(root, **photos, **counts)


@pytest.fixture
def spec(name) -> DatasetSpec:
    return get_spec(name)


@pytest.fixture
def root(name, tmp_path) -> Path:
    return write_lists(name, tmp_path / "data")


def read_both(spec: DatasetSpec, root: Path) -> list[Listing]:
    return [spec.read(root, split) for split in ("train", OFFICIAL[spec.name].eval_split)]


class TestRead:
    @of_every_dataset
    def test_names_photos_that_are_there_and_different(self, spec, name, tmp_path):
        root = OFFICIAL[name].write(tmp_path / "data")
        entries = {path.name for path in root.iterdir()}
        train, other = read_both(spec, root)
        assert {path.name for path in root.iterdir()} == entries  # nothing is written
        if spec.prepare is not None:
            spec.prepare(root)
        paths = [*train.paths, *other.paths]
        assert len(train.paths) >= 12
        assert len(other.paths) == 6
        photos = {np.asarray(Image.open(root / path)).tobytes() for path in paths}
        assert len(photos) == len(paths)
        listed = set(train.ids.tolist()) | set(other.ids.tolist())
        assert len(listed) == len(paths)
        assert all((root / entry.partition("|")[0]).exists() for entry in spec.entries)

    @pytest.mark.parametrize("name", [name for name in OFFICIAL if not name.startswith("cifar")])
    def test_finds_photos_whose_names_differ_a_little(self, spec, name, tmp_path):
        root = OFFICIAL[name].write(tmp_path / "data")
        before = spec.read(root, "train")
        assert before.notes == ()
        photos = [root / path for path in before.paths.tolist()[:2]]
        renamed = photos[0].rename(photos[0].with_name(photos[0].name.swapcase()))
        photos[1].unlink()
        after = spec.read(root, "train")
        assert after.ids.tolist() == before.ids.tolist()
        expected = [str(renamed.relative_to(root)), *before.paths[1:]]
        assert after.paths.tolist() == expected
        assert re.fullmatch(r"\S+: 1 of \d+ names differ from their files in .*", after.notes[0])
        assert re.fullmatch(r"\S+: 1 of \d+ names have no file \(first: .*\)", after.notes[1])

    @of_every_dataset
    def test_has_every_class_where_a_split_lacks_one(self, spec, name, tmp_path):
        root = write_lists(name, tmp_path / "data", test_classes=[0, 2])
        train, other = read_both(spec, root)
        assert train.classes == other.classes
        assert len(train.classes) == 3
        assert sorted(other.labels.tolist()) == [0, 0, 2, 2]

    @pytest.mark.parametrize(
        ("name", "theirs", "folder", "split", "first_id"),
        [
            ("aircraft", "FGVCAircraft", "fgvc-aircraft-2013b", "train", "0034309"),
            ("aircraft", "FGVCAircraft", "fgvc-aircraft-2013b", "val", "0076860"),
            ("aircraft", "FGVCAircraft", "fgvc-aircraft-2013b", "trainval", "0034309"),
            ("aircraft", "FGVCAircraft", "fgvc-aircraft-2013b", "test", "0029346"),
            ("food101", "Food101", "food-101", "train", "apple_pie/1005649"),
            ("food101", "Food101", "food-101", "test", "apple_pie/1005277"),
            ("pet", "OxfordIIITPet", "oxford-iiit-pet", "train", "Abyssinian_100"),
            ("pet", "OxfordIIITPet", "oxford-iiit-pet", "test", "Abyssinian_112"),
            ("car", "StanfordCars", "stanford_cars", "train", "train_00001"),
            ("car", "StanfordCars", "stanford_cars", "test", "test_00001"),
        ],
    )
    def test_agrees_with_torchvision(self, spec, name, theirs, folder, split, first_id, tmp_path):
        import torchvision.datasets

        root = OFFICIAL[name].write(tmp_path / folder, photos=False)
        official = {("pet", "train"): "trainval"}.get((name, split), split)
        dataset = getattr(torchvision.datasets, theirs)(tmp_path, official)
        if name == "car":
            expected = dataset._samples
        else:
            files = dataset._images if name == "pet" else dataset._image_files
            expected = list(zip(map(str, files), dataset._labels, strict=True))
        listing = spec.read(root, split)
        assert (listing.ids[0], listing.parents) == (first_id, ())
        paths = [str(root / path) for path in listing.paths]
        assert list(zip(paths, listing.labels.tolist(), strict=True)) == expected

        def plain(names):
            return [" ".join(name.lower().replace("_", " ").split()) for name in names]

        assert plain(listing.classes) == plain(dataset.classes)


class TestRefusals:
    @of_every_file
    def test_of_a_file_that_is_missing_foreign_or_a_folder(self, spec, root, file):
        path, file = root / file, Path(file).name
        path.write_bytes(b"1 Fl\xfcgel/\xe9.jpg\n")
        with pytest.raises(InputError, match=f"{file} is not ") as refusal:
            spec.read(root, "train")
        assert "\n" not in str(refusal.value)
        path.unlink()
        with pytest.raises(InputError, match=f"{file} does not exist"):
            spec.read(root, "train")
        path.mkdir()
        with pytest.raises(InputError, match=f"{file} (is a folder|does not exist)"):
            spec.read(root, "train")

    @of_every_dataset
    @settings(max_examples=25)
    @given(data=st.data())
    def test_of_random_bytes(self, tmp_path_factory, name, data):
        root = tmp_path_factory.getbasetemp() / f"random_{name}"
        if not root.exists():
            write_lists(name, root)
        files = [
            file for file in OFFICIAL[name].files if not re.search("_val.txt|test.txt|hier", file)
        ]
        path = root / data.draw(st.sampled_from(files))
        before = path.read_bytes()
        # Names for people may be any text, but not of another number of lines.
        ending = b"\nx" * 4 if path.name == "labels.txt" else b""
        path.write_bytes(data.draw(st.binary(max_size=60)) + ending)
        try:
            with pytest.raises(InputError, match=re.escape(path.parent.name)) as refusal:
                get_spec(name).read(root, "train")
        finally:
            path.write_bytes(before)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("name", "split", "source", "other"),
        [
            *(
                (name, split, kind.lists[split], kind.lists[other])
                for name, kind in OFFICIAL.items()
                for split, other in permutations(kind.lists, 2)
            ),
            *(  # its trainval has train and val
                ("aircraft", split, *(f"data/images_variant_{each}.txt" for each in (split, other)))
                for split, other in (
                    ("train", "test"),
                    ("val", "test"),
                    ("trainval", "test"),
                    ("test", "trainval"),
                )
            ),
        ],
    )
    def test_of_an_image_that_another_split_has(self, spec, root, split, source, other):
        shared = (root / source).read_text().splitlines()[0]
        edit_lines(root / other, lambda lines: [*lines, shared])
        image = without_ending(shared.split()[0])
        message = rf"(?=.*{source}\b)(?=.*{other}\b).* has the image '{image}\b.*', and so has "
        with pytest.raises(InputError, match=message):
            spec.read(root, split)

    @pytest.mark.parametrize("folder", [DOG_FOLDERS[0], DOG_FOLDERS[2]])
    @pytest.mark.parametrize("name", ["dog"])
    def test_of_a_dog_that_both_splits_have_in_whatever_folder(self, spec, root, folder):
        shared = spec.read(root, "train").ids[0]
        file = root / "test_list.mat"
        write_dog_list(file, [f"{folder}/{shared}.jpg"], [DOG_FOLDERS.index(folder) + 1])
        for split in ("train", "test"):
            with pytest.raises(InputError, match=f"has the image '{shared}', and so has .*{file}"):
                spec.read(root, split)
