"""Check that nothing is lost: kill a training, signal it, damage its snapshots, fill its disk.

    python scripts/dev/soak.py kills --kills 12
    python scripts/dev/soak.py signals --starts 300 --saves 100
    python scripts/dev/soak.py damage --ways 200
    python scripts/dev/soak.py disk

Each command trains for real. It exits 0 if every promise held, and 1 with one line at the first
that was broken; the runs are then kept.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import utils.environment  # isort: split

from scripts.dev.soak_tests.damage import soak_damage
from scripts.dev.soak_tests.disk import soak_disk
from scripts.dev.soak_tests.kills import soak_kills
from scripts.dev.soak_tests.signals import soak_signals
from utils.cli.parser import Parser
from utils.cli.types import path, positive_int, seed
from utils.console import log_table
from utils.entrypoint import entrypoint
from utils.errors import RunError

SOAKS = {"kills": soak_kills, "signals": soak_signals, "damage": soak_damage, "disk": soak_disk}


def _parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, soak in SOAKS.items():
        command = commands.add_parser(name, help=soak.__doc__.splitlines()[0])
        command.add_argument(
            "--data_root",
            type=path,
            metavar="PATH",
            help="Flowers-102 or its parent (default: $DATA_ROOT; without one, drawn flowers)",
        )
        if name != "disk":
            command.add_argument("--seed", type=seed, default=42, help="random seed of the soak")
    numbers = (
        ("kills", "--kills", 12, "number of SIGKILLs"),
        ("signals", "--starts", 30, "number of signals in the first seconds"),
        ("signals", "--saves", 10, "number of signals during saves"),
        ("damage", "--ways", 200, "number of damaged snapshots"),
        ("disk", "--disks", None, "number of full disks, spread over the writes (default: all)"),
    )
    for name, flag, default, what in numbers:
        add = commands.choices[name].add_argument
        add(flag, type=positive_int, default=default, metavar="N", help=what)
    return parser


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Soak, and print the figures.

    Raises:
        InputError: a flag is wrong, or the flowers are not at `--data_root`.
        RunError: a promise was broken.
    """
    args = _parser().parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="soak-")).resolve()
    is_kept = False
    try:
        figures = SOAKS[args.command](args, folder)
    except RunError as error:
        is_kept = True
        raise RunError(f"{error}; the runs are in {folder}") from error
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
    log_table(f"{args.command}: nothing was lost", figures)


if __name__ == "__main__":
    sys.exit(main())
