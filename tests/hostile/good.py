"""What the cases damage: data, a run of each backend, a study, loose and packed, losses and their events."""

import contextlib
import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.ur4rec.compare.tiny_study import COSTS, PRICES

NUM_USERS, NUM_ITEMS, LENGTH = 20, 12, 7
SIZES = {"sasrec_hidden_dim": 8, "retriever_output_dim": 8, "text_embedding_dim": 8, "max_seq_len": 6}
TRAIN = [
    *("--dataset", "data", "--preset", "smoke", "--encoder", "tfidf", "--batch-size", "16", "--device", "cpu"),
    *("--quiet", *(word for name, size in SIZES.items() for word in ("--set", f"{name}={size}"))),
]
EPOCHS = [
    f"--epochs={stage}" for stage in ("pretrain_sasrec=0", "pretrain_retriever=0", "joint_finetune=16", "end_to_end=0")
]
EVENTS = "events/events.out.tfevents.1.good"
STUDY = {
    "dataset": "data",
    "preset": "smoke",
    "encoder": "tfidf",
    "batch_size": 16,
    "model": SIZES,
    "arms": ("parity", "joint"),
    "seeds": (0,),
    "updates": 8,
    "eval_every": 4,
    "budgets": ("updates",),
}


def rows():
    """User, item, timestamp."""
    return [
        (f"u{user}", f"i{(user * 5 + step * (1 + user % 3)) % NUM_ITEMS}", 10 * step + user % 2)
        for user in range(NUM_USERS)
        for step in range(LENGTH)
    ]


def csv(header, lines):
    return "\n".join(",".join(map(str, line)) for line in [header, *lines]) + "\n"


def make_files():
    """Everything that no run is needed for."""
    header = ("user", "item", "timestamp")
    for folder in ("data", "cache", "home"):
        Path(folder).mkdir()
    Path("data/interactions.csv").write_text(csv(header, rows()))
    titles = [
        (f"i{item}", f"The {['red', 'green', 'blue', 'grey'][item % 4]} film {item}") for item in range(NUM_ITEMS)
    ]
    Path("data/items.csv").write_text(csv(("item", "title"), titles))
    pq.write_table(pa.table(dict(zip(header, zip(*rows(), strict=True), strict=True))), "plays.parquet")
    Path("plays.csv.gz").write_bytes(gzip.compress(csv(header, rows()).encode()))
    Path("plays.csv.zst").write_bytes(pa.compress(csv(header, rows()).encode(), codec="zstd", asbytes=True))
    Path("plays.jsonl").write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows()))
    make_split()
    Path("later.csv").write_text(csv(header, [("new", "i1", 999), ("new", "i99", 1000)]))
    Path("new.csv").write_text(csv(("item", "title"), [("i98", "The red one"), ("i99", "The grey one")]))
    Path("ids.jsonl").write_text('{"item": "i1"}\n{"item": "i2"}\n')
    Path("texts.json").write_text(json.dumps({f"u{user}": "red films" for user in range(NUM_USERS)}))
    losses = [(step, 1 / step, 2 / step) for step in range(1, 40)]
    Path("losses.csv").write_text(csv(("step", "encoder", "head"), losses))


def make_split():
    """Data that came split, as lists of items with their targets."""
    Path("split").mkdir()
    items = [f"i{item % NUM_ITEMS}" for item in range(NUM_USERS + LENGTH)]
    for name, ends in {"train": range(1, LENGTH - 2), "valid": [LENGTH - 2], "test": [LENGTH - 1]}.items():
        lines = [
            (f"u{user}", " ".join(items[user : user + end]), items[user + end])
            for user in range(NUM_USERS)
            for end in ends
        ]
        head = ("user_id:token", "item_id_list:token_seq", "item_id:token")
        Path(f"split/b.{name}.inter").write_text(csv(head, lines).replace(",", "\t"))


def make_runs():
    """A run in PyTorch, and its conversion."""
    _ur4rec("train", *TRAIN, *EPOCHS, "--log", "tensorboard", "--out", "run")
    Path("run/events").rename("events")
    (events,) = Path("events").iterdir()
    events.rename(EVENTS)
    _ur4rec("convert", "run", "--to", "jax", "--out", "jax")


def _ur4rec(*words):
    from ur4rec.cli import app

    with contextlib.suppress(SystemExit):
        app(list(words))


def make_studies():
    """A study, loose and packed."""
    import shutil

    from ur4rec.compare.directory import StudyDirectory
    from ur4rec.compare.study import StudyConfig
    from ur4rec.compare.summary import pack_study
    from ur4rec.compare.workers import run_one

    directory = StudyDirectory.begin(Path("study"), StudyConfig(**STUDY))
    assert set(PRICES) == set(COSTS["seconds"])
    directory.write_costs(COSTS)
    keys = directory.keys()
    for key in keys:
        run_one(directory.path, key)
    shutil.copytree("study", "packed")
    pack_study(StudyDirectory.reopen(Path("packed")))


def make():
    """All of it, in this directory."""
    sys.argv = ["ur4rec"]
    make_files()
    make_runs()
    make_studies()


def page(run):
    """What `ur4rec serve` reads of a run before it serves."""
    import typer

    from ur4rec.cli.options import one_line_errors
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.recommender import Recommender
    from ur4rec.serve.answers import Answers

    try:
        with one_line_errors():
            directory = RunDirectory.open_existing(Path(run))
            Answers(directory, Recommender(directory))
    except typer.Exit as stopped:
        sys.exit(stopped.exit_code)
