"""The benchmark of growth: every measure runs, exponents are those of what grows, and finished cells are kept."""

import json
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scaling():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield import_module("scaling")


@pytest.fixture(scope="module")
def measures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        found = import_module("scaling_measures")
        patch.setattr(found, "ENOUGH_SECONDS", 0.0)
        yield found


@pytest.fixture
def report(scaling):
    return import_module("scaling_report")


def test_every_measure_runs(measures):
    for name, each in measures.MEASURES.items():
        backend = "torch" if "torch" in each.backends else ""
        axis, size = ("users", 600) if "users" in each.axes else ("catalogue", 80)
        found = measures.measure(name, axis, size, backend)
        assert (found.measure, found.axis, found.size, found.backend) == (name, axis, size, backend)
        assert found.seconds > 0
        assert found.calls in (1, 2)
        assert found.peak_MB >= found.before_MB > 0
        assert ("file_MB" in found.extra) == name.startswith(("saving", "TF-IDF", "loading"))


def figures(scaling, size, backend="torch", measure="m", **values):
    return scaling.Figures(axis="catalogue", size=size, measure=measure, backend=backend, **values)


def test_exponents_are_between_the_last_two_and_fitted(scaling, report):
    found = [figures(scaling, size, seconds=seconds) for size, seconds in ((10, 7.0), (100, 1.0), (10_000, 10.0))]
    last, fitted = report.exponents(found, report.VALUES["processor seconds"])
    assert last == pytest.approx(0.5)
    assert -0.84 < fitted < 0.5
    assert report.steep(found) == []
    found[-1] = figures(scaling, 10_000, seconds=1000.0)
    assert report.steep(found) == ["- catalogue: m, torch, processor seconds: 1.50"]


def test_results_have_the_tables_of_each_axis_and_what_failed(scaling, report, tmp_path):
    found = [
        *(figures(scaling, size, seconds=7.0, peak_MB=3.0 * size, before_MB=size) for size in (10, 100)),
        scaling.Figures(axis="users", size=5, measure="reading", backend="", seconds=2.0),
        figures(scaling, 1000, failed="exit code -9"),
    ]
    text = report.save(found, tmp_path / "scaling", 2**30, {"date": "2026-01-01", "processor": "a processor"})
    assert "| m, torch | 7 | 7 | exit code -9 | 0.00 | 0.00 |" in text
    assert "| m, torch | 20 | 200 | exit code -9 | 1.00 | 1.00 |" in text
    assert "| reading | 2 | – | – |" in text
    assert {each.name for each in tmp_path.iterdir()} == {"scaling.json", "scaling.md", "scaling.png"}
    assert len(json.loads((tmp_path / "scaling.json").read_text())["figures"]) == 4


def test_growth_with_interactions_is_what_the_other_benchmark_found(scaling, tmp_path):
    assert scaling.data_figures(tmp_path) == []
    row = {"num_interactions": 100, "stage": "preparing", "seconds": 2.0, "peak_MB": 3.0, "disk_MB": 4.0}
    for date, stage in (("2026-01-01", "old"), ("2026-01-02", "preparing")):
        content = json.dumps({"figures": [{**row, "stage": stage}]})
        (tmp_path / f"scaling_data_cpu2_{date}.json").write_text(content)
    (found,) = scaling.data_figures(tmp_path)
    assert (found.axis, found.size, found.measure) == ("interactions", 100, "preparing")
    assert (found.seconds, found.peak_MB, found.extra) == (2.0, 3.0, {"file_MB": 4.0})


def test_finished_cells_are_kept_and_shared_by_axes(scaling, tmp_path, monkeypatch, capsys):
    ran = []

    def measure_apart(cell, memory, timeout):
        ran.append(str(cell))
        return scaling.Figures(**cell._asdict(), seconds=1.0, peak_MB=2.0, before_MB=1.0, wall=2.0)

    monkeypatch.setattr(scaling, "measure_apart", measure_apart)
    arguments = ["--only", "ranking", "--backend", "torch", "--work", str(tmp_path), "--out", str(tmp_path / "out")]
    assert scaling.main([*arguments, "--largest", "3000"]) == 0
    usual = "catalogue: ranking 512 users, torch, 3,000"
    assert [usual, *ran[1:]] == ran
    assert len(ran) == 7, "3,000 items, and lengths and widths other than the usual ones"
    assert scaling.main(arguments) == 0
    assert [cell.rpartition(" ")[2] for cell in ran[7:]] == ["30,000", "300,000", "1,000,000"]
    assert scaling.main([*arguments, "--list"]) == 0
    assert f"{usual}: 1 s, 1 MB more" in capsys.readouterr().out
