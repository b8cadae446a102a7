"""Name the classes of datasets whose lists name a class only through its images.

No torch here.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from utils.data.readers.list_files import check_apart
from utils.data.readers.listing import clean_names
from utils.errors import InputError


class Sample(NamedTuple):
    """An image of a list that names its classes only through their images."""

    id: str
    class_id: int  # from 1
    class_name: str  # as it stands in the list


def name_classes(lists: Mapping[Path, Sequence[Sample]]) -> list[str]:
    """Return the names for people of the classes of a dataset, by class id.

    Args:
        lists: samples of each list file of the dataset; all of them, as one may lack a class.

    Raises:
        InputError: two lists share an image, a class id has two names, two have the same, or they
            are not 1, 2, 3 and so on.
    """
    for (path, samples), (other, others) in combinations(lists.items(), 2):
        check_apart(path, [s.id for s in samples], other, [s.id for s in others])
    names: dict[int, str] = {}
    for path, samples in lists.items():
        for sample in samples:
            name = names.setdefault(sample.class_id, sample.class_name)
            if name != sample.class_name:
                raise InputError(
                    f"{path} gives {sample.id!r} the class id {sample.class_id}, which is that of "
                    f"{name!r}"
                )
    files = Path(" and ".join(str(path) for path in lists))
    for number, class_id in enumerate(sorted(names), start=1):
        if number != class_id:
            raise InputError(f"{files} have images of class id {class_id}, but none of {number}")
    return clean_names(files, {key: names[key] for key in sorted(names)}, "class id")
