"""``--log``: what a run writes for TensorBoard and Weights & Biases."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alternator.recordings.log import StepRecord
from tests.integration.tiny_run import TINY, mistaken
from ur4rec.runs.event_log import EventLog, check_event_logs, open_event_log
from ur4rec.schedule.stages import MODULES, TURNS


@pytest.fixture(scope="module")
def scalars(run):
    """Tag → step → value."""
    events = EventAccumulator(str(run[0] / "events"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_every_step_is_there_with_its_losses_and_who_trained(run, scalars):
    with (run[0] / "decisions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for module in MODULES:
        losses = {int(row["step"]): float(row[f"{module}_loss"]) for row in rows if row[f"{module}_loss"]}
        assert scalars[f"step/{module}_loss"] == pytest.approx(losses, rel=1e-6)
        active = {int(row["step"]): float(module in TURNS[row["active"]]) for row in rows}
        assert scalars[f"active/{module}"] == active
        joint = [row for row in rows if row["stage"] == "joint_finetune"]
        updates = [sum(each in TURNS[row["active"]] for row in joint) for each in MODULES]
        share = updates[MODULES.index(module)] / sum(updates)
        assert scalars[f"share/{module}"][int(joint[-1]["step"])] == pytest.approx(share)


def test_every_epoch_is_there_with_its_validation(run, scalars):
    epochs = json.loads((run[0] / "metrics.json").read_text())["epochs"]
    for scorer in ("fused", "sasrec", "retriever"):
        own = [row for row in epochs if scorer in row["validation"]]
        expected = {row["step"]: row["validation"][scorer]["ndcg@10"] for row in own}
        assert len(own) == (4 if scorer == "fused" else 5)
        assert scalars[f"validation/{scorer}/ndcg@10"] == pytest.approx(expected)
    assert scalars["learning_rate/sasrec"].keys() == {row["step"] for row in epochs}
    assert scalars["component/total"] == pytest.approx({row["step"]: row["train"]["total_loss"] for row in epochs})


def test_a_run_that_goes_on_knows_its_shares():
    records = [
        StepRecord(step, "joint_finetune", active, "sasrec", "min_steps", 0.0, 0.0, {})
        for step, active in enumerate(["sasrec", "sasrec", "retriever", "both", "sasrec"], 1)
    ]

    def shares(log, written, some):
        for record in some:
            log.step(record)
        return written[-1]["share/sasrec"]

    whole, resumed = [], []
    expected = shares(EventLog([collecting(whole)]), whole, records)
    log = EventLog([collecting(resumed)])
    log.restore(records[:3])
    assert shares(log, resumed, records[3:]) == expected == 4 / 6


def collecting(into):
    """A writer that keeps what it is given."""
    return SimpleNamespace(write=lambda scalars, step: into.append(scalars), close=lambda: None)


def test_weights_and_biases_gets_the_same(tmp_path, monkeypatch):
    told = []
    fake = SimpleNamespace(
        log=lambda scalars, step: told.append((step, scalars)), finish=lambda: told.append("finished")
    )
    started = {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: started.update(given) or fake))
    check_event_logs(["wandb"])
    with open_event_log(["wandb", "wandb"], tmp_path / "run") as log:
        log.step(StepRecord(7, "pretrain_sasrec", "sasrec", "sasrec", "min_steps", 0.0, 0.0, {"sasrec": 2.5}))
    (step, scalars), end = told
    assert (started["name"], step, scalars["step/sasrec_loss"], end) == ("run", 7, 2.5, "finished")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mlflow", "unknown log 'mlflow'; expected one of ('tensorboard', 'wandb')"),
        ("wandb", "--log wandb needs a package that is missing"),
    ],
)
def test_what_cannot_be_logged_to_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, kind, message):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert message in mistaken("train", *TINY, "--log", kind, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_leaves_nothing(tmp_path):
    assert "device" in mistaken("train", *TINY, "--device", "cuda:99", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
