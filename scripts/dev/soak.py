"""See that nothing is lost: kill a training, damage its snapshots, fill its disk.

    python scripts/dev/soak.py kills --kills 12
    python scripts/dev/soak.py damage --ways 200
    python scripts/dev/soak.py disk

Each command trains for real. Exits 0 if every promise held, 1 with one line at the first that was
broken; the runs are then kept.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import utils.environment  # isort: split

from scripts.dev.soak_tests.damage import KINDS, soak_damage
from scripts.dev.soak_tests.disk import soak_disk
from scripts.dev.soak_tests.kills import soak_kills
from utils.console import Parser, log_table
from utils.entrypoint import entrypoint
from utils.errors import RunError
from utils.flag_types import count, positive_int, seed

SOAKS = {"kills": soak_kills, "damage": soak_damage, "disk": soak_disk}


def _parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, soak in SOAKS.items():
        command = commands.add_parser(name, help=soak.__doc__.splitlines()[0])
        command.add_argument(
            "--data_root",
            type=Path,
            metavar="PATH",
            help="Flowers-102 or its parent (default: $DATA_ROOT; without one, drawn flowers)",
        )
        if name == "disk":
            help_text = "number of writes at which the disk gets full, evenly spread (default: all)"
            command.add_argument("--disks", type=positive_int, metavar="N", help=help_text)
            continue
        command.add_argument("--seed", type=seed, default=42, help="seed of the random damage")
    kills, damage = commands.choices["kills"], commands.choices["damage"]
    kills.add_argument(
        "--kills", type=positive_int, default=12, metavar="N", help="number of SIGKILLs"
    )
    damage.add_argument(
        "--ways", type=positive_int, default=200, metavar="N", help="number of damaged snapshots"
    )
    damage.add_argument(
        "--resumes",
        type=count,
        default=len(KINDS),
        metavar="N",
        help="number of the first damaged snapshots from which train.py is resumed to the end",
    )
    return parser


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Soak, and print the figures.

    Raises:
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
