"""Fetch files over HTTP: resume interrupted ones, verify them before they take their name."""

import hashlib
import re
import ssl
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from utils.console import log, progress_bar
from utils.errors import RunError, one_line
from utils.files import open_regular
from utils.speed import TooSlow, unless_too_slow


class Official(NamedTuple):
    """The identity of an official file."""

    md5: str  # the checksum that was published; it finds damage
    size: int  # bytes


TIMEOUT_SECONDS = 30.0  # of silence, not of the whole download
TRIES = 5  # in a row that bring nothing new
RETRY_WAIT_SECONDS = 2.0  # before the second try; twice that before the third, and so on
CHUNK_BYTES = 1 << 18
# Error answers that another try may not get again; the others are final.
PASSING_ANSWERS = frozenset({408, 429, 500, 502, 503, 504})


class _Dropped(Exception):
    """A failed connection that another try may not meet."""


def file_md5(path: Path) -> str:
    """Return the MD5 of the file at `path`, in hex."""
    with open_regular(path) as file:
        # Systems that forbid MD5 for security allow it to find damage.
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def file_size(path: Path) -> int:
    """Return the bytes of the file at `path`, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def part_path(path: Path) -> Path:
    """Return where a file grows until it is whole and verified."""
    return path.with_name(f"{path.name}.part")


def _request(url: str, start: int) -> HTTPResponse:
    """Return the server's answer to a request for the bytes of `url` from `start` on."""
    headers = {"User-Agent": "fine-vit/get_flowers"}
    if start:
        # Without If-Range: size and MD5 say which file it must be.
        headers["Range"] = f"bytes={start}-"
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        answer = f"HTTP {error.code} {error.reason}"
        if error.code in PASSING_ANSWERS:
            raise _Dropped(answer) from error
        raise RunError(f"{url}: {answer}; is --base_url right?") from error
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RunError(
                f"{url}: {error.reason}; Python from python.org on a Mac has no certificates "
                "until its 'Install Certificates.command' was run; SSL_CERT_FILE names a proxy's"
            ) from error
        raise _Dropped(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise _Dropped(one_line(error)) from error


def _first_byte(response: HTTPResponse, url: str, have: int, size: int) -> int:
    """Return the byte at which `response` starts: `have`, or 0 from a server without ranges.

    Raises:
        RunError: the server's file has another size than `size`, or `response` starts elsewhere.
    """
    start, total = 0, response.headers.get("Content-Length")
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.get("Content-Range", "none")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given)
        if match is None or int(match[1]) != have:
            raise RunError(
                f"{url}: asked for the bytes from {have}, the server sent {given!r}; is --base_url "
                "right?"
            )
        start, total = have, match[2]
    if total is not None and total.isdecimal() and int(total) != size:
        raise RunError(
            f"{url}: the server offers {int(total):,} bytes, the official file has {size:,}; "
            "is --base_url right, and no login page in between?"
        )
    return start


def _chunks(response: HTTPResponse, rest: int) -> Iterator[bytes]:
    """Yield the next `rest` bytes of `response` and no more, even if the server sends more."""
    while rest:
        try:
            # read1: what has come; read would wait for all of it, however slowly it comes.
            chunk = response.read1(min(CHUNK_BYTES, rest))
        except (OSError, HTTPException) as error:
            raise _Dropped(one_line(error)) from error
        if not chunk:  # read1() does not complain about an early end
            raise _Dropped("the connection was closed early")
        rest -= len(chunk)
        yield chunk


def _receive(url: str, part: Path, size: int) -> None:
    """Complete `part` to `size` bytes over one connection."""
    have = file_size(part)
    if have == size:
        return
    if have > size:  # not a start of the official file
        part.unlink()
        have = 0
    with _request(url, have) as response:
        start = _first_byte(response, url, have, size)
        log.info("%s: %s of %s bytes to fetch", url, f"{size - start:,}", f"{size:,}")
        bar = progress_bar(size, part.stem, "B", start)
        bar.unit_scale = True
        with bar, part.open("ab" if start else "wb") as file:
            for chunk in unless_too_slow(_chunks(response, size - start)):
                file.write(chunk)
                bar.update(len(chunk))


def fetch(url: str, path: Path, official: Official) -> None:
    """Fetch the file at `url` to `path`, through `path` + ".part", which outlives an interruption.

    Raises:
        RunError: the server cannot be reached or refuses, its file has another size, or the
            checksum is wrong; in the last case the ".part" is removed.
        OSError: the file cannot be written.
    """
    part = part_path(path)
    most, failures = file_size(part), 0
    while True:
        try:
            _receive(url, part, official.size)
            break
        except (_Dropped, TooSlow) as error:
            failures = 1 if file_size(part) > most else failures + 1
            most = max(most, file_size(part))
            if failures >= TRIES or isinstance(error, TooSlow):
                raise RunError(
                    f"{url}: {error}; {file_size(part):,} of {official.size:,} bytes are kept, run "
                    "the same command again to fetch the rest"
                ) from error
            log.info("%s: %s; trying again", url, error)
            time.sleep(RETRY_WAIT_SECONDS * failures)
    found = file_md5(part)
    if found != official.md5:
        part.unlink()
        raise RunError(
            f"{url}: the MD5 is {found}, not the official {official.md5}; the file was removed, "
            "run the same command again"
        )
    part.replace(path)
