"""Label tables in the dialects in use: read right, or refused by the line."""

import csv
import zipfile
from pathlib import Path

import pytest

from deeprank.runtime.data.label_table import LabelRow, read_label_table
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import DataError


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "header",
    [
        "path,label",
        "label,path",
        "file_name,label",
        "FileName,Label",
        "image,class",
        "Filepaths,Labels",
        "path , label",
    ],
)
def test_names_of_columns(tmp_path, header):
    columns = [name.strip().lower() for name in header.split(",")]
    cells = ["cat" if name in ("label", "labels", "class") else "a/1.png" for name in columns]
    (row,) = read_label_table(table(tmp_path, f"{header}\n{','.join(cells)}\n")).rows
    assert row == LabelRow(2, "a/1.png", "cat")


def test_the_documented_column_wins(tmp_path):
    text = "id,label,category,path,image\n7,dress,clothes,a.png,12\n"
    (row,) = read_label_table(table(tmp_path, text)).rows
    assert (row.path, row.label) == ("a.png", "dress")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_line_ends_and_byte_order_marks(tmp_path, separator, ending, mark):
    rows = [("path", "label", "split"), ("a b.png", "big, cat; really", "Train"), ("sub\\b.png", "dog", "VALIDATION")]
    path = tmp_path / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(mark)
        csv.writer(file, delimiter=separator, lineterminator=ending).writerows(rows)
    found = read_label_table(path).rows
    assert [(row.path, row.label, row.split) for row in found] == [
        ("a b.png", "big, cat; really", "train"),
        ("sub/b.png", "dog", "val"),
    ]


def test_the_table_of_open_metric_learning(tmp_path):
    text = (
        ",label,path,split,is_query,is_gallery,category\n"
        "0,3,images/a.jpg,train,,,cups\n1,3,images/b.jpg,train,nan,NaN,cups\n"
        "2,4,images/c.jpg,validation,True,False,cups\n3,4,images/d.jpg,validation,0,1.0,cups\n"
    )
    rows = read_label_table(table(tmp_path, text)).rows
    assert [row.split for row in rows] == ["train", "train", "val", "val"]
    assert [row.query for row in rows] == [None, None, True, False]
    assert [row.gallery for row in rows] == [None, None, False, True]
    assert [row.label for row in rows] == ["3", "3", "4", "4"]


def test_only_test_pictures_may_lack_a_label(tmp_path):
    rows = read_label_table(table(tmp_path, "path,label,split\na.png,,test\nb.png,x,\n")).rows
    assert [(row.label, row.split) for row in rows] == [(None, "test"), ("x", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with the columns nothing; expected path,label"),
        ("a.png,cat\nb.png,dog\n", "starts with the columns a.png, cat; expected path,label"),
        ("path;name,label\n", "starts with the columns path;name, label; expected path,label"),
        ("path,label,label\na,b,c\n", "two columns label"),
        ("path,class,category\na,b,c\n", "the columns class and category, which may mean the same"),
        ("file_name,filename,label\na,b,c\n", "the columns file_name and filename"),
        ("path,label\na;b\n", "line 2: no path or no label"),
        ("path,label\na,b,c\n", "line 2: more fields than the first line has"),
        ("path,label,split\na.png,x,holdout\n", "line 2: split 'holdout'; expected train, val or test"),
        ("path,label,is_query,is_gallery\na.png,x,maybe,\n", "line 2: is_query 'maybe'; expected true or false"),
        ("path,label,is_query\na.png,x,true\n", "has one of the columns is_query and is_gallery; expected both"),
        ("path,label\na.png,x\n./a.png,y\n", "line 3: 'a.png' a second time (first in line 2)"),
        ("path,label\n/etc/passwd,x\n", "leaves the folder"),
        ("path,label\na/../../x.png,x\n", "leaves the folder"),
        ("path,label\n\x00,x\n", "labels.csv"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        read_label_table(table(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_refused(tmp_path, encoding):
    (tmp_path / "labels.csv").write_bytes("path,label\na.png,größe\n".encode(encoding))
    with pytest.raises(DataError, match="is not a CSV in UTF-8"):
        read_label_table(tmp_path / "labels.csv")


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="is a folder; expected a CSV of path,label"):
        read_label_table(tmp_path)
    with pytest.raises(DataError, match="does not exist; expected a CSV of path,label"):
        read_label_table(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n" + "\n" * 100_001, "more than 100,000 empty lines"),
        ("path,label\r" + "\r" * 100_001, "more than 100,000 empty lines"),
        ("path,label" + "," * 1_100_000 + "\n", "a line without an end"),
        ("path,label\n" + "a" * 1_100_000, "a line without an end"),
    ],
    ids=["empty lines", "empty lines of another kind", "columns", "no line ends"],
)
def test_lines_without_end_and_without_content_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text, newline="")
    with pytest.raises(DataError, match=message):
        read_label_table(tmp_path / "a.csv")


def test_empty_lines_are_skipped(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n\n \n\na.jpg,cat\n\n" + "\n" * 1000)
    with pytest.raises(DataError, match="line 3"):  # of a space
        read_label_table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("path,label\n\n\na.jpg,cat\n\n" + "\n" * 1000)
    assert [row.path for row in read_label_table(tmp_path / "a.csv").rows] == ["a.jpg"]


def test_a_table_in_a_data_set_names_no_more_pictures_than_there_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a.png", b"")
        archive.writestr("b.png", b"")
        archive.writestr(
            "metadata.csv", "file_name,label\na.png,x\nb.png,x\n" + "".join(f"{n}.png,y\n" for n in range(9))
        )
    with pytest.raises(DataError, match="line 5: more rows than the 3 files of the data set"):
        open_dataset(tmp_path / "data.zip")
