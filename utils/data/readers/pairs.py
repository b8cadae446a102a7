"""Tell folders of pictures with folders of what was drawn onto them from classes of images.

Data for segmentation and the like have `images/` and `masks/` with files of the same names. Read as
classes, they make a model that tells pictures from masks.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.data.readers.listing import without_ending
from utils.errors import InputError

# Without the s of a plural.
PICTURES = frozenset(
    (
        *("frame", "image", "img", "input", "jpegimage", "original", "photo", "pic", "picture"),
        *("rgb", "source"),
    )
)
DRAWN = frozenset(
    (
        *("alpha", "ann", "annot", "annotation", "depth", "groundtruth", "gt", "label", "mask"),
        *("matte", "output", "seg", "segmentation", "segmentationclass", "segmentationobject"),
        *("silhouette", "target", "trimap"),
    )
)
SHARE = 0.9  # of the smaller folder's files that must have a file of their name in the other
KNOWN = PICTURES | DRAWN
GROUND_TRUTH = re.compile(r"ground[\W_]+truth")
WORD = re.compile(r"[^\W\d_]+|\d+")


def check_no_masks(root: Path, images: Mapping[str, Sequence[str]]) -> None:
    """Raise an error if two folders hold pictures and what was drawn onto them.

    Args:
        root: folder with the class folders.
        images: paths of the images below each class folder.

    Raises:
        InputError: two folders differ only in a word of `PICTURES` and one of `DRAWN` in their
            names, and nine tenths of their files have the same names; names both.
    """
    roles = functools.cache(_roles)
    # By path with the word left out, and by kind of word: the folders, with their files' names.
    found: dict[str, dict[str, dict[str, set[str]]]] = {}
    for folder, paths in images.items():
        for path in paths:
            above, _, name = f"{folder}/{path}".rpartition("/")
            for key, kind, place in roles(above):
                places = found.setdefault(key, {"pictures": {}, "drawn": {}})[kind]
                places.setdefault(place, set()).add(_bare(name))
    for places in found.values():
        for (one, names), (other, drawn) in itertools.product(
            places["pictures"].items(), places["drawn"].items()
        ):
            fewer = min(len(names), len(drawn))
            if len(names & drawn) >= SHARE * fewer:
                raise InputError(
                    f"{root}: {one}/ and {other}/ look like pictures and "
                    f"masks, not like classes: {len(names & drawn)} of {fewer} file names are the "
                    f"same; move {other}/ away, or rename it if it is a class"
                )


def _roles(folder: str) -> list[tuple[str, str, str]]:
    """Return for each known word in a path: the path without it, kind of word, path up to it."""
    roles = []
    parts = folder.split("/")
    for at, part in enumerate(parts):
        words = WORD.findall(GROUND_TRUTH.sub("groundtruth", part.casefold()))
        for number, word in enumerate(words):
            if _is_known(word):
                bare = [*parts[:at], " ".join([*words[:number], "*", *words[number + 1 :]])]
                kind = "pictures" if _singular(word) in PICTURES else "drawn"
                roles.append(("/".join(bare), kind, "/".join(parts[: at + 1])))
    return roles


def _bare(name: str) -> str:
    """Return a file's name without ending and known words: `img_001.jpg` as `001_mask.png`."""
    composed = unicodedata.normalize("NFC", name)
    words = WORD.findall(without_ending(composed).casefold())
    return " ".join(word for word in words if not _is_known(word))


def _is_known(word: str) -> bool:
    return _singular(word) in KNOWN


def _singular(word: str) -> str:
    return word if word in KNOWN else word.removesuffix("s")
