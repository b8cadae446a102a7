"""Read the list files that CUB-200-2011 and NABirds share: `key value` lines in four files.

`images.txt` gives each image a path below `images/`, `image_class_labels.txt` a class id,
`train_test_split.txt` a 1 for training or a 0 for testing; `classes.txt` names the class ids.
The readers of the two datasets say what their classes and sample ids are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from utils.data.readers.list_files import check_not_shared, check_same_keys, read_table, to_int
from utils.data.readers.listing import Listing, clean_names, make_listing
from utils.errors import InputError

IMAGE_FOLDER = "images"
IMAGES_FILE = "images.txt"
LABELS_FILE = "image_class_labels.txt"
SPLITS_FILE = "train_test_split.txt"
CLASSES_FILE = "classes.txt"
ENTRIES = (IMAGE_FOLDER, IMAGES_FILE, LABELS_FILE, SPLITS_FILE, CLASSES_FILE)

# Our names of the splits, and how train_test_split.txt marks them.
SPLIT_VALUES = {"train": "1", "test": "0"}


@dataclass(frozen=True)
class BirdLists:
    """The four lists of one dataset, which agree about its images and classes."""

    root: Path
    paths: dict[str, str]  # of each image, below `images/`, in the order of images.txt
    labels: dict[str, str]  # the class id of each image
    splits: dict[str, str]  # 1 or 0 for each image
    classes: dict[str, str]  # the name of each class id as it stands there, ids ascending

    def listing(
        self,
        split: str,
        classes: Mapping[str, str],
        ids: Mapping[str, str],
        parents: Sequence[Sequence[str]] = (),
    ) -> Listing:
        """Return the images of one split in the order of images.txt.

        Args:
            split: `train` or `test`.
            classes: name of each class id, in index order; every id in use.
            ids: sample id of each image of the dataset.
            parents: names above each class, or nothing.

        Raises:
            InputError: the split is empty, a class has no name, two classes share a name or two
                images of the dataset a path or sample id, or a path leads out of the root.
        """
        names = clean_names(self.root / CLASSES_FILE, classes)
        # Of both splits: an image that is trained on must not be tested on.
        check_not_shared(self.root / IMAGES_FILE, "path", self.paths)
        check_not_shared(self.root / IMAGES_FILE, "sample id", ids)
        chosen = [key for key in self.paths if self.splits[key] == SPLIT_VALUES[split]]
        if not chosen:
            raise InputError(f"{self.root / SPLITS_FILE} has no image of the {split} split")
        index = {key: number for number, key in enumerate(classes)}
        return make_listing(
            self.root / IMAGES_FILE,
            names,
            [ids[key] for key in chosen],
            # Joined as paths, so that an absolute one stays absolute and is refused.
            [str(PurePosixPath(IMAGE_FOLDER, self.paths[key])) for key in chosen],
            [index[self.labels[key]] for key in chosen],
            parents,
            root=self.root,
        )


def read_lists(root: Path) -> BirdLists:
    """Read the four lists below `root`.

    Raises:
        InputError: a list is missing, damaged, speaks of other images than images.txt, or holds a
            class id that classes.txt lacks or a split other than 0 and 1.
    """
    images, labels, splits, classes = (
        read_table(root / name) for name in (IMAGES_FILE, LABELS_FILE, SPLITS_FILE, CLASSES_FILE)
    )
    check_same_keys(root / LABELS_FILE, labels, root / IMAGES_FILE, images)
    check_same_keys(root / SPLITS_FILE, splits, root / IMAGES_FILE, images)
    for key, label in labels.items():
        if label not in classes:
            raise InputError(
                f"{root / LABELS_FILE} gives image {key} the class {label!r}, "
                f"which {root / CLASSES_FILE} lacks"
            )
    for key, value in splits.items():
        if value not in SPLIT_VALUES.values():
            raise InputError(f"{root / SPLITS_FILE} gives image {key} {value!r}, not 0 or 1")
    ascending = sorted(classes, key=lambda key: to_int(root / CLASSES_FILE, "a class id", key))
    return BirdLists(root, images, labels, splits, {key: classes[key] for key in ascending})
