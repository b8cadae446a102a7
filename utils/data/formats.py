"""Name the image formats that we read: the endings of their files, and Pillow's names.

One list for every reader and every place that opens an image.
"""

HEIC_ENDINGS = (".heic", ".heif", ".hif")
# Endings of files that are images, in lower case. What else lies beside them is counted and said.
IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".avif",
    *HEIC_ENDINGS,
)

# Pillow's names of the formats that are opened, by content. Not with all of its plugins: an EPS
# that is named .jpg is a program, which Ghostscript would run. HEIF is added when a file asks for
# it, since pi-heif takes a while to import.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "AVIF")
# Brands of ISO files (bytes 8 to 12) that pi-heif opens; mif1 and msf1 may be AVIF as well.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
HEIF_BRANDS += (b"mif1", b"msf1")
# Beginnings of files that are often taken for images, in lower case, and what they are.
OTHERS = (
    (b"<!doctype html", "HTML, a web page"),
    (b"<html", "HTML, a web page"),
    (b"<?xml", "XML, perhaps SVG"),
    (b"<svg", "SVG"),
    (b"%!ps", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%pdf", "PDF"),
    (b"8bps", "a Photoshop document"),
    (b"pk\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS"),
)


# Beginnings of the formats above.
MAGICS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"RIFF",
    b"P1",
    b"P2",
    b"P3",
    b"P4",
    b"P5",
    b"P6",
    b"II*\0",
    b"MM\0*",
)


def what_it_is(head: bytes) -> str:
    """Say what a file that cannot be opened seems to be, from its first bytes."""
    if not head.strip(b"\0"):
        return "it is empty" if not head else "it holds zeros"
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if head.startswith(MAGICS) or brand in (*HEIF_BRANDS, b"avif", b"avis"):
        return "it is cut or damaged"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = next((what for magic, what in OTHERS if start.startswith(magic)), "")
    if not known and brand:
        known = "a video or an image of a kind that is not read"
    return f"it is {known}" if known else "it is not an image of a kind that is read"


MANY_HEIC = 100  # images from which on a word about decoding them is worth a line


def heic_note(count: int) -> str | None:
    """Say what a cache would save a run that decodes `count` HEIC images; None if they are few.

    By spec 006 0.43 s for 12 megapixels, on one core, where a JPEG takes 0.07; noisy ones took
    0.69 s where research.md was measured.
    """
    if count < MANY_HEIC:
        return None
    minutes = count * 0.43 / 60
    return (
        f"{count} images are HEIC, which decodes six times as slowly as JPEG: at 12 megapixels "
        f"about {minutes:.0f} minutes of one core in every epoch; --cache disk decodes them once"
    )
