"""Types of flag values: text to value, or one line that says what is expected. Imports no torch."""

import argparse
import math
import re
from collections.abc import Callable

from utils.data_utils import TENSORBOARD_FOLDER

RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MAX_NAME_LENGTH = 200  # file systems take 255 bytes, and a kept run's name gets longer


def _number(
    kind: type[int] | type[float], is_valid: Callable[[float], bool], meaning: str
) -> Callable[[str], int | float]:
    def parse(text: str) -> int | float:
        try:
            value = kind(text)
            is_good = math.isfinite(value) and is_valid(value)
        except (ValueError, OverflowError):  # no number; a whole number beyond every float
            is_good = False
        if not is_good:
            raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
        return value

    return parse


positive_int = _number(int, lambda x: 0 < x < 2**31, "a whole number above 0 and below 2**31")
count = _number(int, lambda x: 0 <= x < 2**31, "a whole number, 0 or above, below 2**31")
seed = _number(int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 4294967295")
positive = _number(float, lambda x: x > 0, "a finite number above 0")
non_negative = _number(float, lambda x: x >= 0, "a finite number, 0 or above")
fraction = _number(float, lambda x: 0 <= x < 1, "a number from 0 up to but not including 1")
factor = _number(float, lambda x: 0 < x <= 1, "a number above 0, up to 1")
share = _number(float, lambda x: 0 < x < 1, "a number above 0 and below 1")
probability = _number(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
cosine = _number(float, lambda x: -1 <= x <= 1, "a number from -1 to 1")


def frozen_part(text: str) -> str:
    """What `--freeze` takes."""
    if text not in ("none", "backbone") and not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither none, backbone nor a whole number")
    return text


def cache_kind(text: str) -> str:
    """What `--cache` takes; its choices say the rest."""
    if text == "ram":
        raise argparse.ArgumentTypeError(
            "'ram' no longer exists: use --cache disk, which is mapped into memory"
        )
    return text


def run_name(text: str) -> str:
    """A name that is a folder's name on every system."""
    if (
        not RUN_NAME.fullmatch(text)
        or len(text) > MAX_NAME_LENGTH
        or text.casefold() == TENSORBOARD_FOLDER
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no run name: letters, digits, '.', '_' and '-', not starting with '.' or "
            f"'-', at most {MAX_NAME_LENGTH}, and not '{TENSORBOARD_FOLDER}'"
        )
    return text
