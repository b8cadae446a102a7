"""Class names of datasets whose lists name a class only through its images.

No torch here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.data.readers.listing import check_not_shared, clean_name
from utils.errors import InputError


class Sample(NamedTuple):
    """An image of a list that names its classes only through their images."""

    id: str
    class_id: int  # from 1
    class_name: str  # as it stands in the list


def name_classes(lists: Mapping[Path, Sequence[Sample]]) -> list[str]:
    """The names for people of the classes of a dataset, by class id.

    Args:
        lists: the samples of each list file of the dataset; all of them, as one may lack a class.

    Raises:
        InputError: an image comes twice, a class id has two names or none, two have the same, or
            they are not 1, 2, 3 and so on.
    """
    _check_no_repeats(lists)
    names: dict[int, str] = {}
    for path, samples in lists.items():
        for sample in samples:
            if sample.class_id < 1:
                raise InputError(
                    f"{path} gives {sample.id!r} the class id {sample.class_id}, not 1 or more"
                )
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
    classes = {f"class id {key}": clean_name(names[key]) for key in sorted(names)}
    for key, name in classes.items():
        if not name:
            raise InputError(f"{files} give {key} no name")
    check_not_shared(files, "class name", classes)
    return list(classes.values())


def _check_no_repeats(lists: Mapping[Path, Sequence[Sample]]) -> None:
    """Refuse an image that comes twice: what is trained on must not be tested on."""
    owners: dict[str, Path] = {}
    for path, samples in lists.items():
        for sample in samples:
            owner = owners.get(sample.id)
            if owner is not None:
                again = "more than once" if owner == path else f"and so has {owner}"
                raise InputError(f"{path} has the image {sample.id!r} {again}")
            owners[sample.id] = path
