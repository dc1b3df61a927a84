"""What can be done with a finished run: evaluate it, recommend from it, hand it to the other backend."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from tests.integration.tiny_run import invoke, mistaken
from ur4rec.cli.tables import popularity_table
from ur4rec.data import leave_one_out, synthetic
from ur4rec.evaluation.intervals import Interval
from ur4rec.evaluation.popularity import PopularityGroup
from ur4rec.text.leakage import find_leakage
from ur4rec.text.users import read_user_texts


def final(run):
    return json.loads((run / "metrics.json").read_text())["final"]


def test_evaluate_finds_the_metrics_of_the_run_again(run):
    rows = json.loads(invoke("evaluate", run[0], "--json").stdout)
    saved = final(run[0])
    assert rows["fused"] == saved["fused"]["test"]
    assert rows["sasrec"] == saved["SASRec in it"]["test"]
    validation = json.loads(invoke("evaluate", run[0], "--split", "validation", "--json").stdout)
    assert validation["fused"] == saved["fused"]["validation"]


def test_evaluate_writes_metrics_by_popularity(run, tmp_path):
    shown = invoke("evaluate", run[0], "--out", tmp_path / "found")
    assert shown.exit_code == 0, shown.stderr
    assert "by popularity of the target" in " ".join(shown.stdout.split())
    found = json.loads((tmp_path / "found" / "metrics.json").read_text())
    saved = json.loads((run[0] / "metrics.json").read_text())
    assert found["metrics"]["fused"] == saved["final"]["fused"]["test"]
    for mine, theirs in zip(found["by_popularity"], saved["by_popularity"], strict=True):
        assert mine["scorers"].get("fused") == theirs["scorers"].get("fused")
        assert mine["scorers"].get("sasrec") == theirs["scorers"].get("SASRec in it")
    assert (tmp_path / "found" / "popularity.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "found" / "popularity.csv").read_text().startswith("decile,num_items,")


def test_an_evaluation_replaces_nothing_but_an_evaluation(run, tmp_path):
    before = {path: path.read_bytes() for path in sorted(run[0].rglob("*")) if path.is_file()}
    refusal = f"--out must be new, empty or the directory of an evaluation, {run[0]} holds 'checkpoint'"
    assert refusal in mistaken("evaluate", run[0], "--out", run[0])
    assert {path: path.read_bytes() for path in sorted(run[0].rglob("*")) if path.is_file()} == before
    (tmp_path / "file").write_text("x")
    assert "--out must be a directory" in mistaken("evaluate", run[0], "--out", tmp_path / "file")
    for split in ("test", "validation"):
        shown = invoke("evaluate", run[0], "--split", split, "--out", tmp_path / "found")
        assert shown.exit_code == 0, shown.stderr
        assert f"{split} targets" in json.loads((tmp_path / "found" / "metrics.json").read_text())["title"]


def test_a_run_keeps_how_it_is_split_and_what_repeats_count(tmp_path):
    rows = [f"u{user},i{(user + time % 3) % 20},{time}" for user in range(40) for time in range(9)]
    (tmp_path / "plays.csv").write_text("\n".join(["user,item,timestamp", *rows, *rows[::9]]) + "\n")
    asked = ("--deduplicate", "--split", "temporal", "--repeats", "allow", "--batch-size", 64)
    sizes = [f"--set={name}=8" for name in ("sasrec_hidden_dim", "retriever_output_dim", "text_embedding_dim")]
    epochs = [f"--epochs={stage}=0" for stage in ("pretrain_sasrec", "pretrain_retriever", "end_to_end")]
    trained = invoke(
        *("train", "--dataset", tmp_path / "plays.csv", *asked, *sizes, *epochs, "--epochs=joint_finetune=1"),
        *("--preset", "smoke", "--schedule", "parity", "--device", "cpu", "--out", tmp_path / "run", "--quiet"),
    )
    assert trained.exit_code == 0, trained.stderr
    printed = " ".join(trained.stdout.split())
    assert "40 rows repeat another one (user, item and time): left out" in printed
    assert (
        "100.0% of the targets repeat an item of their history (as asked): items that a user had are allowed" in printed
    )
    assert "plays.csv --deduplicate --split temporal --backend torch" in printed  # as auto would decide of repeats
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["split"], config["repeats"], config["data"]) == ("temporal", "allow", {"deduplicate": True})
    assert config["facts"]["num_interactions"] == 360
    rows = json.loads(invoke("evaluate", tmp_path / "run", "--json").stdout)
    assert rows["fused"] == final(tmp_path / "run")["fused"]["test"]
    listed = invoke("recommend", tmp_path / "run", "--user", "u0", "--top", 21)
    assert "20 items are all that can be recommended: the run has no others\n" in listed.stdout
    (tmp_path / "sold-out.txt").write_text("i3\n")
    listed = invoke("recommend", tmp_path / "run", "--user", "u0", "--top", 21, "--exclude", tmp_path / "sold-out.txt")
    assert "19 items are all that can be recommended: the others are excluded\n" in listed.stdout
    assert "20 items" not in invoke("recommend", tmp_path / "run", "--user", "u0", "--top", 20).stdout


def test_the_other_backend_finds_them_too(run, tmp_path):
    assert invoke("convert", run[0], "--to", "jax", "--out", tmp_path / "jax").exit_code == 0
    rows = json.loads(invoke("evaluate", tmp_path / "jax", "--json").stdout)
    for name, value in final(run[0])["fused"]["test"].items():
        assert rows["fused"][name] == pytest.approx(value, abs=0.004)  # ranks of near ties may differ


def test_recommend_for_a_user_leaves_out_what_they_know(run):
    found = json.loads(invoke("recommend", run[0], "--user", "u42", "--top", 5, "--json").stdout)
    assert len(found) == 5
    fused = [each["probabilities"]["fused"] for each in found]
    assert fused == sorted(fused, reverse=True)
    assert all(0 < value < 1 for value in fused)
    again = json.loads(invoke("recommend", run[0], "--item", found[0]["title"], "--json", "--top", 300).stdout)
    assert found[0]["item_id"] not in {each["item_id"] for each in again}
    assert len(again) == 299
    assert sum(each["probabilities"]["fused"] for each in again) == pytest.approx(1)


def test_a_history_of_all_items_leaves_nothing_to_recommend(run):
    every = [part for number in range(300) for part in ("--item", f"i{number}")]
    assert "a history must leave items to recommend, got all 300" in mistaken("recommend", run[0], *every)


def test_recommend_prints_titles(run):
    result = invoke("recommend", run[0], "--user", "u1", "--top", 3)
    assert result.exit_code == 0
    titles = {each["title"] for each in json.loads(invoke("recommend", run[0], "--user", "u1", "--json").stdout)[:3]}
    assert all(title.split()[0] in result.stdout for title in titles)


def test_recommend_says_why_there_are_no_more(run):
    listed = invoke("recommend", run[0], "--item", "i1", "--top", 300)
    assert "after 1 item, the last: " in listed.stdout
    assert "299 items are all that can be recommended: the others are in the history\n" in listed.stdout


def test_recommend_loads_no_more_than_it_needs(run):
    code = """
import sys
from typer.testing import CliRunner
from ur4rec.cli import app
assert CliRunner().invoke(app, ["recommend", sys.argv[1], "--user", "u1"]).exit_code == 0
needless = {"torch._dynamo", "pandas", "sklearn", "matplotlib", "transformers", "sentence_transformers"}
print(sorted(needless & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, run[0]], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "RUN"], "give either --user ID or one or more --item TITLE"),
        (["recommend", "RUN", "--user", "nobody"], "unknown user 'nobody'; expected one of ('u0', 'u1', 'u2'"),
        (["recommend", "RUN", "--item", "zzzz"], "no item has the id or title 'zzzz'"),
        (["recommend", "RUN", "--item", "("], "an item must be named clearly, '(' fits"),
        (["recommend", "RUN", "--user", "u1", "--json", "--out", "NOWHERE"], "give either --out FILE or --json, got"),
        (["recommend", "RUN", "--all-users", "--json", "--out", "NOWHERE"], "a .jsonl file holds the rows as JSON"),
        (["recommend", "RUN", "--user", "u1", "--top", "0"], "top must be at least 1, got 0"),
        (["recommend", "NOWHERE", "--user", "u1"], "is no run directory"),
        (["evaluate", "RUN", "--split", "train"], "unknown split 'train'; expected one of ('test', 'validation')"),
        (["evaluate", "RUN", "--checkpoint", "first"], "unknown checkpoint 'first'"),
        (["convert", "RUN", "--to", "mxnet", "--out", "NOWHERE"], "unknown backend 'mxnet'"),
        (["convert", "RUN", "--to", "jax", "--out", "RUN"], "--out must not be in the run's own directory"),
        (["data", "--dataset", "ml-2m"], "unknown dataset 'ml-2m'"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, message):
    places = {"RUN": run[0], "NOWHERE": tmp_path / "nowhere"}
    assert message in mistaken(*(places.get(argument, argument) for argument in arguments))
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_checkpoint_is_one_line(run, tmp_path):
    copy = tmp_path / "copy"
    assert invoke("convert", run[0], "--to", "torch", "--out", copy).exit_code == 0
    best = copy / "checkpoint" / (copy / "checkpoint" / "BEST").read_text().strip() / "model.safetensors"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    assert "model.safetensors is damaged" in mistaken("evaluate", copy)


def copy_of(run, tmp_path, **changes):
    """A copy of the run whose config.json says something else."""
    copy = tmp_path / "copy"
    shutil.copytree(run[0], copy)
    content = {**json.loads((copy / "config.json").read_text()), **changes}
    (copy / "config.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"width": 3}}, "unknown setting of model 'width'; expected one of ('sasrec_hidden_dim',"),
        ({"epochs": [5]}, "epochs must be settings by name, got [5]"),
        ({"facts": None}, "the data must be the run's, but its"),
        ({"backend": "mxnet"}, "unknown backend 'mxnet'"),
    ],
)
def test_a_configuration_changed_by_hand_is_one_line(run, tmp_path, changes, message):
    copy = copy_of(run, tmp_path, **changes)
    assert message in mistaken("evaluate", copy)
    assert message in mistaken("recommend", copy, "--user", "u1")


def test_a_run_without_a_copy_of_its_data_reads_the_dataset(run, tmp_path):
    """As runs of earlier versions do: and finds out whether it is the run's."""
    copy = copy_of(run, tmp_path)
    shutil.rmtree(copy / "data")
    assert json.loads(invoke("evaluate", copy, "--json").stdout)["fused"] == final(run[0])["fused"]["test"]
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "min_item_interactions": 60}))
    assert "the data must be the run's, but its split_hash" in mistaken("evaluate", copy)
    assert "the data must be the run's, but its interactions_hash" in mistaken("recommend", copy, "--user", "u1")


@pytest.mark.parametrize("content", [b"", b"\xff\0", b"../../step-1", b"step-"])
def test_a_damaged_pointer_to_the_checkpoint_is_one_line(run, tmp_path, content):
    copy = copy_of(run, tmp_path)
    (copy / "checkpoint" / "BEST").write_bytes(content)
    assert "BEST must name a checkpoint beside it" in mistaken("evaluate", copy)


def test_a_converted_run_replaces_only_an_earlier_run(run, tmp_path):
    command = ["convert", run[0], "--to", "torch", "--out", tmp_path / "copy"]
    assert invoke(*command).exit_code == 0
    (tmp_path / "copy" / "note.txt").write_text("mine")
    assert "give --overwrite" in mistaken(*command)
    assert invoke(*command, "--overwrite").exit_code == 0
    assert not (tmp_path / "copy" / "note.txt").exists()
    for own in (run[0], run[0] / "copy"):
        assert "must not be in the run's own directory" in mistaken(*command[:-1], own, "--overwrite")


def test_a_reader_who_goes_away_is_no_error():
    command = [sys.executable, "-c", "from ur4rec.cli import main; main()", "data", "synthetic", "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_settings_are_listed_with_the_values_of_a_preset():
    assert "--set sasrec_hidden_dim=64 (default 256)" in invoke("settings", "--preset", "demo").stdout
    assert "--set sasrec_hidden_dim=? (from the data)\n" in invoke("settings").stdout
    assert "--set retriever_num_queries=4\n" in invoke("settings").stdout
    assert "unknown preset 'large'; expected one of ('default', " in mistaken("settings", "--preset", "large")


def test_presets_are_listed_for_their_data():
    listed = invoke("presets").stdout
    assert "amazon\n    sparse data of short histories" in listed
    assert "d = 64, blocks 1, heads 1, 50 positions, dropout 0.4, batches of 128" in listed


def test_a_dataset_is_named_once():
    assert json.loads(invoke("data", "synthetic", "--json").stdout)["num_users"] == 600
    assert "a dataset must be named once" in mistaken("data", "synthetic", "--dataset", "ml-100k")


def test_data_prints_counts_and_hashes():
    facts = json.loads(invoke("data", "--dataset", "synthetic", "--json").stdout)
    assert (facts["num_users"], facts["num_items"]) == (600, 300)
    assert (facts["split"], len(facts["split_hash"])) == ("leave-one-out", 64)
    assert (facts["repeats_allowed"], facts["repeated_targets"], facts["duplicates"]) == (False, 0, 0)
    temporal = json.loads(invoke("data", "synthetic", "--split", "temporal", "--repeats", "allow", "--json").stdout)
    assert (temporal["split"], temporal["repeats_allowed"]) == ("global-temporal-0.9", True)
    assert temporal["split_hash"] != facts["split_hash"]
    assert facts["default"]["max_seq_len"] == 32
    text = " ".join(invoke("data", "--dataset", "synthetic").stdout.split())
    assert "max_seq_len=32: 95% of the histories are no longer than 2" in text
    assert "num_interactions" in text
    assert (
        "0.0% of the targets repeat an item of their history (auto: allowed from 10%): items that a user had are "
        in text
    )


UNTRAINABLE = {
    "one item": (
        "".join(f"u{row % 6},i,{row}\n" for row in range(60)),
        "must have at least 2 items, got 1; look which",
    ),
    "short histories": (
        "".join(f"u{row % 2},i{row},{row}\n" for row in range(6)),
        "some user must have at least 2 training interactions besides what the split leave-one-out holds out, of 2 "
        "users none has; look which column is the user's, or give longer histories",
    ),
}


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_data_is_refused_as_training_refuses_it(tmp_path, name):
    rows, message = UNTRAINABLE[name]
    (tmp_path / "x.csv").write_text(f"user,item,timestamp\n{rows}")
    line = mistaken("train", "--dataset", tmp_path / "x.csv", "--out", tmp_path / "run", "--quiet")
    assert message in line
    shown = invoke("data", tmp_path / "x.csv", "--json")
    assert (shown.exit_code, shown.stderr.strip()) == (2, line)
    assert json.loads(shown.stdout)["num_interactions"] == rows.count("\n")
    assert mistaken("data", "prepare", tmp_path / "x.csv", "--out", tmp_path / "prepared", "--quiet") == line
    assert {path.name for path in tmp_path.iterdir()} == {"x.csv"}


def test_data_writes_texts_from_training_prefixes(tmp_path):
    words = ("data", "--dataset", "synthetic", "--write-user-texts")
    result = invoke(*words, tmp_path / "texts.json")
    assert (result.exit_code, result.stderr) == (0, f"the texts of 600 users are in {tmp_path / 'texts.json'}\n")
    interactions = synthetic()
    split = leave_one_out(interactions)
    texts = read_user_texts(tmp_path / "texts.json", interactions.user_ids)
    assert texts[7].split("; ") == [interactions.titles[item] for item in split.train[7][-20:]]
    assert not any(test.leaks for test in find_leakage(texts, interactions, split))
    written = (tmp_path / "texts.json").read_text()
    (tmp_path / "texts.json").write_text("mine")
    assert "must be a file that does not exist, got" in mistaken(*words, tmp_path / "texts.json")
    assert (tmp_path / "texts.json").read_text() == "mine"
    replaced = invoke(*words, tmp_path / "texts.json", "--overwrite", "--json")
    assert json.loads(replaced.stdout)["dataset"] == "synthetic"
    assert (tmp_path / "texts.json").read_text() == written
    for path in (tmp_path, tmp_path / "nosuch" / "texts.json"):
        assert "must be a file in a directory that exists, got" in mistaken(*words, path, "--overwrite")
    assert not (tmp_path / "nosuch").exists()
    assert "--overwrite is for --write-user-texts" in mistaken("data", "synthetic", "--overwrite")


def test_an_encoder_inside_a_run_is_not_used_to_evaluate_and_refused_to_resume(run, tmp_path):
    """The text vectors are in the checkpoint; what a run names as its encoder may hold no code."""
    copy = copy_of(run, tmp_path, encoder=str(tmp_path / "copy" / "model"))
    (copy / "model").mkdir()
    (copy / "model" / "modules.json").write_text('[{"path": "", "type": "evil.Evil"}]')
    (copy / "model" / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    assert json.loads(invoke("evaluate", copy, "--json").stdout)["fused"] == final(run[0])["fused"]["test"]
    assert invoke("recommend", copy, "--user", "u1").exit_code == 0
    assert "no code and no pickles, got" in mistaken("train", "--resume", copy)
    assert not (tmp_path / "marker").exists()


def test_the_table_of_popularity_fits_a_narrow_terminal():
    interval = Interval(0.12345, 0.1, 0.2)
    names = ["SASRec alone", "retriever alone", "fused"]
    scorers = {name: {"ndcg@10": interval, "hit@10": interval} for name in names}
    groups = [
        PopularityGroup("cold", 9, 0, 0, 0, {}),
        PopularityGroup("10", 123, 1234, 56789, 12345, scorers),
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(popularity_table(groups, dict(zip(names, names, strict=True))))
    text = console.file.getvalue()
    assert text.count("0.123 ±0.050") == 3
    assert "1,234-56,789" in text
    assert "…" not in text
