"""Training of a tiny model by several processes; the cases run on every rank."""

import dataclasses
from contextlib import contextmanager

import numpy as np
import torch.distributed as dist

from alternator import Payoff, Trial
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import Batch, EvaluationBatches, TrainBatches
from ur4rec.errors import ProcessesError
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import PreparedData
from ur4rec.runs.run import Stopped, TrainingRun
from ur4rec.text.encoders import TextEncoder
from ur4rec.training.processes import ONE_PROCESS
from ur4rec_torch import JointTrainer, UR4Rec
from ur4rec_torch.processes import TorchProcesses

PAYOFF = Payoff(costs=(1.0, 0.6, 0.5), min_steps=2, groups=4, confidence=0.55, retry_after=3, max_retry_after=4)
TRIAL = Trial(
    candidates=((0,), (1, 2, 2), (2,)), costs=(1.0, 0.6, 0.5), steps=3, start=3, hold=12, halvings=9, groups=4
)
STRATEGIES = {
    "use_memory_bank": True,
    "memory_bank_size": 24,
    "use_uncertainty_weighting": True,
    "use_knowledge_distillation": True,
    "use_curriculum_learning": True,
}
SAMPLED = {"catalogue_loss": "sampled", "num_negatives": 20, "num_in_batch": 8}
CASES = {
    "fused": {"warmup": 0.0},
    "separate": {"joint_loss": "separate", "sasrec_loss": "bce", "clip_norm": 0.1},
    "payoff": {"rule": PAYOFF, "probe": True, "sasrec_lr": 0.03},
    "trial": {"rule": TRIAL, "probe": True, "sasrec_lr": 0.03, **STRATEGIES},
    "strategies": STRATEGIES,
    "sampled": {**STRATEGIES, **SAMPLED},
}
"""Settings by name."""
NUM_STEPS = {"fused": 200, "payoff": 12}
"""The steps of a case; 26 by default."""
BATCH_SIZE = 10
MODEL_SETTINGS = ("fusion", "fusion_popularity", "sasrec_block")


@contextmanager
def processes_of(timeout=300.0):
    """The processes of the group that the fixture has started."""
    store = dist.distributed_c10d._get_default_store()
    found = TorchProcesses(dist.PrefixStore("test", store), timeout)
    try:
        yield found
    finally:
        found._pulse.stop()
        dist.destroy_process_group(found._patient)


class Run:
    """A trainer and its data; of one process without ``processes``."""

    def __init__(self, processes=None, **settings):
        split = leave_one_out(synthetic(num_users=40, num_items=60))
        num_items = settings.pop("num_items", split.num_items)
        shape = {"num_items": num_items, "max_seq_len": 8}
        vectors_IT = np.random.default_rng(0).standard_normal((num_items, 8)).astype(np.float32)
        sizes = {"sasrec_hidden_dim": 8, "sasrec_num_heads": 2, "retriever_output_dim": 8}
        dropout = {"sasrec_dropout": 0.3, "retriever_dropout": 0.2}
        self.batches = TrainBatches(split.train, **shape, batch_size=BATCH_SIZE, seed=0)
        own = {name: settings.pop(name) for name in MODEL_SETTINGS if name in settings}
        own |= {"item_counts": self.batches.item_counts, **sizes, **dropout}
        model = UR4Rec(num_items, vectors_IT, text_embedding_dim=8, max_seq_len=8, **own)
        self.targets = EvaluationBatches(split.validation, **shape, batch_size=16)
        if settings.pop("probe", False):
            settings["probe"] = EvaluationBatches(split.validation, **shape, batch_size=32).batch(0)
        self.records = []
        self.trainer = JointTrainer(
            model,
            device="cpu",
            progress=False,
            processes=processes,
            on_step=self.records.append,
            item_counts=self.batches.item_counts,
            **settings,
        )
        self.epochs = []

    def train(self, num_steps, start=0):
        """Train; the last batch of an epoch has fewer rows than a rank's part."""
        trainer = self.trainer
        if not start:
            trainer.set_training_stage("joint_finetune", num_steps=num_steps)
        while trainer.step < num_steps:
            epoch, done = divmod(trainer.step, len(self.batches))
            self.epochs.append(trainer.train_epoch(self.batches, epoch, start=done, max_steps=num_steps - trainer.step))
        return self

    def outcome(self):
        """Decisions, losses, metrics and weights."""
        weights = {name: each.numpy().copy() for name, each in self.trainer.model.state_dict().items()}
        decisions = [(record.active, record.reason) for record in self.records]
        losses = [record.losses for record in self.records]
        metrics = [{key: value for key, value in each.items() if not key.endswith("_lr")} for each in self.epochs]
        return decisions, losses, metrics, self.trainer.evaluate(self.targets, k_list=[10]), weights


def trained(rank, names):
    """The outcome of each case, and whether what was frozen has kept its bits in each step."""
    with processes_of() as processes:
        return {name: _watched(processes, name) for name in names}


def _watched(processes, name):
    run, moved = Run(processes, **CASES[name]), []
    update = run.trainer._update

    def watched(batch, active, rates):
        frozen = {"sasrec": "retriever", "retriever": "sasrec"}.get(active)
        before = [] if frozen is None else [each.clone() for each in getattr(run.trainer.model, frozen).parameters()]
        found = update(batch, active, rates)
        after = [] if frozen is None else list(getattr(run.trainer.model, frozen).parameters())
        moved.extend(frozen for old, new in zip(before, after, strict=True) if not old.equal(new))
        return found

    run.trainer._update = watched
    return run.train(NUM_STEPS.get(name, 26)).outcome(), moved


def with_a_loss_that_is_not_finite(rank):
    """The outcome of a run in which one rank alone computes NaN in one step."""
    with processes_of() as processes:
        run = Run(processes)
        spoil(run, at=7, on=rank == 1)
        return run.train(12).outcome()


def spoil(run, at, on=True):
    """Make a loss NaN in one step."""
    forward = run.trainer._forward

    def spoiled(inputs, modules):
        losses = forward(inputs, modules)
        return losses._replace(total=losses.total * float("nan")) if on and run.trainer.step == at else losses

    run.trainer._forward = spoiled


def saved(rank, folder):
    """Train half of a run and save it."""
    with processes_of() as processes:
        run = Run(processes, **CASES["sampled"])
        run.trainer.set_training_stage("joint_finetune", num_steps=30)
        run.trainer.train_epoch(run.batches, 0, max_steps=5)
        run.trainer.save_checkpoint(folder)


def resumed(rank, folder):
    """The outcome of the rest of it."""
    with processes_of() as processes:
        run = Run(processes, **CASES["sampled"])
        run.trainer.load_checkpoint(folder)
        return run.train(30, start=5).outcome()


def disagreeing(rank):
    """What is said of ranks that hold different weights."""
    with processes_of() as processes:
        run = Run(processes).train(2)
        if rank == 1:
            run.trainer.model.sasrec.final_norm.bias.data += 1
        try:
            run.train(4, start=2)
        except Exception as error:  # noqa: BLE001 - its kind and message are what is looked at
            return type(error).__name__, str(error)
        return None


def small_batch(rank):
    """The losses of a batch with fewer rows than there are ranks."""
    with processes_of() as processes:
        run = Run(processes)
        run.trainer.train_step(few_rows(run))
        run.trainer.flush()
        return run.records[0].losses


def few_rows(run):
    """A batch of two rows."""
    return Batch(*(each[:2] for each in run.batches.batch(0, 0)))


def make_run(folder, processes=ONE_PROCESS):
    """A run of two stages, of 28 steps, that draws nothing."""
    interactions = synthetic(num_users=50, num_items=24, num_clusters=4, mean_length=7)
    split = leave_one_out(interactions)
    vectors_IT = np.random.default_rng(0).normal(size=(split.num_items, 8)).astype(np.float32)
    config = RunConfig(
        dataset="synthetic",
        schedule="2:1",
        device="cpu",
        batch_size=16,
        model={
            **{"max_seq_len": 5, "sasrec_hidden_dim": 8, "sasrec_num_heads": 1, "sasrec_num_blocks": 1},
            **{"text_embedding_dim": 8, "retriever_output_dim": 8, "retriever_num_queries": 2},
        },
        epochs={"pretrain_sasrec": 4, "joint_finetune": 3},
    )
    prepared = PreparedData(
        interactions=interactions,
        split=split,
        item_text_vectors_IT=vectors_IT,
        model=config.model_config(split.num_items),
        train=TrainBatches(split.train, split.num_items, max_seq_len=5, batch_size=16, seed=0),
        encoder=TextEncoder("tfidf", 8, {"neutral": vectors_IT[0]}),
    )
    run = TrainingRun(config, prepared, RunDirectory(folder), progress=False, processes=processes)
    run._draw = lambda: None
    return run


def stopped(rank, folder, asked_at):
    """The step at which a run stops of which one process alone was asked to."""
    with processes_of() as processes:
        run = make_run(folder, processes)
        try:
            run.train(stop=lambda: rank == 1 and run.trainer.step >= asked_at)
        except Stopped as error:
            return error.step, run.trainer.step
        return None


def disagreeing_settings(rank, folder):
    """What is said of processes that would not train the same run."""
    with processes_of() as processes:
        run = make_run(folder, processes)
        config = dataclasses.replace(run.config, seed=rank)
        try:
            TrainingRun(config, run.prepared, run.directory, processes=processes)
        except ProcessesError as error:
            return str(error)
        return None
