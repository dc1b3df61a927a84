"""The two sentences at the end of a run."""

from alternator.recordings.log import StepRecord
from ur4rec.runs.measurements import Measurement
from ur4rec.runs.verdict import explain_decisions
from ur4rec.schedule.stages import TURNS


def joint(*turns, reason="pays"):
    """A joint stage in which these turns trained, one step each."""
    following = (*turns[1:], turns[-1])
    return [
        StepRecord(step, "joint_finetune", turn, after, reason, 0.0, 0.0, {})
        for step, (turn, after) in enumerate(zip(turns, following, strict=True), 1)
    ]


def measured(step, module, payoff):
    return Measurement(step, "both", module, payoff, 0.3, 0.1, 0.9945)


def test_modules_that_always_paid():
    measurements = [measured(20, "sasrec", 0.9), measured(20, "retriever", 0.5), measured(40, "retriever", 0.44)]
    assert explain_decisions("payoff", joint(*["both"] * 50), measurements) == (
        "Payoff trained both modules in 50 of 50 joint steps (100%), with no switch. In all 2 measurements each "
        "module's training paid more than 30% of what both together paid per unit of cost (closest: the retriever "
        "after step 40, 1.4 standard errors above that limit)."
    )
    assert "In its only measurement each" in explain_decisions("payoff", joint("both"), measurements[:1])


def test_a_module_that_paid_too_little_once():
    told = explain_decisions("payoff", joint("both"), [measured(20, "sasrec", 0.9), measured(40, "retriever", 0.1)])
    assert told.endswith(
        "In 2 measurements no module's training surely paid less than 30% of what both together paid per unit of cost "
        "2 times in a row (lowest: the retriever after step 40, 2.0 standard errors below that limit, where 1.0 count)."
    )


def test_a_module_that_was_left_out():
    measurements = [measured(1, "retriever", 0.1), measured(2, "retriever", 0.1), measured(2, "sasrec", 0.9)]
    told = explain_decisions("payoff,share=0.5", joint("both", "both", "sasrec", "sasrec"), measurements)
    assert told == (
        "Payoff trained both modules in 2 of 4 joint steps (50%) and SASRec in 2 (50%), with 1 switch. A module is "
        "left out once it surely pays less than 50% of what both together paid per unit of cost, 2 times in a row; in "
        "2 measurements of joint training that was so for: the retriever in 2."
    )


def test_a_stage_that_was_too_short_to_measure():
    assert "It had not measured" in explain_decisions("payoff", joint("both"), ())


def test_a_stage_that_was_too_short_for_a_trial():
    told = explain_decisions("trial", joint("both", "both", reason="tried"), (), ())
    assert told.endswith("No trial came to an end: that takes more steps; 2 steps were on trial.")


def test_other_rules_name_their_reasons():
    records = joint("sasrec", "retriever", "sasrec", reason="scheduled")
    assert explain_decisions("parity", records, ()) == (
        "Cycle trained SASRec in 2 of 3 joint steps (67%) and the retriever in 1 (33%), with 2 switches. It switched "
        "because: scheduled (2); its most frequent reason to stay was: scheduled (1)."
    )
    told = explain_decisions("trend", joint("sasrec", "sasrec", reason="improving"), ())
    assert told.endswith("with no switch. Its most frequent reason to stay was: still improving (2).")


def test_where_nothing_was_decided_it_says_so():
    records = [record._replace(stage="end_to_end") for record in joint("both")]
    for schedule in ("joint", "payoff"):
        assert explain_decisions(schedule, records, ()).startswith(f"Schedule {schedule} decided nothing")


def test_every_turn_of_three_modules_has_a_name():
    told = explain_decisions("sequence:(('all', 1), ('both', 7))", joint(*TURNS, reason="scheduled"), ())
    assert "all modules in 1 (14%)" in told
    assert "SASRec with the text encoder in 1 (14%)" in told
