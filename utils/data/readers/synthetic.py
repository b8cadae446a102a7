"""Draw flowers in the official Flowers-102 layout: default data that needs no download.

Petal count, petal shape, colour and background vary by class; size, position, rotation, shade and
noise by image. Every image has a generator of its own, so it does not depend on the others.
"""

import io
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.data.readers import flowers
from utils.data.readers.listing import Listing
from utils.errors import InputError
from utils.files import write_json
from utils.ownership import new_folder

SEED = 102
IMAGES_PER_CLASS = {"trnid": 20, "valid": 10, "tstid": 10}
MARKER_FILE = "synthetic.json"  # tells a folder we drew from a folder of photos
VERSION = 1  # raise it when a drawing changes: old folders are then refused, not mixed
JPEG_QUALITY = 90

RGB = tuple[int, int, int]


class Flower(NamedTuple):
    """How the flowers of one class look."""

    name: str
    petals: int
    sharpness: float  # exponent of the petal outline: below 1 round, above 1 narrow
    petal_color: RGB
    heart_color: RGB
    background: RGB


FLOWERS = (
    Flower("three-petal crimson", 3, 0.5, (200, 30, 45), (240, 210, 60), (60, 110, 50)),
    Flower("four-petal violet", 4, 0.5, (120, 60, 180), (250, 235, 120), (70, 120, 60)),
    Flower("five-petal rose", 5, 0.4, (235, 120, 160), (250, 240, 200), (50, 90, 60)),
    Flower("five-point star", 5, 1.8, (240, 240, 245), (230, 190, 50), (40, 70, 110)),
    Flower("six-petal lily", 6, 1.2, (245, 140, 40), (120, 60, 30), (80, 120, 70)),
    Flower("eight-petal daisy", 8, 0.8, (245, 245, 235), (245, 200, 40), (90, 140, 60)),
    Flower("eight-point thistle", 8, 2.4, (150, 80, 190), (90, 40, 120), (130, 140, 100)),
    Flower("ten-petal marigold", 10, 0.5, (245, 190, 30), (200, 120, 20), (60, 80, 40)),
    Flower("twelve-petal aster", 12, 1.0, (90, 120, 220), (240, 210, 90), (100, 110, 70)),
    Flower("round poppy", 2, 0.15, (225, 60, 30), (30, 30, 35), (150, 170, 190)),
)
SYNTHETIC_CLASSES = tuple(flower.name for flower in FLOWERS)


def plan() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return labels and splits of the data to draw, as `flowers.read_layout` does.

    Lets everything be checked before anything is drawn.
    """
    num_images = len(FLOWERS) * sum(IMAGES_PER_CLASS.values())
    generator = np.random.default_rng(SEED)
    numbers = generator.permutation(num_images) + 1
    labels = np.zeros(num_images, dtype=np.int64)
    variables, start = {}, 0
    for variable, per_class in IMAGES_PER_CLASS.items():
        count = per_class * len(FLOWERS)
        variables[variable] = numbers[start : start + count]
        labels[variables[variable] - 1] = np.arange(count) % len(FLOWERS)
        start += count
    splits = {
        split: np.concatenate([variables[name] for name in names])
        for split, names in flowers.SPLIT_VARIABLES.items()
    }
    return labels, splits


def draw_flower(flower: Flower, generator: np.random.Generator) -> np.ndarray:
    """Draw `flower` as (height, width, 3) uint8, with sides of 72 to 104 pixels."""
    height, width = (int(side) for side in generator.integers(72, 105, size=2))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    center_y, center_x = generator.uniform(0.4, 0.6, size=2) * (height, width)
    radius = generator.uniform(0.32, 0.46) * min(height, width)
    dy, dx = y - np.float32(center_y), x - np.float32(center_x)
    distance = np.hypot(dy, dx) / np.float32(radius)  # 1 at the longest petal's tip
    angle = np.arctan2(dy, dx) + np.float32(generator.uniform(0, 2 * math.pi))

    # A rose curve |cos(n/2 * angle)| has n petals; the exponent makes them round or narrow.
    outline = 0.3 + 0.7 * np.abs(np.cos(flower.petals / 2 * angle)) ** np.float32(flower.sharpness)
    edge = 1.5 / radius  # the border is blended over 1.5 pixels
    petal = np.clip((outline - distance) / edge, 0, 1)[..., None]
    heart = np.clip((0.22 - distance) / edge, 0, 1)[..., None]

    def shade(color: RGB) -> np.ndarray:
        return np.clip(np.asarray(color) + generator.normal(0, 14, size=3), 0, 255)

    light = 1 + generator.uniform(-0.25, 0.25) * (y / height - 0.5)[..., None]
    image = shade(flower.background) * light
    image = (
        image * (1 - petal) + shade(flower.petal_color) * (1 - 0.3 * distance[..., None]) * petal
    )
    image = image * (1 - heart) + shade(flower.heart_color) * heart
    image += generator.normal(0, 6, size=(height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


def _draw_into(folder: Path) -> None:
    from scipy.io import savemat  # 0.3 s to import

    labels, splits = plan()
    (folder / flowers.IMAGE_FOLDER).mkdir()
    for number, label in enumerate(labels, start=1):
        generator = np.random.default_rng([SEED, number])
        image = Image.fromarray(draw_flower(FLOWERS[label], generator))
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=JPEG_QUALITY)
        # Not straight to the file: Pillow says nothing of a write that a full disk cut short.
        (folder / flowers.image_path(number)).write_bytes(encoded.getbuffer())
    savemat(
        folder / flowers.LABELS_FILE,
        {"labels": (labels + 1)[None].astype(np.uint8)},
        do_compression=True,
    )
    single = {
        names[0]: split for split, names in flowers.SPLIT_VARIABLES.items() if len(names) == 1
    }
    variables = {name: splits[split][None].astype(np.uint16) for name, split in single.items()}
    savemat(folder / flowers.SPLITS_FILE, variables, do_compression=True)
    write_json(folder / MARKER_FILE, {"version": VERSION, "images": len(labels)})


def is_drawn(root: Path) -> bool:
    """Tell whether `root` holds our drawings; False if it is absent or an empty folder.

    Raises:
        InputError: something else lies there, or drawings of another version.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / MARKER_FILE
    if not marker.is_file():
        raise InputError(
            f"--data_root {root} holds something other than synthetic flowers; name an empty or "
            "absent folder for --dataset synthetic, or leave --data_root out"
        )
    try:
        version = json.loads(marker.read_text(encoding="utf-8")).get("version")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{marker} is damaged; delete {root} to have it drawn again") from error
    if version != VERSION:
        raise InputError(f"{root} was drawn by another version; delete it to have it drawn again")
    return True


def draw(root: Path) -> None:
    """Draw the dataset into `root` unless it is there; whole or not at all.

    Two runs that draw at the same time do no harm: the first to finish wins, both draw the same.

    Raises:
        InputError: `root` holds something else, or is the current folder.
    """
    if is_drawn(root):
        return
    root = root.resolve()
    if root == Path.cwd():  # it would be replaced, and relative paths would lead nowhere
        raise InputError("--data_root is the current folder; name another for synthetic flowers")
    try:
        with new_folder(root) as beside:
            _draw_into(beside)
    except OSError:
        if not is_drawn(root):
            raise


def read(root: Path, split: str) -> Listing:
    """Read the samples of `split` of what is drawn at `root` or would be."""
    if is_drawn(root):
        return flowers.read(root, split, SYNTHETIC_CLASSES)
    labels, splits = plan()
    return flowers.list_images(root, SYNTHETIC_CLASSES, labels, splits[split])
