"""The results table and the picture of a run."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from alternator.recordings.log import StepRecord
from ur4rec.cli.tables import results_table
from ur4rec.evaluation.results import build_result
from ur4rec.runs import plot
from ur4rec.runs.measurements import Measurement
from ur4rec.runs.plot import KINDS, _smooth, comparisons, draw_comparisons, draw_payoffs, plot_schedule


def records(num_steps):
    for step in range(1, num_steps + 1):
        stage = "pretrain_sasrec" if step < 10 else "joint_finetune"
        active = "sasrec" if step % 20 < 10 else "retriever"
        losses = {active: 5 / step if step != 7 else float("nan")}
        yield StepRecord(step, stage, active, active, "min_steps", 1, 5, losses)


def test_the_table_shows_every_metric():
    result = build_result("fused", 4, {}, np.array([1, 12]))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_table([result], np.array([False, False]), (2000, 35598)))
    text = console.export_text()
    assert "(of a sample: 2,000 of 35,598 users)" in text
    assert "0.5000" in text
    assert text.count("NDCG") == 3
    assert "repeated" not in text


def test_the_table_shows_new_and_repeated_targets_apart():
    result = build_result("fused", 4, {}, np.array([1, 12, 30]))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_table([result], np.array([True, False, False])))
    rows = {line.split("  ")[1]: line for line in console.export_text().splitlines() if "fused" in line}
    assert list(rows) == ["fused", "fused, new", "fused, repeated"]
    assert "0.3333" in rows["fused"]
    assert "0.5000" in rows["fused, new"]  # one of two in the first 20
    assert "1.0000" in rows["fused, repeated"]


def epochs(num_steps):
    scores = {scorer: {"ndcg@10": 0.1} for scorer in ("sasrec", "retriever", "fused")}
    return [{"step": step, "stage": "x", "validation": scores} for step in range(60, num_steps + 1, 60)]


@pytest.mark.parametrize("num_steps", [0, 1, 120])
def test_the_picture_is_drawn_for_any_length(tmp_path, num_steps):
    plot_schedule(tmp_path / "schedule.png", list(records(num_steps)), (), epochs(num_steps), "a run")
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("switches", [False, True])
@pytest.mark.parametrize("reason", sorted({reason for kind in KINDS for reason in kind.reasons}))
def test_the_picture_shows_what_a_rule_compared(tmp_path, reason, switches):
    steps = [record._replace(reason=reason if record.step > 20 else "min_steps") for record in records(60)]
    last = {"sasrec": "retriever", "retriever": "sasrec"}[steps[-1].active] if switches else steps[-1].active
    steps[-1] = steps[-1]._replace(next=last)
    compared = comparisons(steps)
    assert reason in compared.kind.reasons
    assert [record.step for record in compared.records] == list(range(21, 61))
    plot_schedule(tmp_path / "schedule.png", steps, (), epochs(60), "a run")
    figure = Figure()
    axes = figure.subplots()
    draw_comparisons(axes, compared)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["SASRec", "retriever", compared.kind.limit, *(["switch"] if switches else [])]


def test_numbers_of_different_kinds_are_not_mixed():
    steps = [record._replace(reason="waiting" if record.step % 3 else "changing") for record in records(60)]
    compared = comparisons(steps)
    assert compared.kind.limit == "patience"
    assert {record.reason for record in compared.records} == {"waiting"}
    assert comparisons([record._replace(reason="scheduled") for record in steps]) is None


def test_the_picture_shows_payoffs_and_who_was_left_out(tmp_path):
    def measurement(step, module, payoff):
        return Measurement(step, "both", module, payoff, 0.1, 0.05, 1.0)

    pairs = [(step, module) for step in (5, 10, 15) for module in ("sasrec", "retriever")]
    measurements = [measurement(step, module, 2 if module == "sasrec" else 0.01) for step, module in pairs]
    measurements.append(Measurement(40, "sasrec", "sasrec", 1.0, 0.01, 0.0, 0.0))
    steps = [
        StepRecord(step, "joint_finetune", "both" if step <= 20 else "sasrec", "x", "pays", 1, 1, {"sasrec": 1.0})
        for step in range(1, 61)
    ]
    plot_schedule(tmp_path / "schedule.png", steps, measurements, epochs(60), "a run")
    axes = Figure().subplots()
    draw_payoffs(axes, measurements, steps)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(labels) == {"SASRec", "retriever", "retriever left out", "limit"}
    (span,) = axes.patches
    assert (span.get_x(), span.get_width()) == (20, 40)


def hidden(axes):
    """The lines of which nothing is seen: one point, and no marker."""
    points = [(line, np.isfinite(np.asarray(line.get_ydata(), float)).sum()) for line in axes.get_lines()]
    return [line.get_label() for line, count in points if count == 1 and line.get_marker() in ("None", "", None)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.limit)
def test_one_decision_shows_its_limit(kind):
    axes = Figure().subplots()
    draw_comparisons(axes, comparisons([next(records(1))._replace(reason=min(kind.reasons))]))
    assert kind.limit in [text.get_text() for text in axes.get_legend().get_texts()]
    assert hidden(axes) == []


def test_one_measurement_and_one_loss_are_seen(monkeypatch, tmp_path):
    figures = []

    def make(*arguments, **options):
        figures.append(Figure(*arguments, **options))
        return figures[-1]

    monkeypatch.setattr(plot, "Figure", make)
    steps = [record._replace(active="both", losses={"sasrec": 1.0, "retriever": 1.0}) for record in records(1)]
    measurements = [Measurement(1, "both", module, 1.0, 0.5, 0.1, 1.0) for module in ("sasrec", "retriever")]
    plot_schedule(tmp_path / "schedule.png", steps, measurements, epochs(60), "a run")
    labels = [text.get_text() for axes in figures[0].axes if (shown := axes.get_legend()) for text in shown.get_texts()]
    assert sorted(labels) == sorted(["both (one loss)", "limit", "fused", *2 * ["SASRec", "retriever"]])
    named = [label for axes in figures[0].axes for label in hidden(axes) if not label.startswith("_")]
    assert named == []


def test_smoothing_is_a_trailing_mean():
    assert _smooth(np.array([1.0, 2.0, 3.0, 4.0]), 2).tolist() == [1.0, 1.5, 2.5, 3.5]
