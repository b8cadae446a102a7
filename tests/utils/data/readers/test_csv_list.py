"""utils/data/readers/csv_list.py: rows as they stand there, or one line that names the wrong
one.
"""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_own import write_csv

from utils.data.readers import csv_list
from utils.errors import InputError

NAMES = ("oak leaf", "rose", "Épine noire")


@pytest.fixture
def write(tmp_path):
    """Writes lines (or bytes) as a CSV file; its path."""

    def put(*lines: str | bytes):
        path = tmp_path / "images.csv"
        joined = [line if isinstance(line, bytes) else line.encode() for line in lines]
        path.write_bytes(b"\n".join(joined) + b"\n")
        return path

    return put


class TestFind:
    def test_takes_a_file_or_the_only_one_of_a_folder(self, tmp_path):
        path = write_csv(tmp_path / "own")
        (tmp_path / "own" / "._images.csv").touch()
        assert csv_list.find(path) == csv_list.find(tmp_path / "own") == path

    def test_refuses_none_and_two(self, tmp_path):
        with pytest.raises(InputError, match=r"holds no CSV file: name one as --data_root"):
            csv_list.find(tmp_path)
        for name in ("b.csv", "a.CSV"):
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=r"holds 2 CSV files \(a.CSV, b.csv\): name one"):
            csv_list.find(tmp_path)


class TestRead:
    def test_gives_the_rows_of_a_split_in_order(self, tmp_path):
        path = write_csv(tmp_path)
        assert csv_list.splits(path) == ("train", "val")
        train, val = csv_list.read(path, "train"), csv_list.read(path, "val")
        assert train.classes == val.classes == NAMES
        assert (len(train.ids), len(val.ids)) == (12, 6)
        assert train.paths[0] == "photos/0/IMG 0000.jpg"
        assert train.ids[0] == "photos/0/IMG 0000"
        assert train.labels.tolist() == [2] * 4 + [0] * 4 + [1] * 4

    def test_without_a_column_of_splits_all_is_train(self, tmp_path):
        path = write_csv(tmp_path, with_split=False)
        assert csv_list.splits(path) == ("train",)
        assert len(csv_list.read(path, "train").ids) == 18

    def test_takes_any_order_of_columns_quotes_a_bom_and_crlf(self, write):
        path = write(b"\xef\xbb\xbfsplit, label ,path\r", b'train,"Rose, red","a,b.jpg"\r', b"\r")
        listing = csv_list.read(path, "train")
        assert (listing.classes, listing.paths.tolist()) == (("Rose, red",), ["a,b.jpg"])

    def test_sorts_numbers_as_numbers(self, write):
        path = write("path,label", "a.jpg,10", "b.jpg,9", "c.jpg,100")
        assert csv_list.read(path, "train").classes == ("9", "10", "100")
        path = write("path,label", "a.jpg,10", "b.jpg,9", "c.jpg,-1")
        assert csv_list.read(path, "train").classes == ("-1", "10", "9")

    @settings(deadline=None)
    @given(numbers=st.sets(st.integers(0, 10**6), min_size=1))
    def test_sorts_numbers_of_any_length(self, tmp_path_factory, numbers):
        labels = [f"{number}" + "0" * 5000 * (number == max(numbers)) for number in numbers]
        path = tmp_path_factory.getbasetemp() / "numbers.csv"
        rows = (f"{i}.jpg,{label}\n" for i, label in enumerate(labels))
        path.write_text("path,label\n" + "".join(rows), encoding="utf-8")
        classes = csv_list.read(path, "train").classes
        assert [len(name) for name in classes] == sorted(map(len, labels))
        assert [int(name[:8]) for name in classes[:-1]] == sorted(numbers)[:-1]

    def test_cleans_labels(self, write):
        path = write("path,label", "a.jpg,oak_leaf", "b.jpg, oak  leaf", "c.jpg,E\u0301pine")
        assert csv_list.read(path, "train").classes == ("oak leaf", "Épine")

    def test_gives_one_file_one_path(self, write):
        path = write("path,label", "./a.jpg,x", "b//c.jpg,x", "b/./d:e..f.jpg,x")
        listing = csv_list.read(path, "train")
        assert listing.paths.tolist() == ["a.jpg", "b/c.jpg", "b/d:e..f.jpg"]

    def test_keeps_endings_where_ids_would_be_equal(self, write):
        path = write("path,label", "a.jpg,x", "a.png,y", "b.jpg,x")
        assert csv_list.read(path, "train").ids.tolist() == ["a.jpg", "a.png", "b"]
        # Of the whole file: the other one may be in another split. And none becomes another's.
        path = write("path,label,split", "a.jpg,x,train", "a.png,x,val", "a.jpg.png,x,train")
        assert csv_list.read(path, "train").ids.tolist() == ["a.jpg", "a.jpg.png"]

    def test_keeps_the_classes_that_a_split_lacks(self, write):
        path = write("path,label,split", "a.jpg,x,train", "b.jpg,y,train", "c.jpg,y,val")
        listing = csv_list.read(path, "val")
        assert (listing.classes, listing.labels.tolist()) == (("x", "y"), [1])

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_gives_back_what_the_csv_module_wrote(self, tmp_path_factory, data):
        text = st.text(
            st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\\/"),
            min_size=1,
        ).filter(lambda value: value.strip(" _\u00a0") and value == value.strip())
        names = data.draw(
            st.lists(text.filter(lambda n: n not in (".", "..")), min_size=1, unique=True)
        )
        labels = [data.draw(st.sampled_from(["a b", 'q"uote', "c,omma", "é"])) for _ in names]
        path = tmp_path_factory.getbasetemp() / "any.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *zip(names, labels, strict=True)])
        listing = csv_list.read(path, "train")
        assert listing.paths.tolist() == names
        assert [listing.classes[label] for label in listing.labels] == labels


HEADER = "path,label,split"


class TestRefusals:
    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([b""], r"has no column 'path'"),
            ([HEADER], r"has no row of split train$"),
            (["path,split", "a,train"], r"has no column 'label'"),
            (
                ["path,label,weight"],
                r"has the column 'weight'; it may have path, label and perhaps",
            ),
            (["path,label,label"], r"has the column 'label' twice"),
            ([HEADER, "a.jpg,x"], r"line 2 has 2 fields, not 3"),
            ([HEADER, "a.jpg,x,train", "", "b.jpg,,train"], r"line 4 has no label"),
            ([HEADER, " ,x,train"], r"line 2 has no path"),
            ([HEADER, "a.jpg,_,train"], r"line 2 has no label"),
            (["path;label"], r"has the column 'path;label'; .*, with commas between them$"),
            ([HEADER, "a.jpg,x,dev"], r"line 2: split 'dev' is not one of train, val, test"),
            ([HEADER, "/a.jpg,x,train"], r"line 2: '/a.jpg' is not a path below"),
            ([HEADER, "b/../../a.jpg,x,train"], r"line 2: 'b/../../a.jpg' is not a path below"),
            ([HEADER, "https://a/b.jpg,x,train"], r"line 2: 'https://a/b.jpg' is not a path below"),
            ([HEADER, "b\\a.jpg,x,train"], r"is not a path below the CSV's folder, with forward"),
            ([HEADER, "a.jpg,x,train", "a.jpg,y,train"], r"line 3 has a.jpg again, after line 2"),
            ([HEADER, "a.jpg,x,train", "./a.jpg,x,val"], r"line 3 has a.jpg again, after line 2"),
            ([HEADER, "a.jpg,x,train", "b.jpg,y,val"], r"class 'y' of split val has no train row"),
            ([HEADER, "a.jpg,x,val"], r"has no row of split train"),
            ([HEADER, '"a.jpg,x,train', "b.jpg,x,train"], r"is not CSV"),
            ([HEADER, 'a.jpg,"x"y,train'], r"line 2 is not CSV"),
            ([HEADER, "a\0.jpg,x,train"], r"line 2: 'a\\x00.jpg' has control characters"),
            ([HEADER, '"a\nb.jpg",x,train'], r"line 3: 'a\\nb.jpg' has control characters"),
            ([HEADER, "a.jpg," + "x" * 200_000 + ",train"], r"line 2 is not CSV \(field larger"),
            ([HEADER, b"caf\xe9.jpg,x,train"], r"is not UTF-8 \(byte 20\); save it as CSV"),
        ],
    )
    def test_name_the_line(self, write, lines, message):
        path = write(*lines)
        with pytest.raises(InputError, match=message) as caught:
            csv_list.read(path, "train")
        assert len(str(caught.value).splitlines()) == 1
        assert "images.csv" in str(caught.value)

    @settings(max_examples=200, deadline=None)
    @given(
        content=st.binary(max_size=60)
        | st.text('a,"\n\r/.\\ \t\x85é0_', max_size=60).map(
            lambda text: b"path,label\n" + text.encode()
        )
    )
    def test_of_random_bytes(self, tmp_path_factory, content):
        path = tmp_path_factory.getbasetemp() / "random.csv"
        path.write_bytes(content)
        try:
            listing = csv_list.read(path, "train")
        except InputError as error:
            assert "random.csv" in str(error)  # noqa: PT017 - either outcome will do
            assert len(str(error).splitlines()) == 1  # noqa: PT017
        else:
            assert len(set(listing.ids.tolist())) == len(listing.paths)
