"""Compiles the modules for training: `torch.compile` of their forward passes, which keep their names and parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from alternator.checks import one_line
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.stages import MODULES
from ur4rec_torch.ur4rec import UR4Rec

COMPILER: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}
"""Arguments of `torch.nn.Module.compile`: dropout draws the numbers that it draws without compiling."""


def compile_modules(model: UR4Rec) -> None:
    """Compile both modules in place, when they are first called.

    Each is compiled once for the steps that train it and once for those in which it is frozen, and with sampled losses
    once more, for any number of items.
    """
    for name in MODULES:
        getattr(model, name).compile(**COMPILER)


@contextmanager
def as_written() -> Iterator[None]:
    """Run what was compiled as it is written: evaluation has too many shapes to compile each."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def refuse_failures() -> Iterator[None]:
    """Say in one line what to do where nothing can be compiled.

    Raises:
        ConfigurationError: With the compiler's own error.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    try:
        yield
    except TorchDynamoException as error:
        raise ConfigurationError(
            f"compile=True needs a compiler that works here, such as g++, got: {one_line(str(error))[:200]}; "
            "install one or leave out compile=True"
        ) from error
