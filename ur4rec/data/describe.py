"""Describe: the statistics of a dataset."""

import numpy as np

from ur4rec.data.interactions import Interactions

_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def describe(interactions: Interactions) -> dict[str, int | float]:
    """Counts, density, lengths of sequences, and how often timestamps leave the order open.

    ``tied_last_two`` is the share of users whose last two interactions have the same timestamp: there the file's order
    decides what leave-one-out tests on. ``users_below_3`` cannot be split by leave-one-out. ``repeats`` is the share of
    interactions with an item that the user had before.

    Returns:
        A flat dict that JSON can hold.

    Example:
        >>> from ur4rec.data import synthetic
        >>> facts = describe(synthetic(num_users=20, num_items=50))
        >>> facts["num_users"], facts["repeats"], facts["tied_last_two"]
        (20, 0.0, 0.0)
    """
    lengths = interactions.sequences.lengths
    facts: dict[str, int | float] = {
        "num_users": interactions.num_users,
        "num_items": interactions.num_items,
        "num_interactions": len(interactions),
        "density": len(interactions) / (interactions.num_users * interactions.num_items),
        "sequence_length_mean": float(lengths.mean()),
    }
    for name, q in _QUANTILES.items():
        facts[f"sequence_length_{name}"] = float(np.quantile(lengths, q))
    pairs = np.sort(interactions.users_N.astype(np.int64) * interactions.num_items + interactions.items_N)
    facts["repeats"] = int((np.diff(pairs) == 0).sum()) / len(interactions)
    facts["tied_last_two"] = _tied_last_two(interactions)
    facts["users_below_3"] = int((lengths < 3).sum())
    return facts


def _tied_last_two(interactions: Interactions) -> float:
    """Among users with at least 2 interactions."""
    order = np.argsort(interactions.users_N, kind="stable")
    times, sequences = interactions.timestamps_N[order], interactions.sequences
    ends = sequences.offsets_U[1:][sequences.lengths >= 2]
    return float((times[ends - 1] == times[ends - 2]).mean()) if len(ends) else 0.0
