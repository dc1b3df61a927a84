"""Prepared data: what loading finds, in a bounded amount of memory; whole or absent; refused where it is not."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ur4rec.data import DataOptions, describe, interactions, load_dataset, make_split, sample_users, without_texts
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec.data.columns import map_columns, write_columns
from ur4rec.data.kept import hash_contents
from ur4rec.data.prepared import is_prepared, write_manifest
from ur4rec.data.preparing import prepare, prepare_files, read, spill
from ur4rec.data.preparing.names import Names
from ur4rec.data.reading import json_lines, parquet, text
from ur4rec.data.reading.tables import Table
from ur4rec.data.splits import with_validation
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.evaluation.popularity import popularity_ranks

ROWS = 900
BUCKET = 200


def drawn(seed=0, rows=ROWS):
    """Interactions with ties in time, rows that appear twice, rare items, and users of a single row."""
    rng = np.random.default_rng(seed)
    items = np.minimum(rng.zipf(1.4, rows), 60)
    frame = pd.DataFrame(
        {
            "user": [f"u{user}" for user in (70 * rng.random(rows) ** 2).astype(int)],
            "item": [f"i{item}" for item in items],
            "timestamp": rng.integers(0, 300, rows),
            "rating": rng.integers(1, 6, rows),
            "title": [f"Title, of {item}" for item in items],
        }
    )
    return pd.concat([frame, frame.iloc[:9], pd.DataFrame([["x", "y", 7, 5, "Lonely"]], columns=frame.columns)])


def as_text(separator, **settings):
    return lambda frame, path: frame.to_csv(path, sep=separator, index=False, **settings)


def as_atomic(frame, path):
    kinds = {"user": "token", "item": "token", "timestamp": "float", "rating": "float", "title": "token_seq"}
    frame.rename(columns={name: f"{name}:{kind}" for name, kind in kinds.items()}).to_csv(path, sep="\t", index=False)
    titles = frame.drop_duplicates("item")[["item", "title"]]
    titles.columns = ["item_id:token", "title:token_seq"]
    titles.to_csv(path.with_suffix(".item"), sep="\t", index=False)


FORMATS = {
    "x.csv": as_text(","),
    "x.csv.gz": as_text(","),
    "x.tsv": as_text("\t"),
    "x.txt": as_text("|"),
    "x.inter": as_atomic,
    "x.jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "x.jsonl.zst": lambda frame, path: (
        frame.to_json(path, orient="records", lines=True, compression=None)
        or path.write_bytes(pa.compress(path.read_bytes(), "zstd", asbytes=True))
    ),
    "x.parquet": lambda frame, path: frame.to_parquet(path, index=False),
}


@pytest.fixture
def small(monkeypatch):
    """Pieces and buckets of few rows, which are counted."""
    sizes = {"bucket": [], "piece": []}
    monkeypatch.setattr(prepare, "_SORTED_ROW", 2**20 // BUCKET)
    monkeypatch.setattr(prepare, "_PIECE_SHARE", 2**20)
    monkeypatch.setattr(read, "MIN_PIECE", 3000)
    monkeypatch.setattr(text, "MAX_ROW_BYTES", 4000)
    monkeypatch.setattr(json_lines, "_BLOCK", 4000)
    monkeypatch.setattr(parquet, "_ROWS", 100)
    number, fromfile = Names.number, np.fromfile

    def counted(self, table, name):
        sizes["piece"].append(len(table))
        return number(self, table, name)

    def sized(path, kind, *count):
        found = fromfile(path, kind, *count)
        sizes["bucket"] += [] if count else [len(found)]
        return found

    monkeypatch.setattr(Names, "number", counted)
    monkeypatch.setattr(spill.np, "fromfile", sized)
    return sizes


def prepared(path, **settings):
    """The prepared data of a file, beside it."""
    paths = path if isinstance(path, list) else [path]
    return prepare_files(paths, paths[0].parent / "out", memory=2**20, overwrite=True, **settings)


def arrays(batch):
    return [None if each is None else np.asarray(each).tolist() for each in batch]


def check_same(one, other, *, split="auto", repeats="auto"):
    """All that a run can see of the data is the same."""
    assert (one.hash, one.name, one.notes) == (other.hash, other.name, other.notes)
    for names in ("user_ids", "item_ids", "titles", "texts"):
        assert list(getattr(one, names)) == list(getattr(other, names))
    assert describe(one) == describe(other)
    assert one.sequences.flat.tolist() == other.sequences.flat.tolist()
    assert one.times_by_user.tolist() == other.times_by_user.tolist()
    assert one.times_by_user.dtype == other.times_by_user.dtype
    whole, mapped = make_split(one, split, repeats), make_split(other, "auto", repeats)
    assert mapped.known_hash == whole.hash == replace(mapped, known_hash=None).hash
    assert (whole.name, whole.repeats, whole.repeated_share) == (mapped.name, mapped.repeats, mapped.repeated_share)
    if mapped.name.startswith("global-temporal"):
        with pytest.raises(DataError, match="must not be prepared with a temporal split, got one; leave out --refit"):
            with_validation(other, mapped)
    else:
        refits = [with_validation(*each) for each in ((one, whole), (other, mapped))]
        assert refits[0].train.flat.tolist() == refits[1].train.flat.tolist()
        assert refits[0].hash == refits[1].hash
    train = [TrainBatches(each.train, one.num_items, max_seq_len=5, batch_size=8, seed=3) for each in (whole, mapped)]
    assert [arrays(batch) for batch in train[0]] == [arrays(batch) for batch in train[1]]
    for part in ("validation", "test"):
        targets = [getattr(each, part) for each in (whole, mapped)]
        assert [each.num_unfed for each in targets] == [targets[0].num_unfed] * 2
        assert [each.is_repeated.tolist() for each in targets] == [targets[0].is_repeated.tolist()] * 2
        probes = [each.sample(20) for each in targets]
        batches = [EvaluationBatches(each, one.num_items, max_seq_len=5, batch_size=8) for each in probes]
        assert [arrays(batch) for batch in batches[0]] == [arrays(batch) for batch in batches[1]]
        ranks = [popularity_ranks(whole.train, each, one.num_items).tolist() for each in targets]
        assert ranks[0] == ranks[1]


@pytest.mark.parametrize("split", ["leave-one-out", "temporal"])
@pytest.mark.parametrize("name", FORMATS)
def test_it_is_what_loading_finds(tmp_path, small, name, split):
    path = tmp_path / name
    FORMATS[name](drawn(), path)
    check_same(load_dataset(path), prepared(path, split=split), split=split)
    assert len(small["bucket"]) > 2 * (ROWS // BUCKET)
    assert len(small["piece"]) > 6
    assert max(small["bucket"]) <= 2 * BUCKET
    assert sorted(each.name.split(".")[0] for each in tmp_path.iterdir()) in (["out", "x"], ["out", "x", "x"])


OPTIONS = {
    "repeats excluded": ({}, {"repeats": "exclude"}),
    "k-core": ({"k_core": 6}, {}),
    "deduplicated": ({"deduplicate": True}, {}),
    "filtered": ({"min_rating": 3, "where": ("item=i1", "item=i2", "item=i3", "item=i5")}, {}),
    "in the order of the file": ({"order": "file"}, {}),
    "times in a unit": ({"time_format": "ms"}, {}),
    "texts": ({"texts": ("rating",)}, {}),
    "all at once": ({"k_core": 3, "deduplicate": True, "min_rating": 2}, {"repeats": "exclude"}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_do_what_they_do_when_it_is_read_whole(tmp_path, small, name):
    given, protocol = OPTIONS[name]
    path, options = tmp_path / "x.csv", DataOptions(**given)
    drawn().to_csv(path, index=False)
    one = load_dataset(path, options=options)
    other = prepared(path, options=options, **protocol)
    check_same(one, other, **protocol)
    assert one.num_duplicates == other.num_duplicates


def test_rare_items_are_dropped_after_duplicates(tmp_path, small):
    path, options = tmp_path / "x.csv", DataOptions(deduplicate=True)
    drawn().to_csv(path, index=False)
    one = load_dataset(path, options=options, min_item_interactions=4)
    check_same(one, prepared(path, options=options, min_item_interactions=4))
    assert one.num_items < load_dataset(path).num_items
    check_same(one, load_dataset(tmp_path / "out", min_item_interactions=4))
    with pytest.raises(ConfigurationError, match="must keep its min_item_interactions=4, got 5"):
        load_dataset(tmp_path / "out", min_item_interactions=5)


def test_data_that_came_split_stays_so(tmp_path, small):
    folder = tmp_path / "shop"
    folder.mkdir()
    rng, frame = np.random.default_rng(1), drawn()
    parts = np.sort(rng.choice(["train", "valid", "test"], len(frame), p=[0.6, 0.2, 0.2]))
    for part in ("train", "valid", "test"):
        frame[parts == part].sample(frac=1, random_state=0).to_csv(folder / f"{part}.csv", index=False)
    check_same(load_dataset(folder), prepared(folder))
    with pytest.raises(ConfigurationError, match="--k-core must be left out while data that came split is prepared"):
        prepared(folder, options=DataOptions(k_core=2))
    with pytest.raises(DataError, match="data that came split must keep its split, got temporal"):
        prepared(folder, split="temporal")


def test_several_files_are_parts_of_one_table(tmp_path, small):
    folder = tmp_path / "parts"
    folder.mkdir()
    paths = [folder / f"{number}.csv" for number in range(3)]
    for number, path in enumerate(paths):
        drawn(number, 300).to_csv(path, index=False)
    one, other = load_dataset(folder), prepare_files(paths, tmp_path / "out", memory=2**20)
    assert (one.hash, make_split(one).hash, one.notes) == (other.hash, make_split(other).hash, other.notes)
    paths[2].write_text("user,item,when\nu,i,1\n")
    with pytest.raises(DataError, match=r"2\.csv: must have the columns of 0\.csv"):
        prepare_files(paths, tmp_path / "again", memory=2**20)


def test_numbers_are_names_as_they_are_when_it_is_read_whole(tmp_path, small):
    frame = pd.DataFrame({"user": [1.0, 2.0, 3e16] * 4, "item": [5, 7, 9] * 4, "timestamp": np.arange(12) / 2})
    frame.to_parquet(tmp_path / "x.parquet")
    check_same(load_dataset(tmp_path / "x.parquet"), prepared(tmp_path / "x.parquet"))
    names, halves = Names(), (pa.array([1.0, 2.0]), pa.array([1.5]))
    names.number(Table(tmp_path, {"user": halves[0]}, ()), "user")
    with pytest.raises(DataError, match="names must be all whole numbers or none"):
        names.number(Table(tmp_path, {"user": halves[1]}, ()), "user")


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(interactions, "CHUNK", 2**14)
    peaks = []
    for rows in (30_000, 240_000):
        rng = np.random.default_rng(0)
        users, items, times = (rng.integers(0, high, rows) for high in (3_000, 500, 10**9))
        path = tmp_path / "x.parquet"
        pd.DataFrame({"user": users, "item": items, "timestamp": times}).to_parquet(path)
        tracemalloc.start()  # what NumPy and Python hold; pieces of Arrow's are as small
        found = prepare_files([path], tmp_path / f"out-{rows}", memory=2**21)
        laid_out = 16 * rows  # zeros for an Arrow file, which take no memory as they are never written to
        peaks.append(tracemalloc.get_traced_memory()[1] - laid_out)
        tracemalloc.stop()
        assert len(found) == rows
    assert peaks[1] < 1.5 * peaks[0]


FAULTS = {
    "a field too many": ("x.csv", "u,i,1,9\n", r"x\.csv:802, column 3: every row must have 3 fields, got 4"),
    "no user": ("x.csv", ",i,1\n", r"x\.csv:802, column 'user': must not be empty"),
    "no time": ("x.csv", "u,i,soon\n", r"x\.csv:802, column 'timestamp': must be a finite number or an ISO 8601 date"),
    "another kind of time": ("x.csv", "u,i,2014-01-01\n", r"x\.csv:802, column 'timestamp': must be a number"),
    "another unit of time": ("x.csv", "u,i,1600000000000\n" * 300, r"x\.csv:802, .* must be epoch seconds"),
    "no UTF-8": ("x.csv", b"\xff,i,1\n", r"x\.csv:802, byte 1: must be utf-8 text"),
    "a NUL": ("x.csv", "u\0,i,1\n", r"x\.csv:802, byte 2: must be utf-8 text, got the byte 0x00"),
    "a quote": ("x.csv", '"u,i,1\n', r"x\.csv:802: cannot be read: unexpected end of data; look for an unclosed quote"),
    "a type": (
        "x.jsonl",
        '{"user": 3, "item": "i", "timestamp": 1}\n',
        r"x\.jsonl:801, column 'user': must be a string",
    ),
    "no object": ("x.jsonl", "[1]\n", r"x\.jsonl:801: must be a JSON object"),
    "no name": ("x.jsonl", '{"item": "i", "timestamp": 1}\n', r"x\.jsonl:801, column 'user': must not be empty"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_say_where_they_are_and_nothing_is_left(tmp_path, small, name):
    file, fault, message = FAULTS[name]
    rows = [{"user": f"u{row % 9}", "item": f"i{row % 7}", "timestamp": 1_500_000_000 + row} for row in range(800)]
    if file == "x.csv":
        good = "user,item,timestamp\n" + "".join(f"{row['user']},{row['item']},{row['timestamp']}\n" for row in rows)
    else:
        good = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / file).write_bytes(good.encode() + (fault if isinstance(fault, bytes) else fault.encode()))
    with pytest.raises(DataError, match=message) as caught:
        prepared(tmp_path / file)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == [file]


def test_a_row_of_parquet_is_named(tmp_path, small):
    frame = drawn()
    frame["user"] = frame["user"].where(np.arange(len(frame)) != 700)
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, row 701, column 'user': must not be empty"):
        prepared(tmp_path / "x.parquet")


UNSTREAMED = {
    "ratings.dat": ("1::2::3::4\n", {}, "it is text with '::' between the fields; write it so"),
    "x.csv": ("user,item,timestamp\nu,i,1\n", {"encoding": "latin-1"}, "it is text in iso8859-1|in latin-1; write it"),
    "y.csv": ("user,item,timestamp,item_id_list\nu,i,1,a b\n", {}, "got one that has column 'item_id_list'"),
    "z.csv": ("user,item,timestamp\nu,i,1\n", {"k_core": 9}, "no interaction is left of 1 with --k-core 9"),
    "w.csv": ("user,item,timestamp\nu,i,1\n", {"where": ("item=j",)}, "must be 'j' somewhere, has 'i'; give another"),
    "v.csv": ("user,item,timestamp\nu,i,1\n", {}, "leave-one-out needs a user with at least 3 interactions"),
}


@pytest.mark.parametrize("name", UNSTREAMED)
def test_what_cannot_be_had_is_refused_with_the_remedy(tmp_path, name):
    content, options, message = UNSTREAMED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / name, options=DataOptions(**options))


@pytest.fixture
def shop(tmp_path):
    """Prepared data of a small file."""
    drawn().to_csv(tmp_path / "x.csv", index=False)
    return prepared(tmp_path / "x.csv").prepared.path


def test_an_interrupted_preparation_leaves_what_was_there(tmp_path, shop, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    before = load_dataset(shop).hash
    drawn(1).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(ConfigurationError, match="give --overwrite to replace it"):
        prepare_files([tmp_path / "x.csv"], shop)
    monkeypatch.setattr(prepare, "write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "x.csv")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "x.csv"]
    assert load_dataset(shop).hash == before
    with pytest.raises(
        ConfigurationError, match=r"must be a directory that does not exist, got .*x\.csv; choose another"
    ):
        prepare_files([tmp_path / "x.csv"], tmp_path / "x.csv", overwrite=True)


def test_a_disk_that_is_too_small_is_said_before_it_is_full(tmp_path, monkeypatch):
    drawn().to_csv(tmp_path / "x.csv", index=False)
    monkeypatch.setattr(prepare, "_DISK_ROW", 10**15)
    with pytest.raises(ConfigurationError, match=r"must be on a disk with .* GB free while data is prepared, got"):
        prepared(tmp_path / "x.csv")


def test_damage_is_found(shop):
    assert is_prepared(shop)
    known = load_dataset(shop)
    known.prepared.check()
    content = bytearray((shop / "interactions.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (shop / "interactions.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"interactions\.arrow: must be as it was prepared, its checksum differs"):
        load_dataset(shop).prepared.check()
    (shop / "interactions.arrow").write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"interactions\.arrow must have .* bytes, got"):
        load_dataset(shop)
    (shop / "interactions.arrow").write_bytes(content)
    (shop / "users.arrow").unlink()
    manifest = (shop / "manifest.json").read_text()
    (shop / "manifest.json").write_text(manifest.replace('"num_duplicates": ', '"num_duplicates": 1'))
    with pytest.raises(DataError, match="its checksum does not match"):
        load_dataset(shop)
    (shop / "manifest.json").write_text(manifest.replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="version 1, got 2"):
        load_dataset(shop)
    (shop / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=r"users\.arrow is missing"):
        load_dataset(shop)


def forged(shop, name, column, change):
    """Change a column of a file, and what the manifest says of it."""
    columns = {each: values.copy() for each, values in map_columns(shop / name, {}).items()}
    values = columns[column]
    change(values)
    write_columns(shop / name, columns)
    manifest = json.loads((shop / "manifest.json").read_text())
    facts = {name: manifest[name] for name in manifest if name not in ("format", "version", "files", "sha256")}
    (shop / "manifest.json").unlink()
    write_manifest(shop, facts, lambda share: None)


FORGED = {
    "offsets": ("offsets.arrow", "offset", lambda values: values.__setitem__(3, 10**6), "offsets must ascend from 0"),
    "training": ("train.arrow", "end", lambda values: values.__iadd__(90), "must end within those of its user"),
    "users": ("test.arrow", "user", lambda values: values.__setitem__(-1, -1), "users of targets must ascend"),
    "too many users": ("test.arrow", "user", lambda values: values.__setitem__(-1, 10**6), "is damaged .IndexError"),
    "places": ("test.arrow", "end", lambda values: values.__setitem__(0, 10**6), "must be among the interactions of"),
    "targets": ("validation.arrow", "item", lambda values: values.__setitem__(0, -7), r"must be in 0 \.\. \d+, got -7"),
    "items": (
        "interactions.arrow",
        "item",
        lambda values: values.__setitem__(5, 999),
        r"must be in 0 \.\. \d+, got 999",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_numbers_that_point_nowhere_are_refused(shop, name):
    file, column, change, message = FORGED[name]
    forged(shop, file, column, change)
    with pytest.raises(DataError, match=message):
        load_dataset(shop).prepared.check()


def test_what_was_decided_when_it_was_prepared_stays(shop):
    with pytest.raises(DataError, match="must be split as it was prepared, by leave-one-out, got temporal"):
        make_split(load_dataset(shop), "temporal")
    with pytest.raises(ConfigurationError, match="options of data must be given when it is prepared, got k_core"):
        load_dataset(shop, options=DataOptions(k_core=2))


def test_nothing_is_copied(shop):
    mapped = load_dataset(shop)
    split = make_split(mapped)
    for sequences in (mapped.sequences, split.train, split.test.histories, split.validation.seen):
        assert np.shares_memory(sequences.items_N, mapped.items_N) or not len(sequences.items_N)
    assert not mapped.items_N.flags.owndata
    assert not mapped.items_N.flags.writeable


def test_samples_are_ordinary_data(tmp_path, shop):
    one, other = load_dataset(tmp_path / "x.csv"), load_dataset(shop)
    samples = [sample_users(each, 10, seed=2) for each in (one, other)]
    assert [each.prepared for each in samples] == [None, None]
    assert [row.tolist() for row in samples[0].sequences] == [row.tolist() for row in samples[1].sequences]
    assert (np.diff(samples[1].timestamps_N) >= 0).all()
    assert set(without_texts(other).texts) == {"an item"}
    assert hash_contents(without_texts(other)) != hash_contents(other)
