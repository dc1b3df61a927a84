"""The cases: each damages one thing of what `tests.hostile.good` makes, in the directory that holds all of it.

A case is what it is called, the kind of file that it damages (so which commands read it), how, and a part of the line
that says so.
"""

import csv
import gzip
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from tests.hostile.good import EVENTS, TRAIN
from ur4rec.text.encoders import TextEncoder
from ur4rec.training.checkpoint import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, read_checkpoint, write_checkpoint

Change = Callable[[Path], object]


class Case(NamedTuple):
    """One thing that is wrong."""

    kind: str
    """The kind of file; see `COMMANDS`."""
    name: str
    damage: Change
    """Does the damage, given the directory of good things."""
    message: str = ""
    """A part of what is said."""

    @property
    def label(self):
        return f"{self.kind}: {self.name}"


def on(run, *commands):
    return [("ur4rec", *(each.format(run) for each in words)) for words in commands]


RESUME = ("train", "--resume", "{}", "--quiet")
EVALUATE = ("evaluate", "{}")
RECOMMEND = ("recommend", "{}", "--user", "u1")
CONVERT = ("convert", "{}", "--to", "torch", "--out", "converted")
TRAIN_NEW = ("ur4rec", "train", *TRAIN, "--out", "new")
REPORT = ("ur4rec", "compare", "study", "--report-only")
CONTINUE = ("ur4rec", "compare", "study", "--quiet")


def of_data(path):
    return [
        ("ur4rec", "data", path),
        tuple(path if word == "data" else word for word in TRAIN_NEW),
        ("ur4rec", "compare", "--dataset", path, "--updates", "8", "--out", "new", "--quiet"),
    ]


COMMANDS = {
    "config": [*on("run", RESUME, EVALUATE, RECOMMEND, CONVERT), *on("jax", RESUME)],
    "dataset": on("run", RESUME, EVALUATE, RECOMMEND),
    "device": on("run", RESUME, EVALUATE),
    "checkpoint": [*on("run", RESUME, EVALUATE, RECOMMEND, CONVERT), *on("jax", EVALUATE)],
    "training state": on("run", RESUME),
    "decisions": [*on("run", RESUME), ("alternator", "replay", "run")],
    "payoffs": on("run", RESUME),
    "page": [("tests.hostile.good:page", "run")],
    "data": of_data("data"),
    "encoder": on("run", (*RECOMMEND, "--items", "new.csv")),
    "later": on("run", (*RECOMMEND, "--interactions", "later.csv", "--items", "new.csv", "--exclude", "ids.jsonl")),
    "kept": on("run", RESUME, EVALUATE, RECOMMEND),
    "parquet": of_data("plays.parquet"),
    "packed text": of_data("plays.csv.gz"),
    "zstd": of_data("plays.csv.zst"),
    "JSON lines": of_data("plays.jsonl"),
    "split": of_data("split"),
    "texts": [(*TRAIN_NEW, "--user-texts", "texts.json")],
    "study": [REPORT, CONTINUE],
    "packed": [tuple("packed" if word == "study" else word for word in words) for words in (REPORT, CONTINUE)],
    "losses": [
        ("alternator", "replay", "losses.csv"),
        ("alternator", "replay", "losses.csv", "--rule", "plateau", "--sweep", "window=3,5"),
    ],
    "events": [("alternator", "replay", "events"), ("alternator", "replay", EVENTS)],
}
"""The commands that read a kind of file."""

# What is written in place of something good.

DEEP = b"[" * 100_000
DIGITS = "9" * 5000


def whole(path, content):
    return lambda root: (root / path).write_bytes(content)


def emptied(path):
    return whole(path, b"")


def cut(path, part=0.5):
    return lambda root: os.truncate(root / path, int((root / path).stat().st_size * part))


def replaced(path, before, after):
    def change(root):
        content = (root / path).read_bytes()
        assert before in content
        (root / path).write_bytes(content.replace(before, after))

    return change


def holding(content, place, value):
    """A JSON document with another value at a place, a sequence of keys; ``...`` removes what is there."""
    if not place:
        return value
    first, *rest = place
    changed = list(content) if isinstance(content, list) else dict(content)
    if not rest and value is ...:
        del changed[first]
    else:
        inner = changed.get(first, {}) if isinstance(changed, dict) else changed[first]
        changed[first] = holding(inner, rest, value)
    return changed


def in_json(path, place, value):
    """Another value in a JSON document. ``{}`` in the path is either run."""

    def change(root):
        for run in ("run", "jax") if "{}" in path else ("",):
            file = root / path.format(run)
            file.write_text(json.dumps(holding(json.loads(file.read_text()), place, value)))

    return change


def config(*place, to):
    return in_json("{}/config.json", place, to)


def each_run(change):
    return lambda root: [change(root / run) for run in ("run", "jax")]


def each_checkpoint(change):
    """The change of the files and the state of every checkpoint, with the right checksums."""

    def damage(root):
        for run in ("run", "jax"):
            for path in sorted((root / run / "checkpoint").glob("step-*")):
                arrays, state = read_checkpoint(path)
                arrays, state = change(dict(arrays), state)
                state.pop("sha256", None)
                write_checkpoint(path, arrays, state)

    return damage


def state(*place, to):
    """Another value in the state of every checkpoint, with the right checksum."""
    return each_checkpoint(lambda arrays, state: (arrays, holding(state, place, to)))


def arrays(name, change):
    """Another file of arrays in every checkpoint, with the right checksum."""
    return each_checkpoint(lambda arrays, state: ({**arrays, name: change(arrays[name])}, state))


def header(change):
    """A safetensors file with a changed header."""

    def apply(content):
        (length,) = struct.unpack("<Q", content[:8])
        changed = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
        return struct.pack("<Q", len(changed)) + changed + content[8 + length :]

    return apply


def first_tensor(**values):
    def change(content):
        name = next(name for name in content if name != "__metadata__")
        return {**content, name: {**content[name], **values}}

    return header(change)


def overlapping(content):
    names = [name for name in content if name != "__metadata__"]
    return {**content, names[1]: {**content[names[1]], "data_offsets": content[names[0]]["data_offsets"]}}


def checkpoint_file(name, content):
    """The content of a file of every checkpoint, whatever the checksums say."""

    def damage(root):
        for path in root.glob(f"*/checkpoint/step-*/{name}"):
            path.write_bytes(content)

    return damage


def data_file(content, name="interactions"):
    return whole(f"data/{name}.csv", content)


def parquet(**columns):
    return lambda root: pq.write_table(pa.table(columns), root / "plays.parquet")


def with_parquet_footer(num_rows):
    """The number of rows that the footer gives, with the same number of bytes: a varint of Thrift."""

    def change(root):
        path = root / "plays.parquet"
        content = path.read_bytes()
        zigzag, varint = 140 * 2, b""
        while zigzag >= 128:
            varint, zigzag = varint + bytes([zigzag & 127 | 128]), zigzag >> 7
        varint += bytes([zigzag])
        zigzag, huge = num_rows * 2, b""
        while zigzag >= 128:
            huge, zigzag = huge + bytes([zigzag & 127 | 128]), zigzag >> 7
        huge += bytes([zigzag])
        (length,) = struct.unpack("<I", content[-8:-4])
        footer = content[-8 - length : -8]
        assert varint in footer
        footer = footer.replace(b"\x16" + varint, b"\x16" + huge)
        path.write_bytes(content[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1")

    return change


def parquet_bomb(root):
    """Eighty million equal rows: some kilobytes."""
    rows = pa.array(np.zeros(4_000_000, np.int64))
    schema = pa.schema([(name, pa.int64()) for name in ("user", "item", "timestamp")])
    with pq.ParquetWriter(root / "plays.parquet", schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(pa.table([rows] * 3, schema=schema))


def packed_text(content, times=1):
    return lambda root: (root / "plays.csv.gz").write_bytes(gzip.compress(content * times, 1))


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


def event(length, content=b""):
    """A record of an event file: the length, its checksum, the content, its checksum."""
    return struct.pack("<Q", length) + b"\0" * 4 + content + b"\0" * 4


def packed(change):
    """A packed study whose table is changed."""

    def damage(root):
        path = root / "packed/runs.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return damage


def column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


def npz(change):
    def damage(root):
        for path in (root / "study/runs").rglob("*.npz"):
            with np.load(path) as kept:
                np.savez_compressed(path, **change(dict(kept)))

    return damage


def npz_header(root):
    """Arrays whose header promises 2**50 numbers."""
    for path in (root / "study/runs").rglob("*.npz"):
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, buffer.getvalue())


def npz_bomb(root):
    for path in (root / "study/runs").rglob("*.npz"):
        np.savez_compressed(path, **dict.fromkeys(("test_ranks_PT", "test_nll_PT"), np.zeros((2, 80_000_000))))


def run_report(*place, to, arm="parity"):
    return in_json(f"study/runs/{arm}/updates-seed-0.json", place, to)


def logs(name, change):
    """A log of every run, which the checkpoint's checksum of it fits."""
    import hashlib

    which = {"decisions.csv": 0, "payoffs.csv": 1}[name]

    def damage(root):
        for run in ("run", "jax"):
            path = root / run / name
            table = list(csv.reader(io.StringIO(path.read_text())))
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(change(table))
            path.write_text(text.getvalue())
            digest = hashlib.sha256(text.getvalue().encode()).hexdigest()
            for checkpoint in sorted((root / run / "checkpoint").glob("step-*")):
                found, kept = read_checkpoint(checkpoint)
                kept.pop("sha256")
                kept["metrics"]["logs"][which]["sha256"] = digest
                write_checkpoint(checkpoint, found, kept)

    return damage


def cell(row, column, value):
    return lambda table: [
        [value if (r, c) == (row, column) else each for c, each in enumerate(line)] for r, line in enumerate(table)
    ]


def without_copy(change):
    """A change of the runs, which no longer keep their data: they read the dataset."""
    return lambda root: [change(root), *(shutil.rmtree(root / run / "data") for run in ("run", "jax"))]


def kept(name, change):
    """Another table in what the run keeps of its data."""

    def damage(root):
        path = root / "run/data" / f"{name}.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return damage


def _folder_for(file):
    file.unlink()
    file.mkdir()


JSON_FILES = {
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "nothing": b"",
    "deep nesting": DEEP,
    "deep objects": b'{"a":' * 100_000,
    "bytes": b"\xff\xfe\0",
    "half an object": b'{"model": ',
    "a long number": b'{"model": ' + DIGITS.encode() + b"}",
    "an empty object": b"{}",
}
CONFIG = [
    *(
        Case(
            "config", name, each_run(lambda run, content=content: (run / "config.json").write_bytes(content)), "config"
        )
        for name, content in JSON_FILES.items()
    ),
    Case("config", "ten million blocks", config("model", "sasrec_num_blocks", to=10**7), "sasrec_num_blocks"),
    Case("config", "a few more blocks", config("model", "sasrec_num_blocks", to=64), "sasrec_num_blocks"),
    Case("config", "a wide model", config("model", "sasrec_hidden_dim", to=2**20), "sasrec_hidden_dim"),
    Case("config", "wide texts", config("model", "text_embedding_dim", to=2**28), "text_embedding_dim"),
    Case("config", "a long history", config("model", "max_seq_len", to=2**28), "max_seq_len"),
    Case("config", "a protocol that is none", config("repeats", to="sometimes"), "repeats"),
    Case("config", "repeats of another kind", config("repeats", to=["allow"]), "repeats"),
    Case("config", "a split that is none", config("split", to="random" * 10**5), "split"),
    Case("config", "options of data that are none", config("data", to={"deduplicate": "yes"}), "deduplicate"),
    Case("config", "a long rate", config("trainer", "sasrec_lr", to=10**400), "sasrec_lr"),
    Case("config", "a long schedule", config("schedule", to=f"{DIGITS}:1"), "schedule"),
    Case("config", "a deep schedule", config("schedule", to="sequence:" + "(" * 50_000), "sequence"),
    Case("config", "unhashable keys", config("schedule", to="plateau,threshold={[]: 1}"), "threshold"),
    Case("config", "data in a list", config("data", to=["user"]), "data"),
    Case("config", "an unknown option of data", config("data", to={"speed": 1}), "speed"),
    Case("config", "a column of numbers", config("data", to={"user": 3}), "user"),
    Case("config", "a long separator", config("data", to={"separator": DIGITS}), "separator"),
    Case("config", "a slow encoding", config("data", to={"encoding": "punycode"}), "encoding"),
    Case("config", "a long format of times", config("data", to={"time_format": "%d" * 10**5}), "time_format"),
    Case("config", "a long k-core", config("data", to={"k_core": 10**400}), "k_core"),
    Case("config", "columns in an object", config("data", to={"texts": {"a": 1}}), "texts"),
    Case("config", "rows of numbers", config("data", to={"where": [1]}), "where"),
    Case("config", "no settings", config("model", to=None), "model"),
    Case("config", "settings in a list", config("model", to=[["sasrec_num_blocks", 2]]), "model"),
    Case("config", "an unknown setting", config("modle", to={}), "modle"),
    Case("config", "a backend in a list", config("backend", to=["torch"]), "backend"),
    Case("device", "another device", config("device", to="cuda:9e9"), "device"),
    Case("dataset", "another data set", without_copy(config("dataset", to="\udc80")), "dataset"),
]
# What only training reads of a configuration.
RESUMED = [
    Case(
        "training state",
        "a large memory bank",
        config("trainer", to={"use_memory_bank": True, "memory_bank_size": 10**12}),
        "memory_bank_size",
    ),
    Case("training state", "a large batch", config("batch_size", to=10**12), "batch_size"),
    Case("training state", "a large seed", config("seed", to=10**30), "seed"),
    Case("training state", "many epochs", config("epochs", "joint_finetune", to=10**9), "epochs"),
    Case("training state", "epochs in words", config("epochs", "joint_finetune", to="many"), "epochs"),
    Case("training state", "patience in words", config("early_stopping", to="long"), "early_stopping"),
    Case("training state", "never evaluated", config("eval_every", to=0), "eval_every"),
    Case("training state", "no user evaluated", config("eval_users", to=0), "eval_users"),
    Case("training state", "no counters", state("progress", to=...)),
    Case("training state", "counters in a list", state("progress", to=[])),
    Case("training state", "an unknown stage", state("progress", "stage", to="warmup")),
    Case("training state", "a stage in a list", state("progress", "stage", to=["end_to_end"])),
    Case("training state", "a step in words", state("progress", "step", to="many")),
    Case("training state", "a negative step", state("progress", "step", to=-5)),
    Case("training state", "no schedule", state("schedule", to=None)),
    Case("training state", "a schedule of nothing", state("schedule", to={})),
    Case("training state", "deep losses", state("schedule", "alternator", "counts", "rings", to=[[[[]]]])),
    Case("training state", "losses in words", state("schedule", "alternator", "counts", "rings", to="no")),
    Case("training state", "no metrics", state("metrics", to=[])),
    Case("training state", "no epochs", state("metrics", "epochs", to=7)),
    Case("training state", "epochs of nothing", state("metrics", "epochs", to=[{}])),
    Case("training state", "an epoch of no stage", state("metrics", "epochs", 0, "stage", to="warmup")),
    Case("training state", "an epoch without validation", state("metrics", "epochs", 0, "validation", to={})),
    Case("training state", "an unknown scorer", state("metrics", "epochs", 0, "validation", "cosmic", to={})),
    Case("training state", "a result of no epoch", state("metrics", "results", "popularity", "epoch", to=10**9)),
    Case("training state", "results of nothing", state("metrics", "results", to={"popularity": {}})),
    Case("training state", "ranks in words", state("metrics", "results", "popularity", "test_ranks", to=["first"])),
    Case("training state", "no logs", state("metrics", "logs", to=[])),
    Case("training state", "rows in words", state("metrics", "logs", 0, "num_records", to="all")),
    Case("training state", "negative rows", state("metrics", "logs", 0, "num_records", to=-3)),
    Case("training state", "totals of nothing", state("progress", "epoch_totals", to={})),
    Case("training state", "totals in a list", state("progress", "epoch_totals", to=[1])),
    Case("training state", "another trainer", state("trainer", to=7)),
    Case("training state", "no moments", arrays(OPTIMIZER_FILE, header(lambda content: {}))),
    Case("training state", "moments of another shape", arrays(OPTIMIZER_FILE, first_tensor(shape=[1, 8], dtype="F32"))),
    Case("training state", "a huge moment", arrays(OPTIMIZER_FILE, first_tensor(shape=[2**40]))),
]
CHECKPOINT = [
    *(
        Case("checkpoint", name, checkpoint_file(STATE_FILE, content), STATE_FILE)
        for name, content in JSON_FILES.items()
    ),
    Case("checkpoint", "no model", state("model", to=...)),
    Case("checkpoint", "a model in a list", state("model", to=[])),
    Case("checkpoint", "an unknown setting of the model", state("model", "depth", to=1)),
    Case("checkpoint", "ten million blocks", state("model", "sasrec_num_blocks", to=10**7)),
    Case("checkpoint", "ten million items", state("model", "num_items", to=10**7)),
    Case("checkpoint", "users that are not there", state("model", "num_users", to=3)),
    Case("checkpoint", "a model in words", state("model", "sasrec_hidden_dim", to="wide")),
    Case(
        "checkpoint",
        "checksums in a list",
        checkpoint_file(STATE_FILE, b'{"version": 3, "checksum": "", "sha256": []}'),
    ),
    Case("checkpoint", "a huge tensor", arrays(MODEL_FILE, first_tensor(shape=[2**62, 4]))),
    Case("checkpoint", "a tensor of negative size", arrays(MODEL_FILE, first_tensor(shape=[-1]))),
    Case("checkpoint", "overlapping tensors", arrays(MODEL_FILE, header(overlapping))),
    Case("checkpoint", "an unknown type", arrays(MODEL_FILE, first_tensor(dtype="F13"))),
    Case("checkpoint", "another type", arrays(MODEL_FILE, first_tensor(dtype="I32"))),
    Case("checkpoint", "bfloat16", arrays(MODEL_FILE, lambda content: content.replace(b'"F32"', b'"U32"'))),
    Case(
        "checkpoint",
        "a header of 2**60 bytes",
        arrays(MODEL_FILE, lambda content: struct.pack("<Q", 2**60) + content[8:]),
    ),
    Case("checkpoint", "a header in a list", arrays(MODEL_FILE, header(lambda content: []))),
    Case("checkpoint", "half a file", arrays(MODEL_FILE, lambda content: content[: len(content) // 2])),
    Case("checkpoint", "no tensors", arrays(MODEL_FILE, header(lambda content: {}))),
    Case("checkpoint", "no file", arrays(MODEL_FILE, lambda content: b"")),
    Case(
        "checkpoint",
        "one name changed",
        arrays(MODEL_FILE, lambda content: content.replace(b"sasrec.item", b"sasrec.iten")),
    ),
    Case(
        "checkpoint",
        "a pointer to elsewhere",
        each_run(lambda run: [(run / "checkpoint" / name).write_text("../..") for name in ("BEST", "LATEST")]),
    ),
    Case(
        "checkpoint",
        "a long pointer",
        each_run(lambda run: [(run / "checkpoint" / name).write_text("step-" + DIGITS) for name in ("BEST", "LATEST")]),
    ),
    Case(
        "checkpoint",
        "no checkpoint",
        each_run(lambda run: [(run / "checkpoint" / name).write_bytes(b"") for name in ("BEST", "LATEST")]),
    ),
]
LOGS = [
    Case("decisions", "a step in words", logs("decisions.csv", cell(3, 0, "third"))),
    Case("decisions", "a long step", logs("decisions.csv", cell(3, 0, DIGITS))),
    Case("decisions", "a loss in words", logs("decisions.csv", cell(3, 8, "low"))),
    Case("decisions", "another header", logs("decisions.csv", cell(0, 0, "number"))),
    Case("decisions", "a short row", logs("decisions.csv", lambda table: [*table[:3], table[3][:2], *table[4:]])),
    Case("decisions", "a long row", logs("decisions.csv", lambda table: [*table[:3], table[3] + ["1"], *table[4:]])),
    Case(
        "decisions",
        "an unclosed quote",
        each_run(lambda run: (run / "decisions.csv").write_text('step,stage,active,next,reason\n1,"')),
    ),
    Case("decisions", "bytes", each_run(lambda run: (run / "decisions.csv").write_bytes(b"\xff\0" * 20))),
    Case(
        "decisions", "a long field", each_run(lambda run: (run / "decisions.csv").write_bytes(b"step," + b"x" * 10**6))
    ),
    Case("payoffs", "a payoff in words", logs("payoffs.csv", cell(1, 3, "high"))),
    Case("payoffs", "a short row", logs("payoffs.csv", lambda table: [table[0], table[1][:2], *table[2:]])),
    Case("payoffs", "an unknown module", logs("payoffs.csv", cell(1, 2, "critic"))),
    Case("payoffs", "bytes", each_run(lambda run: (run / "payoffs.csv").write_bytes(b"\xff\0" * 20))),
]
PAGE = [
    *(Case("page", f"metrics: {name}", whole("run/metrics.json", content)) for name, content in JSON_FILES.items()),
    Case("page", "no metrics", lambda root: (root / "run/metrics.json").unlink()),
    Case("page", "results as a list", in_json("run/metrics.json", ["final"], [])),
    Case("page", "a metric in words", in_json("run/metrics.json", ["final", "fused", "test", "mrr"], "high")),
    Case("page", "no metric", in_json("run/metrics.json", ["final", "fused", "test", "mrr"], ...)),
    Case("page", "a name that is a list", in_json("run/metrics.json", ["final", "fused", "name"], [1])),
    Case("page", "steps as bytes", whole("run/decisions.csv", b"\xff\0" * 20)),
    Case("page", "steps without a column", replaced("run/decisions.csv", b"reason", b"because")),
    Case("page", "payoffs as bytes", whole("run/payoffs.csv", b"\xff\0" * 20)),
    Case("page", "trials as bytes", whole("run/trials.csv", b"\xff\0" * 20)),
    Case(
        "page",
        "a trial of no known outcome",
        whole("run/trials.csv", b"step,first,candidate,loss,outcome\n2,1,a,1,b\n"),
    ),
]
HEADER = b"user,item,timestamp\n"
DATA = [
    Case("data", "bytes", data_file(b"\xff\xfe\0\1" * 100)),
    Case("data", "nothing", data_file(b"")),
    Case("data", "a long line", data_file(HEADER + b"u" * 100_000_000 + b",i,1\n")),
    Case("data", "a long header", data_file(b"u" * 100_000_000)),
    Case("data", "a quoted long line", data_file(HEADER + b'"' + b"u," * 20_000_000)),
    Case("data", "many fields", data_file(HEADER + b"," * 3_000_000 + b"\n")),
    Case("data", "many columns", data_file(b",".join(b"c%d" % number for number in range(300_000)) + b"\n1\n")),
    Case("data", "many fields of many rows", data_file(HEADER + b"u,i,1,1\n" * 500_000)),
    Case("data", "a long number", data_file(HEADER + b"u,i," + DIGITS.encode() + b"\n")),
    Case("data", "a number beyond all", data_file(HEADER + b"u,i,1e999\n")),
    Case("data", "quotes", data_file(HEADER + b'"' * 1_000_001)),
    Case("data", "one user", data_file(HEADER + b"u,i1,1\nu,i2,2\n")),
    Case("data", "a gzip file", data_file(b"\x1f\x8b\x08\0" + b"\0" * 1000)),
    Case("data", "titles of bytes", data_file(b"\xff\xfe\0", "items")),
    Case("data", "the same item twice", data_file(b"item,title\ni1,a\ni1,b\n", "items")),
    Case("data", "a long title", data_file(b"item,title\ni1," + b"t" * 10_000_000 + b"\n", "items")),
    Case("parquet", "half a file", cut("plays.parquet")),
    Case("parquet", "nothing", emptied("plays.parquet")),
    Case("parquet", "a billion rows in the footer", with_parquet_footer(10**9)),
    Case("parquet", "2**60 rows in the footer", with_parquet_footer(2**60)),
    Case("parquet", "negative rows in the footer", with_parquet_footer(2**63 - 1)),
    Case("parquet", "a bomb", parquet_bomb),
    Case("parquet", "lists", parquet(user=[["u"]], item=[["i"]], timestamp=[[1]])),
    Case("parquet", "structures", parquet(user=[{"a": 1}], item=[{"b": 1}], timestamp=[{"c": 1}])),
    Case("parquet", "null", parquet(user=pa.nulls(3), item=pa.nulls(3), timestamp=pa.nulls(3))),
    Case(
        "parquet",
        "a footer of 2**31 bytes",
        lambda root: (root / "plays.parquet").write_bytes(b"PAR1" + b"\xff\xff\xff\x7fPAR1"),
    ),
    Case(
        "parquet",
        "rubbish for a footer",
        lambda root: (root / "plays.parquet").write_bytes(
            b"PAR1" + b"\x15\x16" * 500 + struct.pack("<I", 1000) + b"PAR1"
        ),
    ),
]
KEPT = "run/data/{}.parquet"
KEPT_DATA = [
    *(
        Case("kept", f"{table}: {name}", change, "data")
        for table in ("interactions", "users", "items")
        for name, change in {
            "half a file": cut(KEPT.format(table)),
            "nothing": emptied(KEPT.format(table)),
            "no file": lambda root, table=table: (root / KEPT.format(table)).unlink(),
            "no columns": kept(table, lambda table: table.select([])),
            "one row": kept(table, lambda table: table.slice(0, 1)),
        }.items()
    ),
    Case("kept", "no files", lambda root: [each.unlink() for each in (root / "run/data").iterdir()], "data"),
    Case(
        "kept", "users beyond all", kept("interactions", column("user", np.full(140, 10**9, np.int32))), "user must be"
    ),
    Case("kept", "users below 0", kept("interactions", column("user", np.full(140, -1, np.int32))), "user must be"),
    Case("kept", "items of other users", kept("interactions", column("item", np.zeros(140, np.int32))), "hash"),
    Case("kept", "wide users", kept("interactions", column("user", np.zeros(140, np.int64))), "'user' must be int32"),
    Case("kept", "times that are not", kept("interactions", column("timestamp", np.full(140, np.nan))), "finite"),
    Case(
        "kept", "parts beyond all", kept("interactions", lambda table: table.append_column("part", [[9] * 140])), "part"
    ),
    Case("kept", "other titles", kept("items", column("title", ["a"] * 12)), "data_hash"),
    Case("kept", "no titles", kept("items", column("title", pa.nulls(12, pa.string()))), "without nulls"),
    Case("kept", "titles of numbers", kept("items", column("title", np.zeros(12))), "'title' must be string"),
    Case("kept", "titles of bytes", kept("items", column("title", pa.array([b"\xff"] * 12).view(pa.string()))), "data"),
    Case("kept", "other users", kept("users", column("id", [f"v{user}" for user in range(20)])), "data_hash"),
    Case("kept", "no name", kept("interactions", lambda table: table.replace_schema_metadata({})), "data"),
    Case("kept", "no hash", config("facts", "data_hash", to=...), "data_hash"),
    Case("kept", "a folder for a file", lambda root: _folder_for(root / KEPT.format("users")), "data"),
    Case(
        "kept",
        "a bomb",
        lambda root: [parquet_bomb(root), shutil.copy(root / "plays.parquet", root / KEPT.format("users"))],
        "larger",
    ),
]
DEEPER = b"[" * 2_000_000 + b"]" * 2_000_000
DATA += [
    Case("packed text", "a bomb", packed_text(b"u,i,1\n", 2**26)),
    Case("packed text", "a bomb of a line", packed_text(b"u", 2**28)),
    Case("packed text", "half a file", cut("plays.csv.gz")),
    Case("packed text", "nothing", emptied("plays.csv.gz")),
    Case("packed text", "no gzip", whole("plays.csv.gz", HEADER + b"u,i,1\n")),
    Case("packed text", "gzip in gzip", lambda root: packed_text((root / "plays.csv.gz").read_bytes())(root)),
    Case("zstd", "a bomb", lambda root: (root / "plays.csv.zst").write_bytes(zstd(HEADER + b"u,i,1\n" * 2**26))),
    Case("zstd", "half a file", cut("plays.csv.zst")),
    Case("zstd", "no zstd", whole("plays.csv.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 100)),
    Case("JSON lines", "nothing", emptied("plays.jsonl")),
    Case("JSON lines", "bytes", whole("plays.jsonl", b"\xff\xfe" * 100)),
    Case("JSON lines", "an array", whole("plays.jsonl", b'[{"user": 1}]')),
    Case("JSON lines", "half an object", whole("plays.jsonl", b'{"user": "u"')),
    Case("JSON lines", "nested", whole("plays.jsonl", b'{"user": ' + DEEPER + b"}")),
    Case(
        "JSON lines",
        "a long line",
        lambda root: (root / "plays.jsonl").write_bytes(b'{"user": "' + b"u" * 50_000_000 + b'"}'),
    ),
    Case("JSON lines", "many names", whole("plays.jsonl", b"".join(b'{"k%d": 1}\n' % each for each in range(10**5)))),
    Case("JSON lines", "a long number", whole("plays.jsonl", b'{"user": ' + DIGITS.encode() + b"}\n")),
    Case("JSON lines", "mixed types", whole("plays.jsonl", b'{"user": 1, "item": 1, "time": 1}\n{"user": "a"}\n')),
    Case("JSON lines", "half a surrogate pair", whole("plays.jsonl", b'{"user": "\\ud800", "item": 1, "time": 1}\n')),
    Case("split", "a part is missing", lambda root: (root / "split/b.valid.inter").unlink()),
    Case("split", "bytes", whole("split/b.test.inter", b"\xff\0" * 50)),
    Case("split", "other columns", whole("split/b.test.inter", b"user_id:token\titem_id:token\nu\ti\n")),
    Case("split", "a part twice", lambda root: (root / "split/b.test.inter.gz").write_bytes(b"x")),
    Case("split", "two of them", lambda root: [(root / f"split/c.{each}.inter").touch() for each in ("train", "test")]),
]
ENCODER = "run/data/encoder.safetensors"


def encoder(**changes):
    """Other arrays in the encoder that the run keeps, with the right checksum; None is no such array."""

    def damage(root):
        path = root / ENCODER
        kept = TextEncoder.read(path)
        arrays = {name: array for name, array in {**kept.arrays, **changes}.items() if array is not None}
        path.write_bytes(TextEncoder(kept.name, kept.dim, arrays).to_bytes())

    return damage


KEPT_ENCODER = [
    Case("encoder", "half a file", cut(ENCODER), ENCODER),
    Case("encoder", "nothing", emptied(ENCODER), ENCODER),
    Case("encoder", "no file", lambda root: (root / ENCODER).unlink(), ENCODER),
    Case("encoder", "a header of 2**60 bytes", whole(ENCODER, struct.pack("<Q", 2**60) + b"{" * 100), ENCODER),
    Case("encoder", "another tensor", lambda root: save_file({"idf": np.zeros(3)}, root / ENCODER), ENCODER),
    Case("encoder", "no words", encoder(words=None), ENCODER),
    Case("encoder", "words of bytes", encoder(words=np.full(30, 255, np.uint8)), ENCODER),
    Case("encoder", "one word twice", encoder(words=np.frombuffer(b"a\na", np.uint8), idf=np.ones(2)), ENCODER),
    Case("encoder", "few weights", encoder(idf=np.ones(1)), ENCODER),
    Case("encoder", "weights that are not", encoder(idf=np.full(16, np.nan)), ENCODER),
    Case("encoder", "components of other words", encoder(components=np.ones((8, 3), np.float32)), ENCODER),
    Case("encoder", "many components", encoder(components=np.ones((500, 16), np.float32)), ENCODER),
    Case("encoder", "another width", encoder(neutral=np.ones(9, np.float32)), ENCODER),
    Case("later", "interactions: bytes", whole("later.csv", b"\xff\xfe\0" * 50), "later.csv"),
    Case("later", "interactions: nothing", emptied("later.csv"), "later.csv"),
    Case("later", "interactions: a time in words", whole("later.csv", b"user,item,timestamp\nu,i,late\n"), "later.csv"),
    Case("later", "items: nothing", emptied("new.csv"), "new.csv"),
    Case("later", "items: one twice", whole("new.csv", b"item,title\ni9,a\ni9,b\n"), "new.csv"),
    *(
        Case("later", f"ids: {name}", whole("ids.jsonl", content), "ids.jsonl")
        for name, content in {**JSON_FILES, "a list of ids": b'{"item": ["i1"]}'}.items()
    ),
]
TEXTS = [Case("texts", name, whole("texts.json", content)) for name, content in JSON_FILES.items()]
TEXTS += [
    Case("texts", "numbers", whole("texts.json", b'{"u1": 1}')),
    Case("texts", "half a surrogate pair", whole("texts.json", b'{"u1": "\\ud800"}')),
]
STUDY = [
    *(
        Case("study", f"study.json: {name}", whole("study/study.json", content))
        for name, content in JSON_FILES.items()
        if content != b"{}"
    ),
    *(Case("study", f"costs.json: {name}", whole("study/costs.json", content)) for name, content in JSON_FILES.items()),
    *(
        Case("study", f"a run: {name}", whole("study/runs/joint/updates-seed-0.json", content))
        for name, content in JSON_FILES.items()
    ),
    Case("study", "arms in words", in_json("study/study.json", ["arms"], "parity")),
    Case("study", "arms of numbers", in_json("study/study.json", ["arms"], [1, 2])),
    Case("study", "no arms", in_json("study/study.json", ["arms"], None)),
    Case("study", "seeds in lists", in_json("study/study.json", ["seeds"], [[0]])),
    Case("study", "seeds in words", in_json("study/study.json", ["seeds"], ["../../x"])),
    Case("study", "a seed below 0", in_json("study/study.json", ["seeds"], [-1])),
    Case("study", "budgets of lists", in_json("study/study.json", ["budgets"], [["cost"]])),
    Case("study", "a model in a list", in_json("study/study.json", ["model"], ["x"])),
    Case("study", "data of numbers", in_json("study/study.json", ["data"], 3)),
    Case("study", "a long schedule", in_json("study/study.json", ["arms"], ["parity", f"{DIGITS}:1"])),
    Case("study", "many updates", in_json("study/study.json", ["updates"], 10**18)),
    Case("study", "a preset in a list", in_json("study/study.json", ["preset"], ["demo"])),
    Case("study", "users in words", in_json("study/study.json", ["num_users"], "many")),
    Case("study", "costs in words", in_json("study/costs.json", ["seconds", "both"], "dear")),
    Case("study", "costs below 0", in_json("study/costs.json", ["seconds", "both"], -1)),
    Case("study", "a list of settings of the model", in_json("study/study.json", ["model"], [])),
    Case("study", "quartiles in words", in_json("study/costs.json", ["quartiles"], "dear")),
    Case("study", "costs of no machine", in_json("study/costs.json", ["facts"], [[]])),
    Case("study", "no points", run_report("points", to=[])),
    Case("study", "a best point that is not there", run_report("best", to=99)),
    Case("study", "a best point in words", run_report("best", to="last")),
    Case("study", "points of nothing", run_report("points", to=[{}, {}])),
    Case("study", "metrics in words", run_report("points", 0, "validation", "ndcg@10", to="good")),
    Case("study", "no turns", run_report("turns", to=...)),
    Case("study", "tenures in words", run_report("turns", "tenures", to="long")),
    Case("study", "tenures of 2**60 steps", run_report("turns", "tenures", to=[["both", 2**60]])),
    Case("study", "no facts", run_report("facts", to=[])),
    Case("study", "targets of users in words", run_report("targets_per_user", to={"validation": [1], "test": "many"})),
    Case("study", "users without targets", run_report("targets_per_user", to={"validation": [0, 20], "test": [20]})),
    Case(
        "study", "more targets than there are", run_report("targets_per_user", to={"validation": [9], "test": [9**99]})
    ),
    Case("study", "a budget in a list", run_report("budget", to=[1])),
    Case(
        "study",
        "arrays: bytes",
        lambda root: [path.write_bytes(b"PK\3\4" + b"\xff" * 99) for path in root.glob("study/runs/*/*.npz")],
    ),
    Case(
        "study",
        "arrays: half",
        lambda root: [os.truncate(path, path.stat().st_size // 2) for path in root.glob("study/runs/*/*.npz")],
    ),
    Case("study", "arrays: none", npz(lambda kept: {"x": np.zeros(1)})),
    Case("study", "arrays: of another shape", npz(lambda kept: {name: np.zeros(3) for name in kept})),
    Case(
        "study", "arrays: of strings", npz(lambda kept: {name: np.full(each.shape, "a") for name, each in kept.items()})
    ),
    Case(
        "study",
        "arrays: of objects",
        npz(lambda kept: {name: np.full(each.shape, None) for name, each in kept.items()}),
    ),
    Case("study", "arrays: a huge header", npz_header),
    Case("study", "arrays: a bomb", npz_bomb),
    Case("packed", "half a file", cut("packed/runs.parquet")),
    Case("packed", "nothing", emptied("packed/runs.parquet")),
    Case("packed", "no columns", packed(lambda table: table.select(["arm"]))),
    Case("packed", "no points", packed(column("points", [[], []]))),
    Case("packed", "points in words", packed(column("points", ["a", "b"]))),
    Case("packed", "a best point that is not there", packed(column("best", [99, 99]))),
    Case("packed", "ranks in words", packed(column("test_rank", [["a"], ["b"]]))),
    Case("packed", "ranks of other lengths", packed(column("test_rank", [[1, 2], [1]]))),
    Case("packed", "no likelihoods", packed(column("test_nll", pa.nulls(2)))),
    Case("packed", "facts that are no JSON", packed(column("facts", ["{", "{"]))),
    Case("packed", "deep facts", packed(column("facts", ["[" * 100_000] * 2))),
    Case("packed", "keys of lists", packed(column("arm", [["parity"], ["joint"]]))),
    Case(
        "packed", "metadata that is no JSON", packed(lambda table: table.replace_schema_metadata({"time_ratios": "["}))
    ),
    Case("packed", "metadata in a list", packed(lambda table: table.replace_schema_metadata({"time_ratios": "[1]"}))),
]
LOSSES = [
    Case("losses", "nothing", emptied("losses.csv")),
    Case("losses", "bytes", whole("losses.csv", b"\xff\0" * 50)),
    Case("losses", "a long line", whole("losses.csv", b"step,a,b\n" + b"1" * 100_000_000)),
    Case("losses", "a long step", whole("losses.csv", b"step,a,b\n" + DIGITS.encode() + b",1,1\n")),
    Case("losses", "a loss in words", whole("losses.csv", b"step,a,b\n1,x,1\n")),
    Case(
        "losses",
        "many columns",
        whole("losses.csv", b"step," + b",".join(b"c%d" % each for each in range(20_000)) + b"\n1,1\n"),
    ),
    Case("losses", "many fields", whole("losses.csv", b"step,a,b\n" + b"," * 3_000_000)),
    Case("losses", "an unclosed quote", whole("losses.csv", b'step,a,b\n1,"1,1\n' + b"2,2,2\n" * 1000)),
    Case("losses", "one column", whole("losses.csv", b"step,a\n1,1\n")),
]
EVENT_FILES = [
    Case("events", "a record of 2**60 bytes", whole(EVENTS, event(2**60, b"x" * 40))),
    Case("events", "a record of 2**63 bytes", whole(EVENTS, event(2**63 + 1, b"x" * 40))),
    Case("events", "a record of 2**31 bytes", whole(EVENTS, event(2**31, b"x" * 40))),
    Case("events", "rubbish", whole(EVENTS, os.urandom(2000))),
    Case("events", "nothing", emptied(EVENTS)),
    Case("events", "half a record", cut(EVENTS, 0.01)),
    Case(
        "events",
        "a flipped bit",
        lambda root: (root / EVENTS).write_bytes((root / EVENTS).read_bytes().replace(b"loss", b"los\xf3")),
    ),
]
SETTINGS = {
    "a long ratio": ["--schedule", f"{DIGITS}:1"],
    "a long hexadecimal number": ["--set", "sasrec_num_blocks=0x" + "f" * 5000],
    "a long number": ["--set", f"sasrec_num_blocks={DIGITS}"],
    "a deep literal": ["--set", "sasrec_num_blocks=" + "(" * 10_000],
    "a deep sign": ["--set", "sasrec_num_blocks=" + "-" * 30_000 + "1"],
    "an unhashable key": ["--set", "sasrec_num_blocks={[]: 1}"],
    "an invalid escape": ["--set", "sasrec_num_blocks='\\d'"],
    "a long list of epochs": ["--epochs", f"joint_finetune={DIGITS}"],
    "other digits": ["--epochs", "joint_finetune=²"],
    "a number beyond all": ["--set", "sasrec_lr=0x" + "f" * 400],
    "a sequence of numbers": ["--schedule", "sequence:(1, 2)"],
    "a sequence of unhashables": ["--schedule", "sequence:(([], 2),)"],
    "costs of strings": ["--schedule", "payoff,costs=('a',)"],
    "a long cycle": ["--schedule", f"cycle,steps=0x{'f' * 5000}"],
    "a long threshold": ["--schedule", f"plateau,threshold=0x{'f' * 5000}"],
    "many blocks": ["--set", "sasrec_num_blocks=10000000"],
}
RULE_SETTINGS = {
    "a long number": ["--rule", "plateau", "--set", f"window={DIGITS}"],
    "a long hexadecimal number": ["--rule", "plateau", "--set", "window=0x" + "f" * 5000],
    "a number beyond all": ["--rule", "plateau", "--set", "threshold=0x" + "f" * 400],
    "a large window": ["--rule", "plateau", "--set", f"window={2**70}"],
    "a deep literal": ["--rule", "cycle", "--set", "steps=" + "(" * 10_000],
    "a deep sign": ["--rule", "cycle", "--set", "steps=" + "-" * 30_000 + "1"],
    "an unhashable key": ["--rule", "cycle", "--set", "steps={[]: 1}"],
    "a deep sweep": ["--rule", "cycle", "--sweep", "steps=" + "(" * 10_000],
    "a deep sign of a sweep": ["--rule", "cycle", "--sweep", "steps=" + "-" * 30_000 + "1"],
    "a long sweep": ["--rule", "plateau", "--sweep", "threshold=0x" + "f" * 5000],
    "an unhashable sweep": ["--rule", "cycle", "--sweep", "steps={[]: 1}"],
    "many combinations": [
        "--rule",
        "plateau",
        "--sweep",
        *(f"{name}={','.join(map(str, range(5, 2005)))}" for name in ("window", "min_steps", "threshold")),
    ],
    "a large seed": ["--rule", "random-tenure", "--set", "mean=5", "seed=0x" + "f" * 5000],
    "a long delay": ["--rule", "plateau", "--delay", DIGITS],
}

CASES = [
    *(*CONFIG, *RESUMED, *CHECKPOINT, *LOGS, *PAGE, *DATA, *KEPT_DATA, *KEPT_ENCODER, *TEXTS),
    *(*STUDY, *LOSSES, *EVENT_FILES),
]


def with_settings(words):
    """The commands that take such settings: ``--schedule`` is ``--arms`` of a study, which has no epochs."""
    study = ("ur4rec", "compare", "--dataset", "data", "--updates", "8", "--out", "new", "--quiet")
    commands = [(*TRAIN_NEW, *words)]
    if words[0] != "--epochs":
        commands.append((*study, *("--arms" if word == "--schedule" else word for word in words)))
    return commands
