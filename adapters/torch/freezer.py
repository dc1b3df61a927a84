"""Freezing and activating the modules of a model, turn by turn. `Freezer` decides nothing and steps nothing.

Design constraints:

1. An optimizer skips a parameter whose gradient is None, or is not shown it (`adapters.torch.shares`). So frozen means
   ``requires_grad=False``, no gradient left over, and an optimizer not stepped where it has nothing else to train.
2. Modes and ``requires_grad`` change between steps only, never inside a forward pass or a compiled region.
3. What the user froze, or put in inference mode, is the user's choice and stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from adapters.contract import (
    ALWAYS,
    FreezeError,
    FrozenMode,
    FrozenState,
    check_frozen_modes,
    check_frozen_states,
    check_turns,
)
from adapters.torch.checks import (
    Optimizers,
    check_coverage,
    check_optimizers,
    check_ownership,
    check_trainable,
    parameters_of,
    warn_of_recompiles,
)
from adapters.torch.frozen_states import FrozenStates
from adapters.torch.modules import Between, Freezable, Parameters
from adapters.torch.naming import Naming
from adapters.torch.parallel.fsdp import find_sharded, reshard
from adapters.torch.parallel.group import check_single, join
from adapters.torch.storage import check_storage
from adapters.torch.watch import Watch, check_silent_writers, check_written
from alternator import ConfigurationError, LossError, Rule, StateError
from alternator.checks import listed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from adapters.torch.parallel.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one name of the alternator trains, and what it leaves frozen."""

    modules: tuple[str, ...]
    """The names of the modules that train, the always group aside."""
    active: tuple[Freezable, ...]
    """These modules and the always group."""
    frozen: tuple[Freezable, ...]
    active_parameters: tuple[nn.Parameter, ...]
    frozen_parameters: tuple[nn.Parameter, ...]
    frozen_submodules: tuple[tuple[str, nn.Module], ...]

    def trains(self, name: str) -> bool:
        """Whether the group of this name, a module or the always group, trains."""
        return name == ALWAYS or name in self.modules

    def required(self) -> list[bool]:
        """Per active parameter whether it trains: False if the user froze it."""
        return [parameter.requires_grad for parameter in self.active_parameters]


class Freezer:
    """Freezes what does not train and activates what does, keeping what the user froze or put in inference mode.

    Nothing is switched before the first `apply`. See `adapters.torch.AlternatingOptimizer` for the arguments.

    Args:
        names: The names that can be applied: the alternator's.
        modules: Per module name an ``nn.Module`` or parameters.
        optimizers: One optimizer per module name, or one over all; checked, not stepped.
        model: The model that holds all modules.
        turns: Per name the modules that train together; by default each name is a module.
        always: What trains in every turn.
        process_group: The processes that train this model together.
        frozen_mode: How modules run while they are frozen.
        frozen_state: Where the optimizer state of modules is while they are frozen.
        check_ranks_every: Compare decisions and parameters across ranks after this many decisions each.
        rule: What will choose among the names: the alternator's rule.
        with_closure: Whether whoever steps the optimizers gives them a closure.

    Raises:
        ConfigurationError: Names, ownership or coverage are wrong; the message says which and what to do.

    Example:
        >>> import torch
        >>> encoder, head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()])
        >>> freezer = Freezer(("encoder", "head"), {"encoder": encoder, "head": head}, optimizer)
        >>> freezer.apply("head")
        >>> encoder.weight.requires_grad, encoder.training, head.weight.requires_grad
        (False, False, True)
        >>> freezer.release()
        >>> encoder.weight.requires_grad, encoder.training
        (True, True)
    """

    def __init__(
        self,
        names: tuple[str, ...],
        modules: Mapping[str, Parameters],
        optimizers: Optimizers,
        *,
        model: nn.Module | None = None,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | tuple[Parameters, Optimizer] | None = None,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        process_group: ProcessGroup | None = None,
        check_ranks_every: int | None = None,
        rule: Rule | None = None,
        with_closure: bool = False,
    ) -> None:
        members = check_turns(names, modules, turns, rule)
        group, extra = _split_pair(always)
        self.naming = Naming(modules, group, model)
        """What belongs to the modules and the always group."""
        given = self.naming.modules
        with_others = process_group is not None or _is_distributed()
        if with_others:
            reshard(find_sharded(given))  # so that the groups hold the parameters that optimizers step
        self.groups = self.naming.groups(check_frozen_modes(frozen_mode, modules))
        """The modules and the always group, by name."""
        check_ownership(self.groups, model)
        check_storage(self.groups)
        check_silent_writers(self.groups)
        self.optimizers = check_optimizers(modules, optimizers, extra, with_closure=with_closure)
        """All optimizers, each once."""
        self.model = model
        """The model that holds them all, if it was given."""
        self.frozen_states = FrozenStates(check_frozen_states(frozen_state, modules), self.optimizers)
        """Moves the optimizer state of what is frozen."""
        self._given_optimizers = optimizers
        check_trainable(self.groups)
        self._cover()
        self._is_stale = False
        self.num_changes = 0
        """How often what trains may have changed: at each switch, with other parameters, or by the user's hand."""
        self._required: list[bool] = []
        warn_of_recompiles(given, len({frozenset(turn) for turn in members.values()}))
        self._between = Between(model, self.groups.values())
        self._watches = {name: Watch(module) for name, module in self.groups.items()}
        self._parameters = _parameters_of(self.groups.values())
        self.turns = {name: _plan(self.groups, turn) for name, turn in members.items()}
        """What each name trains."""
        self.ranks: Ranks | None = None
        """The processes that train together; None if this one trains alone."""
        if with_others:
            named = {name: module.parameters for name, module in self.groups.items()}
            self.ranks = join(given, named, self._trained(), process_group, check_ranks_every)
        self._reported: set[str] = set()
        self._applied = names[0]

    @property
    def applied(self) -> str:
        """The name that `apply` was given last."""
        return self._applied

    @property
    def turn(self) -> Turn:
        """What the applied name trains."""
        return self.turns[self._applied]

    def apply(self, name: str, *, tentative: bool = False) -> None:
        """Freeze what this name does not train, and activate what it does.

        Args:
            name: One of the names.
            tentative: Another may be applied before the next update, as where a state is loaded in several parts:
                optimizer state that is to be dropped is, in that update.
        """
        self._applied = name
        if self.ranks is not None:
            self.ranks.reshard()
        self.refresh()
        self.num_changes += 1
        turn = self.turn
        for group in turn.frozen:
            group.freeze()
        for group in turn.active:
            group.activate()
        self._required = turn.required()
        if self.ranks is not None:
            self.ranks.align_buffers(submodule for _, submodule in turn.frozen_submodules)
        self.frozen_states.apply(turn.active, turn.frozen, tentative=tentative)
        self._watch()

    def refresh(self) -> None:
        """Look at modules and optimizers again: what has been added since trains, and is frozen, with its module.

        `apply` does so, and `prepare_update` if an optimizer has other groups than before. Where several processes
        train together only optimizers are: wrappers know no parameters but those with which they were built.

        Raises:
            ConfigurationError: As when this was built.
        """
        changed = self.ranks is None and self._look_again()
        self._is_stale = self._is_stale or changed or self._num_in_groups != _count(self.optimizers)
        if not self._is_stale:
            return
        check_ownership(self.groups, self.model)
        check_storage(self.groups)
        check_silent_writers(self.groups)
        self._cover()
        self._parameters = _parameters_of(self.groups.values())
        self.turns = {name: _plan(self.groups, turn.modules) for name, turn in self.turns.items()}
        self.num_changes += 1
        self._is_stale = False  # only here: what is refused stays refused until it has been put right

    def _look_again(self) -> bool:
        """Whether a group has other parameters or submodules than before."""
        changed = self.naming.look_again(self.groups)
        self._between.look_again(self.groups.values())
        return changed

    def _cover(self) -> None:
        self._uncovered = check_coverage(self.groups, self._given_optimizers, self.optimizers)
        self._num_in_groups = _count(self.optimizers)

    def _watch(self) -> None:
        exempt = frozenset() if self.ranks is None else self.ranks.aligned_buffers
        for group in self.turn.active:
            self._watches[group.name].stop()
        for group in self.turn.frozen:
            self._watches[group.name].start(exempt)

    def remember(self) -> None:
        """Keep what the user froze, unfroze or put in inference mode since the last `apply`; comes before the next."""
        for group in self.turn.active:
            group.remember_active()
        for group in self.turn.frozen:
            group.remember_frozen()

    def release(self) -> None:
        """Unfreeze what the user had not frozen."""
        self.remember()
        if self.ranks is not None:
            self.ranks.reshard()
        for group in self.groups.values():
            self._watches[group.name].stop()
            group.activate()
        self.frozen_states.release()

    def train(self) -> None:
        """Training mode for what is active, its frozen mode for what is frozen.

        Warns if nothing has a training mode, as where all was in inference mode at first (pretrained models).
        """
        trainable = [group.has_training_mode for group in self.groups.values() if group.submodules]
        if trainable and not any(trainable):
            warnings.warn(
                "train() must find what was in training mode when this was built, but all modules were in inference "
                "mode, which is kept as your choice: call model.train() before you build this",
                stacklevel=3,
            )
        self._between.set_training_mode()
        self.set_frozen_modes()
        for module in self.turn.active:
            module.set_training_mode()

    def eval(self) -> None:
        """Inference mode for all."""
        self._between.set_inference_mode()
        for group in self.groups.values():
            group.set_inference_mode()

    def set_frozen_modes(self) -> None:
        """Its frozen mode for what is frozen, whatever mode it has been put in; the rest stays as it is."""
        for module in self.turn.frozen:
            module.set_frozen_mode()

    def take_training_modes(self) -> None:
        """Take from the loop's ``train()`` that what was in inference mode when this was built is to train."""
        for module in self.turn.frozen:
            module.take_training_mode()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in self._parameters:
            parameter.grad = None

    def check_modes(self) -> None:
        """Refuse a forward pass that has changed what is frozen.

        Raises:
            FreezeError: A frozen module is in training mode and not to be (buffers that this has changed are put
                back), or has been written.
            ConfigurationError: Several processes have been started since this was built.
        """
        if self.ranks is None and _is_distributed():
            check_single()
        training = [key for module in self.turn.frozen for key in module.find_unfixed()]
        if training:
            left = [name for watch in self._watches.values() for name in watch.restore()]
            raise FreezeError(
                f"a frozen module must be in its frozen mode, but {listed(training)} is in training mode: call train() "
                "of the AlternatingOptimizer where you call model.train(). Normalisation statistics and other small "
                f"buffers are as they were{f'; {listed(left)} has been written' if left else ''}"
            )
        self.check_written()

    def check_written(self) -> None:
        """Refuse what has been written while frozen, by a forward pass, an optimizer or anything else.

        Raises:
            FreezeError: With the names and the remedies.
        """
        check_written(self._watches.values(), self._applied)

    def accept_written(self) -> None:
        """Take what frozen modules hold now for what stays."""
        self._watch()

    def prepare_update(self) -> None:
        """Clear gradients that must not be stepped; to be called after the backward pass and before clipping.

        From here on the optimizer state of what trains is on its device, and that of what is frozen where it is to be.

        Warns, once per module, if a module of the turn has no gradient while another has some.

        Raises:
            LossError: Nothing that the applied name trains has a gradient.
            ConfigurationError: A parameter was unfrozen that no optimizer steps, or whose gradients are not averaged.
            FreezeError: Gradients have not been averaged across ranks.
        """
        self.take_new_groups()
        turn = self.turn
        if self.ranks is not None:
            self.ranks.check_reduced()
        for parameter in turn.frozen_parameters:
            parameter.grad = None  # whoever computed it
        required = turn.required()
        if required != self._required:
            self._required = required
            self.num_changes += 1
        if not all(required):
            for parameter in turn.active_parameters:
                if not parameter.requires_grad:
                    parameter.grad = None
        self._check_reach(turn)
        self.frozen_states.settle()

    def training(self) -> set[int]:
        """The ``id`` of every parameter that trains in the applied turn, those that the user froze aside."""
        return {id(parameter) for parameter in self.turn.active_parameters if parameter.requires_grad}

    def take_new_groups(self) -> None:
        """Look again within a step, if an optimizer has other groups than before: keeps gradients of what is active.

        Raises:
            ConfigurationError: As when this was built.
        """
        if self._num_in_groups == _count(self.optimizers):
            return
        self.remember()
        self.refresh()
        for group in self.turn.frozen:
            group.freeze()
        self._watch()

    def _check_reach(self, turn: Turn) -> None:
        unreached = [group for group in turn.active if all(p.grad is None for p in group.parameters.values())]
        if unreached:
            self._report_unreached(turn, unreached)
        unfrozen = [name for name, parameter in self._uncovered.items() if parameter.requires_grad]
        covered = {id(p) for each in self.optimizers for p in parameters_of(each)} if unfrozen else set()
        unfrozen = [name for name in unfrozen if id(self._uncovered[name]) not in covered]
        if unfrozen:
            raise ConfigurationError(
                f"a parameter that trains must be in an optimizer, but {listed(unfrozen)} was unfrozen and is in none: "
                "build the optimizer over all parameters, frozen ones too, or add it with add_param_group()"
            )

    def _report_unreached(self, turn: Turn, unreached: Iterable[Freezable]) -> None:
        if {group.name for group in unreached} >= set(turn.modules):
            raise LossError(
                f"the loss reaches no parameter of {self._applied!r}, which is active: give a loss that depends on it, "
                "or call skip() if this step has nothing for it"
            )
        trainable = {group.name for group in unreached if len(group.user_frozen) < len(group.parameters)}
        silent = trainable - {ALWAYS}  # which may well have no part in some turn
        new = sorted(silent - self._reported)
        self._reported |= silent
        if new:
            warnings.warn(
                f"the loss must reach every module that trains in the turn {self._applied!r}, but no parameter of "
                f"{listed(new)} has a gradient, so it does not train in this step (reported once): give a loss that "
                "depends on it, checkpoint with use_reentrant=False, or leave it out of the turn",
                stacklevel=5,
            )

    def state_dict(self) -> dict[str, list[str]]:
        """What the user froze and put in inference mode; JSON-safe."""
        self.remember()
        groups = self.groups.values()
        return {
            "user_frozen": sorted(key for group in groups for key in group.user_frozen),
            "inference": sorted(key for group in groups for key in group.inference),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state of another model.

        Raises:
            StateError: It names parameters or submodules that are in none of the groups.
        """
        known = {key for group in self.groups.values() for key in (*group.parameters, *group.submodules)}
        unknown = sorted({*state.get("user_frozen", ()), *state.get("inference", ())} - known)
        if unknown:
            raise StateError(
                f"the state belongs to another model: it names {listed(unknown)}, which this one does not have"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the user's choices of a saved state, none if it has none; `apply` puts them into force.

        Raises:
            StateError: See `check_state`; nothing has been changed then.
        """
        self.check_state(state)
        for group in self.groups.values():
            group.user_frozen = set(state.get("user_frozen", ())) & set(group.parameters)
            group.inference = set(state.get("inference", ())) & set(group.submodules)

    def _trained(self) -> dict[str, set[str]]:
        """Per turn the names of the parameters that train in it."""
        return {
            name: {key for group in turn.active for key in group.parameters if key not in group.user_frozen}
            for name, turn in self.turns.items()
        }


def _plan(groups: Mapping[str, Freezable], modules: tuple[str, ...]) -> Turn:
    active = tuple(group for name, group in groups.items() if name in (*modules, ALWAYS))
    frozen = tuple(group for name, group in groups.items() if name not in (*modules, ALWAYS))
    return Turn(
        modules=modules,
        active=active,
        frozen=frozen,
        active_parameters=_parameters_of(active),
        frozen_parameters=_parameters_of(frozen),
        frozen_submodules=tuple(item for group in frozen for item in group.submodules.items()),
    )


def _parameters_of(groups: Iterable[Freezable]) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for group in groups for parameter in group.parameters.values())


def _count(optimizers: Iterable[Optimizer]) -> int:
    """The number of parameter groups and of parameters in them."""
    return sum(1 + len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)


def _split_pair(always: Parameters | tuple[Parameters, Optimizer] | None) -> tuple[Parameters | None, Optimizer | None]:
    if isinstance(always, tuple) and len(always) == 2 and isinstance(always[1], Optimizer):
        return always
    return always, None


def _is_distributed() -> bool:
    """Whether there is a process group, without which nothing can be in DDP or under ``fully_shard``."""
    return dist.is_available() and dist.is_initialized()
