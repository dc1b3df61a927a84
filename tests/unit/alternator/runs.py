"""What the tests of several rules share: losses to feed them, and what a run has done."""

import math
import random


def noisy(seed, count, slope=0.0, noise=0.1, rho=0.0, offset=0.0):
    """Losses offset + exp(-slope·t)·(1 + noise·AR(1))."""
    draw = random.Random(seed)
    losses, error = [], draw.gauss(0, 1)
    for step in range(count):
        losses.append(offset + math.exp(-slope * step) * (1 + noise * error))
        error = rho * error + math.sqrt(1 - rho * rho) * draw.gauss(0, 1)
    return losses


def shares(alternator):
    """The share of each module in the training steps."""
    return {name: module.training_ratio for name, module in alternator.stats().modules.items()}
