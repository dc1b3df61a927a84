"""`ur4rec train --user-texts` as a user meets it."""

import json

import pytest

from tests.integration.tiny_run import invoke, mistaken
from ur4rec.data import leave_one_out, synthetic
from ur4rec.text.users import texts_of_prefixes, write_user_texts

SHORT = [
    *("--dataset", "synthetic", "--preset", "smoke", "--batch-size", "512", "--quiet"),
    *("--epochs", "pretrain_sasrec=0", "--epochs", "pretrain_retriever=1"),
    *("--epochs", "joint_finetune=0", "--epochs", "end_to_end=0"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Texts of training titles, and the same with the test targets of a quarter of the users."""
    folder = tmp_path_factory.mktemp("texts")
    interactions = synthetic()
    texts = texts_of_prefixes(leave_one_out(interactions), interactions)
    write_user_texts(folder / "clean.json", interactions.user_ids, texts)
    for user in range(0, interactions.num_users, 4):
        texts[user] += f". Would love {interactions.titles[interactions.sequences[user][-1]]}"
    write_user_texts(folder / "leaky.json", interactions.user_ids, texts)
    return folder


def test_a_run_is_evaluated_without_the_file_and_goes_on_only_with_it(files, tmp_path):
    texts, out = tmp_path / "texts.json", tmp_path / "run"
    texts.write_bytes((files / "clean.json").read_bytes())
    assert invoke("train", *SHORT, "--user-texts", texts, "--out", out).exit_code == 0
    config = json.loads((out / "config.json").read_text())
    assert config["user_texts"] == str(texts)
    assert config["facts"]["user_texts"]["num_users"] == 600
    texts.write_text(json.dumps({"u1": "something else"}))
    assert f"must be those that the run began with (SHA-256 {config['user_texts_hash']})" in mistaken(
        "train", "--resume", out
    )
    texts.unlink()
    assert "must be readable" in mistaken("train", "--resume", out)
    found = json.loads(invoke("evaluate", out, "--json").stdout)
    saved = json.loads((out / "metrics.json").read_text())["final"]["retriever alone"]["test"]
    assert found["retriever"] == saved
    of_user = json.loads(invoke("recommend", out, "--user", "u42", "--json").stdout)
    titles = synthetic().titles
    items = [f"--item={titles[item]}" for item in synthetic().sequences[42]]
    of_history = json.loads(invoke("recommend", out, *items, "--json").stdout)
    assert of_user[0]["probabilities"]["retriever"] != of_history[0]["probabilities"]["retriever"]
    texts.write_bytes((files / "clean.json").read_bytes())
    assert invoke("train", "--resume", out, "--quiet").exit_code == 0


def test_texts_that_name_test_targets_are_refused_unless_allowed(files, tmp_path):
    arguments = ("train", *SHORT, "--user-texts", files / "leaky.json", "--out", tmp_path / "run")
    line = mistaken(*arguments)
    assert "leaky.json names the test target of 150 of 600 users where chance gives 1." in line
    assert "or pass --allow-leakage" in line
    assert not (tmp_path / "run").exists()
    assert invoke(*arguments, "--allow-leakage").exit_code == 0
    leakage = json.loads((tmp_path / "run" / "metrics.json").read_text())["facts"]["user_texts"]["leakage"]
    assert leakage["test"]["num_named"] == 150
    assert (leakage["validation"]["leaks"], leakage["test"]["leaks"]) == (False, True)


def test_a_malformed_file_is_one_line_with_its_place(tmp_path):
    (tmp_path / "texts.json").write_text('{"u1": "noir",\n"u2": war}')
    line = mistaken("train", *SHORT, "--user-texts", tmp_path / "texts.json", "--out", tmp_path / "run")
    assert "texts.json:2, column 7: must be JSON" in line
    assert not (tmp_path / "run").exists()
