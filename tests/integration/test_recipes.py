"""Every recipe: no frozen bit moves, the weights are those of the program by hand, its page shows what has to be added.

A new directory of examples/recipes is found by itself; it needs both programs, and a page.
"""

import ast
import runpy

import pytest
from torch import nn

from adapters.torch.audit import audited
from adapters.torch.decisions import LISTENERS
from adapters.torch.digests import Digester
from docs.tools.recipes import PAGES, Recipe, find_recipes, render_pages, with_section

RECIPES = find_recipes()
NUM_STEPS = 24
"""What `train` is given, unless a recipe is listed here."""
FEWER = {"cyclegan": 6, "ppo": 2}
MOVE_BY_HAND = {"dcgan": ("running_mean", "running_var", "num_batches_tracked")}
"""Buffers that the program by hand moves in every step, also where their module does not train."""
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def train(recipe, path):
    """The digests of what a program trains, by module and tensor."""
    trained = runpy.run_path(str(path))["train"](FEWER.get(recipe.name, NUM_STEPS))
    assert all(isinstance(name, str) for name in trained)
    left_out = MOVE_BY_HAND.get(recipe.name, ())
    return {name: digests_of(value, left_out) for name, value in trained.items()}


def digests_of(trained, left_out=()):
    digester = Digester()
    if isinstance(trained, nn.Module):
        state = {key: value for key, value in trained.state_dict().items() if not key.endswith(left_out)}
        return {key: digester.of(value) for key, value in state.items()}
    return digester.of(trained)


@pytest.fixture
def built():
    """All `Decisions` that are built within."""
    found = []
    token = LISTENERS.set((*LISTENERS.get(), found.append))
    yield found
    LISTENERS.reset(token)


@each_recipe
def test_no_frozen_bit_moves_and_the_weights_are_those_by_hand(recipe, built):
    with audited() as audits:
        trained = train(recipe, recipe.after)
    assert [audit.num_checks for audit in audits] == [decisions.alternator.step for decisions in built]
    stats = [decisions.alternator.stats() for decisions in built]
    assert stats
    assert all(module.training_steps > 0 for each in stats for module in each.modules.values())
    assert trained == train(recipe, recipe.twin)


@each_recipe
def test_a_program_says_the_same_before_and_after(recipe):
    before, after = (ast.parse(path.read_text()) for path in (recipe.before, recipe.after))
    assert ast.get_docstring(before)
    assert ast.get_docstring(before) == ast.get_docstring(after)
    assert not any(name in recipe.before.read_text() for name in ("adapters.", "alternator"))
    assert not any(name in recipe.twin.read_text() for name in ("adapters.", "alternator"))


@each_recipe
def test_few_lines_are_added(recipe):
    assert 0 < recipe.num_added() <= (3 if recipe.is_callback else 10), recipe.diff()


def test_the_pages_show_the_programs_as_they_are():
    stale = [path.name for path, text in render_pages().items() if text != path.read_text()]
    assert stale == [], "run python docs/tools/recipes.py"


def test_every_page_has_a_program():
    assert {path.stem for path in PAGES.glob("*.md")} - {"index"} == {recipe.name for recipe in RECIPES}


def test_lines_are_counted_with_imports_and_without_blank_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("docs.tools.recipes.PROGRAMS", tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "before.py").write_text("x = 1\ny = 2\nz = 3\n")
    (tmp_path / "one" / "after.py").write_text("import a\n\nx = 1\ny = 4\n")
    assert Recipe("one").num_added() == 2
    assert Recipe("one").twin == Recipe("one").before


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="must have the markers"):
        with_section("# A recipe\n", "diff", "")
