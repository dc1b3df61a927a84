"""The user's broken files: refused in one line that says where, or accepted as docs/data.md says; never half-loaded.

Each file goes through the command, which must end with exit code 2 and one line, or load every row.
"""

import csv
import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ur4rec.cli import app
from ur4rec.data import load_dataset
from ur4rec.data.reading.text import TextFormat, read_text_table
from ur4rec.errors import DataError

INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
ROWS = "u\ta\t10\nu\tb\t11\nu\tc\t12\n"
HEAD = "user,item,timestamp\n"
LINES = "u,a,10\nu,b,11\nu,c,12\n"
LONG = 10_000_000


def refusal(path):
    """The one line with which the command refuses a dataset."""
    result = CliRunner().invoke(app, ["data", "--dataset", str(path)])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.strip().split("\n")
    assert len(line) < 700
    assert result.stdout == ""
    return line


def read_or_refused(read, path):
    """What ``read`` gives, or None where it refuses the file in one line that names it."""
    try:
        return read(path)
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    assert str(path) in message
    return None


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ATOMIC_FAULTS = {
    "no header": (ROWS, ":1, column 'u': must be name:type"),
    "CSV header": ("user_id,item_id,timestamp\nu,a,1\n", ":1, column 'user_id,item_id,timestamp': must be name:type"),
    "header alone": (INTER, "holds no row"),
    "header without line end": (INTER.strip(), "holds no row"),
    "missing column": (
        "user_id:token\titem_id:token\nu\ta\n",
        "needs a column 'timestamp', has 'user_id', 'item_id'",
    ),
    "one name, two types": (
        "user_id:token\t" + INTER.replace("user_id:token", "user_id:float") + "u\tu\ta\t1\n",
        "must be there once",
    ),
    "a name twice": ("user_id:token\t" + INTER, ":1: column names must be distinct"),
    "empty": ("", "is empty"),
    "blank lines": ("\n \n\r\n", "is empty"),
    "latin-1": ((INTER + "\xe9\ta\t1\n").encode("latin-1"), ":2, byte 1: must be utf-8 text, got the byte 0xe9"),
    "UTF-16 with mark": ((INTER + ROWS).encode("utf-16"), ":1, byte 1: must be utf-8 text"),
    "UTF-16 without": ((INTER + ROWS).encode("utf-16-le"), ":1, byte 2: must be utf-8 text, got the byte 0x00"),
    "surrogate": (INTER.encode() + b"u\xed\xa0\x80\ta\t1\n", ":2, byte 2: must be utf-8 text, got the byte 0xed"),
    "NUL in a name": (INTER + ROWS + "u\0\ta\t1\n", ":5, byte 2: must be utf-8 text, got the byte 0x00"),
    "NUL after old Mac lines": ((INTER + "u\ta\t1\0\n").replace("\n", "\r"), ":2, byte 6: must be utf-8 text"),
    "all NUL": (b"\0" * 1000, ":1, byte 1: must be utf-8 text, got the byte 0x00"),
    "ragged": (INTER + ROWS + "u\ta\n", ":5, column 2: every row must have 3 fields, got 2"),
    "ragged, mixed line ends": (INTER + "u\ta\t1\r\nu\tb\t2\ru\tc\n", ":4, column 2: every row must have 3 fields"),
    "line of blanks": (INTER + ROWS + "  \n", ":5, column 1: every row must have 3 fields, got 1"),
    "1e400": (
        INTER + "u\ta\t1e400\n",
        ":2, column 'timestamp': must be a finite number or an ISO 8601 date, got '1e400'",
    ),
    "nan": (INTER + ROWS + "u\ta\tnan\n", ":5, column 'timestamp': must be a finite number"),
    "-inf": (INTER + "u\ta\t-inf\n", ":2, column 'timestamp': must be a finite number"),
    "blanks around a number": (INTER + "u\ta\t 10 \n", ":2, column 'timestamp': must be a finite number"),
    "no such day": (INTER + "u\ta\t2020-13-45\n", ":2, column 'timestamp': must be a finite number"),
    "zones and none": (
        INTER + "u\ta\t2020-01-01T00:00:00+02:00\nu\tb\t2020-01-01T00:00:00\n",
        ":3, column 'timestamp': must be a date with a time zone, as in the first row",
    ),
    "10 MB name": (INTER + "u" * LONG + "\ta\t1\n", ":2, column 1: a field must have at most 131072 characters"),
    "10 MB time": (INTER + "u\ta\t" + "1" * LONG + "\n", ":2, column 3: a field must have at most 131072 characters"),
    "long name": (INTER + "u" * 200_000 + "\ta\t1\n", ":2, column 1: a field must have at most 131072 characters"),
    "10 MB row": (INTER + "u\ta\t1" + "\tx" * (LONG // 2) + "\n", ":2, column 3: every row must have 3 fields"),
    "10 MB line": ("a\t" * (LONG // 2), ":1: column names must be distinct and not empty, got 'a', 'a',"),
    "10 MB header": ("x" * LONG + INTER + ROWS, ":1: a column name must have at most 1000 characters, got 'xxx"),
    "20,000 columns": (
        "\t".join(f"c{i}:token" for i in range(20_000)) + "\nx\n",
        ":2, column 1: every row must have 20000",
    ),
}

CSV_FAULTS = {
    "quote left open": (
        HEAD + LINES + '"u,d,13\n' + LINES,
        ":5: cannot be read: unexpected end of data; look for an unclosed quote",
    ),
    "in the last field": (
        'timestamp,user,item\n10,u,a\n11,u,5"\n12,u,"b\n13,u,c\n',
        ":4: cannot be read: unexpected end of data; look for an unclosed quote",
    ),
    "in the last row": (
        HEAD + LINES + '"u,d,13',
        ":5: cannot be read: unexpected end of data; look for an unclosed quote",
    ),
    "in the header": (
        'user,item,"timestamp\n' + LINES,
        ":1: cannot be read: unexpected end of data; look for an unclosed quote",
    ),
    "over 10 MB": (HEAD + '"u,a,1\n' + LINES * (LONG // 21), ":2: cannot be read: field larger than field limit"),
    "10 MB field": (HEAD + '"' + "u" * LONG + '",a,1\n', ":2: cannot be read: field larger than field limit"),
    "other names": (
        "Customer,Item,When\n" + LINES,
        "needs a column 'user', has 'Customer', 'Item', 'When'; first line: 'Customer,Item,When'; "
        "give --columns user=Customer,item=Item,time=When",
    ),
    "no time": (
        "user,item\nu,a\n",
        "first line: 'user,item'; give --columns user=user,item=item,time=..., or --order file if the rows are in the "
        "order of time",
    ),
    "no header": (
        "7,a,881250949\n" + LINES,
        "its first line must be names of columns, it looks like values; first line: '7,a,881250949'; if it has no "
        "header give --no-header --names user,item,timestamp",
    ),
    "neither header nor times": (
        "7,9\n8,9\n",
        "give --no-header --names user,item and, without times, --order file",
    ),
    "no separator": ("plays\nu a b\nc\n", "needs a column 'user', has 'plays'; first line: 'plays'"),
    "seconds and milliseconds": (
        HEAD + "u,a,1400000000\nu,b,1400000000000\n",
        ":3, column 'timestamp': must be epoch seconds, as in the first row, got '1400000000000'; write",
    ),
    "day or month first": (
        HEAD + "u,a,01/02/2020\nu,b,03/04/2020\n",
        ":2, column 'timestamp': may have the day or the month first, got '01/02/2020'; say which with --time-format",
    ),
    "neither day nor month": (
        HEAD + "u,a,13/02/2020\nu,b,02/13/2020\n",
        ":3, column 'timestamp': must be dates with the day first, as in the first row (%d/%m/%Y), got '02/13/2020'",
    ),
    "no such zone": (
        HEAD + "u,a,2020-01-01 00:00:00 UTC\nu,b,2020-01-01 00:00:00 Mars\n",
        ":3, column 'timestamp': must be a date with the name of a time zone, as in the first row, got",
    ),
    "empty quotes": (HEAD + '"",a,10\n', ":2, column 'user': must not be empty"),
    "commas alone": (HEAD + LINES + ",,\n", ":5, column 'user': must not be empty"),
    "late fault": (HEAD + LINES * 100_000 + "x\n", ":300002, column 1: every row must have 3 fields, got 1"),
    "UTF-16": ((HEAD + LINES).encode("utf-16"), ":1, byte 1: must be utf-8 text"),
}


@pytest.mark.parametrize("name", ATOMIC_FAULTS)
def test_a_broken_atomic_file_is_one_line(tmp_path, name):
    content, message = ATOMIC_FAULTS[name]
    assert message in refusal(write(tmp_path / "x.inter", content))


@pytest.mark.parametrize("name", CSV_FAULTS)
def test_a_broken_csv_is_one_line(tmp_path, name):
    content, message = CSV_FAULTS[name]
    assert message in refusal(write(tmp_path / "x.csv", content))


@pytest.mark.parametrize("title", ['"Apple\nb,Bread\nc,Cake\n', 'Apple 5"\nb,"Bread\nc,Cake\n'])
def test_a_quote_left_open_among_the_titles_does_not_swallow_the_rest(tmp_path, title):
    write(tmp_path / "interactions.csv", HEAD + LINES)
    write(tmp_path / "items.csv", "item,title\na," + title)
    assert "look for an unclosed quote" in refusal(tmp_path)


def parquet(path, **columns):
    table = {"user": ["u", "u", "u"], "item": ["a", "b", "c"], "timestamp": [1, 2, 3], **columns}
    pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}), path)
    return path


PARQUET_FAULTS = {
    "missing column": ({"timestamp": None}, "needs a column 'timestamp', has 'user', 'item'"),
    "no row": (
        {"user": pa.array([], "string"), "item": pa.array([], "string"), "timestamp": pa.array([], "int64")},
        "holds no row",
    ),
    "nothing": ({"user": ["u", None, "u"]}, ", row 2, column 'user': must not be empty"),
    "NaN": ({"timestamp": [1.0, np.nan, 2.0]}, ", row 2, column 'timestamp': must be a finite number"),
    "truth values": ({"timestamp": [True, False, True]}, ", row 1, column 'timestamp': must be a finite number"),
    "durations": ({"timestamp": pa.array([1, 2, 3], pa.duration("s"))}, "must be times, got duration[s]"),
    "mixed texts": (
        {"timestamp": ["1", "2", "2020-01-01"]},
        ", row 3, column 'timestamp': must be a number, as in the",
    ),
    "bytes": ({"user": [b"\xff", b"a", b"b"]}, "must be strings or numbers, got binary"),
    "false UTF-8": (
        {"user": pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xff", b"a", b"b"]).buffers())},
        "column 'user': must be UTF-8",
    ),
}


@pytest.mark.parametrize("name", PARQUET_FAULTS)
def test_a_broken_parquet_file_is_one_line(tmp_path, name):
    columns, message = PARQUET_FAULTS[name]
    assert message in refusal(parquet(tmp_path / "x.parquet", **columns))


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array(["u"]), pa.array(["v"])], names=["user", "user"])
    pq.write_table(table, tmp_path / "x.parquet")
    assert "column names must be distinct and not empty, got 'user', 'user'" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (pa.array([1, 2_000_000_001, 3], pa.timestamp("ns")), [1e-9, 3e-9, 2.000000001]),
        (pa.array([2**31 - 1, 0, 1], pa.date32()), [0, 86400, (2**31 - 1) * 86400]),
        (pa.array([2**64 - 1, 1, 2], pa.uint64()), [1, 2, 2**64]),
    ],
)
def test_parquet_times_of_any_unit_are_accepted(tmp_path, times, seconds):
    assert load_dataset(parquet(tmp_path / "x.parquet", timestamp=times)).timestamps_N.tolist() == seconds


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_parquet_file_is_refused_or_read(tmp_path_factory, data):
    path = parquet(tmp_path_factory.mktemp("parquet") / "x.parquet")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    loaded = read_or_refused(load_dataset, path)
    assert loaded is None or 0 < len(loaded) <= 3


ACCEPTED = {
    "byte order mark": (b"\xef\xbb\xbf" + (INTER + ROWS).encode(), [10, 11, 12]),
    "empty lines": ("\n\r\n" + INTER + "\n" + ROWS + "\n\n", [10, 11, 12]),
    "old Mac lines": ((INTER + ROWS).replace("\n", "\r"), [10, 11, 12]),
    "mixed line ends": (INTER + "u\ta\t10\r\nu\tb\t11\ru\tc\t12", [10, 11, 12]),
    "repeats": (INTER + ROWS + ROWS, [10, 10, 11, 11, 12, 12]),
    "negative times": (INTER + "u\ta\t-5\nu\tb\t-9\nu\tc\t0\n", [-9, -5, 0]),
    "far future": (INTER + "u\ta\t1e300\nu\tb\t9223372036854775808\nu\tc\t0\n", [0, 2.0**63, 1e300]),
    "largest whole number": (INTER + f"u\ta\t{2**63 - 1}\nu\tb\t{2**63 - 2}\nu\tc\t0\n", [0, 2**63 - 2, 2**63 - 1]),
    "year 1": (
        INTER + "u\ta\t0001-01-01\nu\tb\t2020-01-01\nu\tc\t2020-01-02\n",
        [-62135596800, 1577836800, 1577923200],
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_documented_oddities_are_accepted_whole(tmp_path, name):
    content, times = ACCEPTED[name]
    path = write(tmp_path / "x.inter", content)
    data = load_dataset(path)
    assert data.timestamps_N.tolist() == times
    assert data.item_ids == ["a", "b", "c"]
    shown = CliRunner().invoke(app, ["data", "--dataset", str(path)])
    assert "num_interactions" in shown.stdout
    if name != "repeats":  # two of three interactions are held out: described, and refused for nothing else
        assert "at least 2 training interactions besides what the split leave-one-out holds out" in shown.stderr


def test_names_are_compared_character_by_character(tmp_path):
    path = write(tmp_path / "x.csv", HEAD + 'NULL,1,1\nnull,01,2\n" null",1.0,3\n"nu\u2028ll",1,4\n"5""",1,5\n')
    data = load_dataset(path)
    assert data.user_ids == ["NULL", "null", " null", "nu\u2028ll", '5"']
    assert data.item_ids == ["1", "01", "1.0"]


@pytest.mark.parametrize("place", ["x.csv", "x.inter", "interactions.csv", "items.csv", "x.parquet"])
def test_a_directory_in_place_of_a_file(tmp_path, place):
    write(tmp_path / "interactions.csv", HEAD + LINES) if place == "items.csv" else None
    (tmp_path / place).mkdir()
    dataset = tmp_path / place if place in ("x.csv", "x.parquet") else tmp_path
    line = refusal(dataset)
    assert "must be an existing file, got a directory" in line or "must hold one NAME.inter" in line
    assert str(dataset) in line


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    assert "must be an existing file, got something else" in refusal(tmp_path / "x.csv")


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-that-name/x.csv", "a\nb.csv", "no\0.csv"])
def test_a_path_that_cannot_be_one_is_unknown(path):
    assert "unknown dataset" in refusal(path)


pieces = st.lists(st.sampled_from(["a", "b", ",", ",", "\n", "\n", "\r", "\r\n", '"', "é", " "]), max_size=16)


@settings(max_examples=300, deadline=None)
@given(pieces, st.booleans(), st.sampled_from(["x,y\n", "x\r\n", "x,y\r"]))
@example(list('a,5"\nb,"c\nd,e\n'), True, "x,y\n")
def test_whatever_is_read_is_what_the_standard_library_reads(tmp_path_factory, body, quoted, header):
    """Every row and field, or an error: pyarrow must neither swallow rows nor split them elsewhere."""
    text = header + "".join(body)
    path = write(tmp_path_factory.mktemp("text") / "x.csv", text)
    table = read_or_refused(lambda path: read_text_table(path, TextFormat(separator=",", quoted=quoted)), path)
    if table is None:
        return
    read = [list(row) for row in zip(*map(table.strings, table.columns), strict=True)]
    plain = {"delimiter": ","} if quoted else {"delimiter": ",", "quoting": csv.QUOTE_NONE}
    rows = list(csv.reader(io.StringIO(text, newline=""), **plain))
    assert read == [row for row in rows if row][1:]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([".inter", ".csv", ".tsv", ".parquet"]), st.booleans())
def test_any_bytes_are_refused_in_one_line_or_loaded(tmp_path_factory, content, suffix, with_header):
    header = {".inter": INTER, ".csv": HEAD, ".tsv": HEAD.replace(",", "\t")}.get(suffix, "") if with_header else ""
    path = write(tmp_path_factory.mktemp("bytes") / f"x{suffix}", header.encode() + content)
    loaded = read_or_refused(load_dataset, path)
    assert loaded is None or len(loaded) > 0


def test_a_parquet_fault_of_several_lines_is_told_in_one(tmp_path, monkeypatch):
    def read(path, **_):
        raise pa.ArrowInvalid("invalid data\n----------\nDeserializing page header failed.\n")

    monkeypatch.setattr(pa.parquet, "ParquetFile", read)
    path = write(tmp_path / "x.parquet", b"PAR1")
    assert read_or_refused(load_dataset, path) is None
