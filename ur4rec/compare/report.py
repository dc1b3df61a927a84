"""The report of a study: Markdown, the same as one self-contained page, the numbers as JSON, and the plots."""

import base64
import html
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from alternator.checks import printable
from ur4rec.compare.arms import PARITY
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.plots import draw_curves, draw_forest, draw_turns
from ur4rec.compare.study import StudyConfig
from ur4rec.compare.summary import summarise_study
from ur4rec.evaluation.intervals import LEVEL, NUM_RESAMPLES
from ur4rec.files import write_whole
from ur4rec.runs.plot import NAMES
from ur4rec.schedule.stages import MODULES

BASIS_TITLES = {"cost": "At equal cost", "updates": "At equal module updates"}
METRIC_NAMES = {"ndcg@10": "NDCG@10", "hit@10": "Hit@10", "nll": "NLL"}
REFERENCES = {
    "parity": "parity",
    "tuned": "the tuned ratio",
    "joint": "joint training",
    "matched": "its random control",
    "shuffled": "its own tenures in another order",
}


def write_report(
    directory: StudyDirectory, prefix: Path | None = None, command: str | None = None, *, brief: bool = False
) -> str:
    """Write ``PREFIX.md``, ``.html``, ``.json`` and the plots from whatever runs are finished.

    Args:
        directory: The study.
        prefix: Where, without an ending; by default ``report`` in the directory.
        command: What a reader runs to get the same; by default `ur4rec compare` with the study's settings.
        brief: For a repository that keeps the runs: no page of HTML, and JSON on one line, of five significant digits,
            without the curves, which are in the runs.

    Returns:
        The Markdown.

    Raises:
        DataError: Parity has no finished run yet.
    """
    prefix = directory.path / "report" if prefix is None else prefix
    prefix.parent.mkdir(parents=True, exist_ok=True)
    summary = {"command": command or compare_command(directory.study), **summarise_study(directory)}
    plots = {
        "quality": (draw_curves(summary), "Validation quality against what was spent, mean over seeds"),
        "turns": (draw_turns(directory), "Who trained when"),
        "forest": (
            draw_forest(summary),
            "Differences against parity, the tuned ratio and joint training, with their intervals",
        ),
    }
    for name, (picture, _) in plots.items():
        write_whole(prefix.with_name(f"{prefix.name}-{name}.png"), picture)
    text = render_markdown(summary, {f"{prefix.name}-{name}.png": title for name, (_, title) in plots.items()})
    pictures = {f"{prefix.name}-{name}.png": picture for name, (picture, _) in plots.items()}
    write_whole(prefix.with_name(prefix.name + ".md"), text.encode())
    if not brief:
        write_whole(prefix.with_name(prefix.name + ".html"), render_page(text, pictures).encode())
    numbers = compact_json(_without_curves(summary)) if brief else json.dumps(summary, indent=1)
    write_whole(prefix.with_name(prefix.name + ".json"), f"{numbers}\n".encode())
    return text


def compact_json(content: Any) -> str:
    """JSON on one line, with floats of five significant digits.

    Example:
        >>> compact_json({"mean": 0.123456789, "seeds": (0, 1)})
        '{"mean":0.12346,"seeds":[0,1]}'
    """
    return json.dumps(_shortened(content), separators=(",", ":"), ensure_ascii=False)


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shortened(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _without_curves(summary: Mapping[str, Any]) -> dict[str, Any]:
    budgets = {
        basis: {name: value for name, value in budget.items() if name != "curves"}
        for basis, budget in summary["budgets"].items()
    }
    return {**summary, "budgets": budgets}


def compare_command(study: StudyConfig) -> str:
    """The command that runs a study.

    Example:
        >>> compare_command(StudyConfig(arms=("parity", "joint"), updates=50, eval_every=5))
        'ur4rec compare --dataset ml-100k --arms parity joint --seeds 0 1 2 --updates 50 --eval-every 5 --out DIR'
    """
    default = StudyConfig()
    words = ["ur4rec", "compare", "--dataset", study.dataset, "--arms", *study.arms]
    words += ["--seeds", *map(str, study.seeds), "--updates", str(study.updates), "--eval-every", str(study.eval_every)]
    if study.budgets != default.budgets:
        words += ["--budgets", *study.budgets]
    others = ("num_users", "joint_loss", "backend", "preset", "pretrain", "batch_size", "encoder", "device")
    for name in ("split", "repeats", *others):
        if getattr(study, name) != getattr(default, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(study, name))]
    if study.blank_texts:
        words += ["--blank-texts"]
    for name, value in {**study.model, **study.trainer}.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join([*words, "--out", "DIR"])


def render_markdown(summary: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """The report as Markdown.

    Args:
        summary: From `ur4rec.compare.summary.summarise_study`, with the ``command``.
        plots: File names of the plots and what they show.
    """
    study = summary["study"]
    blank = ", texts left out" if study["blank_texts"] else ""
    title = literal(f"Schedules on {study['dataset']}{blank}: {study['joint_loss']} loss, {study['backend']}")
    parts = [f"# {title}", _preamble(summary)]
    for basis in sorted(summary["budgets"]):
        parts += [f"## {BASIS_TITLES[basis]}", *_budget_section(summary["budgets"][basis], basis)]
    parts += [f"![{caption}]({name})\n\n*{caption}.*" for name, caption in plots.items()]
    parts += ["## What a step costs", _costs_table(summary["costs"]), "## How to read this", _notes(summary)]
    return "\n\n".join(parts) + "\n"


_MARKUP = re.compile(r"[\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w)")


def literal(text: object) -> str:
    r"""A value from a study's files as Markdown that shows it as it is: no link, no HTML, no control character.

    Example:
        >>> print(literal("<b>[plateau](x)</b>\nrandom_tenure"))
        \<b\>\[plateau\](x)\</b\>\\u000arandom_tenure
    """
    return _MARKUP.sub(r"\\\g<0>", printable(str(text)))


def render_page(text: str, pictures: Mapping[str, bytes]) -> str:
    """The Markdown as one page of HTML that holds its pictures, loads nothing and runs nothing.

    HTML in the Markdown is shown, not obeyed, and so are links, as no report has any.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    body = markdown.render(text)
    for name, picture in pictures.items():
        embedded = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        body = body.replace(f'src="{html.escape(name)}"', f'src="{embedded}"')
    heading = re.search(r"<h1>(.*?)</h1>", body)
    title = re.sub(r"<[^>]*>", "", heading[1]) if heading else "Comparison"
    head = f'<meta charset="utf-8">{_POLICY}<title>{title}</title>'
    return f'<!doctype html>\n<html lang="en">{head}\n{_STYLE}\n{body}</html>\n'


_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)
_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #888; } img { max-width: 100%; } code { background: #f3f3f3; padding: .1rem .3rem; }
</style>"""


def _preamble(summary: Mapping[str, Any]) -> str:
    study, facts, runs = summary["study"], summary["facts"], summary["runs"]
    lines = [
        f"{len(study['arms'])} arms, seeds {literal(', '.join(map(str, study['seeds'])))}; the same initial weights, "
        f"data order and dropout for every arm of a seed. Budget: {study['updates']} module updates, or the cost of "
        f"{study['updates']} steps of parity. {literal(facts['num_users'])} users, "
        f"{literal(facts['num_items'])} items, {literal(facts['num_interactions'])} interactions. Run it again:",
        f"    {printable(summary['command'])}",
    ]
    if runs["finished"] < runs["planned"]:
        lines.append(f"**Not finished: {runs['finished']} of {runs['planned']} runs are in this report.**")
    if summary["errors"]:
        ended = "; ".join(f"{literal(name)}: {literal(error)}" for name, error in summary["errors"].items())
        lines.append(f"**Runs that ended early, reported up to there: {ended}**")
    if not summary["hashes_agree"]:
        lines.append("**The runs are not all of the same split: do not compare them.**")
    return "\n\n".join(lines)


def _budget_section(budget: Mapping[str, Any], basis: str) -> list[str]:
    arms = budget["arms"]
    unit = f"{budget['budget']:.4g} module updates" if basis == "updates" else f"{budget['budget']:.4g} s charged"
    lead = f"Budget: {unit}. The tuned ratio, the best by validation, is **{literal(budget['tuned'])}**."
    quality = [[literal(arm), *(_value(arms[arm]["test"][metric]) for metric in METRIC_NAMES)] for arm in arms]
    behaviour = [[literal(arm), *_behaviour(arms[arm], arms[PARITY])] for arm in arms]
    sections = [
        lead,
        "Test metrics at the best validation point, mean ± standard deviation over seeds:",
        _table(["arm", *METRIC_NAMES.values()], quality),
    ]
    for name, reference in REFERENCES.items():
        found = {arm: against[name] for arm, against in budget["differences"].items() if name in against}
        rows = [[literal(arm), *(_interval(found[arm][metric]) for metric in METRIC_NAMES)] for arm in found]
        if rows:
            what = f"{reference} ({literal(budget['tuned'])})" if name == "tuned" else reference
            sections += [
                f"Difference against {what}, {LEVEL:.0%} intervals (bold: without 0; a lower NLL is better):",
                _table(["arm", *METRIC_NAMES.values()], rows),
            ]
    rows = [[literal(arm), *map(_ratio, found.values())] for arm, found in budget["time_ratios"].items()]
    if rows:
        sections += [
            f"Cost to parity's final validation quality, as a multiple of parity's own, {LEVEL:.0%} intervals (bold: "
            "without 1; below 1 is sooner; ∞ is never):",
            _table(["arm", "to 95% of its NDCG@10", "to 100%", "to its NLL"], rows),
        ]
    if without := [arm for arm in arms if arm != PARITY and arm not in budget["time_ratios"]]:
        sections.append(
            f"Without that interval, because only some of their runs are packed: {literal(', '.join(without))}. Packed "
            "runs do not hold what every target got at every point."
        )
    sections += [
        "How they trained, and what parity's final validation quality took them:",
        _table(_columns(arms[PARITY]["shares"]), behaviour),
    ]
    return sections


def _columns(modules: Iterable[str]) -> list[str]:
    names = [NAMES[module] for module in modules]
    return [
        *("arm", " : ".join(names), "both" if len(names) == len(MODULES) else "all", "switches", "tenure"),
        *("updates to 95%", "to 100%", "cost to 95%", "to 100%", "cost to its NLL", "largest drop"),
    ]


def _behaviour(arm: Mapping[str, Any], parity: Mapping[str, Any]) -> list[str]:
    reached, same = arm["to_target"], parity["to_target"]
    spent = [_number(reached[name]) for name in ("updates_95%", "updates_100%")]
    for name in ("cost_95%", "cost_100%", "cost_nll"):
        times = f" ({reached[name] / same[name]:.2f}×)" if reached[name] is not None and same[name] else ""
        spent.append(_number(reached[name]) + times)
    return [
        " : ".join(f"{share:.0%}" for share in arm["shares"].values()),
        f"{arm['both_steps']:.0%}",
        f"{arm['switches']:.0f}",
        f"{arm['mean_tenure']:.1f}",
        *spent,
        f"{arm['largest_drop']:.1%}",
    ]


def _costs_table(costs: Mapping[str, Any]) -> str:
    rows = [
        [literal(kind), f"{1000 * seconds:.1f} ms", " – ".join(f"{1000 * end:.1f}" for end in costs["quartiles"][kind])]
        for kind, seconds in costs["seconds"].items()
    ]
    return _table(["step", "median", "quartiles"], rows)


def _notes(summary: Mapping[str, Any]) -> str:
    costs, facts = summary["costs"], summary["facts"]
    load = (costs["load_average_before"], costs["facts"]["load_average"])
    versions = literal(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    machine = literal(f"on {facts['cores']} cores ({facts['processor']})")
    data = literal(f"Split {facts['split']} {facts['split_hash'][:16]}, data {facts['interactions_hash'][:16]}")
    source, python, commits = (
        literal(each) for each in (facts["source"], facts["python"], ", ".join(summary["commits"]))
    )
    threads = literal(f" on {facts['threads']} thread(s)") if "threads" in facts else ""
    return "\n".join(
        [
            "- **Update**: a step of one module is one, a step of both is two. **Cost**: seconds of each kind of "
            "step, timed alone and interleaved, charged per step; so neither a busy machine nor evaluation decides. "
            "The first step of a tenure has its own price: there a frozen retriever's catalogue is computed.",
            "- The learning rate is a function of the part of the budget that is spent, the same for every arm; hence "
            "one run per budget. Parity's one run answers for both: its cost is the budget at equal cost.",
            "- **NLL**: mean of minus the log-probability of the target, a softmax of the ranked scores over the whole "
            "catalogue. It is far less noisy than NDCG@10.",
            "- **Tuned ratio**: the fixed ratio (parity among them) with the highest mean of the best validation "
            "NDCG@10. Validation alone chooses it, and every run's point; test is only reported.",
            f"- **Intervals**: users and seeds resampled, paired, {NUM_RESAMPLES:,} times. They hold for one "
            "comparison; of many, some exclude 0 by chance.",
            "- **To 95%, to 100%**: where the mean validation curve first reaches that part of parity's final NDCG@10, "
            "or its final NLL; × is relative to parity; — is never. **Largest drop**: of validation NDCG@10 after its "
            "best.",
            f"- Load average while steps were timed: {literal(load[0])} before, {literal(load[1])} after, {machine}.",
            f"- {data} ({source}); Python {python}, {versions}{threads}; commit {commits}.",
        ]
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _value(spread: Mapping[str, float]) -> str:
    return f"{spread['mean']:.4f} ± {spread['sd']:.4f}"


def _interval(values: Sequence[float]) -> str:
    estimate, low, high = values
    digits = 1 if high - low > 0.02 else 2
    text = f"{estimate:+.{digits}%} [{low:+.{digits}%}, {high:+.{digits}%}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _ratio(values: Sequence[float | None]) -> str:
    estimate, low, high = ("∞" if value is None else f"{value:.2f}" for value in values)
    text = f"{estimate} [{low}, {high}]"
    is_clear = (values[1] is None or values[1] > 1) or (values[2] is not None and values[2] < 1)
    return f"**{text}**" if is_clear else text


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
