"""Each cell of the table of what is kept, and the table in the guide."""

import pytest

from tests.conformance.kept import PLACES, Cell, committed, render, tables_of
from tests.conformance.registry import BACKENDS, chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    backends = chosen(metafunc.config.getoption("--backend", default=None))
    if "cell" in metafunc.fixturenames:
        cells = [(place, cell) for backend in backends for table in tables_of(backend) for place, cell in table.cells()]
        metafunc.parametrize("cell", [cell for _, cell in cells], ids=[place for place, _ in cells])


def test_cell(cell: Cell) -> None:
    cell.check()


def test_the_tables_in_the_guide_are_up_to_date(request: pytest.FixtureRequest) -> None:
    backends = chosen(request.config.getoption("--backend", default=None))
    lines = [line for backend in backends for table in tables_of(backend) for line in table.render()]
    assert [line for line in lines if line not in committed().splitlines()] == [], (
        "run python -m tests.conformance.kept"
    )
    assert not set(backends) >= set(BACKENDS) or render() == committed(), "run python -m tests.conformance.kept"
    assert set(PLACES) < set(BACKENDS)
