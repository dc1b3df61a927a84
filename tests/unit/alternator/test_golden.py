"""The golden traces: what `Plateau` once decided must stay the same, to the step."""

import json
from pathlib import Path

import pytest

from alternator import Alternator, Plateau

TRACES = Path(__file__).parents[2] / "traces"


def cases(name):
    return [pytest.param(case, id=case["name"]) for case in json.loads((TRACES / name).read_text())["cases"]]


def build(case):
    rule = Plateau(threshold=case["threshold"], min_steps=case["min_steps"], window=case["window"])
    return Alternator(case["modules"], rule)


@pytest.mark.parametrize("case", cases("plateau.json"))
def test_plateau_trace(case):
    alternator = build(case)
    active, switched_at = [], []
    for step in range(len(case["active"])):
        decision = alternator.observe({name: losses[step] for name, losses in case["losses"].items()})
        active.append(case["modules"].index(decision.active))
        if decision.switched:
            switched_at.append(step)
    assert active == case["active"]
    assert switched_at == case["switched_at"]


def play(alternator, call):
    if "observe" in call:
        losses = call["observe"]
        alternator.observe(float(losses) if isinstance(losses, str) else losses, updated=call.get("updated", True))
    elif "record" in call:
        module, loss = call["record"]
        alternator.record(module, float(loss))
    elif "advance" in call:
        alternator.advance(**call["advance"])
    else:
        alternator.force(call["force"])


@pytest.mark.parametrize("case", cases("events.json"))
def test_events_trace(case):
    alternator = build(case)
    for number, call in enumerate(case["calls"]):
        play(alternator, call)
        if "active" in call:
            assert alternator.active == call["active"], f"call {number}: {call}"
    stats = alternator.stats()
    assert {name: module.training_steps for name, module in stats.modules.items()} == case["training_steps"]
    assert stats.switch_count == case["switch_count"]
    assert sum(module.skipped_steps for module in stats.modules.values()) == case["skipped"]
    assert sum(module.nonfinite_losses for module in stats.modules.values()) == case["nonfinite"]


def test_the_traces_are_all_there():
    assert len(cases("plateau.json")) == 43
    assert len(cases("events.json")) == 11
