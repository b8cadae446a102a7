"""Say in one line how to make and activate the environment where this Python lacks it.

Every file that a user runs imports this module first. Importing it exits with code 2 under a Python
version that the project does not support, or where a package is missing. It uses the standard
library only, and nothing that Python 3.7 lacks, so that an old version reaches the message.
"""

import importlib.util
import os
import sys
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)  # scripts/env.sh names them, too

# The packages of requirements.txt, by the names of their modules. Only the tests need pytest.
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "ml_collections",
    "tensorboard",
    "tqdm",
    "PIL",
    "pi_heif",
    "safetensors",
    "yaml",
)


def find_problem() -> str:
    """Return what this Python lacks; an empty text if it lacks nothing."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        version = ".".join(str(number) for number in sys.version_info[:3])
        return f"Python 3.11, 3.12 or 3.13 is needed, but {sys.executable} is {version}"
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return f"{sys.executable} has no {', '.join(missing[:3])}{more}"
    return ""


def name_remedy() -> str:
    """Return the commands that help, with paths relative to the current folder."""
    repo = Path(__file__).resolve().parent.parent
    here = Path(os.path.relpath(str(repo)))
    make, activate = here / "scripts" / "smoke.sh", here / ".venv" / "bin" / "activate"
    if activate.exists() and Path(sys.prefix) != repo / ".venv":
        return f"activate the environment: source {activate}"
    return f"make the environment with {make}, then activate it: source {activate}"


def check_environment() -> None:
    """Exit with code 2 and one line on stderr if this Python cannot run the project."""
    problem = find_problem()
    if problem:
        sys.stderr.write(f"error: {problem}; {name_remedy()}\n")
        sys.exit(2)


check_environment()
