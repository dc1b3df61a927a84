"""The report: one table of regrets for all domains, and one of all arms for each."""

from collections.abc import Sequence
from typing import Any

from ur4rec.evaluation.intervals import Interval

from ._regret import ArmSummary, DomainSummary

TITLE = "Where does deciding pay?"
KIND_NAMES = {
    "joint": "joint",
    "fixed": "fixed schedule",
    "random": "matched random",
    "published": "published method",
    "ours": "rule",
}
INTRODUCTION = """\
Every arm of a domain spends the same, trials and probes included; {seeds}. Each run is tested at the point that its
held-out data choose. *Best fixed*: the arm of the grid (joint training, where the domain allows it, and all fixed
schedules) with the best held-out metric, its mean over seeds; finding it costs a run of each arm of the grid, times
the number of seeds that it takes to tell them apart. Regret: how much worse than it an arm is on test data, in percent
of its value, negative where the arm is better; second line: how much better than joint training. In brackets: 95%
intervals of paired differences, Student's t over seeds. **Bold**: the interval lies wholly above 0, so that the arm
loses there. Rules have their defaults. Where held-out data give no signal, the domain's name is in parentheses."""


def render(summaries: Sequence[DomainSummary], about: dict[str, Any]) -> str:
    """All as Markdown."""
    counts = sorted({len(each.seeds) for each in summaries})
    seeds = " or ".join(map(str, counts)) + " seeds"
    where = f"`{about['command']}`, {about['processor']}, {about['date']}, commit `{about['commit']}`."
    lines = [f"# {TITLE}", "", where, "", INTRODUCTION.format(seeds=seeds), "", *regret_table(summaries), ""]
    for summary in summaries:
        lines += [*domain_section(summary), ""]
    return "\n".join(lines)


def columns(summaries: Sequence[DomainSummary]) -> list[str]:
    """The rules, those of most domains first."""
    rules = [each.arm for summary in summaries for each in summary.arms if each.kind == "ours"]
    return sorted(set(rules), key=lambda rule: (-rules.count(rule), rule))


def regret_table(summaries: Sequence[DomainSummary]) -> list[str]:
    """A row per domain: what the best fixed schedule is, what the grid costs, and the regret of every rule."""
    rules = columns(summaries)
    header = ["domain", "metric", "best fixed", "grid's compute", "joint", "random", "published", *rules]
    rows = [header, ["---"] * len(header)]
    for summary in summaries:
        facts, best = summary.facts, summary.arm(summary.best)
        assert best is not None
        first = {kind: next((each for each in summary.arms if each.kind == kind), None) for kind in KIND_NAMES}
        rows.append(
            [
                facts.name if facts.has_signal else f"({facts.name})",
                f"{facts.metric} {'↑' if facts.higher_is_better else '↓'}",
                f"{best.arm}: {best.test_S.mean():.3g}",
                f"{summary.grid_size} × {facts.budget:.4g} {facts.unit}",
                _cell(first["joint"], is_named=False),
                _cell(first["random"], is_named=False),
                _cell(first["published"]),
                *(_cell(summary.arm(rule), is_named=False) for rule in rules),
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(arm: ArmSummary | None, is_named: bool = True) -> str:
    """An arm's regret and its difference to joint training."""
    if arm is None:
        return ""
    regret = _interval(arm.regret)
    cell = f"**{regret}**" if arm.regret.low > 0 else regret
    if is_named:
        cell = f"{arm.arm}: {cell}"
    return cell if arm.from_joint is None or arm.kind == "joint" else f"{cell}<br>joint {_interval(arm.from_joint)}"


def _interval(interval: Interval) -> str:
    return f"{interval.estimate:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def domain_section(summary: DomainSummary) -> list[str]:
    """All arms of a domain."""
    facts = summary.facts
    header = ["arm", "kind", "test", "held out", "regret", "better than joint", "seconds", "who trained"]
    lines = [
        f"## {facts.name}",
        "",
        f"{facts.question} {facts.metric[:1].upper()}{facts.metric[1:]}, "
        f"{'higher' if facts.higher_is_better else 'lower'} is better; "
        f"{facts.budget:.4g} {facts.unit} each; seeds {', '.join(map(str, summary.seeds))}.",
        "",
        f"| {' | '.join(header)} |",
        f"| {' | '.join(['---'] * len(header))} |",
    ]
    notes = [f"*{each.arm}*: {each.note}." for each in summary.arms if each.note]
    lines += [f"| {' | '.join(_row(summary, each))} |" for each in summary.arms]
    return [*lines, "", " ".join(notes)] if notes else lines


def _row(summary: DomainSummary, arm: ArmSummary) -> list[str]:
    kind = KIND_NAMES[arm.kind]
    if arm.kind in ("joint", "fixed") and not arm.in_grid:
        kind += ", not allowed here"
    spread = arm.test_S.std(ddof=len(arm.test_S) > 1)
    shares = ", ".join(f"{turn} {share:.0%}" for turn, share in arm.shares.items() if share >= 0.005)
    return [
        f"**{arm.arm}** (best fixed)" if arm.arm == summary.best else arm.arm,
        kind,
        f"{arm.test_S.mean():.4g} ± {spread:.2g}",
        f"{arm.held_out_S.mean():.4g}",
        _interval(arm.regret),
        "" if arm.from_joint is None or arm.kind == "joint" else _interval(arm.from_joint),
        f"{arm.seconds:.1f}",
        shares,
    ]


def to_json(summaries: Sequence[DomainSummary], about: dict[str, Any]) -> dict[str, Any]:
    """All figures of the report."""
    return {"about": about, "domains": [_domain_json(summary) for summary in summaries]}


def _domain_json(summary: DomainSummary) -> dict[str, Any]:
    arms = [
        {
            **{name: getattr(each, name) for name in ("arm", "kind", "in_grid", "note", "shares", "seconds")},
            "test": each.test_S.tolist(),
            "held_out": each.held_out_S.tolist(),
            "regret": each.regret._asdict(),
            "better_than_joint": None if each.from_joint is None else each.from_joint._asdict(),
        }
        for each in summary.arms
    ]
    facts = vars(summary.facts)
    return {**facts, "seeds": summary.seeds, "best_fixed": summary.best, "grid_size": summary.grid_size, "arms": arms}
