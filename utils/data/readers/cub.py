"""Read CUB-200-2011 (Wah et al. 2011, Caltech CNS-TR-2011-001): 11,788 photos of 200 bird species.

`classes.txt` numbers each name once more (`1 001.Black_footed_Albatross`); image files are named
after their class and are unique without their folder, so that name is the sample id.
"""

import re
from pathlib import Path, PurePosixPath

from utils.data.readers import birds
from utils.data.readers.listing import Listing

ENTRIES = birds.ENTRIES


def read(root: Path, split: str) -> Listing:
    """Read the `train` or `test` split of the official layout below `root`; classes by class id."""
    lists = birds.read_lists(root)
    names = {key: re.sub(r"^[0-9]+\.", "", name) for key, name in lists.classes.items()}
    ids = {key: PurePosixPath(path).stem for key, path in lists.paths.items()}
    return lists.listing(split, names, ids)
