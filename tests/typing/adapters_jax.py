"""`adapters.jax` as a user writes it: the schedule inside ``jit``."""

from typing import Any, assert_type

import jax
import jax.numpy as jnp

from adapters.jax import DeviceAlternator, DeviceDecision, DeviceState
from alternator import Alternator, Decision, Rule, Trend


def main() -> None:
    machine = DeviceAlternator(("encoder", "head"), Trend())
    state = machine.init()
    assert_type(state, DeviceState)
    assert_type(machine.modules, tuple[str, ...])
    assert_type(machine.rule, Rule)
    state, decision = machine.step(state, jnp.float32(0.7))
    assert_type(state, DeviceState)
    assert_type(decision, DeviceDecision)
    assert_type(decision.switched, jax.Array)
    state = machine.record(state, "head", 0.4)
    assert_type(machine.advance(state, updated=jnp.array(True)), tuple[DeviceState, DeviceDecision])
    assert_type(machine.force(state, "head"), DeviceState)
    log: DeviceDecision = jax.tree.map(lambda leaf: leaf[None], decision)
    assert_type(machine.decisions(log), list[Decision])
    assert_type(machine.to_host(state), Alternator)
    saved = machine.state_dict(state)
    assert_type(saved, dict[str, Any])
    assert_type(machine.load_state_dict(saved), DeviceState)


def misuse(machine: DeviceAlternator, state: DeviceState) -> None:
    machine.step(0.7)  # type: ignore[call-arg, arg-type]
    machine.step(state, "0.7")  # type: ignore[arg-type]
    machine.advance(state, updated="yes")  # type: ignore[arg-type]
    machine.force(state, 1.5)  # type: ignore[arg-type]
    DeviceAlternator(("encoder", "head"), rule="trend")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
