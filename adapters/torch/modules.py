"""One module, frozen or active: requires_grad, gradients and training modes, the user's own choices kept."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adapters.contract import FrozenMode
from adapters.torch.frozen_modes import Tracking, Unchosen, check_batch_mode, has_statistics, may_write
from adapters.torch.wrappers import join, shells, unwrapped
from alternator import ConfigurationError
from alternator.checks import listed

Parameters = nn.Module | Tensor | str | Iterable[nn.Module | Tensor | str]
"""A module, a parameter, a leaf tensor that requires gradients (as the temperature of SAC is one), or a name within
``model=`` (see `adapters.parts`); or several of these."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What belongs to one module as the user named it; `adapters.torch.naming` finds it."""

    name: str
    """The name for messages and saved states."""
    parameters: dict[str, nn.Parameter]
    submodules: dict[str, nn.Module]
    roots: dict[str, nn.Module]
    """Those of the submodules that were named, whose ``train()`` is called; parameters alone have none."""
    shells: list[tuple[str, nn.Module]]
    """The DDP wrappers around roots, each with the name of its root."""
    others: list[nn.Module]
    """Submodules within the roots that belong to other parts."""
    loaded: list[nn.Module]
    """The modules whose ``load_state_dict`` may write it."""


class Freezable:
    """The parameters and submodules of one module, which `freeze` and `activate` switch as one.

    What the user froze (``requires_grad=False``) stays frozen, and submodules that the user put in inference mode stay
    so: these choices are read when this is built, and again before each switch.

    Args:
        part: What belongs to it.
        frozen_mode: How it runs while it is frozen; None is inference mode, with a warning of gradients through it.

    Raises:
        ConfigurationError: There are no parameters, some are lazy, a submodule follows no modes, or cannot run in this
            one.
    """

    def __init__(self, part: Part, frozen_mode: FrozenMode | None = None) -> None:
        self.name = part.name
        self._frozen_mode = frozen_mode
        self._tracking = Tracking()
        self._unchosen = Unchosen(part.name)
        self._take(part)
        for key, root in part.roots.items():
            _check_modes(key, root)
        self.user_frozen: set[str] = set()
        self.inference = self._in_inference_mode()
        self.remember_active()

    def look_again(self, part: Part) -> bool:
        """Take what belongs to the module now; False if that is what did before.

        What is new trains if it requires gradients; of what was there before the user's choices stay.
        """
        parameters, submodules = self.parameters, self.submodules
        frozen = {id(parameters[key]) for key in self.user_frozen}
        known = {id(parameter) for parameter in parameters.values()}
        inference = {id(submodules[key]) for key in self.inference}
        self._take(part)
        if _are_same(parameters, self.parameters) and _are_same(submodules, self.submodules):
            return False
        self.user_frozen = {
            key
            for key, parameter in self.parameters.items()
            if (id(parameter) in frozen if id(parameter) in known else not parameter.requires_grad)
        }
        self.inference = {key for key, submodule in self.submodules.items() if id(submodule) in inference}
        return True

    def remember_active(self) -> None:
        """Take the user's choices from how the active module is now.

        A whole module in inference mode is being evaluated; its modes are the user's choice only when this is built.
        """
        self.user_frozen = {key for key, parameter in self.parameters.items() if not parameter.requires_grad}
        if any(root.training for root in self._part.roots.values()):
            self.inference = self._in_inference_mode()

    def remember_frozen(self) -> None:
        """What the user has unfrozen while the module was frozen trains in its next turn."""
        self.user_frozen -= {key for key, parameter in self.parameters.items() if parameter.requires_grad}

    def freeze(self) -> None:
        """No gradients, none left over, the frozen mode."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        if self._frozen_mode is None:
            norms = [norm for key, norm in self._norms.items() if key not in self.inference]
            self._unchosen.listen(norms, self.parameters.values())
        self.set_frozen_mode()

    def activate(self) -> None:
        """Gradients and training mode, but for what the user froze or put in inference mode."""
        for key, parameter in self.parameters.items():
            parameter.requires_grad_(key not in self.user_frozen)
            parameter.grad = None
        self._unchosen.stop()
        self._tracking.resume()
        self.set_training_mode()

    def set_frozen_mode(self) -> None:
        """Inference mode; with ``"batch"`` only for what may write in training mode and what the user put there."""
        self._set_modes(self._fixed)
        if self._frozen_mode == "batch":
            self._tracking.stop(norm for key, norm in self._norms.items() if key not in self.inference)

    def find_unfixed(self) -> list[str]:
        """The names of submodules whose training mode does not go with the frozen mode: what they hold would change."""
        fixed = self._fixed
        return [
            key
            for key, submodule in self.submodules.items()
            if submodule.training and (key in fixed or (key in self._norms and submodule.track_running_stats))
        ]

    @property
    def _fixed(self) -> Collection[str]:
        """The submodules that are in inference mode while this is frozen."""
        return self.inference | self._writers if self._frozen_mode == "batch" else self.submodules

    @property
    def has_training_mode(self) -> bool:
        """False if all of it was in inference mode when this was built, and stays so."""
        return len(self.inference) < len(self.submodules)

    def set_inference_mode(self) -> None:
        """Put every submodule in inference mode: dropout off, normalisation statistics fixed."""
        self._set_modes(self.submodules)

    def set_training_mode(self) -> None:
        """Put the submodules in training mode, but for those that the user put in inference mode."""
        self._set_modes(self.inference)

    def _take(self, part: Part) -> None:
        if not part.parameters:
            raise ConfigurationError(f"a module must have parameters, but {self.name!r} has none; leave it out")
        lazy = [key for key, parameter in part.parameters.items() if is_lazy(parameter)]
        if lazy:
            raise ConfigurationError(
                f"a parameter must be initialized, but {listed(lazy)} is lazy; run a forward pass before this is built"
            )
        self._part = part
        self.parameters, self.submodules, self.loaded = part.parameters, part.submodules, part.loaded
        self._norms = {key: submodule for key, submodule in self.submodules.items() if has_statistics(submodule)}
        self._writers = {key for key, submodule in self.submodules.items() if may_write(submodule)}
        if self._frozen_mode == "batch":
            check_batch_mode(self.submodules)

    def _in_inference_mode(self) -> set[str]:
        return {key for key, submodule in self.submodules.items() if not submodule.training}

    def _set_modes(self, inference: Collection[str]) -> None:
        for key, shell in self._part.shells:
            shell.training = key not in inference
        if all(submodule.training != (key in inference) for key, submodule in self.submodules.items()):
            return
        others = [(submodule, submodule.training) for submodule in self._part.others]
        for key, root in self._part.roots.items():
            root.train(key not in inference)  # for modules that override train()
        for key, submodule in self.submodules.items():
            if submodule.training == (key in inference):
                submodule.training = not submodule.training
        for submodule, training in others:
            submodule.training = training


class Between:
    """The modes of what belongs to a model but to none of its modules: dropout between them, and the model itself.

    Args:
        model: The model; None is nothing.
        modules: Its modules.
    """

    def __init__(self, model: nn.Module | None, modules: Iterable[Freezable]) -> None:
        self._model = model
        self.look_again(modules)
        self._inference = self._in_inference_mode()

    def look_again(self, modules: Iterable[Freezable]) -> None:
        """Find what has been added to the model, or taken out."""
        owned = {id(submodule) for module in modules for submodule in module.submodules.values()}
        inside = [] if self._model is None else [*shells(self._model), *unwrapped(self._model).modules()]
        self._submodules = [submodule for submodule in inside if id(submodule) not in owned]

    def set_inference_mode(self) -> None:
        """Put it in inference mode; what of it the user had put there before stays so."""
        if any(submodule.training for submodule in self._submodules):
            self._inference = self._in_inference_mode()
        for submodule in self._submodules:
            submodule.training = False

    def set_training_mode(self) -> None:
        """Put it in training mode, but for what the user put in inference mode."""
        for submodule in self._submodules:
            submodule.training = id(submodule) not in self._inference

    def _in_inference_mode(self) -> set[int]:
        return {id(submodule) for submodule in self._submodules if not submodule.training}


def _check_modes(name: str, root: nn.Module) -> None:
    """Refuse what follows neither train() nor eval(), as the modules of ``torch.export``: modes are fixed in them."""
    for key, submodule in root.named_modules():
        if "train" in vars(submodule):  # not that of its class
            try:
                submodule.train(submodule.training)
            except NotImplementedError as error:
                raise ConfigurationError(
                    f"a module must follow train() and eval(), but {join(name, key)!r} cannot ({error}): give what it "
                    "was exported from, or list(module.parameters()) if it has neither dropout nor normalisation"
                ) from error


def _are_same(before: Mapping[str, object], now: Mapping[str, object]) -> bool:
    return before.keys() == now.keys() and all(before[key] is now[key] for key in before)
