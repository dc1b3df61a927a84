"""Runs of a tiny study, in both backends, and its report."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
from scipy.special import log_softmax

from tests.unit.ur4rec.compare.tiny_study import COSTS, TINY, tiny_study
from ur4rec.compare import workers
from ur4rec.compare.arms import original_of
from ur4rec.compare.budget import Course, Ledger
from ur4rec.compare.costs import measure_costs, read_costs
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.processes import LocalProcesses
from ur4rec.compare.report import compare_command, write_report
from ur4rec.compare.runner import RunKey, build_trainer, evaluate, prepare_study
from ur4rec.compare.study import StudyConfig
from ur4rec.compare.tasks import ArmOutcome
from ur4rec.compare.workers import run_one, run_study
from ur4rec.data import sample_users, synthetic
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.metrics import negative_log_likelihood
from ur4rec.runs.step_costs import kinds_of
from ur4rec.schedule.stages import MODULES, turns_of

PLATEAU = "plateau,min_steps=2,window=3,threshold=0.5"
PAYOFF = "payoff,min_steps=2,groups=2,share=0.99,confidence=0.504"
TRIAL = "trial,steps=1,start=1,hold=4,groups=2"


def run_all(directory):
    """Every run, those that need another one last, in this process."""
    for key in sorted(directory.missing(), key=lambda key: original_of(key.arm) is not None):
        run_one(directory.path, key)


def test_what_the_preset_leaves_to_the_data_is_decided_and_kept_before_anything_is_timed(tmp_path, monkeypatch):
    study = StudyConfig(**{**TINY, "preset": "default", "model": {"sasrec_hidden_dim": 8, "text_embedding_dim": 16}})
    directory = StudyDirectory.begin(tmp_path / "study", StudyConfig.from_json(study.to_json()))
    seen = []

    def time_steps(study, data_dir):
        seen.append(study)
        return COSTS

    def train(request):
        seen.append(request.study)
        return ArmOutcome(report={"best": None, "error": "pretended"}, arrays={})

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(workers, "local_processes", lambda jobs: nullcontext(LocalProcesses(pool, 1)))
        monkeypatch.setattr(workers, "measure_costs", time_steps)
        monkeypatch.setattr(workers, "train_arm", train)
        run_study(directory, quiet=True)
    assert len(seen) == 1 + len(study.seeds)
    kept = StudyDirectory.reopen(tmp_path / "study").study
    assert all(each == kept for each in seen)
    assert kept.sizes["max_seq_len"] == kept.run_config("parity", 0).model["max_seq_len"] == 16
    assert "sasrec_hidden_dim" not in kept.sizes
    assert kept.run_config("parity", 0).batch_size == TINY["batch_size"]


@pytest.fixture(scope="module")
def torch_study(tmp_path_factory):
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("study") / "torch"
    arms = ("parity", "joint", PLATEAU, f"matched:{PLATEAU}", PAYOFF, f"shuffled:{PAYOFF}", TRIAL)
    directory = tiny_study(path, arms=arms)
    run_all(directory)
    return directory


@pytest.fixture(scope="module")
def jax_study(tmp_path_factory):
    pytest.importorskip("jax")
    path = tmp_path_factory.mktemp("study") / "jax"
    directory = tiny_study(path, arms=("parity", "joint", PLATEAU), seeds=(0,), backend="jax")
    run_all(directory)
    return directory


@pytest.fixture(params=["torch", "jax"])
def study(request):
    return request.getfixturevalue(f"{request.param}_study")


def test_a_study_that_is_cut_short_has_whole_seeds(tmp_path, monkeypatch):
    """Runs come seed by seed; a control comes after its original, and no later seed before it."""
    directory = tiny_study(tmp_path, arms=("parity", PLATEAU, f"matched:{PLATEAU}", "joint"), seeds=(0, 1))
    order = []

    def pretend(request):
        order.append((request.key.seed, request.key.arm))
        return ArmOutcome(report={"best": None, "error": "pretended"}, arrays={})

    monkeypatch.setattr(workers, "train_arm", pretend)
    monkeypatch.setattr(StudyDirectory, "read_run", lambda self, key: {})  # what is pretended is no whole report
    with ThreadPoolExecutor(1) as pool:
        workers._run_arms(LocalProcesses(pool, 1), directory, None, True)
    assert [seed for seed, _ in order] == sorted(seed for seed, _ in order)
    assert order.index((0, f"matched:{PLATEAU}")) > order.index((0, PLATEAU))
    assert directory.missing() == []


def test_every_run_spends_its_budget_and_nothing_is_missing(study):
    assert study.missing() == []
    for key, run in study.runs():
        assert run["error"] is None
        slack = {"updates": 1, "cost": 0.36 / 2 + 2 * 0.05}[key.basis]
        assert run["spent"][key.basis] == pytest.approx(run["budget"][key.basis], abs=slack)
        assert [point["updates"] for point in run["points"]] == sorted(point["updates"] for point in run["points"])
        assert len(run["points"]) == 3
        assert run["turns"]["steps"] == len(study.read_arrays(key)["losses_SM"])


def test_joint_takes_half_the_steps_at_equal_updates_and_more_at_equal_cost(study):
    at_updates, at_cost = (study.read_run(RunKey("joint", 0, basis)) for basis in ("updates", "cost"))
    assert at_updates["turns"]["turn_steps"] == {"sasrec": 0, "retriever": 0, "both": 6}
    assert at_cost["turns"]["turn_steps"]["both"] == round(at_cost["budget"]["cost"] / 0.35)


def test_a_run_is_reproducible(study):
    key = RunKey("parity", 0, "updates")
    before, arrays = study.read_run(key), study.read_arrays(key)
    again = run_one(study.path, key)
    assert again["points"] == before["points"]
    assert (study.read_arrays(key)["test_nll_PT"] == arrays["test_nll_PT"]).all()


def test_points_hold_what_the_targets_got(study):
    key = RunKey("joint", 0, "cost")
    run, arrays = study.read_run(key), study.read_arrays(key)
    for number, point in enumerate(run["points"]):
        ranks_T = arrays["test_ranks_PT"][number]
        assert point["test"]["hit@10"] == pytest.approx((ranks_T <= 10).mean())
        assert point["test"]["nll"] == pytest.approx(arrays["test_nll_PT"][number].mean(dtype=float))
    validation = [point["validation"]["ndcg@10"] for point in run["points"]]
    assert run["best"] == validation.index(max(validation))


def test_a_matched_arm_has_the_mean_tenure_of_its_original(torch_study):
    for seed in torch_study.study.seeds:
        original, control = (torch_study.read_run(RunKey(arm, seed, "cost")) for arm in (PLATEAU, f"matched:{PLATEAU}"))
        assert original["turns"]["switches"] > 0
        assert control["schedule"] == f"random_tenure,mean={original['turns']['mean_tenure']},seed={seed}"


def test_a_shuffled_arm_replays_the_tenures_of_its_original(torch_study):
    for key, run in torch_study.runs():
        if key.arm == f"shuffled:{PAYOFF}":
            original = torch_study.read_run(key._replace(arm=PAYOFF))
            assert original["turns"]["switches"] > 0
            assert run["schedule"].startswith("sequence:(('both', ")
            assert run["turns"]["tenures"][0] == original["turns"]["tenures"][0]


@pytest.mark.parametrize("arm", [PAYOFF, TRIAL])
def test_measuring_is_charged_and_so_is_every_step_that_was_tried(torch_study, arm):
    run = torch_study.read_run(RunKey(arm, 0, "updates"))
    assert len(run["turns"]["tenures"]) > 1
    steps = Ledger(torch_study.study.updates, read_costs(COSTS), "updates")
    for turn, length in run["turns"]["tenures"]:
        for _ in range(length):
            steps.charge(turn)
    assert steps.cost + 2 * 0.05 < run["spent"]["cost"]


def test_the_report_says_what_the_runs_say(torch_study):
    study = torch_study
    text = write_report(study, command="rerun me")
    summary = json.loads((study.path / "report.json").read_text())
    page = (study.path / "report.html").read_text()
    assert "rerun me" in text
    assert "rerun me" in page
    assert page.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    runs = [study.read_run(RunKey("joint", seed, "cost")) for seed in study.study.seeds]
    nll = [run["points"][run["best"]]["test"]["nll"] for run in runs]
    joint = summary["budgets"]["cost"]["arms"]["joint"]
    assert joint["test"]["nll"]["mean"] == pytest.approx(np.mean(nll))
    parity = [study.read_run(RunKey("parity", seed, "updates")) for seed in study.study.seeds]
    reference = np.mean([run["points"][run["best"]]["test"]["nll"] for run in parity])
    estimate, low, high = summary["budgets"]["cost"]["differences"]["joint"]["parity"]["nll"]
    assert estimate == pytest.approx(np.mean(nll) / reference - 1, abs=1e-6)  # rounded as packed
    assert low <= estimate <= high
    assert summary["budgets"]["cost"]["time_ratios"].keys() == set(study.study.arms) - {"parity"}
    spent = [summary["budgets"]["cost"]["arms"][arm]["to_target"]["cost_100%"] for arm in ("joint", "parity")]
    ratio, low, high = summary["budgets"]["cost"]["time_ratios"]["joint"]["100%"]
    assert ratio == (None if spent[0] is None else pytest.approx(spent[0] / spent[1]))
    assert "as a multiple of parity's own" in text
    assert summary["hashes_agree"]
    assert summary["facts"]["split_hash"][:16] in text


def test_ranks_and_likelihoods_are_of_the_same_scores(tmp_path):
    study = tiny_study(tmp_path / "s").study
    prepared = prepare_study(study, 0)
    trainer = build_trainer(study, prepared, "parity", 0)
    batches = prepared.evaluation(prepared.split.test)
    outcome = evaluate(trainer, batches)
    assert (outcome.ranks_T == trainer.rank(batches)).all()
    scores_BI = trainer.score(batches.batch(0).items_BL)[: batches.batch(0).num_valid]
    targets_B = batches.batch(0).targets_B[: len(scores_BI)]
    expected_B = -log_softmax(scores_BI.astype(float), axis=1)[np.arange(len(targets_B)), targets_B]
    assert negative_log_likelihood(scores_BI, targets_B) == pytest.approx(expected_B)


def test_learning_rates_follow_the_budget_not_the_steps(tmp_path):
    study = tiny_study(tmp_path / "s").study
    prepared = prepare_study(study, 0)
    trainer = build_trainer(study, prepared, "1:3", 0)
    ledger = Ledger(study.updates, read_costs(COSTS), "cost")
    trainer.set_training_stage("joint_finetune", 12, position=lambda: ledger.progress * 12)
    course, rates = Course(trainer, prepared.train, ledger), []
    for part in (0.5, 1.0):
        course.until = part
        metrics = trainer.train_epoch(course)
        rates.append(metrics["sasrec_lr"])
    assert 0.4 * 3e-3 < rates[0] < 0.6 * 3e-3
    assert rates[1] < 0.01 * 3e-3
    assert len(ledger.turns) == 16


def test_pretraining_is_where_the_arms_of_a_seed_start(tmp_path):
    from ur4rec.compare.runner import pretrain

    directory = tiny_study(tmp_path / "s", seeds=(0,), pretrain=12)
    pretrain(directory.study, 0, directory.start_of(0))
    pretrained = run_one(directory.path, RunKey("parity", 0, "updates"))
    fresh = tiny_study(tmp_path / "t", seeds=(0,))
    plain = run_one(fresh.path, RunKey("parity", 0, "updates"))
    assert pretrained["turns"] == plain["turns"]
    assert pretrained["points"][0]["validation"]["nll"] < plain["points"][0]["validation"]["nll"]


def test_a_run_that_diverges_is_reported_up_to_there(tmp_path):
    directory = tiny_study(tmp_path / "s", seeds=(0,), trainer={"sasrec_lr": 1e38, "retriever_lr": 1e38})
    run = run_one(directory.path, RunKey("parity", 0, "updates"))
    assert "must be finite" in run["error"]
    assert directory.missing() == []


def test_costs_are_measured_for_every_kind_of_step(tmp_path):
    costs = measure_costs(tiny_study(tmp_path / "s").study, rounds=2)
    assert set(costs["seconds"]) == set(kinds_of(turns_of(MODULES)))
    assert all(0 < costs["quartiles"][kind][0] <= costs["quartiles"][kind][1] for kind in kinds_of(turns_of(MODULES)))


def test_the_command_of_a_report_names_every_setting(tmp_path):
    study = tiny_study(tmp_path / "s", arms=("parity", "trend,min_gain=0.02"), budgets=("cost",), pretrain=3).study
    command = compare_command(study)
    for part in ("--budgets cost", "--pretrain 3", "--batch-size 16", "--set max_seq_len=8", "trend,min_gain=0.02"):
        assert part in command


def test_a_sample_of_users_keeps_the_catalogue():
    whole = synthetic(num_users=60, num_items=50)
    sample, again, other = (sample_users(whole, 20, seed) for seed in (1, 1, 2))
    assert (sample.num_users, sample.num_items, sample.titles) == (20, whole.num_items, whole.titles)
    assert sample.hash == again.hash != other.hash
    for user, name in enumerate(sample.user_ids):
        original = whole.sequences[whole.user_ids.index(name)]
        assert sample.sequences[user].tolist() == original.tolist()
    with pytest.raises(ConfigurationError, match=r"num_users must be in 1 \.\. 60, got 61"):
        sample_users(whole, 61)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_retriever_with_blank_texts_says_nothing_and_is_left_out(tmp_path, backend):
    """Alone it ranks all items alike, whatever it learns, and a rule that measures payoffs notices."""
    arm = "payoff,min_steps=2,groups=4,confirmations=1,retry_after=4,max_retry_after=4"
    changes = {"blank_texts": True, "backend": backend, "updates": 60, "eval_every": 20, "budgets": ("cost",)}
    changes["data"] = {"num_users": 200, "num_items": 50, "num_clusters": 5, "mean_length": 10, "follow": 1, "stay": 0}
    changes["trainer"] = {"sasrec_lr": 3e-2, "retriever_lr": 3e-2}
    directory = tiny_study(tmp_path / "s", arms=("parity", arm), seeds=(0,), **changes)
    prepared = prepare_study(directory.study, 0)
    assert (prepared.item_text_vectors_IT == prepared.item_text_vectors_IT[0]).all()
    assert prepared.interactions.source.endswith("; texts left out")
    trained = build_trainer(directory.study, prepared, "parity", 0)
    scores_BI = trained.score(prepared.evaluation(prepared.split.test).batch(0).items_BL, "retriever")
    assert np.ptp(scores_BI, axis=1).max() < 1e-5
    turns = run_one(directory.path, RunKey(arm, 0, "cost"))["turns"]["turn_steps"]
    assert turns["sasrec"] > 0
    assert turns["retriever"] == 0
    assert "--blank-texts" in compare_command(directory.study)
    assert "--blank-texts" not in compare_command(tiny_study(tmp_path / "t").study)
