"""``compile=True``: the losses of the model as it is written, few graphs, plain names, and what is frozen untouched."""

import math
from shutil import which

import pytest
from torch._dynamo import reset
from torch._dynamo.testing import CompileCounterWithBackend

from alternator import Cycle
from tests.backends.harness import bits, equal, snapshot, train
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.stages import MODULES
from ur4rec_torch import compiled, load_model

pytestmark = [  # the compiler's own
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is:DeprecationWarning"),
]

STAGES = ("pretrain_sasrec", "pretrain_retriever", "joint_finetune", "end_to_end")


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that are compiled, without the minute that it takes to generate their code."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "COMPILER", {"backend": counter})
    reset()
    yield counter
    reset()


@pytest.fixture
def make(make_trainer, loader):
    def build(**settings):
        records = []
        trainer = make_trainer(rule=Cycle(2), on_step=records.append, item_counts=loader.item_counts, **settings)
        return trainer, records

    return build


def losses(records):
    return [loss for record in records for loss in record.losses.values()]


def test_losses_and_checkpoints_are_those_without_compiling(make, batch_stream, targets, graphs, tmp_path):
    (plain, expected), (trainer, records) = make(), make(compile=True)
    for each in (plain, trainer):
        for stage in STAGES:
            each.set_training_stage(stage)
            train(each, batch_stream(0, 5))
            each.rank_all(targets)
    assert losses(records) == pytest.approx(losses(expected), rel=1e-4)
    assert graphs.frame_count == 4  # each module as it trains and as it is frozen; none of evaluation
    assert snapshot(trainer).keys() == snapshot(plain).keys()
    trainer.save_checkpoint(tmp_path / "saved")
    assert load_model(tmp_path / "saved").state_dict().keys() == plain.model.state_dict().keys()
    resumed, _ = make(compile=True)
    resumed.load_checkpoint(tmp_path / "saved")
    for each in (trainer, resumed):
        each.set_training_stage("joint_finetune")
        for batch in batch_stream(5, 4):
            (frozen,) = {*MODULES} - {each.alternator.active}
            before = bits(each, frozen)
            each.train_step(batch)
            assert equal(bits(each, frozen), before)
    assert equal(snapshot(trainer), snapshot(resumed))
    assert graphs.frame_count == 4


def test_the_number_of_sampled_items_makes_no_graph(make, batch_stream, graphs):
    sampled = {"catalogue_loss": "sampled", "num_negatives": 8, "num_in_batch": 8}
    (plain, expected), (trainer, records) = make(**sampled), make(compile=True, **sampled)
    for each in (plain, trainer):
        each.set_training_stage("end_to_end")
        train(each, batch_stream(0, 8))
    assert losses(records) == pytest.approx(losses(expected), rel=1e-4)
    assert graphs.frame_count <= 4  # for the first number, and for any


@pytest.mark.skipif(which("g++") is None, reason="the default compiler generates C++")
def test_the_default_compiler_gives_the_same_losses(make, batch_stream):
    (plain, expected), (trainer, records) = make(), make(compile=True)
    for each in (plain, trainer):
        each.set_training_stage("pretrain_retriever")
        train(each, batch_stream(0, 3))
        each.flush()
    assert losses(records) == pytest.approx(losses(expected), rel=1e-4)
    assert all(map(math.isfinite, losses(records)))


def test_a_compiler_that_does_not_work_is_one_line(make, batch_stream, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no compiler\nat all")

    monkeypatch.setattr(compiled, "COMPILER", {"backend": broken})
    trainer, _ = make(compile=True)
    with pytest.raises(ConfigurationError, match=r"compile=True needs a compiler that works .*leave out compile=True$"):
        train(trainer, batch_stream(0, 1))
