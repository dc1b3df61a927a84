"""The rules that the common tests run, by name: add a rule here and no common test can miss it."""

import random

from alternator import Alternator, Balance, Cycle, Gain, Patience, Payoff, Plateau, RandomTenure, Trend, Trial

RULES = {
    "balance": Balance(low=1.4, high=1.6, window=4, factor=1.5, steps=(1, 2, 1), max_steps=4),
    "cycle": Cycle((2, 3, 1)),
    "gain": Gain(min_steps=3, max_wait=12, window=10, costs=(1.0, 2.0, 0.5), switch_costs=(0.0, 1.0, 1.0)),
    "patience": Patience(patience=2, cooldown=1, smoothing=0.5, max_steps=20),
    "payoff": Payoff(costs=(3.0, 2.0, 1.0), min_steps=3, groups=4, retry_after=6, max_retry_after=12, confidence=0.84),
    "plateau": Plateau(threshold=0.1, min_steps=2, window=5),
    "random_tenure": RandomTenure(4, seed=7, min_steps=2),
    "trial": Trial(
        candidates=((0,), (1, 1, 2), (2,)), costs=(2.0, 1.0, 1.0), steps=2, start=4, hold=16, halvings=9, groups=3
    ),
    "trend": Trend(window=40, min_steps=4, max_steps=30, confirmations=1),
}
MODULES = ("a", "b", "c")


def make(name):
    return Alternator(MODULES, RULES[name])


def losses_of(seed, num_steps):
    draw = random.Random(seed)
    return [draw.choice([draw.gauss(2.0, 0.2), draw.gauss(2.0, 0.02), 1.5, float("nan")]) for _ in range(num_steps)]
