"""Turn the text of a flag into a value, or say in one line what is expected. Imports no torch."""

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.data_utils import TENSORBOARD_FOLDER, with_home
from utils.errors import InputError, near_miss

RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MAX_NAME_LENGTH = 200  # file systems take 255 bytes, and a kept run's name gets longer
# Nearer to 0 numbers lose digits; farther from it float32 has only infinity.
SMALLEST, LARGEST = 1e-307, 3e38


@dataclass(frozen=True, eq=False)
class Number:
    """A type of numbers; called with a text it returns the number."""

    kind: type[int] | type[float]
    is_valid: Callable[[float], bool]
    meaning: str  # the numbers that are valid, in words

    def __call__(self, text: str) -> int | float:
        """Return the number that `text` is.

        Raises:
            ArgumentTypeError: it is not one, or not a valid one.
        """
        try:
            value = self.kind(text)
            is_good = math.isfinite(value) and self.is_valid(value)
        except (ValueError, OverflowError):  # not a number; a whole number beyond every float
            is_good = False
        if not is_good:
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.meaning}")
        if self.kind is float and value and not SMALLEST <= abs(value) <= LARGEST:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number to compute with: 0, or from {SMALLEST} to {LARGEST}"
            )
        return value


positive_int = Number(int, lambda x: 0 < x < 2**31, "a whole number above 0 and below 2**31")
image_side = Number(int, lambda x: 0 < x <= 2**16, "a whole number from 1 to 65536")
batch = Number(int, lambda x: 0 < x <= 2**20, "a whole number from 1 to 1048576")
count = Number(int, lambda x: 0 <= x < 2**31, "a whole number, 0 or above, below 2**31")
seed = Number(int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 4294967295")
positive = Number(float, lambda x: x > 0, "a finite number above 0")
non_negative = Number(float, lambda x: x >= 0, "a finite number, 0 or above")
# Outside of these torch's Beta distribution draws other numbers than that distribution has.
alpha = Number(float, lambda x: x == 0 or 1e-3 <= x <= 1e3, "0 or a number from 0.001 to 1000")
workers = Number(int, lambda x: 0 <= x <= 1024, "a whole number from 0 to 1024")
fraction = Number(float, lambda x: 0 <= x < 1, "a number from 0 up to but not including 1")
factor = Number(float, lambda x: 0 < x <= 1, "a number above 0, up to 1")
share = Number(float, lambda x: 0 < x < 1, "a number above 0 and below 1")
probability = Number(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
fold_count = Number(int, lambda x: 2 <= x <= 1000, "a whole number from 2 to 1000")
cosine = Number(float, lambda x: -1 <= x <= 1, "a number from -1 to 1")


def names_of(known: tuple[str, ...]) -> Callable[[str], str]:
    """Return the type of `a,b`, some of the `known` names, each once and in their order."""

    def names(text: str) -> str:
        asked = [name.strip() for name in text.split(",")]
        wrong = [name for name in asked if name not in known]
        if wrong:
            meant = near_miss(wrong[0], known)
            raise argparse.ArgumentTypeError(
                f"{wrong[0]!r} is none of {', '.join(known)}{meant}; separate several by commas"
            )
        return ",".join(name for name in known if name in asked)

    return names


def counts(text: str) -> str:
    """Return `1,2,4`, whole numbers above 0, each once and rising.

    Raises:
        ArgumentTypeError: `text` is not such a list.
    """
    return ",".join(map(str, sorted({positive_int(part.strip()) for part in text.split(",")})))


def maybe_path(text: str) -> str:
    """Return a name, or a path whose `~` is expanded.

    Raises:
        ArgumentTypeError: it is empty, or names a user that does not exist.
    """
    try:
        return with_home(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    """Return a path whose `~` is expanded.

    Raises:
        ArgumentTypeError: as `maybe_path`.
    """
    return Path(maybe_path(text))


def frozen_blocks(text: str) -> str:
    """Return a value of `--freeze`: none, backbone or a number of blocks.

    Raises:
        ArgumentTypeError: `text` is none of these.
    """
    if text not in ("none", "backbone") and not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither none, backbone nor a whole number")
    return text


def cache_name(text: str) -> str:
    """Return a value of `--cache`, whose choices are checked after this.

    Raises:
        ArgumentTypeError: `text` names the cache that no longer exists.
    """
    if text == "ram":
        raise argparse.ArgumentTypeError(
            "'ram' no longer exists: use --cache disk, which is mapped into memory"
        )
    return text


def run_name(text: str) -> str:
    """Return a name that is a folder's name on every system.

    Raises:
        ArgumentTypeError: `text` is not one.
    """
    if (
        not RUN_NAME.fullmatch(text)
        or len(text) > MAX_NAME_LENGTH
        or text.casefold() == TENSORBOARD_FOLDER
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a run name: letters, digits, '.', '_' and '-', not starting with '.' "
            f"or '-', at most {MAX_NAME_LENGTH}, and not '{TENSORBOARD_FOLDER}'"
        )
    return text
