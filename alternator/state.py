"""Saving and loading: a versioned dict of plain JSON values that names its configuration and refuses another's."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from alternator.errors import ConfigurationError, StateError
from alternator.rule import Rule

VERSION = 2


def configuration(modules: tuple[str, ...], rule: Rule, nonfinite_limit: int) -> dict[str, Any]:
    """What two alternators must share to load each other's state, as plain JSON values."""
    if not dataclasses.is_dataclass(rule) or isinstance(rule, type):
        raise ConfigurationError(f"a rule must be a frozen dataclass, so that its state can be saved; got {rule!r}")
    parameters = {f"rule.{field.name}": getattr(rule, field.name) for field in dataclasses.fields(rule)}
    named = {"modules": modules, "rule": type(rule).__name__, **parameters, "nonfinite_limit": nonfinite_limit}
    try:
        return dict(json.loads(json.dumps(named)))
    except TypeError as error:
        raise ConfigurationError(f"the fields of a rule must be numbers, strings or tuples of them: {error}") from error


def fingerprint(config: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def dump_state(config: Mapping[str, Any], counts: dict[str, Any], rule_state: Any) -> dict[str, Any]:
    """Everything in one dict; the rule's infinities and NaNs become strings, as strict JSON has none."""
    return {
        "version": VERSION,
        "fingerprint": fingerprint(config),
        "configuration": dict(config),
        "counts": counts,
        "rule_state": _encode(rule_state._asdict()),
    }


def parse_state(state: Mapping[str, Any], config: Mapping[str, Any], template: Any) -> tuple[dict[str, Any], Any]:
    """Check a saved state and return its counts and the rule's state.

    Raises:
        StateError: Another version, another configuration (saying what differs), or a damaged state.
    """
    try:
        if state["version"] != VERSION:
            raise StateError(
                f"state version must be {VERSION}, got {state['version']!r}; save it again with this release"
            )
        saved = state["configuration"]
        if saved != config:
            raise StateError(f"the state belongs to another configuration: {_differences(saved, config)}")
        counts = _check_counts(state["counts"], len(config["modules"]))
        fields = state["rule_state"]
        if set(fields) != set(template._fields):
            raise StateError(f"rule_state must have the fields {template._fields}, got {tuple(fields)}")
        return counts, type(template)(**{name: _decode(value) for name, value in fields.items()})
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, StateError):
            raise
        raise StateError(f"the state is damaged ({type(error).__name__}: {error}); load an intact one") from error


def _differences(saved: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    missing = "(absent)"
    return "; ".join(
        f"{name} was {saved.get(name, missing)!r}, is {config.get(name, missing)!r}"
        for name in sorted({*saved, *config})
        if saved.get(name, missing) != config.get(name, missing)
    )


_SCALARS = {"step", "active", "tenure", "entered_at", "observed", "updates", "switch_count"}
_PER_MODULE = {"trained_at", "training_steps", "skipped_steps", "nonfinite_losses", "nonfinite_streaks"}


def _check_counts(counts: Mapping[str, Any], num_modules: int) -> dict[str, Any]:
    checked: dict[str, Any] = {name: _count(counts[name]) for name in _SCALARS}
    checked |= {name: [_count(value) for value in counts[name]] for name in _PER_MODULE}
    checked["entered"] = bool(counts["entered"])
    checked["plateaued"] = [bool(value) for value in counts["plateaued"]]
    checked["rings"] = [[float(loss) for loss in ring] for ring in counts["rings"]]
    if any(len(checked[name]) != num_modules for name in {*_PER_MODULE, "plateaued", "rings"}):
        raise StateError(f"the state is damaged: every per-module list must have {num_modules} entries")
    if checked["active"] >= num_modules:
        raise StateError(f"the state is damaged: active must be below {num_modules}, got {checked['active']}")
    return checked


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise StateError(f"the state is damaged: a count must be an integer of at least 0, got {value!r}")
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return float(value) if isinstance(value, str) else value
