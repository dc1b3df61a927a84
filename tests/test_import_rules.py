"""Imports point one way, and importing a package loads no more than it says."""

import subprocess
import sys

import pytest

# What each import may load beyond the standard library and the project itself.
FORBIDDEN = {
    "alternator": {"numpy", "torch", "jax", "pandas", "matplotlib", "tensorboard", "ur4rec", "adapters"},
    "adapters": {"numpy", "torch", "jax", "alternator"},
    "ur4rec.runs.run": {"torch", "jax", "flax", "optax", "ur4rec_torch", "ur4rec_jax"},
    "ur4rec.cli": {"torch", "jax", "flax", "optax", "ur4rec_torch", "ur4rec_jax"},
    "ur4rec_torch": {"jax", "flax", "optax", "ur4rec_jax"},
    "adapters.torch": {"jax", "flax", "optax", "lightning", "ur4rec"},
    "adapters.lightning": {"jax", "flax", "optax", "ur4rec"},
}


def loaded_by(module):
    code = f"import sys; import {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("module", sorted(FORBIDDEN))
def test_import_loads_no_more_than_it_says(module):
    assert not loaded_by(module) & FORBIDDEN[module]


def test_the_core_is_standard_library_only():
    assert loaded_by("alternator") <= {*sys.stdlib_module_names, "alternator", "__main__"} | startup_modules()


def startup_modules():
    code = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_layers():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
