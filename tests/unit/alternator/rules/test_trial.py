"""Trial and Trials: every candidate from one snapshot, the best goes on; all is undone, charged, and ever rarer."""

import math

import pytest

from alternator import Alternator, ConfigurationError, Cycle, LossError, Trial, Trials
from alternator.rules.trial import LONGEST, NOBODY

TURNS = ("both", "left", "right")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Trial(candidates=3), "candidates must be a tuple of sequences of turns, got 3"),
        (lambda: Trial(candidates=((0,),)), "candidates must be two or more different sequences of turns"),
        (lambda: Trial(candidates=((0,), (0,))), "candidates must be two or more different sequences of turns"),
        (lambda: Trial(candidates=((0,), ())), "candidates must be two or more different sequences of turns"),
        (lambda: Trial(candidates=((1,), (0,))), "candidates must begin with one that begins with turn 0"),
        (lambda: Trial(candidates=((0,), (-1,))), "candidates must be an integer of at least 0, got -1"),
        (lambda: Trial(costs=(1, 0)), "costs must be a finite number above 0"),
        (lambda: Trial(steps=0), "steps must be an integer of at least 1"),
        (lambda: Trial(hold=2**31), f"hold must be an integer of at most {LONGEST}"),
        (lambda: Trial(start=0), "start must be an integer of at least 1"),
        (lambda: Trial(halvings=-1), "halvings must be an integer of at least 0"),
        (lambda: Trial(confidence=0.5), "confidence must be a number above 0.5 and below 1"),
        (lambda: Trial(switch_costs=(1, 1)), r"switch_costs must be as many as costs.*got \(1, 1\) with None"),
        (lambda: Trial(costs=(1, 1), switch_costs=(1,)), "switch_costs must be as many as costs"),
        (lambda: Trial(groups=1), "groups must be an integer of at least 2"),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_what_does_not_fit_the_turns_is_refused():
    with pytest.raises(ConfigurationError, match="candidates must name turns by their places, 0 to 1, got 2"):
        Alternator(("a", "b"), Trial(candidates=((0,), (2,))))
    with pytest.raises(ConfigurationError, match=r"costs must be one per turn \(2\), got 3"):
        Alternator(("a", "b"), Trial(costs=(1, 2, 3)))


def test_turns_alone_are_sequences_of_one():
    assert Trial(candidates=(0, 1, (0, 1))).candidates == ((0,), (1,), (0, 1))
    assert Trial().sequences(3) == ((0,), (1,), (2,))


class Model:
    """Weights that fall by a tenth in each of their steps, and a held-out loss of them with noise per group."""

    def __init__(self, rule, loss, turns=None):
        self.turns = turns or {"both": ("left", "right"), "left": ("left",), "right": ("right",)}
        self.weights = {"left": 8.0, "right": 8.0}
        self.loss = loss
        self.alternator = Alternator(self.turns, rule)
        self.restored = []
        self.trials = Trials(self.alternator, snapshot=self.snapshot, restore=self.restore, losses=self.losses)

    def snapshot(self):
        return dict(self.weights)

    def restore(self, snapshot):
        self.restored.append(self.alternator.step)
        self.weights = dict(snapshot)

    def losses(self):
        return [self.loss(**self.weights) + group for group in range(self.alternator.rule.groups)]

    def train(self, num_steps):
        decisions = []
        for _ in range(num_steps):
            self.trials.before_step()
            for name in self.turns[self.alternator.active]:
                self.weights[name] -= 0.1
            decisions.append(self.alternator.advance())
        return decisions


def by_left(left, right):
    return left**2 - right


def test_the_candidate_that_is_best_on_held_out_losses_takes_over():
    model = Model(Trial(steps=4, start=4, hold=16, halvings=9, groups=4), by_left)
    decisions = model.train(34)
    assert decisions[16].explain() == "step 17: both → left (the best candidate: inf standard errors > -0.52; tried on)"
    assert decisions[33].explain() == "step 34: both → left (a candidate is better: inf standard errors > 0.52)"
    assert model.restored == [8, 12, 17, 25]  # before a step, of so many that are done
    model.trials.before_step()
    assert model.weights == pytest.approx({"left": 7.6 - 0.8, "right": 7.6})  # on from where the winner's trial ended
    assert model.trials.num_returned == 4 + 4 + 5 + 9
    assert model.trials.num_measurements == 5
    assert model.trials.start is model.trials.kept is None


def test_where_no_candidate_is_better_the_incumbent_trains_on_from_its_own_trial():
    model = Model(Trial(steps=4, start=4, hold=16, halvings=9, groups=4), lambda left, right: left + right)
    decisions = model.train(17)
    assert decisions[16].explain() == "step 17: both trains on (no candidate is better: -inf standard errors ≤ 0.52)"
    assert model.weights == pytest.approx({"left": 8 - 0.9, "right": 8 - 0.9})
    assert model.trials.num_returned == 8
    assert {decision.active for decision in model.train(14)} == {"both"}


def test_without_halving_the_best_of_all_challengers_takes_over_from_where_its_own_trial_ended():
    turns = {"both": ("left", "right"), "right": ("right",), "left": ("left",), "worst": ("right", "right")}
    model = Model(Trial(steps=4, start=1, hold=100, groups=4), by_left, turns)
    decisions = model.train(18)
    assert [decision.step for decision in decisions if decision.switched] == [1, 5, 9, 13, 18]
    assert decisions[-1].explain() == "step 18: both → left (a candidate is better: inf standard errors > 0.52)"
    model.trials.before_step()
    assert model.weights == pytest.approx({"left": 7.9 - 0.4, "right": 7.9})
    assert model.trials.num_returned == 4 + 4 + 4 + 5 - 4
    assert {decision.active for decision in model.train(99)} == {"left"}


def test_of_equal_challengers_the_first_takes_over_and_its_end_is_the_one_kept():
    turns = {"both": ("left", "right"), "left": ("left",), "again": ("left",)}
    model = Model(Trial(steps=2, groups=2), by_left, turns)
    model.train(8)
    assert model.alternator.active == "left"
    model.trials.before_step()
    assert model.weights == pytest.approx({"left": 7.9 - 0.2, "right": 7.9})


def test_losses_that_are_equal_change_nothing():
    model = Model(
        Trial(steps=4, start=4, hold=16, halvings=9, groups=4, candidates=((0,), (1,))), lambda left, right: 1.0
    )
    last = model.train(13)[-1]
    assert last.explain() == "step 13: both trains on (no candidate is better: 0.00 standard errors ≤ 0.52)"


def test_a_candidate_that_diverges_loses():
    model = Model(
        Trial(steps=4, start=4, hold=16, halvings=9, groups=4),
        lambda left, right: math.nan if right > left else left + 9,
    )
    decisions = model.train(60)
    assert decisions[16].reason == "tried_no_better"
    assert decisions[-1].active == "both"


def test_trials_become_longer_and_rarer():
    rule = Trial(steps=4, start=10, hold=40, halvings=9, groups=4, candidates=((0,), (1,)))
    model = Model(rule, lambda left, right: left + right)
    starts = [decision.step for decision in model.train(700) if decision.switched and decision.active == "left"]
    assert starts == [10, 10 + 8 + 40, 10 + 8 + 40 + 16 + 160]


def test_candidates_train_at_the_same_cost():
    rule = Trial(steps=6, start=6, hold=24, halvings=9, groups=2, costs=(3.0, 1.0, 2.0))
    model = Model(rule, lambda left, right: left + right)
    actives = [decision.previous for decision in model.train(6 + 18 + 9 + 6)]
    assert actives == ["both"] * 6 + ["left"] * 18 + ["right"] * 9 + ["both"] * 6


def test_what_beginning_a_turn_costs_is_paid_each_time_a_sequence_repeats():
    turns = {"costs": (2.0, 1.0, 1.0), "switch_costs": (9.0, 0.0, 8.0)}
    rule = Trial(candidates=((0,), (1,), (1, 1, 1, 2)), steps=6, **turns)
    assert [rule.relative_cost(candidate, 3) for candidate in range(3)] == [1.0, 2.0, 2 / (12 / 4)]
    assert rule.length(rule.init(3)._replace(rung=0, candidate=2), 3) == 4


def test_an_order_and_a_share_are_found():
    rule = Trial(candidates=((0,), (1, 1, 1, 2)), steps=8, start=4, hold=16, halvings=9, groups=4)
    model = Model(rule, lambda left, right: 3 * left + (right - 7.7) ** 2)
    model.train(4 + 8 + 8 + 1)
    assert [decision.previous for decision in model.train(8)] == ["left", "left", "left", "right"] * 2


def test_more_losses_than_groups_are_averaged_in_parts():
    alternator = Alternator(TURNS, Trial(steps=1, start=1, hold=4, halvings=9, groups=2))
    trials = Trials(alternator, snapshot=dict, restore=lambda _: None, losses=lambda: [1.0, 3.0, 5.0, 7.0, 9.0])
    for _ in range(3):
        trials.before_step()
        alternator.advance()
    assert alternator.loss_history("both") == [2.0, 7.0]


def test_too_few_losses_and_other_rules_are_refused():
    with pytest.raises(ConfigurationError, match="trials need an alternator with a Trial rule, got Cycle"):
        Trials(Alternator(TURNS, Cycle()), snapshot=dict, restore=print, losses=list)
    alternator = Alternator(TURNS, Trial(steps=1, start=1, hold=4, halvings=9, groups=2))
    trials = Trials(alternator, snapshot=dict, restore=print, losses=lambda: [1.0])
    for _ in range(2):
        trials.before_step()
        alternator.advance()
    with pytest.raises(LossError, match="there must be 2 held-out losses at least, the rule's groups, got 1"):
        trials.before_step()


def test_without_measurements_the_first_candidate_trains_on_and_trials_are_named_once():
    alternator = Alternator(TURNS, Trial(steps=2, start=3, hold=12, halvings=9, groups=2))
    with pytest.warns(
        UserWarning, match="the trial that ended with step 10 lacks them.*call its before_step"
    ) as warned:
        decisions = [alternator.advance() for _ in range(60)]
    assert len(warned) == 1
    assert warned[0].filename == __file__
    decisions = decisions[:30]
    assert [each.reason for each in decisions].count("unmeasured") == 1
    assert decisions[9].explain() == "step 10: both trains on (not measured: 0 of 2 payoffs recorded)"
    assert alternator.rule_state.incumbent == 0


def test_one_that_is_not_measured_is_out():
    alternator = Alternator(("a", "b"), Trial(steps=1, start=1, hold=4, halvings=9, groups=2))
    alternator.advance()
    alternator.advance()  # b is tried, and not measured
    alternator.advance()
    for _ in range(2):
        alternator.record("a", 1.0)
    with pytest.warns(UserWarning, match="nothing was compared"):
        assert alternator.advance().reason == "unmeasured"


def test_looking_twice_before_a_step_is_looking_once():
    model = Model(Trial(steps=1, start=1, hold=4, halvings=9, groups=2), by_left)
    for _ in range(40):
        model.trials.before_step()
        model.train(1)
    measured, returned = model.trials.num_measurements, model.trials.num_returned
    model = Model(Trial(steps=1, start=1, hold=4, halvings=9, groups=2), by_left)
    model.train(40)
    assert (measured, returned) == (model.trials.num_measurements, model.trials.num_returned)


@pytest.mark.parametrize("stop", [6, 26, 30])  # in the first rung, with the challenger that wins kept, on the way
def test_a_trial_resumes_from_its_snapshots(stop):
    whole, first = (Model(Trial(steps=4, start=4, hold=16, halvings=9, groups=4), by_left) for _ in range(2))
    expected = whole.train(60)
    first.train(stop)
    assert (first.trials.kept is None) == (stop == 6)
    second = Model(Trial(steps=4, start=4, hold=16, halvings=9, groups=4), by_left)
    second.alternator.load_state_dict(first.alternator.state_dict())
    second.weights = dict(first.weights)
    second.trials = Trials(
        second.alternator,
        snapshot=second.snapshot,
        restore=second.restore,
        losses=second.losses,
        start=first.trials.start,
        kept=first.trials.kept,
    )
    assert second.train(60 - stop) == expected[stop:]
    assert second.weights == whole.weights


def test_a_trial_that_began_without_trials_is_measured_and_not_undone():
    model = Model(Trial(steps=2, start=2, groups=2), by_left)
    for _ in range(4):
        model.alternator.advance()
    model.train(2)
    assert model.trials.num_measurements == 1
    assert model.restored == []


def test_skipped_steps_do_not_count():
    alternator = Alternator(TURNS, Trial(steps=2, start=2, hold=8, halvings=9, groups=2))
    for _ in range(9):
        assert alternator.advance(updated=False).active == "both"
    assert alternator.rule_state.rung == NOBODY
