"""Damaged states: the alternators of JAX refuse what the core refuses, and accept what it accepts."""

import copy
import json
from math import isfinite

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.jax import DeviceAlternator, HostAlternator
from alternator import Alternator, ConfigurationError, Cycle, Plateau, RandomTenure, StateError
from tests.unit.alternator.rule_table import MODULES, RULES
from tests.unit.alternator.test_damaged import CHANGES, changed, places, saved_by


@pytest.mark.parametrize("name", sorted(RULES))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_device_accepts_what_the_core_accepts(name, data):
    machine = DeviceAlternator(MODULES, RULES[name], delay=1)
    state = saved_by(name, data.draw(st.sampled_from([0, 23])))
    state = changed(state, data.draw(st.sampled_from([*places(state)])), data.draw(st.sampled_from(CHANGES)))
    host = Alternator(MODULES, RULES[name])
    refusal, ours = refusal_of(host.load_state_dict, state), refusal_of(machine.load_state_dict, state)
    theirs = host.state_dict()
    numbers = [*flat(theirs["counts"]), *flat(theirs["rule_state"])]
    if refusal or max(abs(number) for number in numbers if isfinite(number)) >= 2**31:
        assert ours or not refusal
        return
    assert not ours
    ours = machine.state_dict(machine.load_state_dict(state))
    for rows in ("counts", "rule_state"):
        for key, value in theirs[rows].items():
            np.testing.assert_allclose(flat(ours[rows][key]), flat(value), rtol=1e-6)


def refusal_of(load, state):
    try:
        load(state)
    except StateError as error:
        return str(error)
    return ""


def flat(value):
    """The numbers in nested lists and dicts, in order."""
    value = list(value.values()) if isinstance(value, dict) else value
    return [number for item in value for number in flat(item)] if isinstance(value, list) else [float(value)]


@pytest.mark.parametrize("pending", [None, 3, [3], [{"a": 10**400}], [{"a": None}], [{"z": 1.0}], {"a": 1.0}])
def test_damaged_pending_losses_are_refused_before_anything_changes(pending):
    device, host = DeviceAlternator(MODULES, Cycle(2), delay=1), HostAlternator(Alternator(MODULES, Cycle(2)))
    host.observe(1.0)
    before = copy.deepcopy(host.state_dict())
    with pytest.raises(StateError, match="damaged"):
        device.load_state_dict({**device.state_dict(device.init()), "pending_losses": pending})
    with pytest.raises(StateError, match="damaged"):
        host.load_state_dict({**before, "pending_losses": pending})
    assert host.state_dict() == before


def test_what_does_not_fit_on_a_device_is_refused_by_name():
    machine, host = DeviceAlternator(("a", "b"), Plateau()), Alternator(("a", "b"))
    host.observe(1e300)
    with pytest.raises(StateError, match=r"fit on a device: rings must be of float32, got .*; continue with an Alt"):
        machine.load_state_dict(host.state_dict())
    state = Alternator(("a", "b")).state_dict()
    counts = {"step": 2**40, "updates": 2**40, "training_steps": [2**40, 0], "trained_at": [2**40, 0], "entered": False}
    state["counts"] |= counts
    Alternator(("a", "b")).load_state_dict(json.loads(json.dumps(state)))
    with pytest.raises(StateError, match="must be of int32, got"):
        machine.load_state_dict(state)


def test_lengths_beyond_the_devices_counts_are_refused_when_built():
    for rule in (Cycle(2**31), Cycle((1, 2**40)), Plateau(min_steps=2**62)):
        with pytest.raises(ConfigurationError, match=r"must be at most 2147483647 on a device, got"):
            DeviceAlternator(("a", "b"), rule)
    machine = DeviceAlternator(("a", "b"), RandomTenure(3, seed=np.uint32(2**32 - 1)), delay=jnp.int32(1))
    assert machine.init().pending_DN.shape == (1, 2)
