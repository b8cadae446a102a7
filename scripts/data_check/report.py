"""Report what was found in a dataset, as a JSON document and as text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scripts.data_check.duplicates import Pair, exact_groups, near_pairs
from scripts.data_check.scan import NOTES, Files, Look
from utils.data.splits import Split

SHOWN = 5  # findings of each kind in the text; the JSON has all
LISTED = 10_000  # near duplicates in the JSON, the nearest: a film's frames are millions of pairs
SIZES = ("width", "height", "megapixels", "aspect_ratio", "kilobytes")


def make_report(files: Files, looks: Sequence[Look], splits: Sequence[Split]) -> dict[str, Any]:
    """Return everything that was found.

    Args:
        files: image files of the dataset.
        looks: facts about each of them.
        splits: official splits, unions such as trainval too.
    """
    (first, *_) = splits
    found = {split.name: _of_split(files, looks, split) for split in splits}
    missing = [_named(files, at) for at, look in enumerate(looks) if look.is_missing]
    readable = [look for look in looks if look.is_readable]
    return {
        "dataset": first.dataset,
        "root": str(first.root),
        "notes": list(dict.fromkeys(note for split in splits for note in split.notes)),
        "splits": found,
        "classes": _of_classes(splits),
        "missing": [image for image in missing if found[image["split"]]["is_at_hand"]],
        "unreadable": _with_messages(files, [look.trouble for look in looks]),
        "decoded_with_a_warning": _with_messages(files, [look.warning for look in looks]),
        "doubtful": {
            note: [_named(files, at) for at, look in enumerate(looks) if note in look.notes]
            for note in NOTES
        },
        "listed_in_two_splits": [
            {"path": path, "splits": [one, two]} for path, one, two in files.shared
        ],
        "exact_duplicates": _exact(files, looks),
        **_near(files, looks),
        "sizes": _sizes(files, looks),
        "kinds": dict(Counter(look.kind for look in readable).most_common()),
        "exif_orientations": {
            str(value): count
            for value, count in sorted(Counter(look.orientation for look in readable).items())
        },
    }


def _named(files: Files, position: int) -> dict[str, str]:
    split = files.splits[files.split_of[position]]
    return {
        "path": files.paths[position],
        "split": split.name,
        "class": split.classes[files.labels[position]],
    }


def _with_messages(files: Files, messages: Sequence[str]) -> list[dict[str, str]]:
    return [{**_named(files, at), "message": text} for at, text in enumerate(messages) if text]


def _of_split(files: Files, looks: Sequence[Look], split: Split) -> dict[str, Any]:
    paths = set(split.paths.tolist())
    own = [look for path, look in zip(files.paths, looks, strict=True) if path in paths]
    missing = sum(look.is_missing for look in own)
    counts = np.bincount(split.labels, minlength=len(split.classes))
    return {
        "samples": len(split),
        "missing": missing,
        "unreadable": sum(look.trouble != "" for look in own),
        "is_at_hand": missing < len(split),
        "classes": int((counts > 0).sum()),
        "smallest_class": int(counts.min()),
        "largest_class": int(counts.max()),
        "checksum": split.checksum(),
    }


def _of_classes(splits: Sequence[Split]) -> list[dict[str, Any]]:
    names = splits[0].classes
    counts = {split.name: np.bincount(split.labels, minlength=len(names)) for split in splits}
    return [
        {"index": i, "class": name, **{split: int(counts[split][i]) for split in counts}}
        for i, name in enumerate(names)
    ]


def _exact(files: Files, looks: Sequence[Look]) -> list[dict[str, Any]]:
    groups = []
    for positions in exact_groups([look.digest for look in looks]):
        images = [_named(files, position) for position in positions]
        groups.append(
            {
                "across_splits": len({image["split"] for image in images}) > 1,
                "labels_differ": len({image["class"] for image in images}) > 1,
                "images": images,
            }
        )
    return sorted(groups, key=lambda group: not group["across_splits"])


def _near(files: Files, looks: Sequence[Look]) -> dict[str, Any]:
    # A part for each split, also for one without images: a part that is alone is compared with
    # itself. Equal images count once a part: of many blank ones each two would be a pair.
    parts: list[dict[bytes, int]] = [{} for _ in files.splits]
    for position, (number, look) in enumerate(zip(files.split_of.tolist(), looks, strict=True)):
        if look.is_readable:
            parts[number].setdefault(look.digest, position)
    found = near_pairs(
        np.array([look.hash for look in looks], dtype=np.uint64),
        [look.thumbnail for look in looks],
        [np.array(list(part.values()), dtype=np.int64) for part in parts],
    )
    near = [pair for pair in found if looks[pair.first].digest != looks[pair.second].digest]
    return {
        "near_duplicates_found": len(near),
        "near_duplicates": [_of_pair(files, pair) for pair in near[:LISTED]],
    }


def _of_pair(files: Files, pair: Pair) -> dict[str, Any]:
    images = [_named(files, pair.first), _named(files, pair.second)]
    return {
        "distance": pair.distance,
        "correlation": round(pair.correlation, 4),
        "labels_differ": images[0]["class"] != images[1]["class"],
        "images": images,
    }


def _sizes(files: Files, looks: Sequence[Look]) -> dict[str, Any]:
    readable = [position for position, look in enumerate(looks) if look.is_readable]
    if not readable:
        return {}
    width, height, length = np.array(
        [(looks[at].width, looks[at].height, looks[at].length) for at in readable]
    ).T
    pixels = width * height
    columns = (width, height, pixels / 1e6, width / height, length / 1e3)
    return {
        **{
            name: {
                "min": round(float(values.min()), 3),
                "median": round(float(np.median(values)), 3),
                "max": round(float(values.max()), 3),
            }
            for name, values in zip(SIZES, columns, strict=True)
        },
        "smallest": files.paths[readable[pixels.argmin()]],
        "largest": files.paths[readable[pixels.argmax()]],
    }


# --- As text --------------------------------------------------------------------------------------


def summary_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the report without the counts of each class, for a terminal."""
    yield f"{report['dataset']} in {report['root']}, {len(report['classes'])} classes"
    yield from report["notes"]
    yield ""
    yield from _table(
        ("split", "images", "missing", "unreadable", "classes", "smallest", "largest"),
        [
            (
                name,
                split["samples"],
                split["missing"],
                split["unreadable"],
                split["classes"],
                split["smallest_class"],
                split["largest_class"],
            )
            for name, split in report["splits"].items()
        ],
    )
    if report["sizes"]:
        yield ""
        rows = [(name, *report["sizes"][name].values()) for name in SIZES]
        yield from _table(("sizes", "min", "median", "max"), rows)
        yield f"smallest: {report['sizes']['smallest']}, largest: {report['sizes']['largest']}"
    for title, key in (("kinds", "kinds"), ("EXIF orientations", "exif_orientations")):
        yield f"{title}: {', '.join(f'{k} {v}' for k, v in report[key].items()) or 'none'}"
    yield ""
    yield from _findings(report)


def full_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the report with the counts of each class and the first findings of each kind."""
    yield from summary_lines(report)
    yield ""
    yield from _table(
        ("index", "class", *report["splits"]), [tuple(row.values()) for row in report["classes"]]
    )


def _findings(report: dict[str, Any]) -> Iterator[str]:
    absent = [name for name, split in report["splits"].items() if not split["is_at_hand"]]
    if absent:
        yield f"no image exists of: {', '.join(absent)}"
    exact = report["exact_duplicates"]
    near = "near duplicates" + (" across splits" if len(report["splits"]) > 1 else "")
    kinds = (
        ("missing", report["missing"]),
        ("unreadable", report["unreadable"]),
        ("decoded with a warning, perhaps damaged", report["decoded_with_a_warning"]),
        *((note, found) for note, found in report["doubtful"].items() if found),
        ("listed in two splits", report["listed_in_two_splits"]),
        ("exact duplicates across splits", [g for g in exact if g["across_splits"]]),
        ("exact duplicates within a split", [g for g in exact if not g["across_splits"]]),
        (near, report["near_duplicates"]),
    )
    for title, found in kinds:
        count = report["near_duplicates_found"] if title == near else len(found)
        yield f"{title}: {count or 'none'}"
        for entry in found[:SHOWN]:
            yield f"  {_described(entry)}"
        if count > SHOWN:
            yield f"  and {count - SHOWN} more; see report.json"


def _described(entry: dict[str, Any]) -> str:
    if "images" in entry:
        images = [f"{image['split']} {image['path']}" for image in entry["images"]]
        if len(images) > SHOWN:
            images[SHOWN:] = [f"{len(images) - SHOWN} more"]
        notes = "; of different classes" if entry["labels_differ"] else ""
        if "distance" in entry:
            notes += f"; {entry['distance']} bits, correlation {entry['correlation']}"
        return " = ".join(images) + notes
    if "splits" in entry:
        return f"{' and '.join(entry['splits'])}: {entry['path']}"
    message = f": {entry['message']}" if "message" in entry else ""
    return f"{entry['split']} {entry['path']}{message}"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield rows with columns as wide as they need to be, and numbers to the right."""
    texts = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    for row in texts:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        yield "  ".join(cells).rstrip()
