"""Look at image files before a run: what they are, whether they are whole, and their digests.

No torch here.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.console import progress_bar
from utils.data.digests import short_digest, twins, whole_digest
from utils.data.image_files import (
    MAX_PIXELS,
    Description,
    TooLarge,
    check_image_size,
    decode_rgb,
    describe,
)
from utils.data.images.headers import JPEG_MAGIC, PNG_MAGIC
from utils.data.structure.content import CUT, DAMAGED, Content, Damaged
from utils.data.structure.jpeg import Jpeg, completed_jpeg, has_jpeg_end, read_jpeg
from utils.data.structure.others import read_other, read_png
from utils.data.threads import in_threads
from utils.errors import RunError, remedy_of_shortage

THREADS = 8  # waiting for the disk, mostly

SPECIAL = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}


class Trouble(NamedTuple):
    """What is wrong with a file."""

    kind: str  # in a word, to count by
    text: str  # to follow the path


# Kinds of trouble, with CUT and DAMAGED.
MISSING, UNREADABLE, TOO_LARGE = "missing", "not readable", "too large"
EMPTY, NOT_READ = "empty", "of a kind that is not read"


def trouble_of(
    path: str | Path, read: Callable[[str | Path], object], kind: str = DAMAGED
) -> Trouble | None:
    """Call `read` on a path, and return what it says of an image that it cannot read."""
    try:
        read(path)
    except RunError as error:
        kind = TOO_LARGE if isinstance(error, TooLarge) else kind
        text = str(error).removeprefix(f"image {path} ")
        return Trouble(kind, re.sub(r"(over the limit of \d+).*", r"\1", text))  # no remedy
    return None


def _raise(trouble: Trouble | None) -> None:
    if trouble is not None:
        raise Damaged(trouble.text, trouble.kind)


class Looks:
    """What the check finds out about files, N of them; threads look at several at once."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self.short = np.zeros(len(paths), dtype=np.uint64)
        self.whole = np.zeros(len(paths), dtype=np.uint64)
        # Height and width as stored: turned upright, they may change places.
        self.sizes = np.zeros((len(paths), 2), dtype=np.int64)
        self.troubles: dict[int, Trouble] = {}
        self.odd_profiles: list[int] = []  # images whose color profile is damaged
        self.unended: list[int] = []  # JPEG files that lack only their end marker

    def look(self, index: int) -> None:
        """Look at one file."""
        try:
            self._open(index)
        except Damaged as error:
            trouble = Trouble(error.kind, str(error))
        except FileNotFoundError:
            trouble = Trouble(MISSING, "does not exist")
        except OSError as error:
            if remedy_of_shortage(error):
                raise
            trouble = Trouble(UNREADABLE, f"cannot be read ({error.strerror})")
        else:
            return
        self.troubles[index] = trouble

    def _open(self, index: int) -> None:
        path = self.paths[index]
        try:
            about = os.stat(path)  # noqa: PTH116 - a Path costs 10 us an image
        except (NotADirectoryError, ValueError) as error:
            raise FileNotFoundError(path) from error
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # no file can have the name
                raise FileNotFoundError(path) from error
            raise
        if not stat.S_ISREG(about.st_mode):
            kind = SPECIAL.get(stat.S_IFMT(about.st_mode), "device")
            raise Damaged(f"is a {kind}, not an image", NOT_READ)
        if not about.st_size:
            raise Damaged("is empty", EMPTY)
        # Not waited for, if it became a FIFO meanwhile.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._look_into(index, Content(descriptor, about.st_size))
        finally:
            os.close(descriptor)

    def _look_into(self, index: int, content: Content) -> None:
        path, must_decode, is_raw = self.paths[index], False, False
        if content.head.startswith(PNG_MAGIC):
            width, height, has_profile = read_png(content)
            if has_profile:
                self._describe(index)
            if width * height > MAX_PIXELS:
                _raise(trouble_of(path, lambda path: check_image_size(path, width, height)))
            self.sizes[index] = height, width
        elif content.head.startswith(JPEG_MAGIC) and (jpeg := read_jpeg(content)) is not None:
            must_decode = not jpeg.is_usual
            is_known = jpeg.is_usual and jpeg.width * jpeg.height <= MAX_PIXELS
            if not is_known or jpeg.has_profile:
                self._describe(index)
            self._look_at_end(index, content, jpeg)  # decodes those without end: not too large ones
            self.sizes[index] = jpeg.height, jpeg.width
        else:
            must_decode = self._describe(index)
            is_whole, is_raw = read_other(content)
            must_decode |= not is_whole
        if must_decode:
            _raise(trouble_of(path, decode_rgb))
        if is_raw:
            self.whole[index] = whole_digest(path)
        else:
            self.short[index] = short_digest(content.size, content.head, content.tail)

    def _look_at_end(self, index: int, content: Content, jpeg: Jpeg) -> None:
        if has_jpeg_end(content, jpeg):
            return
        if completed_jpeg(content.all()) is None:
            raise Damaged("is cut: a JPEG whose pixels end early", CUT)
        self.unended.append(index)

    def _describe(self, index: int) -> bool:
        """Take the size from the header that Pillow reads; tell whether pixels decide as well."""
        found: list[Description] = []
        path = self.paths[index]
        _raise(trouble_of(path, lambda path: found.append(describe(path)), NOT_READ))
        self.sizes[index] = found[0].height, found[0].width
        if found[0].has_damaged_profile:
            self.odd_profiles.append(index)
        return found[0].needs_decoding

    def read_twins(self) -> None:
        """Read files whole that have one short digest."""
        positions = twins(self.short)

        def read(number: int) -> None:
            index = positions[number]
            try:
                self.whole[index] = whole_digest(self.paths[index])
            except OSError as error:
                if remedy_of_shortage(error):
                    raise
                self.troubles[index] = Trouble(UNREADABLE, f"cannot be read ({error.strerror})")

        with progress_bar(len(positions), "compare", "img") as bar:
            in_threads(read, len(positions), bar, THREADS)
