"""`ur4rec recommend` for many users, for those and for items that came later, and the files that it writes."""

import csv
import json
import logging
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.guide_blocks import blocks_of, run_blocks
from tests.integration.tiny_run import invoke, mistaken
from tests.several_threads import run_in_threads
from ur4rec.data import synthetic
from ur4rec.runs import recommendations
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.recommender import Recommender
from ur4rec.training.processes import ONE_PROCESS

DATA = synthetic()
"""What the run was trained on: item n is of cluster n % 25, whose titles have words of their own."""


def recommend(run, *arguments):
    done = invoke("recommend", run[0], "--quiet", *arguments)
    assert done.exit_code == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def everyone(run, tmp_path_factory):
    """A file of each kind with recommendations for all users."""
    folder = tmp_path_factory.mktemp("everyone")
    for kind in ("parquet", "csv", "jsonl"):
        recommend(run, "--all-users", "--top", 4, "--out", folder / f"recs.{kind}")
    return folder


def test_everyone_gets_what_they_would_get_alone(run, everyone):
    rows = pq.read_table(everyone / "recs.parquet").to_pylist()
    assert [row["user"] for row in rows] == [user for user in DATA.user_ids for _ in range(4)]
    assert [row["place"] for row in rows] == [1, 2, 3, 4] * 600
    for user in ("u0", "u42", "u599"):
        alone = json.loads(recommend(run, "--user", user, "--top", 4, "--json").stdout)
        own = [row for row in rows if row["user"] == user]
        assert [(row["item"], row["title"], row["cold"]) for row in own] == [
            (each["item_id"], each["title"], each["cold"]) for each in alone
        ]
        for scorer in ("fused", "sasrec", "retriever"):
            np.testing.assert_allclose(
                [row[scorer] for row in own], [each["probabilities"][scorer] for each in alone], rtol=1e-4
            )


def test_processes_divide_the_users(run, everyone):
    def tables_of(processes):
        recommender = Recommender(RunDirectory.open_existing(run[0]), memory="1MiB")
        return pa.concat_tables(recommender.recommend_users(top=4, processes=processes))

    expected = pq.read_table(everyone / "recs.parquet")
    alone = tables_of(ONE_PROCESS)
    assert alone.num_rows == expected.num_rows
    for found in run_in_threads(3, tables_of):
        assert found.equals(alone)


def test_all_kinds_of_files_say_the_same(everyone):
    rows = pq.read_table(everyone / "recs.parquet").to_pylist()
    assert [json.loads(line) for line in (everyone / "recs.jsonl").read_text().splitlines()] == rows
    with (everyone / "recs.csv").open(newline="") as file:
        of_csv = list(csv.DictReader(file))
    for name, kind in {"user": str, "item": str, "title": str, "place": int}.items():
        assert [kind(row[name]) for row in of_csv] == [row[name] for row in rows]
    np.testing.assert_allclose([float(row["fused"]) for row in of_csv], [row["fused"] for row in rows], rtol=1e-6)
    assert {path.name for path in everyone.iterdir()} == {"recs.parquet", "recs.csv", "recs.jsonl"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.txt", "u7\nu3\r\nu7\n"),
        ("ids", "u7\nu3\n\n"),
        ("ids.csv", 'age,user\n3,u7\n4,"u3"\n'),
        ("ids.tsv", "user_id\tx\nu7\t1\nu3\t1\n"),
        ("ids.jsonl", '{"user": "u7"}\n{"user": "u3", "x": []}\n'),
    ],
)
def test_users_come_from_files(run, everyone, tmp_path, name, content):
    (tmp_path / name).write_text(content, newline="")
    recommend(run, "--users", tmp_path / name, "--top", 4, "--out", tmp_path / "recs.parquet")
    rows = pq.read_table(everyone / "recs.parquet").to_pylist()
    expected = [row for user in ("u7", "u3") for row in rows if row["user"] == user]
    found = pq.read_table(tmp_path / "recs.parquet").to_pylist()
    assert [(row["user"], row["item"]) for row in found] == [(row["user"], row["item"]) for row in expected]


def test_many_users_on_the_screen_are_the_first(run):
    shown = recommend(run, "--all-users", "--top", 2).stdout
    assert "u2" in shown
    assert "u3 " not in shown
    assert "597 more users: write them all with --out recs.parquet" in " ".join(shown.split())


def test_where_there_is_no_terminal_progress_is_lines(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ur4rec.training.scorer.MAX_ROWS", 100)
    done = invoke("recommend", run[0], "--all-users", "--out", tmp_path / "recs.csv")
    lines = [line for line in done.stderr.splitlines() if "users, " in line]
    assert [line.split(",")[0] for line in lines] == [f"{count} of 600 users" for count in range(100, 700, 100)]


def test_items_are_excluded_and_chosen(run, tmp_path, caplog):
    (tmp_path / "sold-out.txt").write_text("i1\ni2\nnever used\n")
    (tmp_path / "new.csv").write_text("item,note\n" + "".join(f"i{item},x\n" for item in range(20)))
    words = ("--all-users", "--exclude", tmp_path / "sold-out.txt", "--only", tmp_path / "new.csv", "--top", 50)
    with caplog.at_level(logging.WARNING):
        rows = json.loads(recommend(run, *words, "--json").stdout)
    assert {row["item"] for row in rows} == {f"i{item}" for item in range(20)} - {"i1", "i2"}
    assert "exclude: 1 of 3 items are unknown: 'never used'" in caplog.text
    for user in ("u1", "u500"):
        own = [row for row in rows if row["user"] == user]
        history = {DATA.item_ids[item] for item in DATA.sequences[DATA.user_ids.index(user)]}
        assert {row["item"] for row in own} == {f"i{item}" for item in range(20)} - {"i1", "i2"} - history
        assert sum(row["fused"] for row in own) == pytest.approx(1, rel=1e-4)


def test_users_with_nothing_left_are_counted_and_alone_refused(run, tmp_path, caplog):
    first = DATA.item_ids[DATA.sequences[0][0]]
    (tmp_path / "only.txt").write_text(first)
    with caplog.at_level(logging.WARNING):
        rows = json.loads(recommend(run, "--all-users", "--only", tmp_path / "only.txt", "--json").stdout)
    had_it = [
        user for user, items in zip(DATA.user_ids, DATA.sequences, strict=True) if DATA.item_ids.index(first) in items
    ]
    assert {row["user"] for row in rows} == set(DATA.user_ids) - set(had_it)
    assert f"{len(had_it)} of 600 users have no row" in caplog.text
    line = mistaken("recommend", run[0], "--user", had_it[0], "--only", tmp_path / "only.txt")
    assert "a history must leave items to recommend" in line


def test_a_run_that_allows_repeats_recommends_what_was_had(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    for repeats, count in (("allow", 300), ("exclude", 300 - len(set(DATA.sequences[5].tolist())))):
        (tmp_path / "run/config.json").write_text(json.dumps({**config, "repeats": repeats}))
        found = recommend([tmp_path / "run"], "--user", DATA.user_ids[5], "--top", 300, "--json").stdout
        assert len(json.loads(found)) == count


@pytest.fixture
def later(tmp_path):
    """Files of what came later: a user with rows of old and new items, rows of old users, and items."""
    old = [
        f"{DATA.user_ids[5]},{DATA.item_ids[item]},{time}"
        for item, time in zip(DATA.sequences[5], times_of(5), strict=True)
    ]
    new = [
        "newcomer,i7,2000000000",
        "newcomer,cold3,2000000001",
        "newcomer,i32,2000000002",
        "u5,i7,2000000003",
        "u5,nameless,2000000004",
    ]
    (tmp_path / "plays.csv").write_text("\n".join(["user,item,timestamp", *old, *new]))
    lines = [f"cold{cluster},{title_of(cluster)},{text_of(cluster)}" for cluster in range(25)]
    (tmp_path / "items.csv").write_text("\n".join(["item,title,text", "i0,another title,x", *lines]))
    return ["--interactions", tmp_path / "plays.csv", "--items", tmp_path / "items.csv"]


def times_of(user):
    return DATA.timestamps_N[DATA.users_N == user]


def items_of(cluster):
    return [number for number, item in enumerate(DATA.item_ids) if int(item[1:]) % 25 == cluster]


def title_of(cluster):
    return " ".join(DATA.titles[items_of(cluster)[0]].split()[:2]) + " cold"


def text_of(cluster):
    return DATA.texts[items_of(cluster)[1]].replace(",", " ")


def test_users_and_items_that_came_later_are_taken(run, later, caplog):
    with caplog.at_level(logging.INFO):
        rows = json.loads(recommend(run, *later, "--all-users", "--top", 400, "--json").stdout)
    assert (
        f"{len(DATA.sequences[5])} of {len(DATA.sequences[5]) + 5} interactions are the run's own: left out"
        in caplog.text
    )
    assert "1 of 26 items that came later have no text" in caplog.text
    assert "1 of 26 items are the run's own: they keep its texts" in caplog.text
    own = {user: [row for row in rows if row["user"] == user] for user in ("newcomer", "u5", "u0")}
    every = set(DATA.item_ids) | {f"cold{cluster}" for cluster in range(25)} | {"nameless"}
    assert {row["item"] for row in own["newcomer"]} == every - {"i7", "cold3", "i32"}
    history = {DATA.item_ids[item] for item in DATA.sequences[5]}
    assert {row["item"] for row in own["u5"]} == every - history - {"i7", "nameless"}
    for row in own["u0"]:
        assert row["cold"] == (row["item"].startswith("cold") or row["item"] == "nameless")


def test_a_cold_item_whose_text_a_user_likes_is_above_those_that_they_do_not(run, later, tmp_path):
    (tmp_path / "only.txt").write_text("\n".join(f"cold{cluster}" for cluster in range(25)))
    words = ("--all-users", "--items", later[3], "--only", tmp_path / "only.txt", "--top", 25, "--json")
    places = {(row["user"], row["item"]): row["place"] for row in json.loads(recommend(run, *words).stdout)}
    found = []
    for user, items in zip(DATA.user_ids, DATA.sequences, strict=True):
        clusters = np.bincount([int(DATA.item_ids[item][1:]) % 25 for item in items], minlength=25)
        if clusters.max() >= 8:
            found.append(places[user, f"cold{clusters.argmax()}"])
    assert len(found) > 50
    assert np.mean(found) < 4  # of 25: by chance it would be 13


def test_each_scorer_has_a_list_of_its_own(run):
    recommender = Recommender(RunDirectory.open_existing(run[0]))
    history = recommender.history_of("u9")
    lists = recommender.lists(history, top=5, user_id="u9")
    assert lists["fused"] == recommender.recommend(history, top=5, user_id="u9")
    assert [each.item_id for each in lists["sasrec"]] != [each.item_id for each in lists["retriever"]]
    for scorer, found in lists.items():
        own = [each.probabilities[scorer] for each in found]
        assert own == sorted(own, reverse=True)


def test_the_guide_s_program_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks_of("docs/recommender.md") if "Recommender(" in block]
    names = run_blocks("docs/recommender.md", [block.replace("runs/mine", str(run[0]))], {})
    assert {name: len(found) for name, found in names["lists"].items()} == {"fused": 3, "sasrec": 3, "retriever": 3}
    assert len(pq.read_table("recs.parquet")) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "u1", "--all-users"], "give either --user ID or one or more --item TITLE, or for many users"),
        (["--users", "HERE/users.txt"], "2 of 3 are neither ('nobody', 'no one'); leave them out, or give their inter"),
        (["--users", "HERE/users.csv"], "users.csv: needs a column 'user', has 'name'; rename it, or write one id per"),
        (["--users", "HERE/users.jsonl"], "users.jsonl:2: must be a JSON object"),
        (["--users", "HERE/numbers.jsonl"], "are neither ('1.5')"),
        (["--users", "HERE/none.txt"], "must be an existing file, got none"),
        (["--all-users", "--only", "HERE/users.txt"], "some item must be left to recommend, got none"),
        (["--all-users", "--out", "HERE/recs.xlsx"], "--out must end in one of ('.parquet', '.csv', '.jsonl'), got"),
        (["--all-users", "--out", "HERE/no/recs.csv"], "--out must be a file in a directory that exists"),
        (["--all-users", "--top", "0"], "top must be at least 1, got 0"),
        (["--user", "u1", "--items", "HERE/users.csv"], "users.csv: needs a column 'item', has 'name'"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, message):
    (tmp_path / "users.txt").write_text("u1\nnobody\nno one\n")
    (tmp_path / "users.csv").write_text("name\nu1\n")
    (tmp_path / "users.jsonl").write_text('{"user": 1}\n[]\n')
    (tmp_path / "numbers.jsonl").write_text('{"user": 1.5}\n')
    before = sorted(tmp_path.iterdir())
    words = [str(argument).replace("HERE", str(tmp_path)) for argument in arguments]
    assert message in mistaken("recommend", run[0], "--quiet", *words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", recommendations.SUFFIXES)
def test_a_file_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch, kind):
    out = tmp_path / f"recs{kind}"
    out.write_text("yesterday's")

    def stop(self, found, names, progress):
        yield from tables(self, list(found)[:1], names, progress)
        raise OSError(28, "No space left on device")

    tables = Recommender._to_tables
    monkeypatch.setattr(Recommender, "_to_tables", stop)
    assert "No space left on device" in mistaken("recommend", run[0], "--all-users", "--quiet", "--out", out)
    assert out.read_text() == "yesterday's"
    assert list(tmp_path.iterdir()) == [out]
