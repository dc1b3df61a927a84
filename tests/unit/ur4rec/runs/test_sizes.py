"""Settings from the counts of the data: valid for any counts, no other than what is wanted, and as the rules say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.data import Sequences, build_interactions, leave_one_out
from ur4rec.data.batches import TrainBatches
from ur4rec.errors import ConfigurationError
from ur4rec.runs.config import RunConfig
from ur4rec.runs.prepared import counts_of
from ur4rec.runs.sizes import EPOCHS, FROM_DATA, LENGTHS, Choice, Counts, choose, explain_choices

counts = st.builds(
    Counts,
    num_interactions=st.integers(1, 10**12),
    num_items=st.integers(1, 10**9),
    num_users=st.integers(1, 10**9),
    typical_length=st.integers(1, 10**6),
)
ML_1M = Counts(num_interactions=987_529, num_items=3416, num_users=6040, typical_length=556)
SPORTS = Counts(num_interactions=225_141, num_items=18_357, num_users=35_598, typical_length=16)


def values_of(choices):
    return {choice.name: choice.value for choice in choices}


@given(counts)
def test_of_any_counts_the_settings_are_valid_and_each_has_its_reason(found):
    choices = choose(found, {})
    assert tuple(choice.name for choice in choices) == FROM_DATA
    assert all(choice.reason for choice in choices)
    config = RunConfig().with_values(values_of(choices))
    assert config.model_config(num_items=2).sasrec_hidden_dim % config.model["sasrec_num_heads"] == 0
    assert config.early_stopping > 0
    assert sum(config.epochs.values()) > 0
    for stage, (least, most) in EPOCHS.items():
        assert least <= config.epochs[stage] <= most


@given(counts)
def test_histories_are_read_whole_up_to_the_longest_length(found):
    length = values_of(choose(found, {}))["max_seq_len"]
    assert length in LENGTHS
    assert length >= found.typical_length or length == LENGTHS[-1]
    assert length == LENGTHS[0] or LENGTHS[LENGTHS.index(length) - 1] < found.typical_length


@given(counts, st.sets(st.sampled_from(FROM_DATA)))
def test_what_is_given_stays_and_nothing_else_is_left_open(found, left):
    own = RunConfig(model={"sasrec_hidden_dim": 96, "sasrec_num_heads": 3}, from_data=tuple(left))
    settled, choices = own.settled(found)
    assert {choice.name for choice in choices} == left
    assert settled.from_data == ()
    before, after = (dict(flat(config)) for config in (own, settled))
    assert {name: after[name] for name in FROM_DATA if name not in left} == {
        name: before[name] for name in FROM_DATA if name not in left
    }
    assert {name: after[name] for name in left} == values_of(choices)
    assert settled.settled(found) == (settled, ())
    assert list(settled.epochs) == list(own.epochs)


def flat(config):
    yield from vars(config.model_config(num_items=2)).items()
    yield from vars(TrainerConfig(**config.trainer)).items()
    yield from config.epochs.items()
    yield from ((name, getattr(config, name)) for name in ("batch_size", "eval_every", "early_stopping"))


@given(counts, st.sampled_from([1, 3, 5, 7, 12]))
def test_the_width_goes_with_the_heads_that_are_given(found, heads):
    names = tuple(name for name in FROM_DATA if name != "sasrec_num_heads")
    settled, _ = RunConfig(model={"sasrec_num_heads": heads}, from_data=names).settled(found)
    assert settled.model["sasrec_hidden_dim"] % heads == 0


@given(counts, st.integers(1, 999))
def test_the_heads_go_with_the_width_that_is_given(found, width):
    settled, _ = RunConfig(model={"sasrec_hidden_dim": width}, from_data=("sasrec_num_heads",)).settled(found)
    assert isinstance(settled.model_config(num_items=2), ModelConfig)


def test_sparse_data_gets_more_dropout_and_dense_data_longer_histories():
    dense, sparse = (values_of(choose(each, {})) for each in (ML_1M, SPORTS))
    assert (sparse["sasrec_dropout"], dense["sasrec_dropout"]) == (0.4, 0.2)
    assert (dense["max_seq_len"], sparse["max_seq_len"]) == (200, 16)
    assert sparse["sasrec_hidden_dim"] == 128 > dense["sasrec_hidden_dim"]
    assert sparse["retriever_output_dim"] == dense["retriever_output_dim"] == 128  # texts are as many words in both
    assert (sparse["batch_size"], dense["batch_size"]) == (128, 32)
    assert (sparse["sasrec_lr"], dense["sasrec_lr"]) == (3e-3, 2e-3)


def test_the_shortest_stage_that_trains_is_validated_about_twenty_times():
    small = Counts(num_interactions=5000, num_items=900, num_users=500, typical_length=20)
    found = values_of(choose(small, {}))
    shortest = found["pretrain_retriever"]
    assert 0 < shortest <= min(found["pretrain_sasrec"], found["joint_finetune"])
    assert 13 <= shortest / found["eval_every"] <= 30
    assert values_of(choose(ML_1M, {}))["eval_every"] == 1
    names = [name for name in FROM_DATA if name not in ("pretrain_retriever", "joint_finetune", "pretrain_sasrec")]
    assert (
        values_of(choose(small, {"pretrain_sasrec": 0, "pretrain_retriever": 0, "joint_finetune": 80}, names))[
            "eval_every"
        ]
        == 4
    )


def test_epochs_that_are_missing_come_in_the_order_of_the_stages():
    settled, _ = RunConfig(epochs={"joint_finetune": 2}, from_data=("pretrain_sasrec",)).settled(SPORTS)
    assert list(settled.epochs) == ["pretrain_sasrec", "joint_finetune"]
    assert settled.epochs["joint_finetune"] == 2


def test_counts_that_are_none_are_refused():
    with pytest.raises(ConfigurationError, match="num_users must be an integer of at least 1, got 0"):
        Counts(num_interactions=3, num_items=2, num_users=0, typical_length=3)


def test_nothing_is_said_where_nothing_was_chosen():
    assert explain_choices(()) == []
    assert explain_choices([Choice("batch_size", 64, "many")])[1] == "  batch_size=64: many"


@given(st.lists(st.integers(2, 900), min_size=1, max_size=30), st.integers(1, 300), st.integers(1, 64))
def test_the_steps_that_are_said_are_those_of_training(lengths, max_seq_len, batch_size):
    known = {length: lengths.count(length) for length in lengths}
    found = Counts(num_interactions=sum(lengths), num_items=9, num_users=len(lengths), typical_length=9, lengths=known)
    batches = TrainBatches(
        Sequences.from_lists([[0] * length for length in lengths]),
        9,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        seed=0,
        shifted=True,
    )
    assert (found.windows(max_seq_len), found.steps(max_seq_len, batch_size)) == (batches.num_rows, len(batches))


def test_a_small_epoch_has_a_step():
    rows = [(f"u{user}", f"i{item}", item) for user in range(5) for item in range(9)]
    users, items, times = zip(*rows, strict=True)
    data = build_interactions(users=users, items=items, timestamps=times, titles={}, texts={}, name="x", source="x")
    reasons = {choice.name: choice.reason for choice in choose(counts_of(leave_one_out(data)), {})}
    assert reasons["batch_size"] == "a row has 6 targets, an epoch 5 rows: 1 step"
    assert reasons["pretrain_sasrec"] == "200 steps, or until early stopping"
