"""Arms of a study: schedules by name, and the random controls of another arm."""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ur4rec.errors import ConfigurationError
from ur4rec.schedule.alternators import SEQUENCE, parse_schedule, shuffled

PARITY = "parity"
JOINT = "joint"
MATCHED = "matched:"
_ANY_TURNS: Mapping[str, Any] = {"mean_tenure": 2.0, "tenures": [["both", 1], ["sasrec", 1]]}

SHUFFLED = "shuffled:"

ARMS_HELP = (
    "schedules as for train --schedule, matched:ARM (random tenures with that arm's measured mean tenure), or "
    "shuffled:ARM (that arm's own tenures in random order: the same shares, another timing)"
)


def original_of(arm: str) -> str | None:
    """The arm that this one is a control of; None if it is not a control.

    Example:
        >>> original_of("matched:plateau"), original_of("shuffled:payoff"), original_of("plateau")
        ('plateau', 'payoff', None)
    """
    for kind in (MATCHED, SHUFFLED):
        if arm.startswith(kind):
            return arm.removeprefix(kind)
    return None


def schedule_string(arm: str, *, turns: Mapping[str, Any] = _ANY_TURNS, seed: int = 0) -> str:
    """The schedule that an arm runs.

    Args:
        arm: The arm.
        turns: Who trained when in the run that a control belongs to; see `ur4rec.compare.budget.describe_turns`.
        seed: Seed of the control's draws.

    Example:
        >>> schedule_string("matched:plateau", turns={"mean_tenure": 12.5}, seed=3)
        'random_tenure,mean=12.5,seed=3'
        >>> schedule_string("shuffled:payoff", turns={"tenures": [["both", 20], ["sasrec", 5]]})
        "sequence:(('both', 20), ('sasrec', 5))"
        >>> schedule_string("3:1")
        '3:1'
    """
    if arm.startswith(MATCHED):
        return f"random_tenure,mean={turns['mean_tenure']},seed={seed}"
    if arm.startswith(SHUFFLED):
        draws = np.random.default_rng(seed).random(len(turns["tenures"])).tolist()
        return f"{SEQUENCE}{shuffled([tuple(tenure) for tenure in turns['tenures']], draws)}"
    return arm


def is_ratio(arm: str) -> bool:
    """Whether an arm is a fixed ratio of the modules' steps; parity is.

    Example:
        >>> is_ratio("1:8"), is_ratio("parity"), is_ratio("joint")
        (True, True, False)
    """
    return arm == PARITY or re.fullmatch(r"\d{1,18}(:\d{1,18}){1,2}", arm) is not None


def check_arms(arms: Sequence[str]) -> None:
    """Refuse arms that cannot be compared.

    Raises:
        ConfigurationError: Parity is missing, an arm is there twice, its schedule is unknown, or a control's original
            is missing.
    """
    if PARITY not in arms:
        raise ConfigurationError(f"arms must hold {PARITY!r}, which the others are compared with, got {tuple(arms)}")
    if len(set(arms)) < len(arms):
        raise ConfigurationError(f"arms must differ, got {tuple(arms)}")
    for arm in arms:
        original = original_of(arm)
        if original is not None and (original not in arms or original == JOINT):
            raise ConfigurationError(f"{arm!r} needs an arm {original!r} that switches; add it or leave {arm!r} out")
        parse_schedule(schedule_string(arm))


def slug(arm: str) -> str:
    """A file name for an arm: itself where that is one, else with a checksum, so that no two arms share one.

    Example:
        >>> slug("parity"), slug("3:1")
        ('parity', '3-1-ad1b5c98')
    """
    name = re.sub(r"[^A-Za-z0-9._]+", "-", arm)
    return name if name == arm else f"{name[:80]}-{zlib.crc32(arm.encode()):08x}"
