"""Fetch public weights from the Hugging Face hub, or take them from its client's cache; hash them.

The client does not verify what arrives. Importing it takes half a second.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.console import log
from utils.errors import InputError, RunError, near_miss
from utils.files import sha256_file
from utils.hub import FORMATS, Fetched, Source, source_of
from utils.hub_client import (
    Listing,
    ask,
    download,
    is_in_cache,
    licence_in,
    named_hub_failures,
    prepare_client,
    unreachable,
)

USUAL = "model.safetensors"
_PART = re.compile(r"-\d+-of-\d+\.")  # in the names of weights that several files hold
_NOT_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|\bresearch\b|\bamlr\b", re.IGNORECASE)


def fetch(address: str, table: Mapping[str, Any]) -> Fetched:
    """Fetch the weights at an address, unless the cache has them, and check their SHA-256.

    Raises:
        InputError: the address, a licence, a token or a setting has to be changed.
        RunError: the network, the disk or the bytes failed.
    """
    source = source_of(address, table)
    prepare_client()
    with named_hub_failures(address, source):
        listing = ask(address, source)
        file = _file_of(address, source, listing)
        was_there = is_in_cache(source, file, listing)
        folder = download(address, source, file, listing)
        path = folder / file
        found = sha256_file(path)
        licence = source.licence or licence_in(folder)
    stated = listing.files[file]
    expected = source.sha256 or stated
    if expected is not None and found != expected:
        what = f"--pretrained {address}: {file} has SHA-256 {found}, not {expected}"
        raise _damaged(what, path, was_there)
    record = {
        "name": source.name,
        "repository": source.repository,
        "commit": listing.commit,
        "file": file,
        "sha256": found,
        "sha256_is": "published" if source.sha256 else "the server's" if stated else "only ours",
        "licence": licence,
    }
    log.info("weights %s: %s of commit %s", source.name, file, listing.commit)
    if _NOT_COMMERCIAL.search(licence):
        forbids = "warning: the licence of %s, %s, forbids commercial use"
        log.warning(forbids, source.name, licence)
    return Fetched(path, record)


def _file_of(address: str, source: Source, listing: Listing) -> str:
    """Return the name of the weights in a repository.

    Raises:
        InputError: there are none, several, or others than the table has.
        RunError: the cache has none, and the server cannot be asked.
    """
    files, is_silent = listing.files, listing.silence is not None
    weights = [name for name in files if name.endswith(FORMATS)]
    offered = [source.file] if source.file else [USUAL] if USUAL in weights else weights
    whole = [name for name in offered if not _PART.search(name)]
    if offered and not whole:
        what = " has its weights in parts, which are not put together here; name a file with all"
    elif len(offered) == 1 and whole[0] in files:
        file, stated = whole[0], files[whole[0]]
        if stated and source.sha256 and stated != source.sha256:
            raise InputError(
                f"--pretrained {address}: {file} was replaced: it has SHA-256 {stated}, and "
                f"{source.sha256} in the table; hf:{source.repository}/{file} takes what is there"
            )
        if is_silent and source.file is None and file != USUAL:
            log.warning("warning: %s does not answer; the cache has only %s of it", address, file)
        return file
    elif is_silent and len(offered) < 2:
        raise unreachable(address, listing.silence)
    elif source.file is not None:
        what = f": there is no {source.file}{near_miss(source.file, files)}"
    elif offered:
        what = f" has several: {', '.join(whole[:6])}; add one: {address}/FILE"
    else:
        what = (
            f" has no weights in {' or '.join(FORMATS)}, and nothing else is fetched: a pickle can "
            "run code"
        )
    raise InputError(f"--pretrained {address}{what}")


def _damaged(what: str, path: Path, was_there: bool) -> InputError | RunError:
    """Remove a damaged file of the cache if it has just been fetched; return what to say."""
    blob = path.resolve()
    if was_there:
        return InputError(f"{what}: it is damaged; remove {blob} and fetch it again")
    for each in (path, blob):
        each.unlink(missing_ok=True)
    return RunError(f"{what}: it arrived damaged and was not kept; run the same again")
