"""Synthetic data with planted sequential and textual structure, for tests and offline use."""

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.interactions import Interactions, build_interactions
from ur4rec.errors import ConfigurationError

_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "za")


def synthetic(
    *,
    num_users: int = 600,
    num_items: int = 300,
    num_clusters: int = 12,
    mean_length: int = 24,
    follow: float = 0.5,
    stay: float = 0.3,
    seed: int = 0,
    min_item_interactions: int = 1,
) -> Interactions:
    """Interactions in which the next item follows both from the last one and from the user's taste in texts.

    Items belong to clusters, and a cluster has words of its own that its items' titles are made of, so that the text of
    an item tells its cluster. Each item has a fixed successor, of any cluster. A user has two favourite clusters.
    At each step the next item is the successor of the last one (probability ``follow``: what a sequence model can
    learn), or an item of a favourite cluster (``stay``: what a text model can learn), or any item, the popular ones
    more often. No user takes an item twice. The same arguments give the same data.

    Args:
        num_users: How many users.
        num_items: Size of the catalogue before items that nobody takes are dropped.
        num_clusters: How many clusters of items; at most ``num_items // 2``.
        mean_length: Mean length of a sequence; lengths vary between a half and one and a half of it.
        follow: Probability that the next item is the successor of the last one.
        stay: Probability that it comes from a favourite cluster; ``follow + stay`` is at most 1.
        seed: Seed of everything.
        min_item_interactions: Items with fewer interactions are dropped.

    Raises:
        ConfigurationError: A parameter is out of range.

    Example:
        >>> interactions = synthetic(num_users=50, num_items=60)
        >>> interactions.num_users, interactions.name
        (50, 'synthetic')
    """
    _check(num_users, num_items, num_clusters, mean_length, follow, stay)
    rng = np.random.default_rng(seed)
    clusters_I = np.arange(num_items) % num_clusters
    successors_I = rng.permutation(num_items)
    popularity_I = 1 / (10 + rng.permutation(num_items))
    rows = [
        (user, item, step)
        for user in range(num_users)
        for step, item in enumerate(
            _walk(rng, clusters_I, successors_I, popularity_I / popularity_I.sum(), mean_length, follow, stay)
        )
    ]
    users, items, steps = np.array(rows).T
    titles, texts = _titles(rng, clusters_I)
    return build_interactions(
        users=[f"u{user}" for user in users],
        items=[f"i{item}" for item in items],
        timestamps=1_000_000_000 + steps * 3600 + users % 3600,
        titles={f"i{item}": title for item, title in enumerate(titles)},
        texts={f"i{item}": text for item, text in enumerate(texts)},
        name="synthetic",
        source=f"generated with seed {seed}",
        min_item_interactions=min_item_interactions,
    )


def _check(num_users: int, num_items: int, num_clusters: int, mean_length: int, follow: float, stay: float) -> None:
    if num_users < 1:
        raise ConfigurationError(f"num_users must be at least 1, got {num_users}")
    if not 2 <= num_clusters <= num_items // 2:
        raise ConfigurationError(f"num_clusters must be in 2 .. num_items // 2 = {num_items // 2}, got {num_clusters}")
    if not 6 <= mean_length <= num_items // 2:
        raise ConfigurationError(f"mean_length must be in 6 .. num_items // 2 = {num_items // 2}, got {mean_length}")
    if follow < 0 or stay < 0 or follow + stay > 1:
        raise ConfigurationError(f"follow and stay must be at least 0 with a sum of at most 1, got {follow} and {stay}")


def _walk(
    rng: np.random.Generator,
    clusters_I: NDArray[np.int64],
    successors_I: NDArray[np.int64],
    popularity_I: NDArray[np.float64],
    mean_length: int,
    follow: float,
    stay: float,
) -> list[int]:
    """One user's items."""
    favourites = rng.choice(clusters_I.max() + 1, size=2, replace=False)
    tasteful_I = popularity_I * np.isin(clusters_I, favourites)
    free = np.ones(len(clusters_I), bool)
    length = int(rng.integers(mean_length // 2, mean_length + mean_length // 2 + 1))
    items: list[int] = []
    for draw in rng.random(length):
        successor = int(successors_I[items[-1]]) if items else -1
        if items and draw < follow and free[successor]:
            item = successor
        else:
            tasteful = draw < follow + stay and bool((tasteful_I * free).any())
            weights = (tasteful_I if tasteful else popularity_I) * free
            item = int(rng.choice(len(weights), p=weights / weights.sum()))
        items.append(item)
        free[item] = False
    return items


def _titles(rng: np.random.Generator, clusters_I: NDArray[np.int64]) -> tuple[list[str], list[str]]:
    """Titles of two words of the cluster and one of the item's own; texts add the cluster's genre word."""
    num_clusters, words_per_cluster = int(clusters_I.max()) + 1, 6
    words = _words(rng, num_clusters * words_per_cluster + num_clusters + len(clusters_I))
    genres, own = words[:num_clusters], words[num_clusters * (words_per_cluster + 1) :]
    titles, texts = [], []
    for item, cluster in enumerate(clusters_I):
        first = num_clusters + cluster * words_per_cluster
        pair = rng.choice(words_per_cluster, size=2, replace=False)
        title = " ".join([words[first + pair[0]], words[first + pair[1]], own[item]]).title()
        year = 1950 + int(rng.integers(70))
        titles.append(f"{title} ({year})")
        texts.append(f"{title} ({year}): {genres[cluster].title()}")
    return titles, texts


def _words(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct made-up words of four syllables."""
    size = len(_SYLLABLES)
    codes = rng.choice(size**4, size=count, replace=False)
    return ["".join(_SYLLABLES[code // size**power % size] for power in range(4)) for code in codes]
