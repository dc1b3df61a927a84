"""Targets are ranked with similar histories together; their ranks come in the order of the targets."""

import numpy as np
import pytest

from tests.several_threads import run_in_threads
from ur4rec.config import ModelConfig
from ur4rec.data import leave_one_out, synthetic
from ur4rec.evaluation.metrics import rank_batches
from ur4rec.runs import prepared
from ur4rec.runs.ranking import Ranking


class LastItem:
    """A scorer that prefers items near the last one of the history."""

    readers = 0

    def __init__(self, num_items, part=(0, 1)):
        self.num_items = num_items
        self.part = part
        self.shapes = []

    def rank_all(self, loader, scorers):
        ranks_T = rank_batches(self.score, loader)
        return dict.fromkeys(scorers, ranks_T)

    def score(self, batch):
        self.shapes.append(batch.items_BL.shape)
        last_B = (batch.items_BL < self.num_items).sum(1) - 1
        items_B = batch.items_BL[np.arange(len(last_B)), last_B]
        return -np.abs(items_B[:, None] - np.arange(self.num_items) + 0.25)


def test_ranks_are_in_the_order_of_the_targets_and_batches_no_wider_than_they_must_be(monkeypatch):
    targets = leave_one_out(synthetic(num_users=90, num_items=80, mean_length=20)).test
    model = ModelConfig(num_items=80, max_seq_len=40)
    scorer, told = LastItem(80), []
    expected = scorer.rank_all(prepared.evaluation_batches(targets, model), ["fused"])["fused"]
    assert scorer.shapes == [(90, 32)]
    monkeypatch.setattr(prepared, "MAX_ROWS", 20)
    ranking = Ranking(targets, model)
    found = ranking.ranks(scorer, ["sasrec", "fused"], lambda index, count: told.append((index, count)))
    assert {name: ranks_T.tolist() for name, ranks_T in found.items()} == dict.fromkeys(
        ["sasrec", "fused"], expected.tolist()
    )
    assert told == [(index, 5) for index in range(5)]
    shapes = scorer.shapes[1:]
    assert shapes == sorted(shapes)
    assert shapes[0][0] == 18
    assert shapes[0][1] < shapes[-1][1]


@pytest.mark.parametrize(("count", "num_parts"), [(3, 3), (4, 2), (7, 7)])
def test_processes_divide_the_batches(monkeypatch, count, num_parts):
    targets = leave_one_out(synthetic(num_users=90, num_items=80, mean_length=20)).test
    model = ModelConfig(num_items=80, max_seq_len=40)
    monkeypatch.setattr(prepared, "MAX_ROWS", 20)
    expected = Ranking(targets, model).ranks(LastItem(80), ["fused"])["fused"]
    scorers, told = {}, [[] for _ in range(count)]

    def rank(processes):
        scorer = scorers[processes.rank] = LastItem(80, (processes.rank * num_parts // count, num_parts))
        ranking = Ranking(targets, model, processes=processes)
        return ranking.ranks(scorer, ["fused"], lambda index, _: told[processes.rank].append(index))

    for found in run_in_threads(count, rank):
        assert found["fused"].tolist() == expected.tolist()
    assert all(each == list(range(0, 5, num_parts)) for each in told)
    assert sum(len(each.shapes) for each in scorers.values()) == 5 * (count // num_parts)


def test_a_sample_is_the_same_always_in_order_and_never_larger_than_what_there_is():
    targets = leave_one_out(synthetic(num_users=90, num_items=80)).validation
    users = targets.sample(30).users_T.tolist()
    assert users == sorted(users) == targets.sample(30).users_T.tolist()
    assert len(set(users)) == 30
    assert set(users) < set(targets.sample(31).users_T.tolist())
    assert targets.sample(5000).users_T.tolist() == targets.users_T.tolist()
    row = targets.sample(30).users_T.tolist().index(users[7])
    place = targets.users_T.tolist().index(users[7])
    sample = targets.sample(30)
    assert sample.items_T[row] == targets.items_T[place]
    assert sample.histories[row].tolist() == targets.histories[place].tolist()
    assert sample.seen[row].tolist() == targets.seen[place].tolist()
