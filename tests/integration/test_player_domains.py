"""The domains of players: arms train for real at tiny sizes, what they look at is charged, what was tried is undone."""

from dataclasses import replace

import numpy as np
import pytest

from alternator import Cycle, Trial
from benchmarks.domains import actor_critic, players
from benchmarks.domains._examples import digits, energy_distance, frechet_distance, ring
from benchmarks.domains._game import BOTH, Match, Schedule
from benchmarks.domains._published_players import LossChangeRate, RandomShares, UntilLow

GAN = replace(players.DOMAINS[0], budget=60.0, width=8, num_looks=2)
TD3 = replace(actor_critic.DOMAINS[0], budget=40.0, width=8, num_looks=2)


@pytest.mark.parametrize(
    ("domain", "arm", "shares"),
    [
        (GAN, "joint", {BOTH: 1.0}),
        (GAN, "5:1", {"critic": 0.84, "generator": 0.16}),
        (GAN, "Balance", None),
        (GAN, "loss change rate", None),
        (TD3, "2:1", {"critic": 0.68, "actor": 0.32}),
        (TD3, "Balance", None),
        (TD3, "DUTD", {BOTH: 1.0}),
    ],
)
def test_an_arm_spends_its_budget_and_nothing_more(domain, arm, shares):
    outcome = domain.run(arm, 0)
    assert domain.budget <= outcome.cost < domain.budget + 2
    assert len(outcome.curve) == domain.num_looks
    assert outcome.test > 0
    assert sum(outcome.shares.values()) == pytest.approx(1)
    if shares is not None:
        assert outcome.shares == pytest.approx(shares, abs=0.03)


def test_training_draws_better_examples():
    domain = replace(GAN, budget=250.0, width=16, learning_rate=1e-2)
    _, before = domain.game(domain.arms()["3:1"].setting, 0).look()
    assert domain.run("3:1", 0).test < 0.8 * before


def test_the_same_seed_is_the_same_run_and_another_is_not():
    first, again, other = (TD3.run("1:1", seed) for seed in (0, 0, 1))
    assert first == again
    assert first.test != other.test


def test_arms_begin_with_the_same_players():
    looks = {TD3.game(TD3.arms()[arm].setting, 3).look() for arm in ("joint", "2:1", "Balance")}
    assert len(looks) == 1


class Counter:
    """A game in which each step of the first player is worth one, and of the second costs one."""

    players = ("good", "bad")
    measuring_cost = 3.0

    def __init__(self):
        self.costs = {"good": 1.0, "bad": 1.0, BOTH: 2.0}
        self.value = 0

    def step(self, turn):
        self.value += {"good": 1, "bad": -1, BOTH: 0}[turn]
        return {"good": 0.5, "bad": 0.25}

    def look(self):
        return 1000.0 - self.value, 2000.0 - self.value

    def held_out_losses(self):
        return [group - self.value for group in range(16)]

    def snapshot(self):
        return self.value

    def restore(self, snapshot):
        self.value = snapshot


def test_what_was_tried_is_charged_and_undone():
    game = Counter()
    rule = Trial(candidates=((0, 1), (0,), (1,)), steps=4, start=4, hold=16)
    outcome = Match(game, Schedule(rule=rule), budget=400, num_looks=4).play()
    assert game.value > 100  # the winner trained on
    assert outcome.test == 2000 - game.value
    assert outcome.cost >= 400
    kept = outcome.shares["good"] - outcome.shares.get("bad", 0)
    assert outcome.shares["good"] > 0.9
    assert 0.9 < kept <= 1
    steps_kept = game.value / kept
    assert steps_kept < 400 - 6 * game.measuring_cost  # others were tried, and measured


def test_a_trial_that_the_end_interrupts_is_undone():
    game = Counter()
    rule = Trial(candidates=((0,), (1,)), steps=100, start=10, hold=40)
    outcome = Match(game, Schedule(rule=rule), budget=50, num_looks=2).play()
    assert game.value == 10
    assert outcome.curve[-1].test == 1990


def trained(rule, losses, num_steps):
    """Who trains in each step under losses of the first and the second player."""
    game, seen = Counter(), []

    def step(turn):
        seen.append(turn[0])
        return {"good": losses[len(seen) - 1][0], "bad": losses[len(seen) - 1][1]}

    game.step = step
    Match(game, Schedule(rule=rule, signal="losses"), budget=num_steps, num_looks=1).play()
    return "".join(seen)


def test_the_loss_that_changes_faster_trains():
    losses = [(1.0, 1.0), (2.0, 1.1), (2.1, 2.0), (2.1, 4.0), (2.1, 4.0)]
    assert trained(LossChangeRate(first=0, second=1), losses, 5) == "gbgbb"


def test_a_player_trains_until_its_loss_is_low_and_then_the_other_once():
    assert trained(UntilLow(module=0, limit=0.5), [(0.9, 0), (0.6, 0), (0.4, 0), (0.3, 0), (0.9, 0)], 5) == "gggbg"


def test_shares_are_drawn():
    drawn = trained(RandomShares(shares=(3, 1), seed=0), [(0.0, 0.0)] * 400, 400)
    assert 0.65 < drawn.count("g") / 400 < 0.85
    assert trained(Cycle((3, 1)), [(0.0, 0.0)] * 8, 8) == "gggbgggb"


@pytest.mark.parametrize("examples", [digits(), ring()])
def test_features_see_what_is_drawn_badly(examples):
    """Held-out and test examples are alike; noise, and examples of one kind alone, are not."""
    alike = frechet_distance(examples.held_out_NF, examples.test_NF)
    noise = np.random.default_rng(0).uniform(-1, 1, (400, examples.train_NI.shape[1]))
    nearest = np.argsort(np.square(examples.train_NI - examples.train_NI[0]).sum(axis=1))[:100]
    collapsed = frechet_distance(examples.features(examples.train_NI[nearest]), examples.test_NF)
    assert frechet_distance(examples.features(noise), examples.test_NF) > 10 * alike
    assert collapsed > 5 * alike
    assert energy_distance(examples.features(noise), examples.test_NF) > 0.5
    assert abs(energy_distance(examples.held_out_NF, examples.test_NF)) < 0.1
