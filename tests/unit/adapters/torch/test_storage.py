"""Memory that two modules share under different parameter objects is refused as shared parameters are."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError


def build(given):
    optimizers = {name: SGD(module.parameters(), lr=0.1) for name, module in given.items()}
    return AlternatingOptimizer(Alternator(tuple(given)), given, optimizers)


def linear_modules(**options):
    return {"encoder": nn.Linear(4, 4, **options), "decoder": nn.Linear(4, 4, **options)}


def tie_data(encoder, decoder):
    decoder.weight.data = encoder.weight.data


def tie_wrapped(encoder, decoder):
    decoder.weight = nn.Parameter(encoder.weight)


def tie_transposed(encoder, decoder):
    decoder.weight = nn.Parameter(encoder.weight.detach().t())


def tie_a_row(encoder, decoder):
    decoder.bias = nn.Parameter(encoder.weight.detach()[1])


def tie_a_column(encoder, decoder):
    decoder.bias = nn.Parameter(encoder.weight.detach()[:, 1])


def tie_another_dtype(encoder, decoder):
    decoder.bias = nn.Parameter(encoder.weight.detach().view(torch.bfloat16)[0, :4])


def tie_through_numpy(encoder, decoder):
    """Two storages over one memory."""
    decoder.weight.data = torch.from_numpy(encoder.weight.detach().numpy())


def tie_an_expanded_row(encoder, decoder):
    decoder.register_buffer("row", encoder.weight.detach()[0].expand(3, 4))


def tie_a_buffer(encoder, decoder):
    decoder.register_buffer("anchor", encoder.weight.detach())


PARAMETERS = (tie_data, tie_wrapped, tie_transposed, tie_a_row, tie_a_column, tie_another_dtype, tie_through_numpy)
BUFFERS = (tie_a_buffer, tie_an_expanded_row)


@pytest.mark.parametrize("tie", [*PARAMETERS, *BUFFERS])
def test_shared_memory_is_refused(tie):
    given = linear_modules()
    tie(**given)
    message = r"'encoder.weight' of 'encoder' shares it with 'decoder.\w+' of 'decoder'; .*always="
    with pytest.raises(ConfigurationError, match=message) as error:
        build(given)
    assert "\n" not in str(error.value)


def test_a_large_storage_in_which_each_has_its_own_part_is_accepted():
    """As flattened parameters and the columns of a fused projection have it."""
    given = linear_modules()
    flat, fused = torch.randn(8), torch.randn(4, 8)
    for index, module in enumerate(given.values()):
        module.bias = nn.Parameter(flat[4 * index : 4 * index + 4])
        module.weight = nn.Parameter(fused[:, 4 * index : 4 * index + 4])
    assert build(given).active == "encoder"


def test_constants_that_modules_share_as_buffers_are_accepted():
    given, mask = linear_modules(), torch.ones(4)
    for module in given.values():
        module.register_buffer("mask", mask)
    assert build(given).active == "encoder"


def test_views_within_one_module_are_accepted():
    given = linear_modules()
    given["encoder"].bias = nn.Parameter(given["encoder"].weight.detach()[0])
    assert build(given).active == "encoder"


def test_memory_shared_by_what_trains_always_and_a_module_is_refused():
    given, always = linear_modules(), nn.Linear(4, 4)
    tie_data(always, given["decoder"])
    optimizer = SGD([p for module in (*given.values(), always) for p in module.parameters()], lr=0.1)
    with pytest.raises(ConfigurationError, match=r"memory must belong to one module, but 'decoder.weight'"):
        AlternatingOptimizer(Alternator(tuple(given)), given, optimizer, always=always)


def test_meta_fake_and_empty_parameters_share_nothing():
    assert build(linear_modules(device="meta")).active == "encoder"
    with torch._subclasses.FakeTensorMode():
        assert build(linear_modules()).active == "encoder"
    given = linear_modules()
    for module in given.values():
        module.empty = nn.Parameter(torch.empty(0))
    assert build(given).active == "encoder"


def test_parameters_that_are_not_initialized_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"must be initialized, but 'a.weight', 'a.bias' is lazy; run a forward"
    ):
        build({name: nn.LazyLinear(4) for name in "ab"})
