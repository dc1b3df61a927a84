"""The code of README and of the guides is typed: mypy --strict and basedpyright accept each page as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guide_blocks import blocks_of

ROOT = Path(__file__).parents[2]
GIVEN = """\
from collections.abc import Callable

import torch as torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from adapters.torch import AlternatingOptimizer as AlternatingOptimizer
from alternator import Alternator, Gain as Gain

alternator: Alternator
modules: dict[str, nn.Module]
optimizers: dict[str, torch.optim.Optimizer]
model: nn.Module
tower: nn.Linear
head: nn.Linear
user_tower: nn.Linear
item_tower: nn.Linear
shared_embedding: nn.Embedding
criterion: Callable[[Tensor, Tensor], Tensor]
loss: Tensor
loss_e: Tensor
loss_h: Tensor
loader: DataLoader[tuple[Tensor, ...]]
held_out_groups: list[tuple[Tensor, Tensor]]
sequences: Dataset[dict[str, Tensor]]
train: Callable[[str, object], dict[str, float]]
"""
"""What some guides take as given."""
TAKE_AS_GIVEN = ("docs/choosing-a-rule.md", "docs/freezing.md", "docs/other-loops.md", "docs/training-loop.md")
PROGRAMS = ("docs/distributed.md", "docs/other-loops.md")
"""Pages whose blocks are programs of their own."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A module per page, or per block of a page of `PROGRAMS`."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "__init__.py").touch()
    (folder / "given.py").write_text(GIVEN, encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page = path.relative_to(ROOT).as_posix()
        blocks = blocks_of(page)
        programs = blocks if page in PROGRAMS else ["\n".join(blocks)] * bool(blocks)
        for number, program in enumerate(programs):
            name = f"{re.sub(r'[^a-z]', '_', page.lower())}_{number}.py"
            given = "from .given import *\n" if page in TAKE_AS_GIVEN else ""
            (folder / name).write_text(given + program, encoding="utf-8")
    assert len(list(folder.iterdir())) > 11
    return folder


def check(*command, folder):
    """The checker's output, if it complains."""
    command = [sys.executable, "-m", *command, *map(str, sorted(folder.iterdir()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.slow
def test_mypy_accepts_the_guides(pages):
    untyped = (
        "--disable-error-code=import-untyped",
        "--untyped-calls-exclude=torch",
        "--untyped-calls-exclude=flax",
    )  # optax, and Tensor.backward
    assert check("mypy", "--strict", *untyped, folder=pages) == ""


def test_pyright_accepts_the_guides(pages):
    assert check("basedpyright", "--pythonpath", sys.executable, "--level", "error", folder=pages) == ""


@pytest.mark.parametrize("checker", [("mypy", "--strict"), ("basedpyright", "--pythonpath", sys.executable)])
def test_a_planted_mistake_is_found(checker, tmp_path):
    (tmp_path / "planted.py").write_text("from alternator import Trend\n\nTrend(min_gain='0.01')\n", encoding="utf-8")
    assert "planted.py" in check(*checker, folder=tmp_path)
