"""One module, frozen or active: requires_grad, gradients and training modes, the user's own choices kept."""

from collections.abc import Collection, Iterable

from torch import nn

from adapters._ownership import listed
from alternator import ConfigurationError

WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel")


class Freezable:
    """The parameters and submodules of one module, which `freeze` and `activate` switch as one.

    What the user froze (``requires_grad=False``) stays frozen, and submodules that the user put in inference mode stay
    so: their choices are read when this is built and again by `remember`, each time an active module is left.

    Args:
        name: The name for messages and saved states.
        module: A module, or parameters alone (which have no mode and no buffers to fix).
        excluded: The ``id`` of parameters that belong to another group.
    """

    def __init__(self, name: str, module: nn.Module | Iterable[nn.Parameter], excluded: Collection[int] = ()) -> None:
        self.name = name
        self.root = unwrapped(module) if isinstance(module, nn.Module) else None
        self.submodules = {} if self.root is None else {_join(name, key): sub for key, sub in self.root.named_modules()}
        named = _named_parameters(name, module if self.root is None else self.root)
        self.parameters = {key: parameter for key, parameter in named.items() if id(parameter) not in excluded}
        if not named:
            raise ConfigurationError(f"a module must have parameters, but {name!r} has none; leave it out")
        self.user_frozen: set[str] = set()
        self.inference: set[str] = set()
        self.remember()

    def remember(self, *, modes: bool = True) -> None:
        """Take the user's choices from how the active module is now; not its modes in the middle of an evaluation."""
        self.user_frozen = {key for key, parameter in self.parameters.items() if not parameter.requires_grad}
        if modes:
            self.inference = {key for key, submodule in self.submodules.items() if not submodule.training}

    def freeze(self) -> None:
        """No gradients, none left over, inference mode."""
        for key, parameter in self.parameters.items():
            if parameter.requires_grad:
                self.user_frozen.discard(key)  # the user has unfrozen it meanwhile: it trains in the next turn
                parameter.requires_grad_(False)
            parameter.grad = None
        self.set_inference_mode()

    def set_inference_mode(self) -> None:
        """Put every submodule in inference mode: dropout off, normalisation statistics fixed."""
        if self.root is not None:
            self.root.eval()
            for submodule in self.submodules.values():
                submodule.training = False

    def activate(self) -> None:
        """Gradients and training mode, but for what the user froze or put in inference mode."""
        for key, parameter in self.parameters.items():
            parameter.requires_grad_(key not in self.user_frozen)
            parameter.grad = None
        self.set_training_mode()

    def set_training_mode(self) -> None:
        """Put the submodules in training mode, but for those that the user put in inference mode."""
        if self.root is not None:
            self.root.train(self.name not in self.inference)
            for key, submodule in self.submodules.items():
                submodule.training = key not in self.inference

    def in_training_mode(self) -> list[str]:
        """The submodules in training mode."""
        return [key for key, submodule in self.submodules.items() if submodule.training]

    def drop_stray_gradients(self) -> None:
        """Set to None the gradients of parameters that do not train: optimizers skip None, not zeros."""
        for parameter in self.parameters.values():
            if not parameter.requires_grad:
                parameter.grad = None


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside a ``torch.compile`` wrapper; other wrappers are refused.

    Raises:
        ConfigurationError: The module is wrapped for several processes or devices.
    """
    inner = getattr(module, "_orig_mod", module)
    for submodule in inner.modules():
        kinds = {kind.__name__ for kind in type(submodule).__mro__}
        if not kinds.isdisjoint(WRAPPERS):
            raise ConfigurationError(
                f"modules must live in one process for now, got a {type(submodule).__name__}: it would wait for the "
                "gradients of frozen modules, and each process would decide by its own losses; pass the plain module"
            )
    return inner


def _named_parameters(name: str, module: nn.Module | Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
    if isinstance(module, nn.Module):
        return {_join(name, key): parameter for key, parameter in module.named_parameters()}
    parameters = {f"{name}[{index}]": parameter for index, parameter in enumerate(module)}
    wrong = [key for key, parameter in parameters.items() if not isinstance(parameter, nn.Parameter)]
    if wrong:
        raise ConfigurationError(
            f"a module must be an nn.Module or an iterable of its parameters; {listed(wrong)} is not"
        )
    return parameters


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if key else name
