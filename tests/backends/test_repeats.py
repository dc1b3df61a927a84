"""What a run reports is what it delivers: Hit@k is the share of test users whose list of k holds the target."""

import csv
import json

import numpy as np
import pytest

from ur4rec.data import build_interactions, load_dataset, make_split
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.popularity import popularity_ranks
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.finished import evaluate_run
from ur4rec.runs.prepared import prepare, prepare_data
from ur4rec.runs.recommender import Recommender
from ur4rec.runs.run import TrainingRun
from ur4rec.training.backend import load_scorer

NUM_USERS, NUM_ITEMS, LENGTH = 80, 30, 12
MODEL = {
    **{"sasrec_hidden_dim": 8, "sasrec_num_heads": 1, "sasrec_num_blocks": 1, "retriever_output_dim": 8},
    **{"text_embedding_dim": 8, "max_seq_len": 8},
}


def write_data(path, num_returning):
    """Users with a basket of 3 items that they use in turn; the others use new ones."""
    rng = np.random.default_rng(0)
    rows = [
        f"u{user},i{items[time % 3 if user < num_returning else time]},{time}"
        for user in range(NUM_USERS)
        for items in [rng.permutation(NUM_ITEMS)]
        for time in range(LENGTH)
    ]
    path.write_text("\n".join(["user,item,timestamp", *rows]) + "\n")


def config_of(path, backend, **settings):
    """A tiny run."""
    return RunConfig(
        dataset=str(path),
        backend=backend.name,
        batch_size=16,
        encoder="tfidf",
        device="cpu",
        model=MODEL,
        trainer={"sasrec_lr": 0.02, "retriever_lr": 0.02},
        **{"schedule": "parity", **settings},
    )


CASES = {
    "baskets": (NUM_USERS, "auto", "allow"),
    "both kinds, allowed": (NUM_USERS // 2, "auto", "allow"),
    "hardly any": (4, "auto", "exclude"),
}


@pytest.fixture(scope="module", params=CASES)
def run(request, backend, tmp_path_factory):
    """A trained run, its test targets, and the protocol that it should have."""
    num_returning, repeats, resolved = CASES[request.param]
    path = tmp_path_factory.mktemp("repeats")
    write_data(path / "plays.csv", num_returning)
    config = config_of(path / "plays.csv", backend, epochs={"joint_finetune": 4}, repeats=repeats)
    directory = RunDirectory.create(path / "run")
    TrainingRun(config, prepare(config), directory, progress=False).train()
    return directory, resolved


def test_every_target_of_a_given_split_is_ranked_and_named(backend, tmp_path):
    write_data(tmp_path / "plays.csv", NUM_USERS // 2)
    whole = load_dataset(tmp_path / "plays.csv")
    users_N, items_N = whole.sequences.rows, whole.sequences.items_N
    parts_N = np.where(
        whole.sequences.positions < LENGTH - 6, 0, np.where(whole.sequences.positions < LENGTH - 3, 1, 2)
    )
    given = build_interactions(
        users=[whole.user_ids[user] for user in users_N], items=[whole.item_ids[item] for item in items_N],
        timestamps=np.arange(len(users_N)), parts=parts_N, titles={}, texts={}, name="given", source="test",
    )  # fmt: skip
    config = config_of(tmp_path / "plays.csv", backend, epochs={"joint_finetune": 1}, schedule="payoff")
    prepared = prepare_data(config, given)
    assert (len(prepared.split.validation), len(prepared.split.test)) == (3 * NUM_USERS, 3 * NUM_USERS)
    probe = prepared.probe()
    assert probe.num_valid == len(probe.targets_B) == 3 * NUM_USERS
    assert (np.diff(probe.users_B) >= 0).all()
    directory = RunDirectory.create(tmp_path / "run")
    run = TrainingRun(config, prepared, directory, progress=False)
    run.train()
    with (directory.path / "test_ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    tested = [(given.user_ids[user], item) for user in range(NUM_USERS) for item in given.sequences[user][-3:]]
    assert [(row["user"], row["item"]) for row in rows] == [(user, given.item_ids[item]) for user, item in tested]
    scorer = load_scorer(backend.name, directory.require_checkpoint())
    ranks_T = scorer.rank(prepared.evaluation(prepared.split.test))
    assert [int(row["fused"]) for row in rows] == ranks_T.tolist()
    popularity_T = popularity_ranks(prepared.split.train, prepared.split.test, given.num_items)
    assert [int(row["popularity"]) for row in rows] == popularity_T.tolist()
    kinds = json.loads((directory.path / "metrics.json").read_text())["final"]["fused"]["test_by_kind"]
    new_T = np.array([item not in given.sequences[int(user[1:])][: LENGTH - 3] for user, item in tested])
    assert kinds["new"]["hit@10"] == pytest.approx((ranks_T[new_T] <= 10).mean())


def lists(recommender, targets, top):
    """What each test user is recommended on the history of the test target."""
    ids = recommender.interactions.user_ids
    return [
        [each.item_id for each in recommender.recommend(history, top=top, user_id=ids[user])]
        for user, history in zip(targets.users_T, targets.histories, strict=True)
    ]


def test_what_is_reported_is_delivered(run):
    directory, resolved = run
    recommender = Recommender(directory)
    split = make_split(recommender.interactions, repeats=resolved)
    wanted = [recommender.interactions.item_ids[item] for item in split.test.items_T]
    final = json.loads((directory.path / "metrics.json").read_text())["final"]["fused"]["test"]
    evaluated = evaluate_run(directory).rows()["fused"]
    for top in (5, 10):
        delivered = np.mean(
            [item in found for item, found in zip(wanted, lists(recommender, split.test, top), strict=True)]
        )
        assert delivered == pytest.approx(final[f"hit@{top}"]) == pytest.approx(evaluated[f"hit@{top}"])
    assert 0 < delivered < 1
    assert directory.read_json("config.json")["repeats"] == resolved


def test_seen_items_are_recommended_where_they_count(run):
    directory, resolved = run
    recommender = Recommender(directory)
    history = recommender.history_of("u0")[:LENGTH]
    found = recommender.recommend(history, top=1000, user_id="u0")
    seen = {recommender.interactions.item_ids[item] for item in history}
    assert len(found) == NUM_ITEMS - (0 if resolved == "allow" else len(seen))
    assert seen.isdisjoint(each.item_id for each in found) is (resolved == "exclude")
    assert sum(each.probabilities["fused"] for each in found) == pytest.approx(1)


def test_new_and_repeated_targets_are_reported_apart(run):
    directory, _ = run
    metrics = json.loads((directory.path / "metrics.json").read_text())
    share, left_out = (metrics["facts"][name] for name in ("repeated_targets", "targets_left_out"))
    both = 0 < share < 1 and not left_out
    assert set(evaluate_run(directory).rows()) == {
        *("fused", "sasrec", "retriever"),
        *(f"{name}, {kind}" for name in ("fused", "sasrec", "retriever") for kind in ("new", "repeated") if both),
    }
    for result in metrics["final"].values():
        kinds = result["test_by_kind"]
        assert set(kinds) == ({"new", "repeated"} if both else set())
        if both:  # half of the targets are of each kind
            assert (kinds["new"]["hit@10"] + kinds["repeated"]["hit@10"]) / 2 == pytest.approx(result["test"]["hit@10"])


def test_a_history_leaves_something_to_recommend_or_is_refused(run):
    directory, resolved = run
    recommender = Recommender(directory)
    everything = np.arange(NUM_ITEMS, dtype=np.int32)
    assert len(recommender.recommend(everything[1:], top=5)) == (5 if resolved == "allow" else 1)
    with pytest.raises(ConfigurationError, match="a history must have at least one item, got none"):
        recommender.recommend(everything[:0])
    if resolved == "allow":
        assert len(recommender.recommend(everything, top=NUM_ITEMS + 1)) == NUM_ITEMS
    else:
        with pytest.raises(ConfigurationError, match="a history must leave items to recommend, got all 30 in it"):
            recommender.recommend(everything)
