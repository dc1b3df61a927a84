"""What a command must not wait for before it answers."""

import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "jax", "flax", "ur4rec_torch", "ur4rec_jax"}
NEEDLESS = FRAMEWORKS | {"pyarrow", "matplotlib", "pandas", "ur4rec.data.batches", "ur4rec.evaluation.metrics"}
HELP = """
from typer.testing import CliRunner
from ur4rec.cli import app
for command in ((), ("train",), ("compare",), ("data",), ("settings",), ("presets",)):
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
"""
CONFIGURATION = """
from ur4rec.runs.config import RunConfig
from ur4rec.runs.presets import preset
RunConfig.from_json(preset("demo", schedule="plateau,threshold=0.02").to_json())
"""


@pytest.mark.parametrize("code", [HELP, CONFIGURATION, "import ur4rec.cli"])
def test_help_and_a_configuration_load_neither_data_nor_metrics_nor_a_framework(code):
    code += "\nimport sys; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert "ur4rec" in loaded
    assert not loaded & NEEDLESS
