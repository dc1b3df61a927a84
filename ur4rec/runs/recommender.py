"""Recommends from a finished run: for one history or for many users, also of users and items that came later.

Shapes: R histories, I items, C of them later, k places.
"""

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from alternator.checks import check_choice, listed, one_line
from alternator.errors import quoted
from ur4rec.config import SCORERS, ModelConfig
from ur4rec.data.columns import Strings, to_string_array
from ur4rec.data.interactions import Interactions, Sequences
from ur4rec.data.kept import to_arrow
from ur4rec.data.later import append_interactions, append_items
from ur4rec.data.reading.formats import read_path
from ur4rec.data.reading.titles import read_items
from ur4rec.errors import ConfigurationError, DataError, UnknownNameError, without_options
from ur4rec.options import DataOptions
from ur4rec.runs.config import read_config
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import DATA, ENCODER, TOKENIZER, read_data
from ur4rec.text.encoders import TextEncoder
from ur4rec.text.tokens import encode_tokens
from ur4rec.training.backend import load_scorer
from ur4rec.training.checkpoint import check_settings
from ur4rec.training.processes import ONE_PROCESS, Processes
from ur4rec.training.scorer import NO_ITEM, Top
from ur4rec.training.slices import parse_memory

logger = logging.getLogger(__name__)

_SHOWN_ITEMS = 5
"""Items that a message names at most."""
SCHEMA = pa.schema(
    [
        *(("user", pa.string()), ("place", pa.int32()), ("item", pa.string()), ("title", pa.string())),
        *((scorer, pa.float32()) for scorer in SCORERS),
        ("cold", pa.bool_()),
    ]
)
"""A table of recommendations: a row per user and place; what each scorer takes for the probability that it is next."""


class Recommendation(NamedTuple):
    """One recommended item."""

    item_id: str
    """The source's name of the item."""
    title: str
    """Its title."""
    probabilities: dict[str, float]
    """What SASRec, the retriever and both fused take for the probability that it is next, among the candidates."""
    cold: bool = False
    """Whether it came after the run was trained, so that only the retriever knows it, by its text."""


class Recommender:
    """The model of a run, ready to recommend: that of its refit, or the best by validation.

    Whether items of a history are recommended again is what the run says (``repeats``).

    Args:
        directory: A run directory.
        data_dir: Where to look for the dataset's files before anything is downloaded, for a run that keeps no data.
        interactions: A file of interactions that came later, of users and items that the run knows or not.
        items: A file with titles and texts of items that came later.
        device: Where to score: "cpu", "auto", "cuda", ...
        memory: Bytes that scores may take at once, a number or a string such as ``4GB``; None is as the run has it.
        checkpoint: "best" (by validation), "latest" or "refit"; None is that of the refit where it has ended, else the
            best.

    Attributes:
        checkpoint: The checkpoint that is used.
        interactions: The data of the run, and behind it what came later.
        num_trained: The number of items that the model was trained with; those from there on are cold.
        max_seq_len: The number of items that the model reads at most: the newest of a history.
        excludes_seen: Whether the items of a history are left out.

    Raises:
        AlternatorError: The run has no checkpoint yet, it is damaged, or its data cannot be had.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        data_dir: Path | None = None,
        interactions: Path | None = None,
        items: Path | None = None,
        device: str = "cpu",
        memory: int | str | None = None,
        checkpoint: str | None = None,
    ) -> None:
        config = read_config(directory)
        limit = parse_memory(config.memory if memory is None else memory)
        self.checkpoint = directory.chosen(checkpoint)
        path = directory.require_checkpoint(self.checkpoint)
        check_settings(path, config.model_config(num_items=2))
        known = read_data(directory, config, data_dir)
        directory.check_fact("interactions_hash", known.hash)
        self.num_trained = known.num_items
        self.interactions = _with_later(known, DataOptions.from_json(config.data), interactions, items)
        later = self._encode_later(directory, config.model_config(self.num_trained))
        self._scorer = load_scorer(config.backend, path, device, later, memory=limit)
        if (size := self._scorer.num_items) != self.interactions.num_items:
            raise DataError(f"{path} must be of {self.interactions.num_items} items, got {size}; restore it")
        self.max_seq_len = config.model_config(self.num_trained).max_seq_len
        self.excludes_seen = config.repeats != "allow"

    @cached_property
    def _users(self) -> dict[str, int]:
        return {user: number for number, user in enumerate(self.interactions.user_ids)}

    def _find_users(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The index of each user, -1 for one that is unknown."""
        known = self.interactions.user_ids
        if isinstance(known, Strings):  # of which a dictionary may be too large
            return known.find(names)
        return np.array([self._users.get(name, -1) for name in names], np.int64)

    @cached_property
    def item_numbers(self) -> dict[str, int]:
        """The canonical index of each item by the source's name of it."""
        return {item: number for number, item in enumerate(self.interactions.item_ids)}

    def history_of(self, user_id: str) -> NDArray[np.int32]:
        """All items of a user in order of time.

        Raises:
            UnknownNameError: There is no such user; the message names some that exist.
        """
        return self.interactions.sequences[self._find_user(user_id)]

    def find_items(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Items by id, by title, or by the part of a title that only one item has.

        Raises:
            DataError: A name fits no item, or several; the message lists ids and titles to choose from.
        """
        return np.array([self._find_item(name) for name in names], np.int32)

    def candidates(self, *, exclude: Iterable[str] = (), only: Iterable[str] | None = None) -> NDArray[np.bool_]:
        """Which items may be recommended, (I,).

        Ids that no item has are counted in a warning: lists of what is sold out name items that nobody has used.

        Args:
            exclude: Ids of items that are never recommended.
            only: Ids of the only items that are; None is every item.

        Raises:
            ConfigurationError: None is left.
        """
        candidates_I = np.ones(self.interactions.num_items, bool)
        if only is not None:
            candidates_I[:] = False
            candidates_I[self._numbers_of(only, "only")] = True
        candidates_I[self._numbers_of(exclude, "exclude")] = False
        if not candidates_I.any():
            raise ConfigurationError("some item must be left to recommend, got none; exclude less or allow more")
        return candidates_I

    def recommend(
        self,
        history_L: NDArray[np.int32],
        *,
        top: int = 10,
        user_id: str | None = None,
        scorer: str = "fused",
        candidates_I: NDArray[np.bool_] | None = None,
    ) -> list[Recommendation]:
        """The items that a history is most likely to continue with, best first.

        Args:
            history_L: Canonical item indices, oldest first.
            top: How many.
            user_id: Whose history it is, for a model that knows preference texts of users.
            scorer: Whose order it is: "fused", "sasrec" or "retriever".
            candidates_I: What `candidates` returned; None is every item.

        Raises:
            ConfigurationError: The history is empty or leaves no candidate, or ``top`` is below 1.
            NonFiniteError: A score is NaN or infinite.
        """
        history_1 = Sequences.from_lists([history_L.tolist()])
        ((items_1k, probabilities),) = self._top([user_id or ""], history_1, top, scorer, candidates_I)
        items = items_1k[0][items_1k[0] != NO_ITEM].tolist()
        if not items:
            raise ConfigurationError(
                f"a history must leave items to recommend, got all {self.interactions.num_items} in it or excluded; "
                "name another user, or exclude less"
            )
        return [
            Recommendation(
                item_id=self.interactions.item_ids[item],
                title=self.interactions.titles[item],
                probabilities={name: float(values_1k[0, place]) for name, values_1k in probabilities.items()},
                cold=item >= self.num_trained,
            )
            for place, item in enumerate(items)
        ]

    def lists(
        self,
        history_L: NDArray[np.int32],
        *,
        top: int = 10,
        user_id: str | None = None,
        candidates_I: NDArray[np.bool_] | None = None,
    ) -> dict[str, list[Recommendation]]:
        """What each scorer would recommend by itself, by scorer; see `recommend`."""
        return {
            scorer: self.recommend(history_L, top=top, user_id=user_id, scorer=scorer, candidates_I=candidates_I)
            for scorer in SCORERS
        }

    def explain(
        self, history_L: NDArray[np.int32], items_C: Sequence[int], *, user_id: str | None = None
    ) -> NDArray[np.float32]:
        """By which parts of a history the retriever finds the items, (C, M): weights that sum to 1 for each.

        M are the newest items that the model reads, oldest first, and last the user's own text, for a model that knows
        texts of users and a user that is named.
        """
        recent_L = history_L[-self.max_seq_len :]
        items_BL = np.full((1, self.max_seq_len), self.interactions.num_items, np.int64)
        items_BL[0, : len(recent_L)] = recent_L
        users_B = None if user_id is None else [self._find_user(user_id)]
        weights_CM = self._scorer.explain(items_BL, [list(items_C)], users_B)[0]
        return np.concatenate([weights_CM[:, : len(recent_L)], weights_CM[:, self.max_seq_len :]], axis=1)

    def recommend_users(
        self,
        user_ids: Sequence[str] | None = None,
        *,
        top: int = 10,
        candidates_I: NDArray[np.bool_] | None = None,
        progress: Callable[[int], None] = lambda done: None,
        processes: Processes = ONE_PROCESS,
    ) -> Iterator[pa.Table]:
        """Recommendations for many users: one table of `SCHEMA` per slice of users, in their order.

        Users to whom nothing can be recommended have no row; a warning counts them.

        Args:
            user_ids: The users; None is all of them.
            top: How many items for each.
            candidates_I: What `candidates` returned; None is every item.
            progress: Called after each slice with the number of users that are done.
            processes: Those that divide the slices among them; all make this call, and are given all tables.

        Raises:
            DataError: Users that do not exist; names the first.
            ConfigurationError: ``top`` is below 1.
            NonFiniteError: A score is NaN or infinite.
        """
        names = self.interactions.user_ids if user_ids is None else user_ids
        rows_R = self._find_users(names)
        if unknown := [names[row] for row in np.flatnonzero(rows_R < 0).tolist()]:
            raise DataError(
                f"users must be the run's or of later interactions, but {len(unknown)} of {len(names)} are neither "
                f"({listed(unknown)}); leave them out, or give their interactions"
            )
        histories = self.interactions.sequences.take(rows_R)
        if processes.count == 1:
            return self.tables(names, histories, top=top, candidates_I=candidates_I, progress=progress)
        found = self._top_of_all(names, histories, top, candidates_I, processes)
        return self._to_tables(found, names, progress)

    def tables(
        self,
        names: Sequence[str],
        histories: Sequences,
        *,
        top: int = 10,
        scorer: str = "fused",
        candidates_I: NDArray[np.bool_] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[pa.Table]:
        """As `recommend_users`, for any histories: of named users, or of "", who is nobody."""
        return self._to_tables(self._top(names, histories, top, scorer, candidates_I), names, progress)

    def _top_of_all(
        self,
        names: Sequence[str],
        histories: Sequences,
        top: int,
        candidates_I: NDArray[np.bool_] | None,
        processes: Processes,
    ) -> Iterator[Top]:
        """As `_top`, of processes that take slices in turn."""
        rows = self._scorer.rows_at_once(len(names))
        for first in range(0, len(names), processes.count * rows):
            start = min(first + processes.rank * rows, len(names))
            numbers = np.arange(start, min(start + rows, len(names)))
            own_names = names[start : start + rows]
            found = self._top(own_names, histories.take(numbers), top, "fused", candidates_I)
            own = next(found) if len(own_names) else self._scorer.no_top(top)
            shares_BSk = np.stack([own.probabilities[name] for name in SCORERS], axis=1)
            gathered = (processes.gather(each) for each in (own.items_Bk, shares_BSk))
            for items_Bk, parts_BSk in zip(*gathered, strict=True):
                shares = {name: parts_BSk[:, index] for index, name in enumerate(SCORERS)}
                yield Top(items_Bk, shares)

    def _top(
        self,
        names: Sequence[str],
        histories: Sequences,
        top: int,
        scorer: str,
        candidates_I: NDArray[np.bool_] | None,
    ) -> Iterator[Top]:
        """The best items of histories, in slices."""
        if top < 1:
            raise ConfigurationError(f"top must be at least 1, got {top}")
        check_choice("scorer", scorer, SCORERS)
        if not histories.lengths.all():
            raise ConfigurationError("a history must have at least one item, got none; name a user or some titles")
        return self._scorer.top(
            histories,
            top,
            scorer=scorer,
            excluded=histories if self.excludes_seen else None,
            candidates_I=candidates_I,
            users_R=self._find_users(names).astype(np.int32),
        )

    def _to_tables(
        self, found: Iterable[Top], names: Sequence[str], progress: Callable[[int], None]
    ) -> Iterator[pa.Table]:
        users, items, titles = (
            to_string_array(each) for each in (names, self.interactions.item_ids, self.interactions.titles)
        )
        done = left_out = 0
        for items_Bk, probabilities in found:
            rows_N, places_N = np.nonzero(items_Bk != NO_ITEM)
            items_N = items_Bk[rows_N, places_N]
            columns = [
                users.take(to_arrow(rows_N + done)),
                to_arrow((places_N + 1).astype(np.int32)),
                items.take(to_arrow(items_N)),
                titles.take(to_arrow(items_N)),
                *(to_arrow(probabilities[scorer][rows_N, places_N]) for scorer in SCORERS),
                pc.greater_equal(to_arrow(items_N), self.num_trained),
            ]
            done += len(items_Bk)
            left_out += len(items_Bk) - len(np.unique(rows_N))
            progress(done)
            yield pa.table(columns, schema=SCHEMA)
        if left_out and len(names) > 1:
            logger.warning("%d of %d users have no row: no item is left to recommend to them", left_out, len(names))

    def _encode_later(self, directory: RunDirectory, model: ModelConfig) -> NDArray[Any] | None:
        """Text vectors of the items that came later, or their tokens for a text encoder; None if none did."""
        texts = self.interactions.texts[self.num_trained :]
        if not texts:
            return None
        if not (directory.path / DATA).is_dir():
            raise DataError(f"{directory.path} keeps no text encoder for items that came later; train a run that does")
        if model.has_text_encoder:
            return encode_tokens(directory.path / DATA / TOKENIZER, texts, model.text_encoder_tokens)
        return TextEncoder.read(directory.path / DATA / ENCODER).encode(texts)

    def _find_user(self, user_id: str) -> int:
        (user,) = self._find_users([user_id]).tolist()
        if user < 0:
            examples = (*self.interactions.user_ids[:3], "...", self.interactions.user_ids[-1])
            raise UnknownNameError("user", user_id, examples)
        return int(user)

    def _numbers_of(self, item_ids: Iterable[str], what: str) -> NDArray[np.int64]:
        numbers = self.item_numbers
        wanted = list(dict.fromkeys(item_ids))
        found = [numbers[item] for item in wanted if item in numbers]
        if len(found) < len(wanted):
            unknown = [item for item in wanted if item not in numbers]
            logger.warning("%s: %d of %d items are unknown: %s", what, len(unknown), len(wanted), listed(unknown))
        return np.array(found, np.int64)

    def _find_item(self, name: str) -> int:
        if name in self.item_numbers:
            return self.item_numbers[name]
        titles = [title.casefold() for title in self.interactions.titles]
        wanted = name.casefold()
        for found in (
            [index for index, title in enumerate(titles) if title == wanted],
            [index for index, title in enumerate(titles) if wanted in title],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                raise DataError(
                    f"an item must be named clearly, {quoted(name)} fits {len(found)} titles: give the id of one, "
                    f"{self._named(found)}"
                )
        near = set(difflib.get_close_matches(wanted, titles, n=3, cutoff=0.4))
        if found := [index for index, title in enumerate(titles) if title in near]:
            raise DataError(
                f"no item has the id or title {quoted(name)}; the nearest are {self._named(found)}: give the id of "
                "one, or a part of another title"
            )
        raise DataError(
            f"no item has the id or title {quoted(name)}, nor a title like it; give an id or a part of a title of the "
            f"run's items, which are {self._named(range(len(titles)))}"
        )

    def _named(self, items: Sequence[int]) -> str:
        """Items in a message, by id and title, cut short where they are many."""
        known = self.interactions
        named = [f"{known.item_ids[item]!r} ({one_line(known.titles[item])})" for item in items[:_SHOWN_ITEMS]]
        more = len(items) - len(named)
        return ", ".join(named) + (f" and {more} more" if more else "")


def _with_later(
    known: Interactions, options: DataOptions, interactions: Path | None, items: Path | None
) -> Interactions:
    """The data of a run, and what came later, read as the run's own data is; nothing of it is rare."""
    whole = known
    if items is not None:
        with without_options("write the file as the items of the run's data are written"):
            whole = append_items(whole, *read_items(items, options, None))
    if interactions is not None:
        with without_options("write the file as the run's data is written"):
            whole = append_interactions(whole, read_path(interactions, replace(options, k_core=1, items=None), 1))
    new = list(zip(whole.item_ids[known.num_items :], whole.texts[known.num_items :], strict=True))
    if nameless := sum(item == text for item, text in new):
        logger.warning("%d of %d items that came later have no text: only their ids are read", nameless, len(new))
    return whole
