"""What `peers.py` writes: JSON, tables and a plot."""

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from peers_curves import (
    CLOCKS,
    METRICS,
    SCORINGS,
    SystemRun,
    bounded_ratio,
    difference,
    quality,
    ratios,
    seconds_to,
    time_ratio,
)
from peers_systems import SYSTEMS

from ur4rec.compare.report import compact_json

PARTS = (1.0, 0.95)
"""Of the peer's best validation NDCG@10: the time to them is compared. One epoch in many is the best by chance too."""
BARS = {"RecBole": 1 / 10, "RecTools": 1 / 3}
"""Processor time to the peer's best filtered validation NDCG@10: at most this part of the peer's, by its library."""
QUALITY_PEER = "RecBole"
"""Ours must not be below this peer's filtered NDCG@10 on test: the interval of the difference must reach 0."""
COLOURS = {"ours": "tab:blue", "ours in JAX": "tab:green", "RecBole": "tab:red", "RecTools": "tab:orange"}
COLOURS |= {"RecTools SS": "tab:brown", "eSASRec": "tab:purple", "eSASRec mixed": "tab:pink"}
TITLES = {"ml-100k": "MovieLens-100K", "ml-1m": "MovieLens-1M", "sports": "Amazon Sports"}


def compare(runs: Sequence[SystemRun]) -> dict[str, Any]:
    """Everything that is reported: figures of each system, and comparisons of each of ours with each peer."""
    by_system: dict[str, list[SystemRun]] = {}
    for run in runs:
        by_system.setdefault(run.system, []).append(run)
    return {
        "systems": {system: figures(each) for system, each in by_system.items()},
        "comparisons": [
            {"system": ours, "peer": peer, **comparison(by_system[ours], by_system[peer], peer)}
            for peer, ours in product(by_system, by_system)
            if SYSTEMS[ours].is_ours and not SYSTEMS[peer].is_ours
        ],
    }


def figures(runs: Sequence[SystemRun]) -> dict[str, Any]:
    """Quality and seconds of one system."""
    epochs = [epoch for run in runs for epoch in run.epochs]
    return {
        "seeds": [run.seed for run in runs],
        "epochs": [len(run.epochs) for run in runs],
        "ended": [run.about.get("ended", "") for run in runs],
        "best_epoch": {scoring: [run.best(scoring) + 1 for run in runs] for scoring in SCORINGS},
        "best_validation_ndcg@10": {scoring: [max(run.curve(scoring)) for run in runs] for scoring in SCORINGS},
        "seconds": {clock: [run.seconds(clock)[-1] for run in runs] for clock in CLOCKS},
        "test": {scoring: {metric: quality(runs, scoring, metric) for metric in METRICS} for scoring in SCORINGS},
        "seconds_per_epoch": {
            clock: statistics.median(epoch.train_seconds[clock] for epoch in epochs) for clock in CLOCKS
        },
        "validation_seconds": {
            clock: statistics.median(epoch.validation_seconds[clock] for epoch in epochs) for clock in CLOCKS
        },
    }


def comparison(runs: Sequence[SystemRun], peers: Sequence[SystemRun], name: str) -> dict[str, Any]:
    """One of ours against a peer: time to its best, and the difference on test."""
    bar = BARS[SYSTEMS[name].environment or ""]
    rows: list[dict[str, Any]] = []
    for part, scoring, clock in product(PARTS, SCORINGS, CLOCKS):
        targets = [part * max(peer.curve(scoring)) for peer in peers]
        found = ratios(partial(time_ratio, scoring=scoring, clock=clock, part=part), runs, peers)
        is_judged = (part, scoring, clock) == (1.0, "filtered", "processor")
        rows.append(
            {
                "scoring": scoring,
                "clock": clock,
                "part": part,
                "target": statistics.mean(targets),
                "ours": [seconds_to(run, target, scoring, clock) for run in runs for target in targets],
                "peer": [seconds_to(*each, scoring, clock) for each in zip(peers, targets, strict=True)],
                **found,
                "bar": bar if is_judged else None,
                "kept": (found["median"] is not None and found["median"] <= bar) if is_judged else None,
            }
        )
    tests = []
    for scoring, metric in product(SCORINGS, METRICS):
        is_judged = name == QUALITY_PEER and (scoring, metric) == ("filtered", "ndcg@10")
        apart = difference(runs, peers, scoring, metric)
        kept = bool(apart["high"] >= 0) if is_judged else None
        tests.append({"scoring": scoring, "metric": metric, **apart, "kept": kept})
    return {"time": rows, "to_ours": [to_ours(runs, peers, scoring) for scoring in SCORINGS], "test": tests}


def to_ours(runs: Sequence[SystemRun], peers: Sequence[SystemRun], scoring: str) -> dict[str, Any]:
    """Processor time to the best validation of ours: what the peer takes to it, if it gets there."""
    targets = [max(run.curve(scoring)) for run in runs]
    return {
        "scoring": scoring,
        "targets": targets,
        "ours": [seconds_to(run, target, scoring, "processor") for run, target in zip(runs, targets, strict=True)],
        "peer": [[seconds_to(peer, target, scoring, "processor") for peer in peers] for target in targets],
        "peer_in_all": [peer.seconds("processor")[-1] for peer in peers],
        **ratios(partial(bounded_ratio, scoring=scoring, clock="processor"), runs, peers),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    about = result["machine"]
    versions = ", ".join([f"torch {about['torch']}", *about["peers"]])
    return "\n".join(
        [
            f"# SASRec alone against its peers: {TITLES[about['data']]}",
            "",
            f"`{result['command']}` at `{about['commit']}` on {about['processor']}, {about['cores']} cores, one "
            f"thread each, {len(result['sittings'])} sitting(s); Python {about['python']}, {versions}. "
            f"{about['users']:,} users, {about['items']:,} items, {about['interactions']:,} interactions; "
            f"leave-one-out, split `{about['split_hash'][:12]}`; all items ranked, by one function for all systems.",
            "",
            *_quality_lines(result["systems"]),
            "",
            *_time_lines(result),
            "",
            *_to_ours_lines(result["comparisons"]),
            "",
            *_difference_lines(result["comparisons"]),
            "",
            *_runs(result),
            "",
        ]
    )


def _quality_lines(systems: Mapping[str, Any]) -> list[str]:
    lines = [
        "Test metrics at the best validation NDCG@10 by the same scoring: mean ± standard deviation over seeds. "
        "*Filtered*: items that the user has seen are not ranked. RecBole stops by the other.",
        "",
        "| system | seeds | NDCG@10 filtered | Hit@10 filtered | NDCG@10 unfiltered | Hit@10 unfiltered | best at |",
        "|---|---|---|---|---|---|---|",
    ]
    for system, each in systems.items():
        cells = [
            f"{each['test'][scoring][metric]['mean']:.4f} ± {each['test'][scoring][metric]['deviation']:.4f}"
            if len(each["seeds"]) > 1
            else f"{each['test'][scoring][metric]['mean']:.4f}"
            for scoring, metric in product(SCORINGS, METRICS)
        ]
        best = "; ".join(f"{scoring} {_join(each['best_epoch'][scoring], 'd')}" for scoring in SCORINGS)
        lines.append(
            f"| {system} | {len(each['seeds'])} | {' | '.join(cells)} | {best} of {_join(each['epochs'], 'd')} |"
        )
    return lines


def _time_lines(result: Mapping[str, Any]) -> list[str]:
    bars = " and ".join(f"{bar:.3f} of {library}'s" for library, bar in BARS.items())
    lines = [
        "Seconds of training until validation NDCG@10 first reached the peer's best, and 95% of it; scoring and "
        "ranking are not counted. Ratio of ours to the peer's: median of all pairs of seeds, with a 95% interval "
        f"(bootstrap over seeds of either). The bars, on the processor's clock and filtered: {bars}.",
        "",
        "| system | peer | scoring | clock | part | NDCG@10 | peer's seconds | of ours, by pair | ratio | 95% | kept |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in result["comparisons"]:
        for row in each["time"]:
            ratio = "not reached" if row["median"] is None else f"{row['median']:.3f}"
            interval = " – ".join("∞" if row[end] is None else f"{row[end]:.3f}" for end in ("low", "high"))
            lines.append(
                f"| {each['system']} | {each['peer']} | {row['scoring']} | {row['clock']} | {row['part']:.0%} "
                f"| {row['target']:.4f} | {_join(row['peer'], '.0f')} | {_join(row['ours'], '.1f')} | {ratio} "
                f"| {interval} | {_kept(row)} |"
            )
    lines += [
        "",
        "| system | processor s an epoch | wall s an epoch | processor s of training in all | of scoring and ranking |",
        "|---|---|---|---|---|",
    ]
    for system, each in result["systems"].items():
        seconds = each["seconds_per_epoch"]
        validation = each["validation_seconds"]["processor"]
        whole = _join(each["seconds"]["processor"], ".0f")
        lines.append(
            f"| {system} | {seconds['processor']:.1f} | {seconds['wall']:.1f} | {whole} | {validation:.1f} an epoch |"
        )
    return lines


def _to_ours_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "Processor seconds to the best validation NDCG@10 of ours. A peer that never gets there is counted with all of "
        "its training (>): the ratio is the most that it can be.",
        "",
        "| system | peer | scoring | NDCG@10 of ours | our seconds | peer's seconds, by pair | ratio | 95% |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        for row in each["to_ours"]:
            theirs = [
                f"> {in_all:.0f}" if seconds is None else f"{seconds:.0f}"
                for to_target in row["peer"]
                for seconds, in_all in zip(to_target, row["peer_in_all"], strict=True)
            ]
            never = any(seconds is None for to_target in row["peer"] for seconds in to_target)
            lines.append(
                f"| {each['system']} | {each['peer']} | {row['scoring']} | {_join(row['targets'], '.4f')} "
                f"| {_join(row['ours'], '.0f')} | {', '.join(theirs)} | {'≤ ' * never}{row['median']:.3f} "
                f"| {row['low']:.3f} – {row['high']:.3f} |"
            )
    return lines


def _difference_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"Ours minus the peer's on test, with a 95% interval (bootstrap over seeds and users, paired); against "
        f"{QUALITY_PEER}, filtered NDCG@10 is kept where the interval reaches 0.",
        "",
        "| system | peer | scoring | metric | difference | 95% | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        for row in each["test"]:
            lines.append(
                f"| {each['system']} | {each['peer']} | {row['scoring']} | {row['metric']} | {row['value']:+.4f} | "
                f"{row['low']:+.4f} – {row['high']:+.4f} | {_kept(row)} |"
            )
    return lines


def _runs(result: Mapping[str, Any]) -> list[str]:
    """What each system trained with, how its runs ended, and what was checked."""
    lines = ["Each system's settings, as it says them, and how its runs ended:", ""]
    for system, each in result["systems"].items():
        about = next(run["about"] for run in result["runs"] if run["system"] == system)
        shown = {name: value for name, value in about.items() if name not in ("ended", "versions")}
        if not SYSTEMS[system].is_ours:
            shown.pop("settings", None)  # they are among what it says
        ended = "; ".join(f"seed {seed} {reason}" for seed, reason in zip(each["seeds"], each["ended"], strict=True))
        versions = " ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
        lines.append(f"- **{system}** ({versions}): `{json.dumps(shown)}`. Ended: {ended}.")
    lines += [f"- Failed: {failure}" for failure in result["machine"].get("failed", [])]
    return lines


def _join(values: Sequence[float | None], style: str) -> str:
    return ", ".join("–" if value is None else f"{value:{style}}" for value in values)


def _kept(row: Mapping[str, Any]) -> str:
    return {None: "", True: "yes", False: "**no**"}[row["kept"]]


def plot(runs: Sequence[SystemRun], file: Path) -> None:
    """Validation NDCG@10 against processor seconds, with either scoring."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    from ur4rec.compare.plots import to_png

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharex=True, layout="constrained")
    for panel, scoring in zip(axes, SCORINGS, strict=True):
        named: set[str] = set()
        for run in runs:
            label = None if run.system in named else run.system
            named.add(run.system)
            colour = COLOURS[run.system]
            panel.plot(run.seconds("processor"), run.curve(scoring), marker=".", color=colour, label=label)
            if not SYSTEMS[run.system].is_ours:
                panel.axhline(max(run.curve(scoring)), color=colour, linestyle=":")
        panel.set_xscale("log")
        panel.set_title(f"seen items {'left out' if scoring == 'filtered' else 'ranked too'}")
        panel.set_xlabel("processor seconds of training")
        panel.set_ylabel("validation NDCG@10")
        panel.legend()
    file.write_bytes(to_png(figure))
    pyplot.close(figure)


def save(
    runs: Sequence[SystemRun], folder: Path, hardware: str, about: Mapping[str, Any], command: str
) -> tuple[str, bool]:
    """Write JSON, Markdown and plot; returns the Markdown, and whether every bar is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"peers-{about['data']}_{hardware}_{datetime.datetime.now(datetime.UTC).date()}"
    result = {"command": command, "machine": about, "sittings": sorted({run.sitting for run in runs}), **compare(runs)}
    result["runs"] = [
        {**run.to_json(), "epochs": [{**vars(epoch), "test_ranks": None} for epoch in run.epochs]} for run in runs
    ]
    text = table(result)
    stem.with_suffix(".json").write_text(compact_json(result) + "\n")
    stem.with_suffix(".md").write_text(text)
    plot(runs, stem.with_suffix(".png"))
    kept = all(row["kept"] is not False for each in result["comparisons"] for row in [*each["time"], *each["test"]])
    return text, kept
