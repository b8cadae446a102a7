"""Find the files that the names in a list mean.

Where no file has a name exactly, the one that differs only in case, in Unicode form or by the
ending of an image is meant, if there is just one. No image is opened: folders are listed, once.
"""

import os
import re
import unicodedata
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.data.formats import IMAGE_ENDINGS
from utils.errors import near_miss

MAX_FOLDERS = 100  # in which a name is looked for
MAX_COMPARED = 5000  # names to look for a near one among them: more would take seconds


class FoundFiles(NamedTuple):
    """The files of N names."""

    paths: list[str]  # (N) as the files are called, or the name itself where there is none
    other: list[int]  # positions of names that are not those of their files to the letter
    missing: list[int]  # positions of names without a file
    near: str = ""  # what the first of those may mean

    def notes(
        self, source: Path, names: Sequence[str], place: Callable[[int], str] = lambda _: ""
    ) -> tuple[str, ...]:
        """Return lines for people: names that are not those of their files, names without a file.

        Args:
            source: list that has the names.
            names: names in it.
            place: where the name at a position stands in the list.
        """
        notes = []
        if self.other:
            first = self.other[0]
            notes.append(
                f"{source.name}: {len(self.other)} of {len(names)} names differ from their files "
                "in case, Unicode form or a missing ending "
                f"(first: {place(first)}{_shown(names[first], self.paths[first])})"
            )
        if self.missing:
            first = self.missing[0]
            notes.append(
                f"{source.name}: {len(self.missing)} of {len(names)} names have no file "
                f"(first: {place(first)}{names[first]!r}{self.near})"
            )
        return tuple(notes)


def find_files(root: Path, names: Sequence[str]) -> FoundFiles:
    """Return the files below `root` that `names` mean: paths with forward slashes, NUL-free."""
    folders = Folders(root)
    listed, odd = folders.listed, []
    for position, name in enumerate(names):  # 0.3 us each: lists may have half a million
        folder, _, file = name.rpartition("/")
        entries = listed.get(folder)
        if entries is None:
            entries = folders.entries(folder)
        if file not in entries:
            odd.append(position)
    paths, other, missing = list(names) if odd else names, [], []
    for position in odd:
        found = folders.find(names[position])
        if len(found) == 1:
            paths[position] = found[0]
            other.append(position)
        else:
            missing.append(position)
    near = folders.near(names[missing[0]]) if missing else ""
    return FoundFiles(paths, other, missing, near)


class _Anything(frozenset):
    """The entries of a folder that may be entered but not listed: any name may be there."""

    def __contains__(self, name: object) -> bool:
        return True


class Folders:
    """The folders below `root`, each listed once, when it is needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: dict[str, frozenset[str]] = {}  # by path
        self._alike: dict[str, dict[str, list[str]]] = {}  # by path: entries by what is the same

    def entries(self, folder: str) -> frozenset[str]:
        """Return the names in a folder; none if no folder is called so to the letter."""
        if folder not in self.listed:
            above, _, name = folder.rpartition("/")
            try:
                # A Mac would take another case of the letters for the same folder.
                if folder and name not in self.entries(above):
                    raise FileNotFoundError
                entries = frozenset(os.listdir(f"{self.root}/{folder}"))  # noqa: PTH208 - names
            except PermissionError:
                entries = _Anything()
            except (OSError, ValueError):  # the name is too long, or no name at all
                entries = frozenset()
            self.listed[folder] = entries
        return self.listed[folder]

    def find(self, name: str) -> list[str]:
        """Return the paths that a name may mean: itself if it is there, else all that are alike."""
        folder, slash, file = name.rpartition("/")
        if folder and not self.entries(folder):
            above = [path for path in self.find(folder) if self.entries(path)]
            if len(above) != 1:
                return []
            folder = above[0]
        alike = [file] if file in self.entries(folder) else self._alike_in(folder, file)
        return [f"{folder}{slash}{entry}" for entry in alike]

    def _alike_in(self, folder: str, file: str) -> list[str]:
        if folder not in self._alike:
            alike: dict[str, list[str]] = {}
            for entry in sorted(self.entries(folder)):
                keys = {folded(entry)}
                if entry.lower().endswith(IMAGE_ENDINGS):
                    keys.add(folded(entry.rpartition(".")[0]))
                for key in keys:
                    alike.setdefault(key, []).append(entry)
            self._alike[folder] = alike
        return self._alike[folder].get(folded(file), [])

    def near(self, name: str) -> str:
        """Return what a name without a file may mean, as the end of a sentence, or nothing."""
        folder, _, file = name.rpartition("/")
        # Two that are alike, one with another ending, or one as seen from another folder.
        below = sorted(self.entries(folder))[:MAX_FOLDERS]
        places = [name.rpartition(".")[0], name.partition("/")[2]]
        places += [f"{folder}/{entry}/{file}".lstrip("/") for entry in below]
        for place in (name, *places):
            found = [path for path in self.find(place) if path != name] if place else []
            if found:
                return f", did you mean {' or '.join(repr(path) for path in found[:2])}?"
        if folder and not self.entries(folder):
            return self.near(folder) or f", there is no folder {folder!r}"
        return nearest(file, self.entries(folder))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what `near_miss` says of a name, comparing it with no more than `MAX_COMPARED`.

    Another number is another image: `IMG_0002` is not what `IMG_0001` means.
    """
    ordered = sorted(known)
    at, half = bisect(ordered, name), MAX_COMPARED // 2
    near = ordered[max(0, at - half) : at + half]
    return near_miss(name, [other for other in near if _numberless(other) != _numberless(name)])


def _numberless(name: str) -> str:
    return re.sub(r"[0-9]+", "0", name)


def folded(name: str) -> str:
    """Return what is equal for names that differ in case or Unicode form (caseless match, D145)."""
    decomposed = unicodedata.normalize("NFD", name)
    return unicodedata.normalize("NFD", decomposed.casefold())


def _shown(name: str, path: str) -> str:
    """Return name and path in words; as escapes if they would look alike."""
    composed = [unicodedata.normalize("NFC", text) for text in (name, path)]
    show = ascii if composed[0] == composed[1] else repr
    return f"{show(name)} is {show(path)}"
