"""Settings that follow from the counts of the data: sizes, learning rates and lengths, each with its reason.

Rules of thumb, a function of a few counts of the training interactions and of nothing else; the constants at the top
are all that there is to change. The preset ``default`` leaves `FROM_DATA` to it; what a user sets wins, and the rest is
chosen to go with it.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alternator.checks import check_integer

COVERED = 0.95
"""The share of training histories that is read whole."""
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 160, 200)
"""What max_seq_len may be: attention costs its square, and few positions beyond the longest matter."""
WIDTHS = {64: (0, 0), 128: (100_000, 8_000), 256: (10_000_000, 8_000)}
"""Width of SASRec: the largest for which there are at least this number of interactions and of items."""
RETRIEVER_WIDTH = 128
"""Width of the retriever at least: what tells texts apart does not grow with the interactions."""
HEAD_WIDTHS = {1: 0, 2: 64, 4: 256}
"""Attention heads, from a width on."""
DROPOUT_MOST, DROPOUT_LEAST = 0.4, 0.1
DROPOUT_FROM, DROPOUT_DECADE = 20, 0.17
"""Dropout is greatest up to this number of interactions per item, and falls by this much with ten times as many."""
STEPS_PER_EPOCH = 300
"""Steps of an epoch, about: with fewer and larger ones an epoch teaches less."""
TARGETS_PER_STEP = (512, 8192)
"""Targets of a step: fewer make its gradient noisy, more gain nothing."""
BATCHES = (16, 512)
"""The least and the largest batch."""
LEARNING_RATES = {3e-3: 0, 2e-3: 500_000, 1e-3: 5_000_000}
"""Peak learning rates, from a number of interactions on: of less data fewer steps are made, and larger ones."""
STEPS = {"pretrain_sasrec": 10_000, "pretrain_retriever": 800, "joint_finetune": 1600, "end_to_end": 0}
"""Steps of each stage, about."""
EPOCHS = {
    "pretrain_sasrec": (10, 200),
    "pretrain_retriever": (2, 40),
    "joint_finetune": (5, 80),
    "end_to_end": (0, 0),
}
"""The least and the most epochs of each stage."""
VALIDATIONS = 20
"""Validations of the shortest stage, about: the others have more, so that early stopping ends each in time."""
EARLY_STOPPING = 8
"""Validations in a row without a better one that end a stage."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is counted of the training interactions of a split: `ur4rec.runs.prepared.counts_of`.

    Raises:
        ConfigurationError: A count is out of range.

    Example:
        >>> Counts(num_interactions=98_114, num_items=1682, num_users=943, typical_length=344).num_targets
        97171
    """

    num_interactions: int
    """Training interactions."""
    num_items: int
    """Items of the catalogue."""
    num_users: int
    """Users with at least two training interactions: the others hold nothing to learn from."""
    typical_length: int
    """The length that `COVERED` of these users' training histories do not exceed."""
    lengths: Mapping[int, int] | None = field(default=None, repr=False, compare=False)
    """How many of these users have a training history of each length: what is said of the rows and steps of an epoch
    is exact where that is known. It decides nothing."""

    def __post_init__(self) -> None:
        for name in ("num_interactions", "num_items", "num_users", "typical_length"):
            check_integer(name, getattr(self, name), 1)

    @property
    def num_targets(self) -> int:
        """Targets of an epoch: every training interaction of a user but the first."""
        return max(self.num_interactions - self.num_users, 1)

    def num_rows(self, max_seq_len: int) -> float:
        """Rows of an epoch, about: longer histories are cut into several."""
        return max(self.num_users, self.num_targets / max_seq_len + self.num_users / 2)

    def windows(self, max_seq_len: int) -> int:
        """Rows of an epoch, as `ur4rec.data.batches.TrainBatches` cuts them, where the lengths are known."""
        if self.lengths is None:
            return round(self.num_rows(max_seq_len))
        return max(sum(users * -(-(length - 1) // max_seq_len) for length, users in self.lengths.items()), 1)

    def steps(self, max_seq_len: int, batch_size: int) -> int:
        """Steps of an epoch: its batches, of which the last one is filled up."""
        return -(-self.windows(max_seq_len) // batch_size)


class Choice(NamedTuple):
    """A setting that the data decided."""

    name: str
    """Which."""
    value: int | float
    """What it is."""
    reason: str
    """Why."""

    def __str__(self) -> str:
        """One line.

        Example:
            >>> str(Choice("batch_size", 128, "about 4,000 targets in a step"))
            'batch_size=128: about 4,000 targets in a step'
        """
        return f"{self.name}={self.value}: {self.reason}"


_Known = Mapping[str, Any]
"""Settings that are given or were chosen before."""
_Answer = tuple[int | float, str]


def _max_seq_len(counts: Counts, known: _Known) -> _Answer:
    chosen = next((length for length in LENGTHS if length >= counts.typical_length), LENGTHS[-1])
    if chosen < counts.typical_length:
        return chosen, f"the most that is chosen; {COVERED:.0%} of the histories are no longer than " + (
            f"{counts.typical_length:,}, and longer ones train window by window"
        )
    return chosen, f"{COVERED:.0%} of the histories are no longer than {counts.typical_length}"


def _batch_size(counts: Counts, known: _Known) -> _Answer:
    rows = counts.num_rows(known["max_seq_len"])
    per_row = counts.num_targets / rows
    least, most = TARGETS_PER_STEP
    wanted = min(max(counts.num_targets / STEPS_PER_EPOCH, least), most) / per_row
    size = int(min(max(2 ** round(math.log2(max(wanted, 1))), BATCHES[0]), BATCHES[1]))
    rows, steps = counts.windows(known["max_seq_len"]), counts.steps(known["max_seq_len"], size)
    return (
        size,
        f"a row has {counts.num_targets / rows:.0f} targets, an epoch {_count(rows, 'row')}: {_count(steps, 'step')}",
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _hidden_dim(counts: Counts, known: _Known) -> _Answer:
    fitting = (
        width
        for width, (interactions, items) in WIDTHS.items()
        if counts.num_interactions >= interactions and counts.num_items >= items
    )
    heads = known.get("sasrec_num_heads", 1)
    width = math.ceil(max(fitting) / heads) * heads
    return width, f"{counts.num_interactions:,} interactions of {counts.num_items:,} items"


def _num_heads(counts: Counts, known: _Known) -> _Answer:
    width = known["sasrec_hidden_dim"]
    heads = max(num for num, least in HEAD_WIDTHS.items() if width >= least and width % num == 0)
    return heads, f"a head reads {width // heads} of {width} numbers"


def _output_dim(counts: Counts, known: _Known) -> _Answer:
    return max(known["sasrec_hidden_dim"], RETRIEVER_WIDTH), f"as wide as SASRec, {RETRIEVER_WIDTH} at least"


def _dropout(counts: Counts, known: _Known) -> _Answer:
    per_item = counts.num_interactions / counts.num_items
    fallen = DROPOUT_MOST - DROPOUT_DECADE * math.log10(max(per_item / DROPOUT_FROM, 1))
    return round(max(20 * fallen, 20 * DROPOUT_LEAST)) / 20, f"{per_item:,.1f} interactions per item"


def _learning_rate(counts: Counts, known: _Known) -> _Answer:
    rate = min(rate for rate, least in LEARNING_RATES.items() if counts.num_interactions >= least)
    return rate, f"{counts.num_interactions:,} interactions"


def _epochs(stage: str) -> Callable[[Counts, _Known], _Answer]:
    def choose(counts: Counts, known: _Known) -> _Answer:
        if not STEPS[stage]:
            return 0, "joint_finetune trains both modules where that pays"
        steps = max(counts.num_rows(known["max_seq_len"]) / known["batch_size"], 1)
        least, most = EPOCHS[stage]
        epochs = min(max(round(STEPS[stage] / steps), least), most)
        made = epochs * counts.steps(known["max_seq_len"], known["batch_size"])
        return epochs, f"{_count(made, 'step')}, or until early stopping"

    return choose


def _eval_every(counts: Counts, known: _Known) -> _Answer:
    shortest = min((known[stage] for stage in STEPS if known[stage]), default=1)
    every = max(round(shortest / VALIDATIONS), 1)
    return (
        every,
        f"the shortest stage has {_count(shortest, 'epoch')}, validated {max(shortest // every, 1)} times at most",
    )


def _early_stopping(counts: Counts, known: _Known) -> _Answer:
    return EARLY_STOPPING, "validations in a row without a better one that end a stage"


_CHOOSERS: dict[str, Callable[[Counts, _Known], _Answer]] = {
    "max_seq_len": _max_seq_len,
    "batch_size": _batch_size,
    "sasrec_hidden_dim": _hidden_dim,
    "sasrec_num_heads": _num_heads,
    "sasrec_dropout": _dropout,
    "retriever_output_dim": _output_dim,
    "sasrec_lr": _learning_rate,
    "retriever_lr": _learning_rate,
    **{stage: _epochs(stage) for stage in STEPS},
    "eval_every": _eval_every,
    "early_stopping": _early_stopping,
}
"""In the order in which they are chosen: a later one may depend on an earlier one."""
FROM_DATA = tuple(_CHOOSERS)
"""What may be left to the data; the name of a stage stands for its epochs."""


def choose(counts: Counts, given: Mapping[str, Any], wanted: Collection[str] = FROM_DATA) -> tuple[Choice, ...]:
    """Settings for data.

    Args:
        counts: Of the training interactions.
        given: The settings that are not to be chosen, all those of `FROM_DATA` that are not wanted among them.
        wanted: Which to choose.

    Returns:
        The choices, in the order of `FROM_DATA`.

    Example:
        >>> counts = Counts(num_interactions=98_114, num_items=1682, num_users=943, typical_length=344)
        >>> for choice in choose(counts, {})[:3]:
        ...     print(choice)
        max_seq_len=200: the most that is chosen; 95% of the histories are no longer than 344, and longer ones train window by window
        batch_size=16: a row has 102 targets, an epoch 957 rows: 60 steps
        sasrec_hidden_dim=64: 98,114 interactions of 1,682 items
        >>> given = {"max_seq_len": 50, "batch_size": 64}
        >>> print(choose(counts, given, [name for name in FROM_DATA if name not in given])[-6])
        pretrain_sasrec=200: 7,600 steps, or until early stopping
    """  # noqa: E501
    known = {name: value for name, value in given.items() if name not in wanted}
    choices = []
    for name, chooser in _CHOOSERS.items():
        if name in wanted:
            value, reason = chooser(counts, known)
            known[name] = value
            choices.append(Choice(name, value, reason))
    return tuple(choices)


def explain_choices(choices: Sequence[Choice]) -> list[str]:
    r"""What the data has decided, one line each below a headline; nothing where that is nothing.

    Example:
        >>> print("\n".join(explain_choices([Choice("early_stopping", 8, "validations without a better one")])))
        From the counts of the data, with the reasons (--set, --epochs and the like win):
          early_stopping=8: validations without a better one
    """
    head = "From the counts of the data, with the reasons (--set, --epochs and the like win):"
    return [head, *(f"  {choice}" for choice in choices)] if choices else []
