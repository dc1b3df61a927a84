"""What both backends hand around in a training step: named tuples of arrays, generic in the framework's array type.

Each backend names the tuples for its own arrays: ``StepInputs = arrays.StepInputs[Tensor]``.

Shapes: B rows, L positions, N positions with a target (in JAX padded to a constant length), R rows of a
group, d width of either module, K preference vectors, I items, J = I + 1 items with the padding (of a sample: its items
and the padding), U users, C drawn negatives, S = C + 1 candidates of a position: its target and the negatives, E items
whose texts a step encodes.
"""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from ur4rec.training.parts import BatchPart

ArrayT = TypeVar("ArrayT")
"""An array of a backend."""


class UserMemory(NamedTuple, Generic[ArrayT]):
    """What the retriever knows of users from their preference texts, one row each."""

    values_Ud: ArrayT
    """What is gathered from the text."""
    content_UK: ArrayT
    """How much each query attends to it, before softmax; -inf where there is no text."""


class Catalogue(NamedTuple, Generic[ArrayT]):
    """What the retriever knows of every item: the same for all histories until one of its parameters changes."""

    keys_Id: ArrayT
    """As a candidate: its projected text, of unit length."""
    values_Jd: ArrayT
    """As part of a history: what is gathered from it."""
    content_JK: ArrayT
    """As part of a history: how much each query attends to it, before recency and softmax."""
    users: UserMemory[ArrayT] | None = None
    """What it knows of every user, and last of a user without a text; None where that is not computed ahead."""
    shard: Any = None
    """Where the catalogue is in parts: which items these are, and the processes that have the others (PyTorch)."""


class Sample(NamedTuple, Generic[ArrayT]):
    """The items of a step with sampled losses; the step's inputs number them by their place in ``items_J``."""

    items_J: ArrayT
    """All items that the step needs, ascending, each once; then only padding, I: once at least."""
    candidates_C: ArrayT
    """The negatives, by their place in ``items_J``; an item may occur several times."""
    offsets_C: ArrayT
    """What is added to the logits of the negatives: minus the logarithm of how often each item is expected."""
    batch_items_J: ArrayT | None = None
    """All items that the processes need which divide the batch, and the padding, ascending (PyTorch)."""


class RowGroup(NamedTuple, Generic[ArrayT]):
    """Rows of a batch that go through the model together."""

    items_RL: ArrayT
    """Their histories, right-padded, without positions that are padding in all of them; L is less than the batch's."""
    users_R: ArrayT | None
    """Whose histories they are; None for a model without user texts."""


class StepInputs(NamedTuple, Generic[ArrayT]):
    """A training batch on the device."""

    items_BL: ArrayT
    """Histories, right-padded."""
    positions_N: ArrayT
    """Where a target is, counted over all rows: row · L + position; 0 where padded."""
    targets_N: ArrayT
    """The targets there; I, the padding index, where padded."""
    users_B: ArrayT | None = None
    """Whose histories they are; None for a model without user texts."""
    sample: Sample[ArrayT] | None = None
    """With sampled losses: to which items ``items_BL`` and ``targets_N`` refer, and the negatives."""
    part: BatchPart | None = None
    """Of which part of a batch these are, where several processes divide it (PyTorch); None is a whole batch."""
    texts_E: ArrayT | None = None
    """With a text encoder: the items whose texts a step that trains it encodes (`item_texts.items_of`), texts of about
    one length together (in JAX padded with I); None where they have not been looked for."""
    text_chunks: tuple[tuple[int, int], ...] = ()
    """The number of items of each chunk that is encoded at once, and of the tokens of its longest text (PyTorch)."""
    groups: tuple[RowGroup[ArrayT], ...] = ()
    """The rows by their lengths, all of them (see `length_groups`): what is computed at each position is computed
    group by group. None are rows that are not divided."""
    places_N: ArrayT | None = None
    """With groups: where the targets are among their positions, one group after the other; else None."""


class Component(NamedTuple, Generic[ArrayT]):
    """One component of what is minimised; see `ur4rec.training.components`."""

    loss: ArrayT
    """The loss itself."""
    weight: float | ArrayT
    """Its weight. One that is traced may be 0: the component is absent then, and its loss is 0."""


class Outputs(NamedTuple, Generic[ArrayT]):
    """The outputs, where a target is, of the modules that were run; None where they were not needed."""

    hidden_Nd: ArrayT | None = None
    """SASRec's states."""
    preferences_NKd: ArrayT | None = None
    """The retriever's preference vectors."""
    sasrec_NI: ArrayT | None = None
    """SASRec's logits, where they are kept; with sampled losses those of the candidates, (N, S), uncorrected."""
    retriever_NI: ArrayT | None = None
    """The retriever's logits, likewise."""


class StepLosses(NamedTuple, Generic[ArrayT]):
    """The losses of a step."""

    total: ArrayT
    """What is minimised."""
    modules: dict[str, ArrayT]
    """The raw primary loss of each module for which it was computed, detached."""
    components: dict[str, Component[ArrayT]]
    """What the total is made of, by name."""
    outputs: Outputs[ArrayT]
    """What the losses were computed from."""


class LastTargets(NamedTuple, Generic[ArrayT]):
    """The last target of each row."""

    index_B: ArrayT
    """Which of the N targets it is; any in a row without a target."""
    items_B: ArrayT
    """The target."""
    is_real_B: ArrayT
    """Whether the row has a target."""


class StepReport(NamedTuple, Generic[ArrayT]):
    """The losses of a training step, as scalars that may still be on the device."""

    total: ArrayT
    """The loss that was minimised."""
    modules: Mapping[str, ArrayT]
    """The raw primary loss of each module for which it was computed."""
    metrics: Mapping[str, ArrayT]
    """What else the epoch averages, by the metric's name (see `ur4rec.training.components`); NaN does not count."""
