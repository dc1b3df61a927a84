"""Schedules by name."""

import numpy as np
import pytest

from alternator import Alternator, AlternatorError, Cycle, Payoff, Plateau, RandomTenure, StateError, Trial
from ur4rec.config import TrainerConfig
from ur4rec.schedule.alternators import (
    STEP_COSTS,
    TRIAL_SETTINGS,
    TurnSequence,
    build_alternator,
    parse_schedule,
    resolve_schedule,
)
from ur4rec.schedule.stages import MODULES, TEXT_ENCODER, find_stage, turns_of


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("adaptive", Plateau()),
        ("adaptive,threshold=0.02", Plateau(threshold=0.02)),
        ("plateau, min_steps=3", Plateau(min_steps=3)),
        ("parity", Cycle(1)),
        ("joint", None),
        ("1:8", Cycle((1, 8))),
        ("random_tenure,mean=12,seed=3", RandomTenure(12, seed=3)),
        ("cycle,steps=(3, 1)", Cycle((3, 1))),
    ],
)
def test_schedules(text, rule):
    schedule = parse_schedule(text)
    assert (schedule.name, schedule.rule) == (text, rule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "adaptiv",
            r"unknown schedule 'adaptiv'; expected one of \('auto', 'adaptive', 'parity', 'joint', 'sasrec', 'retriev",
        ),
        ("parity,threshold=1", "schedule 'parity' has no settings"),
        ("0:1", "steps must be an integer of at least 1, got 0"),
        ("plateau,window=1", "window must be at least 3, got 1"),
        pytest.param("9" * 400 + ":1", r"unknown schedule '999.*\.\.\.'; expected one of", id="huge"),
        pytest.param("9" * 5000 + ":1", r"unknown schedule '999.*\.\.\.'; expected one of", id="enormous"),
        ("sequence:(('both', 0),)", r"a length of at least 1, got \('both', 0\)"),
        pytest.param("sequence:(('both', " + "9" * 400 + "),)", "a length of at least 1, got", id="huge length"),
    ],
)
def test_mistakes_name_the_choices(text, message):
    with pytest.raises(AlternatorError, match=message):
        parse_schedule(text)


def test_a_sequence_is_resumed_only_in_one_of_its_tenures():
    rule = TurnSequence((("both", np.int64(3)), ("sasrec", 2)))
    assert rule == TurnSequence((("both", 3), ("sasrec", 2)))
    alternator = Alternator(rule.turns, rule)
    for _ in range(4):
        alternator.advance()
    state = alternator.state_dict()
    alternator.load_state_dict(state)
    for current in (2, -1, 1.5):
        with pytest.raises(StateError, match="damaged"):
            alternator.load_state_dict({**state, "rule_state": {"current": current}})


def test_a_payoff_schedule_has_costs_and_measures():
    schedule = parse_schedule("payoff,share=0.5")
    assert schedule.rule == Payoff(costs=STEP_COSTS, share=0.5)
    assert parse_schedule("payoff,costs=(3, 2, 1)").rule == Payoff(costs=(3, 2, 1))
    assert schedule.measures
    assert not parse_schedule("parity").measures


@pytest.mark.parametrize(
    ("fusion", "num_targets", "expected"),
    [("logit", 16, "payoff"), ("weighted", 943, "payoff"), ("logit", 15, "joint"), ("rank", 943, "joint")],
)
def test_auto_is_payoff_where_it_can_be_measured(fusion, num_targets, expected):
    assert resolve_schedule("auto", fusion=fusion, num_targets=num_targets) == expected
    assert resolve_schedule("trend", fusion=fusion, num_targets=num_targets) == "trend"
    assert parse_schedule("auto").rule == parse_schedule("payoff").rule


def test_a_trial_schedule_has_settings_for_short_runs_and_measures():
    schedule = parse_schedule("trial,groups=8")
    assert schedule.rule == Trial(**TRIAL_SETTINGS, groups=8)
    assert parse_schedule("trial,steps=30,hold=90").rule == Trial(**{**TRIAL_SETTINGS, "steps": 30, "hold": 90})
    assert schedule.measures


def test_a_trial_begins_without_the_text_encoder_and_tries_it():
    three = (*MODULES, TEXT_ENCODER)
    alternator = build_alternator(find_stage("joint_finetune"), TrainerConfig(), Trial(), three)
    assert alternator.active == "both"
    rule, turns = alternator.rule, alternator.modules
    assert set(turns) == set(turns_of(three))
    assert [turns[turn] for turn in rule.candidates[1]] == ["both"] * 7 + ["all"]
    assert rule.costs[turns.index("all")] > 4 * rule.costs[turns.index("both")]
    own = Trial(candidates=((0,), (1,)), costs=(1.0,) * 7)
    assert build_alternator(find_stage("joint_finetune"), TrainerConfig(), own, three).rule == own


@pytest.mark.parametrize(("refresh", "expected"), [(1.0, (7, 1)), (1.2, (14, 2)), (9.5, (70, 10))])
def test_auto_tries_a_text_encoder_and_trains_it_in_every_eighth_step_where_nothing_can_be_measured(refresh, expected):
    assert resolve_schedule("auto", fusion="logit", num_targets=943, refresh=refresh) == "trial"
    for fusion, num_targets in (("rank", 943), ("logit", 3)):
        text = resolve_schedule("auto", fusion=fusion, num_targets=num_targets, refresh=refresh)
        assert parse_schedule(text).rule == TurnSequence((("both", expected[0]), ("all", expected[1])))
    assert resolve_schedule("trend", fusion="logit", num_targets=943, refresh=refresh) == "trend"


def test_a_module_that_a_sequence_leaves_out_never_trains_and_is_known():
    modules = ("sasrec", "retriever", "text_encoder")
    rule = parse_schedule("sequence:(('both', 2), ('sasrec', 1))").rule
    alternator = build_alternator(find_stage("joint_finetune"), TrainerConfig(), rule, modules)
    assert alternator.modules == ("both", "sasrec", "retriever", "text_encoder")
    assert [alternator.advance().active for _ in range(7)] == [
        "both",
        "sasrec",
        "both",
        "both",
        "sasrec",
        "both",
        "both",
    ]
