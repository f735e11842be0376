"""Rows of files, and what is said about broken ones."""

import gzip

import pytest

from egspo.records import read_records, read_rows

JSON = '{"A": "1", "b": "\u2028"}\n\n{"a": "2", "b": "y"}\n'
CSV = "A, b\n1,\u2028\n2,y\n"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("kind", "text", "lines"), [("jsonl", JSON, [1, 3]), ("csv", CSV, [2, 3])])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_kind_gives_the_same_rows(tmp_path, kind, text, lines, zipped, mark):
    path = tmp_path / (f"p.{kind}.gz" if zipped else f"p.{kind}")
    data = (mark + text).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    # A line separator inside a text ends no line, blank lines count, the header of a table is line 1.
    rows = [{"a": "1", "b": "\u2028"}, {"a": "2", "b": "y"}]
    assert read_rows(path, "task.data") == list(zip(lines, rows, strict=True))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"1", "p.txt: unknown kind of file; give .jsonl"),
        ("p.jsonl", b"", "p.jsonl: holds no rows; give"),
        ("p.csv", b"a,b\n", "p.csv: holds no rows; give"),
        ("p.jsonl", b'{"a": 1}\n{"a"', "p.jsonl:2: not JSON (Expecting ':' delimiter); write"),
        ("p.jsonl", b'{"a": 1}\n[1]', "p.jsonl:2: not a JSON object; write"),
        ("p.jsonl", b'{"a": ' + b"9" * 5_000 + b"}", "p.jsonl:1: not JSON (Exceeds the limit"),
        ("p.jsonl", b"\xff\xfe", "p.jsonl: not a readable jsonl file ("),
        ("p.csv", b'a\n"' + b"x" * 200_000, "p.csv: not a readable csv file (field larger"),
        ("p.jsonl.gz", b"{}", "p.jsonl.gz: not a readable jsonl file (Not a gzipped file"),
        (
            "p.jsonl.gz",
            gzip.compress(b"{}" * 99, mtime=0)[:20],
            "p.jsonl.gz: not a readable jsonl file (Compressed",
        ),
        (
            "p.csv.gz",
            gzip.compress(b"", mtime=0)[:10] + b"\xff" * 9,
            "p.csv.gz: not a readable csv file (Error -3",
        ),
    ],
)
def test_errors_name_the_setting_the_file_and_the_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_rows(tmp_path / name, "sft.data")
    assert str(error.value).startswith(f"sft.data: {tmp_path}/{message}")


def test_errors_of_a_row_get_its_place(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"a": "1"}\n\n{"a": "x"}')
    with pytest.raises(ValueError, match=r"^task.data: .*/p.jsonl:3: invalid literal"):
        read_records(path, "task.data", lambda row: int(row["a"]))
    path.write_text('{"a": "1"}\n\n{"a": "2"}')
    assert read_records(path, "task.data", lambda row: int(row["a"])) == [("p.jsonl:1", 1), ("p.jsonl:3", 2)]
