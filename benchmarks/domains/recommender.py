"""UR4Rec: SASRec and a retriever of texts, on MovieLens-100K, where one learns faster, and with costly text encoders.

These are the studies of `benchmarks/studies`, as they stand: an arm that a study has is read from its committed runs,
and another one is trained as the study trains its own, at the same charged cost.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ur4rec.compare.arms import JOINT, PARITY, is_ratio, original_of
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.runner import RunKey
from ur4rec.compare.tasks import ArmRequest, train_arm
from ur4rec.schedule.alternators import SEQUENCE

from ._domain import Arm, Kind, Outcome, Point

STUDIES = Path(__file__).parents[1] / "studies"
RULES = ("trial", "payoff", "gain", "trend", "patience", "plateau")
"""Of two modules; a study need not have runs of them."""
BASIS = "cost"


@dataclass(frozen=True)
class Recommender:
    """A study as a domain."""

    name: str
    study: str
    """Its folder."""
    question: str
    rules: tuple[str, ...] = field(default=RULES, repr=False)
    """Those that are run, whether or not the study has them."""
    metric: str = "NDCG@10"
    higher_is_better: bool = True
    unit: str = "seconds charged"
    has_signal: bool = True
    conditions: str = field(init=False)
    """All that decides its runs, for the fingerprint."""

    def __post_init__(self) -> None:
        costs = (STUDIES / self.study / "costs.json").read_text()
        seconds = json.loads(costs)["seconds"]
        conditions = json.dumps([self._directory.study.conditions(), seconds], sort_keys=True)
        object.__setattr__(self, "conditions", conditions)

    @property
    def _directory(self) -> StudyDirectory:
        return _opened(self.study)

    @property
    def budget(self) -> float:
        """The cost of the study's steps of parity."""
        return float(self._report(PARITY, self._directory.study.seeds[0])["budget"][BASIS])

    @property
    def num_seeds(self) -> int:
        """The study's."""
        return len(self._directory.study.seeds)

    def arms(self) -> Mapping[str, Arm]:
        """The study's, and the rules."""
        arms = dict.fromkeys((*self._directory.study.arms, *self.rules))
        return {_name(arm): Arm(kind=_kind(arm), setting=arm) for arm in arms}

    def run(self, arm: str, seed: int) -> Outcome:
        """Read a committed run, or train one."""
        report = self._report(self.arms()[arm].setting, seed)
        if report["error"] is not None:
            raise RuntimeError(report["error"])
        metric = self.metric.lower()
        curve = [Point(each["cost"], each["validation"][metric], each["test"][metric]) for each in report["points"]]
        turns = report["turns"]
        shares = {turn: count / turns["steps"] for turn, count in turns["turn_steps"].items() if count}
        return Outcome.at_best(curve, higher_is_better=True, shares=shares)

    def _report(self, arm: str, seed: int) -> dict[str, Any]:
        key = self._directory.key_of(arm, seed, BASIS)
        if self._directory.is_done(key):
            return self._directory.read_run(key)
        original = original_of(arm)
        if original is not None and not self._directory.is_done(self._directory.key_of(original, seed, BASIS)):
            raise RuntimeError(f"{arm} needs the study's run of {original}, seed {seed}")
        return train_arm(ArmRequest.of(self._directory, RunKey(arm, seed, BASIS))).report


@cache
def _opened(study: str) -> StudyDirectory:
    """Once in every process: what is open cannot be sent to another one."""
    return StudyDirectory.reopen(STUDIES / study)


def _name(arm: str) -> str:
    """A rule by its class, as in the other domains; a sequence by what it is."""
    if arm in RULES:
        return arm.capitalize()
    return arm.removeprefix(SEQUENCE) if arm.startswith(SEQUENCE) else arm


def _kind(arm: str) -> Kind:
    if arm == JOINT:
        return "joint"
    if original_of(arm) is not None or arm.startswith("random_tenure"):
        return "random"
    return "fixed" if is_ratio(arm) or arm.startswith(SEQUENCE) else "ours"


DOMAINS = (
    Recommender("movielens", "ml-100k", "Which of the two modules of a recommender should train, and how often?"),
    Recommender("fast-retriever", "synthetic", "And if one of them learns ten times faster, and costs more?"),
    Recommender("costly-encoder", "encoder", "Should a costly encoder of item texts train, and how often?", ("trial",)),
    Recommender("costly-encoder-sports", "encoder-sports", "And with ten times as many items?", ("trial",)),
)
