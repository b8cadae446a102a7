"""Exit 0 if every pin of a requirements file is installed at its version, 1 if not.

    python scripts/dev/check_pins.py requirements.txt

Standard library only: it runs before anything is installed.
"""

import importlib.metadata
import sys
from pathlib import Path


def read_pins(path: Path) -> dict[str, str]:
    """Name to version of each `name==version` line, those of `-r` files included."""
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
    """Whether the running environment has exactly that version, build suffix (+cpu) aside."""
    try:
        return importlib.metadata.version(name).partition("+")[0] == version
    except importlib.metadata.PackageNotFoundError:
        return False


def main(argv: list[str]) -> int:
    """Compare the file named in `argv` with the running environment."""
    (path,) = argv
    return int(not all(is_installed(*pin) for pin in read_pins(Path(path)).items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
