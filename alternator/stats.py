"""Stats: how much each module of an alternator has trained, and what was skipped."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModuleStats:
    """Counts of one module; see `Alternator.stats`.

    Attributes:
        training_steps: The number of steps in which the module was active and its optimizer updated it.
        training_ratio: Its training steps divided by those of all modules together, 0 to 1 (0 before the first).
        skipped_steps: The number of steps in which it was active and its optimizer skipped the update.
        nonfinite_losses: The number of NaN and infinite losses recorded for it.
        staleness: The number of updated steps, of any module, since it last trained.
        recent_loss: Its newest finite loss, None before the first.
    """

    training_steps: int
    training_ratio: float
    skipped_steps: int
    nonfinite_losses: int
    staleness: int
    recent_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counts of a whole alternator; see `Alternator.stats`.

    Attributes:
        total_steps: The number of steps counted, including skipped ones.
        current_module: The module that trains next.
        steps_since_switch: The number of updated steps of the current tenure.
        switch_count: The number of switches made by the rule or because of non-finite losses; forced ones are not
            counted.
        modules: Counts per module, in order.
    """

    total_steps: int
    current_module: str
    steps_since_switch: int
    switch_count: int
    modules: dict[str, ModuleStats]

    def flat(self) -> dict[str, Any]:
        """The same as one plain dict, with keys such as ``sasrec_training_steps`` and ``recent_sasrec_loss``."""
        flat: dict[str, Any] = {
            "total_steps": self.total_steps,
            "current_module": self.current_module,
            "steps_since_switch": self.steps_since_switch,
            "switch_count": self.switch_count,
        }
        for name, module in self.modules.items():
            flat[f"{name}_training_steps"] = module.training_steps
            flat[f"{name}_training_ratio"] = module.training_ratio
            flat[f"recent_{name}_loss"] = module.recent_loss
            flat[f"{name}_skipped_steps"] = module.skipped_steps
            flat[f"{name}_nonfinite_losses"] = module.nonfinite_losses
            flat[f"{name}_staleness"] = module.staleness
        return flat
