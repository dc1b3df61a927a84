"""Files found in the wild: every command of the table in docs/data.md trains on a tiny file of that shape."""

import gzip
import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ur4rec.cli import app
from ur4rec.runs.config import read_config
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import load_interactions

ROOT = Path(__file__).parents[5]
SMALL = [
    *("--preset", "smoke", "--encoder", "tfidf", "--batch-size", "8", "--device", "cpu", "--schedule", "parity"),
    *("--set", "sasrec_hidden_dim=8", "--set", "retriever_output_dim=8", "--set", "text_embedding_dim=8", "--quiet"),
    *(f"--epochs={stage}=0" for stage in ("pretrain_sasrec", "pretrain_retriever", "end_to_end")),
    "--epochs=joint_finetune=1",
]
EPOCH = 1_400_000_000


def plays(user="{}", item="{}"):
    """User, item and number of 8 users, who used 4 of 5 items each."""
    for turn in range(4):
        for person in range(8):
            yield user.format(person), item.format((person + turn * (1 + person % 2)) % 5), 8 * turn + person


def lines(form, **names):
    return "".join(form.format(u=u, i=i, n=n, t=EPOCH + 86400 * n) + "\n" for u, i, n in plays(**names))


def json_lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def zstd(text):
    return pa.compress(text.encode(), codec="zstd", asbytes=True)


def packed(text):
    return gzip.compress(text.encode())


def parquet_part(rows):
    users, items, times = zip(*rows, strict=True)
    table = pa.table({"user_id": [*map(float, users)], "item_id": [*map(float, items)], "ts": times})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def objects(rows, **form):
    """JSON lines: a value of the form that is a function gets the row."""
    return json_lines(
        *({name: value(*row) if callable(value) else value for name, value in form.items()} for row in rows)
    )


def movies(form):
    return "".join(form.format(i=i, t=f"Film {i} (1990)") + "\n" for i in range(5))


GENRES = "|".join("1" if flag == 8 else "0" for flag in range(19))
PLAYS = list(plays())
FILMS = [(number,) for number in range(5)]
USER, ITEM = (lambda u, i, n: u), (lambda u, i, n: i)
SECONDS, MILLISECONDS = (lambda u, i, n: EPOCH + 86400 * n), (lambda u, i, n: 1000 * (EPOCH + 86400 * n))
WILD = {
    "MovieLens `ratings.csv`": {
        "ml-latest-small/ratings.csv": "userId,movieId,rating,timestamp\n" + lines("{u},{i},4.5,{t}"),
        "ml-latest-small/movies.csv": "movieId,title,genres\n" + movies('{i},"{t}, The",Comedy|Drama'),
        "ml-latest-small/tags.csv": "userId,movieId,tag,timestamp\n",
    },
    "MovieLens `ratings.dat`": {
        "ml-10m/ratings.dat": lines("{u}::{i}::5::{t}") + "9::1::2::5\n",
        "ml-10m/movies.dat": movies("{i}::{t}::Comedy|Drama"),
    },
    "MovieLens `u.data`": {
        "old/u.data": lines("{u}\t{i}\t5\t{t}"),
        "old/u.item": movies("{i}|{t}|01-Jan-1990||x|" + GENRES).replace("Film 1", "Pokémon").encode("latin-1"),
    },
    "RecBole `sports.inter`": {
        "sports/sports.inter": "user_id:token\titem_id:token\ttimestamp:float\n" + lines("{u}\t{i}\t{t}"),
        "sports/sports.item": "item_id:token\ttitle:token_seq\n" + movies("{i}\t{t}"),
    },
    "RecBole atomic files with other names": {
        "sessions/sessions.inter": "visit:token\tsession_id:token\ttrack_name:token\tcount:float\tplay_date:float\n"
        + lines("x\t{u}\t{i}\t1\t{t}").replace("track_name", "track"),
    },
    "RecBole `NAME.train.inter`": {
        f"benchmark/b.{part}.inter": "session_id:token\titem_id_list:token_seq\titem_id:token\n" + rows
        for part, rows in {
            "train": "u\ta\tb\nu\ta b\tc\nv\tb\ta\n",
            "valid": "u\ta b c\td\nw\ta b\tc\n",
            "test": "u\ta b c d\te\nv\tb a\te\n",
        }.items()
    },
    "`train.csv`": {
        "split/train.csv": "user,item,timestamp\n" + lines("{u},{i},{n}"),
        "split/valid.csv": "user,item,timestamp\n1,4,2\nz,1,1\nz,2,2\n",
        "split/test.csv": "user,item,timestamp\n1,0,1\n2,3,1\n",
    },
    "Amazon reviews of 2014": {
        "reviews_Beauty_5.json.gz": packed(
            objects(PLAYS, reviewerID=USER, asin=ITEM, helpful=[0, 1], overall=5.0, unixReviewTime=SECONDS)
        ),
        "meta_Beauty.json.gz": packed(
            objects(FILMS, asin=str, title="Film {}".format, categories=[["Beauty", "Hair"]], brand="B")
        ),
    },
    "Amazon reviews of 2023": {
        "All_Beauty.jsonl.gz": packed(
            objects(PLAYS, rating=5.0, title="Great", images=[], parent_asin=ITEM, user_id=USER, timestamp=MILLISECONDS)
        ),
        "meta_All_Beauty.jsonl.gz": packed(
            objects(FILMS, main_category="A", title="Film {}".format, store=None, parent_asin=str, details={"a": 1})
        ),
    },
    "Amazon ratings without": {"ratings_Beauty.csv": lines("A{u},{i},5.0,{t}")},
    "Last.fm 1K": {
        "lastfm-dataset-1K/userid-timestamp-artid-artname-traid-traname.tsv": "".join(
            f'user_{u}\t2009-05-04T{n // 2:02}:{n % 2}8:57Z\t\tThe "{i}\tx\tSong\n' for u, i, n in PLAYS
        ),
        "lastfm-dataset-1K/userid-profile.tsv": "#id\tgender\n",
    },
    "retailrocket": {
        "events.csv": "timestamp,visitorid,event,itemid,transactionid\n"
        + "".join(f"{1000 * (EPOCH + n)},{u},{'view' if i == '4' else 'addtocart'},{i},\n" for u, i, n in PLAYS)
    },
    "Book-Crossing": {
        "BX-CSV-Dump/BX-Book-Ratings.csv": '"User-ID";"ISBN";"Book-Rating"\r\n' + lines('"{u}";"{i}";"0"'),
        "BX-CSV-Dump/BX-Books.csv": (
            '"ISBN";"Book-Title";"Book-Author";"Publisher"\r\n' + movies('"{i}";"{t} \\"é\\"; or";"A";"P"')
        ).encode("latin-1"),
        "BX-CSV-Dump/BX-Users.csv": '"User-ID";"Age"\r\n',
    },
    "`user item` lines": {"Beauty.txt": lines("{u} {i}")},
    "Gowalla": {
        "Gowalla_totalCheckins.txt.gz": packed(
            "".join(f"{u}\t2010-10-{1 + n % 28:02}T23:55:27Z\t30.2\t-97.7\t{i}\n" for u, i, n in PLAYS)
        )
    },
    "Foursquare": {
        "dataset_TSMC2014_NYC.txt": "".join(
            f"{u}\t{i}\tx\tCafé {i}\t40.7\t-74.0\t-240\tTue Apr {1 + n % 28:02} 18:00:09 +0000 2012\n"
            for u, i, n in PLAYS
        ).encode("latin-1")
    },
    "Yelp": {
        "yelp_academic_dataset_review.json": objects(
            PLAYS, user_id=USER, business_id=ITEM, date=lambda u, i, n: f"2018-07-{1 + n % 28:02} 22:09:11"
        ),
        "yelp_academic_dataset_business.json": objects(
            FILMS, business_id=str, name="Bar {}".format, attributes={"a": "b"}, categories="Bars, Pubs"
        ),
    },
    "H&M": {
        "transactions_train.csv": "t_dat,customer_id,article_id,price,sales_channel_id\n"
        + "".join(f"2018-09-{1 + n % 28:02},{u},0{i},0.05,2\n" for u, i, n in PLAYS),
        "articles.csv": "article_id,prod_name,product_type_name,colour_group_name,detail_desc\n"
        + movies("0{i},{t},Vest,Red,x"),
    },
    "Parquet parts": {
        "plays.parquet/_SUCCESS": "",
        "plays.parquet/part-00000.snappy.parquet": parquet_part(PLAYS[:16]),
        "plays.parquet/part-00001.snappy.parquet": parquet_part(PLAYS[16:]),
    },
    "CSV of a German": {
        "Bestellungen.csv": (
            "Kunde;Artikel;Bezeichnung;Datum\n"
            + "".join(f"{u};{i};Käse {i};{1 + n % 28:02}.12.2023 10:{n:02}\n" for u, i, n in PLAYS)
        ).encode("cp1252")
    },
    "JSON lines, packed": {
        "log.jsonl.zst": zstd(objects(PLAYS, user=USER, item=lambda u, i, n: int(i), time=MILLISECONDS))
    },
}
TITLED = "5 of 5 items have a title"
SAID = {
    "MovieLens `ratings.csv`": (
        "MovieLens ratings.csv",
        "epoch seconds, 2014-05-13 to 2014-06-13",
        TITLED,
    ),
    "MovieLens `ratings.dat`": ("MovieLens ratings.dat", "32 of 33 rows count", "5 of 5"),
    "MovieLens `u.data`": ("MovieLens u.data", TITLED),
    "RecBole `sports.inter`": ("RecBole atomic file; user user_id", TITLED),
    "RecBole atomic files with other names": ("user session_id, item track_name, time play_date", "no titles"),
    "RecBole `NAME.train.inter`": ("5 for training, 2 validation targets, 2 test targets, 2 context", "no times read"),
    "`train.csv`": ("32 for training, 2 validation targets, 2 test targets, 1 context",),
    "Amazon reviews of 2014": ("Amazon reviews (2014, 2018): JSON lines", TITLED),
    "Amazon reviews of 2023": (
        "Amazon reviews (2023)",
        "epoch milliseconds, 2014-05-13",
        "are in the 3-core",
        "5 of 5",
    ),
    "Amazon ratings without": ("commas", "epoch seconds"),
    "Last.fm 1K": ("Last.fm listening events", "dates, 2009-05-04", "items are artists"),
    "retailrocket": ("retailrocket events", "epoch milliseconds", "rows count"),
    "Book-Crossing": ("Book-Crossing: text with semicolons between the fields in latin-1", "no times", "5 of 5"),
    "`user item` lines": ("blanks", "no times read"),
    "Gowalla": ("tabs", "dates, 2010-10-01"),
    "Foursquare": ("dates, 2012-04-01", "5 of 5 items have a text"),
    "Yelp": ("JSON lines", "dates, 2018-07-01", TITLED),
    "H&M": ("dates, 2018-09-01", TITLED),
    "Parquet parts": ("2 parts, Parquet", "no titles"),
    "CSV of a German": (
        "semicolons",
        "dates with the day first, 2023-12-01 to 2023-12-28",
        TITLED,
    ),
    "JSON lines, packed": ("JSON lines", "epoch milliseconds, 2014-05-13"),
}


def table_rows():
    text = (ROOT / "docs/data.md").read_text()
    return dict(re.findall(r"^\| (.+?) \| `(ur4rec train .+?)` \|$", text.partition("## Which files")[0], re.MULTILINE))


ROWS = table_rows()


def test_every_row_of_the_table_has_a_file_and_what_is_said():
    assert len(ROWS) == len(WILD) == len(SAID)
    assert all(sum(row.startswith(name) for row in ROWS) == 1 for name in WILD)
    assert WILD.keys() == SAID.keys()


@pytest.mark.parametrize("name", WILD)
def test_what_is_found_in_the_wild_is_trained_on(tmp_path, monkeypatch, name):
    """The command of the table trains on it, and the run's configuration alone reads the same from elsewhere."""
    for path, content in WILD[name].items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    words = shlex.split(next(command for row, command in ROWS.items() if row.startswith(name)))
    assert words[:2] == ["ur4rec", "train"]
    # Drawing takes longer than training.
    monkeypatch.setattr("ur4rec.runs.result_files.plot_schedule", lambda *given: None)
    trained = CliRunner().invoke(app, [*words[1:], *SMALL])
    assert trained.exit_code == 0, trained.output
    run = RunDirectory.open_existing(tmp_path / words[words.index("--out") + 1])
    assert run.read_json("metrics.json")["final"]["fused"]["epoch"] == 0
    config = read_config(run)
    monkeypatch.chdir("/")  # the run's configuration says it all
    data = load_interactions(config)
    assert len(data) >= 5
    monkeypatch.chdir(tmp_path)
    described = CliRunner().invoke(app, ["data", *words[2 : words.index("--out")], "--json"])
    assert described.exit_code == 0, described.output
    facts = json.loads(described.stdout)
    assert facts["interactions_hash"] == data.hash
    assert facts["options"] == config.data if config.data else "options" not in facts
    assert facts["read"] == list(data.notes)
    for said in SAID[name]:
        assert said in "\n".join(data.notes)
    assert "warn" not in described.stderr
