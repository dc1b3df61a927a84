"""Trains and ranks on the second of two host devices, where every transfer that nobody asked for is an error.

A program of its own: the number of host devices is set before JAX starts.
"""

import jax
import numpy as np

from alternator import Cycle, Payoff
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec.schedule.alternators import TurnSequence
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
texts = [np.random.default_rng(0).normal(size=(num, 4)) for num in (split.num_items, len(split.train))]


def make(**settings):
    sizes = {"text_embedding_dim": 4, "sasrec_hidden_dim": 4, "sasrec_num_heads": 1, "retriever_output_dim": 4}
    shape = {"retriever_num_queries": 2, "sasrec_num_blocks": 1, "max_seq_len": LENGTH}
    model = UR4Rec(split.num_items, texts[0], user_text_vectors=texts[1], **sizes, **shape)
    arguments = {"rule": Cycle(2), "item_counts": loader.item_counts, "device": "cpu:1", **settings}
    return JointTrainer(model, progress=False, **arguments)


def make_with_encoder(**settings):
    tokens_IS = np.random.default_rng(0).integers(2, 20, (split.num_items, 5))
    encoder = {"text_encoder": "transformer", "text_encoder_vocab": 20, "text_encoder_tokens": 5}
    sizes = {"text_embedding_dim": 4, "sasrec_hidden_dim": 4, "sasrec_num_heads": 1, "retriever_output_dim": 4}
    shape = {"retriever_num_queries": 2, "sasrec_num_blocks": 1, "max_seq_len": LENGTH, "text_encoder_layers": 1}
    model = UR4Rec(split.num_items, item_tokens=tokens_IS, **encoder, **sizes, **shape)
    return JointTrainer(model, progress=False, device="cpu:1", **settings)


def train(trainer, *stages):
    with jax.transfer_guard("disallow"):
        for stage in stages:
            trainer.set_training_stage(stage, num_steps=3)
            trainer.train_epoch(loader, max_steps=3)
    assert trainer.step == 3 * len(stages)
    assert {device for leaf in jax.tree.leaves(trainer._state) for device in leaf.devices()} == {jax.devices()[1]}
    return trainer


def main():
    """Every stage, in steps from the host or in an epoch on the device; compiling takes the time, so each step once."""
    trainer = train(make(readers=1, rule=Cycle(3), **STRATEGIES), "pretrain_retriever", "joint_finetune")
    train(make(on_device=True), "pretrain_sasrec", "joint_finetune")
    train(make(**SAMPLED), "pretrain_sasrec")
    encoding = make_with_encoder(rule=TurnSequence((("all", 2), ("both", 1))))
    train(encoding, "joint_finetune")  # its cache is refreshed in the last step
    with jax.transfer_guard("disallow"):
        encoding.rank_all(targets, ("retriever",))
    measured = make(rule=Payoff(min_steps=2, costs=(2.0, 1.0, 1.0)), probe=targets.batch(0))
    train(measured, "end_to_end", "joint_finetune")
    assert measured.num_probe_forwards > 2
    with jax.transfer_guard("disallow"):
        trainer.rank_all(targets)
        trainer._width = lambda *_: 64  # a catalogue in slices
        trainer.rank_all(targets, ("sasrec",))
        next(trainer.top(split.test.histories, 3, scorer="sasrec"))


if __name__ == "__main__":
    main()
