"""Fetch the official Oxford Flowers-102 data and lay it out as `train.py` reads it.

    python scripts/get_flowers.py DEST
    python train.py --name flowers --data_root DEST

DEST receives `jpg/`, `imagelabels.mat`, `setid.mat` and the archive of the images: 345 MB over the
network, twice that on disk. The same command resumes an interrupted download, and verifies a
complete one without fetching anything.
"""

import argparse
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

# The repo is run in place, and `python scripts/x.py` puts only scripts/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.environment  # isort: split

from scripts.shared.download import Official, fetch, file_md5, file_size, part_path
from utils.cli.parser import Parser
from utils.cli.types import path
from utils.console import log, log_table, progress_bar
from utils.data_utils import free_bytes
from utils.entrypoint import entrypoint
from utils.errors import InputError, RunError, one_line
from utils.files import kind_of, open_regular

BASE_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"

# MD5: torchvision/datasets/flowers102.py. Size: tensorflow_datasets/url_checksums/
# oxford_flowers102.txt. The small files come first, so that a wrong address shows at once.
ARCHIVE = "102flowers.tgz"
OFFICIAL_FILES: Mapping[str, Official] = {
    "imagelabels.mat": Official("e0620be6f572b9609742df49c70aed4d", 502),
    "setid.mat": Official("a5357ecc9cb78c4bef273ce3793fc85c", 14_989),
    ARCHIVE: Official("52808999861908f626f3c1f4e79d11fa", 344_862_509),
}
GZIP = b"\x1f\x8b"  # how the archive begins
UNPACKING = ".jpg.part"  # folder in which the images lie until all are there
IMAGE_COUNT = 8189  # jpg/image_00001.jpg to jpg/image_08189.jpg

# JPEGs hardly shrink in a .tgz: the images need as much again, and a little for whole blocks.
UNPACKED_PER_ARCHIVE_BYTE = 1.1


def _url(text: str) -> str:
    """Return the address of a folder on the web, with a slash at its end."""
    try:
        parts = urlsplit(text)
        _ = parts.port  # checked only when it is asked for
    except ValueError as error:
        raise InputError(f"--base_url {text!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--base_url {text!r} must start with https://HOST or http://HOST")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise InputError(f"--base_url {text!r}: write spaces and other letters as %XX")
    return text.rstrip("/") + "/"


def _parser() -> Parser:
    parser = Parser(
        description="Fetch and verify the official Oxford Flowers-102 images and labels."
    )
    add = parser.add_argument
    add("dest", type=path, metavar="DEST", help="folder to fill, train.py's --data_root")
    add("--base_url", type=_url, default=BASE_URL, help="folder on the web that holds the files")
    add(
        "--keep_archive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"keep DEST/{ARCHIVE} after its images are unpacked",
    )
    return parser


@contextmanager
def _os_errors_as(kind: type[Exception], dest: Path) -> Iterator[None]:
    """Turn an OSError into a `kind` that names `dest`, which "no space left" does not."""
    try:
        yield
    except OSError as error:
        raise kind(f"{dest}: {one_line(error)}") from error


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _nearest(dest: Path) -> Path:
    """Return `dest`, or else the lowest of its parents that exists."""
    while not dest.exists():
        dest = dest.parent
    return dest


def _image_names() -> list[str]:
    return [f"image_{number:05d}.jpg" for number in range(1, IMAGE_COUNT + 1)]


def _is_jpeg(path: Path) -> bool:
    """Return whether a JPEG begins at `path`; train.py checks the images of its splits closer."""
    try:
        with open_regular(path) as file:
            return file.read(3) == b"\xff\xd8\xff"
    except (FileNotFoundError, IsADirectoryError):
        return False


def _check_remains(dest: Path) -> None:
    """Raise if what an interrupted call would have left in `dest` is something else."""
    parts = [part_path(dest / name) for name in OFFICIAL_FILES]
    odd = [part for part in parts if kind_of(part, follow=False) not in ("file", None)]
    archive = part_path(dest / ARCHIVE)
    if archive not in odd and file_size(archive):
        with archive.open("rb") as file:
            odd += [] if GZIP.startswith(file.read(len(GZIP))) else [archive]
    unpacked = dest / UNPACKING
    if (kind := kind_of(unpacked, follow=False)) is not None:
        is_ours = kind == "folder" and {path.name for path in unpacked.iterdir()} <= {"jpg"}
        odd += [] if is_ours else [unpacked]
    if odd:
        raise InputError(f"{odd[0]} was not left by an earlier call; move it away and run again")


def find_missing(dest: Path) -> list[str]:
    """Return the official files that must be fetched into `dest`, after verifying what it holds.

    Nothing is written, and nothing that the user may want to keep is ever replaced.

    Raises:
        InputError: `dest` or a parent is not a folder or not writable, or a file or the images in
            it are not the official ones.
    """
    folder = _nearest(dest)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name one that exists or can be made")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} is not writable: name another folder")
    _check_remains(dest)
    present = [name for name in OFFICIAL_FILES if kind_of(dest / name, follow=False)]
    for name in present:
        found, official = file_md5(dest / name), OFFICIAL_FILES[name]
        if found != official.md5:
            raise InputError(
                f"{dest / name} is not the official file (MD5 {found}, not {official.md5}): "
                "move it away and run again"
            )
    jpg = dest / "jpg"
    if kind_of(jpg, follow=False) is None:
        return [name for name in OFFICIAL_FILES if name not in present]
    damaged = [name for name in _image_names() if not _is_jpeg(jpg / name)]
    if damaged:
        raise InputError(
            f"{jpg} lacks {len(damaged):,} of the {IMAGE_COUNT:,} images or holds them damaged "
            f"(first: {damaged[0]}): move the folder away and run again"
        )
    return [name for name in OFFICIAL_FILES if name not in present and name != ARCHIVE]


def check_space(dest: Path, missing: Sequence[str]) -> None:
    """Check that `missing` and the unpacked images fit on the disk of `dest`.

    Raises:
        RunError: they do not.
    """
    sizes = {name: OFFICIAL_FILES[name].size for name in missing}
    needed: float = sum(max(0, sizes[name] - file_size(part_path(dest / name))) for name in sizes)
    if not (dest / "jpg").exists():
        needed += UNPACKED_PER_ARCHIVE_BYTE * OFFICIAL_FILES[ARCHIVE].size
    free = free_bytes(_nearest(dest))
    if free is not None and free < needed:
        raise RunError(
            f"{dest}: {_megabytes(needed)} more are needed, the disk has {_megabytes(free)} free; "
            "make room or name another folder"
        )


def _members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return the images of the archive, after checking that it holds all and nothing else."""
    images = {}
    expected = {("jpg", name) for name in _image_names()}
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if member.isdir() and parts in ((), ("jpg",)):
            continue
        if not member.isreg() or parts not in expected:
            raise RunError(f"{tar.name}: {member.name!r} is not an image of Flowers-102")
        images[parts] = member
    if len(images) != IMAGE_COUNT:
        raise RunError(f"{tar.name}: holds {len(images):,} images, not {IMAGE_COUNT:,}")
    return list(images.values())


def unpack(archive: Path, jpg: Path) -> None:
    """Unpack the images into a folder beside `jpg` that takes that name when it is whole.

    Raises:
        RunError: the archive is damaged, or holds anything but the images.
        OSError: the images cannot be written.
    """
    beside = jpg.with_name(UNPACKING)
    if beside.exists():  # from a call that was killed
        shutil.rmtree(beside)
    beside.mkdir()
    try:
        with tarfile.open(archive, "r:gz") as tar, progress_bar(IMAGE_COUNT, "jpg", "image") as bar:
            for member in _members(tar):
                tar.extract(member, beside, filter="data")
                bar.update()
        (beside / "jpg").rename(jpg)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise RunError(f"{archive}: {one_line(error)}") from error
    finally:
        shutil.rmtree(beside)


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Fetch what is missing, verify it, unpack it.

    Raises:
        InputError: a flag or a file in DEST is wrong; nothing is written.
        RunError: network, checksum or disk failed.
    """
    args = _parser().parse_args(argv)
    dest = args.dest
    with _os_errors_as(InputError, dest):
        missing = find_missing(dest)
    with _os_errors_as(RunError, dest):
        check_space(dest, missing)
        dest.mkdir(parents=True, exist_ok=True)
        for name in missing:
            fetch(args.base_url + name, dest / name, OFFICIAL_FILES[name])
        if not (dest / "jpg").exists():
            log.info("%s: unpacking %s images", dest / ARCHIVE, f"{IMAGE_COUNT:,}")
            unpack(dest / ARCHIVE, dest / "jpg")
        if not args.keep_archive:
            (dest / ARCHIVE).unlink(missing_ok=True)
    rows = {name: "verified" for name in OFFICIAL_FILES if (dest / name).exists()}
    log_table(f"--data_root {dest}", {"jpg": f"{IMAGE_COUNT:,} images", **rows})


if __name__ == "__main__":
    sys.exit(main())
