"""Reduced datasets: a sample of the users, or no texts; the catalogue stays the same."""

import dataclasses

import numpy as np

from ur4rec.data.interactions import Interactions
from ur4rec.errors import ConfigurationError


def in_memory(interactions: Interactions) -> Interactions:
    """Interactions in order of time in memory; those of a prepared directory are copied, ties in order of user."""
    if interactions.prepared is None:
        return interactions
    if interactions.parts_N is None:
        order = np.argsort(interactions.timestamps_N, kind="stable")
    else:
        order = np.lexsort((interactions.timestamps_N, interactions.parts_N))
    return dataclasses.replace(
        interactions,
        users_N=interactions.users_N[order],
        items_N=interactions.items_N[order],
        timestamps_N=interactions.timestamps_N[order],
        parts_N=None if interactions.parts_N is None else interactions.parts_N[order],
        prepared=None,
    )


def sample_users(interactions: Interactions, num_users: int, seed: int = 0) -> Interactions:
    """The interactions of some users, drawn at random; items keep their indices, even those that no user has any more.

    Args:
        interactions: The dataset.
        num_users: The number of users to keep, in their order.
        seed: Seed of the draw.

    Raises:
        ConfigurationError: The dataset has fewer users, or num_users is below 1.

    Example:
        >>> from ur4rec.data import synthetic
        >>> sample = sample_users(synthetic(num_users=50, num_items=60), 10)
        >>> sample.num_users, sample.num_items, len(sample.user_ids)
        (10, 60, 10)
    """
    if not 1 <= num_users <= interactions.num_users:
        raise ConfigurationError(f"num_users must be in 1 .. {interactions.num_users}, got {num_users}")
    interactions = in_memory(interactions)
    draws = np.random.default_rng(seed).random(interactions.num_users)
    kept = np.sort(np.argsort(draws, kind="stable")[:num_users])
    rows = np.isin(interactions.users_N, kept)
    return dataclasses.replace(
        interactions,
        users_N=np.searchsorted(kept, interactions.users_N[rows]).astype(np.int32),
        items_N=interactions.items_N[rows],
        timestamps_N=interactions.timestamps_N[rows],
        parts_N=None if interactions.parts_N is None else interactions.parts_N[rows],
        user_ids=[interactions.user_ids[user] for user in kept],
        source=f"{interactions.source}; {num_users} of {interactions.num_users} users, drawn with seed {seed}",
    )


def without_texts(interactions: Interactions) -> Interactions:
    """The same interactions with the same text for every item, so that texts carry no information. Titles stay.

    Example:
        >>> from ur4rec.data import synthetic
        >>> set(without_texts(synthetic(num_users=50, num_items=60)).texts)
        {'an item'}
    """
    return dataclasses.replace(
        in_memory(interactions),
        texts=["an item"] * interactions.num_items,
        source=f"{interactions.source}; texts left out",
    )
