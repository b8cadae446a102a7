"""Look through a dataset before a night is spent on it.

    python scripts/check_data.py CUB_200_2011 /path/to/CUB_200_2011

Decodes every image once, in parallel. Reports counts, missing and damaged images, the same picture
in two splits, sizes and colour modes. Writes report.json, report.txt and a sheet with one image a
class. Exits 1 if an image is damaged, or missing from a split that is otherwise there.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.environment  # isort: split

import numpy as np

from scripts.data_check.contact_sheet import contact_sheet, save_picture
from scripts.data_check.report import full_lines, make_report, summary_lines
from scripts.data_check.scan import Files, Scan, collect, scan
from utils.console import Parser, log
from utils.data.catalog import dataset_names, get_spec
from utils.data.splits import check_same_classes
from utils.data_utils import check_writable
from utils.dataset import open_split
from utils.entrypoint import entrypoint, named_failures
from utils.errors import RunError
from utils.files import write_json, write_text
from utils.flag_types import positive_int


def example_of_each_class(files: Files, scanned: Scan) -> list[str | None]:
    """Path of the first image of each class that decodes, or None."""
    examples: list[str | None] = [None] * len(files.splits[0].classes)
    for position in np.flatnonzero(scanned.readable).tolist():
        label = files.labels[position]
        if examples[label] is None:
            examples[label] = files.path_of(position)
    return examples


LESS_MEMORY = "less is needed with fewer --num_workers"


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Read the lists, scan the images, write and print the report."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "dataset", choices=dataset_names(), metavar="DATASET", help="a name as for --dataset"
    )
    parser.add_argument("data_root", type=Path, metavar="ROOT", help="as for --data_root")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder of the report (default: output/check_<dataset>)",
    )
    parser.add_argument(
        "--num_workers",
        type=positive_int,
        metavar="N",
        default=os.cpu_count() or 1,
        help="processes that decode (default: one for each processor)",
    )
    args = parser.parse_args(argv)
    spec = get_spec(args.dataset)
    output = args.output or Path("output") / f"check_{spec.name}"
    check_writable(output, "--output")
    root = spec.find_root(spec, args.data_root)
    splits = [open_split(spec, root, name) for name in spec.official_splits(root)]
    for split in splits[1:]:
        check_same_classes(splits[0], split)

    with named_failures(lambda: f"while reading {root}", lambda: LESS_MEMORY):
        if spec.prepare is not None:
            spec.prepare(root)  # makes the images of a dataset that has none yet
        files = collect(splits)
        scanned = scan(files, args.num_workers)
        report = make_report(files, scanned, splits)
    with named_failures(lambda: f"while writing to {output}", lambda: LESS_MEMORY):
        write_json(output / "report.json", report)
        write_text(output / "report.txt", "\n".join(full_lines(report)) + "\n")
        examples = example_of_each_class(files, scanned)
        sheet = contact_sheet(splits[0].classes, examples)
        save_picture(sheet, output / "contact_sheet.png")
    for line in summary_lines(report):
        log.info("%s", line)
    log.info("report.json, report.txt and contact_sheet.png are in %s", output)

    if not any(split["is_at_hand"] for split in report["splits"].values()):
        raise RunError(f"no image of {spec.name} is below {splits[0].root}")
    bad = [*report["missing"], *report["unreadable"]]
    if bad:
        raise RunError(
            f"{len(bad)} images are missing or damaged (first: {bad[0]['path']}); all of them are "
            f"in {output / 'report.json'}"
        )


if __name__ == "__main__":
    sys.exit(main())
