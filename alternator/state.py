"""Saving and loading: a versioned dict of plain JSON values that names its configuration and refuses another's."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

from alternator.checks import plain, to_integer, to_real
from alternator.errors import ConfigurationError, StateError, quoted
from alternator.rule import Facts, Rule

VERSION = 2


def configuration(modules: tuple[str, ...], rule: Rule, nonfinite_limit: int) -> dict[str, Any]:
    """What two alternators must share to load each other's state, as plain JSON values."""
    if not dataclasses.is_dataclass(rule) or isinstance(rule, type):
        raise ConfigurationError(
            f"a rule must be a frozen dataclass, so that its state can be saved; got {quoted(rule)}"
        )
    parameters = {f"rule.{field.name}": getattr(rule, field.name) for field in dataclasses.fields(rule)}
    named = {"modules": modules, "rule": type(rule).__name__, **parameters, "nonfinite_limit": nonfinite_limit}
    try:
        return dict(json.loads(json.dumps(named, default=_to_plain)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the fields of a rule must be numbers, strings or tuples of them: {error}") from error


def _to_plain(value: object) -> object:
    found = plain(value)
    if found is value:
        raise TypeError(f"got {quoted(value)}")
    return found


def fingerprint(config: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def dump_state(config: Mapping[str, Any], counts: dict[str, Any], rule_state: Any) -> dict[str, Any]:
    """Everything in one dict; the rule's infinities and NaNs become strings, as strict JSON has none."""
    return {
        "version": VERSION,
        "fingerprint": fingerprint(config),
        "configuration": dict(config),
        "counts": _encode(counts),
        "rule_state": _encode(rule_state._asdict()),
    }


def parse_state(state: Mapping[str, Any], config: Mapping[str, Any], rule: Rule) -> tuple[dict[str, Any], Any]:
    """Check a saved state and return its counts and the rule's state.

    Raises:
        StateError: Another version, another configuration (saying what differs), or a damaged state.
    """
    try:
        if state["version"] != VERSION:
            raise StateError(
                f"state version must be {VERSION}, got {quoted(state['version'])}; save it again with this release"
            )
        saved = _encode(state["configuration"])
        if saved != config:
            raise StateError(f"the state belongs to another configuration: {_differences(saved, config)}")
        num_modules = len(config["modules"])
        counts = _check_counts(state["counts"], num_modules, max(rule.ring_size, 1))
        return counts, _check_rule_state(state["rule_state"], rule, build_facts(counts, rule))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        if isinstance(error, StateError):
            raise
        raise StateError(f"the state is damaged ({type(error).__name__}: {error}); load an intact one") from error


def build_facts(counts: Mapping[str, Any], rule: Rule) -> Facts:
    """The facts with these counts, which `parse_state` has checked."""
    facts = Facts(len(counts["rings"]), max(rule.ring_size, 1))
    for name in ("step", "active", "tenure", "entered", "entered_at", "observed", "updates"):
        setattr(facts, name, counts[name])
    facts.trained_at = list(counts["trained_at"])
    for ring, losses in zip(facts.rings, counts["rings"], strict=True):
        ring.extend(losses)
    return facts


def _differences(saved: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    missing = "(absent)"
    return "; ".join(
        f"{name} was {quoted(saved.get(name, missing))}, is {quoted(config.get(name, missing))}"
        for name in sorted({*saved, *config})
        if saved.get(name, missing) != config.get(name, missing)
    )


_SCALARS = ("step", "active", "tenure", "entered_at", "observed", "updates", "switch_count")
_PER_MODULE = ("trained_at", "training_steps", "skipped_steps", "nonfinite_losses", "nonfinite_streaks")


def _check_counts(saved: Mapping[str, Any], num_modules: int, ring_size: int) -> dict[str, Any]:
    fresh: dict[str, Any] = dict.fromkeys(_SCALARS, 0) | {"entered": True}
    fresh |= dict.fromkeys(_PER_MODULE, (0,) * num_modules) | {"plateaued": (False,) * num_modules}
    counts = {name: _match(name, saved[name], value) for name, value in fresh.items()}
    counts |= {name: list(value) for name, value in counts.items() if isinstance(value, tuple)}
    counts["rings"] = [list(map(float, _match("rings", ring, (0.0,) * len(ring)))) for ring in saved["rings"]]
    if not _are_possible(counts, num_modules, ring_size):
        raise StateError("the state is damaged: its counts contradict each other; load an intact one")
    return counts


def _are_possible(counts: Mapping[str, Any], num_modules: int, ring_size: int) -> bool:
    """Whether an alternator can have counted so."""
    step, entered_at, active, rings = (counts[name] for name in ("step", "entered_at", "active", "rings"))
    counted = [counts[name] for name in _SCALARS] + [count for name in _PER_MODULE for count in counts[name]]
    losses = zip(counts["nonfinite_streaks"], counts["nonfinite_losses"], strict=True)
    return (
        min(counted) >= 0
        and active < num_modules == len(rings)
        and max(map(len, rings)) <= ring_size
        and all(isfinite(loss) for ring in rings for loss in ring)
        and len(rings[active]) >= min(counts["observed"], ring_size)
        and counts["updates"] == sum(counts["training_steps"])
        and step == counts["updates"] + sum(counts["skipped_steps"])
        and counts["switch_count"] <= step
        and counts["entered"] == (step == entered_at)
        and 0 <= counts["tenure"] <= step - entered_at
        and max(counts["trained_at"]) <= counts["updates"]
        and all(streak <= total for streak, total in losses)
    )


def _check_rule_state(saved: Mapping[str, Any], rule: Rule, facts: Facts) -> Any:
    fresh = rule.init(facts.num_modules)
    if set(saved) != set(fresh._fields):
        raise StateError(f"rule_state must have the fields {fresh._fields}, got {tuple(saved)}")
    state = type(fresh)(**{name: _match(name, saved[name], value) for name, value in fresh._asdict().items()})
    is_possible = getattr(rule, "is_possible", None)
    if is_possible is not None and not is_possible(state, facts):
        raise StateError(f"the state is damaged: {rule} cannot be in {quoted(state)}; load an intact one")
    return state


def _match(name: str, saved: Any, fresh: Any) -> Any:
    """What was saved, if it is of the type and the length of a fresh one."""
    saved, fresh = plain(saved), plain(fresh)
    matched: Any = None
    if isinstance(fresh, tuple):
        if isinstance(saved, (list, tuple)) and len(saved) == len(fresh):
            return tuple(_match(name, item, model) for item, model in zip(saved, fresh, strict=True))
        expected = f"a list of {len(fresh)}"
    elif isinstance(fresh, bool):
        expected, matched = "true or false", saved if isinstance(saved, bool) else None
    elif isinstance(fresh, int):
        expected, matched = "an integer", to_integer(saved)
    else:
        is_special = isinstance(saved, str) and saved in ("inf", "-inf", "nan")
        expected, matched = "a number", float(saved) if is_special else to_real(saved)
    if matched is None:
        raise StateError(f"the state is damaged: {name} must be {expected}, got {quoted(saved)}; load an intact one")
    return matched


def _encode(value: Any) -> Any:
    """Plain JSON values, whatever library the numbers are of."""
    value = plain(value)
    if isinstance(value, dict):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    return repr(float(value)) if isinstance(value, float) and not isfinite(value) else value
