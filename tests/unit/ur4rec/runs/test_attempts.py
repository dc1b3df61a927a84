"""What a Trial schedule tried and undid: its log, and what is said of it."""

from math import nan

import pytest

from alternator.recordings.log import StepRecord
from ur4rec.runs.attempts import read_attempts, write_attempts
from ur4rec.runs.verdict import explain_decisions
from ur4rec.schedule.trial_probe import STAYS, UNDONE, WINS, Attempt

TRIED = [
    Attempt(120, 101, "sasrec + 8 retriever", 4.5, UNDONE),
    Attempt(140, 121, "both", 4.6, STAYS),
    Attempt(141, 121, "sasrec + 8 retriever", nan, WINS),
]


def test_a_log_is_read_as_it_was_written():
    content = write_attempts(TRIED, header=True)
    assert content.splitlines()[:2] == [
        "step,first,candidate,loss,outcome",
        "120,101,sasrec + 8 retriever,4.5,undone",
    ]
    assert repr(read_attempts(content)) == repr(TRIED)


@pytest.mark.parametrize("row", ["1,1,both,4.5,lost", "1,1,both", "x,1,both,4.5,undone"])
def test_a_damaged_log_is_refused(row):
    with pytest.raises((ValueError, LookupError)):
        read_attempts(f"step,first,candidate,loss,outcome\n{row}\n")


def test_a_verdict_says_what_was_tried_and_undone():
    def record(step, reason, active="both"):
        return StepRecord(step, "joint_finetune", active, active, reason, 1.0, 2.0, {})

    records = [record(step, "until_trial") for step in range(1, 101)]
    records += [record(step, "tried") for step in range(101, 141)] + [record(141, "tried_better")]
    records += [record(step, "until_trial", "retriever") for step in range(142, 151)]
    said = explain_decisions("trial", records, (), TRIED)
    assert said.endswith(
        "1 trial came to an end; 41 steps were on trial, and 21 of them undone; better was: sasrec + 8 retriever."
    )
    lost = [*records[:140], record(141, "tried_no_better")]
    said = explain_decisions("trial", lost, (), TRIED[:2])
    assert said.endswith(
        "41 steps were on trial, and 20 of them undone; nothing was better than what it had begun with."
    )


def test_steps_before_a_round_of_halving_are_undone_too():
    """The incumbent's, which no attempt says: the next round begins where the trial did."""
    reasons = {**dict.fromkeys(range(1, 31), "tried"), 31: "halved", **dict.fromkeys(range(32, 71), "tried")}
    records = [
        StepRecord(step, "joint_finetune", "both", "both", reason, 1.0, 2.0, {})
        for step, reason in {**reasons, 71: "tried_no_better"}.items()
    ]
    tried = [
        *(Attempt(10, 1, "sasrec", 4.5, UNDONE), Attempt(20, 11, "retriever", 4.4, UNDONE)),
        *(
            Attempt(30, 21, "both", 4.6, STAYS),
            Attempt(51, 32, "retriever", 4.4, UNDONE),
            Attempt(71, 52, "both", 4, STAYS),
        ),
    ]
    assert "71 steps were on trial, and 51 of them undone" in explain_decisions("trial", records, (), tried)
