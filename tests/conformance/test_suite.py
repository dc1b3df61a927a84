"""The suite itself: what the command line accepts, that it needs no framework, and that its comparisons can fail."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conformance import registry
from tests.conformance.comparisons import same_curves, same_ranking, same_scores
from tests.conformance.harness import Unsupported
from tests.conformance.mutants import KILLED, SURVIVED, UNASKED, verdict
from tests.conformance.reference import ReferenceHarness


def test_backends_are_chosen_by_name():
    assert registry.chosen("jax, reference") == ["jax", "reference"]
    assert registry.chosen("some.module:Harness") == ["some.module:Harness"]
    assert registry.load(registry.BACKENDS["reference"][0]) is ReferenceHarness


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("torhc", r"unknown backend 'torhc'; expected some of \('reference', 'torch', 'jax'\)"),
        (",", "--backend must name a backend"),
    ],
)
def test_a_mistaken_backend_is_an_error(option, message):
    with pytest.raises(ValueError, match=message):
        registry.chosen(option)


def test_a_backend_that_is_named_but_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "flax" else object())
    with pytest.raises(ValueError, match=r"backend 'jax' needs \['flax'\]; install them, or leave the backend out"):
        registry.chosen("reference,jax")
    assert registry.chosen(None) == ["reference", "torch"]


@pytest.mark.parametrize("place", ["no.such.module:Harness", "tests.conformance.reference:NoSuchHarness"])
def test_a_harness_that_is_not_there_is_an_error(place):
    with pytest.raises(ValueError, match=f"no harness at '{place}'"):
        registry.load(place)


WITHOUT_FRAMEWORKS = """
import sys
for name in ("torch", "jax", "jaxlib", "flax", "optax"):
    sys.modules[name] = None  # importing it fails, and it cannot be found
import pytest
cases = ["-k", "test_case or OtherError"]
sys.exit(pytest.main(["tests/conformance", "-q", "-p", "no:cacheprovider", *cases, *sys.argv[1:]]))
"""


def run_without_frameworks(*arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_FRAMEWORKS, *arguments],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_suite_runs_where_no_framework_is_installed():
    done = run_without_frameworks()
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_a_backend_named_where_it_is_not_installed_ends_the_run():
    done = run_without_frameworks("--backend=reference,torch")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert "backend 'torch' needs ['torch']" in done.stderr


def test_comparisons_can_fail():
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    same_scores(scores * (1 + 1e-6), scores)
    same_ranking(scores + 1e-7, scores, top=3)
    same_curves([1.0, 2.0], [1.00005, 2.0])
    for wrong in (
        lambda: same_scores(scores + 1e-4, scores),
        lambda: same_scores(scores[:1], scores),
        lambda: same_scores(np.full(2, np.nan), np.ones(2)),
        lambda: same_ranking(scores[:, ::-1], scores, top=1),
        lambda: same_curves([1.0, 2.0], [1.0002, 2.0]),
        lambda: same_curves([1.0, 2.0], [1.0, np.nan]),
        lambda: same_curves([1.0], [1.0, 2.0]),
    ):
        with pytest.raises(AssertionError):
            wrong()


def test_only_a_failing_assertion_kills():
    def unsupported(setup):
        raise Unsupported

    def broken(setup):
        raise KeyError("a fault of the mutant's own")

    assert verdict(ReferenceHarness, "parity") == SURVIVED
    assert verdict(unsupported, "parity") == UNASKED
    with pytest.raises(KeyError):
        verdict(broken, "parity")
    assert KILLED not in (SURVIVED, UNASKED)
