"""A Payoff schedule: measured on held-out targets, reported to the schedule, frozen and resumed exactly."""

import numpy as np
import pytest

from alternator import Payoff, Reason
from tests.backends.harness import train
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.metrics import smooth_ranks
from ur4rec.schedule.stages import MODULES
from ur4rec.training import trainer as training
from ur4rec.training.checkpoint import FROZEN, load_checkpoint, save_checkpoint

RULE = Payoff(costs=(1.0, 0.6, 0.5), min_steps=3, groups=4, confidence=0.69, retry_after=6, max_retry_after=6)


@pytest.fixture(scope="module")
def probe(targets):
    return next(iter(targets))


def log_ranks(scores_BI, probe):
    return np.log2(smooth_ranks(scores_BI, probe.targets_B, *probe.seen))


def test_payoffs_are_the_falls_of_the_held_out_loss(backend, make_trainer, batch_stream, probe):
    """Against a computation from the outside: module scores before and after, mixed and fused."""
    trainer = make_trainer(rule=RULE, probe=probe, sasrec_lr=3e-2, retriever_lr=3e-2)
    trainer.set_training_stage("joint_finetune")
    before = {name: trainer.score(probe.items_BL, name) for name in MODULES}
    train(trainer, batch_stream(0, 3))
    after, fusion = {name: trainer.score(probe.items_BL, name) for name in MODULES}, trainer.model.fusion

    def losses_of(**mixed):
        scores = {**before, **mixed}
        fused_BI = backend.call(fusion, scores["sasrec"], scores["retriever"])
        return log_ranks(fused_BI, probe).reshape(4, -1).mean(1)

    expected = {
        "both": losses_of() - losses_of(**after),
        "sasrec": losses_of() - losses_of(sasrec=after["sasrec"]),
        "retriever": losses_of() - losses_of(retriever=after["retriever"]),
    }
    reported = {}
    trainer.alternator.record = lambda turn, value: reported.setdefault(turn, []).append(value)
    train(trainer, batch_stream(3, 1))  # which is measured before it trains
    assert reported.keys() == expected.keys()
    for turn, values in expected.items():
        np.testing.assert_allclose(reported[turn], values / 3, rtol=1e-9, atol=1e-12)
    assert all(abs(values).min() > 0 for values in expected.values())


@pytest.fixture(params=["logit", "weighted", "popularity"])
def measuring(make_trainer, make_model, loader, probe, request):
    """A trainer that measures on the probe, by fusion."""
    settings = {"rule": RULE, "probe": probe, "sasrec_lr": 3e-2, "retriever_lr": 3e-2}
    if request.param != "popularity":
        return make_trainer(fusion=request.param, **settings)
    model = make_model(fusion_popularity=True, item_counts=loader.item_counts)
    trainer = make_trainer(model=model, joint_loss="separate", fusion_fit="held_out", **settings)
    trainer.set_fusion_weights((1, 0.5, 3))
    return trainer


def test_what_is_measured_is_the_fused_ranking(measuring, probe):
    held_out = measuring._held_out()
    expected = log_ranks(measuring.score(probe.items_BL), probe)
    np.testing.assert_allclose(held_out.losses({name: held_out.take(name) for name in MODULES}), expected, rtol=1e-4)


def test_slices_of_the_catalogue_give_the_losses_of_the_whole(measuring, batch_stream, monkeypatch):
    trainer = measuring
    whole = trainer._held_out()
    before = {name: whole.take(name) for name in MODULES}
    trainer.set_training_stage("joint_finetune")
    train(trainer, batch_stream(0, 3))
    mixed = {**before, "retriever": whole.take("retriever")}
    monkeypatch.setattr(training, "slice_width", lambda *arguments, **settings: 16)
    sliced = trainer._held_out()
    assert len(sliced._slices) > 2
    np.testing.assert_allclose(sliced.losses(mixed), whole.losses(mixed), rtol=1e-5)
    again = {name: sliced.take(name, sliced.weights(snapshot)) for name, snapshot in mixed.items()}
    np.testing.assert_array_equal(sliced.losses(again), sliced.losses(mixed))


def test_seen_items_are_not_ranked_but_a_target_always_is(make_trainer, probe):
    """Whatever else is seen: then all targets are the first."""
    num_rows, num_items = len(probe.items_BL), make_trainer().num_items
    rows_M, items_M = (each.ravel() for each in np.indices((num_rows, num_items), np.int32))
    everything = probe._replace(seen_rows_M=rows_M, seen_items_M=items_M, num_seen=len(rows_M))
    held_out = make_trainer(rule=RULE, probe=everything)._held_out()
    assert held_out.losses({name: held_out.take(name) for name in MODULES}).tolist() == [0.0] * num_rows


def test_a_model_that_has_diverged_ranks_every_target_last(make_trainer, probe):
    trainer = make_trainer(rule=RULE, probe=probe)
    held_out = trainer._held_out()
    snapshots = {name: held_out.take(name) for name in MODULES}
    broken = {name: np.full_like(each, np.nan) for name, each in held_out.weights(snapshots["sasrec"]).items()}
    losses_B = held_out.losses({**snapshots, "sasrec": held_out.take("sasrec", broken)})
    unseen_B = trainer.num_items - np.bincount(probe.seen_rows_M[: probe.num_seen], minlength=len(losses_B))
    np.testing.assert_array_equal(losses_B, np.log2(unseen_B))


def test_a_checkpoint_keeps_weights_not_scores(make_trainer, batch_stream, probe, tmp_path):
    trainer = make_trainer(rule=RULE, probe=probe)
    trainer.set_training_stage("joint_finetune", num_steps=30)
    train(trainer, batch_stream(0, 2))
    trainer.save_checkpoint(tmp_path / "checkpoint")
    saved = load_checkpoint(tmp_path / "checkpoint")
    kept = {name.removeprefix("payoff."): each.shape for name, each in saved.moments.items() if "payoff." in name}
    trained = {name for name in saved.weights if name not in FROZEN and not name.startswith("fusion.")}
    assert kept == {"position": (2,), **{name: saved.weights[name].shape for name in trained}}


def test_scores_of_an_earlier_version_are_left_alone(make_trainer, batch_stream, probe, tmp_path):
    """Measuring starts again from where the modules are."""
    trainer = make_trainer(rule=RULE, probe=probe)
    trainer.set_training_stage("joint_finetune", num_steps=30)
    train(trainer, batch_stream(0, 2))
    trainer.save_checkpoint(tmp_path / "checkpoint")
    saved = load_checkpoint(tmp_path / "checkpoint")
    moments = {name: each for name, each in saved.moments.items() if not name.startswith("payoff.")}
    scores = {f"payoff.{name}": np.zeros((16, 60), np.float32) for name in MODULES}
    position = {"payoff.position": saved.moments["payoff.position"]}
    del saved.state["sha256"]
    save_checkpoint(tmp_path / "earlier", saved._replace(moments={**moments, **scores, **position}))
    other = make_trainer(rule=RULE, probe=probe)
    other.load_checkpoint(tmp_path / "earlier")
    assert other.step == 2
    train(other, batch_stream(2, 4))
    assert other.num_probe_forwards == 2 * len(MODULES)


def test_a_long_tenure_is_measured_less_often(make_trainer, batch_stream, probe):
    """Every second step at first, then after a quarter of the tenure; a measurement is one pass of each module."""
    trainer = make_trainer(rule=Payoff(costs=RULE.costs, min_steps=2, groups=4, confidence=1 - 1e-15), probe=probe)
    trainer.set_training_stage("joint_finetune", num_steps=40)
    measured, forwards = [], len(MODULES)
    for step, batch in enumerate(batch_stream(0, 24)):
        assert trainer.train_step(batch).active == "both"
        if trainer.num_probe_forwards > forwards:
            measured.append(step)
            assert trainer.num_probe_forwards == forwards + len(MODULES)
            forwards = trainer.num_probe_forwards
    assert measured == [2, 4, 6, 8, 10, 13, 17, 22]


def test_it_begins_jointly_and_goes_on_exactly_after_a_resume(make_trainer, batch_stream, probe, tmp_path):
    """Stopped in the middle of a measurement."""
    whole, first, second = (make_trainer(rule=RULE, probe=probe, retriever_lr=3e-2) for _ in range(3))
    for trainer in (whole, first):
        trainer.set_training_stage("joint_finetune", num_steps=30)
    expected = train(whole, batch_stream(0, 30))
    assert expected[0].previous == "both"
    assert {decision.reason for decision in expected if decision.switched} & {Reason.IDLE, Reason.STALE}
    train(first, batch_stream(0, 14))
    first.save_checkpoint(tmp_path / "checkpoint")
    second.load_checkpoint(tmp_path / "checkpoint")
    assert train(second, batch_stream(14, 16)) == expected[14:]
    np.testing.assert_array_equal(second.score(probe.items_BL), whole.score(probe.items_BL))
    assert whole.num_probe_forwards >= 2 * len([d for d in expected if d.previous == "both"]) // 3


def test_what_cannot_be_measured_is_refused(make_trainer, probe):
    with pytest.raises(ConfigurationError, match="needs probe=, a batch of at least 4 held-out targets, got none"):
        make_trainer(rule=RULE)
    with pytest.raises(ConfigurationError, match="at least 99 held-out targets, got 16"):
        make_trainer(rule=Payoff(costs=RULE.costs, groups=99), probe=probe)
    with pytest.raises(ConfigurationError, match="a fusion that needs no whole ranking"):
        make_trainer(rule=RULE, probe=probe, fusion="rank", joint_loss="separate")
