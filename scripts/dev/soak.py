"""See that nothing is lost: kill a training, damage its states, fill its disk.

    python scripts/dev/soak.py kills --kills 40
    python scripts/dev/soak.py damage --ways 200
    python scripts/dev/soak.py disk

Each trains for real. Exits 0 if every promise held, 1 with one line at the first that did not, and
then keeps the runs.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.configs import patch_sizes
from scripts.dev.soak_tests.damage import KINDS, soak_damage
from scripts.dev.soak_tests.disk import soak_disk
from scripts.dev.soak_tests.kills import soak_kills
from utils.console import Parser, entrypoint, log_table
from utils.data_utils import check_writable
from utils.errors import InputError, RunError
from utils.files import write_json
from utils.flag_types import count, positive_int, seed

SOAKS = {"kills": soak_kills, "damage": soak_damage, "disk": soak_disk}


def _parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    added = {
        name: commands.add_parser(name, help=soak.__doc__.splitlines()[0])
        for name, soak in SOAKS.items()
    }
    for command in added.values():
        command.add_argument(
            "--data_root",
            type=Path,
            metavar="PATH",
            help="Flowers-102 or its parent (default: $DATA_ROOT; without one, drawn flowers)",
        )
        command.add_argument(
            "--folder",
            type=Path,
            metavar="PATH",
            help="new folder for the runs, which stay there (default: a temporary one)",
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    kills, damage, disk = (added[name] for name in SOAKS)
    for command in (kills, damage):
        command.add_argument("--seed", type=seed, default=42, help="of what is random here")
    kills.add_argument("--kills", type=positive_int, default=40, metavar="N", help="how many")
    kills.add_argument(
        "--model_type",
        choices=tuple(patch_sizes()),
        default="testing",
        metavar="NAME",
        help="a registered model",
    )
    kills.add_argument("--img_size", type=positive_int, default=32, metavar="PIXELS", help="side")
    kills.add_argument(
        "--num_steps",
        type=positive_int,
        metavar="N",
        help="of the training (default: what the kills can need)",
    )
    damage.add_argument("--ways", type=positive_int, default=200, metavar="N", help="how many")
    damage.add_argument(
        "--resumes",
        type=count,
        default=len(KINDS),
        metavar="N",
        help="of the ways, that train.py goes on from to the end; one of each kind in turn",
    )
    disk.add_argument(
        "--resume_every",
        type=positive_int,
        default=5,
        metavar="N",
        help="let every N-th run that failed go on to the end",
    )
    disk.add_argument(
        "--stride",
        type=positive_int,
        default=1,
        metavar="N",
        help="of the many writes to one file, fail at the first, the last and every N-th",
    )
    disk.add_argument(
        "--disks",
        type=positive_int,
        metavar="N",
        help="at most so many pretended and real full disks, spread over the run (default: all)",
    )
    return parser


def _new_folder(wanted: Path | None) -> Path:
    """The folder of the runs, empty.

    Raises:
        InputError: it is there already, or cannot be made.
    """
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="soak-")).resolve()
    if wanted.exists():
        raise InputError(f"--folder {wanted} is there already; name a new one")
    check_writable(wanted, "--folder")
    wanted.mkdir(parents=True)
    return wanted.resolve()


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Soak, print the figures.

    Raises:
        RunError: a promise was broken.
    """
    args = _parser().parse_args(argv)
    if args.json is not None and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {args.json.parent}")
    folder = _new_folder(args.folder)
    is_kept = args.folder is not None
    try:
        figures = SOAKS[args.command](args, folder)
    except RunError as error:
        is_kept = True
        raise RunError(f"{error}; the runs are in {folder}") from error
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
    log_table(f"{args.command}: nothing was lost", figures)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    sys.exit(main())
