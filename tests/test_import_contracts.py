"""The import contracts name packages: a new file that breaks one fails `lint-imports` without being listed anywhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("alternator", "adapters", "ur4rec", "ur4rec_torch", "ur4rec_jax")
NEW = {
    "adapters.torch.new": ("jax", "The torch side knows no JAX"),
    "adapters.lightning.new": ("adapters.nnx", "The torch side knows no JAX"),
    "adapters.optax.new": ("torch", "The JAX side knows no torch"),
    "adapters.jax.new": ("adapters.optax", "Layers of the adapters"),
    "ur4rec.data.new": ("torch", "ur4rec knows no framework"),
    "ur4rec.schedule.new": ("ur4rec.training.trainer", "The layers of ur4rec"),
    "ur4rec_torch.new": ("ur4rec_jax", "Imports point one way"),
    "alternator.rules.new": ("numpy", "The core imports no third party"),
}
"""Per new module what it imports, and the contract that this breaks."""


def copy_of_the_packages(folder):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder):
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What is reported of a copy with all the new modules, per broken contract."""
    folder = copy_of_the_packages(tmp_path_factory.mktemp("packages"))
    for module, (imported, _) in NEW.items():
        (folder / module.replace(".", "/")).with_suffix(".py").write_text(f"import {imported}\n")
    done = lint(folder)
    assert done.returncode == 1, done.stdout + done.stderr
    return sections(done.stdout)


def sections(output):
    """The text under each broken contract's name, which is underlined."""
    lines = output.partition("Broken contracts")[2].splitlines()
    titles = [number for number in range(len(lines) - 1) if lines[number + 1] and set(lines[number + 1]) == {"-"}]
    ends = [*titles[1:], len(lines)]
    return {lines[start]: "\n".join(lines[start:end]) for start, end in zip(titles, ends, strict=True)}


@pytest.mark.parametrize("module", NEW)
def test_a_new_file_that_breaks_a_contract_is_found(findings, module):
    imported, contract = NEW[module]
    assert f"{module} -> {imported}" in findings[contract]


def test_without_new_files_every_contract_is_kept(tmp_path):
    done = lint(copy_of_the_packages(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
