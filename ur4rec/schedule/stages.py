"""The four training stages, the modules and the turns: what trains in each."""

from dataclasses import dataclass

from alternator.checks import check_integer
from ur4rec.errors import UnknownNameError

MODULES = ("sasrec", "retriever")
BOTH = "both"
TURNS = {"sasrec": ("sasrec",), "retriever": ("retriever",), BOTH: MODULES}
LABELS = {"sasrec": "SAS", "retriever": "RET", BOTH: "ALL"}


@dataclass(frozen=True)
class Stage:
    """What trains in a stage."""

    name: str
    """One of the keys of `STAGES`."""
    turn: str | None
    """The turn that trains throughout: a module, or both. None where the schedule alternates."""


STAGES = {
    "pretrain_sasrec": Stage("pretrain_sasrec", "sasrec"),
    "pretrain_retriever": Stage("pretrain_retriever", "retriever"),
    "joint_finetune": Stage("joint_finetune", None),
    "end_to_end": Stage("end_to_end", BOTH),
}
JOINT_STAGES = tuple(name for name, stage in STAGES.items() if stage.turn not in MODULES)


def find_stage(name: str) -> Stage:
    """The stage of a name.

    Raises:
        UnknownNameError: There is no such stage; the message lists the four.

    Example:
        >>> find_stage("end_to_end").turn
        'both'
    """
    if name not in STAGES:
        raise UnknownNameError("stage", name, STAGES)
    return STAGES[name]


def check_num_steps(num_steps: int | None) -> None:
    """Refuse a stage length that is no positive integer."""
    if num_steps is not None:
        check_integer("num_steps", num_steps, 1)
