"""Killed with SIGKILL at twenty moments, each time resumed, a run ends to the bit like one that was never killed."""

import json
import random
import signal

import pytest

from tests.integration.killed_run import CONFIG, Moment, run_in_child
from ur4rec.runs.directory import RunDirectory
from ur4rec.training.checkpoint import read_checkpoint

ON_THE_WAY = [
    "open decisions.csv",
    "open model.safetensors",
    "open optimizer.safetensors",
    "open state.json",
    "os.rename fresh",
    "os.rename BEST",
    "os.rename LATEST",
    "after os.rename LATEST",
    "shutil.rmtree step-",
    "os.rename test_ranks.csv",
    "os.rename metrics.json",
    "os.rename schedule.png",
]
"""One moment is drawn of each: before something is done to a file, or right after it."""
AT_RESUMING = {4: Moment(-1, 7), 9: Moment(-1, 5), 14: Moment(-1, 3)}
"""Where in the row of kills which moments of resuming are taken."""


def read_log(path):
    """The moments of a process, and what was about to happen."""
    lines = [line.split(" ", 2) for line in path.read_text().splitlines()]
    return [(Moment(int(step), int(event)), what) for step, event, what in lines]


def draw_moments(log, seed):
    """Twenty moments: of each kind of `ON_THE_WAY` one, between batches four, at resuming four."""
    draw = random.Random(seed)
    drawn = []
    for kind in ON_THE_WAY:
        shift = kind.startswith("after ")
        places = [index for index, (_, what) in enumerate(log) if what.startswith(kind.removeprefix("after "))]
        drawn.append(log[draw.choice(places[:-1] or places) + shift][0])
    batches = [moment for moment, what in log if what == "batch" and moment.step > 0]
    drawn = sorted([*drawn, *draw.sample(batches, 20 - len(drawn) - len(AT_RESUMING))])
    for place, moment in AT_RESUMING.items():
        drawn.insert(place, moment)
    return drawn


def saved_step(directory):
    """The step of the newest checkpoint, which must be whole; so must be the best one."""
    steps = [
        read_checkpoint(path)[1]["progress"]["step"]
        for path in (directory.checkpoint("latest"), directory.checkpoint("best"))
        if path is not None
    ]
    return steps[0] if steps else 0


def without_times(content):
    """JSON without what the clock on the wall decides."""
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if "seconds" not in name}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def outcome(directory):
    """Weights, moments and decisions as bytes; schedule, totals and metrics as JSON."""
    arrays, state = read_checkpoint(directory.checkpoint("latest"))
    best, _ = read_checkpoint(directory.checkpoint("best"))
    files = {name: (directory.path / name).read_bytes() for name in ("decisions.csv", "test_ranks.csv")}
    parts = {name: state[name] for name in ("progress", "schedule", "metrics")}
    return {
        "arrays": arrays,
        "best": best,
        **files,
        **without_times({**parts, "metrics.json": directory.read_json("metrics.json")}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_run_killed_at_twenty_moments_is_the_run_that_was_never_killed(tmp_path, tmp_path_factory, backend):
    cache = tmp_path_factory.getbasetemp() / "compiled"
    whole, killed = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    assert run_in_child(backend, whole.path, tmp_path / "log", None, cache) == 0
    moments = draw_moments(read_log(tmp_path / "log"), seed=len(backend))
    assert len(moments) == 20
    before = 0
    for number, moment in enumerate(moments):
        log = tmp_path / f"log{number}"
        assert run_in_child(backend, killed.path, log, moment, cache) == -signal.SIGKILL
        end, _ = read_log(log)[-1]
        saved = saved_step(killed)
        done = max(before, end.step + (end.event > 0))
        assert before <= saved <= done <= saved + CONFIG.checkpoint_every, (moment, end)
        before = saved
        if number % 3 == 0 and (killed.path / "decisions.csv").exists():
            with (killed.path / "decisions.csv").open("a") as file:
                file.write("7,joint_fine")  # as when it strikes while a row is written, which the moments do not reach
    assert run_in_child(backend, killed.path, tmp_path / "last", None, cache) == 0
    assert outcome(killed) == outcome(whole)
    kept = {(killed.path / "checkpoint" / name).read_text().strip() for name in ("LATEST", "BEST")}
    (texts,) = whole.path.glob("checkpoint/texts-*")
    assert {path.name for path in (killed.path / "checkpoint").iterdir()} == {"LATEST", "BEST", texts.name, *kept}
    assert not list(killed.path.glob(".partial-*"))
    assert json.loads((killed.path / "config.json").read_text())["seed"] == 0


@pytest.mark.parametrize(
    ("backend", "asked"), [("torch", signal.SIGTERM), ("torch", signal.SIGINT), ("jax", signal.SIGINT)]
)
def test_asked_to_stop_a_run_finishes_its_step_and_says_how_to_go_on(tmp_path, tmp_path_factory, backend, asked):
    directory, cache = RunDirectory(tmp_path / "my run"), tmp_path_factory.getbasetemp() / "compiled"
    assert run_in_child(backend, directory.path, tmp_path / "log", Moment(4, 0), cache, (asked,)) == 128 + asked
    assert saved_step(directory) == 5
    line = (tmp_path / "log.stderr").read_text()
    assert line == f"stopped after step 5, saved; continue with: ur4rec train --resume '{directory.path}'\n"


def test_asked_twice_a_run_stops_at_once(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    twice = (signal.SIGINT, signal.SIGINT)
    assert run_in_child("torch", directory.path, tmp_path / "log", Moment(4, 0), tmp_path, twice) == -signal.SIGINT
    assert saved_step(directory) == 3


@pytest.mark.parametrize(("backend", "event"), [("torch", 2), ("torch", 9), ("torch", 18), ("jax", 11)])
def test_a_full_disk_is_one_line_and_leaves_the_previous_checkpoint(tmp_path, tmp_path_factory, backend, event):
    directory, cache = RunDirectory(tmp_path / "run"), tmp_path_factory.getbasetemp() / "compiled"
    assert run_in_child(backend, directory.path, tmp_path / "log", Moment(5, event), cache, ()) == 2
    (line,) = (tmp_path / "log.stderr").read_text().splitlines()
    assert "No space left on device" in line
    assert saved_step(directory) == 3
    assert not list(directory.path.rglob(".partial-*"))
