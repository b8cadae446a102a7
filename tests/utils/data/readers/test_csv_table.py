"""utils/data/readers/csv_table.py: one list, however spreadsheets and pandas write it."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.readers import csv_list
from utils.data.readers.csv_table import open_table
from utils.errors import InputError

ROWS = [("a b.jpg", "rose; red", "train"), ("c,d.jpg", "oak|tab\tleaf", "val"), ("e", "1.0", "val")]


@pytest.fixture
def understood(tmp_path):
    """Rows of a CSV text, and how it was understood."""

    def understand(text: str):
        table = open_table(tmp_path / "a.csv", text)
        return [row for _, *row in table.rows()], "; ".join(table.understood())

    return understand


class TestUnderstood:
    @pytest.mark.parametrize("header", ["path,label", "label,path", " path , label "])
    def test_nothing_is_said_of_our_own_format(self, understood, header):
        rows, said = understood(f"{header}\na.jpg,a.jpg\n\n")
        assert (rows, said) == ([["a.jpg", "a.jpg", "train"]], "")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (",path,label\n0,a,x\n", "columns without a name: 1, not used"),
            ("Unnamed: 0,path,label\n0,a,x\n", "not used: 'Unnamed: 0'"),
            ("Path,LABEL\na,x\n", "path from column 'Path', label from column 'LABEL'"),
            ("image;breed\na;x\n", "label from column 'breed'; separator ';'"),
            ("File Name\tSpecies\na\tx\n", "path from column 'File Name', .*; separator tab"),
            ("sep=;\npath;label\na;x\n", "separator ';'"),
            ('"sep=,"\nImage_Path,class,,\na,x,,\n', "path from column 'Image_Path'"),
            ("width,file,id,category\n9,a,7,x\n", "category'; not used: 'width', 'id'$"),
            ("a1,a2,a3,a4,a5,a6,path,label\n,,,,,,a,x\n", "'a4', 'a5' and 1 more$"),
            ("path,label,class,image\na,x,y,b.jpg\n", "'label'; not used: 'class', 'image'$"),
            ("id,breed\na,x\n", "path from column 'id', label from column 'breed'$"),
            ("image_id,class_id\na,x\n", "path from column 'image_id', label from .*'class_id'$"),
            ("filename,label,Set\na,x,train\n", "split from column 'Set'$"),
            ("path,label\n,\n a , x \n\t,,,\n", "^$"),
            ('path, label\n"a", "x"\n', "^$"),
            ("\n,,\npath,label,\na,x\n", "columns without a name: 1, not used"),
        ],
    )
    def test_what_can_be_meant_in_one_way_only(self, understood, text, said):
        rows, parts = understood(text)
        assert rows == [["a", "x", "train"]]
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(parts)

    @settings(max_examples=150)
    @given(data=st.data())
    def test_is_the_same_in_whatever_dialect(self, tmp_path_factory, data):
        draw = data.draw
        names = {
            "path": draw(st.sampled_from(["path", "PATH", "image", "File-Name", "img_path"])),
            "label": draw(st.sampled_from(["label", "Label", "class", "breed", "Category Name"])),
            "split": draw(st.sampled_from(["split", "Split", "set", "SUBSET"])),
            **{
                "index": draw(st.sampled_from(["", "Unnamed: 0"])),
                "width": "Width",
                "note": "Notes, etc.",
            },
        }
        kept = draw(
            st.permutations(
                [
                    "path",
                    "label",
                    "split",
                    *draw(st.sets(st.sampled_from(["index", "width", "note"]))),
                ]
            )
        )
        closing, blank = [""] * draw(st.integers(0, 3)), draw(st.sampled_from([[], ["", " "]]))
        spell = draw(st.sampled_from([str, str.upper, str.title]))
        lines = [[*(names[key] for key in kept), *closing]]
        for number, (path, label, split) in enumerate(ROWS):
            cells = {"path": path, "label": label, "split": spell(split), "index": number}
            row = [cells.get(key, 'say "x"') for key in kept]
            lines += [[*row, *closing], *([blank] if draw(st.booleans()) else [])]
        separator = draw(st.sampled_from(",;\t|"))
        text = io.StringIO()
        text.write(draw(st.sampled_from(["", "\ufeff"])))
        text.write(draw(st.sampled_from(["", f"sep={separator}\r\n", f'"sep={separator}"\r\n'])))
        quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        newline = draw(st.sampled_from(["\n", "\r\n", "\r"]))
        csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=newline).writerows(
            lines
        )
        file = tmp_path_factory.getbasetemp() / "dialect.csv"
        file.write_bytes(text.getvalue().encode())
        csv_list._parse.cache_clear()  # written within one tick of the file system's clock
        train, val = csv_list.read(file, "train"), csv_list.read(file, "val")
        assert train.paths.tolist() == ["a b.jpg"]
        assert val.paths.tolist() == ["c,d.jpg", "e"]
        assert [val.classes[label] for label in val.labels] == ["oak|tab leaf", "1.0"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"a.csv is empty; the first line must name the columns: path,label and perhaps"),
            (" \n\n", r"a.csv is empty"),
            ("path,split\na,train\n", r"line 1 has no column for the label, only 'path', 'split'"),
            (
                "a.jpg,rose\nb.jpg,rose\n",
                r"no column for the path, only 'a.jpg', 'rose'; the first",
            ),
            ("\n\nroses of 2024\npath,label\n", r"line 3 has no column for the path, only 'roses"),
            ("image,filename,label\n", r"may be the path: 'image' and 'filename'; call the right"),
            (
                "path,Class,breed\n",
                r"may be the label: 'Class' and 'breed'; call the right one 'la",
            ),
            ("genus,species,image\n", r"two columns that may be the label: 'genus' and 'species'"),
            ("path,label,Label\n", r"two columns that may be the label: 'label' and 'Label'"),
            ("path,label,set,usage\n", r"two columns that may be the split: 'set' and 'usage'"),
            ("path,label,note\na,x\n", r"line 2 has 2 fields, not 3$"),
            ("path,label,\na,b,x,x\n", r"line 2 has 4 fields, not 2; a cell that holds ',' need"),
            ("path;label\na,b;x\nb;c;y\n", r"line 3 has 3 fields, not 2"),
            ('path,label\n"a\nb",x\n\n"c,y\n', r"line 5 is not CSV \(unexpected end of data\)"),
            ('"path,label\n', r"line 1 is not CSV"),
            ('path,label\na,"x\nb,y\nc,z\n', r"line 2 is not CSV"),
        ],
    )
    def test_name_the_line_and_the_columns(self, understood, text, message):
        with pytest.raises(InputError, match=message) as caught:
            understood(text)
        assert len(str(caught.value).splitlines()) == 1
