"""Steps on rows that are grouped by length are those on whole rows: losses, gradients, and what is kept."""

from dataclasses import replace

import numpy as np
import pytest

from tests.backends.harness import OfKind, saved_arrays
from ur4rec.training.checkpoint import load_checkpoint, save_checkpoint
from ur4rec.training.mesh import Mesh

pytestmark = pytest.mark.usefixtures("cheap_groups")

SAMPLED = {"catalogue_loss": "sampled", "num_negatives": 8, "num_in_batch": 8}
STRATEGIES = {
    **{"use_curriculum_learning": True, "use_memory_bank": True, "memory_bank_size": 64},
    **{"use_knowledge_distillation": True, "use_uncertainty_weighting": True},
}
CASES = {
    **{loss: ("pretrain_sasrec", {"sasrec_loss": loss}) for loss in ("ce", "sampled", "gbce", "bce", "bpr")},
    "sampled catalogue": ("pretrain_sasrec", SAMPLED),
    "retriever": ("pretrain_retriever", {}),
    "fused, all strategies": ("end_to_end", STRATEGIES),
    "separate, sampled, all strategies": ("end_to_end", {"joint_loss": "separate", **SAMPLED, **STRATEGIES}),
}


def check_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        largest = max(float(np.abs(array).max(initial=0)), 1e-3)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * largest, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_whole_rows(make_short, short_loader, tmp_path, case):
    stage, settings = CASES[case]
    metrics, arrays = [], []
    for grouped in (True, False):
        trainer = make_short(stage, length_groups=grouped, **settings)
        metrics.append(trainer.train_epoch(short_loader, max_steps=1))
        assert (trainer.length_groups is not None) is grouped
        found = saved_arrays(trainer, tmp_path / str(grouped))  # after one step a moment is a multiple of its gradient
        arrays.append({name: array for name, array in found.items() if "/" in name or name.startswith("memory_bank")})
    assert any(name.endswith("/exp_avg") and array.any() for name, array in arrays[0].items())
    check_close(*arrays)
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[1].items():
        assert metrics[0][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_user_texts_are_read_by_their_own_rows(backend, make_trainer, make_model, short_loader, split, tmp_path):
    draws, arrays = np.random.default_rng(2), []
    texts_UT = draws.normal(size=(91, 12)).astype(np.float32)
    vectors_IT = draws.normal(size=(split.num_items, 12)).astype(np.float32)
    for grouped in (True, False):
        model = backend.package.UR4Rec(
            *(split.num_items, vectors_IT),
            **{"user_text_vectors": texts_UT, "text_embedding_dim": 12, "max_seq_len": short_loader.max_seq_len},
            **{"retriever_output_dim": 8, "retriever_dropout": 0.0, "sasrec_hidden_dim": 8, "sasrec_num_heads": 1},
        )
        trainer = make_trainer(model=model, length_groups=grouped)
        trainer.set_training_stage("pretrain_retriever")
        trainer.train_epoch(short_loader, max_steps=1)
        assert (trainer.length_groups is not None) is grouped
        arrays.append(
            {name: each for name, each in saved_arrays(trainer, tmp_path / str(grouped)).items() if "/" in name}
        )
    assert arrays[0]["retriever.user_bias/exp_avg"].any()
    check_close(*arrays)


def train_watched(trainer, batches):
    """The loss of an epoch, and of each step whether its rows were divided."""
    divided = []
    metrics = trainer.train_epoch(batches, after_step=lambda: divided.append(bool(trainer._prepared[1].groups)))
    return metrics["total_loss"], divided


def test_a_batch_with_too_many_long_rows_is_not_divided(make_short, short_loader, long_batch):
    batches = OfKind([short_loader.batch(0, 0), long_batch], short_loader)
    loss, divided = train_watched(make_short("pretrain_sasrec"), batches)
    expected, never = train_watched(make_short("pretrain_sasrec", length_groups=False), batches)
    assert divided == [True, False]
    assert never == [False, False]
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_run_that_is_resumed_keeps_every_bit(make_short, short_loader, tmp_path):
    once, first = (make_short("pretrain_sasrec", dropout=0.3) for _ in range(2))
    once.train_epoch(short_loader)
    first.train_epoch(short_loader, max_steps=1)
    first.save_checkpoint(tmp_path / "middle")
    second = make_short("pretrain_sasrec", dropout=0.3)
    second.load_checkpoint(tmp_path / "middle")
    second.train_epoch(short_loader, start=1)
    assert second.length_groups is not None
    arrays, expected = saved_arrays(second, tmp_path / "second"), saved_arrays(once, tmp_path / "once")
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_a_checkpoint_that_is_older_than_groups_goes_on_without(make_short, short_loader, tmp_path):
    trainer = make_short("pretrain_sasrec", length_groups=False)
    trainer.train_epoch(short_loader, max_steps=1)
    trainer.save_checkpoint(tmp_path / "new")
    saved = load_checkpoint(tmp_path / "new")
    del saved.state["trainer"]["length_groups"]
    save_checkpoint(tmp_path / "old", saved)
    later = make_short("pretrain_sasrec")
    later.load_checkpoint(tmp_path / "old")
    later.train_epoch(short_loader, start=1, max_steps=1)
    assert not later.config.length_groups
    assert later.length_groups is None


def test_rows_stay_together_where_they_should(make_short, short_loader, loader, caplog):
    trainer = make_short("pretrain_sasrec")
    with caplog.at_level("INFO", "ur4rec.training.trainer"):
        trainer._group_rows(short_loader)
        trainer._group_rows(short_loader)
    assert len(caplog.messages) == 1
    assert f"{trainer.length_groups} positions: {trainer.length_groups.num_positions} of 768" in caplog.text
    settings, trainer.config = trainer.config, replace(trainer.config, compile=True)
    trainer._group_rows(short_loader)
    assert trainer.length_groups is None
    trainer.config = settings
    trainer._group_rows([short_loader.batch(0, 0)])
    assert trainer.length_groups is None
    trainer.mesh = Mesh(data=2)
    trainer._group_rows(short_loader)
    assert trainer.length_groups is None
