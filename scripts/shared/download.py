"""Files over HTTP: resumed where they stopped, verified before they take their name."""

import hashlib
import re
import ssl
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from utils.console import log
from utils.errors import RunError, one_line


class Official(NamedTuple):
    """What tells the official file from any other. MD5 is what was published: it finds damage."""

    md5: str
    size: int  # bytes


TIMEOUT_SECONDS = 30.0  # of silence, not of the whole download
TRIES = 5  # in a row that brought nothing new
RETRY_WAIT_SECONDS = 2.0  # before the second try; twice that before the third, and so on
CHUNK_BYTES = 1 << 18
# Answers that another try may not get again; every other error answer is final.
PASSING_ANSWERS = frozenset({408, 429, 500, 502, 503, 504})


class _Dropped(Exception):
    """The connection failed in a way that another try may not; the message says how."""


def file_md5(path: Path) -> str:
    """MD5 of the file at `path`, in hex."""
    with path.open("rb") as file:
        # Systems that forbid MD5 for security allow it for finding damage.
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def file_size(path: Path) -> int:
    """Bytes of the file at `path`, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def part_path(path: Path) -> Path:
    """Where a file grows until it is whole and verified."""
    return path.with_name(f"{path.name}.part")


def _request(url: str, start: int) -> HTTPResponse:
    """The server's answer to a request for the bytes of `url` from `start` on."""
    headers = {"User-Agent": "fine-vit/get_flowers"}
    if start:
        # No If-Range: size and MD5 say which file it must be, whatever the server calls it.
        headers["Range"] = f"bytes={start}-"
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _request(url, 0)
        answer = f"HTTP {error.code} {error.reason}"
        if error.code in PASSING_ANSWERS:
            raise _Dropped(answer) from error
        raise RunError(f"{url}: {answer}; is --base_url right?") from error
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RunError(
                f"{url}: {error.reason}; Python from python.org on a Mac has no certificates "
                "until its 'Install Certificates.command' was run"
            ) from error
        raise _Dropped(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise _Dropped(one_line(error)) from error


def _first_byte(response: HTTPResponse, url: str, have: int, size: int) -> int:
    """Which byte of the file `response` starts with: `have`, or 0 from a server without ranges.

    Raises:
        RunError: the server's file is of another size than `size`, or it starts elsewhere.
    """
    start, total = 0, response.headers.get("Content-Length")
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.get("Content-Range", "none")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given)
        if match is None or int(match[1]) not in (0, have):
            raise RunError(f"{url}: asked for the bytes from {have}, the server sent {given!r}")
        start, total = int(match[1]), match[2]
    if total is not None and total.isdecimal() and int(total) != size:
        raise RunError(
            f"{url}: the server offers {int(total):,} bytes, the official file has {size:,}; "
            "is --base_url right, and no login page in between?"
        )
    return start


def _chunks(response: HTTPResponse, rest: int) -> Iterator[bytes]:
    """The next `rest` bytes of `response` and no more, however much the server sends."""
    while rest:
        try:
            chunk = response.read(min(CHUNK_BYTES, rest))
        except (OSError, HTTPException) as error:
            raise _Dropped(one_line(error)) from error
        if not chunk:  # read() with a length does not complain about an early end
            raise _Dropped("the connection was closed early")
        rest -= len(chunk)
        yield chunk


def _receive(url: str, part: Path, size: int) -> None:
    """Complete `part` to `size` bytes over one connection."""
    have = file_size(part)
    if have == size:
        return
    if have > size:  # no start of the official file
        part.unlink()
        have = 0
    with _request(url, have) as response:
        start = _first_byte(response, url, have, size)
        log.info("%s: %s of %s bytes to fetch", url, f"{size - start:,}", f"{size:,}")
        bar = tqdm(
            total=size,
            initial=start,
            desc=part.stem,
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
        )
        with bar, part.open("ab" if start else "wb") as file:
            for chunk in _chunks(response, size - start):
                file.write(chunk)
                bar.update(len(chunk))


def fetch(url: str, path: Path, official: Official) -> None:
    """Bring the file at `url` to `path`, through `path` + ".part", which outlives an interruption.

    Raises:
        RunError: the server cannot be reached or refuses, its file is of another size, or the
            checksum is wrong; in the last case the ".part" is removed.
        OSError: the file system refuses.
    """
    part = part_path(path)
    most, failures = file_size(part), 0
    while True:
        try:
            _receive(url, part, official.size)
            break
        except _Dropped as error:
            failures = 1 if file_size(part) > most else failures + 1
            most = max(most, file_size(part))
            if failures >= TRIES:
                raise RunError(
                    f"{url}: {error}; the same command goes on from what is kept, "
                    f"{file_size(part):,} of {official.size:,} bytes"
                ) from error
            log.info("%s: %s; trying again", url, error)
            time.sleep(RETRY_WAIT_SECONDS * failures)
    found = file_md5(part)
    if found != official.md5:
        part.unlink()
        raise RunError(
            f"{url}: MD5 {found} of what arrived is not the official {official.md5}; it was "
            "removed, run again to start afresh"
        )
    part.replace(path)
