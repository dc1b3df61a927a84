"""The results table and the picture of the schedule."""

import io

import numpy as np
import pytest
from rich.console import Console

from alternator.recordings.log import StepRecord
from ur4rec.cli.tables import results_table
from ur4rec.evaluation.results import build_result
from ur4rec.runs.plot import _smooth, plot_schedule


def records(num_steps):
    for step in range(1, num_steps + 1):
        stage = "pretrain_sasrec" if step < 10 else "joint_finetune"
        active = "sasrec" if step % 20 < 10 else "retriever"
        losses = {active: 5 / step if step != 7 else float("nan")}
        yield StepRecord(step, stage, active, active, "min_steps", 1, 5, losses)


def test_the_table_shows_every_metric():
    result = build_result("fused", 4, np.array([1, 2]), np.array([1, 12]))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_table([result]))
    text = console.export_text()
    assert "0.5000" in text
    assert text.count("NDCG") == 3


@pytest.mark.parametrize("num_steps", [0, 1, 120])
def test_the_picture_is_drawn_for_any_length(tmp_path, num_steps):
    scores = {"ndcg@10": 0.1}
    epochs = [{"step": 60, "stage": "x", "validation": dict.fromkeys(("sasrec", "retriever", "fused"), scores)}]
    plot_schedule(tmp_path / "schedule.png", list(records(num_steps)), epochs[: num_steps // 60], "a run")
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_is_a_trailing_mean():
    assert _smooth(np.array([1.0, 2.0, 3.0, 4.0]), 2).tolist() == [1.0, 1.5, 2.5, 3.5]
