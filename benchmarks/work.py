"""What a training step must do, as formulas: floating-point operations of products, bytes moved, exponentials.

Counted is the model as it is by default (`ur4rec_torch/sasrec.py`, `retriever.py`), with a softmax over the whole
catalogue. A test holds the products against PyTorch's own count of a step (`torch.utils.flop_counter`), to the last.

Symbols: T positions that are computed, A pairs of a query and a key that attention computes, N targets, I items, d
width of SASRec, n blocks; for the retriever t width of text, e width of preferences, K queries.

Products, two operations per multiplication, forward:

- SASRec: 24·T·d² + 4·A·d in each block (four projections, 8; feed-forward layers of 4·d, 16; attention, A), and the
  logits, 2·N·d·I;
- the catalogue, computed where the retriever trains: three projections of texts, 2·(3·I + 2)·t·e, and what the queries
  find in them, 2·(I + 1)·e·K;
- the retriever: the projection of what is read, 2·T·e², what each query gathers of it, 2·A·K·e, and the scores,
  2·N·K·e·I.

Backward, each product costs two of its kind, one for either factor; the texts, which are given, need none. A frozen
module is run forward only, and its catalogue is kept.

Bytes, 4 for a number, are the least that a step moves if the logits never leave the cache: of each trained weight the
gradient (written, read for its norm, read) and weight and moments (read, written); of each intermediate result of a
block, written and read once forward, and, where it trains, read again backward, with a gradient written and read. Where
all of it fits the cache, less is moved.

Exponentials (and logarithms) for each target and item: one for SASRec's softmax, K for the retriever's, and for that of
their weighted sum K, a logarithm and one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOAT = 4
"""Bytes of a number."""
WEIGHT_PASSES = 9
"""Over each trained weight: its gradient three times, and weight and two moments read and written."""
BLOCK_WIDTHS = 14
"""Numbers by d that a block computes at a position: two norms, q, k, v, what is attended, its projection, 4·d of the
feed-forward layer, its output, and two sums."""
OTHER_WIDTHS = 3
"""Numbers by d outside of blocks: the embedding, its sum with the position's, and the last norm."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done."""

    flops: float = 0.0
    """Floating-point operations of products."""
    bytes: float = 0.0
    """Bytes to and from memory."""
    exponentials: float = 0.0
    """Exponentials and logarithms of numbers."""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            flops=self.flops + other.flops,
            bytes=self.bytes + other.bytes,
            exponentials=self.exponentials + other.exponentials,
        )

    def seconds(self, rates: "Rates") -> dict[str, float]:
        """Each kind's time at the rates of a machine.

        Example:
            >>> Work(flops=4e9, bytes=1e9).seconds(Rates(flops=2e9, bytes=1e9, exponentials=1e9))
            {'products': 2.0, 'memory': 1.0, 'exponentials': 0.0}
        """
        return {
            "products": self.flops / rates.flops,
            "memory": self.bytes / rates.bytes,
            "exponentials": self.exponentials / rates.exponentials,
        }


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a machine was seen to do in a second."""

    flops: float
    """Floating-point operations of a large product."""
    bytes: float
    """Bytes read and written by a copy of a large array."""
    exponentials: float
    """Exponentials of an array that fits the cache."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a step; see the symbols above."""

    positions: int
    """T."""
    pairs: int
    """A."""
    targets: int
    """N."""
    items: int
    """I."""
    width: int
    """d."""
    blocks: int
    """n."""
    text_width: int
    """t."""
    preference_width: int
    """e."""
    queries: int
    """K."""

    @classmethod
    def padded(cls, batch: Any, num_items: int, model: Any) -> "Shape":
        """What a step computes that computes every position of a batch, padding too, and every pair.

        Args:
            batch: A `ur4rec.data.batches.Batch`.
            num_items: Items, and the padding index.
            model: A `ur4rec.config.ModelConfig`.
        """
        rows, length = batch.items_BL.shape
        return cls._of(batch, num_items, model, positions=rows * length, pairs=rows * length**2)

    @classmethod
    def computed(cls, batch: Any, num_items: int, model: Any, groups: Any) -> "Shape":
        """What a step computes whose rows are in groups of about one length.

        Args:
            batch: As for `padded`.
            num_items: As for `padded`.
            model: As for `padded`.
            groups: The `ur4rec.training.length_groups.LengthGroups` of a trainer; None is `padded`.
        """
        if groups is None:
            return cls.padded(batch, num_items, model)
        pairs = sum(rows * width**2 for rows, width in groups.shapes)
        return cls._of(batch, num_items, model, positions=groups.num_positions, pairs=pairs)

    @classmethod
    def needed(cls, batch: Any, num_items: int, model: Any) -> "Shape":
        """What has to be computed: real positions, and pairs of one with itself and those before it."""
        lengths_B = (np.asarray(batch.items_BL) < num_items).sum(1).astype(np.int64)
        pairs = int((lengths_B * (lengths_B + 1) // 2).sum())
        return cls._of(batch, num_items, model, positions=int(lengths_B.sum()), pairs=pairs)

    @classmethod
    def _of(cls, batch: Any, num_items: int, model: Any, *, positions: int, pairs: int) -> "Shape":
        return cls(
            positions=positions,
            pairs=pairs,
            targets=int((np.asarray(batch.targets_BL) < num_items).sum()),
            items=num_items,
            width=model.sasrec_hidden_dim,
            blocks=model.sasrec_num_blocks,
            text_width=model.text_embedding_dim,
            preference_width=model.retriever_output_dim,
            queries=model.retriever_num_queries,
        )

    @property
    def sasrec_weights(self) -> int:
        """Trained numbers of SASRec, without biases and norms, which are few, and positions."""
        return self.items * self.width + self.blocks * 12 * self.width**2

    @property
    def retriever_weights(self) -> int:
        """Trained numbers of the retriever, without biases."""
        return 3 * self.text_width * self.preference_width + self.preference_width**2


def step_work(shape: Shape, trained: Collection[str], run: Collection[str]) -> Work:
    """The work of a step.

    Args:
        shape: Its sizes.
        trained: The modules that train: ``sasrec``, ``retriever`` or both.
        run: The modules whose scores the loss needs: those that train, and under the fused loss both.

    Example:
        >>> sizes = {"width": 64, "blocks": 2, "text_width": 384, "preference_width": 64, "queries": 2}
        >>> shape = Shape(positions=3200, pairs=160_000, targets=3000, items=1682, **sizes)
        >>> alone, frozen = (step_work(shape, trained, ("sasrec",)) for trained in (("sasrec",), ()))
        >>> alone.flops == 3 * frozen.flops
        True
    """
    total = Work()
    if "sasrec" in run:
        total += _sasrec(shape, trains="sasrec" in trained)
    if "retriever" in run:
        total += _retriever(shape, trains="retriever" in trained)
    each = {("sasrec",): 1, ("retriever",): shape.queries}.get(tuple(run), shape.queries + 2)
    return total + Work(exponentials=float(shape.targets * shape.items * each))


def _sasrec(shape: Shape, *, trains: bool) -> Work:
    positions, width = shape.positions, shape.width
    blocks = shape.blocks * (24 * positions * width**2 + 4 * shape.pairs * width)
    products = blocks + 2 * shape.targets * width * shape.items
    numbers = positions * width * (BLOCK_WIDTHS * shape.blocks + OTHER_WIDTHS)
    weights = shape.sasrec_weights
    return Work(
        flops=float(products * (3 if trains else 1)),
        bytes=float(FLOAT * (numbers * 5 + weights * WEIGHT_PASSES if trains else numbers * 2 + weights)),
    )


def _retriever(shape: Shape, *, trains: bool) -> Work:
    width, queries, items = shape.preference_width, shape.queries, shape.items
    projections = 2 * (3 * items + 2) * shape.text_width * width
    found = 2 * (items + 1) * width * queries
    read = 2 * shape.pairs * queries * width + 2 * shape.positions * width**2
    scores = 2 * shape.targets * queries * width * items
    products = 2 * projections + 3 * (found + read + scores) if trains else read + scores
    catalogue = items * (shape.text_width + 3 * width + queries)
    numbers = 2 * shape.positions * queries * width + shape.positions * width
    return Work(
        flops=float(products),
        bytes=float(
            FLOAT * (5 * (catalogue + numbers) + WEIGHT_PASSES * shape.retriever_weights)
            if trains
            else FLOAT * 2 * (2 * items * width + numbers)
        ),
    )
