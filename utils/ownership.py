"""Tell what our programs wrote from what is the user's: only ours is ever moved or passed over."""

from pathlib import Path

# A file in every folder that our programs make: output folders and reports.
MARKER = ".fine_vit"


def is_ours(folder: Path) -> bool:
    """Return whether our programs wrote `folder`, so that it is no data of the user's."""
    return (folder / MARKER).is_file()
