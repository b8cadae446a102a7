"""utils/data/readers/csv_list.py: rows as they stand there, or one line that names the wrong
one.
"""

import csv
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import write_lines
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

    def test_takes_tabs_and_tells_a_workbook(self, tmp_path):
        (tmp_path / "birds.xlsx").touch()
        with pytest.raises(InputError, match=r"\(of 'birds.xlsx': save it as CSV in UTF-8\)$"):
            csv_list.find(tmp_path)
        (tmp_path / "birds.tsv").touch()
        assert csv_list.find(tmp_path) == tmp_path / "birds.tsv"


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
        path = write("path,label", "a.jpg,oak_leaf", "b.jpg, oak_leaf ", "c.jpg,E\u0301pine")
        assert csv_list.read(path, "train").classes == ("oak leaf", "Épine")

    def test_gives_one_file_one_path(self, write):
        path = write("path,label", "./a.jpg,x", "b//c.jpg,x", "b/./d:e..f.jpg,x")
        listing = csv_list.read(path, "train")
        assert listing.paths.tolist() == ["a.jpg", "b/c.jpg", "b/d:e..f.jpg"]

    def test_takes_absolute_paths_below_its_folder_whichever_links_lead_there(self, tmp_path):
        root = tmp_path / "photos"
        (root / "in").mkdir(parents=True)
        (tmp_path / "link").symlink_to(root)
        names = [root / "a.jpg", tmp_path / "link" / "in" / "b.jpg", root / "gone" / "c.jpg"]
        write_lines(root / "list.csv", ["path,label", *(f"{name},x" for name in names)])
        for folder in (root, tmp_path / "link"):
            listing = csv_list.read(folder / "list.csv", "train")
            assert listing.paths.tolist() == ["a.jpg", "in/b.jpg", "gone/c.jpg"]
            assert listing.notes[0].startswith("list.csv is read as: 3 absolute paths, which lead")

    def test_takes_backslashes_as_slashes_where_no_file_has_one(self, write, tmp_path):
        path = write("path,label", "train\\rose\\1.jpg,x", ".\\2.jpg,x", "3.jpg,x")
        listing = csv_list.read(path, "train")
        assert listing.paths.tolist() == ["train/rose/1.jpg", "2.jpg", "3.jpg"]
        assert listing.notes[0].endswith("read as: 2 paths with backslashes, read as slashes")
        (tmp_path / ".\\2.jpg").touch()
        os.utime(path, (1, 1))
        with pytest.raises(InputError, match=r"line 3: the file '.\\\\2.jpg' has backslashes in"):
            csv_list.read(path, "train")

    def test_says_how_splits_are_spelled(self, write):
        path = write("path,label,split", "a.jpg,x,Train", "b.jpg,x,validation", "c.jpg,x,TEST")
        assert csv_list.splits(path) == ("train", "val", "test")
        assert csv_list.read(path, "val").notes[0] == (
            "images.csv is read as: split 'Train' is train; split 'validation' is val; "
            "split 'TEST' is test"
        )

    def test_gives_the_classes_of_a_split_and_of_train(self, write):
        lines = ["a.jpg,b,train", "b.jpg,a,train", "c.jpg,c,val", "d.jpg,d,test"]
        path = write("path,label,split", *lines)
        assert csv_list.read(path, "train").classes == ("a", "b")
        assert csv_list.read(path, "val").classes == ("a", "b", "c")
        path = write("path,label,split", *lines[2:])
        assert csv_list.splits(path) == ("val", "test")
        assert csv_list.read(path, "test").classes == ("c", "d")

    def test_is_parsed_again_only_if_it_changes(self, write, monkeypatch):
        path = write("path,label", "a.jpg,x", "b.jpg,y")
        read = [csv_list.splits(path), csv_list.read(path, "train")]
        monkeypatch.setattr(csv_list, "read_text", lambda *_: pytest.fail("is parsed again"))
        assert [csv_list.splits(path), csv_list.read(path, "train").ids.tolist()] == [
            read[0],
            read[1].ids.tolist(),
        ]
        monkeypatch.undo()
        path = write("path,label", "a.jpg,x", "longer.jpg,y")
        assert csv_list.read(path, "train").ids.tolist() == ["a", "longer"]


class TestFiles:
    @pytest.fixture
    def photos(self, tmp_path):
        """Files that a list names a little otherwise, and the path of the list."""
        for name in ("Rose/IMG_1.JPG", "Rose/cafe\u0301.png", "b.jpg", "c.001.tif", "B/IMG_2.jpg"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path / "images.csv"

    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("Rose/img_1.jpg", "Rose/IMG_1.JPG"),
            ("rose/IMG_1.JPG", "Rose/IMG_1.JPG"),
            ("ROSE/CAF\u00c9", "Rose/cafe\u0301.png"),
            ("Rose/caf\u00e9.png", "Rose/cafe\u0301.png"),
            ("c.001", "c.001.tif"),
            ("b/img_2", "B/IMG_2.jpg"),
        ],
    )
    def test_that_differ_a_little_from_the_list_are_found(self, photos, name, path):
        write_lines(photos, ["path,label", "b.jpg,x", f"{name},y"])
        listing = csv_list.read(photos, "train")
        assert listing.paths.tolist() == ["b.jpg", path]
        (note,) = listing.notes
        assert "images.csv: 1 of 2 names differ from their files in case, Unicode form or" in note
        assert "(first: line 3: " in note

    def test_that_are_missing_are_named_with_line_and_near_miss(self, photos):
        write_lines(photos, ["path,label", "b.jpg,x", "Rose/IMG_l.JPG,y", "Rsoe/1.jpg,y"])
        assert csv_list.read(photos, "train").notes == (
            "images.csv: 2 of 3 names have no file (first: line 3: 'Rose/IMG_l.JPG', did you mean "
            "'IMG_1.JPG'?)",
        )

    def test_that_two_rows_of_any_split_mean_are_refused(self, photos):
        rows = ["Rose/IMG_1.JPG,x,val", "b.jpg,x,train", "rose/img_1,x,train"]
        write_lines(photos, ["path,label,split", *rows])
        message = r"images.csv line 4 has Rose/IMG_1.JPG again, after line 2"
        with pytest.raises(InputError, match=message):
            csv_list.read(photos, "train")

    @pytest.mark.parametrize("name", ["clip.mp4", "notes.TXT", "b.jpg.part", "x/a.h5"])
    def test_that_are_no_images_are_refused(self, photos, name):
        write_lines(photos, ["path,label", "b.jpg,x", f"{name},y"])
        with pytest.raises(InputError, match=r"line 3: '.*' is not an image by its ending \(but"):
            csv_list.read(photos, "train")

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

    @settings(max_examples=60)
    @given(data=st.data())
    def test_gives_back_what_the_csv_module_wrote(self, tmp_path_factory, data):
        text = st.text(
            st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\\/"),
            min_size=1,
        ).filter(lambda value: value.strip(" _\u00a0") and value == value.strip())
        names = data.draw(st.lists(text.map(lambda n: f"{n}.jpg"), min_size=1, unique=True))
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
            ([HEADER], r"has no row below its header$"),
            ([HEADER, "a.jpg,x"], r"line 2 has 2 fields, not 3"),
            ([HEADER, "a.jpg,x,train", "", "b.jpg,,train"], r"line 4 has no label"),
            ([HEADER, " ,x,train"], r"line 2 has no path"),
            ([HEADER, "a.jpg,_,train"], r"line 2: '_' does not name a class"),
            ([HEADER, "a.jpg,x,dev"], r"line 2: split 'dev' is not one of train, val, test$"),
            (["path,label,Set", "a.jpg,x,B"], r"line 2: split 'B' of column 'Set' is not one of"),
            ([HEADER, "a.jpg,x,tain"], r"line 2: split 'tain' .*, did you mean 'train'\?$"),
            ([HEADER, "a.jpg,A_1,train", "b.jpg,A 1,val"], r"'A_1' \(line 2\) and 'A 1' \(line 3"),
            ([HEADER, "a.jpg,x,train", "b.jpg,x\u200b,train"], r"line 3: .* U\+200B \(zero width"),
            ([HEADER, "/a.jpg,x,train"], r"line 2: '/a.jpg' is not a path below"),
            ([HEADER, "b/../../a.jpg,x,train"], r"line 2: 'b/../../a.jpg' is not a path below"),
            ([HEADER, "https://a/b.jpg,x,train"], r"line 2: 'https://a/b.jpg' is not a path below"),
            ([HEADER, "C:\\b\\a.jpg,x,train"], r"is not a path below the CSV's folder; write"),
            ([HEADER, "\\\\nas\\a.jpg,x,train"], r"is not a path below the CSV's folder; write"),
            ([HEADER, "..\\a.jpg,x,train"], r"is not a path below the CSV's folder; write"),
            ([HEADER, "a.jpg,x,train", "a.jpg,y,train"], r"line 3 has a.jpg again, after line 2"),
            ([HEADER, "a.jpg,x,train", "./a.jpg,x,val"], r"line 3 has a.jpg again, after line 2"),
            ([HEADER, "a.jpg,x,val"], r"has no row of split train, only of val$"),
            ([HEADER, '"a.jpg,x,train', "b.jpg,x,train"], r"is not CSV"),
            ([HEADER, 'a.jpg,"x"y,train'], r"line 2 is not CSV"),
            ([HEADER, "a\0.jpg,x,train"], r"line 2: 'a\\x00.jpg' has control characters"),
            ([HEADER, '"a\nb.jpg",x,train'], r"line 3: 'a\\nb.jpg' has control characters"),
            ([HEADER, "a.jpg," + "x" * 200_000 + ",train"], r"line 2 is not CSV \(field larger"),
            ([HEADER, b"caf\xe9.jpg,x,train"], r"is not UTF-8 \(line 2, byte 20\); save it as CSV"),
            ([HEADER.encode("utf-16")], r"images.csv is UTF-16, not UTF-8; save it as CSV in"),
        ],
    )
    def test_name_the_line(self, write, lines, message):
        path = write(*lines)
        with pytest.raises(InputError, match=message) as caught:
            csv_list.read(path, "train")
        assert len(str(caught.value).splitlines()) == 1
        assert "images.csv" in str(caught.value)

    @settings(max_examples=200)
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
