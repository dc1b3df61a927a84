"""Synthetic data with planted sequential and textual structure, for tests and offline use.

Shapes: I items, C clusters.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alternator.checks import check_integer, check_range
from ur4rec.data.interactions import Interactions, build_interactions
from ur4rec.errors import ConfigurationError

_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "za")


def synthetic(
    *,
    num_users: int = 600,
    num_items: int = 300,
    num_clusters: int = 25,
    mean_length: int = 20,
    follow: float = 0.45,
    stay: float = 0.45,
    repeat: float = 0.0,
    seed: int = 0,
    min_item_interactions: int = 1,
) -> Interactions:
    """Interactions in which the next item follows both from the last one and from the user's taste in texts.

    Items belong to clusters, and the titles of a cluster are made of words of its own, so that the text of an item
    reveals its cluster. Each item has a fixed successor, and all items of a cluster have theirs in the same other
    cluster. A user has two favourite clusters. At each step the next item is the successor of the last one (probability
    ``follow``: what a sequence model can learn), or an item of a favourite cluster (``stay``: what a text model can
    learn), or any item, the popular ones more often. No user takes an item twice, unless ``repeat`` says so. Users
    start at different times. The same arguments give the same data.

    With the defaults, test NDCG@10 is about 0.02 for popularity, 0.14 for the mean text of the history and 0.44 for
    counted transitions; both together reach 0.51.

    Args:
        num_users: The number of users.
        num_items: Size of the catalogue before items that no user takes are dropped.
        num_clusters: The number of clusters of items, at most ``num_items // 2``.
        mean_length: Mean length of a sequence; lengths vary between a half and one and a half of it.
        follow: Probability that the next item is the successor of the last one.
        stay: Probability that it comes from a favourite cluster; ``follow + stay`` is at most 1.
        repeat: Probability that it is one that the user had before; it comes before the other two.
        seed: Seed of everything.
        min_item_interactions: Items with fewer interactions are dropped.

    Raises:
        ConfigurationError: A parameter is out of range.

    Example:
        >>> interactions = synthetic(num_users=50, num_items=60)
        >>> interactions.num_users, interactions.name
        (50, 'synthetic')
    """
    _check(num_users, num_items, num_clusters, mean_length, {"follow": follow, "stay": stay, "repeat": repeat})
    rng = np.random.default_rng(seed)
    world = _make_world(rng, num_items, num_clusters)
    walks = [_walk(rng, world, mean_length, (repeat, follow, stay)) for _ in range(num_users)]
    starts = rng.random(num_users) * 365 * 24
    hours = np.concatenate([start + np.arange(len(walk)) for start, walk in zip(starts, walks, strict=True)])
    users = np.repeat(np.arange(num_users), [len(walk) for walk in walks])
    titles, texts = _titles(rng, world.clusters_I)
    return build_interactions(
        users=[f"u{user}" for user in users],
        items=[f"i{item}" for walk in walks for item in walk],
        timestamps=(1_000_000_000 + hours * 3600).astype(np.int64),
        titles={f"i{item}": title for item, title in enumerate(titles)},
        texts={f"i{item}": text for item, text in enumerate(texts)},
        name="synthetic",
        source=f"generated with seed {seed}",
        min_item_interactions=min_item_interactions,
    )


def _check(
    num_users: int, num_items: int, num_clusters: int, mean_length: int, probabilities: dict[str, float]
) -> None:
    check_integer("num_users", num_users, 1)
    if not 2 <= num_clusters <= num_items // 2:
        raise ConfigurationError(f"num_clusters must be in 2 .. num_items // 2 = {num_items // 2}, got {num_clusters}")
    if not 6 <= mean_length <= num_items // 2:
        raise ConfigurationError(f"mean_length must be in 6 .. num_items // 2 = {num_items // 2}, got {mean_length}")
    for name, probability in probabilities.items():
        check_range(name, probability, 0, 1, closed=True)
    if probabilities["follow"] + probabilities["stay"] > 1:
        raise ConfigurationError(
            f"follow + stay must be at most 1, got {probabilities['follow']} + {probabilities['stay']}"
        )


@dataclass(frozen=True, eq=False)
class _World:
    """What all users share."""

    clusters_I: NDArray[np.int64]
    """The cluster of each item."""
    successors_I: NDArray[np.int64]
    """The item that follows each item; a permutation, cluster by cluster."""
    popularity_I: NDArray[np.float64]
    """How likely each item is to be taken at random."""


def _make_world(rng: np.random.Generator, num_items: int, num_clusters: int) -> _World:
    clusters_I = np.arange(num_items) % num_clusters
    circle_C = _shuffled(rng, num_clusters)
    next_C = np.empty(num_clusters, np.int64)
    next_C[circle_C] = np.roll(circle_C, -1)
    successors_I = np.empty(num_items, np.int64)
    for cluster in range(num_clusters):
        members = np.flatnonzero(clusters_I == cluster)
        heirs = np.flatnonzero(clusters_I == next_C[cluster])
        successors_I[members] = np.resize(heirs[_shuffled(rng, len(heirs))], len(members))
    return _World(clusters_I, successors_I, 1 / (10.0 + _shuffled(rng, num_items)))


def _walk(
    rng: np.random.Generator, world: _World, mean_length: int, probabilities: tuple[float, float, float]
) -> list[int]:
    """One user's items."""
    repeat, follow, stay = probabilities
    favourites = _shuffled(rng, int(world.clusters_I.max()) + 1)[:2]
    tasteful_I = world.popularity_I * np.isin(world.clusters_I, favourites)
    free_I = np.ones(len(world.clusters_I))
    length = mean_length // 2 + int(rng.random() * (mean_length + 1))
    items: list[int] = []
    for draw_repeat, draw, draw_item in rng.random((length, 3)):
        successor = int(world.successors_I[items[-1]]) if items else 0
        if items and draw_repeat < repeat:
            item = items[int(draw_item * len(items))]
        elif items and draw < follow and free_I[successor]:
            item = successor
        else:
            tasteful = draw < follow + stay and bool((tasteful_I * free_I).any())
            item = _draw((tasteful_I if tasteful else world.popularity_I) * free_I, draw_item)
        items.append(item)
        free_I[item] = 0
    return items


def _draw(weights_I: NDArray[np.float64], uniform: float) -> int:
    """An item with a probability in proportion to its weight."""
    sums_I = np.cumsum(weights_I)
    return int(np.searchsorted(sums_I, uniform * sums_I[-1], side="right"))


def _shuffled(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """A permutation from uniform numbers alone, whose stream is the same in every NumPy."""
    return np.argsort(rng.random(count), kind="stable")


def _titles(rng: np.random.Generator, clusters_I: NDArray[np.int64]) -> tuple[list[str], list[str]]:
    """Titles of two words of the cluster and one of the item's own; texts add the cluster's genre word."""
    num_clusters, words_per_cluster = int(clusters_I.max()) + 1, 6
    words = _words(rng, num_clusters * (words_per_cluster + 1) + len(clusters_I))
    genres, own = words[:num_clusters], words[num_clusters * (words_per_cluster + 1) :]
    titles, texts = [], []
    for item, cluster in enumerate(clusters_I):
        first, second = num_clusters + cluster * words_per_cluster + _shuffled(rng, words_per_cluster)[:2]
        title = f"{words[first]} {words[second]} {own[item]}".title() + f" ({1950 + int(rng.random() * 70)})"
        titles.append(title)
        texts.append(f"{title}: {genres[cluster].title()}")
    return titles, texts


def _words(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct made-up words of four syllables."""
    size = len(_SYLLABLES)
    codes = _shuffled(rng, size**4)[:count]
    return ["".join(_SYLLABLES[code // size**power % size] for power in range(4)) for code in codes]
