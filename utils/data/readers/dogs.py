"""Read Stanford Dogs (Khosla et al., FGVC 2011): 20,580 photos of 120 breeds out of ImageNet.

`train_list.mat` and `test_list.mat` hold the photos' paths below `Images/`, as
`n02085620-Chihuahua/n02085620_10074.jpg`, and their labels from 1; only the folders, a WordNet id
and a name, name the breeds. lists.tar unpacks to the two files without a folder, so they lie at
the root or in a `lists/` that people make for them.
"""

import re
from pathlib import Path

from utils.data.readers.listing import Listing, make_listing, unpacked, without_ending
from utils.data.readers.matlab import load_mat, read_numbers, read_texts
from utils.data.readers.named import Sample, name_classes
from utils.errors import InputError

IMAGE_FOLDER = "Images"
LIST_FOLDER = "lists"
LIST_FILES = {"train": "train_list.mat", "test": "test_list.mat"}
ARCHIVE_FOLDER = "images"  # where images.tar is unpacked into a folder of its own
ENTRIES = (f"{IMAGE_FOLDER}|{ARCHIVE_FOLDER}",)  # what both places of the lists have in common
REMEDY = "fetch lists.tar of Stanford Dogs again"


def read(root: Path, split: str) -> Listing:
    """Read the `train` or `test` split of the official layout below `root`, in its list's order."""
    sources = {name: _find_list(root, file) for name, file in LIST_FILES.items()}
    paths = {name: _read_paths(source) for name, source in sources.items()}
    samples = {
        name: [_sample(sources[name], path, label) for path, label in pairs]
        for name, pairs in paths.items()
    }
    folder = unpacked(root, IMAGE_FOLDER, ARCHIVE_FOLDER)
    return make_listing(
        sources[split],
        name_classes({sources[name]: samples[name] for name in sources}),
        [sample.id for sample in samples[split]],
        [f"{folder}/{path}" for path, _ in paths[split]],
        [sample.class_id - 1 for sample in samples[split]],
        root=root,
    )


def _find_list(root: Path, name: str) -> Path:
    for path in (root / name, root / LIST_FOLDER / name):
        if path.exists():
            return path
    raise InputError(
        f"{root / name} does not exist, nor does {root / LIST_FOLDER / name}; "
        "unpack lists.tar of Stanford Dogs there"
    )


def _read_paths(source: Path) -> list[tuple[str, int]]:
    """Return (path below the folder of images, label from 1) of each photo."""
    variables = load_mat(source, REMEDY)
    paths = read_texts(source, "file_list", variables.get("file_list"), REMEDY)
    labels = read_numbers(source, "labels", variables.get("labels"), REMEDY)
    if len(paths) != len(labels):
        raise InputError(f"{source} has {len(paths)} files, but {len(labels)} labels; {REMEDY}")
    return list(zip(paths, labels.tolist(), strict=True))


def _sample(source: Path, path: str, label: int) -> Sample:
    match = re.fullmatch(r"[^/\\-]+-([^/\\]+)/([^/\\]+)", path)
    if match is None:
        raise InputError(f"{source}: {path!r} is not an `id-breed/file`; {REMEDY}")
    return Sample(without_ending(match[2]), label, match[1])
