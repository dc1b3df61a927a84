"""What help() says of the adapters' classes: the meaning of every parameter."""

import importlib
import inspect

import pytest

BUILT_BY_USERS = [
    *("adapters.torch.AlternatingOptimizer", "adapters.torch.LateScalar", "adapters.lightning.AlternatingCallback"),
    *("adapters.nnx.AlternatingOptimizer", "adapters.jax.DeviceAlternator", "adapters.jax.HostAlternator"),
]


@pytest.mark.parametrize("path", BUILT_BY_USERS)
def test_help_explains_every_parameter(path):
    package, _, name = path.rpartition(".")
    built = getattr(importlib.import_module(package), name)
    explained = [line.strip().partition(": ")[0] for line in inspect.getdoc(built).splitlines()]
    parameters = inspect.signature(built.__init__).parameters.values()
    assert [each.name for each in parameters if each.name not in (*explained, "self")] == []
