"""JAX alone: one model on meshes of devices, in one process and in several, trains as on one device."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.backends import jax_mesh_program
from ur4rec.errors import ConfigurationError

pytestmark = pytest.mark.slow

TIMEOUT = 1200.0
"""Seconds for a program to end, however busy the machine is."""
FLAGS = os.environ.get("XLA_FLAGS", "")
"""Those of the suite: compile fast."""
ON_MESHES = ("data=4", "data=4,items=2", "items=8")


def start(folder, name, num_devices, **variables):
    command = [sys.executable, "-m", "tests.backends.jax_mesh_program", str(folder), name]
    flags = f"--xla_force_host_platform_device_count={num_devices} {FLAGS}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **variables}
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(folder, processes):
    """What each program wrote; all are ended if one fails or does not end."""
    try:
        for name, process in processes.items():
            assert process.wait(TIMEOUT) == 0, (folder / f"{name}.log").read_text()[-3000:]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {name: json.loads((folder / name).read_text()) for name in processes}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    return finish(folder, {"one process": start(folder, "one process", 8)})["one process"]


def check_same(mine, other, rtol=1e-5):
    assert mine["decisions"] == other["decisions"]
    np.testing.assert_allclose(mine["losses"], other["losses"], rtol=rtol)
    assert mine["ranks"] == other["ranks"]


@pytest.mark.parametrize("mesh", ON_MESHES)
def test_200_steps_on_a_mesh_are_those_of_one_device(found, mesh):
    one = found["runs"]["one"]
    assert len(one["losses"]) >= 200
    assert len({decision[0] for decision in one["decisions"]}) == 2
    check_same(found["runs"][mesh], one)


@pytest.mark.parametrize("mesh", ON_MESHES)
def test_no_step_of_an_epoch_moves_anything_as_large_as_the_item_table(found, mesh):
    run = found["runs"][mesh]
    assert run["moves"] == []
    assert run["sums"][0] > 0  # gradients are summed, so the programs are of several devices
    assert found["runs"]["one"]["sums"] == [0]


def test_programs_that_gather_a_table_are_noticed():
    line = "  %all-gather.1 = f32[56,8]{1,0} all-gather(%param), channel_id=1, dimensions={0}"
    assert jax_mesh_program.large_moves(line) == [line.strip()]
    assert jax_mesh_program.large_moves(line.replace("56,8", "8,8")) == []


def test_steps_from_the_host_are_the_same_and_leave_what_is_frozen_on_every_device(found):
    steps, one = found["steps"], found["runs"]["one"]
    count = len(steps["losses"])
    assert {decision[0] for decision in steps["decisions"]} == {"sasrec", "retriever"}
    assert steps["frozen_moved"] == [False] * count
    assert steps["decisions"] == one["decisions"][:count]
    np.testing.assert_allclose(steps["losses"], one["losses"][:count], rtol=1e-5)
    assert steps["moves"] == []
    assert min(steps["sums"]) > 0


def test_a_model_from_a_mesh_is_one_for_one_device(found):
    steps = found["steps"]
    for scores in steps["elsewhere"]:
        np.testing.assert_allclose(scores, steps["scores"], rtol=1e-4, atol=1e-5)
    order = np.argsort(-np.array(steps["scores"][0]), kind="stable")
    assert len(order) == jax_mesh_program.SPLIT.num_items
    assert np.shape(steps["top"]) == (len(jax_mesh_program.SPLIT.validation), 3)


def test_checkpoints_are_those_of_one_device_and_continue_on_fewer(found):
    for mesh in ON_MESHES:
        assert found["saved"][mesh] == found["saved"]["one"]
    for mesh, resumed in found["resumed"].items():
        one, count = found["runs"]["one"], len(resumed["losses"])
        assert 0 < count < len(one["losses"]), mesh
        check_same(resumed, {name: one[name][-count:] for name in ("decisions", "losses")} | {"ranks": one["ranks"]})


@pytest.mark.parametrize("name", jax_mesh_program.CASES)
def test_other_losses_strategies_and_payoffs_work_on_a_mesh(found, name):
    one, mesh = found["cases"][name]["one"], found["cases"][name]["data=4,items=2"]
    check_same(mesh, one)
    assert mesh["top"] == one["top"]
    assert mesh["fusion"] == one["fusion"]
    np.testing.assert_allclose(mesh["scores"], one["scores"], rtol=1e-4, atol=1e-4)


def test_two_processes_train_as_one(found, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    names = ["rank 0", "rank 1"]
    processes = {name: start(tmp_path, name, 2, JAX_PROCESS_ID=name[-1], **variables) for name in names}
    first, second = finish(tmp_path, processes).values()
    assert first["processes"] == [0, 2, True, [[0], [0, 1]]]
    assert second["processes"] == [1, 2, True, [[0], [0, 1]]]
    count = len(first["losses"])
    assert first["losses"] == second["losses"]
    assert first["ranks"] == second["ranks"]
    assert first["decisions"] == found["runs"]["one"]["decisions"][:count]
    np.testing.assert_allclose(first["losses"], found["runs"]["one"]["losses"][:count], rtol=1e-5)
    assert jax_mesh_program.shapes(tmp_path / "of 0") == found["saved"]["one"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh": "data=3"}, "mesh must have as many devices as there are, 1, got 3"),
        ({"mesh": "data=1", "device": "cpu:0"}, "a mesh takes all devices of a kind, got the device 'cpu:0'"),
        ({"shard": True}, "shard must be left out with the backend jax, got True; give mesh='items=N'"),
    ],
)
def test_what_is_no_mesh_of_this_backend_is_refused(make_trainer, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(**{"device": "cpu", **settings})
