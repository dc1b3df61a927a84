import pytest

from ur4rec.compare.budget import Ledger, describe_turns
from ur4rec.runs.step_costs import StepCosts, with_costs
from ur4rec.schedule.alternators import parse_schedule, trial_turns
from ur4rec.schedule.stages import MODULES, TEXT_ENCODER, TURNS

COSTS = StepCosts(
    first={"sasrec": 3.0, "retriever": 1.0, "both": 3.5}, later={"sasrec": 2.0, "retriever": 1.0, "both": 3.5}
)


def spend(ledger, turns, part=1.0):
    """Charge turns in a cycle as long as they fit."""
    while ledger.fits(turn := turns[len(ledger.turns) % len(turns)], part):
        ledger.charge(turn)
    return ledger


def test_a_step_of_both_is_two_updates():
    ledger = spend(Ledger(10, COSTS, "updates"), ["both"])
    assert (len(ledger.turns), ledger.updates, ledger.cost) == (5, 10, 5 * 3.5)


@pytest.mark.parametrize("basis", ["updates", "cost"])
def test_parity_spends_both_budgets_at_the_same_step(basis):
    ledger = spend(Ledger(11, COSTS, basis), ["sasrec", "retriever"])
    assert len(ledger.turns) == 11
    assert ledger.budget == {"updates": ledger.updates, "cost": ledger.cost}
    assert ledger.progress == 1


def test_the_first_step_of_a_tenure_has_its_own_price():
    ledger = Ledger(10, COSTS, "cost")
    for turn in ["sasrec", "sasrec", "sasrec", "retriever", "sasrec"]:
        ledger.charge(turn)
    assert ledger.cost == 3 + 2 + 2 + 1 + 3


@pytest.mark.parametrize("turns", [["both"], ["sasrec", "sasrec", "retriever"], ["retriever"]])
def test_a_budget_of_cost_is_kept_to_half_a_step(turns):
    ledger = spend(Ledger(50, COSTS, "cost"), turns)
    assert abs(ledger.cost - ledger.budget["cost"]) <= 3.5 / 2
    assert ledger.progress == pytest.approx(1, abs=0.02)


def test_parts_of_a_budget_add_up():
    ledger = Ledger(12, COSTS, "updates")
    assert [spend(ledger, ["sasrec"], part).updates for part in (0.25, 0.5, 1.0)] == [3, 6, 12]


def test_turns_are_described():
    turns = ["sasrec"] * 4 + ["both"] * 2 + ["retriever"] + ["sasrec"]
    described = describe_turns(turns)
    assert described["shares"] == {"sasrec": 0.7, "retriever": 0.3}
    assert described["turn_steps"] == {"sasrec": 5, "retriever": 1, "both": 2}
    assert (described["switches"], described["mean_tenure"], described["steps"]) == (3, 2.0, 8)
    assert sum(length for _, length in described["tenures"]) == 8
    assert describe_turns([])["mean_tenure"] == 0


def test_a_trial_is_given_what_steps_of_three_modules_and_switches_between_them_cost():
    costs = {turn: 2.0 + len(TURNS[turn]) for turn in TURNS}
    measured = StepCosts(first={**costs, "sasrec": costs["sasrec"] + 1}, later=costs, refresh=4.0)
    rule = parse_schedule(with_costs("trial", measured)).rule
    turns = trial_turns((*MODULES, TEXT_ENCODER))
    assert rule.costs == tuple(round(costs[turn] / 4, 3) for turn in turns)
    assert dict(zip(turns, rule.switch_costs, strict=True)) == {
        turn: 0.25 if turn == "sasrec" else float(TEXT_ENCODER in TURNS[turn]) for turn in turns
    }
    assert with_costs("trial,costs=(1, 2, 3)", measured) == "trial,costs=(1, 2, 3)"
