"""Read FGVC-Aircraft 2013b (Maji et al. 2013, arXiv:1306.5151): 10,000 photos of 100 variants.

Of the three levels of its hierarchy this is the finest, the variant. `images_variant_<split>.txt`
gives each image number a variant (`1025794 707-320`), whose names hold blanks and slashes
(`Hawk T1`, `F-16A/B`); `variants.txt` lists them in class order.
"""

from pathlib import Path

from utils.data.readers.list_files import check_apart, read_lines, read_table
from utils.data.readers.listing import Listing, clean_names, make_listing
from utils.errors import InputError

IMAGE_FOLDER = "data/images"
CLASSES_FILE = "data/variants.txt"
ENTRIES = (IMAGE_FOLDER, CLASSES_FILE)  # many a folder has a `data/`

# For each split those that share no image with it.
APART = {
    "train": ("val", "test"),
    "val": ("train", "test"),
    "trainval": ("test",),
    "test": ("trainval",),
}


def read(root: Path, split: str) -> Listing:
    """Read the `train`, `val`, `trainval` or `test` split of the official layout below `root`.

    Classes have the order of variants.txt, samples that of the split's list.
    """
    source = _list_file(root, split)
    variants = dict(read_lines(root / CLASSES_FILE))
    classes = clean_names(root / CLASSES_FILE, variants, "line")
    index = {variant: label for label, variant in enumerate(variants.values())}
    images = read_table(source)
    for key, variant in images.items():
        if variant not in index:
            raise InputError(
                f"{source} gives {key} the variant {variant!r}, which {root / CLASSES_FILE} lacks"
            )
    for other in APART[split]:
        check_apart(source, images, _list_file(root, other), read_table(_list_file(root, other)))
    return make_listing(
        source,
        classes,
        list(images),
        [f"{IMAGE_FOLDER}/{key}.jpg" for key in images],
        [index[variant] for variant in images.values()],
        root=root,
    )


def _list_file(root: Path, split: str) -> Path:
    return root / "data" / f"images_variant_{split}.txt"
