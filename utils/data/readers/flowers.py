"""Read the official Flowers-102 layout (Nilsback & Zisserman 2008): `jpg/` and two .mat files.

`imagelabels.mat` holds one label from 1 per image; `setid.mat` the image numbers of each split.
torchvision's reader insists on checksums of the official files, so drawn or cut-down copies in the
same layout need a reader of their own. No torch here: bad input is refused before it is imported.
"""

from pathlib import Path

import numpy as np

from utils.data.readers.listing import Listing, make_listing
from utils.data.readers.matlab import load_mat, read_numbers
from utils.errors import InputError

IMAGE_FOLDER = "jpg"
LABELS_FILE = "imagelabels.mat"
SPLITS_FILE = "setid.mat"
ENTRIES = (IMAGE_FOLDER, LABELS_FILE, SPLITS_FILE)
REMEDY = "fetch both again with scripts/get_flowers.py"

# Our names of the splits, and the variables of setid.mat that make them up.
SPLIT_VARIABLES = {
    "train": ("trnid",),
    "val": ("valid",),
    "test": ("tstid",),
    "trainval": ("trnid", "valid"),
}
SPLITS = tuple(SPLIT_VARIABLES)

# In label order: the class of label 1 first.
FLOWER102_CLASSES = tuple(
    """\
pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger
lily, moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king
protea, spear thistle, yellow iris, globe-flower, purple coneflower, peruvian lily, balloon
flower, giant white arum lily, fire lily, pincushion flower, fritillary, red ginger, grape
hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william,
carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped
cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil,
sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common
dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura,
geranium, orange dahlia, pink-yellow dahlia?, cautleya spicata, japanese anemone, black-eyed
susan, silverbush, californian poppy, osteospermum, spring crocus, bearded iris, windflower,
tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower,
lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree
mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove,
bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper,
blackberry lily""".replace("\n", " ").split(", ")
)


def image_id(number: int) -> str:
    """Return the sample id of an image number: its file name without the ending."""
    return f"image_{number:05d}"


def image_path(number: int) -> str:
    """Return the path of an image number, relative to the data root, with forward slashes."""
    return f"{IMAGE_FOLDER}/{image_id(number)}.jpg"


def is_layout(root: Path) -> bool:
    """Tell whether `root` holds the three entries of the official layout."""
    return all((root / name).exists() for name in ENTRIES)


def read_layout(root: Path, num_classes: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read the two .mat files below `root`.

    Returns:
        The label of every image from 0 (element i belongs to image number i + 1), int64, and for
        each split its image numbers in the file's order, int64.

    Raises:
        InputError: a file is damaged, lacks its variable, or they contradict each other.
    """
    labels_path, splits_path = root / LABELS_FILE, root / SPLITS_FILE
    labels = read_numbers(
        labels_path, "labels", load_mat(labels_path, REMEDY).get("labels"), REMEDY
    )
    variables = load_mat(splits_path, REMEDY)
    names = sorted({name for names in SPLIT_VARIABLES.values() for name in names})
    numbers = {name: read_numbers(splits_path, name, variables.get(name), REMEDY) for name in names}
    every = np.concatenate(list(numbers.values()))
    if len(labels) != len(every):
        raise InputError(
            f"{labels_path} has {len(labels)} labels, but {splits_path} names {len(every)} images; "
            f"{REMEDY}"
        )
    if sorted(every) != list(range(1, len(every) + 1)):
        raise InputError(f"{splits_path} must name each image from 1 to {len(labels)} once")
    if len(labels) and not 1 <= labels.min() <= labels.max() <= num_classes:
        raise InputError(
            f"{labels_path} has labels {labels.min()} to {labels.max()}, not 1 to {num_classes}"
        )
    splits = {
        split: np.concatenate([numbers[name] for name in names])
        for split, names in SPLIT_VARIABLES.items()
    }
    return labels - 1, splits


def list_images(
    source: Path,
    classes: tuple[str, ...],
    labels: np.ndarray,
    numbers: np.ndarray,
    root: Path | None = None,
) -> Listing:
    """Return the listing of the images with these `numbers`, from the `labels` of all images."""
    return make_listing(
        source,
        classes,
        ids=[image_id(number) for number in numbers],
        paths=[image_path(number) for number in numbers],
        labels=labels[numbers - 1],
        root=root,
    )


def read(root: Path, split: str, classes: tuple[str, ...] = FLOWER102_CLASSES) -> Listing:
    """Read the samples of `split` in the official order.

    Raises:
        InputError: as `read_layout`, or the split has no image.
    """
    labels, splits = read_layout(root, len(classes))
    if not len(splits[split]):
        raise InputError(f"split {split} of {root} has no images")
    return list_images(root / SPLITS_FILE, classes, labels, splits[split], root)
