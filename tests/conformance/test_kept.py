"""Each cell of the table of what is kept, and the table in the guide."""

from importlib import import_module
from typing import Any

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


@pytest.mark.parametrize(
    ("rows", "name"), [("torch_optimizers", "`RMSprop`"), ("torch_modules", "EMA (`AveragedModel`)")]
)
def test_a_naive_way_to_freeze_fails_in_torch(rows: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip(f"tests.conformance.{rows}", exc_type=ImportError)
    naive = import_module("tests.conformance.naive_torch").StaleGradients
    monkeypatch.setattr(module, "AlternatingOptimizer", naive)
    with pytest.raises(AssertionError):
        module.TABLE.rows[name].cells["one per module"].check()


@pytest.mark.parametrize("column", ["`active` static", "traced"])
def test_training_everything_fails_in_jax(column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("tests.conformance.optax_transforms", exc_type=ImportError)
    optax = import_module("optax")

    def everything(transforms: Any, labels: Any) -> Any:
        inner = optax.partition(transforms, labels)
        return optax.GradientTransformationExtraArgs(inner.init, lambda g, s, p, *, active: inner.update(g, s, p))

    monkeypatch.setattr(module, "alternating", everything)
    with pytest.raises(AssertionError):
        module.TABLE.rows["`adam`"].cells[column].check()


def test_the_tables_in_the_guide_are_up_to_date(request: pytest.FixtureRequest) -> None:
    backends = chosen(request.config.getoption("--backend", default=None))
    lines = [line for backend in backends for table in tables_of(backend) for line in table.render()]
    assert [line for line in lines if line not in committed().splitlines()] == [], (
        "run python -m tests.conformance.kept"
    )
    assert not set(backends) >= set(BACKENDS) or render() == committed(), "run python -m tests.conformance.kept"
    assert set(PLACES) < set(BACKENDS)
