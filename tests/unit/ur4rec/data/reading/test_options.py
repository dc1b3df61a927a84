"""Options of data: what they do to a file, what is said, and what is refused."""

import gzip
import json
import logging

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ur4rec.cli import app
from ur4rec.cli.data_options import command_words
from ur4rec.data import DataOptions, load_dataset
from ur4rec.data.reading import content
from ur4rec.data.reading.roles import atomic_roles
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.runs.config import RunConfig
from ur4rec.runs.presets import preset


def read(path, text, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_dataset(path, options=DataOptions(**options))


HEAD = "user,item,time\n"
TIMES = {
    "zones": (("2014-01-01 00:00:00 UTC", "2014-01-01 00:00:00 Europe/Berlin"), {}, [-3600, 0], "dates"),
    "offsets": (("2014-01-01T00:00:00.5+02:00", "2014-01-01T00:00:00Z"), {}, [-7199.5, 0], "dates"),
    "day first": (("31/01/2014", "01/02/2014"), {}, [30 * 86400, 31 * 86400], "dates with the day first"),
    "month first": (("01/31/2014", "02/01/2014"), {}, [30 * 86400, 31 * 86400], "dates with the month first"),
    "dots": (("1.2.2014 10:00", "2.1.2014 00:00"), {}, [86400, 31 * 86400 + 36000], "dates with the day first"),
    "day said": (("01/02/2014", "02/02/2014"), {"time_format": "dayfirst"}, [31 * 86400, 32 * 86400], "day first"),
    "month said": (("01/02/2014", "02/02/2014"), {"time_format": "monthfirst"}, [86400, 32 * 86400], "month first"),
    "own": (("14|01|01", "14|01|02"), {"time_format": "%y|%m|%d"}, [0, 86400], "dates, 2014-01-01 to 2014-01-02"),
    "iso said": (("2014-01-02", "2014-01-01"), {"time_format": "iso"}, [0, 86400], "dates, 2014-01-01 to 2014-01-02"),
}
BEGIN = 1388534400  # 2014-01-01


@pytest.mark.parametrize("name", TIMES)
def test_dates_of_any_form(tmp_path, name):
    times, options, expected, said = TIMES[name]
    data = read(tmp_path / "x.csv", HEAD + "".join(f"u,{i},{time}\n" for i, time in enumerate(times)), **options)
    assert (data.timestamps_N - BEGIN).tolist() == expected
    assert said in data.notes[1]


@pytest.mark.parametrize(
    ("unit", "factor"), [("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)]
)
def test_the_unit_of_epochs_is_found_by_their_size_and_the_numbers_stay(tmp_path, unit, factor):
    times = [factor * BEGIN, factor * (BEGIN + 86400)]
    data = read(tmp_path / "x.csv", HEAD + f"u,a,{times[0]}\nu,b,{times[1]}\n")
    assert data.timestamps_N.tolist() == times
    assert data.notes[1] == f"times read as epoch {unit}, 2014-01-01 to 2014-01-02"


def test_a_unit_that_is_given_may_mix_sizes(tmp_path):
    data = read(tmp_path / "x.csv", HEAD + "u,a,1388534400000\nu,b,86400000\n", time_format="ms")
    assert data.notes[1] == "times read as epoch milliseconds, 1970-01-02 to 2014-01-01"
    with pytest.raises(DataError, match=r":2, column 'time': must be epoch seconds, got '1388534400000'; give another"):
        read(tmp_path / "x.csv", HEAD + "u,a,1388534400000\nu,b,86400000\n", time_format="s")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "u,a,1\n",
            {"time_format": "%d.%m.%Y"},
            r":2, column 'time': must be a time such as '%d.%m.%Y' reads, got '1'",
        ),
        ("u,a,1\n", {"time_format": "%Q"}, "cannot be read with the time format '%Q'"),
        ("u,a,1\n", {"time_format": "iso"}, ":2, column 'time': must be ISO 8601, got '1'"),
        ("u,a,1\n", {"time_format": "dayfirst"}, ":2, column 'time': must be dates with the day first"),
        ("u,a,2014-10-26 02:30:00 Europe/Berlin\n", {}, "column 'time'"),
        ("u,a,1\n", {"where": ("event=buy",)}, "needs a column 'event', has 'user', 'item', 'time'; give another"),
        ("u,a,1\n", {"where": ("item=b",)}, "column 'item': must be 'b' somewhere, has 'a'; give another value"),
        ("u,a,1\n", {"min_rating": 4}, "needs a column 'rating', .*; give the column of ratings"),
        ("u,a,1\nu,b,x\n", {"min_rating": 4, "rating": "time"}, ":3, column 'time': must be a number, got 'x'"),
        ("u,a,1\n", {"min_rating": 4, "rating": "time"}, "no row is left of 1"),
        ("u,a,1\n", {"k_core": 2}, "no interaction is left of 1 with --k-core 2"),
        ("u,a,1\n", {"title": "label"}, "needs a column 'label'"),
        ("u,a,1\n", {"texts": ("kind",)}, "needs a column 'kind'"),
        ("u,a,1\n", {"user": "u", "item": "a", "time": "1", "names": ("u", "a", "1")}, "its first line must be a row"),
        ("u,a,1\n", {"names": ("u", "a", "1")}, "looks like names of columns; first line: .*; leave out --no-header"),
        (
            "u,a\n",
            {"names": ("user", "item")},
            ":1, column 2: every row must have 2 fields, got 3; .* or give 3 --names",
        ),
        (
            "u,a,1\n",
            {"separator": ";"},
            "must have semicolons between the fields, it has commas; leave out --separator",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, text, options, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.csv", HEAD + text, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": "ab"}, "separator must be one ASCII character, '::' or one of"),
        ({"separator": "\n"}, "separator must be"),
        ({"encoding": "punycode"}, "encoding must be one of text files"),
        ({"encoding": "rot13"}, "encoding must be one of text files"),
        ({"time_format": "soon"}, "time_format must be one of"),
        ({"time_format": "%d" * 99}, "time_format must"),
        ({"min_rating": float("nan")}, "min_rating must be"),
        ({"where": ("event",)}, "where must read COLUMN=VALUE, got 'event'"),
        ({"where": "event=buy"}, "where must be strings"),
        ({"names": ("a", "a")}, "names must be distinct"),
        ({"names": ()}, "names must be strings"),
        ({"k_core": 0}, "k_core must be an integer of at least 1"),
        ({"order": "any"}, "unknown order 'any'"),
        ({"user": ""}, "user must be a string that is not empty"),
        ({"items": "\0"}, "items must be a string"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        DataOptions(**options)


def test_options_are_for_files(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"options of data are for files of your own, got k_core for 'synthetic'"
    ):
        load_dataset("synthetic", options=DataOptions(k_core=2))
    assert load_dataset("synthetic", options=DataOptions()).name == "synthetic"


def test_a_configuration_keeps_its_options_and_reads_one_without():
    config = preset("smoke", dataset="x.csv", data={"where": ["event=buy"], "k_core": 2})
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    old = {name: value for name, value in config.to_json().items() if name != "data"}
    assert RunConfig.from_json(old).data == {}
    with pytest.raises(ConfigurationError, match="unknown option of data 'speed'"):
        preset("smoke", data={"speed": 3})
    assert preset("default", epochs={}).epochs == RunConfig().epochs
    assert preset("default", epochs={"end_to_end": 0}).epochs["joint_finetune"] == 20


ALL = {
    "user": "a b",
    "item": "i",
    "time": "t",
    "separator": "\t",
    "names": ["a b", "i", "t", "kind"],
    "encoding": "cp1252",
    "time_format": "%d.%m.%y",
    "min_rating": 3.5,
    "where": ["kind=x", "kind=y"],
    "k_core": 2,
    "texts": ["kind"],
    "order": "file",
}


def test_a_command_gives_the_options_and_says_them(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"u\ta\t1\tx\n")
    words = command_words(ALL)
    assert CliRunner().invoke(app, ["data", "ml-1m", *words]).stderr.startswith("error: options of data are for files")
    words = command_words({name: value for name, value in ALL.items() if name not in ("min_rating", "k_core")})
    result = CliRunner().invoke(app, ["data", str(tmp_path / "x.csv"), *words, "--json"])
    assert "leave-one-out needs a user with at least 3 interactions" in result.stderr  # so it was read
    for wrong, message in {
        "--columns=usr=a": "--columns must read ROLE=COLUMN with a role of ('user', 'item', 'time', 'rating', 'title')",
        "--no-header": "--no-header and --names must be given together",
        "--names=a,b": "--no-header and --names must be given together",
        "--separator=ab": "separator must be one ASCII character",
    }.items():
        result = CliRunner().invoke(app, ["data", str(tmp_path / "x.csv"), wrong])
        assert (result.exit_code, message in result.stderr) == (2, True), result.output


def test_rows_are_chosen(tmp_path):
    rows = ["u,a,1,view,5", "u,b,2,buy,1", "v,a,3,cart,4", "v,b,4,buy,", "v,c,5,buy,4"]
    text = "user,item,time,event,rating\n" + "\n".join(rows) + "\n"
    data = read(tmp_path / "x.csv", text, where=("event=buy", "event=cart"), min_rating=4)
    assert (data.user_ids, data.item_ids) == (["v"], ["a", "c"])
    assert "2 of 5 rows count, by --where or --min-rating" in data.notes
    with pytest.raises(DataError, match=r"x.csv:6, column 'item': must not be empty"):
        read(tmp_path / "x.csv", text.replace("v,c", "v,"), where=("event=buy",))
    core = read(tmp_path / "x.csv", text, k_core=2)
    assert (core.item_ids, len(core)) == (["a", "b"], 4)


def test_without_times_the_file_is_in_order(tmp_path):
    data = read(tmp_path / "x.csv", "USER_ID,Item Id\nu,b\nu,a\n", order="file")
    assert (data.item_ids, data.timestamps_N.tolist()) == (["b", "a"], [0, 1])
    assert "no times read: the order of the file stands for them" in data.notes
    assert read(tmp_path / "x.csv", HEAD + "u,b,9\nu,a,1\n", order="file").item_ids == ["b", "a"]


@pytest.mark.parametrize("separator", ["::", "\t", ";", "|", ",", " "])
def test_the_separator_is_found(tmp_path, separator):
    text = "\n".join(separator.join(row) for row in (("user", "item", "time"), ("u", "a", "1"), ("u", "b:c", "2")))
    data = read(tmp_path / "x.txt", text)
    assert data.item_ids == ["a", "b:c"]
    with pytest.raises(DataError, match="must have fields between one of"):
        read(tmp_path / "x.txt", "user\nu\n")


def test_the_names_of_a_first_row_do_not_lose_it(tmp_path):
    for columns in ({"user": "u1", "item": "i1", "time": "5"}, {"user": "u1", "item": "i1", "order": "file"}):
        with pytest.raises(
            DataError, match=r"its first line must be names of columns, it looks like values.*--no-header"
        ):
            read(tmp_path / "x.csv", "u1,i1,5\nu1,i2,6\n", **columns)
    data = read(tmp_path / "x.csv", "u1,i1,5\nu1,i2,6\n", names=("user", "item", "time"))
    assert len(data) == 2


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig"])
def test_encodings(tmp_path, encoding):
    data = read(tmp_path / "x.csv", (HEAD + "Zoë,ä,1\n").encode(encoding), encoding=encoding)
    assert (data.user_ids, data.item_ids) == (["Zoë"], ["ä"])
    with pytest.raises(DataError, match=r":2, byte \d+: must be .* text, got the byte 0x00, which no text has"):
        read(tmp_path / "x.csv", (HEAD + "Zoë,\0,1\n").encode(encoding), encoding=encoding)


def test_whole_floats_and_decimals_are_whole_numbers(tmp_path):
    table = {
        "user": pa.array([192.0, 9.78e12, 7.0]),
        "item": pa.array(["1.00", "2.00", "3.00"]).cast(pa.decimal128(10, 2)),
        "timestamp": [1, 2, 3],
        "title": [None, "B", "C"],
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    data = load_dataset(tmp_path / "x.parquet")
    assert data.user_ids == ["192", "9780000000000", "7"]
    assert (data.item_ids, data.titles) == (["1", "2", "3"], ["1", "B", "C"])
    pd.DataFrame({"user": [1.0, None], "item": [1.5, 2.0], "timestamp": [1, 2]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="row 2, column 'user': must not be empty"):
        load_dataset(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["Title", "name", "ITEM_NAME", "product title"])
def test_titles_are_found_and_counted(tmp_path, name, caplog):
    (tmp_path / "items.csv").write_text(f"item,{name},kind\na,Ant,x\nb,,y\nz,Zoo,z\n")
    data = read(tmp_path / "x.csv", HEAD + "u,a,1\nu,b,2\n", items=str(tmp_path / "items.csv"))
    assert (data.titles, data.texts) == (["Ant", "b"], ["Ant. x", "y"])
    assert data.notes[-1] == "1 of 2 items have a title"
    assert not caplog.records


@pytest.mark.parametrize(
    ("ours", "theirs"), [("{}.0", "{}"), ("{:07}", "{}"), ("{}", "tt{}")], ids=["floats", "zeros", "prefixes"]
)
def test_a_join_that_matches_nothing_is_said_loudly(tmp_path, caplog, ours, theirs):
    (tmp_path / "items.csv").write_text("item,title\n" + "".join(f"{theirs.format(i)},Film {i}\n" for i in range(1, 9)))
    text = HEAD + "".join(f"u,{ours.format(i)},{i}\n" for i in range(1, 9))
    data = read(tmp_path / "x.csv", text, items=str(tmp_path / "items.csv"))
    assert data.notes[-1] == "0 of 8 items have a title"
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "only 0 of 8 items have a title" in record.getMessage()
    assert f"the interactions call items '{ours.format(1)}'" in record.getMessage()
    assert f"the items file '{theirs.format(1)}'" in record.getMessage()
    result = CliRunner().invoke(app, ["data", str(tmp_path / "x.csv"), "--items", str(tmp_path / "items.csv")])
    assert "0 of 8 items have a title" in result.stdout


def test_items_may_be_listed_twice_in_the_same_words(tmp_path):
    (tmp_path / "items.csv").write_text("item,title\na,Ant\na,Ant\n")
    assert read(tmp_path / "x.csv", HEAD + "u,a,1\n", items=str(tmp_path / "items.csv")).titles == ["Ant"]


@pytest.mark.parametrize(
    ("types", "roles"),
    [
        ({"user_id": "token", "session_id": "token", "item_id": "token", "timestamp": "float"}, ["user_id", "item_id"]),
        ({"item_id": "token", "session_id": "token", "date": "float"}, ["session_id", "item_id", "date"]),
        ({"a": "token", "b": "token", "c": "float"}, ["a", "b"]),
        ({"x": "float", "who": "token", "my_item": "token", "what": "token"}, ["who", "my_item"]),
    ],
)
def test_atomic_fields_have_roles_by_type(types, roles):
    found = atomic_roles(types)
    expected = dict(zip(("user", "item", "time"), roles, strict=False))
    assert {role: found.get(role) for role in expected} == expected


JSON_FAULTS = {
    "broken": (
        '{"user": "u"',
        r":1: must be a JSON object, got '{\"user\": \"u\"' \(Expecting ',' delimiter, character 13\); write one",
    ),
    "an array": (
        '[{"user": "u"}]',
        r":1: must be a JSON object, .*\(it is a list\); write one object per line, without",
    ),
    "a list": (
        '{"user": "u", "item": "a", "time": 1}\n{"user": [1, 2], "item": "a", "time": 1}\n',
        r":2, column 'user': must be a string, as in the first lines, got a list \(\[1, 2\]\); write all in one way",
    ),
    "all lists": (
        '{"user": [1], "item": "a", "time": 1}\n',
        "column 'user': must be strings or numbers, got lists; write",
    ),
    "objects": (
        '{"user": {}, "item": "a", "time": 1}\n',
        "column 'user': must be strings or numbers, got objects; write",
    ),
    "not a number": (
        '{"user": "u", "item": "a", "time": NaN}\n',
        ":1, column 'time': must be a finite .*, got NaN; write",
    ),
    "null": (
        '{"user": "u", "item": "a", "time": 1}\n{"user": "u", "item": "a", "time": null}\n',
        ":2, column 'time': must be a finite .*, got null; write",
    ),
    "late words": (
        '{"user": 1, "item": 1, "time": 1}\n' * 1100 + '{"user": "u"}\n',
        r":1101, column 'user': must be a whole number, as in the first lines, got a string \(\"u\"\); write all in",
    ),
    "deep": ('{"user": ' + "[" * 5000 + "]" * 5000 + "}", ":1: .* nests too deeply|needs a column|lists"),
    "a long row": ('{"user": "u"}\n{"user": "' + "u" * 2**21 + '"}\n', ":2: a row must have at most"),
    "no user": (
        '\n{"item": "a", "time": 3}\n',
        "needs a column 'user', has 'item', 'time'; first line: '{.*--columns user=",
    ),
    "no time in a row": (
        '{"user": "u", "item": "a", "time": 3}\n\n{"user": "u", "item": "a"}\n',
        ":3, column 'time': must be a finite number",
    ),
    "many names": ("".join(json.dumps({f"k{i}": 1, f"l{i}": 1}) + "\n" for i in range(600)), "at most 1000 names"),
}


@pytest.mark.parametrize("name", JSON_FAULTS)
def test_json_lines_that_are_broken_are_named(tmp_path, name):
    text, message = JSON_FAULTS[name]
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.jsonl", text)


json_rows = st.lists(
    st.fixed_dictionaries({"user": st.text(min_size=1), "item": st.integers(-9, 9), "time": st.floats(0, 1)}),
    min_size=1,
)


@given(json_rows, st.booleans())
def test_json_lines_are_read_as_the_standard_library_reads_them(tmp_path_factory, rows, ascii_alone):
    path = tmp_path_factory.mktemp("json") / "x.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=ascii_alone) + "\n" for row in rows)
    try:
        data = read(path, text, order="file")
    except DataError:
        assert any("\0" in row["user"] for row in rows) or "\\u" in text
        return
    assert [data.user_ids[user] for user in data.users_N] == [row["user"] for row in rows]
    assert [data.item_ids[item] for item in data.items_N] == [str(row["item"]) for row in rows]


def test_packed_files(tmp_path, monkeypatch):
    text = HEAD + "u,a,1\nu,,2\n"
    with pytest.raises(DataError, match=r"x.csv.gz:3, column 'item': must not be empty"):
        read(tmp_path / "x.csv.gz", gzip.compress(text.encode()))
    both = gzip.compress(HEAD.encode()) + gzip.compress(b"u,a,1\n")
    assert read(tmp_path / "x.csv.gz", both).name == "x"
    for broken in (both[:-9], b"x" * 100, gzip.compress(text.encode())[:20]):
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / "x.csv.gz", broken)
    monkeypatch.setattr(content, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="must unpack to at most 100 times its size"):
        read(tmp_path / "x.csv.gz", gzip.compress(b"0" * 100_000))


def test_parts_of_a_table(tmp_path):
    (tmp_path / "part-1.csv").write_text(HEAD + "u,a,1\nu,b,2\n")
    (tmp_path / "part-2.csv").write_text("item,user,time\nc,u,3\n,u,4\n")
    with pytest.raises(DataError, match=r"part-2.csv:3, column 'item': must not be empty"):
        load_dataset(tmp_path)
    (tmp_path / "part-2.csv").write_text("item,user,time\nc,u,3\n")
    assert load_dataset(tmp_path).item_ids == ["a", "b", "c"]
    (tmp_path / "part-3.csv").write_text("item,user,when\nc,u,3\n")
    with pytest.raises(DataError, match=r"part-3.csv: must have the columns of part-1.csv"):
        load_dataset(tmp_path)
    (tmp_path / "part-3.csv").rename(tmp_path / "part-3.tsv")
    with pytest.raises(DataError, match=r"must hold one NAME.inter"):
        load_dataset(tmp_path)


def split_of(data):
    """Items and parts of each user, in order."""
    rows = {}
    for user, item, part in zip(data.users_N, data.items_N, data.parts_N, strict=True):
        rows.setdefault(data.user_ids[user], []).append(f"{data.item_ids[item]}{part}")
    return {user: " ".join(each) for user, each in rows.items()}


def write_split(path, head, train, valid, test, suffix=".csv"):
    for name, rows in {"train": train, "valid": valid, "test": test}.items():
        (path / f"{name}{suffix}").write_text(head + "".join(f"{row}\n" for row in rows))


def test_rows_that_came_split(tmp_path):
    train, valid = ["u,a,5", "u,b,4", "v,a,1"], ["u,c,9", "u,d,3", "w,a,7", "w,b,6", "w,c,8"]
    write_split(tmp_path, HEAD, train, valid, ["v,b,2", "w,d,1", "x,a,1", "x,b,2"])
    data = load_dataset(tmp_path)
    assert split_of(data) == {"v": "a0 b2", "u": "b0 a0 d1 c1", "w": "b3 a3 c1 d2", "x": "a3 b2"}
    assert any("3 for training, 3 validation targets, 3 test targets, 3 context" in note for note in data.notes)
    assert load_dataset(tmp_path / "train.csv").parts_N is None
    (tmp_path / "valid.csv").unlink()
    with pytest.raises(DataError, match="must have a train, a valid and a test file, valid is missing"):
        load_dataset(tmp_path)


LISTS = "session_id:token\titem_id_list:token_seq\titem_id:token\n"


@pytest.mark.parametrize("turned", [False, True])
def test_lists_that_came_split(tmp_path, turned):
    """Prefixes of one another are merged, in whatever order, also where they hold the last three items alone."""
    items = [f"i{number}" for number in range(8)]
    rows = [f"u\t{' '.join(items[max(0, end - 3) : end])}\t{items[end]}" for end in range(1, 6)]
    rows = rows[::-1] if turned else rows
    write_split(
        *(tmp_path, LISTS, [*rows, "v\ta b\tc"], ["u\ti3 i4 i5\ti6", "v\ta b c d\te", "w\tx y\tz"]),
        *(["u\ti4 i5 i6\ti7", "w\tx y z\tq", "v\tq r\ts"], ".inter"),
    )
    data = load_dataset(tmp_path)
    assert split_of(data) == {
        "u": "i00 i10 i20 i30 i40 i50 i61 i72",
        "v": "a0 b0 c0 d3 e1",
        "v#2": "q3 r3 s2",
        "w": "x3 y3 z1 q2",
    }
    assert any("1 lists continue no other of their user" in note for note in data.notes)
    assert np.array_equal(data.timestamps_N, np.arange(len(data)))


@given(st.data())
def test_any_sequences_are_rebuilt_from_their_prefixes(tmp_path_factory, data):
    sequences = data.draw(
        st.lists(st.lists(st.integers(0, 99), min_size=4, max_size=9, unique=True), min_size=1, max_size=4)
    )
    longest = data.draw(st.integers(2, 9))
    train, valid, test = [], [], []
    for user, items in enumerate(sequences):
        for end in range(1, len(items)):
            row = f"u{user}\t{' '.join(map(str, items[max(0, end - longest) : end]))}\t{items[end]}"
            (test if end == len(items) - 1 else valid if end == len(items) - 2 else train).append(row)
    path = tmp_path_factory.mktemp("split")
    write_split(path, LISTS, data.draw(st.permutations(train)), valid, test, ".inter")
    expected = {
        f"u{user}": " ".join(f"{item}{max(0, place - len(items) + 3)}" for place, item in enumerate(items))
        for user, items in enumerate(sequences)
    }
    assert split_of(load_dataset(path)) == expected
