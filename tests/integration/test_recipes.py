"""Every recipe: no frozen bit moves, the weights are those of the program by hand, its page shows what has to be added.

A new directory of examples/recipes is found by itself; it needs both programs, and a page.
"""

import ast
import runpy
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from torch import Tensor, nn

from adapters.torch.audit import audited
from adapters.torch.decisions import LISTENERS
from adapters.torch.digests import Digester
from docs.tools.recipes import PAGES, ROOT, Recipe, find_recipes, render_pages, with_section

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
    """Of a module, a tensor, or a tree of JAX's arrays."""
    digester = Digester()
    if isinstance(trained, nn.Module):
        state = {key: value for key, value in trained.state_dict().items() if not key.endswith(left_out)}
        return {key: digester.of(value) for key, value in state.items()}
    if isinstance(trained, Tensor):
        return digester.of(trained)
    tree_util = import_module("jax.tree_util")
    leaves = tree_util.tree_leaves_with_path(trained)
    return {tree_util.keystr(path): digester.of(np.asarray(leaf)) for path, leaf in leaves if hasattr(leaf, "dtype")}


@pytest.fixture
def built():
    """All `Decisions` that are built within."""
    found = []
    token = LISTENERS.set((*LISTENERS.get(), found.append))
    yield found
    LISTENERS.reset(token)


@pytest.mark.parametrize("recipe", [each for each in RECIPES if each.is_jax], ids=lambda recipe: recipe.name)
def test_jax_no_frozen_bit_moves_and_the_weights_are_those_by_hand(recipe):
    with import_module("tests.integration.audited_jax").audited() as audits:
        train(recipe, recipe.after)
        import_module("jax").effects_barrier()
    assert audits
    for audit in audits:
        assert audit.num_checks >= NUM_STEPS
        assert set(audit.active) == set(audit.turns)
    assert train(recipe, recipe.after) == train(recipe, recipe.twin)


@pytest.mark.filterwarnings("ignore:`torch.jit.(script|interface)` is deprecated:DeprecationWarning")  # of ignite
@pytest.mark.parametrize("recipe", [each for each in RECIPES if not each.is_jax], ids=lambda recipe: recipe.name)
def test_no_frozen_bit_moves_and_the_weights_are_those_by_hand(recipe, built):
    owns_the_schedule = not recipe.is_callback and "Follower" not in recipe.after.read_text()
    with audited(learning_rates=owns_the_schedule) as audits:
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


@pytest.fixture
def clock(monkeypatch):
    """The benchmark of recipes, with a clock that only the measured programs move."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark, overhead = import_module("recipes"), import_module("overhead")
    now = SimpleNamespace(seconds=0.0, benchmark=benchmark)

    def measure(call):
        start = now.seconds
        call()
        return now.seconds - start

    for module in (benchmark, overhead):
        monkeypatch.setattr(module, "measure", measure)
    return now


def test_the_benchmark_takes_off_what_a_program_takes_to_start(clock, monkeypatch):
    seconds = {"after.py": (5.0, 0.011), "before.py": (2.0, 0.010)}

    def load(path):
        start, step = seconds[path.name]

        def train(num_steps):
            clock.seconds += start + step * num_steps

        return train

    monkeypatch.setattr(clock.benchmark, "load", load)
    row = clock.benchmark.measure_recipe(Recipe("sac"), rounds=3, seconds=1.0)
    assert row.value == pytest.approx(1.1)
    assert row.low == pytest.approx(row.high)
    assert row.against == "before.py"
    assert row.detail.startswith("11 ms against 10 ms")
    assert 390 <= int(row.detail.split()[-2]) <= 410  # twice the start of 2 s, in steps of 10 ms
