"""The client programs of this folder are what a user writes: they run, and mypy accepts them but no planted mistake."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CLIENTS = sorted(set(HERE.glob("*.py")) - set(HERE.glob("test_*.py")))
MISTAKES = """
from alternator import Alternator
from ur4rec.config import ModelConfig

decision: str = Alternator(("encoder", "head")).observe(0.1)
Alternator(("encoder", "head")).observe(0.1)  # type: ignore[arg-type]
ModelConfig(num_items="30")
"""


def mypy(*files):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *map(str, files)],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_client_programs_of_every_public_api_are_typed():
    done = mypy(*CLIENTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no issues found in {len(CLIENTS)} source files" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS, ids=lambda path: path.stem)
def test_client_program_runs(client):
    runpy.run_path(str(client), run_name="__main__")


def test_every_package_has_a_client_program():
    sources = "".join(client.read_text(encoding="utf-8") for client in CLIENTS)
    packages = ["alternator", "ur4rec", "ur4rec_torch", "ur4rec_jax"]
    packages += [f"adapters.{path.parent.name}" for path in HERE.parents[1].glob("adapters/*/__init__.py")]
    assert [
        name for name in packages if f"\nfrom {name} import" not in sources and f"\nfrom {name}." not in sources
    ] == []


@pytest.mark.slow
def test_a_planted_mistake_is_found(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(MISTAKES, encoding="utf-8")
    done = mypy(planted)
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line.rsplit("[", 1)[-1] for line in done.stdout.splitlines()[:-1]] == [
        "assignment]",
        "unused-ignore]",
        "arg-type]",
    ]
