"""What the page asks of a run, answered as plain JSON values."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alternator.checks import check_integer, cut, printable
from ur4rec.errors import ConfigurationError
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.recommender import Recommender
from ur4rec.serve.overview import describe_run

MAX_HISTORY = 10_000
"""The number of items of a history that the page may send at most."""
MAX_TOP = 100
"""The number of items of a list at most."""
MAX_COMPLETIONS = 12
"""The number of completions that are offered."""


class Answers:
    """Answers about one run; the model is loaded once.

    Strings of the data are made printable here. They are still no markup: the page sets them as text.

    Args:
        directory: The run.
        recommender: Its model.

    Attributes:
        run: What `ur4rec.serve.overview.describe_run` returns.

    Raises:
        DataError: A file of the run is damaged.
    """

    def __init__(self, directory: RunDirectory, recommender: Recommender) -> None:
        self._directory = directory
        self._recommender = recommender
        self.run = describe_run(directory, recommender.interactions, recommender.checkpoint)
        self._titles = [printable(title) for title in recommender.interactions.titles]
        self._folded = [title.casefold() for title in self._titles]

    @property
    def plot(self) -> bytes | None:
        """The picture of the run, as it is now; None if it has none yet."""
        path = self._directory.path / "schedule.png"
        return path.read_bytes() if path.is_file() else None

    def complete_item(self, query: str) -> list[dict[str, Any]]:
        """The item of the id that was typed, then items whose title begins with it or holds it, shorter ones first."""
        wanted = query.casefold()
        numbers = self._recommender.item_numbers
        exact = [numbers[query]] if query in numbers else []
        found = [index for index, title in enumerate(self._folded) if wanted in title]
        found.sort(key=lambda index: (not self._folded[index].startswith(wanted), len(self._folded[index])))
        return self._describe(list(dict.fromkeys(exact + found))[:MAX_COMPLETIONS])

    def complete_user(self, query: str) -> list[dict[str, str]]:
        """Users whose id begins with what was typed, the one of that very id first."""
        users = self._recommender.interactions.user_ids
        found = [user for user in users if user == query] + [user for user in users if user.startswith(query)]
        return [{"label": user} for user in dict.fromkeys(found)][:MAX_COMPLETIONS]

    def items(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items by their canonical indices.

        Raises:
            ConfigurationError: There is no item of such an index, or they are too many.
        """
        last = self._recommender.interactions.num_items - 1
        if len(indices) > MAX_HISTORY:
            raise ConfigurationError(f"a history must have at most {MAX_HISTORY} items, got {len(indices)}")
        return self._describe([check_integer("an item", index, 0, last) for index in indices])

    def history_of(self, user: str) -> list[dict[str, Any]]:
        """All items of a user, oldest first.

        Raises:
            UnknownNameError: There is no such user.
        """
        return self._describe(self._recommender.history_of(user).tolist())

    def recommend(self, items: Sequence[int], user: str | None, top: int) -> dict[str, Any]:
        """What each scorer recommends after a history, and by which parts of it the retriever found that.

        Raises:
            AlternatorError: The history is empty, or names items or a user that do not exist.
        """
        check_integer("top", top, 1, MAX_TOP)
        history = np.array([each["index"] for each in self.items(items)], np.int32)
        numbers = self._recommender.item_numbers
        lists = self._recommender.lists(history, top=top, user_id=user)
        found = list(dict.fromkeys(numbers[each.item_id] for ranking in lists.values() for each in ranking))
        weights = dict(zip(found, self._recommender.explain(history, found, user_id=user).tolist(), strict=True))
        return {
            "lists": {
                scorer: [
                    {
                        "index": (item := numbers[each.item_id]),
                        "title": self._titles[item],
                        "probability": each.probabilities[scorer],
                        "weights": weights[item],
                    }
                    for each in ranking
                ]
                for scorer, ranking in lists.items()
            },
            "read": min(len(items), self._recommender.max_seq_len),
        }

    def _describe(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        ids = self._recommender.interactions.item_ids
        return [
            {"index": index, "title": self._titles[index], "label": self._label(index, printable(ids[index]))}
            for index in indices
        ]

    def _label(self, index: int, item_id: str) -> str:
        title = self._titles[index]
        return title if title == item_id else f"{cut(title)} ({cut(item_id)})"
