"""Draw the parts that a model selected onto its images, a dot for each attention head.

    python scripts/draw_parts.py --predictions output/parts/fiftyone/predictions.jsonl \
        --out parts.png --count 12

Dots of heads that chose the same patch stand side by side. Under each image is the prediction, and
the truth if it differs.
"""

import colorsys
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.environment  # isort: split

from PIL import Image, ImageDraw, ImageOps

from scripts.data_check.contact_sheet import paste_tiles, save_picture
from utils.cli.parser import Parser
from utils.cli.types import path, positive_int
from utils.console import log
from utils.data.image_files import decode_rgb
from utils.entrypoint import entrypoint
from utils.errors import InputError
from utils.files import read_regular
from utils.ownership import check_output_file

TILE, CAPTION, COLUMNS = 300, 32, 4  # pixels, pixels, images a row
DOT = 5  # radius, pixels


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a predictions file.

    Raises:
        InputError: it cannot be read, is not JSON, or has rows without parts.
    """
    try:
        lines = read_regular(path).decode().splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"--predictions {path} cannot be read: {error}") from error
    kinds = {isinstance(row, dict) and {"parts", "filepath"} <= row.keys() for row in rows}
    if kinds != {True}:
        raise InputError(f"--predictions {path} has no parts; evaluate a model with --head parts")
    return rows


def color_of(head: int, num_heads: int) -> tuple[int, int, int]:
    """Return the color of a head; heads are spread evenly around the color wheel."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(head / num_heads, 1.0, 1.0))


def draw(row: dict[str, Any]) -> Image.Image:
    """Return an image with its parts and a caption, TILE pixels wide."""
    image = ImageOps.contain(decode_rgb(Path(row["filepath"]), TILE), (TILE, TILE))
    tile = Image.new("RGB", (TILE, TILE + CAPTION), "white")
    left, top = (TILE - image.width) // 2, (TILE - image.height) // 2
    tile.paste(image, (left, top))
    pen = ImageDraw.Draw(tile)
    keypoints = row["parts"]["keypoints"]
    seen: dict[tuple[float, float], int] = {}
    for head, keypoint in enumerate(keypoints):
        ((x, y),) = keypoint["points"]
        shift = seen[x, y] = seen.get((x, y), -1) + 1  # beside the heads before
        center_x = left + x * image.width + (shift % 4) * 2 * DOT
        center_y = top + y * image.height + (shift // 4) * 2 * DOT
        box = (center_x - DOT, center_y - DOT, center_x + DOT, center_y + DOT)
        pen.ellipse(box, fill=color_of(head, len(keypoints)), outline="black")
    predicted, truth = row["predictions"]["label"], row["ground_truth"]["label"]
    caption = predicted if row["correct"] else f"{predicted}\n(is {truth})"
    pen.multiline_text((4, TILE + 2), caption, fill="black" if row["correct"] else "red")
    return tile


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Draw evenly spaced rows of a predictions file into one picture.

    Raises:
        InputError: a flag or the predictions file is wrong.
        RunError: an image cannot be decoded.
    """
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--predictions", type=path, required=True, help="predictions.jsonl of a run")
    add("--out", type=path, required=True, help="file for the picture, .png or .jpg")
    add("--count", type=positive_int, default=12, help="number of images to draw")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in (".png", ".jpg") or not args.out.parent.is_dir():
        raise InputError(f"--out {args.out} is not a .png or .jpg in an existing folder")
    check_output_file(args.out, "--out")
    rows = read_rows(args.predictions)
    folders = {Path(row["filepath"]).parent for row in rows}
    if args.out.resolve().parent in {folder.resolve() for folder in folders}:
        raise InputError(
            f"--out {args.out} is among the images, and would become one; name another folder"
        )
    count = min(args.count, len(rows))
    tiles = [draw(rows[i * len(rows) // count]) for i in range(count)]
    save_picture(paste_tiles(tiles, min(COLUMNS, count)), args.out)
    log.info("%d images with their parts: %s", count, args.out)


if __name__ == "__main__":
    sys.exit(main())
