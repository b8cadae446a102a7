"""Check the class names of the user's own data: nobody can see that two classes are meant.

Folder and CSV reader use the same two checks: one for each name, one for all names of a list.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from utils.data.readers.list_files import CONTROL
from utils.data.readers.listing import clean_name
from utils.errors import InputError, printable

# What is not seen: Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), the format
# characters (Cf) that are not in it but for those that print a sign of their own (Arabic number
# signs), and the empty Braille cell.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Spelling in Persian and Indic names, between letters and their signs.
_JOINERS = "\u200c\u200d"
# They choose a shape of the symbol (emoji) or the ideograph before them.
_SELECTORS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def check_class_name(where: object, raw: str) -> str:
    """Return the clean name of a class.

    Args:
        where: file and line, or folder, that has the name.
        raw: name as it stands there.

    Raises:
        InputError: the name is empty, or has a control character or one that is not seen.
    """
    name = clean_name(raw)
    if not name:
        raise InputError(f"{printable(str(where))}: {raw!r} does not name a class; rename it")
    if not name.isprintable() and CONTROL.search(name):
        raise InputError(f"{printable(str(where))}: {raw!r} has control characters; rename it")
    for found in _INVISIBLE.finditer(raw):
        if not _is_spelling(raw, found.start()):
            code = found[0]
            known = unicodedata.name(code, "").lower()
            raise InputError(
                f"{printable(str(where))}: the class name {_shown(raw)} has the invisible "
                f"character U+{ord(code):04X}{f' ({known})' if known else ''}; rename it"
            )
    return name


def check_distinct(
    where: object,
    raw_names: Iterable[str],
    places: Mapping[str, str] = MappingProxyType({}),
    clean: Callable[[str], str] = clean_name,
) -> None:
    """Raise an error if two of the names are spellings of one class.

    Args:
        where: file or folder that has the names.
        raw_names: names as they stand there, which `check_class_name` let pass.
        places: where a name stands in it, such as `line 3`.
        clean: how a clean name is made of one.

    Raises:
        InputError: two names are one class once they are cleaned, or look alike since they differ
            only in joiners or selectors that are not seen; names both.
    """
    owners: dict[str, str] = {}
    for raw in dict.fromkeys(raw_names):
        seen = _INVISIBLE.sub("", clean(raw))
        other = owners.setdefault(seen, raw)
        if other == raw:
            continue
        if clean(other) == clean(raw):
            why = f"are both the class {seen!r}"
        else:
            why = "differ only in characters that are not seen"
        # A composed and a decomposed letter look alike too.
        show = ascii if _composed(other) == _composed(raw) else _shown
        both = " and ".join(
            show(name) + (f" ({places[name]})" if name in places else "") for name in (other, raw)
        )
        raise InputError(
            f"{printable(str(where))}: {both} {why}; spell one class in one way, and two classes "
            "so that they differ"
        )


def _is_spelling(raw: str, at: int) -> bool:
    """Return whether the invisible character at `at` belongs to the spelling of the name."""
    kinds = [unicodedata.category(character) for character in raw[max(at - 1, 0) : at + 2]]
    if raw[at] in _JOINERS:
        # Marks too: the joiner of an Indic name follows the sign that takes the vowel away.
        return len(kinds) == 3 and kinds[0][0] in "LM" and kinds[2][0] in "LM"
    return bool(_SELECTORS.match(raw[at])) and at > 0 and kinds[0] in ("So", "Lo")


def _shown(raw: str) -> str:
    """Return a name in quotes with what is not seen as escapes."""
    return _INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], repr(raw))


def _composed(raw: str) -> str:
    return unicodedata.normalize("NFC", raw)
