"""The configuration of a run: everything that decides its result."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from alternator.checks import check_choice, check_integer, set_fields
from alternator.errors import quoted
from ur4rec.config import ModelConfig, TrainerConfig, check_fusion_fit
from ur4rec.errors import ConfigurationError, UnknownNameError, refuse_malformed
from ur4rec.options import REPEATS, SPLITS, DataOptions
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.sizes import FROM_DATA, Choice, Counts, choose
from ur4rec.schedule.alternators import parse_schedule
from ur4rec.schedule.stages import STAGES
from ur4rec.training.backend import BACKENDS
from ur4rec.training.slices import DEFAULT_MEMORY, parse_memory

_IN_SPLIT = ("data", "split", "repeats")
"""What decides nothing but the split, whose hash a run keeps."""
_CHANGEABLE = (
    "backend",
    "device",
    "memory",
    "checkpoint_every",
    "mesh",
    "shard",
    "user_texts",
    "allow_leakage",
    "refit",
    *_IN_SPLIT,
)
MAX_EPOCHS = 100_000
"""The number of epochs of a stage at most."""
_REQUIRED = frozenset(("dataset", "backend", "schedule"))
"""What the configuration of a run says in any case."""
_OPTIONAL = ("min_item_interactions", "early_stopping", "eval_users")
_MINIMA = {**dict.fromkeys((*_OPTIONAL, "eval_every", "batch_size"), 1), "seed": 0, "checkpoint_every": 0}
DEFAULT_EPOCHS = {"pretrain_sasrec": 5, "pretrain_retriever": 5, "joint_finetune": 20, "end_to_end": 5}
_COUNTED = ("num_items", "num_users")
MODEL_SETTINGS = tuple(each.name for each in dataclasses.fields(ModelConfig) if each.name not in _COUNTED)
"""What may be set of a model; the rest comes from the data."""
TRAINER_SETTINGS = tuple(each.name for each in dataclasses.fields(TrainerConfig) if each.name != "seed")
"""What may be set of a trainer; the seed is the run's."""
_PLAIN = tuple(name for name in FROM_DATA if name not in (*MODEL_SETTINGS, *TRAINER_SETTINGS, *STAGES))
"""Settings of the run itself that may be left to the data."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of a run.

    Raises:
        ConfigurationError: A value is out of range; the message states the rule, the value and the remedy.
    """

    dataset: str = "ml-100k"
    """A built-in dataset, a directory of atomic files, or a CSV or Parquet file."""
    backend: str = "torch"
    """"torch" or "jax"."""
    schedule: str = "auto"
    """Who trains in the joint stage; see `ur4rec.schedule.alternators`."""
    epochs: Mapping[str, int] = field(default_factory=lambda: dict(DEFAULT_EPOCHS))
    """Epochs of each stage, in the order in which they run; 0 leaves a stage out."""
    batch_size: int = 128
    """Rows of a training batch; a row holds up to max_seq_len targets."""
    encoder: str = "auto"
    """Text encoder: "auto", "tfidf", the name of a sentence-transformers model, or a path to one."""
    user_texts: str | None = None
    """A JSON file of user preference texts (user id → text), further memory of the retriever; None is none."""
    user_texts_hash: str | None = None
    """The SHA-256 that this file must have; None is any."""
    allow_leakage: bool = False
    """Whether to train although the user texts name held-out items more often than chance: `ur4rec.text.leakage`."""
    min_item_interactions: int | None = None
    """Items with fewer interactions are dropped; None is the dataset's usual number (5 for ml-1m, else 1)."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """How files of one's own are read: options of `ur4rec.options.DataOptions` other than their defaults."""
    split: str = "auto"
    """Which interactions are held out: "auto", "leave-one-out", "temporal" or "given"; see `ur4rec.data.make_split`."""
    repeats: str = "auto"
    """Whether items that a user had before are ranked and recommended: "allow", "exclude", or "auto", which the data
    decides when the run begins."""
    early_stopping: int | None = None
    """Validations in a row without a better one after which a stage ends; None is never."""
    eval_every: int = 1
    """Every how many epochs of a stage are validated; its last one always is."""
    eval_users: int | None = None
    """The number of users whose validation targets are ranked, a sample that depends on the data alone; None is all."""
    refit: bool = False
    """Whether the model that validation chose is trained again, on training and validation interactions, at the end;
    see `ur4rec.runs.refit`."""
    seed: int = 0
    """Seed of weights, data order, dropout and sampled negatives."""
    device: str = "auto"
    """"auto" (an accelerator where there is one), "cpu", "cuda", ..."""
    memory: int | str = DEFAULT_MEMORY
    """Bytes that scores (rows times items) may take at once while targets are ranked, a number or a string such as
    "4GB". The result does not depend on it, but for the last bits of a score."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `ModelConfig` other than its defaults."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainerConfig` other than its defaults."""
    checkpoint_every: int = 500
    """Training steps after which the run is saved, beside the end of every epoch; 0 is then only. The result does not
    depend on it."""
    mesh: str | None = None
    """How the devices of all processes divide the work, such as "data=4,items=2"; None divides batches among them. The
    result depends on it as a sum on the order of its terms."""
    shard: bool = False
    """Whether to spread parameters and the states of optimizers over the processes: PyTorch's ``fully_shard``."""
    from_data: tuple[str, ...] = ()
    """Settings that the data is to decide when the run begins, of `ur4rec.runs.sizes.FROM_DATA`; their values here do
    not count. A run keeps what was decided, and this empty."""

    def __post_init__(self) -> None:
        for name in ("dataset", "backend", "schedule", "encoder", "device"):
            _check_string(name, getattr(self, name))
        for name in ("user_texts", "user_texts_hash", "mesh"):
            if getattr(self, name) is not None:
                _check_string(name, getattr(self, name))
        for name in ("allow_leakage", "refit", "shard"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, known in (("model", MODEL_SETTINGS), ("trainer", TRAINER_SETTINGS), ("epochs", STAGES)):
            _check_mapping(name, getattr(self, name), known)
        for name, minimum in _MINIMA.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                set_fields(self, **{name: check_integer(name, getattr(self, name), minimum)})
        set_fields(self, memory=parse_memory(self.memory))
        parse_schedule(self.schedule)
        check_choice("backend", self.backend, tuple(BACKENDS))
        check_choice("split", self.split, SPLITS)
        check_choice("repeats", self.repeats, REPEATS)
        if not isinstance(self.data, Mapping):
            raise ConfigurationError(f"data must be options by name, got {quoted(self.data)}")
        DataOptions.from_json(self.data)
        set_fields(self, from_data=_check_from_data(self.from_data))
        check_fusion_fit(TrainerConfig(**self.trainer), self.model_config(num_items=2))
        for stage, epochs in self.epochs.items():
            check_integer(f"epochs of {stage}", epochs, 0)
            if epochs > MAX_EPOCHS:
                raise ConfigurationError(f"epochs of {stage} must be at most {MAX_EPOCHS}, got {epochs}")
        if not any(self.epochs.values()):
            raise ConfigurationError(f"epochs must be above 0 for some stage, got {dict(self.epochs)}")

    def model_config(self, num_items: int) -> ModelConfig:
        """The shape of the model for a catalogue; what the data is yet to decide goes with the rest."""
        heads, width = "sasrec_num_heads", "sasrec_hidden_dim"
        settings = {name: value for name, value in self.model.items() if name not in self.from_data}
        if heads in self.from_data:
            settings[heads] = 1
        elif width in self.from_data:
            settings[width] = settings.get(heads, 1)
        return ModelConfig(num_items=num_items, **settings)

    def settled(self, counts: Counts) -> tuple["RunConfig", tuple[Choice, ...]]:
        """The configuration with what the data decides, and what that was; the same where nothing is left to it.

        Args:
            counts: Of the training interactions.

        Example:
            >>> counts = Counts(num_interactions=50_000, num_items=900, num_users=1000, typical_length=90)
            >>> config, choices = RunConfig(from_data=("max_seq_len", "sasrec_lr")).settled(counts)
            >>> config.model, config.trainer, config.from_data
            ({'max_seq_len': 96}, {'sasrec_lr': 0.003}, ())
            >>> str(choices[0])
            'max_seq_len=96: 95% of the histories are no longer than 90'
        """
        if not self.from_data:
            return self, ()
        model = dataclasses.asdict(self.model_config(num_items=2))
        trainer = dataclasses.asdict(TrainerConfig(**self.trainer))
        own = {name: getattr(self, name) for name in _PLAIN}
        every_stage = {**dict.fromkeys(STAGES, 0), **self.epochs}
        choices = choose(counts, {**model, **trainer, **own, **every_stage}, self.from_data)
        return self.with_values({choice.name: choice.value for choice in choices}), choices

    def with_values(self, values: Mapping[str, Any]) -> "RunConfig":
        """The configuration with values of `FROM_DATA`, each where it belongs, and with nothing left to the data."""
        changed: dict[str, Any] = {"from_data": ()}
        for group, names in (("model", MODEL_SETTINGS), ("trainer", TRAINER_SETTINGS), ("epochs", STAGES)):
            own = {name: value for name, value in values.items() if name in names}
            changed[group] = {**getattr(self, group), **own}
        if len(changed["epochs"]) > len(self.epochs):
            changed["epochs"] = {stage: changed["epochs"][stage] for stage in STAGES if stage in changed["epochs"]}
        changed |= {name: value for name, value in values.items() if name in _PLAIN}
        return dataclasses.replace(self, **changed)

    def decisive(self) -> dict[str, Any]:
        """The settings that a run must keep when it is resumed; the others may change without changing what it is."""
        return {name: value for name, value in self.to_json().items() if name not in _CHANGEABLE}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "from_data": list(self.from_data)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RunConfig":
        """The configuration that `to_json` wrote.

        Raises:
            ConfigurationError: Settings that do not exist, or one without which it is no run's.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        if unknown := sorted(set(content) - known - {"facts"}):
            raise ConfigurationError(f"unknown setting {unknown[0]!r} in the configuration; expected {sorted(known)}")
        if missing := sorted(_REQUIRED - set(content)):
            raise ConfigurationError(f"the configuration of a run must have {missing[0]!r}, it has not; restore it")
        return cls(**{name: value for name, value in content.items() if name in known})


def text_encoder_sizes(model: ModelConfig) -> dict[str, int]:
    """The settings of a model that its texts or its sentence encoder have decided; a run keeps them.

    Example:
        >>> text_encoder_sizes(ModelConfig(num_items=9))
        {}
    """
    names = [name for name in MODEL_SETTINGS if name.startswith("text_encoder_") and name != "text_encoder_trains"]
    return {name: getattr(model, name) for name in ("text_embedding_dim", *names)} if model.has_text_encoder else {}


def _check_string(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigurationError(f"{name} must be a string that is not empty, got {value!r}")


def _check_from_data(names: object) -> tuple[str, ...]:
    if not isinstance(names, list | tuple):
        raise ConfigurationError(f"from_data must be names of settings, got {quoted(names)}")
    for name in names:
        if name not in FROM_DATA:
            raise UnknownNameError("setting from the data", name, FROM_DATA)
    return tuple(names)


def _check_mapping(name: str, value: object, known: Collection[str]) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be settings by name, got {value!r}")
    for key in value:
        if key not in known:
            raise UnknownNameError("stage" if name == "epochs" else f"setting of {name}", key, known)


def read_config(directory: RunDirectory) -> RunConfig:
    """The configuration of the run in a directory.

    Raises:
        AlternatorError: ``config.json`` is missing or damaged, or holds settings that do not exist or cannot work.
    """
    content = directory.read_json("config.json")
    with refuse_malformed(directory.path / "config.json", "restore the file"):
        return RunConfig.from_json(content)
