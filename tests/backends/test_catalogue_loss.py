"""The cross-entropy in slices against that of the whole logits in plain NumPy: value, gradients, what is frozen."""

import math

import numpy as np
import pytest

from tests.backends import reference
from tests.backends.catalogue_factors import NAMES, catalogue_loss, draw_factors

FORMS = {"sasrec": NAMES[:2], "retriever": NAMES[2:4], "both": NAMES}


@pytest.fixture(params=[8, 2**14], ids=["slices", "one slice"])
def _size(request, backend, monkeypatch):
    backend.set_slices(monkeypatch, num_rows=request.param, num_items=23)


def train(backend, factors, targets_N, trains=NAMES, smoothing=0.0):
    """Three times the loss and its gradients by some factors; the others are frozen."""
    trained = {name: factor for name, factor in factors.items() if name in trains}
    frozen = {name: backend.array(factor) for name, factor in factors.items() if name not in trains}

    def loss(*values):
        whole = frozen | dict(zip(trained, values, strict=True))
        return 3 * catalogue_loss(backend, whole, targets_N, smoothing)

    value, gradients = backend.value_and_gradients(loss, *trained.values(), wide=True)
    return value, dict(zip(trained, gradients, strict=True))


def assert_same(backend, ours, theirs):
    """Values and gradients."""
    np.testing.assert_allclose(ours[0], theirs[0], **backend.tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        np.testing.assert_allclose(gradient, theirs[1][name], **backend.tolerance)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("names", FORMS.values(), ids=FORMS)
def test_it_is_the_cross_entropy_of_the_whole_logits(backend, names, smoothing):
    """Value and every gradient."""
    factors, targets_N = draw_factors()
    factors = {name: factors[name] for name in names}
    value, gradients = reference.catalogue_loss(factors, targets_N, smoothing)
    expected = 3 * value, {name: 3 * gradient for name, gradient in gradients.items()}
    assert_same(backend, train(backend, factors, targets_N, smoothing=smoothing), expected)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("trains", [NAMES[:2], NAMES[2:4], NAMES[4:], (*NAMES[2:4], "weights")])
def test_what_is_frozen_changes_no_gradient_of_another(backend, trains):
    """Each set of factors that may train, beside frozen ones."""
    factors, targets_N = draw_factors()
    value, everything = train(backend, factors, targets_N)
    expected = value, {name: gradient for name, gradient in everything.items() if name in trains}
    assert_same(backend, train(backend, factors, targets_N, trains), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(backend, smoothing):
    """By the framework's own check."""
    factors, targets_N = draw_factors(num_rows=5, num_items=7)

    def loss(*values):
        return catalogue_loss(backend, dict(zip(factors, values, strict=True)), targets_N, smoothing)

    backend.check_gradients(loss, *factors.values())


def test_a_score_that_is_not_finite_shows_in_the_loss(backend):
    """It is what the trainer looks at."""
    factors, targets_N = draw_factors()
    factors["hidden"][30, 0] = np.nan
    assert math.isnan(train(backend, factors, targets_N)[0])
