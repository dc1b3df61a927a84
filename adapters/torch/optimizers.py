"""Which optimizers can be stepped in turns: those that move what they hold, themselves, when `step()` is called."""

from typing import Any

from torch.optim import Optimizer

from alternator import ConfigurationError


def check_optimizer(optimizer: object) -> None:
    """Refuse what is no optimizer, or wraps another one.

    A wrapper may step at other times than it is asked to (``accelerator.accumulate()``), move more than has a gradient
    (averages of slow and fast weights, over ranks), or step another object than the one whose groups are seen.

    Raises:
        ConfigurationError: With what to give.
    """
    inside = _find_wrapped(optimizer)
    if inside:
        raise ConfigurationError(
            f"an optimizer must itself move what it holds whenever step() is called, but {type(optimizer).__name__} "
            f"wraps another: give that one (its .{inside}); where AlternatingOptimizer steps it, accumulate=, "
            "scaler= or clip_norm= do what the wrapper adds"
        )
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(f"an optimizer must be a torch.optim.Optimizer, got {optimizer!r}")


def _find_wrapped(optimizer: object) -> str:
    """The attribute that holds another optimizer of the same parameters; empty if none does."""
    own = _parameter_ids(optimizer)
    for name, value in vars(optimizer).items() if hasattr(optimizer, "__dict__") else ():
        if value is not optimizer and hasattr(value, "step") and own & _parameter_ids(value):
            public = name.lstrip("_")
            return public if getattr(optimizer, public, None) is value else name
    return ""


def _parameter_ids(optimizer: Any) -> set[int]:
    groups = getattr(optimizer, "param_groups", ())
    return {id(parameter) for group in groups for parameter in group["params"]}
