"""The README's first program runs as pasted, and prints what stands below it; the tutorial does so block by block."""

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"^```(python|text|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(*command, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )


def as_shown(want, got):
    """Whether the output is what the page shows, where ``...`` stands for lines left out."""
    return doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS)


def test_the_first_program_prints_what_the_readme_shows(tmp_path):
    (_, program), (kind, output) = _BLOCK.findall(README)[:2]
    assert kind == "text"
    (tmp_path / "first.py").write_text(program)
    assert run("first.py", cwd=tmp_path).stdout == output


def test_the_first_screen():
    lines = README.splitlines()
    assert any(line.startswith("pip install") for line in lines[:20])
    assert len(lines) <= 110
    program = _BLOCK.findall(README)[0][1]
    assert len([line for line in program.splitlines() if line.strip()]) <= 15


def test_links_of_the_readme_exist():
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tutorial_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, printed, compared = {"__name__": "tutorial"}, "", 0
    for kind, block in _BLOCK.findall((ROOT / "docs/tutorial.md").read_text()):
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, "docs/tutorial.md", "exec"), names)
            printed = out.getvalue()
            continue
        if kind == "console":
            command, _, block = block.partition("\n")
            printed = run("-m", *shlex.split(command.removeprefix("$ ")), cwd=tmp_path).stdout
        assert as_shown(block, printed), printed
        compared += 1
    assert compared >= 8
