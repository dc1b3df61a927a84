"""The benchmark of growth with the catalogue: every measure runs, and its exponent is that of what grows."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scaling():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield import_module("scaling")


def test_every_measure_runs(scaling):
    for name in scaling.MEASURES:
        found = scaling.measure(name, scaling.Subject(backend="torch", num_items=80))
        assert (found.measure, found.backend, found.num_items) == (name, "torch", 80)
        assert found.seconds > 0
        assert found.peak_MB >= found.before_MB > 0
        assert ("file_MB" in found.extra) == name.startswith("saving")


def test_growth_is_the_exponent_between_the_two_largest(scaling, tmp_path):
    found = [
        scaling.Figures(
            measure="m", backend="torch", num_items=size, seconds=seconds, peak_MB=2.0 * size, before_MB=float(size)
        )
        for size, seconds in ((10, 7.0), (100, 1.0), (10_000, 10.0))
    ]
    assert scaling.growth(found, scaling.VALUES["seconds"]) == pytest.approx(0.5)
    assert scaling.growth(found, scaling.VALUES["MB more than before"]) == pytest.approx(1)
    facts = {"date": "2026-01-01", "processor": "a processor"}
    scaling.save(found, tmp_path / "scaling", (10, 100, 10_000), 2**30, facts)
    assert "| m, torch | 7 | 1 | 10 | 0.50 |" in (tmp_path / "scaling.md").read_text()
    assert {each.name for each in tmp_path.iterdir()} == {"scaling.json", "scaling.md", "scaling.png"}
