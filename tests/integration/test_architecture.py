"""docs/architecture.md names files and functions: each exists, and a journey passes them in the order that it gives."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
STEP = re.compile(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`", re.MULTILINE)
MENTION = re.compile(r"`([\w/]+\.py)`(?: `([\w.]+)`)?")

TRACE = """
import json, os, sys
root, calls = os.getcwd() + os.sep, {}

def note(frame, event, argument):
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(root):
        calls.setdefault((name[len(root):], frame.f_code.co_qualname), len(calls))

sys.setprofile(note)
try:
    exec(sys.argv[1])
finally:
    sys.setprofile(None)
    print("\\n" + json.dumps(list(calls)))
"""


def journeys():
    """Per heading of a journey, the program that takes it and the steps that it passes."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        steps = STEP.findall(text)
        if steps:
            (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
            found[title] = (program, steps)
    return found


def functions_of(path):
    names = set()

    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + child.name)
                inner = f"{prefix}{child.name}."
            walk(child, inner)

    walk(ast.parse((ROOT / path).read_text()), "")
    return names


def test_all_that_is_named_exists():
    mentions = MENTION.findall(PAGE.read_text())
    assert len(mentions) > 30
    for path, function in mentions:
        assert (ROOT / path).is_file(), path
        assert not function or function in functions_of(path), f"{path} has no {function}"


def test_there_are_three_journeys():
    assert len(journeys()) == 3


@pytest.mark.parametrize("title", journeys())
def test_a_journey_passes_its_steps_in_this_order(title, tmp_path):
    program, steps = journeys()[title]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRACE, program.replace("runs/journey", str(tmp_path / "run"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [tuple(call) for call in json.loads(done.stdout.splitlines()[-1])]
    positions = {step: calls.index(step) if step in calls else None for step in steps}
    assert None not in positions.values(), [step for step, position in positions.items() if position is None]
    assert sorted(steps, key=positions.get) == steps
