"""The rules that the common tests run, by name: add a rule here and no common test can miss it."""

import random

from alternator import Alternator, Cycle, Plateau, RandomTenure

RULES = {
    "cycle": Cycle((2, 3, 1)),
    "plateau": Plateau(threshold=0.1, min_steps=2, window=5),
    "random_tenure": RandomTenure(4, seed=7, min_steps=2),
}
MODULES = ("a", "b", "c")


def make(name):
    return Alternator(MODULES, RULES[name])


def losses_of(seed, num_steps):
    draw = random.Random(seed)
    return [draw.choice([draw.gauss(2.0, 0.2), draw.gauss(2.0, 0.02), 1.5, float("nan")]) for _ in range(num_steps)]
