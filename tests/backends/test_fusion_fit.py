"""Fusion weights that are chosen on held-out targets: by what, what they keep, and where they come from."""

import numpy as np
import pytest

from tests.backends.harness import PARTS, bits, equal, installed, load, train
from ur4rec.errors import ConfigurationError, DataError, UnknownNameError
from ur4rec.runs.kept import explain_epochs
from ur4rec.runs.plan import FUSION_WEIGHTS
from ur4rec.runs.refit import Refit
from ur4rec.schedule.stages import MODULES
from ur4rec.training.checkpoint import load_checkpoint
from ur4rec.training.fusion_fit import POPULARITY_WEIGHTS, SCALES, WEIGHTS, FusionWeights

HELD_OUT = {"fusion_fit": "held_out", "joint_loss": "separate", "sasrec_lr": 3e-2, "retriever_lr": 3e-2}
NAME = "fusion.weights"


@pytest.fixture
def trained(make_trainer, batch_stream):
    """A trainer with modules that have learnt something."""
    trainer = make_trainer(**HELD_OUT)
    trainer.set_training_stage("end_to_end")
    train(trainer, batch_stream(0, 30))
    return trainer


@pytest.fixture(scope="module")
def counts(split):
    """Uses of items in which the held-out targets show."""
    return np.bincount(split.validation.items_T, minlength=split.num_items)


@pytest.fixture
def popular(make_trainer, make_model, counts, batch_stream):
    """The same with popularity as a term of the fused scores."""
    trainer = make_trainer(model=make_model(fusion_popularity=True, item_counts=counts), **HELD_OUT)
    trainer.set_training_stage("end_to_end")
    train(trainer, batch_stream(0, 30))
    return trainer


def quality(trainer, targets, weight, popularity_I=0):
    """The mean NDCG@10 of the targets among what users have not seen, computed the plain way."""
    values = []
    for batch in targets:
        scores = trainer.scores(batch.items_BL, batch.users_B, MODULES)
        fused_BI = scores["sasrec"] + np.float32(weight) * scores["retriever"] + popularity_I
        for row in range(batch.num_valid):
            seen = set(batch.seen_items_M[: batch.num_seen][batch.seen_rows_M[: batch.num_seen] == row].tolist())
            target = int(batch.targets_B[row])
            own = fused_BI[row, target]
            rank = sum(fused_BI[row, item] >= own for item in range(fused_BI.shape[1]) if item not in seen - {target})
            values.append(1 / np.log2(1 + rank) if rank <= 10 else 0)
    return float(np.mean(values))


def test_the_weight_ranks_held_out_targets_best_together_with_its_neighbours(trained, targets):
    values = [quality(trained, targets, weight) for weight in WEIGHTS]
    means = [np.mean(values[max(place - 1, 0) : place + 2]) for place in range(len(values))]
    assert max(values) > min(values) + 0.01
    chosen = trained.fit_fusion(targets)
    assert chosen.retriever == WEIGHTS[int(np.argmax(means))] != 1
    assert chosen.popularity == 0


def test_with_popularity_the_pair_ranks_them_best_together_with_its_neighbours(popular, targets, counts):
    popularity_I = np.log1p(counts).astype(np.float32)
    values = np.array(
        [
            [quality(popular, targets, weight, np.float32(each) * popularity_I) for weight in WEIGHTS]
            for each in POPULARITY_WEIGHTS
        ]
    )
    padded = np.pad(values, 1, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    row, column = np.unravel_index(np.nanmean(windows, axis=(2, 3)).argmax(), values.shape)
    assert values.max() > values[0].max() + 0.01
    assert popular.fit_fusion(targets)[:2] == (WEIGHTS[column], POPULARITY_WEIGHTS[row])
    assert row > 0


def test_popularity_is_added_at_once_and_kept_in_the_checkpoint_for_both_backends(popular, targets, counts, tmp_path):
    batch = next(iter(targets))
    before = popular.scores(batch.items_BL)
    np.testing.assert_allclose(before["fused"], before["sasrec"] + before["retriever"], rtol=1e-5, atol=1e-5)
    own, retriever, popularity = popular.fit_fusion(targets).terms(3)
    scores = popular.scores(batch.items_BL)
    fused_BI = own * scores["sasrec"] + retriever * scores["retriever"]
    expected = fused_BI + popularity * np.log1p(counts)
    np.testing.assert_allclose(scores["fused"], expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(scores["fused"], fused_BI, atol=1e-2)
    popular.save_checkpoint(tmp_path / "saved")
    for name in installed():
        package = load(name).package
        found = package.Scorer(package.load_model(tmp_path / "saved"), device="cpu").score(batch.items_BL)
        np.testing.assert_allclose(found, scores["fused"], rtol=1e-4, atol=1e-4)


def test_training_goes_on_from_a_checkpoint_with_popularity(popular, make_trainer, make_model, batch_stream, tmp_path):
    popular.set_fusion_weights((1, 0.5, 2))
    popular.save_checkpoint(tmp_path / "saved")
    model = make_model(fusion_popularity=True, item_counts=np.zeros(popular.num_items))
    other = make_trainer(model=model, **HELD_OUT)
    other.load_checkpoint(tmp_path / "saved")
    for trainer in (other, popular):
        train(trainer, batch_stream(30, 3))
    assert equal(bits(other, *PARTS), bits(popular, *PARTS))
    assert "item_popularity" in "".join(bits(other, *PARTS))


def test_popularity_that_nothing_would_weigh_or_that_is_not_known_is_refused(make_trainer, make_model, popular, counts):
    with pytest.raises(ConfigurationError, match=r"fusion_popularity=True needs fusion='logit'.*got 'weighted'"):
        make_model(fusion="weighted", fusion_popularity=True, item_counts=counts)
    for wrong in (None, counts[1:], -counts, np.full(len(counts), np.nan)):
        with pytest.raises(ConfigurationError, match=r"needs item_counts, how often each of the 60 items.*got "):
            make_model(fusion_popularity=True, item_counts=wrong)
    model = make_model(fusion_popularity=True, item_counts=counts)
    with pytest.raises(ConfigurationError, match=r"needs fusion_fit='held_out'.*got 'training'; take that"):
        make_trainer(model=model, joint_loss="separate")
    with pytest.raises(ConfigurationError, match=r"fusion weights must be 3 finite numbers, got \(1, 1\)"):
        popular.set_fusion_weights((1, 1))


def test_one_factor_of_all_makes_the_held_out_targets_likeliest_and_changes_no_rank(popular, targets, counts):
    weights = popular.fit_fusion(targets)
    ranks = popular.rank(targets)
    popular.set_fusion_weights(weights._replace(scale=1.0).terms(3))
    assert (popular.rank(targets) == ranks).mean() > 0.95  # of nearly equal scores, either may be rounded up
    likelihoods = []
    for scale in SCALES:
        popular.set_fusion_weights(weights._replace(scale=scale).terms(3))
        found = []
        for batch in targets:
            scores_BI = popular.score(batch.items_BL)
            rows_B = np.arange(len(scores_BI))
            own_B = scores_BI[rows_B, batch.targets_B]
            unseen_BI = scores_BI.copy()
            unseen_BI[batch.seen] = -np.inf
            unseen_BI[rows_B, batch.targets_B] = own_B
            found.append((own_B - np.logaddexp.reduce(unseen_BI, axis=1))[: batch.num_valid])
        likelihoods.append(np.concatenate(found).mean())
    assert SCALES[int(np.argmax(likelihoods))] == weights.scale
    assert SCALES[0] < weights.scale < SCALES[-1]


def test_scores_are_fused_with_it_at_once(trained, targets):
    batch = next(iter(targets))
    weights = trained.fit_fusion(targets)
    scores = trained.scores(batch.items_BL, batch.users_B)
    expected = weights.scale * (scores["sasrec"] + np.float32(weights.retriever) * scores["retriever"])
    np.testing.assert_allclose(scores["fused"], expected, rtol=1e-5, atol=1e-5)


def test_training_leaves_them_to_the_bit(make_trainer, batch_stream, targets):
    trainer = make_trainer(**HELD_OUT)
    trainer.set_training_stage("end_to_end")
    trainer.fit_fusion(targets)
    before, modules = bits(trainer, "fusion")[NAME], bits(trainer, *MODULES)
    train(trainer, batch_stream(0, 5))
    assert bits(trainer, "fusion")[NAME].tobytes() == before.tobytes()
    assert not equal(bits(trainer, *MODULES), modules)


def test_they_are_saved_and_loaded_also_as_averages(make_trainer, batch_stream, targets, tmp_path):
    trainer = make_trainer(**HELD_OUT, ema_decay=0.9)
    trainer.set_training_stage("end_to_end")
    train(trainer, batch_stream(0, 3))
    weights = trainer.fit_fusion(targets).terms(2)
    train(trainer, batch_stream(3, 3))
    trainer.save_checkpoint(tmp_path / "saved")
    saved = load_checkpoint(tmp_path / "saved")
    assert saved.weights[NAME].tolist() == saved.averaged().weights[NAME].tolist() == weights.tolist() != [1, 1]
    other = make_trainer(**HELD_OUT, ema_decay=0.9)
    other.load_checkpoint(tmp_path / "saved")
    batch = next(iter(targets))
    np.testing.assert_array_equal(other.score(batch.items_BL), trainer.score(batch.items_BL))
    train(other, batch_stream(6, 2))
    train(trainer, batch_stream(6, 2))
    assert equal(bits(other, *MODULES, "fusion"), bits(trainer, *MODULES, "fusion"))


def test_what_cannot_be_fitted_is_refused_and_changes_nothing(make_trainer, trained):
    for other in ({"fusion": "weighted"}, {"joint_loss": "fused"}):
        with pytest.raises(ConfigurationError, match=r"needs fusion='logit' and joint_loss='separate'.*got '"):
            make_trainer(**{**HELD_OUT, **other})
    with pytest.raises(UnknownNameError, match=r"unknown fusion_fit 'test'; expected one of"):
        make_trainer(fusion_fit="test")
    usual = make_trainer()
    with pytest.raises(ConfigurationError, match=r"with fusion_fit='held_out' alone, got 'training'"):
        usual.fit_fusion([])
    with pytest.raises(ConfigurationError, match=r"with fusion_fit='held_out' alone, got 'training'"):
        usual.set_fusion_weights((1, 1))
    before = bits(trained, "fusion")
    with pytest.raises(DataError, match="at least one held-out target, got none"):
        trained.fit_fusion([])
    for wrong in ((1,), (1, float("nan"))):
        with pytest.raises(ConfigurationError, match=r"fusion weights must be 2 finite numbers, got \("):
            trained.set_fusion_weights(wrong)
    assert equal(bits(trained, "fusion"), before)


def test_a_retriever_that_is_wrong_gets_no_weight_and_one_that_is_right_the_largest(trained, targets):
    batch = next(iter(targets))
    scores_BI = trained.scores(batch.items_BL, None, MODULES)["retriever"]
    nothing = {"num_seen": 0, "num_valid": len(scores_BI)}
    wrong = batch._replace(targets_B=scores_BI.argmin(axis=1).astype(np.int32), **nothing)
    right = batch._replace(targets_B=scores_BI.argmax(axis=1).astype(np.int32), **nothing)
    assert trained.fit_fusion([wrong]).retriever == 0
    assert trained.fit_fusion([right]).retriever > 1


@pytest.mark.usefixtures("no_picture")
def test_a_run_chooses_them_before_it_validates_and_its_refit_takes_those_of_the_chosen_model(make_run, tmp_path):
    run = make_run(tmp_path, epochs={"pretrain_sasrec": 2, "joint_finetune": 3}, trainer=HELD_OUT)
    fitted, fit = [], run.trainer.fit_fusion
    run.trainer.fit_fusion = lambda loader: fitted.append(fit(loader)) or fitted[-1]
    run.train()
    assert len(fitted) == 4  # when the joint stage begins, and at each of its validations
    said = [row["train"].get(FUSION_WEIGHTS["retriever"]) for row in run.epochs]
    assert said == [None, None, *(weights.retriever for weights in fitted[1:])]
    assert all(FUSION_WEIGHTS["popularity"] not in row["train"] for row in run.epochs)
    chosen = run.results["fused"].epoch
    saved = load_checkpoint(run.directory.require_checkpoint("best")).weights[NAME]
    assert saved.tolist() == fitted[chosen - 1].terms(2).tolist()
    refit = Refit(run, progress=False)
    refit.trainer.fit_fusion = None  # so that a choice would fail: its targets are trained on now
    refit.train()
    assert load_checkpoint(run.directory.require_checkpoint("refit")).weights[NAME].tolist() == saved.tolist()


@pytest.mark.usefixtures("no_picture")
def test_a_run_says_the_weight_of_popularity_and_its_refit_counts_what_it_trains_on(make_run, tmp_path):
    epochs = {"pretrain_sasrec": 1, "joint_finetune": 2}
    run = make_run(tmp_path, epochs=epochs, trainer=HELD_OUT, model={"fusion_popularity": True})
    run.train()
    saved = load_checkpoint(run.directory.require_checkpoint("best")).weights
    chosen = run.epochs[run.results["fused"].epoch]["train"]
    weights = FusionWeights(**{field: chosen[name] for field, name in FUSION_WEIGHTS.items()})
    assert saved[NAME].tolist() == weights.terms(3).tolist()
    said = (
        f"SASRec's plus {weights.retriever:.3g} times the retriever's and {weights.popularity:.3g} times popularity's"
    )
    assert said in explain_epochs(run.plan, run.epochs, run.results)
    Refit(run, progress=False).train()
    refit = load_checkpoint(run.directory.require_checkpoint("refit")).weights
    assert refit[NAME].tolist() == saved[NAME].tolist()
    uses, more = (np.expm1(each["fusion.item_popularity"]).round() for each in (saved, refit))
    assert uses.tolist() == [*run.prepared.train.item_counts, 0]
    assert more.sum() > uses.sum()
    assert (more >= uses).all()
