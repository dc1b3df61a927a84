"""Leakage: whether texts name what is held out from their users more often than texts without that knowledge would.

A text that was written with the validation or test item at hand names it; a model that reads such texts is measured on
what it was given. The check looks for the titles of held-out items in the texts of their users:

* **What counts as named.** Texts and titles are compared as words: no case, accents or punctuation. An item is named by
  its title as a whole phrase, with or without the year and with the article in front or behind, where no longer title
  covers that place ("Batman Forever" does not name "Batman").
* **Who is tested.** Users with a text, and a target that their training prefix does not hold, nor another item of its
  title: to name what was trained on leaks nothing. Of several such targets of a user the last one counts, so that the
  users stay independent events.
* **What chance is.** For each of them, how often the texts of those users name the target who never had it. Popular
  and short titles are named by chance more often, and this keeps that. The user counts as one of those whose text
  names it: so a rate is never 0, and a few coincidences never suffice.
* **The test.** If texts do not know what is held out, the number of users whose text names their target is a sum of
  independent events of these rates (Poisson-binomial), whose exact tail is the p-value. A permutation of the texts
  has no more variance, so this errs towards acceptance.

It cannot see paraphrases, translations, misspelt titles, descriptions ("the film about the sinking ship"), or what is
said about a target without its title; nor fewer than about six users. It cannot tell a good guess from a leak: a writer
who knows only the training prefix but guesses films that fit names targets more often than chance too.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ur4rec.data.interactions import Interactions
from ur4rec.data.splits import Split
from ur4rec.errors import LeakageError

SIGNIFICANCE = 1e-3
"""Texts are refused if chance would name as many targets with a smaller probability than this."""

_ARTICLES = frozenset(("the", "a", "an", "le", "la", "les", "il", "el", "das", "der", "die"))
_YEAR = re.compile(r"\s*\(\d{4}\)\s*$")


class LeakageTest(NamedTuple):
    """The result of the check for one kind of target."""

    targets: str
    """"validation" or "test"."""
    num_users: int
    """Users that were tested."""
    num_named: int
    """Those whose text names their target."""
    expected: float
    """The number of them that chance would give."""
    p_value: float
    """The probability that chance gives at least as many."""

    @property
    def leaks(self) -> bool:
        """Whether that is more than chance."""
        return self.p_value < SIGNIFICANCE


def find_leakage(texts: Sequence[str], interactions: Interactions, split: Split) -> list[LeakageTest]:
    """Test the texts against the validation and the test targets.

    Args:
        texts: One per user, empty where there is none.
        interactions: The dataset.
        split: The targets and the training prefixes.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> interactions = synthetic(num_users=200)
        >>> texts = [f"likes {interactions.titles[items[-1]]}" for items in interactions.sequences]
        >>> [test.leaks for test in find_leakage(texts, interactions, leave_one_out(interactions))]
        [False, True]
    """
    finder = TitleFinder(interactions.titles)
    writers = {user: finder.find(text) for user, text in enumerate(texts) if text}
    had = {user: finder.with_namesakes(interactions.sequences[user]) for user in writers}
    num_had = Counter(item for items in had.values() for item in items)
    num_strange = Counter(item for user, named in writers.items() for item in named - had[user])
    tests = []
    for name, targets in (("validation", split.validation), ("test", split.test)):
        pairs = zip(targets.users_T.tolist(), targets.items_T.tolist(), strict=True)
        tested = {
            user: item
            for user, item in pairs
            if user in writers and item not in finder.with_namesakes(split.train[user])
        }
        rates = [(num_strange[item] + 1) / (len(writers) - num_had[item] + 1) for item in tested.values()]
        num_named = sum(item in writers[user] for user, item in tested.items())
        p_value = poisson_binomial_tail(rates, num_named)
        tests.append(LeakageTest(name, len(rates), num_named, float(sum(rates)), p_value))
    return tests


def refuse_leakage(what: str, tests: Iterable[LeakageTest]) -> None:
    """Raise if a test says that the texts leak.

    Args:
        what: Where the texts come from.
        tests: From `find_leakage`.

    Raises:
        LeakageError: With the counts and the remedy.
    """
    if found := [test for test in tests if test.leaks]:
        counts = "; ".join(describe_leakage(test) for test in found)
        raise LeakageError(
            f"user texts must know no held-out item, but {what} names {counts}; write them from training prefixes "
            "alone (ur4rec data --write-user-texts makes such a file), or pass --allow-leakage to train anyway"
        )


def describe_leakage(test: LeakageTest) -> str:
    """The counts of a test in words."""
    p_value = f"= {test.p_value:.1g}" if test.p_value > 1e-99 else "< 1e-99"
    return (
        f"the {test.targets} target of {test.num_named} of {test.num_users} users where chance gives "
        f"{test.expected:.1f} (p {p_value})"
    )


class TitleFinder:
    """Finds the items that a text names.

    Args:
        titles: The title of each item.

    Example:
        >>> finder = TitleFinder(["Batman (1989)", "Batman Forever (1995)", "Usual Suspects, The (1995)"])
        >>> sorted(finder.find("Loves BATMAN forever and the usual suspects!"))
        [1, 2]
        >>> finder.find("bat man"), finder.find("Batman (1995)")
        (frozenset(), frozenset({0}))
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._items: dict[tuple[str, ...], set[int]] = defaultdict(set)
        self._beginnings: set[tuple[str, ...]] = set()
        for item, title in enumerate(titles):
            for phrase in _phrases(title):
                self._items[phrase].add(item)
                self._beginnings.update(phrase[:length] for length in range(1, len(phrase) + 1))
        self._namesakes = [set().union(*(self._items[phrase] for phrase in _phrases(title))) for title in titles]

    def with_namesakes(self, items: Iterable[int]) -> set[int]:
        """The items and all others that a phrase for one of them names too."""
        return set().union(*(self._namesakes[item] for item in items))

    def find(self, text: str) -> frozenset[int]:
        """The items whose titles are in the text, where no longer title covers them."""
        words = _words(text)
        found: set[int] = set()
        covered = 0
        for start in range(len(words)):
            end = self._longest(words, start)
            if end > covered:
                found |= self._items[tuple(words[start:end])]
                covered = end
        return frozenset(found)

    def _longest(self, words: list[str], start: int) -> int:
        """Where the longest title that starts there ends; ``start`` if none does."""
        longest = start
        for end in range(start + 1, len(words) + 1):
            phrase = tuple(words[start:end])
            if phrase not in self._beginnings:
                break
            if phrase in self._items:
                longest = end
        return longest


def poisson_binomial_tail(rates: Sequence[float], count: int) -> float:
    """The probability that at least ``count`` of independent events with these rates happen.

    Example:
        >>> poisson_binomial_tail([0.5, 0.5], 1), poisson_binomial_tail([0.5, 0.5], 2)
        (0.75, 0.25)
    """
    if count == 0:
        return 1.0
    fewer = np.zeros(count)  # of exactly 0 .. count - 1 events
    fewer[0], reached = 1.0, 0.0
    for rate in rates:
        reached += fewer[-1] * rate
        fewer[1:] = fewer[1:] * (1 - rate) + fewer[:-1] * rate
        fewer[0] *= 1 - rate
    return float(reached)


def _phrases(title: str) -> set[tuple[str, ...]]:
    """A title as words: with the year and without, with its article behind and in front."""
    year = _YEAR.search(title)
    plain = _YEAR.sub("", title)
    name, _, last = plain.rpartition(",")
    forms = {plain, f"{last} {name}"} if last.strip().casefold() in _ARTICLES else {plain}
    dated = {form + year[0] for form in forms} if year else set()
    return {phrase for form in forms | dated if (phrase := tuple(_words(form)))}


def _words(text: str) -> list[str]:
    """Words in lower case without accents."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"\w+", "".join(letter for letter in letters if not unicodedata.combining(letter)))
