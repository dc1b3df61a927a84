"""The comparison with RecBole: its pure parts, and the check that both are tested on the same."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ur4rec.data import leave_one_out, synthetic
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import summarise


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield SimpleNamespace(**{name: import_module(name) for name in ("peers", "peers_curves", "peers_report")})


@pytest.fixture
def make_run(benchmark):
    def make(system, seed, seconds, qualities, **about):
        epochs = [benchmark.peers_curves.tiny_epoch(seconds, quality) for quality in qualities]
        return benchmark.peers_curves.SystemRun(system=system, seed=seed, sitting="now", about=about, epochs=epochs)

    return make


def test_time_to_quality_counts_training_up_to_the_first_epoch_that_reaches_it(benchmark, make_run):
    ours, peer = make_run("ours", 0, 2.0, [0.1, 0.3, 0.2]), make_run("RecBole", 0, 50.0, [0.1, 0.25, 0.25])
    curves = benchmark.peers_curves
    assert peer.best("filtered") == 1
    assert [curves.seconds_to(ours, quality, "filtered", "wall") for quality in (0.05, 0.2, 0.31)] == [2.0, 4.0, None]
    assert curves.time_ratio(ours, peer, "unfiltered", "processor") == pytest.approx(4 / 100)
    assert curves.time_ratio(peer, ours, "filtered", "wall") is None
    assert curves.time_ratio(peer, ours, "filtered", "wall", 0.8) == pytest.approx(100 / 4)


def test_the_median_ratio_needs_every_run_to_get_there(benchmark, make_run):
    peer = make_run("RecBole", 0, 10.0, [0.2])
    runs = [make_run("ours", seed, 1.0, [0.1] * seed + [0.2]) for seed in range(3)]
    found = benchmark.peers_curves.time_ratios(runs, [peer], "filtered", "wall")
    assert found == {"each": pytest.approx([0.1, 0.2, 0.3]), "median": pytest.approx(0.2)}
    runs.append(make_run("ours", 3, 1.0, [0.1]))
    assert benchmark.peers_curves.time_ratios(runs, [peer], "filtered", "wall")["median"] is None


def test_quality_per_user_is_what_the_library_says_of_the_ranks(benchmark, make_run):
    run = make_run("ours", 0, 1.0, [0.1])
    for metric in ("ndcg@10", "hit@10"):
        per_user = benchmark.peers_curves.per_user(run, "filtered", metric)
        assert per_user.mean() == pytest.approx(summarise([1, 2, 11], [10])[metric])
    none = benchmark.peers_curves.difference([run], [run, run], "filtered", "ndcg@10", draws=20)
    assert none == pytest.approx({"value": 0.0, "low": 0.0, "high": 0.0})


def test_a_run_comes_back_from_its_file(benchmark, make_run):
    run = make_run("ours", 1, 1.5, [0.1, 0.2])
    assert benchmark.peers_curves.SystemRun.from_json(json.loads(json.dumps(run.to_json()))) == run


def test_the_report_says_which_bars_are_kept(benchmark, make_run, tmp_path):
    model = {"max_seq_len": 50, "sasrec_dropout": 0.5}
    ours = {"model": model, "batch_size": 64, "learning_rate": 3e-3, "epochs": 2, "shifted": True}
    shown = ("train_batch_size", "learning_rate", "learner", "stopping_step", "hidden_dropout_prob")
    theirs = {**dict.fromkeys(shown, 1), "rows_per_epoch": 97171, "own_ndcg@10_differs_by": 1e-9}
    peer = make_run("RecBole", 0, 10.0, [0.1, 0.2], **theirs)
    about = {"processor": "x", "cores": 2, "python": "3", "torch": "2", "peers": ["1"], "split_hash": "abc", "users": 3}
    third = make_run("RecTools", 0, 0.1, [0.3], batch_size=128)  # against which no bar is set
    for seconds, kept in ((1.0, True), (9.0, False)):
        runs = [make_run("ours", 0, seconds, [0.1, 0.2], **ours), peer, third]
        text, found = benchmark.peers_report.save(runs, tmp_path, "cpu", about, "python benchmarks/peers.py")
        assert found is kept
        assert (
            f"| ours | RecBole | filtered | wall | 100% | 0.2000 | 20 | {2 * seconds:.1f} | {seconds / 10:.3f} |"
            in text
        )
        assert ("**no**" in text) is not kept
        assert "ended 0 epochs after its best" in text  # it stops one after
    result = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert result["comparisons"][0]["time"][0]["median"] == pytest.approx(0.9)
    assert next(tmp_path.glob("*.png")).read_bytes().startswith(b"\x89PNG")


def test_scores_are_ranked_with_and_without_what_was_seen_and_other_targets_are_refused(benchmark, tmp_path):
    interactions = synthetic(num_users=20, num_items=60, seed=0)
    split = leave_one_out(interactions)
    task = benchmark.peers.Task(interactions=interactions, split=split, folder=tmp_path)
    scores_TI = np.random.default_rng(0).normal(size=(len(split.test), split.num_items))
    ranks = {
        name: benchmark.peers.rank_scores(scores_TI, batches)
        for name, batches in benchmark.peers.task_batches(task, "test").items()
    }
    targets_T = scores_TI[np.arange(len(scores_TI)), split.test.items_T]
    assert ranks["unfiltered"].tolist() == (scores_TI >= targets_T[:, None]).sum(1).tolist()
    assert (ranks["filtered"] <= ranks["unfiltered"]).all()
    assert (ranks["filtered"] < ranks["unfiltered"]).any()
    rows = {
        "users": [f"u{user}" for user in split.test.users_T],
        "targets": [f"i{item}" for item in split.test.items_T],
        "histories": [[f"i{item}" for item in row[-50:]] for row in split.test.histories],
    }
    benchmark.peers.check_tested(split.test, rows, "test")
    rows["targets"][3] = "i0" if rows["targets"][3] != "i0" else "i1"
    with pytest.raises(DataError, match="same targets"):
        benchmark.peers.check_tested(split.test, rows, "test")


def test_a_peer_that_does_not_stop_by_itself_is_stopped_when_nothing_gets_better(benchmark):
    qualities = [0.1, 0.2, 0.15, 0.2, 0.1, 0.3]
    epochs = (benchmark.peers_curves.tiny_epoch(1.0, quality) for quality in qualities)
    assert len(list(benchmark.peers.until_best(epochs, 3))) == 5
