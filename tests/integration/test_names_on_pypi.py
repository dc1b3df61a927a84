"""Distributions of others that have a package named as one of ours: whoever comes first, one line names the other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def install(site, distribution, package):
    """A distribution with one package, as an installer leaves it."""
    (site / package).mkdir(exist_ok=True)
    (site / package / "__init__.py").write_text("THEIRS = True\n")
    metadata = site / f"{distribution.replace('-', '_')}-9.8.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.8\n")
    (metadata / "top_level.txt").write_text(f"{package}\n")


def python(program, *paths, cwd):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("program", ["import alternator, adapters.contract", "import adapters.contract, alternator"])
@pytest.mark.parametrize(("distribution", "package"), [("adapters", "adapters"), ("alternator-client", "alternator")])
def test_ours_come_first(distribution, package, program, tmp_path):
    install(tmp_path, distribution, package)
    done = python(program, ROOT, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "Warning" in line)
    assert f"the distribution {distribution} 9.8 has " in line


def test_their_adapters_come_first(tmp_path):
    install(tmp_path, "adapters", "adapters")
    done = python("import alternator, adapters; print(adapters.THEIRS)", tmp_path, ROOT, cwd=tmp_path)
    assert done.stdout == "True\n"
    assert "the distribution adapters 9.8 has a package 'adapters' too" in done.stderr


def test_who_wants_their_adapters_and_gets_ours(tmp_path):
    install(tmp_path, "adapters", "adapters")
    done = python("from adapters import THEIRS", ROOT, tmp_path, cwd=tmp_path)
    assert "this package 'adapters' is adaptive-alternator's, but the distribution adapters 9.8 has one" in done.stderr


def test_both_in_one_directory(tmp_path):
    """What is installed last has its ``__init__.py`` there."""
    for package in ("alternator", "adapters"):
        shutil.copytree(ROOT / package, tmp_path / package)
    install(tmp_path, "adapters", "adapters")
    done = python("import adapters.contract; assert adapters.THEIRS", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the distribution adapters 9.8 has a package 'adapters' too" in done.stderr
    install(tmp_path, "alternator", "alternator")
    done = python("import adapters.contract", tmp_path, cwd=tmp_path)
    assert "is that of alternator, not adaptive-alternator's" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("distribution", ["alternator", "alternator-client"])
def test_their_alternator_comes_first(distribution, tmp_path):
    install(tmp_path, distribution, "alternator")
    done = python("import adapters.contract", tmp_path, ROOT, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: the package 'alternator' in {tmp_path / 'alternator'} is that of {distribution}, "
        "not adaptive-alternator's; use adaptive-alternator in an environment without it"
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "adapters",
            "error: the package 'adapters' must be adaptive-alternator's, but another is found first, without "
            "adapters.torch; use an environment without the distribution adapters",
        ),
        (
            "alternator",
            "ur4rec: the package 'alternator' must be adaptive-alternator's, but that in '{site}' is found first; "
            "use an environment without it",
        ),
    ],
)
def test_the_recommender(name, line, tmp_path):
    install(tmp_path, name, name)
    program = (
        "import sys; sys.argv = 'ur4rec train --dataset synthetic --preset smoke --out run'.split(); "
        "from ur4rec.__main__ import main; main()"
    )
    done = python(program, tmp_path, ROOT, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == line.format(site=tmp_path / name)
    assert "Traceback" not in done.stderr


def test_nobody_else_no_line(tmp_path):
    assert python("import alternator, adapters.contract", ROOT, cwd=tmp_path).stderr == ""
