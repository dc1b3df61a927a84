"""The cross-entropy in slices against PyTorch's of the whole logits: values, gradients, and what is not computed."""

import pytest
import torch
import torch.nn.functional as F

from ur4rec_torch import catalogue_loss
from ur4rec_torch.catalogue_loss import catalogue_cross_entropy

NAMES = ("hidden", "table", "queries", "keys", "weights")
FORMS = {"sasrec": NAMES[:2], "retriever": NAMES[2:4], "both": NAMES}


@pytest.fixture(params=[16, 2**10], ids=["slices", "one slice"])
def _size(request, monkeypatch):
    monkeypatch.setattr(catalogue_loss, "CPU_SLICE", 1)
    monkeypatch.setattr(catalogue_loss, "MINIMUM_ROWS", request.param)


def draw_factors(dtype=torch.float64, num_rows=37, num_items=23):
    """Random factors of all kinds, and targets."""
    random = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    factors = {
        "hidden": draw(num_rows, 4),
        "table": draw(num_items, 4),
        "queries": draw(num_rows, 3, 5),
        "keys": draw(num_items, 5),
        "weights": torch.tensor([0.8, 1.3], dtype=dtype),
    }
    return factors, torch.randint(num_items, (num_rows,), generator=random)


def sliced(factors, targets_N):
    """The loss under test, of the factors that are there."""
    found = {
        "sasrec": (factors["hidden"], factors["table"]) if "hidden" in factors else None,
        "retriever": (factors["queries"], factors["keys"]) if "queries" in factors else None,
    }
    return catalogue_cross_entropy(targets_N, **found, weights_2=factors.get("weights"))


def whole(factors, targets_N):
    """PyTorch's cross-entropy of the whole logits."""
    scores = []
    if "hidden" in factors:
        scores.append(factors["hidden"] @ factors["table"].T)
    if "queries" in factors:
        scores.append(torch.einsum("nke,ie->nki", factors["queries"], factors["keys"]).logsumexp(1))
    weights = factors.get("weights", torch.ones(1))
    return F.cross_entropy(sum(weight * each for weight, each in zip(weights, scores, strict=True)), targets_N)


def chosen(factors, names, trains):
    """Copies of the named factors, some of which want a gradient."""
    return {name: factors[name].clone().requires_grad_(name in trains) for name in names}


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("names", FORMS.values(), ids=FORMS)
def test_it_is_the_cross_entropy_of_the_whole_logits(names):
    """Value and every gradient, in float64."""
    factors, targets_N = draw_factors()
    ours, theirs = chosen(factors, names, names), chosen(factors, names, names)
    loss, expected = sliced(ours, targets_N), whole(theirs, targets_N)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    for name in names:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("trains", [NAMES[:2], NAMES[2:4], NAMES[4:], (*NAMES[2:4], "weights"), ()])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(trains):
    """Each set of factors that may train, beside frozen ones."""
    factors, targets_N = draw_factors()
    everything, some = chosen(factors, NAMES, NAMES), chosen(factors, NAMES, trains)
    sliced(everything, targets_N).backward()
    loss = sliced(some, targets_N)
    assert loss.requires_grad == bool(trains)
    if trains:
        loss.backward()
    for name in NAMES:
        if name in trains:
            assert torch.equal(some[name].grad, everything[name].grad)
        else:
            assert some[name].grad is None


def test_gradients_are_those_of_finite_differences():
    """By PyTorch's own check."""
    factors, targets_N = draw_factors(num_rows=5, num_items=7)
    values = [factors[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *each: sliced(dict(zip(NAMES, each, strict=True)), targets_N), values)


def test_under_autocast_it_is_close_and_gradients_are_float32():
    """The products are of bfloat16, what is summed is of float32."""
    factors, targets_N = draw_factors(torch.float32)
    ours, theirs = chosen(factors, NAMES, NAMES), chosen(factors, NAMES, NAMES)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sliced(ours, targets_N)
    loss.backward()
    whole(theirs, targets_N).backward()
    assert loss.dtype == torch.float32
    for name in NAMES:
        assert ours[name].grad.dtype == torch.float32
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, rtol=0.1, atol=5e-3)
    assert loss.item() == pytest.approx(whole(factors, targets_N).item(), rel=2e-2)


def test_a_score_that_is_not_finite_shows_in_the_loss():
    """It is what the trainer looks at."""
    factors, targets_N = draw_factors()
    factors["hidden"][30, 0] = torch.nan
    assert torch.isnan(sliced(factors, targets_N))
