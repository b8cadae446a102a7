"""What `check_data.py` says of a dataset: a JSON document, and the same as text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scripts.data_check.duplicates import Pair, exact_groups, near_pairs
from scripts.data_check.scan import Files, Scan
from utils.data.splits import Split

SHOWN = 5  # findings of a kind in the text; the JSON has all
LISTED = 10_000  # but of near duplicates the nearest: the frames of films are millions of pairs
SIZES = ("width", "height", "megapixels", "aspect_ratio", "kilobytes")


def make_report(files: Files, scan: Scan, splits: Sequence[Split]) -> dict[str, Any]:
    """Everything that was found.

    Args:
        files: of the dataset.
        scan: of the same files.
        splits: the official ones, unions such as trainval too.
    """
    (first, *_) = splits
    found = {split.name: _of_split(files, scan, split) for split in splits}
    missing = [_named(files, position) for position in scan.missing]
    return {
        "dataset": first.dataset,
        "root": str(first.root),
        "splits": found,
        "classes": _of_classes(splits),
        "missing": [image for image in missing if found[image["split"]]["is_at_hand"]],
        "unreadable": _with_messages(files, scan.trouble),
        "decoded_with_a_warning": _with_messages(files, scan.warnings),
        "listed_in_two_splits": [
            {"path": path, "splits": [one, two]} for path, one, two in files.shared
        ],
        "exact_duplicates": _exact(files, scan),
        **_near(files, scan),
        "sizes": _sizes(files, scan),
        "kinds": dict(Counter(kind for kind in scan.kinds if kind).most_common()),
        "exif_orientations": {
            str(value): int(count)
            for value, count in zip(
                *np.unique(scan.orientations[scan.readable], return_counts=True), strict=True
            )
        },
    }


def _named(files: Files, position: int) -> dict[str, str]:
    split = files.splits[files.split_of[position]]
    return {
        "path": files.paths[position],
        "split": split.name,
        "class": split.classes[files.labels[position]],
    }


def _with_messages(files: Files, messages: dict[int, str]) -> list[dict[str, str]]:
    return [{**_named(files, at), "message": text} for at, text in sorted(messages.items())]


def _of_split(files: Files, scan: Scan, split: Split) -> dict[str, Any]:
    paths = set(split.paths.tolist())
    missing = sum(files.paths[position] in paths for position in scan.missing)
    counts = np.bincount(split.labels, minlength=len(split.classes))
    return {
        "samples": len(split),
        "missing": missing,
        "unreadable": sum(files.paths[position] in paths for position in scan.trouble),
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


def _exact(files: Files, scan: Scan) -> list[dict[str, Any]]:
    groups = []
    for positions in exact_groups(scan.digests):
        images = [_named(files, position) for position in positions]
        groups.append(
            {
                "across_splits": len({image["split"] for image in images}) > 1,
                "labels_differ": len({image["class"] for image in images}) > 1,
                "images": images,
            }
        )
    return sorted(groups, key=lambda group: not group["across_splits"])


def _near(files: Files, scan: Scan) -> dict[str, Any]:
    # Equal images once a split: many blank ones would be a pair each.
    seen: set[tuple[int, bytes]] = set()
    # Also of splits that are not at hand: with one part alone, its own images are compared.
    parts: list[list[int]] = [[] for _ in files.splits]
    for position in np.flatnonzero(scan.readable).tolist():
        number = int(files.split_of[position])
        key = (number, scan.digests[position])
        if key not in seen:
            seen.add(key)
            parts[number].append(position)
    found = near_pairs(
        scan.hashes, scan.thumbnails, [np.array(part, dtype=np.int64) for part in parts]
    )
    near = [pair for pair in found if scan.digests[pair.first] != scan.digests[pair.second]]
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


def _sizes(files: Files, scan: Scan) -> dict[str, Any]:
    readable = np.flatnonzero(scan.readable)
    if not len(readable):
        return {}
    width, height = scan.sizes[readable].T
    columns = (width, height, width * height / 1e6, width / height, scan.lengths[readable] / 1e3)
    pixels = width * height
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
    """The report without the counts of each class, for a terminal."""
    yield f"{report['dataset']} in {report['root']}, {len(report['classes'])} classes"
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
    """The whole report but for the findings beyond the first of each kind."""
    yield from summary_lines(report)
    yield ""
    yield from _table(
        ("index", "class", *report["splits"]), [tuple(row.values()) for row in report["classes"]]
    )


def _findings(report: dict[str, Any]) -> Iterator[str]:
    absent = [name for name, split in report["splits"].items() if not split["is_at_hand"]]
    if absent:
        yield f"no image is here of: {', '.join(absent)}"
    exact = report["exact_duplicates"]
    near = "near duplicates" + (" across splits" if len(report["splits"]) > 1 else "")
    kinds = (
        ("missing", report["missing"]),
        ("unreadable", report["unreadable"]),
        ("decoded with a warning, perhaps damaged", report["decoded_with_a_warning"]),
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
    """Columns as wide as they need to be; numbers to the right."""
    texts = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    for row in texts:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        yield "  ".join(cells).rstrip()
