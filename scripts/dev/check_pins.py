"""Exit 0 if every pin of a requirements file is installed at its version, 1 if not.

    python scripts/dev/check_pins.py requirements.txt

It uses the standard library only, since it runs before anything is installed.
"""

import importlib.metadata
import sys
from pathlib import Path


def read_pins(path: Path) -> dict[str, str]:
    """Return name to version of each `name==version` line, also of the files that `-r` names."""
    pins: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            pins |= read_pins(path.parent / text.removeprefix("-r ").strip())
        elif text:
            name, separator, version = text.partition("==")
            if not separator:
                raise ValueError(f"{path}: {text!r} is not name==version")
            pins[name.strip()] = version.strip()
    return pins


def is_installed(name: str, version: str) -> bool:
    """Return whether the environment has exactly that version, apart from a suffix like +cpu."""
    try:
        return importlib.metadata.version(name).partition("+")[0] == version
    except importlib.metadata.PackageNotFoundError:
        return False


def main(argv: list[str]) -> int:
    """Return 0 if the environment has every pin of the file named in `argv`, else 1."""
    (path,) = argv
    return int(not all(is_installed(*pin) for pin in read_pins(Path(path)).items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
