"""Fusion weights that are chosen on held-out targets: by what, what they keep, and where they come from."""

import numpy as np
import pytest

from tests.backends.harness import bits, equal, train
from ur4rec.errors import ConfigurationError, DataError, UnknownNameError
from ur4rec.runs.refit import Refit
from ur4rec.runs.run import FUSION_WEIGHT
from ur4rec.schedule.stages import MODULES
from ur4rec.training.checkpoint import load_checkpoint
from ur4rec.training.fusion_fit import WEIGHTS

HELD_OUT = {"fusion_fit": "held_out", "joint_loss": "separate", "sasrec_lr": 3e-2, "retriever_lr": 3e-2}
NAME = "fusion.weights"


@pytest.fixture
def trained(make_trainer, batch_stream):
    """A trainer with modules that have learnt something."""
    trainer = make_trainer(**HELD_OUT)
    trainer.set_training_stage("end_to_end")
    train(trainer, batch_stream(0, 30))
    return trainer


def quality(trainer, targets, weight):
    """The mean NDCG@10 of the targets among what users have not seen, computed the plain way."""
    values = []
    for batch in targets:
        scores = trainer.scores(batch.items_BL, batch.users_B, MODULES)
        fused_BI = scores["sasrec"] + np.float32(weight) * scores["retriever"]
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
    assert trained.fit_fusion(targets) == WEIGHTS[int(np.argmax(means))] != 1


def test_scores_are_fused_with_it_at_once(trained, targets):
    batch = next(iter(targets))
    weight = trained.fit_fusion(targets)
    scores = trained.scores(batch.items_BL, batch.users_B)
    expected = scores["sasrec"] + np.float32(weight) * scores["retriever"]
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
    weights = np.float32([1, trainer.fit_fusion(targets)])
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
    assert trained.fit_fusion([wrong]) == 0
    assert trained.fit_fusion([right]) > 1


@pytest.mark.usefixtures("no_picture")
def test_a_run_chooses_them_before_it_validates_and_its_refit_takes_those_of_the_chosen_model(make_run, tmp_path):
    run = make_run(tmp_path, epochs={"pretrain_sasrec": 2, "joint_finetune": 3}, trainer=HELD_OUT)
    fitted, fit = [], run.trainer.fit_fusion
    run.trainer.fit_fusion = lambda loader: fitted.append(fit(loader)) or fitted[-1]
    run.train()
    assert len(fitted) == 4  # when the joint stage begins, and at each of its validations
    said = [row["train"].get(FUSION_WEIGHT) for row in run.epochs]
    assert said == [None, None, *fitted[1:]]
    chosen = run.results["fused"].epoch
    saved = load_checkpoint(run.directory.require_checkpoint("best")).weights[NAME]
    assert saved.tolist() == np.float32([1, fitted[chosen - 1]]).tolist()
    refit = Refit(run, progress=False)
    refit.trainer.fit_fusion = None  # so that a choice would fail: its targets are trained on now
    refit.train()
    assert load_checkpoint(run.directory.require_checkpoint("refit")).weights[NAME].tolist() == saved.tolist()
