"""Who owns what: checks of names, turns and ownership that every adapter shares. No framework.

Parameters are known here by a number (an ``id``, a place in a tree) and a name for messages.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar, get_args

import adapters.own_alternator  # noqa: F401  first: says so where the next line would find another distribution's
from alternator import AlternatorError, ConfigurationError, LossError, Payoff, Rule, Trial, UnknownModuleError
from alternator.checks import names_in

T = TypeVar("T")
ALWAYS = "always"
"""The reserved name of the group that trains in every step."""
FrozenMode = Literal["inference", "batch"]
"""How a module runs while it is frozen: in inference mode; or as in training, but nothing that it holds changes."""
FrozenState = Literal["keep", "offload", "drop"]
"""Where the optimizer state of a module is while it is frozen: where it was, on the host, or nowhere."""


class FreezeError(AlternatorError):
    """The freeze contract would be broken: something outside the adapter changed what is frozen."""


def check_turns(
    names: tuple[str, ...],
    modules: Iterable[str],
    turns: Mapping[str, str | Iterable[str]] | None,
    rule: Rule | None = None,
) -> dict[str, tuple[str, ...]]:
    """The modules that each name of the alternator trains, complete and checked.

    Args:
        names: The alternator's names.
        modules: The names of the modules.
        turns: Per name of the alternator the modules that train in it; None means that each name is a module.
        rule: The alternator's rule, if known.

    Raises:
        ConfigurationError: The names do not match, a turn is empty or names a module twice, a module never trains, or
            the turns are not such as the rule chooses among.
        UnknownModuleError: A turn names a module that does not exist.

    Example:
        >>> check_turns(("a", "both"), ("a", "b"), {"a": "a", "both": ("a", "b")})
        {'a': ('a',), 'both': ('a', 'b')}
    """
    known = tuple(modules)
    if ALWAYS in known:
        raise ConfigurationError(f"the name {ALWAYS!r} is reserved for the group that trains every step; rename it")
    if turns is None:
        if set(names) != set(known):
            raise ConfigurationError(
                f"the alternator's names {names} must be the names of the modules {known}; rename one of them, "
                "or give turns=, the modules that each name trains"
            )
        turns = {name: (name,) for name in names}
    if set(turns) != set(names):
        raise ConfigurationError(f"turns must have the alternator's names {names}, got {tuple(turns)}")
    checked = {name: _check_turn(name, turns[name], known) for name in names}
    _check_rule(rule, checked, known)
    never = [module for module in known if not any(module in turn for turn in checked.values())]
    if never:
        raise ConfigurationError(f"every module must train in some turn, but {never} are in none of {checked}")
    return checked


def _check_turn(name: str, turn: str | Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    members = names_in(turn)
    for member in members:
        if member not in known:
            raise UnknownModuleError(member, known)
    if not members or len(set(members)) != len(members):
        raise ConfigurationError(f"a turn must name one or more different modules, got {members} for {name!r}")
    return members


def _check_rule(rule: Rule | None, turns: Mapping[str, tuple[str, ...]], known: tuple[str, ...]) -> None:
    """Refuse turns of which `Payoff` would train the first for ever."""
    if not isinstance(rule, Payoff):
        return
    are_whole = [set(turn) == set(known) for turn in turns.values()]
    if are_whole != [True] + [False] * (len(turns) - 1):
        raise ConfigurationError(
            f"Payoff must have a first turn that trains all modules {known}, and others that leave some out, got "
            f"{dict(turns)}; give such turns=, or choose another rule"
        )


def refuse_loss(rule: Rule) -> None:
    """Refuse the loss of a step in place of losses by name, where the rule decides by payoffs or held-out losses.

    Raises:
        LossError: The rule is `Payoff`, which would take it for a payoff and train its first turn for ever, or `Trial`,
            which would compare it with held-out losses.
    """
    if isinstance(rule, Trial):
        raise LossError(
            "Trial must be given held-out losses, got the loss of a step: give an empty mapping as losses, and call "
            "Trials.before_step(), which measures and records them, before each step"
        )
    if isinstance(rule, Payoff):
        raise LossError(
            "Payoff must be given payoffs, got the loss of a step: give an empty mapping as losses, and record what "
            "Payoffs.measure returns"
        )


def watches_losses(rule: Rule) -> bool:
    """Whether a rule decides by the losses of steps: not by their number alone, nor by what is measured apart."""
    return rule.ring_size > 0 and not isinstance(rule, Payoff | Trial)


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known, e.g. of schedulers.

    Raises:
        ConfigurationError: Naming the unknown ones and the choices.
    """
    choices = tuple(known)
    unknown = [name for name in given if name not in choices]
    if unknown:
        raise ConfigurationError(f"{what} must be named after the modules {choices}, got {unknown}")


def check_frozen_modes(
    frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None, modules: Iterable[str]
) -> dict[str, FrozenMode | None]:
    """The frozen mode that was chosen for each module; None, which is inference mode, where none was.

    Args:
        frozen_mode: One mode for all modules, or per module its own.
        modules: The names of the modules.

    Raises:
        ConfigurationError: A name or a mode does not exist.

    Example:
        >>> check_frozen_modes({"critic": "batch"}, ("generator", "critic"))
        {'generator': None, 'critic': 'batch'}
    """
    return _chosen("frozen_mode", get_args(FrozenMode), frozen_mode, tuple(modules))


def check_frozen_states(
    frozen_state: FrozenState | Mapping[str, FrozenState], modules: Iterable[str]
) -> dict[str, FrozenState]:
    """What becomes of the optimizer state of each module while it is frozen; it is kept where nothing was chosen.

    Args:
        frozen_state: One choice for all modules, or per module its own.
        modules: The names of the modules.

    Raises:
        ConfigurationError: A name or a choice does not exist.

    Example:
        >>> check_frozen_states({"backbone": "offload"}, ("backbone", "head"))
        {'backbone': 'offload', 'head': 'keep'}
    """
    chosen = _chosen("frozen_state", get_args(FrozenState), frozen_state, tuple(modules))
    return {name: state or "keep" for name, state in chosen.items()}


def _chosen(
    what: str, choices: tuple[T, ...], given: T | Mapping[str, T] | None, known: tuple[str, ...]
) -> dict[str, T | None]:
    """What was chosen for each module, None where nothing was."""
    if isinstance(given, Mapping):
        check_names(what, given, known)
    named = given if isinstance(given, Mapping) else dict.fromkeys(known, given)
    for name, each in named.items():
        if each not in choices and (each is not None or isinstance(given, Mapping)):
            raise ConfigurationError(f"{what} must be one of {choices}, got {each!r} for {name!r}")
    return {name: named.get(name) for name in known}


def unchosen(name: str) -> str:
    """The warning of gradients through a frozen module with BatchNorm whose frozen mode nobody has chosen."""
    return (
        f"the frozen module {name!r} has BatchNorm and is in inference mode, in which it normalises by its running "
        "statistics, while gradients flow through it (reported once): choose frozen_mode={"
        f"{name!r}: 'batch'}} to normalise by the batch as in training, which a GAN needs, or 'inference' to keep this"
    )


def check_disjoint(owned: Mapping[str, Mapping[int, str]], what: str = "parameter") -> None:
    """Refuse a parameter (or a submodule) that two modules own: it would be frozen and active at once.

    Args:
        owned: Per module, the keys (the ``id`` of objects, or numbers of leaves) of its parameters and their names.
        what: What is owned, for the message.

    Raises:
        ConfigurationError: Naming the parameter, its owners and the remedy.
    """
    owners: dict[int, tuple[str, str]] = {}
    for module, parameters in owned.items():
        for key, name in parameters.items():
            if key in owners:
                other, other_name = owners[key]
                raise ConfigurationError(
                    f"a {what} must belong to one module, but {other_name!r} of {other!r} is {name!r} of "
                    f"{module!r}; give each its own, or declare it with always= if it may train in every step"
                )
            owners[key] = (module, name)
