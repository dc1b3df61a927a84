"""The arithmetic of layouts: its bytes are those of the messages, and the command prints them."""

import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def layouts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield import_module("scaling_layouts")


def sent(layouts, layout, devices, **settings):
    return layouts.cost(layout, layouts.Problem(**settings), devices, layouts.Machine()).sent


def test_ddp_sends_each_gradient_twice_but_for_a_devices_own_part(layouts):
    problem = layouts.Problem(num_items=1000, width=8)
    found = sent(layouts, "ddp", 4, num_items=1000, width=8)
    assert sum(found.values()) == 4 * 2 * (problem.table + problem.rest) * 3 / 4
    assert sent(layouts, "fully_shard", 4, num_items=1000, width=8) == {
        "parameters": sum(found.values()) / 2,
        "gradients": sum(found.values()) / 2,
    }


def test_items_in_parts_send_what_has_a_row_per_position_however_many_items_there_are(layouts):
    few, many = (sent(layouts, "items", 8, num_items=num, width=64) for num in (10**6, 10**7))
    assert few == many
    assert few["gradients of states"] == 4 * 2 * 8 * 128 * 50 * 64 * (1 + 4) * 7 / 8
    across = sent(layouts, "items", 16, num_items=10**7, width=64)
    assert across["table's gradients"] == 4 * 2 * 10**7 * 64 / 8 / 2
    sampled = sent(layouts, "items", 16, num_items=10**7, width=64, sampled=True)
    assert sampled["table's gradients"] < across["table's gradients"] / 10


def test_a_group_that_leaves_a_machine_is_as_slow_as_the_network(layouts):
    problem, machine = layouts.Problem(num_items=10**6), layouts.Machine()
    inside, outside = (layouts.cost("ddp", problem, num, machine) for num in (8, 16))
    assert inside.seconds_sent == pytest.approx(sum(inside.sent.values()) / machine.nvlink)
    assert outside.seconds_sent == pytest.approx(sum(outside.sent.values()) / machine.network)
    assert 0 < outside.efficiency < inside.efficiency < 1
    assert layouts.saturation("ddp", problem, machine, grows=False) is not None
    assert layouts.saturation("items", problem, machine, grows=True) is None


def test_the_command_prints_a_row_per_layout(layouts, monkeypatch, capsys, tmp_path):
    file = tmp_path / "costs.json"
    monkeypatch.setattr(
        sys, "argv", ["scaling_layouts.py", "--items", "1000000", "--widths", "64", "--json", str(file)]
    )
    layouts.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(layouts.LAYOUTS) - 1
    assert len({line.count("|") for line in lines}) == 1
    assert '"network": 50000000000.0' in file.read_text()
