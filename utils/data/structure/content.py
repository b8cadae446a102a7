"""Hold the bytes of an image file that tell whether it is whole. No torch here."""

import os
import struct

PIECE = 4096  # bytes of a file's start, and of its end, that are read and in its short digest
# What Pillow raises for headers that are damaged.
ODDITIES = (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error)

CUT, DAMAGED = "cut", "damaged"  # kinds of trouble


class Damaged(Exception):
    """A file cannot be an image, or not a whole one; the message says why, to follow its path."""

    def __init__(self, message: str, kind: str = DAMAGED) -> None:
        super().__init__(message)
        self.kind = kind  # in a word


class Content:
    """The bytes of an open file: its ends are at hand, what lies between is read when asked for."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self.size = descriptor, size
        self.head = os.pread(descriptor, PIECE, 0)
        is_small = size <= PIECE
        self.tail = self.head if is_small else os.pread(descriptor, PIECE, size - PIECE)

    def at(self, start: int, count: int) -> bytes:
        """Return up to `count` bytes from `start` on."""
        if start + count <= len(self.head):
            return self.head[start : start + count]
        if start >= self.size - len(self.tail):
            start -= self.size - len(self.tail)
            return self.tail[start : start + count]
        return os.pread(self.descriptor, count, start)

    def all(self) -> bytes:
        """Return all bytes."""
        return self.head if self.size <= PIECE else os.pread(self.descriptor, self.size, 0)
