"""Fetch public weights from the Hugging Face hub, or take them from its client's cache; hash them.

The client has the cache that the user's other tools share, and obeys `HF_HOME`, `HF_ENDPOINT`,
`HF_TOKEN` and `HF_HUB_OFFLINE`. It does not verify what arrives. Importing it takes half a second.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from httpx2 import Client, HTTPError, Response, SyncByteStream, TransportError
from huggingface_hub import HfApi, constants, errors, hf_hub_download, set_client_factory
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils._http import default_client_factory
from huggingface_hub.utils.logging import set_verbosity_error

from utils.console import log
from utils.errors import InputError, RunError, near_miss, one_line
from utils.files import sha256_file
from utils.hub import FORMATS, Fetched, Source, source_of
from utils.speed import TooSlow, unless_too_slow

# Files that say how to use the weights.
BESIDE = ("config.json", "open_clip_config.json", "preprocessor_config.json")
USUAL = "model.safetensors"
_FULL_DISK = "Not enough free disk space"  # how the client's warning begins


class _Watched(SyncByteStream):
    """The bytes of an answer, which end with an exception where they come too slowly."""

    def __init__(self, stream: SyncByteStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return unless_too_slow(self.stream)

    def close(self) -> None:
        """Let go of the connection."""
        self.stream.close()


def _watch(response: Response) -> None:
    response.stream = _Watched(response.stream)


def _watching_client() -> Client:
    client = default_client_factory()
    client.event_hooks["response"].append(_watch)
    return client


def _prepare_client() -> None:
    """Have the client end what is too slow, and say nothing but its progress bar."""
    set_client_factory(_watching_client)
    set_verbosity_error()  # what it tries again is no news
    if "HF_HUB_DISABLE_XET" not in os.environ:
        # Xet's transfer, in Rust, hears neither of signals nor of `_watch`.
        constants.HF_HUB_DISABLE_XET = True


def fetch(address: str, table: Mapping[str, Any]) -> Fetched:
    """Fetch the weights at an address, unless the cache has them, and check their SHA-256.

    Raises:
        InputError: the address, a licence, a token or a setting has to be changed.
        RunError: the network, the disk or the bytes failed.
    """
    source = source_of(address, table)
    _prepare_client()
    with _named_failures(address, source):
        listing = _ask(source)
        is_cached = isinstance(listing, Exception)  # or nothing can be had
        file = source.file or (USUAL if is_cached else _only_weights(address, listing))
        stated = None if is_cached else _stated(address, source, listing, file)
        path, commit = _download(address, source, file, listing)
        found = sha256_file(path)
    stated = stated or _stated_in_cache(path)
    expected = source.sha256 or stated
    if expected is not None and found != expected:
        raise RunError(
            f"--pretrained {address}: {file} has SHA-256 {found}, not {expected}: it is damaged; "
            f"remove {path.resolve()} and fetch it again"
        )
    record = {
        "name": source.name,
        "repository": source.repository,
        "commit": commit,
        "file": file,
        "sha256": found,
        "sha256_is": "published" if source.sha256 else "the server's" if stated else "only ours",
        "licence": source.licence or ("not asked" if is_cached else _licence(listing)),
    }
    log.info("weights %s: %s of commit %s", source.name, file, commit)
    if "-nc" in record["licence"]:
        forbids = "warning: the licence of %s, %s, forbids commercial use"
        log.warning(forbids, source.name, record["licence"])
    return Fetched(path, record)


def _ask(source: Source) -> ModelInfo | Exception:
    """Return what the server says of a repository, or why it says nothing."""
    try:
        return HfApi().model_info(
            source.repository,
            revision=source.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except errors.HfHubHTTPError as error:
        if error.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return error
    except (errors.OfflineModeIsEnabled, TransportError) as error:
        return error


def _only_weights(address: str, listing: ModelInfo) -> str:
    """Return the name of the weights in a repository.

    Raises:
        InputError: there are none, or several.
    """
    names = [file.rfilename for file in listing.siblings or ()]
    weights = [name for name in names if name.endswith(FORMATS)]
    if USUAL in weights or len(weights) == 1:
        return USUAL if USUAL in weights else weights[0]
    what = f"has several: {', '.join(weights[:6])}; add one" if weights else "has no weights"
    raise InputError(
        f"--pretrained {address} {what}" + (f": {address}/FILE" if weights else _NOT_FETCHED)
    )


_NOT_FETCHED = f" in {' or '.join(FORMATS)}, and nothing else is fetched: a pickle can run code"


def _stated(address: str, source: Source, listing: ModelInfo, file: str) -> str | None:
    """Return the SHA-256 that the server states for a file; None: none.

    Raises:
        InputError: the repository lacks the file, or has another than the table.
    """
    found = {each.rfilename: each for each in listing.siblings or ()}
    if file not in found:
        raise InputError(f"--pretrained {address}: there is no {file}{near_miss(file, found)}")
    stated = found[file].lfs.sha256 if found[file].lfs else None
    if stated and source.sha256 and stated != source.sha256:
        raise InputError(
            f"--pretrained {address}: {file} was replaced: the server has SHA-256 {stated}, the "
            f"table {source.sha256}; hf:{source.repository}/{file} takes what is there"
        )
    return stated


def _stated_in_cache(path: Path) -> str | None:
    """Return the SHA-256 that the server once stated: the cache names large files by it."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def _licence(listing: ModelInfo) -> str:
    """Return the licence that a repository's page states; some state a list of one."""
    said = listing.card_data.license if listing.card_data else None
    return ", ".join(map(str, said if isinstance(said, list) else [said or "not stated"]))


def _download(
    address: str, source: Source, file: str, listing: ModelInfo | Exception
) -> tuple[Path, str]:
    """Return where a file lies in the cache, what it lacks being fetched, and its commit.

    What says how to use the weights comes first: it is small, and a refusal shows at once.
    """
    is_cached = isinstance(listing, Exception)
    there = () if is_cached else {each.rfilename for each in listing.siblings}
    beside = [PurePosixPath(file).with_name(name).as_posix() for name in BESIDE]
    path = Path()
    for name in [*(name for name in beside if name in there), file]:
        try:
            path = Path(
                hf_hub_download(
                    source.repository,
                    name,
                    revision=source.revision,  # which the cache then knows without network, too
                    local_files_only=is_cached,
                )
            )
        except errors.LocalEntryNotFoundError as error:
            if not is_cached:
                raise
            raise _unreachable(address, listing) from error
    # <cache>/models--owner--repository/snapshots/<commit>/<file>
    return path, path.parents[len(PurePosixPath(file).parts) - 1].name


def _unreachable(address: str, why: Exception) -> InputError | RunError:
    cache = f"and {constants.HF_HUB_CACHE} does not have it"
    if isinstance(why, errors.OfflineModeIsEnabled):
        return InputError(f"--pretrained {address}: HF_HUB_OFFLINE is set, {cache}; unset it")
    said = f"{constants.ENDPOINT} cannot be reached ({one_line(why)})"
    return RunError(f"--pretrained {address}: {said}, {cache}; try again later")


@contextmanager
def _named_failures(address: str, source: Source) -> Iterator[None]:
    """Say in one line what the client's errors mean, and keep its other lines to itself.

    Raises:
        InputError: the user has to change something.
        RunError: network or disk failed.
    """
    page = f"{constants.ENDPOINT}/{source.repository}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=_FULL_DISK)
            yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"--pretrained {address} is gated: accept its licence at {page}, and set HF_TOKEN to a "
            "token of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"--pretrained {address}: {source.repository} has no revision {source.revision}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"--pretrained {address}: there is no {page}, or HF_TOKEN may not see it"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        is_refused = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        kind, what = (InputError, "; is HF_TOKEN right?") if is_refused else (RunError, "")
        raise kind(f"--pretrained {address}: {page} answered HTTP {status}{what}") from error
    # Xet raises RuntimeErrors; a login page in between is no JSON.
    except (HTTPError, OSError, RuntimeError, ValueError, UserWarning, TooSlow) as error:
        what = one_line(error)
        if getattr(error, "filename", None) is None:
            what += f" (it goes to {constants.HF_HUB_CACHE})"
        raise RunError(f"--pretrained {address}: {what}; run the same again") from error
