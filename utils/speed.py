"""End a download over which next to nothing comes."""

import time
from collections.abc import Iterable, Iterator

SLOW_SECONDS, SLOW_BYTES = 60.0, 1024  # fewer bytes a second for so long end a download


class TooSlow(Exception):
    """A connection over which next to nothing comes."""


def unless_too_slow(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what arrives.

    Raises:
        TooSlow: for a minute it was less than 1,024 bytes a second.
    """
    since, received = time.monotonic(), 0
    for chunk in chunks:
        received += len(chunk)
        yield chunk
        if (now := time.monotonic()) - since >= SLOW_SECONDS:
            if received < SLOW_BYTES * (now - since):
                raise TooSlow(f"{received:,} bytes came in {now - since:.0f} s, which is too slow")
            since, received = now, 0
