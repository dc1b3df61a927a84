"""No leakage: what is trained on and what texts say comes from before the targets.

The level of chance is measured: the same count with the targets shuffled among users.
"""

import numpy as np
import pytest

from ur4rec.data import Split, global_temporal, leave_one_out, synthetic
from ur4rec.popularity import popularity_scores
from ur4rec.text import user_texts

SPLITS = {"leave-one-out": leave_one_out, "global-temporal": global_temporal}


def share_named(texts, titles, targets, items_T):
    """The share of targets whose title is in the text of their user."""
    return np.mean([titles[item] in texts[user] for user, item in zip(targets.users_T, items_T, strict=True)])


def is_leaking(texts, interactions, targets, num_shuffles=200):
    """Whether targets are named more often than 99% of random targets would be."""
    rng = np.random.default_rng(0)
    shuffled = [
        share_named(texts, interactions.titles, targets, rng.permutation(targets.items_T)) for _ in range(num_shuffles)
    ]
    return share_named(texts, interactions.titles, targets, targets.items_T) > np.quantile(shuffled, 0.99)


@pytest.mark.parametrize("name", SPLITS)
def test_targets_are_named_no_more_than_by_chance(name):
    interactions = synthetic(num_users=400)
    split = SPLITS[name](interactions)
    texts = user_texts(split, interactions)
    assert not is_leaking(texts, interactions, split.test)
    assert not is_leaking(texts, interactions, split.validation)


def test_the_check_finds_texts_made_from_whole_sequences():
    interactions = synthetic(num_users=400)
    split = leave_one_out(interactions)
    whole = Split(
        name="leaky",
        num_items=split.num_items,
        train=interactions.sequences,
        validation=split.validation,
        test=split.test,
    )
    texts = user_texts(whole, interactions)
    assert is_leaking(texts, interactions, split.test)
    assert is_leaking(texts, interactions, split.validation)


def test_the_check_finds_a_leak_for_a_quarter_of_the_users():
    interactions = synthetic(num_users=400)
    split = leave_one_out(interactions)
    texts = user_texts(split, interactions)
    for user, item in list(zip(split.test.users_T, split.test.items_T, strict=True))[::4]:
        texts[user] += "; " + interactions.titles[item]
    assert is_leaking(texts, interactions, split.test)


def test_repeated_consumption_names_only_what_was_trained_on():
    """Where users come back to items, a target may be named, but only because the training prefix has it too."""
    interactions = synthetic(num_users=200, repeat=0.3)
    split = leave_one_out(interactions)
    texts = user_texts(split, interactions, max_titles=10**6)
    named = 0
    for user, item in zip(split.test.users_T, split.test.items_T, strict=True):
        if interactions.titles[item] in texts[user]:
            assert item in split.train[user]
            named += 1
    assert named > 20  # the data does have repeats


@pytest.mark.parametrize("name", SPLITS)
def test_training_prefixes_end_before_every_target(name):
    interactions = synthetic(num_users=200)
    split = SPLITS[name](interactions)
    for targets in (split.validation, split.test):
        for user, history in zip(targets.users_T, targets.histories, strict=True):
            train = split.train[user]
            assert len(train) <= len(history)
            assert train.tolist() == history[: len(train)].tolist()


def test_popularity_counts_training_alone():
    split = leave_one_out(synthetic(num_users=50, num_items=60))
    scores = popularity_scores(split.train, split.num_items)
    assert scores.sum() == split.train.lengths.sum()


def test_user_texts_hold_the_last_titles_newest_last():
    interactions = synthetic(num_users=30, num_items=60)
    split = leave_one_out(interactions)
    texts = user_texts(split, interactions, max_titles=3)
    assert texts[4].split("; ") == [interactions.titles[item] for item in split.train[4][-3:]]
