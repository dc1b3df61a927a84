"""Auditing a loop: is everything of the frozen modules the same to the bit after a step as before?

The audit trusts nothing that freezes: it hashes parameters, optimizer state and statistics before and after, for a loop
written by hand as for `alternating`. No copies are kept, so buffers may be donated and any number of steps may lie
between. It costs a copy to the host and a hash of all that is frozen: run it for some hundred steps when a loop is new.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapters.contract import ALWAYS, FreezeError
from adapters.jax.equinox import trainable
from adapters.jax.turns import Active, PyTree, Turns, owners_of
from adapters.optax.labels import dotted_paths
from adapters.optax.optimizer import Labels
from adapters.parts import owners_around
from alternator import ConfigurationError
from alternator.checks import listed

__all__ = ["Audit"]


class Audit:
    """Raises when a bit of a frozen module moves, in any loop over parameter pytrees.

    Audited are, of each module that a turn does not train and of what is labelled `FROZEN`:

    - its parameters;
    - its optimizer state: what lies under the module's name in the state (`alternating`, `optax.multi_transform`, a
      dict of states), and moments that have the path of one of its parameters (one optimizer over all). A count that
      one optimizer over all has for all of them belongs to none and is not audited;
    - its statistics, such as linen's ``batch_stats``: they belong to the parameters nearest to them, as `keep_frozen`
      has it.

    Args:
        labels: The module of each parameter, as given to `alternating`.
        modules: The names of the modules, in the order that an index `active` means.
        turns: Names that stand for several modules, as given to `alternating`.

    Example:
        >>> import optax
        >>> labels = {"encoder": "encoder", "head": "head"}
        >>> params = {"encoder": jnp.ones(2), "head": jnp.ones(2)}
        >>> freeze = optax.masked(optax.set_to_zero(), {"encoder": True, "head": False})
        >>> optimizer = optax.chain(optax.adamw(0.1), freeze)  # the updates are zero, but moments move all the same
        >>> state = optimizer.init(params)
        >>> audit = Audit(labels, ("encoder", "head"))
        >>> audit.frozen(params, state, active="head")
        >>> updates, state = optimizer.update({"encoder": jnp.ones(2), "head": jnp.ones(2)}, state, params)
        >>> audit.check(optax.apply_updates(params, updates), state)
        Traceback (most recent call last):
        ...
        adapters.contract.FreezeError: a frozen module must keep every bit, but 'opt_state.0.0.mu.encoder',
        'opt_state.0.0.nu.encoder' of 'encoder' changed in step 1; ...
    """

    def __init__(
        self, labels: Labels, modules: Iterable[str], *, turns: Mapping[str, str | Iterable[str]] | None = None
    ) -> None:
        self._labels = labels
        self._modules = tuple(modules)
        self._turns = Turns.of(self._modules, turns)
        self._kept: dict[str, dict[str, bytes]] | None = None
        self._trained: tuple[str, ...] = ()
        self._num_checks = 0
        self._num_bytes = 0

    @property
    def num_checks(self) -> int:
        """The number of times that what was frozen has been found unchanged."""
        return self._num_checks

    @property
    def num_bytes(self) -> int:
        """The number of bytes hashed."""
        return self._num_bytes

    def frozen(self, params: PyTree, opt_state: PyTree = None, *, active: Active, **collections: PyTree) -> None:
        """Remember what must stay, before one or more steps of a turn.

        Args:
            params: The parameters.
            opt_state: The state of the optimizer, or of several.
            active: The turn that trains until `check`, by name or index.
            **collections: What else the model holds, by any name: ``batch_stats=``.

        Raises:
            UnknownModuleError: `active` is not a turn.
            ConfigurationError: The labels do not fit the parameters, or `active` is traced: audit outside of ``jit``.
        """
        index = self._turns.find(active)
        if not isinstance(index, int):
            raise ConfigurationError("an audit must know who trains, but active is traced; call it outside of jit")
        self._trained = self._turns.trained[index]
        self._kept = self._digests(params, opt_state, collections)

    def check(self, params: PyTree, opt_state: PyTree = None, **collections: PyTree) -> None:
        """Compare what was frozen with what is there now; it is then forgotten.

        Args:
            params: The parameters.
            opt_state: The state of the optimizer.
            **collections: The same as were given to `frozen`.

        Raises:
            FreezeError: Naming the module, and what of it has changed, is new or is gone.
            ConfigurationError: There has been no `frozen` before.
        """
        before, self._kept = self._kept, None
        if before is None:
            raise ConfigurationError("check must follow frozen(..., active=...), which remembers what has to stay")
        after = self._digests(params, opt_state, collections)
        for owner in dict.fromkeys((*before, *after)):
            old, new = before.get(owner, {}), after.get(owner, {})
            if changed := [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]:
                raise FreezeError(
                    f"a frozen module must keep every bit, but {listed(changed)} of {owner!r} changed in step "
                    f"{self._num_checks + 1}; leave its optimizer alone, apply updates with "
                    "adapters.optax.apply_updates, and statistics with keep_frozen"
                )
        self._num_checks += 1

    def _digests(
        self, params: PyTree, opt_state: PyTree, collections: Mapping[str, PyTree]
    ) -> dict[str, dict[str, bytes]]:
        """Per frozen module, by name what it has."""
        found: dict[str, dict[str, bytes]] = {}
        for owners, name, leaf in self._owned(params, opt_state, collections):
            if owners and not any(owner in self._trained for owner in owners):
                found.setdefault(owners[0], {})[name] = self._digest(leaf)
        return found

    def _owned(
        self, params: PyTree, opt_state: PyTree, collections: Mapping[str, PyTree]
    ) -> Iterator[tuple[list[str], str, Any]]:
        """Everything with its modules and its name."""
        kept = trainable(params)
        known = owners_of(kept, self._labels, self._modules, optional=(ALWAYS,))
        owners = dict(zip(dotted_paths(kept), known, strict=True))
        for path, leaf in zip(owners, jax.tree.leaves(kept), strict=True):
            yield [owners[path]], f"params.{path}", leaf
        for path, leaf in zip(dotted_paths(opt_state), jax.tree.leaves(opt_state), strict=True):
            yield self._owner_of_state(path.split("."), owners), f"opt_state.{path}", leaf
        for collection, tree in collections.items():
            paths = dotted_paths(tree)
            near = owners_around(paths, owners, {})
            for path, leaf in zip(paths, jax.tree.leaves(tree), strict=True):
                yield near[path], f"{collection}.{path}", leaf

    def _owner_of_state(self, keys: list[str], owners: Mapping[str, str]) -> list[str]:
        """The module of a value of the optimizer's state; none if it is of all."""
        starts = [start for start in range(len(keys)) if ".".join(keys[start:]) in owners]
        before = keys[: starts[0]] if starts else keys
        if named := [key for key in before if key in (*self._modules, ALWAYS)]:
            return [named[0]]
        return [owners[".".join(keys[starts[0] :])]] if starts else []

    def _digest(self, leaf: Any) -> bytes:
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        self._num_bytes += array.nbytes
        described = f"{array.dtype}{array.shape}".encode()
        return blake2b(array.tobytes(), digest_size=16, key=blake2b(described, digest_size=16).digest()).digest()
