"""Name splits and samples of the user's own data, for folders and CSV files alike."""

from collections import Counter
from collections.abc import Sequence

from utils.data.readers.listing import without_ending

SPLITS = ("train", "val", "test")
# What others call them, in lower case. As classes they would make a model of two classes.
SPELLINGS = {
    **{split: split for split in SPLITS},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}


def short_ids(paths: Sequence[str]) -> list[str]:
    """Return the paths without their endings, but with them if two would be equal.

    Different paths give different ids: nor does `a.jpg.png` become `a.jpg` beside an `a.jpg`.
    """
    short = [without_ending(path) for path in paths]
    counts, taken = Counter(short), set(paths)
    return [
        brief if counts[brief] == 1 and brief not in taken else path
        for path, brief in zip(paths, short, strict=True)
    ]
