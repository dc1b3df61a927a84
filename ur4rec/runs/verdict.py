"""What a run's schedule decided and why, in two sentences made from its logs."""

from collections import Counter
from collections.abc import Sequence

from alternator import Payoff, Reason, Trial
from alternator.reasons import label
from alternator.recordings.log import StepRecord
from ur4rec.runs.attempts import kept_steps
from ur4rec.runs.measurements import Measurement
from ur4rec.schedule.alternators import parse_schedule
from ur4rec.schedule.stages import ALL, BOTH, DECIDING_STAGE, TEXT_ENCODER
from ur4rec.schedule.trial_probe import WINS, Attempt

NAMES = {
    "sasrec": "SASRec",
    "retriever": "the retriever",
    BOTH: "both modules",
    TEXT_ENCODER: "the text encoder",
    f"sasrec+{TEXT_ENCODER}": "SASRec with the text encoder",
    f"retriever+{TEXT_ENCODER}": "the retriever with the text encoder",
    ALL: "all modules",
}
"""Of turns."""


def explain_decisions(
    schedule: str,
    records: Sequence[StepRecord],
    measurements: Sequence[Measurement],
    attempts: Sequence[Attempt] = (),
) -> str:
    """Who trained in how many joint steps, and why.

    Args:
        schedule: The schedule of the run; see `ur4rec.schedule.alternators`.
        records: The decision log.
        measurements: What a `Payoff` schedule has measured; empty for every other one.
        attempts: What a `Trial` schedule has tried; empty for every other one.

    Example:
        >>> hold = StepRecord(1, "joint_finetune", "sasrec", "sasrec", "changing", 0.02, 0.01, {})
        >>> switch = hold._replace(step=2, next="retriever", reason="steady", value=0.001)
        >>> print(explain_decisions("plateau", [hold, switch], ()))
        Plateau trained SASRec in 2 of 2 joint steps (100%), with 1 switch. It switched because: change rate <
        threshold (1); its most frequent reason to stay was: change rate ≥ threshold (1).
    """
    rule = parse_schedule(schedule).rule
    joint = [record for record in records if record.stage == DECIDING_STAGE]
    if not joint or rule is None:
        return f"Schedule {schedule} decided nothing: no step of the run chose who trains."
    if isinstance(rule, Payoff):
        why = _explain_payoffs(rule, joint, measurements)
    else:
        why = _explain_trials(joint, attempts, records) if isinstance(rule, Trial) else _explain_switches(joint)
    return f"{type(rule).__name__} trained {_describe_shares(joint)}, with {_count_switches(joint)}. {why}"


def _describe_shares(joint: Sequence[StepRecord]) -> str:
    """``both modules in 590 of 610 joint steps (97%) and SASRec in 20 (3%)``."""
    counts = Counter(record.active for record in joint).most_common()
    (first, most), *others = counts
    parts = [f"{NAMES[first]} in {most} of {len(joint)} joint steps ({most / len(joint):.0%})"]
    parts += [f"{NAMES[turn]} in {count} ({count / len(joint):.0%})" for turn, count in others]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _count_switches(joint: Sequence[StepRecord]) -> str:
    count = sum(record.next != record.active for record in joint)
    return "no switch" if count == 0 else f"{count} switch{'' if count == 1 else 'es'}"


def _explain_switches(joint: Sequence[StepRecord]) -> str:
    switches = Counter(record.reason for record in joint if record.next != record.active).most_common()
    holds = Counter(record.reason for record in joint if record.next == record.active).most_common(1)
    stay = "; ".join(f"its most frequent reason to stay was: {label(reason)} ({count})" for reason, count in holds)
    if not switches:
        return f"{stay[0].upper()}{stay[1:]}."
    because = ", ".join(f"{label(reason)} ({count})" for reason, count in switches)
    return f"It switched because: {because}{'; ' if stay else ''}{stay}."


def _explain_trials(joint: Sequence[StepRecord], attempts: Sequence[Attempt], records: Sequence[StepRecord]) -> str:
    num_trials = sum(record.reason in (Reason.TRIED_BETTER, Reason.TRIED_NO_BETTER) for record in joint)
    on_trial = sum(record.reason not in (Reason.UNTIL_TRIAL, Reason.UNMEASURED) for record in joint)
    winners = [attempt.candidate for attempt in attempts if attempt.outcome == WINS]
    found = f"better was: {', then '.join(winners)}" if winners else "nothing was better than what it had begun with"
    if num_trials == 0:
        return f"No trial came to an end: that takes more steps; {on_trial} steps were on trial."
    num_undone = len(joint) - len(kept_steps(joint[0].step - 1, joint[-1].step, attempts, records))
    return (
        f"{num_trials} trial{'' if num_trials == 1 else 's'} came to an end; {on_trial} steps were on trial, and "
        f"{num_undone} of them undone; {found}."
    )


def _explain_payoffs(rule: Payoff, joint: Sequence[StepRecord], measurements: Sequence[Measurement]) -> str:
    of_joint = [each for each in measurements if each.active == BOTH]
    if not of_joint:
        return "It had not measured what the modules' training pays when the stage ended: that takes more steps."
    looks = len({each.step for each in of_joint})
    lowest = min(of_joint, key=lambda each: each.margin)
    paid_less = [each for each in of_joint if each.margin < 0]
    where = f"{NAMES[lowest.module]} after step {lowest.step}"
    share = f"{rule.share:.0%} of what both together paid per unit of cost"
    measured = f"{looks} measurement{'' if looks == 1 else 's'}"
    if any(record.next != record.active for record in joint):
        less = Counter(each.module for each in of_joint if each.margin < -rule.z)
        found = ", ".join(f"{NAMES[module]} in {count}" for module, count in less.most_common()) or "no module"
        return (
            f"A module is left out once it surely pays less than {share}, {rule.confirmations} times in a row; "
            f"in {measured} of joint training that was so for: {found}."
        )
    if not paid_less:
        return (
            f"In {'its only' if looks == 1 else f'all {looks}'} measurement{'' if looks == 1 else 's'} each module's "
            f"training paid more than {share} (closest: {where}, {lowest.margin:.1f} standard errors above that limit)."
        )
    return (
        f"In {measured} no module's training surely paid less than {share} {rule.confirmations} times in a row "
        f"(lowest: {where}, {-lowest.margin:.1f} standard errors below that limit, where {rule.z:.1f} count)."
    )
