"""Paste many pictures into one: tiles with captions, in rows."""

import math
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from utils.console import progress_bar
from utils.data.image_files import decode_rgb
from utils.data.threads import in_threads
from utils.files import open_atomic
from utils.ownership import SIGNATURE

CAPTION_SIZE = 11  # points
CAPTION_HEIGHT = 16  # pixels
# Most tiles of a sheet, and their side in pixels: a sheet of 5,089 classes is 4,700 pixels wide.
SIDES = ((250, 160), (1_200, 96))
SMALLEST_SIDE = 64
# Pillow's own font has the letters of ASCII; macOS and most Linux bring one that has more.
FONTS = ("Arial Unicode.ttf", "DejaVuSans.ttf")


def paste_tiles(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return tiles of one size pasted row by row on white."""
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Save a picture as PNG or, if the path ends in .jpg, as JPEG; whole or not at all.

    It says that it is ours, so that it may be replaced.
    """
    note = PngInfo()
    note.add_text("Comment", SIGNATURE)
    with open_atomic(path) as file:
        if path.suffix.lower() == ".jpg":
            picture.save(file, format="JPEG", comment=SIGNATURE)
        else:
            picture.save(file, format="PNG", pnginfo=note)


def _font(names: Sequence[str]) -> ImageFont.FreeTypeFont:
    """Return a font for captions that has the letters of all names, if one is found."""
    if not all(map(str.isascii, names)):
        for name in FONTS:
            with suppress(OSError):
                return ImageFont.truetype(name, CAPTION_SIZE)
    return ImageFont.load_default(CAPTION_SIZE)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Return as much of `text` as fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def contact_sheet(names: Sequence[str], paths: Sequence[str | None]) -> Image.Image:
    """Return an almost square sheet with a square tile for each class, with its index and name.

    Args:
        names: class names in index order.
        paths: path of a readable image of each class; None: the tile is grey.

    Raises:
        RunError: an image cannot be decoded.
    """
    side = next((side for most, side in SIDES if len(names) <= most), SMALLEST_SIDE)
    photos = [Image.new("RGB", (side, side), "lightgrey")] * len(names)

    def load(index: int) -> None:
        if (path := paths[index]) is not None:
            photos[index] = ImageOps.fit(decode_rgb(path, side), (side, side))

    with progress_bar(len(names), "contact sheet", "img") as bar:
        in_threads(load, len(names), bar)
    # Composed: names from a Mac's folders may have an accent as a letter of its own.
    names = [unicodedata.normalize("NFC", name) for name in names]
    font = _font(names)
    tiles = []
    for index, (name, photo) in enumerate(zip(names, photos, strict=True)):
        tile = Image.new("RGB", (side, side + CAPTION_HEIGHT), "white")
        tile.paste(photo, (0, 0))
        caption = _shortened(f"{index} {name}", side - 4, font)
        ImageDraw.Draw(tile).text((2, side + 1), caption, fill="black", font=font)
        tiles.append(tile)
    columns = math.ceil(math.sqrt(len(tiles) * (side + CAPTION_HEIGHT) / side))
    return paste_tiles(tiles, min(columns, len(tiles)))
