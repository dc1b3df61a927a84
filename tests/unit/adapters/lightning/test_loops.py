"""What the Lightning adapter is made of: the public pieces of `adapters.torch`, none of its private ones."""

import ast
import inspect
from pathlib import Path

import pytest

import adapters.lightning
from adapters.lightning.loops import FollowedOptimizer, ManualOptimizer
from adapters.torch import AlternatingOptimizer
from adapters.torch.freezer import Freezer

FILES = sorted(Path(inspect.getfile(adapters.lightning)).parent.glob("*.py"))


@pytest.mark.parametrize("kind", [FollowedOptimizer, ManualOptimizer])
def test_lightning_inherits_nothing_of_the_torch_adapter(kind):
    assert not issubclass(kind, AlternatingOptimizer | Freezer)
    assert all(each is object or each.__module__ == "adapters.lightning.loops" for each in kind.__mro__)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_private_attributes_are_touched_through_self_only(file):
    assert private_attributes(file.read_text()) == []


def private_attributes(source):
    """Names that begin with one underscore, of anything but ``self``."""
    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return [
        ast.unparse(node)
        for node in attributes
        if node.attr.startswith("_") and not node.attr.startswith("__") and ast.unparse(node.value) != "self"
    ]


def test_a_private_attribute_of_another_class_would_be_found():
    assert private_attributes("self._loop.start()\nself._loop._pending.add(1)\nother.__class__") == [
        "self._loop._pending"
    ]
