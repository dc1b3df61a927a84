"""PyTorch alone: what needs no gradient gets none, and autocast."""

import pytest
import torch

from tests.backends import reference
from tests.backends.catalogue_factors import NAMES, catalogue_loss, draw_factors


def tensors(dtype, trains=NAMES):
    """Factors of which some want a gradient, and targets."""
    factors, targets_N = draw_factors()
    made = {name: torch.tensor(each, dtype=dtype, requires_grad=name in trains) for name, each in factors.items()}
    return made, targets_N


@pytest.mark.parametrize("num_rows", [16, 2**10])
@pytest.mark.parametrize("trains", [NAMES[:2], NAMES[2:4], NAMES[4:], (*NAMES[2:4], "weights"), ()])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(backend, monkeypatch, num_rows, trains):
    """Bit for bit."""
    backend.set_slices(monkeypatch, num_rows=num_rows, num_items=23)
    (everything, targets_N), (some, _) = tensors(torch.float64), tensors(torch.float64, trains)
    catalogue_loss(backend, everything, targets_N).backward()
    loss = catalogue_loss(backend, some, targets_N)
    assert loss.requires_grad == bool(trains)
    if trains:
        loss.backward()
    for name in NAMES:
        if name in trains:
            assert torch.equal(some[name].grad, everything[name].grad)
        else:
            assert some[name].grad is None


def test_under_autocast_it_is_close_and_gradients_are_float32(backend):
    """The products are of bfloat16, what is summed is of float32."""
    factors, targets_N = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = catalogue_loss(backend, factors, targets_N)
    loss.backward()
    expected, gradients = reference.catalogue_loss(draw_factors()[0], targets_N)
    assert loss.dtype == torch.float32
    for name in NAMES:
        assert factors[name].grad.dtype == torch.float32
        torch.testing.assert_close(factors[name].grad, torch.tensor(gradients[name]).float(), rtol=0.1, atol=5e-3)
    assert loss.item() == pytest.approx(expected, rel=2e-2)
