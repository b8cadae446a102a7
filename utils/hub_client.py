"""Have the client of the Hugging Face hub list and load; say in one line what its errors mean.

The client has the cache that the user's other tools share, and obeys `HF_HOME`, `HF_ENDPOINT`,
`HF_TOKEN` and `HF_HUB_OFFLINE`. It does not verify what arrives. Importing it takes half a second.
"""

import errno
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from httpx2 import (
    Client,
    HTTPError,
    InvalidURL,
    Response,
    SyncByteStream,
    TransportError,
    UnsupportedProtocol,
)
from yaml import YAMLError

from utils.errors import InputError, RunError, one_line
from utils.hub import Source
from utils.speed import TooSlow, unless_too_slow

try:
    from huggingface_hub import (
        HfApi,
        constants,
        errors,
        hf_hub_download,
        metadata_load,
        set_client_factory,
        snapshot_download,
    )
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.logging import set_verbosity_error
except ValueError as error:  # it reads its settings while it is imported
    said = one_line(error)
    raise InputError(f"a variable HF_... of the environment cannot be read: {said}") from error

# Files that say how to use the weights.
BESIDE = ("config.json", "open_clip_config.json", "preprocessor_config.json")
_FULL_DISK = "Not enough free disk space"  # how the client's warning begins
# By the status of an answer: what the user has to change.
_REMEDIES = {
    HTTPStatus.UNAUTHORIZED: "is HF_TOKEN right?",
    HTTPStatus.FORBIDDEN: "is HF_TOKEN right?",
    HTTPStatus.NOT_FOUND: "is HF_ENDPOINT right?",
}
# What the system says where a folder or file of a setting is not there, or may not be used.
_SETTINGS = (FileNotFoundError, NotADirectoryError, PermissionError)


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


def prepare_client() -> None:
    """Have the client end what is too slow, and say nothing but its progress bar."""
    set_client_factory(_watching_client)
    set_verbosity_error()  # what it tries again is no news
    if "HF_HUB_DISABLE_XET" not in os.environ:
        # Xet's transfer, in Rust, hears neither of signals nor of `_watch`.
        constants.HF_HUB_DISABLE_XET = True


class Listing(NamedTuple):
    """What a repository has, as the server says, or else as far as the cache has it."""

    files: Mapping[str, str | None]  # SHA-256 that the server states, by name
    commit: str
    silence: Exception | None = None  # why the server does not answer


def ask(address: str, source: Source) -> Listing:
    """List a repository; where the server cannot be asked, what the cache has of it.

    Raises:
        InputError: the client is told to be offline, and the cache has nothing.
        RunError: the server cannot be reached, and the cache has nothing.
    """
    try:
        said = HfApi().model_info(
            source.repository,
            revision=source.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
            raise
        silence = error
    except UnsupportedProtocol:
        raise
    except (errors.OfflineModeIsEnabled, TransportError) as error:
        silence = error
    else:
        siblings = said.siblings or ()
        files = {each.rfilename: each.lfs.sha256 if each.lfs else None for each in siblings}
        return Listing(files, said.sha)
    try:
        snapshot = snapshot_download(
            source.repository, revision=source.revision, local_files_only=True
        )
    except errors.IncompleteSnapshotError as error:  # another tool has fetched a part of it
        snapshot = error.snapshot_path
    except errors.LocalEntryNotFoundError as error:
        raise unreachable(address, silence) from error
    folder = Path(snapshot)
    files = {
        path.relative_to(folder).as_posix(): _stated_in_cache(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Listing(files, folder.name, silence)


def _stated_in_cache(path: Path) -> str | None:
    """Return the SHA-256 that the server once stated: the cache names large files by it."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def download(address: str, source: Source, file: str, listing: Listing) -> Path:
    """Return the folder of the cache in which a file lies, what it lacks being fetched.

    What says how to use the weights comes first: it is small, and a refusal shows at once.

    Raises:
        RunError: the repository changed meanwhile.
    """

    def load(name: str) -> str:
        is_silent = listing.silence is not None
        # By the revision, which the cache then knows without network, too.
        told = {"revision": source.revision, "local_files_only": is_silent}
        return hf_hub_download(source.repository, name, **told)

    if source.licence is None and constants.REPOCARD_NAME in listing.files:
        with suppress(OSError):  # a cache that others have filled, perhaps, and that is read only
            load(constants.REPOCARD_NAME)
    beside = [PurePosixPath(file).with_name(name).as_posix() for name in BESIDE]
    for name in [*(name for name in beside if name in listing.files), file]:
        path = load(name)
    # <cache>/models--owner--repository/snapshots/<commit>/<file>
    folder = Path(path).parents[len(PurePosixPath(file).parts) - 1]
    if folder.name != listing.commit:
        raise RunError(
            f"--pretrained {address}: {source.revision} is commit {listing.commit}, and what came "
            f"is of {folder.name}; run the same again"
        )
    return folder


def is_in_cache(source: Source, file: str, listing: Listing) -> bool:
    """Return whether the cache has the content of a file, for this revision or another one."""
    name = repo_folder_name(repo_id=source.repository, repo_type="model")
    folder, stated = Path(constants.HF_HUB_CACHE, name), listing.files[file]
    blob = folder / "blobs" / stated if stated else folder / "snapshots" / listing.commit / file
    return blob.exists()


def licence_in(folder: Path) -> str:
    """Return the licence that the page of a repository states, from its folder in the cache.

    Some state a list; some state `other`, and a name.
    """
    card = folder / constants.REPOCARD_NAME
    if not card.is_file():
        return "not known"
    try:
        said = metadata_load(card) or {}
    except (ValueError, YAMLError):
        said = {}
    licence = said.get("license") or "not stated"
    named = said.get("license_name") if licence == "other" else None
    listed = licence if isinstance(licence, list) else [licence, *([named] if named else [])]
    return ", ".join(map(str, listed))


def unreachable(address: str, why: Exception) -> InputError | RunError:
    """Return what to say where neither the server nor the cache has weights."""
    cache = f"and {constants.HF_HUB_CACHE} does not have it"
    if isinstance(why, errors.OfflineModeIsEnabled):
        return InputError(f"--pretrained {address}: HF_HUB_OFFLINE is set, {cache}; unset it")
    said = f"{constants.ENDPOINT} cannot be reached ({one_line(why)})"
    return RunError(f"--pretrained {address}: {said}, {cache}; try again later")


@contextmanager
def named_hub_failures(address: str, source: Source) -> Iterator[None]:
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
        remedy = _REMEDIES.get(status)
        kind, what = (RunError, "") if remedy is None else (InputError, f"; {remedy}")
        raise kind(f"--pretrained {address}: {page} answered HTTP {status}{what}") from error
    except (InvalidURL, UnsupportedProtocol) as error:
        raise InputError(
            f"--pretrained {address}: HF_ENDPOINT {constants.ENDPOINT} is no address "
            f"({one_line(error)})"
        ) from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"--pretrained {address}: HF_TOKEN is no token: {one_line(error)}"
        ) from error
    # Xet raises RuntimeErrors; a login page in between is no JSON.
    except (HTTPError, OSError, RuntimeError, ValueError, UserWarning, TooSlow) as error:
        what = one_line(error)
        if getattr(error, "filename", None) is None:
            what += f" (it goes to {constants.HF_HUB_CACHE})"
        is_setting = isinstance(error, _SETTINGS) or getattr(error, "errno", None) == errno.EROFS
        if is_setting and not isinstance(error, errors.LocalEntryNotFoundError):
            raise InputError(
                f"--pretrained {address}: {what}; are HF_HOME, HF_HUB_CACHE and SSL_CERT_FILE "
                "right?"
            ) from error
        room = "free space or set HF_HUB_CACHE, and " if isinstance(error, UserWarning) else ""
        raise RunError(f"--pretrained {address}: {what}; {room}run the same again") from error
