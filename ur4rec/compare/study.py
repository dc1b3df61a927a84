"""What a study compares, and under which conditions: everything that decides its numbers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alternator.checks import check_choice, check_integer, check_switch, set_fields
from alternator.errors import quoted
from ur4rec.compare.arms import PARITY, check_arms, schedule_string
from ur4rec.compare.budget import BASES
from ur4rec.config import JOINT_LOSSES, TRAINING
from ur4rec.errors import ConfigurationError
from ur4rec.runs.config import RunConfig
from ur4rec.runs.presets import PRESETS, preset
from ur4rec.runs.sizes import FROM_DATA, Counts
from ur4rec.schedule.stages import modules_of
from ur4rec.training.slices import DEFAULT_MEMORY, parse_memory

_ADDED = ("split", "repeats", "memory")
"""Conditions that studies of before do not name; a study names them where they are not the default."""
MAX_POINTS = 10_000
"""The number of points at which an arm is evaluated at most."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: arms × seeds × budgets, all else equal.

    Raises:
        ConfigurationError: A value is out of range; the message states the rule, the value and the remedy.

    Example:
        >>> study = StudyConfig(arms=("parity", "joint", "matched:plateau", "plateau"), updates=400, eval_every=40)
        >>> len(study.points), study.points[0], study.points[-1]
        (10, 0.1, 1.0)
    """

    dataset: str = "ml-100k"
    """As for `ur4rec.runs.config.RunConfig`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `ur4rec.data.synthetic`, for the dataset of that name; else as for `RunConfig`."""
    num_users: int | None = None
    """Train, validate and test on this number of users, drawn with ``user_seed``; None is all of them."""
    user_seed: int = 0
    """Seed of the drawn users."""
    blank_texts: bool = False
    """Give every item the same text: a retriever that can learn nothing, to see what a schedule does about it."""
    arms: tuple[str, ...] = (PARITY,)
    """Schedules, as `ur4rec.schedule.alternators` reads them, or ``matched:ARM``; parity, the reference, is one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each is a set of initial weights, a data order and dropout, the same for every arm."""
    updates: int = 400
    """Module updates of the budget; a step that trains both modules is two. Also the number of steps of parity, whose
    cost is the budget at equal cost."""
    eval_every: int = 40
    """Evaluate whenever this number of updates (or their part of the cost) has been spent."""
    budgets: tuple[str, ...] = BASES
    """What is held equal: ``updates``, ``cost``, or each in turn."""
    split: str = "auto"
    """As for `ur4rec.runs.config.RunConfig`."""
    repeats: str = "auto"
    """As for `ur4rec.runs.config.RunConfig`."""
    pretrain: int = 0
    """Steps of each of the two pretraining stages before it, the same for every arm of a seed; charged to none."""
    joint_loss: str = "fused"
    """`fused`, or `separate`, under which the modules do not touch: the null control."""
    backend: str = "torch"
    """`torch` or `jax`."""
    preset: str = "demo"
    """Sizes of the model and of batches, and learning rates."""
    batch_size: int | None = None
    """Rows of a training batch, other than the preset's."""
    encoder: str | None = None
    """Text encoder, other than the preset's."""
    device: str = "cpu"
    """Where to train."""
    memory: int = DEFAULT_MEMORY
    """As for `ur4rec.runs.config.RunConfig`."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the model other than the preset's."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the trainer other than the preset's."""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """What the data decided of the settings that the preset leaves to it, when the study began. Empty for a preset
    that leaves none, and for a study of before: there they have the defaults of `RunConfig`."""

    def __post_init__(self) -> None:
        for name in ("arms", "budgets"):
            if not all(isinstance(each, str) for each in getattr(self, name)):
                raise ConfigurationError(f"{name} must be strings, got {getattr(self, name)}")
        for name in ("data", "model", "trainer", "sizes"):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigurationError(f"{name} must be settings by name, got {quoted(getattr(self, name))}")
        for name in self.sizes:
            check_choice("setting from the data", name, FROM_DATA)
        for seed in self.seeds:
            check_integer("a seed", seed, 0)
        check_arms(self.arms)
        check_choice("joint_loss", self.joint_loss, JOINT_LOSSES)
        for group, name, usual in ((self.trainer, "fusion_fit", TRAINING), (self.model, "fusion_popularity", False)):
            if group.get(name, usual) != usual:
                raise ConfigurationError(
                    f"{name} must be {usual!r} in a study, whose arms are charged for what they learn of held-out "
                    f"targets, got {group[name]!r}; leave it out"
                )
        for name, minimum in {"updates": 2, "eval_every": 1, "pretrain": 0}.items():
            set_fields(self, **{name: check_integer(name, getattr(self, name), minimum)})
        set_fields(self, user_seed=check_integer("user_seed", self.user_seed, 0))
        if self.num_users is not None:
            set_fields(self, num_users=check_integer("num_users", self.num_users, 1))
        check_switch("blank_texts", self.blank_texts)
        set_fields(self, memory=parse_memory(self.memory))
        check_choice("preset", self.preset, tuple(PRESETS))
        if self.updates > MAX_POINTS * self.eval_every:
            raise ConfigurationError(
                f"eval_every must be at least updates / {MAX_POINTS}, got {self.eval_every} for {self.updates}"
            )
        if self.eval_every > self.updates:
            raise ConfigurationError(f"eval_every must be at most updates ({self.updates}), got {self.eval_every}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds must be one or more different numbers, got {self.seeds}")
        if not self.budgets or not set(self.budgets) <= set(BASES):
            raise ConfigurationError(f"budgets must be one or more of {BASES}, got {self.budgets}")
        self.run_config(PARITY, self.seeds[0])

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of its model."""
        return modules_of(self.run_config(PARITY, self.seeds[0]).model_config(num_items=2))

    @property
    def points(self) -> tuple[float, ...]:
        """The parts of the budget at which an arm is evaluated; the last is 1."""
        inner = range(self.eval_every, self.updates, self.eval_every)
        return (*(spent / self.updates for spent in inner), 1.0)

    def run_config(self, schedule: str, seed: int) -> RunConfig:
        """The settings of one run."""
        return self._open_config(schedule, seed).with_values(self.sizes)

    def settled(self, counts: Counts) -> "StudyConfig":
        """The study with what its preset leaves to the data, which it keeps."""
        _, choices = self._open_config(PARITY, self.seeds[0]).settled(counts)
        return dataclasses.replace(self, sizes={choice.name: choice.value for choice in choices})

    def _open_config(self, schedule: str, seed: int) -> RunConfig:
        """The settings of one run, but for what is left to the data.

        Whatever the preset, arms begin at the peak rates: they may have learnt nothing before.
        """
        return preset(
            self.preset,
            dataset=self.dataset,
            data={} if self.dataset == "synthetic" else self.data,
            backend=self.backend,
            schedule=schedule_string(schedule),
            batch_size=self.batch_size,
            encoder=self.encoder,
            split=self.split,
            repeats=self.repeats,
            seed=seed,
            device=self.device,
            memory=self.memory,
            model=dict(self.model),
            trainer={"joint_lr_scale": 1.0, **self.trainer, "joint_loss": self.joint_loss, "fusion_fit": TRAINING},
        )

    def extended(self, *, arms: tuple[str, ...] = (), seeds: tuple[int, ...] = ()) -> "StudyConfig":
        """The same study with further arms and seeds."""
        return dataclasses.replace(
            self, arms=tuple(dict.fromkeys(self.arms + arms)), seeds=tuple(dict.fromkeys(self.seeds + seeds))
        )

    def conditions(self) -> dict[str, Any]:
        """What every run shares: the study without its arms, its seeds, its choice of budgets, and what follows."""
        content = {**self.to_json(), **{name: getattr(self, name) for name in _ADDED}}
        return {key: value for key, value in content.items() if key not in ("arms", "seeds", "budgets", "sizes")}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        content = dataclasses.asdict(self)
        for name in _ADDED:
            if content[name] == getattr(type(self), name):
                del content[name]
        if not self.sizes:
            del content["sizes"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "StudyConfig":
        """The study that `to_json` wrote.

        Raises:
            ConfigurationError: Settings that do not exist.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        if unknown := sorted(set(content) - known):
            raise ConfigurationError(f"unknown setting {unknown[0]!r} of the study; expected {sorted(known)}")
        tuples = {name: tuple(content[name]) for name in ("arms", "seeds", "budgets") if name in content}
        return cls(**{**content, **tuples})
