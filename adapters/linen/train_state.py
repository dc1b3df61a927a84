"""Flax linen: a `TrainState` whose gradients are applied to the active modules only."""

from typing import Any, Self

import jax
from flax.training import train_state

from adapters.jax.turns import Active, PyTree
from adapters.optax import AlternatingState, apply_updates
from alternator import ConfigurationError


class TrainState(train_state.TrainState):  # type: ignore[no-untyped-call]
    """Flax's `TrainState` over `adapters.optax.alternating`: what is frozen keeps every bit.

    Everything else is as in Flax: subclass it to hold collections such as ``batch_stats``, which `apply_gradients` then
    replaces by name. Those of frozen modules `adapters.optax.keep_frozen` leaves as they are.

    Example:
        >>> import flax.linen as nn
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from adapters.optax import active_value_and_grad, alternating, labels_of
        >>> class Model(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, inputs):
        ...         return nn.Dense(1, name="head")(nn.Dense(4, name="encoder")(inputs))
        >>> model, inputs = Model(), jnp.ones((8, 3))
        >>> labels = labels_of({"encoder": "*", "head": "head"})
        >>> tx = alternating({"encoder": optax.adamw(1e-3), "head": optax.adamw(1e-3)}, labels)
        >>> params = model.init(jax.random.key(0), inputs)["params"]
        >>> state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        >>> gradients = active_value_and_grad(
        ...     lambda params: (state.apply_fn({"params": params}, inputs) ** 2).mean(), labels, ("encoder", "head")
        ... )
        >>> value, grads = gradients(state.params, active="head")
        >>> state = state.apply_gradients(grads=grads, active="head")
        >>> bool((state.params["encoder"]["kernel"] == params["encoder"]["kernel"]).all())
        True
    """

    def apply_gradients(self, *, grads: PyTree, active: Active, **kwargs: Any) -> Self:  # type: ignore[override]
        """The state after an update of the active modules, one step later.

        Args:
            grads: Gradients in the structure of the parameters, as `adapters.optax.active_value_and_grad` returns them.
                Those of what is frozen are ignored.
            active: The turn that trains: a name or an index, or a traced int32 index.
            **kwargs: Further attributes to replace.

        Raises:
            UnknownModuleError: A static `active` that is not a turn.
        """
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params, active=active)
        params = apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **kwargs)

    @classmethod
    def create(cls, **kwargs: Any) -> Self:
        """The state before the first step.

        Args:
            **kwargs: As in Flax: ``apply_fn``, ``params``, ``tx`` (an `adapters.optax.alternating`, alone or in a
                chain) and the attributes of a subclass.

        Raises:
            ConfigurationError: ``tx`` would train everything at every step.
        """
        state: Self = super().create(**kwargs)  # type: ignore[no-untyped-call]
        nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, AlternatingState))
        if not any(isinstance(node, AlternatingState) for node in nodes):
            raise ConfigurationError(
                "tx must be an adapters.optax.alternating(...), which moves the active modules only; got a "
                "transformation that would move all, whatever is active"
            )
        return state
