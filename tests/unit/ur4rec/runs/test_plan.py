"""Which epoch comes next: stages end at their last epoch, or when validation has not been better for long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ur4rec.runs.config import RunConfig
from ur4rec.runs.plan import TABLE_ROWS, Plan
from ur4rec.schedule.stages import STAGES


def metrics(stage, quality):
    """Validation of a stage, in which other scorers are better and better."""
    criterion, rows = TABLE_ROWS[stage]
    return {scorer: {"ndcg@10": quality if scorer == criterion else 0.9} for scorer in rows}


def walk(config, qualities):
    """(stage, epoch in it, validated) of each epoch of a run whose validations have these qualities."""
    plan, qualities = Plan(config=config), iter(qualities)
    while (stage := plan.stage) is not None:
        validated = plan.is_validated
        yield stage, plan.stage_epoch, validated
        plan = plan.after(metrics(stage, next(qualities)) if validated else {})


def stage_by_hand(num_epochs, every, patience, qualities):
    """Which epochs of a stage are validated, until it ends."""
    seen = []
    for epoch in range(num_epochs):
        validated = (epoch + 1) % every == 0 or epoch + 1 == num_epochs
        yield validated
        if validated:
            seen.append(next(qualities))
            if patience is not None and len(seen) - 1 - seen.index(max(seen)) >= patience:
                return


@given(
    st.tuples(*[st.integers(0, 7)] * 4).filter(any),
    st.integers(1, 4),
    st.none() | st.integers(1, 3),
    st.lists(st.integers(0, 3), min_size=28, max_size=28),
)
def test_a_run_goes_through_its_stages_as_they_end(nums, every, patience, qualities):
    epochs = dict(zip(STAGES, nums, strict=True))
    found = list(walk(RunConfig(epochs=epochs, eval_every=every, early_stopping=patience), qualities))
    values = iter(qualities)
    expected = [
        (stage, epoch, validated)
        for stage, num in epochs.items()
        for epoch, validated in enumerate(stage_by_hand(num, every, patience, values))
    ]
    assert found == expected


def test_a_value_that_is_as_good_is_not_better():
    config = RunConfig(epochs={"end_to_end": 9}, early_stopping=2)
    assert len(list(walk(config, [0.1, 0.2, 0.2, 0.2, 0.3]))) == 4


@pytest.mark.parametrize(("done", "left"), [(0, {"pretrain_sasrec": 2, "end_to_end": 3}), (2, {"end_to_end": 3})])
def test_what_remains_is_known_stage_by_stage(done, left):
    plan = Plan(config=RunConfig(epochs={"pretrain_sasrec": 2, "joint_finetune": 0, "end_to_end": 3}))
    for _ in range(done):
        plan = plan.after(metrics(plan.stage, 0.1))
    assert plan.remaining == left
