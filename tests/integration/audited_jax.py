"""The audit of programs in JAX that build their own optimizer: each update reports to the host, also within scans."""

import sys
from contextlib import contextmanager
from unittest import mock

import optax
from jax.experimental import io_callback

from adapters.optax import alternating, apply_updates
from adapters.optax.audit import Audit


@contextmanager
def audited():
    """Audit each `adapters.optax.alternating` that is built within; the audits, and the turns of their steps."""
    audits = []

    def audited_alternating(transforms, labels, *, turns=None, **options):
        audit = Audit(labels, tuple(transforms), turns=turns)
        audit.turns, audit.active = tuple(turns or transforms), []
        audits.append(audit)
        return reporting(alternating(transforms, labels, turns=turns, **options), audit)

    modules = [module for name, module in list(sys.modules.items()) if name.startswith("adapters.")]
    with mock.patch.multiple("adapters.optax", alternating=audited_alternating):
        for module in modules:
            if vars(module).get("alternating") is alternating:
                module.alternating = audited_alternating
        try:
            yield audits
        finally:
            for module in modules:
                if vars(module).get("alternating") is audited_alternating:
                    module.alternating = alternating


def reporting(transform, audit):
    """The transformation, with a check after each update."""

    def check(active, params, state, new_params, new_state):
        audit.frozen(params, state, active=int(active))
        audit.check(new_params, new_state)
        audit.active.append(audit.turns[int(active)])

    def update(gradients, state, params=None, *, active, **options):
        updates, new_state = transform.update(gradients, state, params, active=active, **options)
        index = audit.turns.index(active) if isinstance(active, str) else active
        new_params = apply_updates(params, updates)
        io_callback(check, None, index, params, state, new_params, new_state, ordered=True)
        return updates, new_state

    return optax.GradientTransformationExtraArgs(transform.init, update)
