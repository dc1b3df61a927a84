"""What a scorer and a trainer refuse to score: histories that the model would take for others."""

import numpy as np
import pytest

from tests.backends.conftest import MAX_SEQ_LEN
from ur4rec.data.batches import EvaluationBatches
from ur4rec.errors import DataError

PADDING = 60  # the number of items of `split`


@pytest.fixture(scope="module", params=["scorer", "trainer"])
def scores(request, backend, make_model, make_trainer):
    return make_trainer() if request.param == "trainer" else backend.package.Scorer(make_model(), device="cpu")


@pytest.mark.parametrize(
    ("items_BL", "message"),
    [
        ([[PADDING, 3]], "have their padding at the end, got 60 at position 0 of row 0"),
        ([[1, 2, PADDING], [1, PADDING, 2]], "have their padding at the end, got 60 at position 1 of row 1"),
        (
            [[3, PADDING + 1]],
            "hold items in 0 .. 59, got 61 at position 1 of row 0; items are numbered 0 .. 59, and 60",
        ),
        ([[1], [-1]], "hold items in 0 .. 59, got -1 at position 0 of row 1"),
        (np.zeros((2, MAX_SEQ_LEN + 1), np.int32), "at most max_seq_len=8 positions, got 9; cut them to their last 8"),
        ([1, 2], "be rows of whole numbers (B, L), got an array of int64 of shape (2,)"),
        ([[1.0, 2.5]], "be rows of whole numbers (B, L), got an array of float64 of shape (1, 2)"),
    ],
)
def test_histories_that_cannot_be_fed_are_refused(scores, items_BL, message):
    for score in (scores.score, scores.scores):
        with pytest.raises(DataError) as caught:
            score(items_BL)
        assert message in str(caught.value)


def test_histories_of_any_length_up_to_the_longest_are_scored(scores, split):
    assert split.num_items == PADDING
    whole = scores.score(np.full((2, MAX_SEQ_LEN), 3, np.int8))
    assert whole.shape == (2, PADDING)
    padded = scores.score([[3, 4] + [PADDING] * (MAX_SEQ_LEN - 2), [PADDING] * MAX_SEQ_LEN])
    np.testing.assert_allclose(padded[0], scores.score([[3, 4]])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch._replace(items_BL=np.roll(batch.items_BL, 1, axis=1)), "have their padding at the end"),
        (
            lambda batch: batch._replace(items_BL=np.tile(batch.items_BL, 2)),
            "must have at most max_seq_len=8 positions",
        ),
        (lambda batch: batch._replace(targets_B=batch.targets_B + PADDING), "have targets among the items, got "),
        (lambda batch: batch._replace(targets_B=batch.targets_B - PADDING), "have targets among the items, got -"),
    ],
)
def test_targets_that_cannot_be_ranked_are_refused(scores, split, change, message):
    short = split.validation.take(np.flatnonzero(split.validation.histories.lengths < MAX_SEQ_LEN)[:5])
    batches = EvaluationBatches(short, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=4)
    assert len(scores.rank(batches)) == 5
    with pytest.raises(DataError, match=message):
        scores.rank_all(map(change, batches))
