"""The comparison with other libraries: its pure parts, one split, one ranking, and runs of ours."""

import json
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ur4rec.data import leave_one_out, synthetic
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.evaluation.metrics import summarise

MODULES = ("peers", "peers_curves", "peers_report", "peers_systems", "peers_task", "peers_worker")


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield SimpleNamespace(**{name: import_module(name) for name in MODULES})


@pytest.fixture
def make_run(benchmark):
    def make(system, seed, seconds, qualities, **about):
        epochs = [benchmark.peers_curves.tiny_epoch(seconds, quality) for quality in qualities]
        return benchmark.peers_curves.SystemRun(system=system, seed=seed, sitting="now", about=about, epochs=epochs)

    return make


@pytest.fixture
def make_task(benchmark, tmp_path):
    interactions = synthetic(num_users=30, num_items=60, seed=0)
    return benchmark.peers_task.write_task(interactions, leave_one_out(interactions, repeats="exclude"), tmp_path)


@pytest.fixture
def make_job(benchmark, make_task, tmp_path):
    def make(**changes):
        fields = {"system": "ours", "seed": 1, "first_seed": 0, "settings": {}, "max_seq_len": 10, "epochs": 9}
        fields |= {"patience": None, "limit_seconds": 1e9, "task": str(make_task.folder), "sitting": "now"}
        return benchmark.peers_worker.Job(**{**fields, "out": str(tmp_path / "run.json"), **changes})

    return make


def test_time_to_quality_counts_training_up_to_the_first_epoch_that_reaches_it(benchmark, make_run):
    ours, peer = make_run("ours", 0, 2.0, [0.1, 0.3, 0.2]), make_run("RecBole", 0, 50.0, [0.1, 0.25, 0.25])
    curves = benchmark.peers_curves
    assert peer.best("filtered") == 1
    assert [curves.seconds_to(ours, quality, "filtered", "wall") for quality in (0.05, 0.2, 0.31)] == [2.0, 4.0, None]
    assert curves.time_ratio(ours, peer, "unfiltered", "processor") == pytest.approx(4 / 100)
    assert curves.time_ratio(peer, ours, "filtered", "wall") is None
    assert curves.time_ratio(peer, ours, "filtered", "wall", 0.8) == pytest.approx(100 / 4)


def test_ratios_have_an_interval_over_seeds_and_what_never_gets_there_is_the_longest(benchmark, make_run):
    peers = [make_run("RecBole", seed, 10.0, [0.2]) for seed in range(2)]
    runs = [make_run("ours", seed, 1.0, [0.1] * seed + [0.2]) for seed in range(3)]
    ratios, ratio = (
        benchmark.peers_curves.ratios,
        partial(benchmark.peers_curves.time_ratio, scoring="filtered", clock="wall"),
    )
    found = ratios(ratio, runs, peers)
    assert found["each"] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert [found[name] for name in ("median", "low", "high")] == pytest.approx([0.2, 0.1, 0.3])
    runs[2] = make_run("ours", 2, 1.0, [0.1])
    found = ratios(ratio, runs, peers)
    assert (found["median"], found["low"], found["high"]) == (pytest.approx(0.2), pytest.approx(0.1), None)
    none = ratios(ratio, runs[2:], peers)
    assert (none["median"], none["low"], none["high"]) == (None, None, None)


def test_a_peer_that_never_gets_to_our_best_is_counted_with_all_of_its_training(benchmark, make_run):
    ours = make_run("ours", 0, 2.0, [0.1, 0.3, 0.2])
    for qualities, ratio in (([0.1, 0.3, 0.4], 4 / 100), ([0.1, 0.2, 0.2, 0.2], 4 / 200)):
        peer = make_run("RecBole", 0, 50.0, qualities)
        assert benchmark.peers_curves.bounded_ratio(ours, peer, "filtered", "processor") == pytest.approx(ratio)
        found = benchmark.peers_report.to_ours([ours], [peer], "filtered")
        assert found["median"] == pytest.approx(ratio)
        assert found["peer"] == [[100.0 if ratio == 4 / 100 else None]]
        assert (found["targets"], found["ours"], found["peer_in_all"]) == ([0.3], [4.0], [50.0 * len(qualities)])


def test_quality_per_user_is_what_the_library_says_of_the_ranks(benchmark, make_run):
    run = make_run("ours", 0, 1.0, [0.1])
    for metric in ("ndcg@10", "hit@10"):
        per_user = benchmark.peers_curves.per_user(run, "filtered", metric)
        assert per_user.mean() == pytest.approx(summarise([1, 2, 11], [10])[metric])
    none = benchmark.peers_curves.difference([run], [run, run], "filtered", "ndcg@10", draws=20)
    assert none == pytest.approx({"value": 0.0, "low": 0.0, "high": 0.0})


def test_a_run_comes_back_from_its_file_and_keeps_the_ranks_that_are_reported(benchmark, make_run):
    run = make_run("ours", 1, 1.5, [0.1, 0.2])
    assert benchmark.peers_curves.SystemRun.from_json(json.loads(json.dumps(run.to_json()))) == run
    reported = run.reported()
    assert [sorted(epoch.test_ranks) for epoch in reported.epochs] == [[], ["filtered", "unfiltered"]]
    assert benchmark.peers_curves.quality([reported], "filtered", "ndcg@10")["mean"] > 0


def test_the_report_says_which_bars_are_kept(benchmark, make_run, tmp_path):
    about = {"processor": "x", "cores": 2, "python": "3", "torch": "2", "peers": ["1"], "split_hash": "abc", "users": 3}
    about |= {"commit": "abc", "data": "ml-100k", "items": 9, "interactions": 99, "failed": ["eSASRec, seed 2: broken"]}
    peers = [
        make_run("RecBole", 0, 10.0, [0.1, 0.2], learner="adam", ended="at the limit of 5 s"),
        make_run("eSASRec", 0, 5.0, [0.1, 0.2]),
    ]
    for seconds, kept in ((1.0, True), (4.0, False)):  # of 10 and 5 a step: bars of 1/10 and 1/3
        runs = [make_run("ours", seed, seconds, [0.1, 0.2], settings={"epochs": 2}) for seed in range(2)]
        text, found = benchmark.peers_report.save([*runs, *peers], tmp_path, "cpu", about, "python peers.py")
        assert found is kept
        row = f"| ours | RecBole | filtered | processor | 100% | 0.2000 | 20 | {2 * seconds:.1f}, {2 * seconds:.1f} |"
        assert f"{row} {seconds / 10:.3f} | {seconds / 10:.3f} – {seconds / 10:.3f} |" in text
        assert ("**no**" in text) is not kept
        assert f"| ours | eSASRec | filtered | 0.2000, 0.2000 | {2 * seconds:.0f}, {2 * seconds:.0f} | 10, 10 |" in text
        assert "MovieLens-100K" in text
        assert "seed 0 at the limit of 5 s" in text
        assert "eSASRec, seed 2: broken" in text
        assert '"learner": "adam"' in text
    result = json.loads(next(tmp_path.glob("peers-ml-100k_cpu_*.json")).read_text())
    assert [(each["system"], each["peer"]) for each in result["comparisons"]] == [
        ("ours", "RecBole"),
        ("ours", "eSASRec"),
    ]
    assert result["comparisons"][0]["time"][0]["median"] == pytest.approx(0.4)
    assert next(tmp_path.glob("*.png")).read_bytes().startswith(b"\x89PNG")


def test_the_task_comes_back_from_its_file_and_the_peers_file_holds_every_interaction(benchmark, make_task):
    again = benchmark.peers_task.read_task(make_task.folder)
    assert again.split.hash == make_task.split.hash
    lines = (make_task.folder / "peers" / "peers.inter").read_text().splitlines()
    split = make_task.split
    assert len(lines) == 1 + split.train.lengths.sum() + len(split.validation) + len(split.test)
    user = split.test.users_T[4]
    last = [line.split("\t") for line in lines if line.startswith(f"u{user}\t")][-1]
    assert last == [f"u{user}", f"i{split.test.items_T[4]}", str(len(split.test.histories[4]))]


def test_scores_are_ranked_with_and_without_what_was_seen(benchmark, make_task):
    split = make_task.split
    scores_TI = np.random.default_rng(0).normal(size=(len(split.test), split.num_items))
    ranks = benchmark.peers_task.rank_scores(lambda batch: scores_TI[batch.users_B], make_task.batches("test", 8, 7))
    targets_T = scores_TI[np.arange(len(scores_TI)), split.test.items_T]
    assert split.test.users_T.tolist() == list(range(len(scores_TI)))
    assert ranks["unfiltered"].tolist() == (scores_TI >= targets_T[:, None]).sum(1).tolist()
    for scores_I, items, rank, target in zip(
        scores_TI, split.test.seen, ranks["filtered"], split.test.items_T, strict=True
    ):
        unseen = np.setdiff1d(np.arange(split.num_items), np.setdiff1d(items, [target]))
        assert rank == (scores_I[unseen] >= scores_I[target]).sum()


def test_a_peer_that_tests_on_something_else_is_refused(benchmark, make_task):
    targets = make_task.split.test
    rows = {
        "users": [f"u{user}" for user in targets.users_T],
        "targets": [f"i{item}" for item in targets.items_T],
        "histories": [[f"i{item}" for item in row[-5:]] for row in targets.histories],
    }
    benchmark.peers_task.check_tested(targets, 5, "test", rows)
    for name, other in (("users", "u99"), ("targets", "i99"), ("histories", ["i99"])):
        changed = {**rows, name: [*rows[name][:-1], other]}
        with pytest.raises(DataError, match=f"same {name}"):
            benchmark.peers_task.check_tested(targets, 5, "test", changed)


def record(benchmark, job, task, qualities, own_ndcg=None):
    """The run of a system whose validation has these qualities, and which parts were ranked."""
    recorder, ranked = benchmark.peers_worker.Recorder(job, task), []
    rank_of = {0.1: 9, 0.2: 5, 0.3: 1}

    def ranks(quality, part):
        ranked.append(part)
        rank = np.full(len(task.split.test), rank_of[quality])
        return {"filtered": rank, "unfiltered": rank + 1}

    for quality in qualities:
        try:
            recorder.epoch({"wall": 2.0, "processor": 1.0}, partial(ranks, quality), own_ndcg)
        except benchmark.peers_worker.Stopped:
            break
    content = json.loads(Path(job.out).read_text())
    return benchmark.peers_curves.SystemRun.from_json(content), ranked


def test_a_run_ranks_test_where_validation_is_best_and_stops_when_nothing_gets_better(benchmark, make_job, make_task):
    run, ranked = record(benchmark, make_job(patience=2), make_task, [0.1, 0.2, 0.1, 0.2, 0.3])
    assert ranked == ["validation", "test", "validation", "test", "validation", "validation"]
    assert run.about["ended"] == "2 epochs without a better validation"
    assert [len(epoch.test_ranks) for epoch in run.epochs] == [0, 2, 0, 0]
    assert run.seconds("processor") == [1.0, 2.0, 3.0, 4.0]


def test_what_a_peer_says_of_itself_is_compared(benchmark, make_job, make_task):
    unfiltered = summarise([6], [10])["ndcg@10"]  # of rank 5 among the unseen
    run, _ = record(benchmark, make_job(epochs=1), make_task, [0.2], unfiltered + 0.25)
    assert run.about["own_ndcg@10_differs_by"] == pytest.approx(0.25)


def test_the_epochs_of_a_run_that_is_interrupted_are_kept_until_it_ends(benchmark, make_job, make_task):
    job = make_job(epochs=2)
    unfinished = benchmark.peers_worker.unfinished(Path(job.out))
    recorder = benchmark.peers_worker.Recorder(job, make_task)
    ranks = np.ones(len(make_task.split.test), int)

    def epoch():
        recorder.epoch({"wall": 2.0, "processor": 1.0}, lambda part: {"filtered": ranks, "unfiltered": ranks})

    epoch()
    kept = benchmark.peers_curves.SystemRun.from_json(json.loads(unfinished.read_text()))
    assert (len(kept.epochs), kept.about["ended"]) == (1, "unfinished, after 1 epochs")
    assert not Path(job.out).exists()
    with pytest.raises(benchmark.peers_worker.Stopped):
        epoch()
    assert Path(job.out).exists()
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"epochs": 2}, "after all epochs"), ({"limit_seconds": 0.0}, "at the limit of 0 s")],
)
def test_a_run_ends_with_its_epochs_or_its_limit(benchmark, make_job, make_task, changes, reason):
    run, _ = record(benchmark, make_job(**changes), make_task, [0.1, 0.2, 0.3])
    assert run.about["ended"] == reason
    assert len(run.epochs) == (2 if "epochs" in changes else 1)


def test_runs_are_kept_and_one_that_fails_does_not_take_the_others_with_it(
    benchmark, make_task, tmp_path, monkeypatch, capfd
):
    systems = benchmark.peers_systems.SYSTEMS
    monkeypatch.setitem(systems, "broken", replace(systems["ours"], worker="absent.py"))
    small = ["batch_size=8", "max_seq_len=8", "model.sasrec_hidden_dim=8", "trainer.sasrec_lr=0.01"]
    budget = benchmark.peers.Budget(
        data="ml-100k", systems=("broken", "ours"), seeds=1, limit_seconds=600, max_epochs=2, changes=small
    )
    study = benchmark.peers.Study(make_task, budget, tmp_path / "work")
    runs, failed = study.run(2)
    assert [(run.system, run.seed, len(run.epochs)) for run in runs] == [("ours", 0, 2)]
    assert [failure.split(":")[0] for failure in failed] == ["broken, seed 0"]
    assert "absent.py" in Path(failed[0].split("see ")[1]).read_text()
    assert "ours, seed 0, epoch 2/2: NDCG@10 filtered" in capfd.readouterr().out
    trained = Path(study.job("ours", 0).out).stat().st_mtime_ns
    assert study.run(1)[0] == runs
    assert Path(study.job("ours", 0).out).stat().st_mtime_ns == trained
    assert study.known() == runs
    out = Path(study.job("ours", 0).out)
    out.rename(benchmark.peers_worker.unfinished(out))
    assert study.known() == runs


def test_settings_of_ours_can_be_changed_and_only_those(benchmark):
    recipe = benchmark.peers_systems.SYSTEMS["ours"].recipes["sports"]
    found = benchmark.peers.changed(recipe, ["trainer.catalogue_loss=full", "epochs=7"])
    assert (found.epochs, found.settings["trainer"]["catalogue_loss"]) == (7, "full")
    assert recipe.settings["trainer"]["catalogue_loss"] == "sampled"
    for change in ("epochs", "depth=3", "modle.sasrec_dropout=0.5"):
        with pytest.raises(ConfigurationError, match="NAME=VALUE"):
            benchmark.peers.changed(recipe, [change])


def test_without_the_files_of_sports_it_says_where_to_put_them(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.peers.main(["--data", "sports", "--data-dir", str(tmp_path)])
    message = capsys.readouterr().err
    assert "sports.inter" in message
    assert "--data-dir" in message


def test_every_system_has_a_recipe_for_every_data_set_and_a_worker(benchmark):
    systems = benchmark.peers_systems
    for name, system in systems.SYSTEMS.items():
        assert set(system.recipes) == set(systems.DATA)
        assert (Path(benchmark.peers.__file__).parent / system.worker).is_file()
        assert name in benchmark.peers_report.COLOURS
    assert {name for names in systems.DEFAULT.values() for name in names} <= set(systems.SYSTEMS)
