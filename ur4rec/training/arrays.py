"""What both backends hand around in a training step: named tuples of arrays, generic in the framework's array type.

Each backend names the tuples for its own arrays: ``StepInputs = arrays.StepInputs[Tensor]``.

Shapes: B rows, L positions, N positions with a target (in JAX padded to a constant length), d width of either module, K
preference vectors, I items, J = I + 1 items with the padding, U users.
"""

from typing import Generic, NamedTuple, TypeVar

Array = TypeVar("Array")


class UserMemory(NamedTuple, Generic[Array]):
    """What the retriever knows of users from their preference texts, one row each."""

    values_Ud: Array
    """What is gathered from the text."""
    content_UK: Array
    """How much each query attends to it, before softmax; -inf where there is no text."""


class Catalogue(NamedTuple, Generic[Array]):
    """What the retriever knows of every item: the same for all histories until one of its parameters changes."""

    keys_Id: Array
    """As a candidate: its projected text, of unit length."""
    values_Jd: Array
    """As part of a history: what is gathered from it."""
    content_JK: Array
    """As part of a history: how much each query attends to it, before recency and softmax."""
    users: UserMemory[Array] | None = None
    """What it knows of every user, and last of a user without a text; None where that is not computed ahead."""


class StepInputs(NamedTuple, Generic[Array]):
    """A training batch on the device."""

    items_BL: Array
    """Histories, right-padded."""
    positions_N: Array
    """Where a target is, counted over all rows: row · L + position; 0 where padded."""
    targets_N: Array
    """The targets there; I, the padding index, where padded."""
    users_B: Array | None = None
    """Whose histories they are; None for a model without user texts."""


class Component(NamedTuple, Generic[Array]):
    """One component of what is minimised; see `ur4rec.training.components`."""

    loss: Array
    """The loss itself."""
    weight: float | Array
    """Its weight. One that is traced may be 0: the component is absent then, and its loss is 0."""


class Outputs(NamedTuple, Generic[Array]):
    """The outputs, where a target is, of the modules that were run; None where they were not needed."""

    hidden_Nd: Array | None = None
    """SASRec's states."""
    preferences_NKd: Array | None = None
    """The retriever's preference vectors."""
    sasrec_NI: Array | None = None
    """SASRec's logits, where they are kept."""
    retriever_NI: Array | None = None
    """The retriever's logits, where they are kept."""


class StepLosses(NamedTuple, Generic[Array]):
    """The losses of a step."""

    total: Array
    """What is minimised."""
    modules: dict[str, Array]
    """The raw primary loss of each module for which it was computed, detached."""
    components: dict[str, Component[Array]]
    """What the total is made of, by name."""
    outputs: Outputs[Array]
    """What the losses were computed from."""


class LastTargets(NamedTuple, Generic[Array]):
    """The last target of each row."""

    index_B: Array
    """Which of the N targets it is; any in a row without a target."""
    items_B: Array
    """The target."""
    is_real_B: Array
    """Whether the row has a target."""
