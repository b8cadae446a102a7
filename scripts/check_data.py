"""Check a dataset before a night of training is spent on it.

    python scripts/check_data.py CUB_200_2011 /path/to/CUB_200_2011

It decodes every image once, in parallel, and reports counts, missing and damaged images, pictures
that two splits share, sizes and colour modes. It writes report.json, report.txt and a contact sheet
with one image for each class. It exits 1 if an image is damaged, or missing from a split that has
other images.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.environment  # isort: split

from PIL.Image import Image

from scripts.data_check.contact_sheet import contact_sheet, save_picture
from scripts.data_check.report import full_lines, make_report, summary_lines
from scripts.data_check.scan import Files, Look, collect, scan
from utils.cli.parser import Parser
from utils.cli.types import positive_int
from utils.console import log
from utils.data.catalog import DatasetSpec, dataset_names, get_spec
from utils.data.splits import Split, match_classes
from utils.data_utils import check_writable
from utils.dataset import open_split
from utils.entrypoint import entrypoint, named_failures
from utils.errors import InputError, RunError
from utils.files import write_json, write_text
from utils.ownership import SIGNATURE, check_output_file, holds_more_than, is_ours, make_folder


def example_of_each_class(files: Files, looks: Sequence[Look]) -> list[str | None]:
    """Return the path of the first readable image of each class, or None."""
    examples: list[str | None] = [None] * len(files.splits[0].classes)
    for position, look in enumerate(looks):
        label = files.labels[position]
        if look.is_readable and examples[label] is None:
            examples[label] = files.path_of(position)
    return examples


FILES = REPORT, TEXT, SHEET = "report.json", "report.txt", "contact_sheet.png"
LESS_MEMORY = "fewer --num_workers need less"


def _open_splits(spec: DatasetSpec, root: Path, class_depth: int | None) -> list[Split]:
    """Return all splits of a dataset, with the classes of the first."""
    names = spec.official_splits(root)
    first, *others = (open_split(spec, root, name, class_depth) for name in names)
    whose, remedy = f"split {first.name}", "train them, or take them out"
    return [first, *(match_classes(each, first.classes, whose, remedy) for each in others)]


def check_report_folder(output: Path, data_root: Path) -> None:
    """Raise if the report cannot be written, would replace something, or lie among the images."""
    check_writable(output, "--output")
    root, here = data_root.resolve(), output.resolve()
    passed_over = any(is_ours(each) for each in (here, *here.parents) if root in each.parents)
    if here.is_relative_to(root) and not passed_over and holds_more_than(output, FILES):
        raise InputError(
            f"--output {output} is among the images, and the contact sheet would become one; name "
            "a new folder"
        )
    for name in FILES:
        check_output_file(output / name, "--output")


def write_report(output: Path, report: dict[str, Any], sheet: Image) -> None:
    """Write the report into a folder: as JSON, as text, and a contact sheet."""
    make_folder(output)
    write_json(output / REPORT, {"about": SIGNATURE, **report})
    write_text(output / TEXT, "\n".join([SIGNATURE, "", *full_lines(report)]) + "\n")
    save_picture(sheet, output / SHEET)
    make_folder(output, FILES)  # one that was empty is marked too
    for line in summary_lines(report):
        log.info("%s", line)
    log.info("%s, %s and %s are in %s", REPORT, TEXT, SHEET, output)


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Read the lists, decode the images, write and print the report.

    Raises:
        InputError: a flag, the data root or a list is wrong; nothing is written.
        RunError: an image is missing or damaged, or the check itself failed.
    """
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("dataset", choices=dataset_names(), metavar="DATASET", help="name of a dataset")
    add("data_root", type=Path, metavar="ROOT", help="folder of the data, train.py's --data_root")
    add(
        "--class_depth",
        type=positive_int,
        metavar="N",
        help="with folder: the folders that make a class name; 2: genus/species",
    )
    add(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder for the report (default: output/check_<dataset>)",
    )
    add(
        "--num_workers",
        type=positive_int,
        metavar="N",
        default=os.cpu_count() or 1,
        help="number of processes that decode (default: one for each processor)",
    )
    args = parser.parse_args(argv)
    spec = get_spec(args.dataset)
    output = args.output or Path("output") / f"check_{spec.name}"
    check_report_folder(output, args.data_root)
    root = spec.find_root(spec, args.data_root)
    splits = _open_splits(spec, root, args.class_depth)

    with named_failures(lambda: f"while reading {root}", lambda: LESS_MEMORY):
        if spec.prepare is not None:
            spec.prepare(root)  # draws or unpacks the images, if the dataset has none yet
        files = collect(splits)
        looks = scan(files, args.num_workers)
        report = make_report(files, looks, splits)
    with named_failures(lambda: f"while writing to {output}", lambda: LESS_MEMORY):
        sheet = contact_sheet(splits[0].classes, example_of_each_class(files, looks))
        write_report(output, report, sheet)

    if not any(split["is_at_hand"] for split in report["splits"].values()):
        raise RunError(f"{splits[0].root} holds no image of {spec.name}; is it the right folder?")
    bad = [*report["missing"], *report["unreadable"]]
    if bad:
        raise RunError(
            f"{len(bad)} images are missing or damaged (first: {bad[0]['path']}); replace them or "
            f"leave them out, {output / REPORT} names all"
        )


if __name__ == "__main__":
    sys.exit(main())
