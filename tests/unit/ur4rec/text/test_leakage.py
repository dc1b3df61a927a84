"""No leakage: what is trained on and what texts say comes from before the targets.

The level of chance is measured: the same count with the targets shuffled among users.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from ur4rec.data import Split, build_interactions, global_temporal, leave_one_out, make_split, synthetic
from ur4rec.errors import LeakageError
from ur4rec.evaluation.popularity import popularity_scores
from ur4rec.text.leakage import TitleFinder, find_leakage, poisson_binomial_tail, refuse_leakage
from ur4rec.text.users import texts_of_prefixes

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
    texts = texts_of_prefixes(split, interactions)
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
        repeats=split.repeats,
    )
    texts = texts_of_prefixes(whole, interactions)
    assert is_leaking(texts, interactions, split.test)
    assert is_leaking(texts, interactions, split.validation)


def test_the_check_finds_a_leak_for_a_quarter_of_the_users():
    interactions = synthetic(num_users=400)
    split = leave_one_out(interactions)
    texts = texts_of_prefixes(split, interactions)
    for user, item in list(zip(split.test.users_T, split.test.items_T, strict=True))[::4]:
        texts[user] += "; " + interactions.titles[item]
    assert is_leaking(texts, interactions, split.test)


def test_repeated_consumption_names_only_what_was_trained_on():
    """Where users come back to items, a target may be named, but only because the training prefix has it too."""
    interactions = synthetic(num_users=200, repeat=0.3)
    split = leave_one_out(interactions)
    texts = texts_of_prefixes(split, interactions, max_titles=10**6)
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


def test_texts_of_prefixes_hold_the_last_titles_newest_last():
    interactions = synthetic(num_users=30, num_items=60)
    split = leave_one_out(interactions)
    texts = texts_of_prefixes(split, interactions, max_titles=3)
    assert texts[4].split("; ") == [interactions.titles[item] for item in split.train[4][-3:]]


def test_several_targets_of_a_user_are_one_coincidence():
    """Somebody who comes back to a new item thirty times is one user whose text happens to name it."""
    rows = [(user, (user + 7 * place) % 90, 0) for user in range(30) for place in range(8)]
    rows += [(0, 90, 2)] * 30 + [(user, 90 + user, part) for user in range(30) for part in (1, 2)]
    users, items, parts = np.array(rows).T
    interactions = build_interactions(
        users=users, items=items, timestamps=np.arange(len(rows)), parts=parts, name="tiny", source="test",
        titles={item: f"title {item}" for item in range(120)}, texts={},
    )  # fmt: skip
    split = make_split(interactions)
    assert np.bincount(split.test.users_T)[0] == 31
    texts = texts_of_prefixes(split, interactions)
    texts[0] += f"; {interactions.titles[split.test.items_T[0]]}"
    found = find_leakage(texts, interactions, split)
    assert [test.leaks for test in found] == [False, False]
    assert found[1].num_users == 30


@pytest.fixture(scope="module")
def whole():
    return synthetic(num_users=400)


def leaks(texts, interactions, split=None):
    return [test.leaks for test in find_leakage(texts, interactions, split or leave_one_out(interactions))]


def with_hints(interactions, targets, users, hint="likes {}"):
    """Texts of training titles; those of some users end with their target's title."""
    texts = texts_of_prefixes(leave_one_out(interactions), interactions)
    for user, item in zip(targets.users_T[users], targets.items_T[users], strict=True):
        texts[user] += "; " + hint.format(interactions.titles[item])
    return texts


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("repeat", [0.0, 0.3])
def test_training_titles_do_not_count_as_a_leak(name, repeat):
    interactions = synthetic(num_users=300, repeat=repeat)
    split = SPLITS[name](interactions)
    for max_titles in (3, 10**6):
        assert leaks(texts_of_prefixes(split, interactions, max_titles), interactions, split) == [False, False]


def test_a_leak_for_few_users_is_found_in_the_targets_that_it_names(whole):
    split = leave_one_out(whole)
    assert leaks(with_hints(whole, split.test, slice(0, 2)), whole) == [False, False]
    assert leaks(with_hints(whole, split.test, slice(0, 12)), whole) == [False, True]
    assert leaks(with_hints(whole, split.validation, slice(0, 12), hint="LIKES: {}!"), whole) == [True, False]
    with pytest.raises(LeakageError, match=r"texts.json names the test target of 12 of 400 users where chance gives 1"):
        refuse_leakage("texts.json", find_leakage(with_hints(whole, split.test, slice(0, 12)), whole, split))


def test_titles_named_at_random_are_chance(whole):
    """Texts that name popular items, whoever has them: some name a target, as many as chance says."""
    counts = np.bincount(whole.items_N, minlength=whole.num_items)
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        draws = rng.choice(whole.num_items, (whole.num_users, 12), p=counts / counts.sum())
        texts = ["; ".join(whole.titles[item] for item in row) for row in draws]
        found += find_leakage(texts, whole, leave_one_out(whole))
    assert not any(test.leaks for test in found)
    named, expected = sum(test.num_named for test in found), sum(test.expected for test in found)
    assert expected > 100
    assert abs(named - expected) < 4 * np.sqrt(expected)


def test_a_shuffled_leak_is_chance(whole):
    """The same texts given to other users: what counts is whose target is named, not how often targets are."""
    texts = with_hints(whole, leave_one_out(whole).test, slice(None))
    assert leaks(texts, whole) == [False, True]
    assert leaks([*texts[7:], *texts[:7]], whole) == [False, False]


def test_one_text_alone_proves_nothing(whole):
    texts = [""] * whole.num_users
    texts[0] = "likes " + whole.titles[whole.sequences[0][-1]]
    assert find_leakage(texts, whole, leave_one_out(whole))[1].p_value == 1


def test_a_namesake_in_training_is_no_leak(whole):
    """Two items of one title: a text with the one names the other too."""
    split = leave_one_out(whole)
    titles = list(whole.titles)
    for user in range(40):
        titles[whole.sequences[user][-1]] = titles[split.train[user][-1]]
    doubled = dataclasses.replace(whole, titles=titles)
    assert leaks(texts_of_prefixes(split, doubled), doubled) == [False, False]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("loves Amelie", {0}),
        ("AMÉLIE (2001) twice", {0}),
        ("ameliep", set()),
        ("Hamlet", {1, 2}),
        ("Hamlet (1948)", {1}),
        ("hamlet 1996 and Usual Suspects, The", {2, 3}),
        ("the usual suspects (1995)", {3}),
        ("usual suspects", set()),
        ("Batman Forever", {5}),
        ("batman, and batman forever", {4, 5}),
        ("forever Batman", {4}),
        ("", set()),
    ],
)
def test_titles_are_found_as_whole_phrases(text, named):
    titles = ["Amélie (2001)", "Hamlet (1948)", "Hamlet (1996)", "Usual Suspects, The (1995)", "Batman (1989)"]
    assert TitleFinder([*titles, "Batman Forever (1995)", "???"]).find(text) == named


def test_the_tail_is_that_of_the_binomial_and_of_all_cases():
    assert poisson_binomial_tail([0.3] * 20, 9) == pytest.approx(
        sum(math.comb(20, k) * 0.3**k * 0.7 ** (20 - k) for k in range(9, 21))
    )
    rates = [0.1, 0.5, 0.9, 0.25]
    cases = itertools.product([0, 1], repeat=4)
    chances = {case: math.prod(r if hit else 1 - r for r, hit in zip(rates, case, strict=True)) for case in cases}
    for count in range(5):
        expected = sum(chance for case, chance in chances.items() if sum(case) >= count)
        assert poisson_binomial_tail(rates, count) == pytest.approx(expected)
