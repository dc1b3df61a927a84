"""The command where what it needs is not installed: one line that names the extra."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from ur4rec.__main__ import REQUIRED

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def ur4rec(*arguments, flags=(), without=(), cwd):
    """The command as its script starts it; ``-S`` leaves nothing but the standard library and this project."""
    module, function = PROJECT["scripts"]["ur4rec"].split(":")
    program = f"import sys; sys.modules.update(dict.fromkeys({without!r})); from {module} import {function} as main; "
    command = [sys.executable, *flags, "-c", f"{program}sys.exit(main())", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("given", "missing"),
    [({"flags": ("-S",)}, ", ".join(REQUIRED)), ({"without": ("rich", "numpy")}, "numpy, rich")],
    ids=["core only", "some"],
)
def test_the_command_names_the_extra(given, missing, tmp_path):
    done = ur4rec("train", **given, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == (
        f"ur4rec: the command needs packages that are not installed ({missing}); "
        "run: pip install 'adaptive-alternator[rec,torch]', or [rec,jax] in its place"
    )


def test_it_needs_what_the_extra_holds():
    distributions = packages_distributions()
    declared = [requirement.partition(">=")[0] for requirement in PROJECT["optional-dependencies"]["rec"]]
    assert [distributions[package][0].lower().replace("_", "-") for package in REQUIRED] == declared


@pytest.mark.parametrize(("backend", "needed"), [("torch", "torch"), ("jax", "jax, flax, optax")])
def test_training_names_the_extra_of_the_framework(backend, needed, tmp_path):
    arguments = ["train", "--dataset", "synthetic", "--preset", "smoke", "--backend", backend, "--out", "run"]
    done = ur4rec(*arguments, without=("torch", "jax", "flax", "optax"), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"needs {needed}, which is not installed; run: pip install 'adaptive-alternator[{backend}]'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("adapter", "missing"),
    [("transformers", "transformers"), ("transformers", "accelerate"), ("accelerate", "accelerate")],
)
def test_an_adapter_names_its_extra(adapter, missing, tmp_path):
    program = f"import sys; sys.modules[{missing!r}] = None; import adapters.{adapter}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ModuleNotFoundError: this adapter needs {missing}, which is not installed; run: pip install "
        f"'adaptive-alternator[torch,{adapter}]'"
    )
