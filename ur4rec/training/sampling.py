"""The negatives of sampled losses: which items are drawn, and how often each was to be expected.

The sum of a softmax over the catalogue is estimated by importance sampling (Bengio & Senécal, 2008) from a few
negatives that the whole batch shares: ``num_negatives`` items drawn uniformly, so that every item is pushed down at
times, and ``num_in_batch`` of the batch's targets, which are popular items. (Such a mixture is called mixed negative
sampling; Yang et al., WWW 2020 Companion.) Each negative's exponential is divided by how often its item is expected
among the draws::

    expected_j = num_in_batch · frequency_j + num_negatives / I
    loss       = −s_y + log(exp(s_y) + Σ over drawn j ≠ y of exp(s_j − log expected_j))

``− log expected_j`` is the logQ correction, with which Yi et al. (RecSys 2019) train on in-batch negatives. They
correct the target's logit too; here it has no correction, since the target is in the sum with certainty and not by a
draw (Khrylchenko et al., RecSys 2025). A negative that is the position's target is left out. The estimate approaches
the full softmax as the number of negatives grows.

Draws are functions of (seed, step), frequencies those of the training data: a run that resumes draws the same, and so
does the other backend.

Shapes: B rows, L positions, N positions with a target, C negatives, I items, J items of a step with the padding.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import TrainerConfig
from ur4rec.training.arrays import Sample
from ur4rec.training.item_counts import check_item_counts

HIT = -1e9
"""What is added to the logit of a negative that is the target: finite, so that differences of two are no NaN."""

Items = NDArray[np.integer]


class Sampler:
    """Draws the negatives of a step, and numbers its items.

    Args:
        config: The seed and how many of each kind.
        num_items: Size of the catalogue, and the padding index.
        item_counts_I: How often each item is a target in the training data.

    Raises:
        ConfigurationError: The counts do not fit.

    Example:
        >>> sampler = Sampler(TrainerConfig(num_negatives=2, num_in_batch=1), 4, [5, 3, 2, 0])
        >>> items_C = sampler.draw(np.array([0, 1, 1]), step=7)
        >>> items_C.shape, bool(np.isin(items_C[2], [0, 1]))
        ((3,), True)
        >>> [round(float(expected), 2) for expected in np.exp(-sampler.offsets(np.arange(4)))]
        [1.0, 0.8, 0.7, 0.5]
    """

    def __init__(self, config: TrainerConfig, num_items: int, item_counts_I: ArrayLike | None) -> None:
        counts_I = check_item_counts("catalogue_loss='sampled'", item_counts_I, num_items, some=True)
        self._seed, self._num_items = config.seed, num_items
        self._num_uniform, self._num_in_batch = config.num_negatives, config.num_in_batch
        expected_I = self._num_in_batch * counts_I / counts_I.sum() + self._num_uniform / num_items
        self._offsets_I = -np.log(expected_I).astype(np.float32)

    def draw(self, targets_N: Items, step: int) -> Items:
        """The negatives of a training step: uniform ones, then targets of the batch; both with replacement.

        Args:
            targets_N: The targets of the batch. Without any, all negatives are uniform.
            step: The training step of the run.
        """
        generator = np.random.Philox(key=np.array([self._seed, step], np.uint64), counter=2 << 128)
        draws_C = generator.random_raw(self._num_uniform + self._num_in_batch)
        uniform_C = (draws_C % np.uint64(self._num_items)).astype(np.int64)
        if not len(targets_N):
            return uniform_C
        picks = (draws_C[self._num_uniform :] % np.uint64(len(targets_N))).astype(np.int64)
        return np.concatenate([uniform_C[: self._num_uniform], targets_N[picks]])

    def offsets(self, items_C: Items) -> NDArray[np.float32]:
        """What is added to the logits of these items as negatives."""
        offsets_C: NDArray[np.float32] = self._offsets_I[items_C]
        return offsets_C

    def number(
        self,
        items_BL: Items,
        targets_N: Items,
        step: int,
        *,
        num_positions: int | None = None,
        items_C: Items | None = None,
    ) -> tuple[Items, Items, Sample[Items | NDArray[np.float32]]]:
        """The histories and targets of a step by the places of their items in a sample, and the sample.

        Args:
            items_BL: Histories, padded.
            targets_N: Targets, which may be padded too.
            step: The training step of the run.
            num_positions: How many positions may hold an item, for a backend that compiles: then the number of items
                is the same for all batches of a shape.
            items_C: The negatives; by default those that are drawn for these targets.
        """
        if items_C is None:
            items_C = self.draw(targets_N[targets_N != self._num_items], step)
        parts = (items_BL.ravel(), targets_N, items_C)
        found, places = np.unique(np.concatenate([*parts, [self._num_items]]), return_inverse=True)
        size = len(found)
        if num_positions is not None:
            # Targets are the items after those of a history: of a row only the last one is new.
            size = min(num_positions + len(items_BL) + len(items_C), self._num_items) + 1
        items_J = np.full(size, self._num_items, np.int64)
        items_J[: len(found) - 1] = found[:-1]
        places = np.where(places == len(found) - 1, size - 1, places)
        history, targets, candidates_C = np.split(places[:-1], [items_BL.size, items_BL.size + len(targets_N)])
        return history.reshape(items_BL.shape), targets, Sample(items_J, candidates_C, self.offsets(items_C))
