"""Describe: the statistics of a dataset and of its split."""

import numpy as np

from ur4rec.data.interactions import Interactions
from ur4rec.data.splits import Split
from ur4rec.options import AUTO_SHARE

_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def describe(interactions: Interactions) -> dict[str, int | float]:
    """Counts, density, lengths of sequences, and how often timestamps leave the order open.

    ``tied_last_two`` is the share of users whose last two interactions have the same timestamp: there the file's order
    decides what leave-one-out tests on. ``users_below_3`` cannot be split by leave-one-out. ``repeats`` is the share of
    interactions with an item that the user had before, ``duplicates`` the number of rows that repeat another one.

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
    parts = interactions.sequences.chunks()
    num_distinct = sum(len(part.distinct(interactions.num_items).items_N) for _, part in parts)
    facts["repeats"] = (len(interactions) - num_distinct) / len(interactions)
    facts["duplicates"] = interactions.num_duplicates
    facts["tied_last_two"] = _tied_last_two(interactions)
    facts["users_below_3"] = int((lengths < 3).sum())
    return facts


def _tied_last_two(interactions: Interactions) -> float:
    """Among users with at least 2 interactions."""
    times, sequences = interactions.times_by_user, interactions.sequences
    ends = sequences.ends_U[sequences.lengths >= 2]
    return float((times[ends - 1] == times[ends - 2]).mean()) if len(ends) else 0.0


def describe_split(split: Split) -> dict[str, int | float | str]:
    """The targets of a split, and what became of repeated ones.

    ``repeated_targets`` is the share of validation and test targets whose user had the item before, those that were
    left out among them; ``targets_left_out`` their number, and that of targets without a history.

    Returns:
        A flat dict that JSON can hold.
    """
    both = (split.validation, split.test)
    return {
        "split": split.name,
        "split_hash": split.hash,
        "validation_targets": len(split.validation),
        "test_targets": len(split.test),
        "repeated_targets": split.repeated_share,
        "repeats_allowed": split.repeats == "allow",
        "targets_left_out": sum(targets.num_excluded + targets.num_unfed for targets in both),
    }


def explain_duplicates(interactions: Interactions, deduplicated: bool) -> str:
    """What became of rows that repeat another one, in a sentence; empty where there are none."""
    if not interactions.num_duplicates:
        return ""
    done = "left out" if deduplicated else "each counts; leave them out with --deduplicate"
    return f"{interactions.num_duplicates:,} rows repeat another one (user, item and time): {done}"


def explain_repeats(split: Split, asked: str = "auto") -> str:
    """What is done with items that a user had before, and why, in a sentence.

    Args:
        split: The split.
        asked: What was asked for: ``auto``, ``allow`` or ``exclude``.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> print(explain_repeats(leave_one_out(synthetic(num_users=20, num_items=50))))
        0.0% of the targets repeat an item of their history (auto: allowed from 10%): items that a user had are excluded, neither ranked nor recommended
    """  # noqa: E501
    both = (split.validation, split.test)
    reason = f"auto: allowed from {AUTO_SHARE:.0%}" if asked == "auto" else "as asked"
    done = "allowed, ranked and recommended like any other"
    if split.repeats == "exclude":
        done = "excluded, neither ranked nor recommended"
        if num_excluded := sum(targets.num_excluded for targets in both):
            done += f", and {num_excluded:,} targets are left out"
    if num_unfed := sum(targets.num_unfed for targets in both):
        done += f"; {num_unfed:,} targets without a history are left out"
    share = f"{split.repeated_share:.1%} of the targets repeat an item of their history"
    return f"{share} ({reason}): items that a user had are {done}"
