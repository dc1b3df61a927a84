"""The benchmark of overhead, in its quick form: it measures, judges and writes what it claims."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "overhead.py"))
RULES = ("Plateau", "Balance", "Cycle", "Patience", "Trend", "Gain", "RandomTenure")


def row(**changes):
    figures = {"value": 2.0, "low": 1.5, "high": 2.5, "unit": "×", "bar": 3.0}
    return BENCHMARK["Row"](**{"name": "observe", "against": "step", "detail": "", **figures, **changes})


def test_rows_are_judged_by_their_bars():
    assert row().passes
    assert row(bar=2.0).passes
    assert row(bar=None, value=1e9).passes
    assert not row(value=3.01).passes


def test_a_thing_measured_against_itself_and_against_twice_itself():
    def once():
        sum(range(20_000))

    def twice():
        once(), once()

    measured = BENCHMARK["side_by_side"]("twice", "once", twice, once, rounds=40, calls=1, bar=None)
    assert measured.value == pytest.approx(2.0, rel=0.2)
    assert measured.low <= measured.value <= measured.high


def test_every_rule_is_measured():
    names = [each.name for each in BENCHMARK["observe_rows"](rounds=2, calls=20)]
    assert all(any(name in row for row in names) for name in RULES)


def test_the_result_is_written_as_json_table_and_plot(tmp_path):
    rows = [
        row(),
        row(name="slow", value=4.0, low=3.5, high=4.5),
        row(name="memory", unit="bytes", value=64.0, bar=1024.0),
    ]
    file = BENCHMARK["save"](rows, tmp_path, "cpu", "python benchmarks/overhead.py")
    result = json.loads(file.read_text())
    assert [each["passes"] for each in result["rows"]] == [True, False, True]
    assert {"processor", "cores", "python", "torch", "seed"} <= set(result["machine"])
    table = file.with_suffix(".md").read_text()
    assert "| observe | step | 2.000 × | 1.500 – 2.500 | ≤ 3 × | yes |" in table
    assert "| slow | step | 4.000 × | 3.500 – 4.500 | ≤ 3 × | **no** |" in table
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
