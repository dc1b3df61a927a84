"""What came after a run was trained: further interactions, of users and items that it knows and of others.

Shapes: N interactions of the run, M later ones.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.interactions import Interactions

logger = logging.getLogger(__name__)


def append_items(known: Interactions, titles: Mapping[str, str], texts: Mapping[str, str]) -> Interactions:
    """The data with further items, that nobody has used, behind the others.

    Args:
        known: The data.
        titles: Item → title, of those that have one.
        texts: Item → text, of any items; those that are known keep theirs.
    """
    there = set(known.item_ids)
    new = [item for item in texts if item not in there]
    if len(new) < len(texts):
        logger.info("%d of %d items are the run's own: they keep its texts", len(texts) - len(new), len(texts))
    return replace(
        known,
        item_ids=[*known.item_ids, *new],
        titles=[*known.titles, *(titles.get(item, item) for item in new)],
        texts=[*known.texts, *(texts[item] for item in new)],
    )


def append_interactions(known: Interactions, later: Interactions) -> Interactions:
    """The data with later interactions behind the others, whatever their times: in order of time among themselves.

    Rows that are in the data already, of the same user, item and time, are left out: so the file that the data was read
    from may be given when it has grown. Users and items that are new follow those that are known.
    """
    titles, texts = (dict(zip(later.item_ids, each, strict=True)) for each in (later.titles, later.texts))
    seen = set(known.item_ids)
    whole = append_items(known, titles, {item: text for item, text in texts.items() if item not in seen})
    users, new_users = _indices(known.user_ids, later.user_ids)
    items, _ = _indices(whole.item_ids, later.item_ids)
    users_M, items_M, times_M = users[later.users_N], items[later.items_N], later.timestamps_N
    is_new_M = ~_are_known(
        (known.users_N, known.items_N, known.timestamps_N), (users_M, items_M, times_M), whole.num_items
    )
    if not is_new_M.all():
        logger.info("%d of %d interactions are the run's own: left out", np.sum(~is_new_M), len(later))
    return replace(
        whole,
        users_N=np.concatenate([known.users_N, users_M[is_new_M]]).astype(np.int32),
        items_N=np.concatenate([known.items_N, items_M[is_new_M]]).astype(np.int32),
        timestamps_N=np.concatenate([known.timestamps_N, times_M[is_new_M]]),
        user_ids=[*known.user_ids, *new_users],
        parts_N=None,
        prepared=None,
    )


def _indices(known: Sequence[str], later: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The index of each name among all, and the names that are new."""
    numbers = {name: number for number, name in enumerate(known)}
    indices = np.array([numbers.setdefault(name, len(numbers)) for name in later], np.int64)
    return indices, list(numbers)[len(known) :]


def _are_known(known: tuple[NDArray[Any], ...], later: tuple[NDArray[Any], ...], num_items: int) -> NDArray[np.bool_]:
    """Which of the later rows, of user, item and time, are among the known ones."""
    users, items, times = (np.concatenate([one, other]) for one, other in zip(known, later, strict=True))
    pairs = np.unique(users.astype(np.int64) * num_items + items, return_inverse=True)[1]
    moments = np.unique(times, return_inverse=True)[1]
    codes = pairs * (int(moments.max(initial=0)) + 1) + moments
    return np.isin(codes[len(known[0]) :], codes[: len(known[0])])
