"""Imports point one way, and importing a package loads no more than it says."""

import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "jax", "flax", "optax", "lightning", "ur4rec_torch", "ur4rec_jax"}
HEAVY = {"numpy", "pyarrow", "sklearn", "ur4rec.data", "ur4rec.evaluation"}

# What each import must not load: packages, or modules of the project.
FORBIDDEN = {
    "alternator": {"numpy", "torch", "jax", "pandas", "matplotlib", "tensorboard", "ur4rec", "adapters"},
    "adapters": {"numpy", "torch", "jax", "alternator"},
    "ur4rec.config": FRAMEWORKS | HEAVY,
    "ur4rec.schedule.alternators": FRAMEWORKS | HEAVY | {"ur4rec.schedule.payoff_probe"},
    "ur4rec.runs.config": FRAMEWORKS | HEAVY | {"ur4rec.schedule.payoff_probe"},
    "ur4rec.runs.run": FRAMEWORKS,
    "ur4rec.cli": FRAMEWORKS,
    "ur4rec_torch": {"jax", "flax", "optax", "ur4rec_jax"},
    "adapters.torch": {"jax", "flax", "optax", "lightning", "ur4rec"},
    "adapters.lightning": {"jax", "flax", "optax", "ur4rec"},
}


def loaded_by(code):
    """The names of the modules that a program has loaded at its end."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("module", sorted(FORBIDDEN))
def test_import_loads_no_more_than_it_says(module):
    assert not loaded_by(f"import {module}") & FORBIDDEN[module]


@pytest.mark.parametrize("schedule", ["auto", "3:1", "payoff,groups=4", "trend", "sequence:(('both', 1),)"])
def test_a_configuration_is_parsed_without_data_metrics_or_arrays(schedule):
    code = f"from ur4rec.runs.config import RunConfig\nRunConfig(schedule={schedule!r}, trainer={{'sasrec_lr': 1e-3}})"
    assert not loaded_by(code) & FORBIDDEN["ur4rec.runs.config"]


def test_the_core_is_standard_library_only():
    loaded = loaded_by("import alternator") - loaded_by("pass")
    assert {name.partition(".")[0] for name in loaded} <= {*sys.stdlib_module_names, "alternator"}


def test_layers():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
