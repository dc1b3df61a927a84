"""Trains and ranks on the second of two host devices, where every transfer that nobody asked for is an error.

A program of its own: the number of host devices is set before JAX starts.
"""

import jax
import numpy as np

from alternator import Cycle, Payoff
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec_jax import JointTrainer, UR4Rec

LENGTH = 8
STRATEGIES = {
    "use_curriculum_learning": True,
    "use_memory_bank": True,
    "memory_bank_size": 32,
    "use_knowledge_distillation": True,
    "use_uncertainty_weighting": True,
}
SAMPLED = {"catalogue_loss": "sampled", "num_negatives": 8, "num_in_batch": 8}

split = leave_one_out(synthetic(num_users=40, num_items=300, mean_length=12))
loader = TrainBatches(split.train, split.num_items, max_seq_len=LENGTH, batch_size=16, seed=0)
targets = EvaluationBatches(split.validation, split.num_items, max_seq_len=LENGTH, batch_size=16)
texts_IT = np.random.default_rng(0).normal(size=(split.num_items, 4)).astype(np.float32)
texts_UT = np.random.default_rng(1).normal(size=(len(split.train), 4)).astype(np.float32)


def make(**settings):
    sizes = {"text_embedding_dim": 4, "sasrec_hidden_dim": 4, "sasrec_num_heads": 1, "retriever_output_dim": 4}
    shape = {"retriever_num_queries": 2, "sasrec_num_blocks": 1, "max_seq_len": LENGTH}
    model = UR4Rec(split.num_items, texts_IT, user_text_vectors=texts_UT, **sizes, **shape)
    arguments = {"rule": Cycle(2), "item_counts": loader.item_counts, "device": "cpu:1", **settings}
    return JointTrainer(model, progress=False, **arguments)


def train(trainer, *stages):
    with jax.transfer_guard("disallow"):
        for stage in stages:
            trainer.set_training_stage(stage, num_steps=3)
            trainer.train_epoch(loader, max_steps=3)
    assert trainer.step == 3 * len(stages)
    assert {device for leaf in jax.tree.leaves(trainer._state) for device in leaf.devices()} == {jax.devices()[1]}
    return trainer


# every stage, in steps from the host or in an epoch on the device: what is sent is the same for each
trainer = train(make(readers=1, **STRATEGIES), "pretrain_retriever", "joint_finetune")
train(make(on_device=True, **STRATEGIES), "pretrain_sasrec", "end_to_end")
train(make(on_device=True), "joint_finetune")
train(make(**SAMPLED), "end_to_end")
measured = make(rule=Payoff(min_steps=2, costs=(2.0, 1.0, 1.0)), probe=targets.batch(0))
train(measured, "joint_finetune")
assert measured.num_probe_forwards > 2
with jax.transfer_guard("disallow"):
    trainer.rank_all(targets)
    trainer._width = lambda *_: 64  # a catalogue in slices
    trainer.rank_all(targets, ("sasrec",))
    next(trainer.top(split.test.histories, 3, scorer="sasrec"))
print("no transfer that nobody asked for")
