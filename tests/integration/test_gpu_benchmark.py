"""The benchmark of accelerators, on the CPU: it measures what it claims, and reports what does not hold."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield import_module("gpu")


def test_a_look_measures_every_turn_and_precision(gpu, tmp_path):
    assert gpu.main(["--device", "cpu", "--backend", "torch", "--quick", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("gpu_cpu-quick_*.json")
    rows = json.loads(file.read_text())["rows"]
    names = [row["name"] for row in rows]
    assert [f"torch, quick, {turn}" in names for turn in gpu.turns_of(gpu.MODULES)] == [True] * len(
        gpu.turns_of(gpu.MODULES)
    )
    for kind in (", bf16", ", sampled"):
        assert [f"torch, quick, {turn}{kind}" in names for turn in gpu.turns_of(gpu.MODULES)] == [True] * len(
            gpu.turns_of(gpu.MODULES)
        )
    assert sum("reader" in name for name in names) == 4
    assert all(row["value"] > 0 for row in rows if row["unit"] == "ms")
    assert sum("frozen" in name for name in names) == 2


def test_a_frozen_module_that_moves_does_not_hold(gpu, monkeypatch):
    setting = gpu.Setting("cpu", **gpu.QUICK["quick"])
    rows = iter(range(1000))
    monkeypatch.setattr(gpu, "bits", lambda trainer, module: [next(rows)])
    assert [row.passes for row in gpu.exact_rows(setting, ["torch"], 1)] == [False, False, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "give --device cpu --quick" in capsys.readouterr().err
