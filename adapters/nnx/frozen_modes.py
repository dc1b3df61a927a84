"""Noticing gradients through a frozen BatchNorm that is in inference mode because nobody has chosen a frozen mode."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from adapters.contract import unchosen


class Reported:
    """The modules of which has been warned. One object for all copies of an optimizer, so static in NNX."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def warn(self, name: str) -> None:
        """Warn of a module, once."""
        if name not in self._names:
            self._names.add(name)
            warnings.warn(unchosen(name), stacklevel=2)


def on_gradients(norm: nnx.BatchNorm, warn: Callable[[], None]) -> None:
    """Have a layer call this where its input is differentiated, while that is traced; it computes what it did.

    The input passes through an identity whose rule of differentiation is traced only if something is differentiated
    that the input depends on, in forward and in reverse mode. Layers promote their inputs by a function that they are
    built with, which is where it is put: so the layer must be one of a single trace, as what `nnx.merge` returns.
    """
    promote = norm.promote_dtype

    @jax.custom_jvp
    def same(x: Any) -> Any:
        return x

    @same.defjvp
    def _differentiate(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        warn()
        return primals[0], tangents[0]

    def watched(args: tuple[Any, ...], **kwargs: Any) -> Any:
        return promote((same(args[0]), *args[1:]), **kwargs)

    norm.promote_dtype = watched
