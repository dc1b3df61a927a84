"""The user's own files: atomic, CSV, TSV, Parquet; malformed rows are refused with file, line and column."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ur4rec.data import DataOptions, load_dataset
from ur4rec.data.reading.opening import open_source, open_table
from ur4rec.data.reading.text import TextFormat, read_text_table
from ur4rec.errors import DataError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
GOOD = INTER + "u1\ta\t5\t10\nu1\tb\t4\t11\nu2\ta\t3\t12\nu2\tc\t3\t13\n"
ITEM = "item_id:token\tmovie_title:token_seq\tgenre:token_seq\tprice:float\n"


def atomic(tmp_path, inter=GOOD, item=None, name="shop"):
    directory = tmp_path / name
    directory.mkdir()
    (directory / f"{name}.inter").write_bytes(inter if isinstance(inter, bytes) else inter.encode())
    if item is not None:
        (directory / f"{name}.item").write_text(item)
    return directory


def test_atomic_files(tmp_path):
    item = ITEM + "a\tApple pie\tsweet food\t1.5\nb\tBread\tfood\t\nz\tNever bought\tfood\t2\n"
    data = load_dataset(atomic(tmp_path, item=item))
    assert data.name == "shop"
    assert data.user_ids == ["u1", "u2"]
    assert data.item_ids == ["a", "b", "c"]
    assert data.titles == ["Apple pie", "Bread", "c"]
    assert data.texts == ["Apple pie. sweet food. 1.5", "Bread. food", "c"]
    assert [row.tolist() for row in data.sequences] == [[0, 1], [0, 2]]


def test_atomic_without_items_and_with_windows_line_ends(tmp_path):
    data = load_dataset(atomic(tmp_path, GOOD.replace("\n", "\r\n")))
    assert data.titles == data.texts == data.item_ids == ["a", "b", "c"]
    assert data.timestamps_N.tolist() == [10, 11, 12, 13]


def test_columns_can_be_chosen(tmp_path):
    item = ITEM + "a\tApple pie\tsweet food\t1.5\n"
    data = load_dataset(atomic(tmp_path, item=item), options=DataOptions(title="genre", texts=("movie_title",)))
    assert (data.titles[0], data.texts[0]) == ("sweet food", "sweet food. Apple pie")


BAD_ROWS = {
    "too few fields": ("u1\tb\t4\n", r":3, column 3: every row must have 4 fields, got 3; fix the row"),
    "too many fields": ("u1\tb\t4\t11\tx\n", r":3, column 4: every row must have 4 fields, got 5; fix the row"),
    "no user": ("\tb\t4\t11\n", r":3, column 'user_id': must not be empty, got ''; name it or drop the row"),
    "no item": ("u1\t\t4\t11\n", r":3, column 'item_id': must not be empty"),
    "word as time": (
        "u1\tb\t4\tnoon\n",
        r":3, column 'timestamp': must be a finite number or an ISO 8601 date, got 'noon'",
    ),
    "no time": ("u1\tb\t4\t\n", r":3, column 'timestamp': must be a finite number .* got ''"),
    "NaN as time": ("u1\tb\t4\tnan\n", r":3, column 'timestamp': must be a finite number .* got 'nan'"),
    "infinite time": ("u1\tb\t4\tinf\n", r":3, column 'timestamp': must be a finite number .* got 'inf'"),
    "not UTF-8": (b"u1\tb\xff\t4\t11\n", r":3, byte 5: must be utf-8 text, got the byte 0xff; save it as utf-8"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_malformed_row_is_named(tmp_path, case):
    row, message = BAD_ROWS[case]
    row = row if isinstance(row, bytes) else row.encode()
    directory = atomic(tmp_path, INTER.encode() + b"u1\ta\t5\t10\n" + row + b"u2\ta\t3\t12\n")
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(directory)
    assert str(directory / "shop.inter") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ("", "is empty; give a file with at least one row"),
        (INTER, "holds no row; give a file with at least one"),
        (
            "user_id:token\titem_id:token\nu\ta\n",
            r"needs a column 'timestamp', has 'user_id', 'item_id'; first line: .*; a header is, .* --order file",
        ),
        (GOOD.replace("user_id:token", "user_id"), "1, column 'user_id': must be name:type with a type of"),
        (GOOD.replace("user_id:token", "user_id:text"), "1, column 'user_id:text': must be name:type with a type of"),
        (GOOD.replace("rating:float", "item_id:token"), "column names must be distinct and not empty"),
        (GOOD.replace("user_id:token", ""), "column names must be distinct and not empty"),
    ],
)
def test_a_bad_header_is_named(tmp_path, inter, message):
    with pytest.raises(DataError, match=message):
        load_dataset(atomic(tmp_path, inter))


def test_a_malformed_item_row_is_named(tmp_path):
    with pytest.raises(DataError, match=r"shop.item:3, column 3: every row must have 4 fields, got 3"):
        load_dataset(atomic(tmp_path, item=ITEM + "a\tApple\tfood\t1\nb\tBread\tfood\n"))


def test_a_repeated_item_is_named(tmp_path):
    with pytest.raises(DataError, match=r"shop.item:4, column 'item_id': must not be repeated, got 'a'; drop one"):
        load_dataset(atomic(tmp_path, item=ITEM + "a\tApple\tfood\t1\nb\tBread\tfood\t2\na\tAgain\tfood\t3\n"))


def test_one_interactions_file_is_needed(tmp_path):
    with pytest.raises(
        DataError, match=r"must hold one NAME.inter, one interactions.csv .*, or parts of one table .*, got none"
    ):
        load_dataset(tmp_path)
    for name in ("x", "y"):
        (tmp_path / f"{name}.inter").write_text(GOOD)
    with pytest.raises(DataError, match=r"got 'x.inter', 'y.inter'; pass the file itself"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path / "x.inter").num_users == 2


FRAME = pd.DataFrame(
    {"user": [7, 7, 8], "item": ["a", "b", "a"], "timestamp": [1.5, 2.5, 0.25], "note": ["one, two", "three", '"x"']}
)
ITEMS = pd.DataFrame({"item": ["b", "a"], "title": ["Bee", "Ant, the"], "genre": ["wing", None], "year": [1999, 2001]})


def write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables(tmp_path, suffix):
    write(FRAME, tmp_path / f"interactions{suffix}")
    write(ITEMS, tmp_path / f"items{suffix}")
    data = load_dataset(tmp_path)
    assert data.user_ids == ["7", "8"]
    assert data.item_ids == ["a", "b"]
    assert data.titles == ["Ant, the", "Bee"]
    assert data.texts == ["Ant, the. 2001", "Bee. wing. 1999"]
    assert data.timestamps_N.tolist() == [0.25, 1.5, 2.5]
    assert data.items_N.tolist() == [0, 0, 1]
    other = load_dataset(
        tmp_path / f"interactions{suffix}", options=DataOptions(items=str(tmp_path / f"items{suffix}"))
    )
    assert (other.hash, other.texts) == (data.hash, data.texts)
    assert load_dataset(tmp_path / f"interactions{suffix}").titles == ["a", "b"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_other_column_names(tmp_path, suffix):
    path = tmp_path / f"log{suffix}"
    write(FRAME.rename(columns={"user": "customer", "item": "sku", "timestamp": "bought at"}), path)
    remedy = "give --columns user=customer,item=sku,time=bought at"
    first_line = ".*first line: 'customer,sku,bought at,note'; " if suffix == ".csv" else ".*; "
    with pytest.raises(DataError, match=rf"needs a column 'user', has 'customer', 'sku', {first_line}{remedy}"):
        load_dataset(path)
    data = load_dataset(path, options=DataOptions(user="customer", item="sku", time="bought at"))
    assert (data.name, data.num_users, data.num_items) == ("log", 2, 2)
    write(FRAME, tmp_path / "interactions.csv")
    write(ITEMS, tmp_path / "items.csv")
    with pytest.raises(DataError, match=r"items.csv: needs a column 'label'"):
        load_dataset(
            tmp_path / "interactions.csv", options=DataOptions(title="label", items=str(tmp_path / "items.csv"))
        )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "times",
    [
        pd.to_datetime(["2020-01-02", "2020-01-03", "2020-01-01"]),
        pd.to_datetime(["2020-01-02T00:00Z", "2020-01-02T18:00Z", "2020-01-01T00:00Z"]),
    ],
)
def test_dates(tmp_path, suffix, times):
    write(FRAME.assign(timestamp=times), tmp_path / f"x{suffix}")
    data = load_dataset(tmp_path / f"x{suffix}")
    assert data.timestamps_N[0] == 1577836800  # 2020-01-01 in seconds
    assert data.users_N.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('user,item,timestamp\n1,"a\nb",3\n1,c\n', r"x.csv:4, column 2: every row must have 3 fields, got 2"),
        ("user,item,timestamp\n1,a,3\n\n1,c,late\n", r"x.csv:4, column 'timestamp': must be a finite number .* 'late'"),
        (
            'user,item,timestamp\n1,"a,3\n' + "1,b,4\n" * 30_000,
            r"x.csv:\d+: cannot be read: .*; look for an unclosed quote",
        ),
        ("user,item,timestamp\n1,a,3\n1,,4\n", r"x.csv:3, column 'item': must not be empty"),
        (
            "user,item,timestamp\n1,a,3\n1,b,2020-01-01\n",
            r":3, column 'timestamp': must be a number, as in the first row, got '2020-01-01'",
        ),
    ],
)
def test_a_malformed_csv_row_is_named(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": ["a", None, "a"]}, r"x.parquet, row 2, column 'item': must not be empty"),
        ({"timestamp": [1.0, 2.0, None]}, r"x.parquet, row 3, column 'timestamp': must be a finite number"),
        ({"item": [["a"], ["b"], ["a"]]}, r"x.parquet, column 'item': must be strings or numbers, got list"),
    ],
)
def test_a_malformed_parquet_row_is_named(tmp_path, change, message):
    write(FRAME.assign(**change), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "x.parquet")


def test_other_faults_of_files(tmp_path):
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_dataset(tmp_path / "x.parquet")
    (tmp_path / "x.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"must end in one of \('.csv', .*'.parquet'\) or, of text, with .gz or .zst"):
        load_dataset(tmp_path / "x.xlsx")
    (tmp_path / "x.csv").write_text("user,item,timestamp\n1,a,3\n")
    with pytest.raises(DataError, match=r"none.csv: must be an existing file, got none"):
        load_dataset(tmp_path / "x.csv", options=DataOptions(items=str(tmp_path / "none.csv")))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_arrow_owns_what_its_threads_read(tmp_path, monkeypatch, encoding):
    """Python's memory, or a codec of Python, would abort the process if a thread let go of it at exit (code 134)."""
    owned = []
    read_csv = pa.csv.read_csv

    def measured(source, *, read_options, **options):
        owned.append((pa.total_allocated_bytes() - before, read_options.encoding))
        return read_csv(source, read_options=read_options, **options)

    monkeypatch.setattr(pa.csv, "read_csv", measured)
    path = tmp_path / "x.csv"
    path.write_bytes(b"user\n" + b"name\n" * 100_000)
    before = pa.total_allocated_bytes()
    assert len(read_text_table(path, TextFormat(separator=",", encoding=encoding))) == 100_000
    assert owned[0][0] >= 500_000
    assert owned[0][1] == "utf8"


fields = st.text(
    st.characters(codec="utf-8", exclude_characters="\t\r\n\ufeff", exclude_categories=("Cs", "Cc")), max_size=5
)
good_row = st.lists(fields, min_size=3, max_size=3).filter(lambda row: "".join(row).strip())


@settings(max_examples=40)
@given(st.lists(good_row, min_size=1, max_size=12), st.data())
def test_any_row_of_another_length_is_found_where_it_is(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("table") / "x.tsv"
    form = TextFormat(separator="\t", columns=("a", "b", "c"))
    path.write_bytes("\n".join("\t".join(row) for row in rows).encode())
    table = read_text_table(path, form)
    assert [list(row) for row in zip(*(table.strings(name) for name in "abc"), strict=True)] == rows
    place = data.draw(st.integers(0, len(rows)))
    bad = data.draw(st.sampled_from([["x"], ["x", "y"], ["x", "y", "z", "w"]]))
    rows = [*rows[:place], bad, *rows[place:]]
    path.write_bytes("\n".join("\t".join(row) for row in rows).encode())
    with pytest.raises(DataError, match=f"x.tsv:{place + 1}, column .*must have 3 fields, got {len(bad)}"):
        read_text_table(path, form)


def test_a_large_file_is_read_fast_and_whole(tmp_path):
    rng = np.random.default_rng(0)
    users, items = rng.integers(2000, size=200_000), rng.integers(500, size=200_000)
    rows = "".join(f"{user}\t{item}\t{time}\n" for time, (user, item) in enumerate(zip(users, items, strict=True)))
    data = load_dataset(atomic(tmp_path, "user_id:token\titem_id:token\ttimestamp:float\n" + rows))
    assert len(data) == 200_000
    assert [data.user_ids[user] for user in data.users_N[:50]] == [str(user) for user in users[:50]]
    assert [data.item_ids[item] for item in data.items_N[-50:]] == [str(item) for item in items[-50:]]


@pytest.mark.parametrize("name", ["nosuch", "nosuch.csv", "nosuch.txt.gz", "nosuch.parquet"])
def test_what_is_not_there_is_said_to_be_so_whatever_it_is_called(tmp_path, name):
    for open_file in (open_table, open_source):
        with pytest.raises(
            DataError, match=f"{name}: must be an existing file, got none of that name; give the path of"
        ):
            open_file(tmp_path / name, DataOptions())
