"""Check that rows of predictions.jsonl load into FiftyOne as what they are meant to be.

FiftyOne itself takes a label without `_cls` for a plain dict, and any path, number or point.

FiftyOne must be installed; it is imported by the functions that need it (2 to 6 s). No database.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import one_line

if TYPE_CHECKING:
    import fiftyone as fo


class CheckFailed(Exception):
    """A fault that a check found; the message is the detail for the report."""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_share(value: object) -> bool:
    return _is_finite(value) and 0 <= value <= 1


def _check_image(row: dict[str, Any]) -> None:
    for name in ("filepath", "sample_id"):
        if not _is_text(row.get(name)):
            raise CheckFailed(f"{name} is {row.get(name)!r}, not a text")
    # FiftyOne resolves a relative path against the working directory, and never looks at the file.
    path = Path(row["filepath"])
    if not path.is_absolute():
        raise CheckFailed(f"filepath is not absolute: {path}")
    if not path.is_file() or path.stat().st_size == 0:
        raise CheckFailed(f"the image is missing or empty: {path}")


def _check_labels(sample: "fo.Sample") -> None:
    """Check the labels as FiftyOne understood them: without `_cls` they are dicts, silently."""
    import fiftyone as fo

    kinds = {
        "ground_truth": fo.Classification,
        "predictions": fo.Classification,
        "predictions_top5": fo.Classifications,
    }
    for name, kind in kinds.items():
        value = sample[name] if sample.has_field(name) else None
        if not isinstance(value, kind):
            loaded = type(value).__name__
            raise CheckFailed(f"{name} loads as {loaded}, not as {kind.__name__}: see its _cls")
    truth, predicted, top5 = (sample[name] for name in kinds)
    named = {f"predictions_top5[{rank}]": label for rank, label in enumerate(top5.classifications)}
    for name, label in {"ground_truth": truth, "predictions": predicted, **named}.items():
        if not _is_text(label.label):
            raise CheckFailed(f"{name} has no label text: {label.label!r}")
        if label is not truth and not _is_share(label.confidence):
            raise CheckFailed(f"{name}: confidence is {label.confidence!r}, not a float in 0..1")
    if sample.has_field("parts"):  # only models that select parts have them
        _check_parts(sample["parts"])


def _check_parts(parts: object) -> None:
    """Check the selected parts as FiftyOne understood them: it takes points that lie anywhere."""
    import fiftyone as fo

    if not isinstance(parts, fo.Keypoints):
        raise CheckFailed(f"parts loads as {type(parts).__name__}, not as Keypoints: see its _cls")
    if not parts.keypoints:
        raise CheckFailed("parts has no keypoints")
    for number, keypoint in enumerate(parts.keypoints):
        name = f"parts.keypoints[{number}]"
        if not _is_text(keypoint.label):
            raise CheckFailed(f"{name} has no label text: {keypoint.label!r}")
        if not keypoint.points:
            raise CheckFailed(f"{name} has no points")
        for point in keypoint.points:
            if not all(map(_is_share, point)):
                raise CheckFailed(f"{name}: {point!r} is not x and y as floats in 0..1")


def load_errors() -> tuple[type[Exception], ...]:
    """Return what FiftyOne raises for a row that it cannot take: it has no common type for it."""
    from fiftyone.core.odm.utils import DocumentRegistryError
    from mongoengine.errors import MongoEngineException, ValidationError
    from pymongo.errors import PyMongoError

    plain = (ValueError, TypeError, AttributeError, KeyError)
    return (*plain, DocumentRegistryError, MongoEngineException, ValidationError, PyMongoError)


def load_row(line: bytes) -> "fo.Sample":
    """Return the FiftyOne sample of one line of predictions.jsonl. Needs no database.

    Raises:
        CheckFailed: the row is not as a prediction row must be.
    """
    import fiftyone as fo

    try:
        row = json.loads(line)
    except ValueError as error:
        raise CheckFailed(f"not JSON: {one_line(error)}") from error
    if not isinstance(row, dict):
        raise CheckFailed("not a JSON object")
    _check_image(row)
    try:
        sample = fo.Sample.from_dict(row)
    except load_errors() as error:
        raise CheckFailed(f"FiftyOne does not load it: {one_line(error)}") from error
    _check_labels(sample)
    logits = row["predictions"].get("logits", [])  # optional; in the sample they are an array
    if not isinstance(logits, list) or not all(map(_is_finite, logits)):
        raise CheckFailed("logits is not a list of finite floats")
    return sample


def check_rows(lines: Iterable[bytes]) -> tuple[list["fo.Sample"], list[str]]:
    """Return the samples of the lines that are right, and one text for each line that is not."""
    samples, problems, first_line = [], [], {}
    for number, line in enumerate(lines, start=1):
        try:
            sample = load_row(line)
            if (same := first_line.setdefault(sample["sample_id"], number)) != number:
                raise CheckFailed(f"sample_id {sample['sample_id']} is also that of line {same}")
            samples.append(sample)
        except CheckFailed as error:
            problems.append(f"line {number}: {error}")
    if not samples and not problems:
        problems.append("line 1: the file is empty")
    return samples, problems
