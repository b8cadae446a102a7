"""Fetch public weights from the Hugging Face hub, or take them from its client's cache; hash them.

The client has the cache that the user's other tools share, and obeys `HF_HOME`, `HF_ENDPOINT`,
`HF_TOKEN` and `HF_HUB_OFFLINE`. It takes half a second to import and does not verify what arrives.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from utils.console import log
from utils.errors import InputError, RunError, near_miss, one_line, os_errors_are_input_errors
from utils.files import kind_of, sha256_file

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

HUB = "hf:"  # how the address of weights on the hub begins
FORMATS = (".safetensors", ".npz")  # files of numbers; a pickle could run code
BESIDE = ("config.json", "preprocessor_config.json")  # files that say how to use the weights
USUAL = "model.safetensors"
_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?", re.ASCII)
_FULL_DISK = "Not enough free disk space"  # how the client's warning begins


class Source(NamedTuple):
    """Where weights lie on the hub, and what is known of them before they are fetched."""

    name: str  # in the table of weights, else that of the repository
    repository: str
    revision: str = "main"  # branch, tag or commit
    file: str | None = None  # None: the only weights of the repository
    sha256: str | None = None  # as it was published; None: not known
    licence: str | None = None  # None: the server says it


class Fetched(NamedTuple):
    """Weights on this machine."""

    path: Path  # the files `BESIDE` lie beside it
    record: dict[str, str]  # for stamp and checkpoint: name, commit, hash, licence


def address_of(text: str, table: Mapping[str, Any]) -> Path | str:
    """Return the path that `--pretrained` names, or else the address of weights on the hub.

    Args:
        text: an existing path, a name in the table, or `hf:owner/repository[@revision][/file]`.
        table: public weights by name; a row has the fields of `Source`.

    Raises:
        InputError: it is none of these.
    """
    with os_errors_are_input_errors({"--pretrained": text}):
        if kind_of(Path(text)) is not None:
            return Path(text).absolute() if text.startswith(HUB) else Path(text)
    if text in table:
        return HUB + text
    if text.startswith(HUB):
        source_of(text, table)
        return text
    if "/" in text:
        return Path(text)  # that it does not exist is said with the other paths
    raise InputError(
        f"--pretrained {text} does not exist; name a file, hf:owner/repository, or one of "
        f"`scripts/get_weights.py --list`{near_miss(text, table)}"
    )


def is_address(value: object) -> bool:
    """Return whether a value of `--pretrained` is an address on the hub, not a path."""
    return isinstance(value, str) and value.startswith(HUB)


def source_of(address: str, table: Mapping[str, Any]) -> Source:
    """Return what an address means.

    Raises:
        InputError: it means nothing, or a file of a format that is not fetched.
    """
    name = address.removeprefix(HUB)
    if name in table:
        row = table[name]
        return Source(name, *(getattr(row, field) for field in Source._fields[1:]))
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(
            f"--pretrained {address} is not hf:owner/repository[@revision][/file] (in a revision "
            f"write %2F for /) and no name of the table{near_miss(name, table)}"
        )
    repository, revision, file = match[1], unquote(match[2] or "main"), match[3]
    parts = "/".join(filter(None, (repository, revision, file))).split("/")
    odd = {"", ".", ".."} & {*parts}
    if odd or (file and not file.endswith(FORMATS)):
        what = "has an empty part or dots" if odd else f"is not one of {', '.join(FORMATS)}"
        raise InputError(f"--pretrained {address} {what}; only files of numbers are fetched")
    return Source(repository, repository, revision, file)


def fetch(address: str, table: Mapping[str, Any]) -> Fetched:
    """Fetch the weights at an address, unless the cache has them, and check their SHA-256.

    Raises:
        InputError: the address, a licence, a token or a setting has to be changed.
        RunError: the network, the disk or the bytes failed.
    """
    source = source_of(address, table)
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


def _ask(source: Source) -> "ModelInfo | Exception":
    """Return what the server says of a repository, or why it says nothing."""
    from httpx2 import TransportError
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().model_info(
            source.repository,
            revision=source.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except HfHubHTTPError as error:
        if error.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return error
    except (OfflineModeIsEnabled, TransportError) as error:
        return error


def _only_weights(address: str, listing: "ModelInfo") -> str:
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


def _stated(address: str, source: Source, listing: "ModelInfo", file: str) -> str | None:
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


def _licence(listing: "ModelInfo") -> str:
    card = listing.card_data
    return str(card.license) if card and card.license else "not stated"


def _download(
    address: str, source: Source, file: str, listing: "ModelInfo | Exception"
) -> tuple[Path, str]:
    """Return where a file lies in the cache, what it lacks being fetched, and its commit.

    What says how to use the weights comes first: it is small, and a refusal shows at once.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

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
        except LocalEntryNotFoundError as error:
            if not is_cached:
                raise
            raise _unreachable(address, listing) from error
    # <cache>/models--owner--repository/snapshots/<commit>/<file>
    return path, path.parents[len(PurePosixPath(file).parts) - 1].name


def _unreachable(address: str, why: Exception) -> InputError | RunError:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    cache = f"and {constants.HF_HUB_CACHE} does not have it"
    if isinstance(why, OfflineModeIsEnabled):
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
    from httpx2 import HTTPError
    from huggingface_hub import constants, errors
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # what it tries again is no news; its bar shows
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
    # The transfer library, in Rust, raises RuntimeErrors; a login page in between is no JSON.
    except (HTTPError, OSError, RuntimeError, ValueError, UserWarning) as error:
        what = one_line(error)
        if getattr(error, "filename", None) is None:
            what += f" (it goes to {constants.HF_HUB_CACHE})"
        raise RunError(f"--pretrained {address}: {what}; run the same again") from error
