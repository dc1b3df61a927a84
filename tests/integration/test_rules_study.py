"""The detection study in small: it finds what it should, and it can fail."""

import csv
import json
import math

import pytest

import benchmarks.rules as study
from alternator import Plateau, Trend


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(study, "NOISES", (0.1,))
    monkeypatch.setattr(study, "SLOPES", (0.0, 0.005))
    monkeypatch.setattr(study, "REQUIREMENTS", (study.REQUIREMENTS[0], study.REQUIREMENTS[7]))
    monkeypatch.setattr(study, "EVENTS", study.EVENTS[1:2])
    monkeypatch.setattr(study, "PANELS", ((0.1, 0.002),) * 2)
    monkeypatch.setattr(study, "FAMILIES", {name: members[:2] for name, members in study.FAMILIES.items()})


def test_the_losses_are_what_they_are_called():
    still = study.Scenario(slope=0.01, change=100, noise=0.0, num_steps=200).losses(2)
    assert still[0, 0] == 1
    assert still[0, 99:].tolist() == pytest.approx([math.exp(-0.99), *[math.exp(-1)] * 100])
    wave = study.Scenario(noise=0.1, rho=0.9, num_steps=1000).losses(20) - 1
    assert wave.std() == pytest.approx(0.1, rel=0.15)
    assert (wave[:, 1:] * wave[:, :-1]).mean() / wave.var() == pytest.approx(0.9, abs=0.05)


def test_a_bar_that_is_missed_is_seen():
    small = study.Requirement(scenario=study.Scenario(slope=0.002, num_steps=300), hold=0.95)
    cells = {
        name: study.run_cell((name, rule, small.scenario, 6))
        for name, rule in {"Trend": Trend(max_steps=None), "Plateau": Plateau()}.items()
    }
    assert small.check(cells["Trend"])[2] is True
    assert small.check(cells["Plateau"])[2] is False
    assert cells["Plateau"].false_switches > 0.5


def test_the_command_writes_json_tables_and_a_plot(tmp_path, capsys):
    log = tmp_path / "losses.csv"
    with log.open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b"), *((1 + 0.01 * (step % 7), 2.0) for step in range(120))])
    code = study.main(["--quick", "--processes", "1", "--out", str(tmp_path / "out"), "--losses", str(log)])
    files = {path.suffix: path for path in (tmp_path / "out").iterdir()}
    result = json.loads(files[".json"].read_text())
    assert set(files) == {".json", ".md", ".png"}
    assert code == (0 if all(row["kept"] for row in result["checks"]) else 1)
    assert [row["scenario"] for row in result["checks"]] == ["10% noise, slope 0", "10% noise, slope -0.005"]
    assert all(row["grows"] for row in result["thresholds"])
    assert {row["rule"] for row in result["recorded"]} >= {"Trend", "Plateau", "Gain"}
    assert "`losses.csv`, 120 steps" in files[".md"].read_text()
    assert "bars missed" in capsys.readouterr().out or code == 0
