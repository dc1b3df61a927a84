"""What `peers.py` writes: JSON, tables and a plot."""

import datetime
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from peers_curves import CLOCKS, METRICS, SCORINGS, SystemRun, difference, quality, seconds_to, time_ratios

from ur4rec.compare.report import compact_json

PEER = "RecBole"
PEERS = (PEER, "RecTools")
"""What ours are compared with; bars are set against the first."""
PARTS = (1.0, 0.95)
"""Of the peer's best validation NDCG@10: the time to them is compared. One epoch in many is the best by chance too."""
BAR = 1 / 3
"""Time to the peer's best validation NDCG@10: at most this part of the peer's."""
COLOURS = {"ours": "tab:blue", "ours in JAX": "tab:green", PEER: "tab:red", "RecTools": "tab:orange"}


def compare(runs: Sequence[SystemRun]) -> dict[str, Any]:
    """Everything that is reported: figures of each system, and comparisons of each of ours with each peer."""
    by_system: dict[str, list[SystemRun]] = {}
    for run in runs:
        by_system.setdefault(run.system, []).append(run)
    return {
        "systems": {system: figures(each) for system, each in by_system.items()},
        "comparisons": [
            {"system": system, "peer": peer, **comparison(each, by_system[peer], bars=peer == PEER)}
            for peer in PEERS
            if peer in by_system
            for system, each in by_system.items()
            if system not in PEERS
        ],
    }


def figures(runs: Sequence[SystemRun]) -> dict[str, Any]:
    """Quality and seconds of one system."""
    epochs = [epoch for run in runs for epoch in run.epochs]
    return {
        "seeds": [run.seed for run in runs],
        "epochs": [len(run.epochs) for run in runs],
        "best_epoch": {scoring: [run.best(scoring) + 1 for run in runs] for scoring in SCORINGS},
        "best_validation_ndcg@10": {scoring: [max(run.curve(scoring)) for run in runs] for scoring in SCORINGS},
        "test": {scoring: {metric: quality(runs, scoring, metric) for metric in METRICS} for scoring in SCORINGS},
        "seconds_per_epoch": {
            clock: statistics.median(epoch.train_seconds[clock] for epoch in epochs) for clock in CLOCKS
        },
        "validation_seconds": {
            clock: statistics.median(epoch.validation_seconds[clock] for epoch in epochs) for clock in CLOCKS
        },
    }


def comparison(runs: Sequence[SystemRun], peers: Sequence[SystemRun], *, bars: bool) -> dict[str, Any]:
    """One of ours against a peer: time to its best, and the difference on test."""
    rows: list[dict[str, Any]] = []
    for part, scoring, clock in product(PARTS, SCORINGS, CLOCKS):
        targets = [part * max(peer.curve(scoring)) for peer in peers]
        ratios = time_ratios(runs, peers, scoring, clock, part)
        rows.append(
            {
                "scoring": scoring,
                "clock": clock,
                "part": part,
                "target": statistics.mean(targets),
                "ours": [seconds_to(run, target, scoring, clock) for run in runs for target in targets],
                "peer": [seconds_to(*each, scoring, clock) for each in zip(peers, targets, strict=True)],
                **ratios,
                "kept": (ratios["median"] is not None and ratios["median"] <= BAR) if bars and part == 1 else None,
            }
        )
    tests = []
    for scoring, metric in product(SCORINGS, METRICS):
        ours, theirs = quality(runs, scoring, metric), quality(peers, scoring, metric)
        spread = max(ours["deviation"], theirs["deviation"])
        found = difference(runs, peers, scoring, metric)
        tests.append({"scoring": scoring, "metric": metric, **found, "spread": spread})
        tests[-1]["kept"] = bool(found["value"] >= -spread) if bars else None
    return {"time": rows, "test": tests}


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    about = result["machine"]
    sittings = "one sitting, side by side" if len(result["sittings"]) == 1 else f"{len(result['sittings'])} sittings"
    return "\n".join(
        [
            "# SASRec alone against RecBole's",
            "",
            f"`{result['command']}` on {about['processor']}, {about['cores']} cores, one thread each, {sittings}; "
            f"Python {about['python']}, torch {about['torch']}, {', '.join(about['peers'])}. MovieLens-100K, "
            f"leave-one-out, split `{about['split_hash'][:12]}`; all {about['users']} users, all items ranked.",
            "",
            *_quality_lines(result["systems"]),
            "",
            *_time_lines(result),
            "",
            *_difference_lines(result["comparisons"]),
            "",
            *_checks(result["runs"], result["systems"][PEER]),
        ]
    )


def _quality_lines(systems: Mapping[str, Any]) -> list[str]:
    lines = [
        "Test metrics at the best validation NDCG@10 by the same scoring: mean ± standard deviation over seeds. "
        "*Filtered*: items that the user has seen are not ranked. RecBole reports the other.",
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
    lines = [
        "Seconds of training until validation NDCG@10 first reached the peer's best, and 95% of it (validation itself "
        f"not counted), and the ratio of ours to the peer's; against {PEER} the bar at its best is one third.",
        "",
        "| system | peer | scoring | clock | part | NDCG@10 | peer's seconds | each seed of ours | median ratio "
        "| kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in result["comparisons"]:
        for row in each["time"]:
            ratio = "never reached by every seed" if row["median"] is None else f"{row['median']:.3f}"
            lines.append(
                f"| {each['system']} | {each['peer']} | {row['scoring']} | {row['clock']} | {row['part']:.0%} "
                f"| {row['target']:.4f} | "
                f"{_join(row['peer'], '.0f')} | {_join(row['ours'], '.1f')} | {ratio} | {_kept(row)} |"
            )
    lines += [
        "",
        "| system | processor s an epoch | wall s an epoch | processor s of a validation |",
        "|---|---|---|---|",
    ]
    for system, each in result["systems"].items():
        seconds = each["seconds_per_epoch"]
        validation = each["validation_seconds"]["processor"]
        lines.append(f"| {system} | {seconds['processor']:.1f} | {seconds['wall']:.1f} | {validation:.1f} |")
    return lines


def _difference_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "Ours minus the peer's on test, with a 95% interval (bootstrap over seeds and users, paired); kept where it is "
        "no lower than minus the spread over seeds.",
        "",
        "| system | peer | scoring | metric | difference | 95% | spread | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        for row in each["test"]:
            lines.append(
                f"| {each['system']} | {each['peer']} | {row['scoring']} | {row['metric']} | {row['value']:+.4f} | "
                f"{row['low']:+.4f} – {row['high']:+.4f} | {row['spread']:.4f} | {_kept(row)} |"
            )
    return lines


def _checks(runs: Sequence[Mapping[str, Any]], peer: Mapping[str, Any]) -> list[str]:
    peers = [run["about"] for run in runs if run["system"] == PEER]
    ours = next(run["about"] for run in runs if run["system"] not in PEERS)
    gap = max(about["own_ndcg@10_differs_by"] for about in peers)
    settings = ", ".join(f"{name} {peers[0][name]}" for name in ("train_batch_size", "learning_rate", "learner"))
    return [
        f"- Both were tested on the same users, targets and histories; {PEER}'s own NDCG@10 differs from ours of its "
        f"scores, unfiltered, by at most {gap:.1e} in any epoch.",
        f"- {PEER}: {settings}, dropout {peers[0]['hidden_dropout_prob']}, stops {peers[0]['stopping_step']} epochs "
        f"after its best; {peers[0]['rows_per_epoch']:,} prefixes an epoch."
        f"{_cut_short(peer, peers[0]['stopping_step'])}",
        f"- Ours: windows of {ours['model']['max_seq_len']} items that train at every position"
        f"{', cut elsewhere in every epoch' if ours['shifted'] else ''}, "
        f"{ours['batch_size']} rows a batch, AdamW at {ours['learning_rate']:g} with a cosine over {ours['epochs']} "
        f"epochs, dropout {ours['model']['sasrec_dropout']}.",
        "",
    ]


def _cut_short(peer: Mapping[str, Any], patience: int) -> str:
    """Whether the peer was ended before it stopped by itself, from its `figures`."""
    for epochs, best in zip(peer["epochs"], peer["best_epoch"]["unfiltered"], strict=True):
        if epochs - best < patience:
            return f" **It was ended {epochs - best} epochs after its best, in its epoch {epochs}, for lack of time.**"
    return ""


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
        for run in runs:
            label = run.system if run.seed == 0 else None
            colour = COLOURS.get(run.system)
            panel.plot(run.seconds("processor"), run.curve(scoring), marker=".", color=colour, label=label)
            if run.system == PEER:
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
    stem = folder / f"peers_{hardware}_{datetime.datetime.now(datetime.UTC).date()}"
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
