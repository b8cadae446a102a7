"""Fetch public weights ahead of time, into the cache that `--pretrained NAME` reads.

    python scripts/get_weights.py --list
    python scripts/get_weights.py dinov2-s14

A run fetches what it lacks by itself; this is for machines that lose the network, and for slow
lines. Where the cache is, `HF_HOME` says.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.environment  # isort: split

from models.pretrained.zoo import ZOO, Row
from utils.cli.parser import Parser
from utils.cli.types import maybe_path
from utils.console import log, log_table
from utils.data_utils import check_file
from utils.entrypoint import entrypoint
from utils.hub import address_of, is_address


def _describe(row: Row) -> str:
    megabytes = f"{row.size / 1e6:,.0f} MB" if row.size else "? MB"
    known = "SHA-256 published" if row.sha256 else "SHA-256: the server's"
    commit = row.revision[:8] if row.revision != "main" else "not pinned"
    return (
        f"{row.model_type}  {row.img_size} px (trained at {row.native_size})  {megabytes}  "
        f"{row.licence or 'licence: the server says it'}  {known}  commit {commit}  "
        f"{row.good_for} ({row.source})"
    )


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Fetch or list weights.

    Raises:
        InputError: the name means nothing, or the user has to change something.
        RunError: network, disk or checksum failed.
    """
    parser = Parser(description=__doc__.splitlines()[0])
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "name", nargs="?", type=maybe_path, metavar="NAME", help="name, or hf:owner/repo..."
    )
    either.add_argument("--list", action="store_true", help="print the names that there are")
    args = parser.parse_args(argv)
    if args.list:
        log_table("--pretrained", {name: _describe(row) for name, row in ZOO.items()})
        return
    address = address_of(args.name, ZOO)
    if not is_address(address):
        check_file(address, "--pretrained")
        log.info("%s is a file here already", address)
        return
    from utils.hub_fetch import fetch  # half a second that a list does not need

    path, record = fetch(address, ZOO)
    log_table(f"--pretrained {args.name}", {**record, "path": path})


if __name__ == "__main__":
    sys.exit(main())
