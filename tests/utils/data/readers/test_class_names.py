"""utils/data/readers/class_names.py: names that nobody can tell apart are refused."""

import sys
import unicodedata

import pytest

from utils.data.readers.class_names import check_class_name, check_distinct
from utils.errors import InputError

# Signs of their own before digits: format characters that are seen (Prepended_Concatenation_Mark).
SEEN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
PERSIAN = "می\u200cخواهم"  # noqa: RUF001
SINHALA = "ක්\u200dෂ"


class TestCheckClassName:
    @pytest.mark.parametrize(
        "raw", [PERSIAN, SINHALA, "❤\ufe0f", "葛\U000e0100", "oak_leaf", "C/V"]
    )
    def test_keeps_what_is_spelling(self, raw):
        assert check_class_name("a.csv line 2", raw) == raw.replace("_", " ")

    def test_refuses_every_format_character_elsewhere(self):
        for code in range(sys.maxunicode + 1):
            if unicodedata.category(chr(code)) == "Cf" and code not in SEEN:
                with pytest.raises(InputError, match=rf"invisible character U\+{code:04X}"):
                    check_class_name("a.csv line 2", f"ros {chr(code)}e")

    @pytest.mark.parametrize(
        "raw",
        [
            *("ro\u200bse", "\ufeffrose", "rose\u2060", "ro\u00adse", "ro\u202ese", "rose\u034f"),
            *("\u3164rose", "rose\ufe0f", "rose\u200d", "\u200crose", "r\u200c e", "1\u200d2"),
            *("\u200c", "r\u200c\u200de", "rose\u2800", "👩\u200d🌾"),
        ],
    )
    def test_names_the_code_point_in_a_line_that_can_be_read(self, raw):
        code = next(ord(c) for c in raw if ord(c) > 127 and c not in "👩🌾")
        with pytest.raises(InputError, match=rf"^a.csv line 2: .* U\+{code:04X} \(") as caught:
            check_class_name("a.csv line 2", raw)
        assert chr(code) not in str(caught.value)

    @pytest.mark.parametrize(
        ("raw", "message"),
        [("_ ", "does not name a class"), ("a\x07b", "control char"), ("a\x7f", "control char")],
    )
    def test_refuses_empty_names_and_control_characters(self, raw, message):
        with pytest.raises(InputError, match=message):
            check_class_name("a.csv line 2", raw)


class TestCheckDistinct:
    def test_takes_different_names(self):
        check_distinct("a.csv", ["A_1", "A_1", "a_1", "A 2", "A1", PERSIAN])

    @pytest.mark.parametrize(
        ("one", "other", "message"),
        [
            ("A_1", "A 1", r"'A_1' \(line 2\) and 'A 1' \(line 5\) are both the class 'A 1'"),
            ("rose", " rose__", r"'rose' .* and ' rose__' .* are both the class 'rose'"),
            ("oak  leaf", "oak\u00a0leaf", r"'oak  leaf' .* and 'oak\\xa0leaf' .* both"),
            ("\u00c9pine", "E\u0301pine", r"'\\xc9pine' .* and 'E\\u0301pine' .* both"),
            (PERSIAN, PERSIAN.replace("\u200c", ""), r"\\u200c.* differ only in characters that"),
            ("❤", "❤\ufe0f", r"'❤' .* and '❤\\ufe0f' .* differ only"),
        ],
    )
    def test_names_both_spellings(self, one, other, message):
        with pytest.raises(InputError, match=message):
            check_distinct("a.csv", ["x", one, "y", other], {one: "line 2", other: "line 5"})
