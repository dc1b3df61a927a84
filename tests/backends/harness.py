"""What the tests need of a backend beyond its public API, and what they read of any trainer through that API.

The tests speak NumPy; `Backend` is where a framework is spoken, and the only place where private state is touched.
Shapes: B rows, L positions, N positions with a target, I items, K preference vectors, d width.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load_file

from ur4rec.config import TrainerConfig
from ur4rec.data.batches import Batch, TrainBatches
from ur4rec.training.checkpoint import load_checkpoint

Array = NDArray[Any]
Arrays = dict[str, Array]
Components = Mapping[str, tuple[float, float]]
"""Losses and their weights by name."""

PARTS = ("sasrec", "retriever", "fusion")
STRATEGIES = ("memory_bank", "uncertainty")
"""How the names of what the strategies keep begin in a checkpoint."""

BACKENDS = {
    "torch": "tests.backends.torch_harness:TorchBackend",
    "jax": "tests.backends.jax_harness:JaxBackend",
}


def installed() -> list[str]:
    """The backends whose framework is installed."""
    return [name for name in BACKENDS if find_spec(name) is not None]


def load(name: str) -> "Backend":
    """The harness of a backend; its framework is imported now."""
    place, _, class_name = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(place), class_name)()
    return backend


class Inputs(NamedTuple):
    """A training batch as the losses see it, where all positions are real."""

    items_BL: Array
    positions_N: Array
    targets_N: Array


class OfKind(list[Batch]):
    """Batches of one's own, of the kind of a loader's."""

    def __init__(self, batches: Iterable[Batch], loader: TrainBatches) -> None:
        super().__init__(batches)
        self.usual_targets, self.length_counts = loader.usual_targets, loader.length_counts
        self.batch_size = loader.batch_size


def saved_arrays(trainer: Any, path: Path) -> Arrays:
    """The arrays of a checkpoint that is made there."""
    trainer.save_checkpoint(path)
    saved = load_checkpoint(path)
    return {**saved.weights, **saved.moments}


class Losses(NamedTuple):
    """What `separate_loss` and `fused_loss` give."""

    total: float
    modules: dict[str, float]


class Bank(Protocol):
    """A memory bank."""

    num_compilations: int | None
    """How often its step was compiled; None where nothing is."""

    def step(self, inputs: Inputs, preferences_NKd: Array, keys_Id: Array) -> float:
        """The loss of a batch, which is written afterwards."""

    def gradients(self, inputs: Inputs, preferences_NKd: Array, keys_Id: Array) -> tuple[Array, Array]:
        """Of the loss, by the preferences and by the keys."""

    def arrays(self) -> tuple[Array, Array, int]:
        """Items, keys and cursor as in a checkpoint."""


class Uncertainty(Protocol):
    """Uncertainty weights."""

    def total(self, components: Components) -> float: ...

    def metrics(self, components: Components) -> dict[str, float]: ...

    def update(self, components: Components, *, is_finite: bool, learning_rate: float) -> None:
        """A step of gradient descent."""

    def log_variances(self) -> dict[str, float]:
        """All of them by component."""


class Backend(Protocol):
    """One framework. What it takes and gives is NumPy, but for models, their parts and what `array` gives."""

    name: str
    package: ModuleType
    """`ur4rec_torch` or `ur4rec_jax`."""
    tolerance: dict[str, float]
    """Within which two ways to compute the same in the widest type of `value_and_gradients` agree."""
    same_scores: dict[str, float]
    """Within which a model gives the scores that its trainer gives: a compiler may order sums differently."""

    def part(self, file: str) -> Any:
        """A module of the package by its file's name, which is the same in both."""

    def array(self, values: ArrayLike) -> Any:
        """An array of the framework."""

    def call(self, function: Callable[..., Any], *arrays: ArrayLike) -> Any:
        """A function of arrays, run without gradients; its result, or the tuple or dictionary of them, as NumPy."""

    def value_and_gradients(
        self, function: Callable[..., Any], *arrays: Array, wide: bool = False
    ) -> tuple[float, list[Array]]:
        """A scalar function of arrays and its gradients; zeros where there is none.

        Args:
            function: Of arrays of the framework.
            *arrays: Of floats.
            wide: Whether to compute in the widest type that the framework has by default, rather than in float32.
        """

    def check_gradients(self, function: Callable[..., Any], *arrays: Array) -> None:
        """The framework's own check against finite differences."""

    def inference(self, model: Any) -> Any:
        """The model in inference mode."""

    def weights(self, module: Any) -> Arrays:
        """Parameters and buffers of a model or a part of it, by canonical name, as the package exports them."""

    def set_weights(self, module: Any, weights: Mapping[str, ArrayLike]) -> None:
        """Replace some of `weights`."""

    def gradients(self, model: Any, function: Callable[[Any], Any]) -> Arrays:
        """The gradients of a scalar function of a model, by canonical name, of those parameters that get one."""

    # losses

    def set_slices(self, monkeypatch: Any, num_rows: int, num_items: int) -> None:
        """Let the catalogue's cross-entropy take this number of rows at a time."""

    def draw_items(self, seed: int, num: int, num_items: int) -> Array:
        """The negatives that `sequence_loss` draws under this seed."""

    def sequence_loss(self, name: str, arrays: Sequence[Array], config: TrainerConfig, seed: int = 0) -> float:
        """One of ``SEQUENCE_LOSSES`` of states, item table, targets and histories."""

    def step_losses(self, model: Any, config: TrainerConfig, batch: Batch, modules: tuple[str, ...]) -> Losses:
        """What a step minimises under the joint loss of the configuration."""

    def step_gradients(self, model: Any, config: TrainerConfig, batch: Batch, modules: tuple[str, ...]) -> Arrays:
        """The gradients of `step_losses`, of those parameters that get one."""

    # strategies

    def consistency(self, inputs: Inputs, preferences_NKd: Array, keys_Id: Array) -> tuple[float, list[Array]]:
        """The loss, and its gradients by the preferences and by the keys."""

    def diversity(self, inputs: Inputs, preferences_NKd: Array) -> float: ...

    def distillation(self, student_NI: Array, teacher_NI: Array, temperature: float) -> tuple[float, list[Array]]:
        """The loss, and its gradients by the student and by the teacher."""

    def memory_bank(self, size: int, dim: int, temperature: float) -> Bank:
        """An empty one."""

    def uncertainty(self) -> Uncertainty:
        """As at the beginning."""

    # trainers

    def to_inference_mode(self, trainer: Any) -> None:
        """Leave the trainer's model in inference mode, if the framework has modes."""

    def act_like_an_accelerator(self, trainer: Any) -> None:
        """Do not wait for a step's loss, as on a device that computes while the host goes on."""

    def spoil(self, trainer: Any, monkeypatch: Any, steps: Iterable[int]) -> None:
        """Make the fused loss of a trainer NaN in some steps of the host."""

    def average_all(self, monkeypatch: Any) -> None:
        """Let averages of weights follow all modules in every step, frozen or not."""

    def forget_catalogue(self, trainer: Any) -> None:
        """Throw away what is kept of a frozen retriever."""

    def watch_catalogue(self, trainer: Any) -> list[int]:
        """A list that gets the trainer's step whenever the catalogue of a frozen retriever is computed."""

    def num_scorings(self, targets: Iterable[Any]) -> int:
        """How often a module's ``score`` is entered while these are ranked for the first time: per batch or shape."""


def snapshot(trainer: Any) -> Arrays:
    """All arrays of a trainer by their names in a checkpoint, which is the public way to read them.

    A weight has its canonical name; its moments and its count of updates add ``/exp_avg``, ``/exp_avg_sq`` and
    ``/step`` to it, and are absent before the first update.
    """
    return _saved(trainer)[0]


def schedule(trainer: Any) -> dict[str, Any]:
    """The state of a trainer's schedule as it is in a checkpoint."""
    saved: dict[str, Any] = _saved(trainer)[1]["schedule"]
    return saved


def bits(trainer: Any, *parts: str) -> Arrays:
    """Everything of these parts (of all by default) that a frozen step must not change."""
    return _of(snapshot(trainer), parts or PARTS)


def kept(trainer: Any) -> Arrays:
    """What the strategies keep."""
    return _of(snapshot(trainer), STRATEGIES)


def updates(trainer: Any, *parts: str) -> dict[str, set[int]]:
    """The numbers of updates of each part's parameters."""
    arrays = snapshot(trainer)
    return {
        part: {int(array) for name, array in _of(arrays, (part,)).items() if name.endswith("/step")}
        for part in parts or PARTS
    }


def equal(first: Arrays, second: Arrays) -> bool:
    """Whether two sets of arrays are the same, bit for bit."""
    return first.keys() == second.keys() and not changed(first, second)


def changed(first: Arrays, second: Arrays) -> set[str]:
    """The names of those that differ."""
    return {name for name in first if not np.array_equal(first[name], second[name])}


def train(trainer: Any, batches: Iterable[Batch]) -> list[Any]:
    """Train on these; the decisions."""
    return [trainer.train_step(batch) for batch in batches]


def _saved(trainer: Any) -> tuple[Arrays, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "step"
        trainer.save_checkpoint(directory)
        files = [load_file(path) for path in sorted(directory.glob("*.safetensors"))]
        state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    return {name: array for arrays in files for name, array in arrays.items()}, state


def _of(arrays: Arrays, parts: Iterable[str]) -> Arrays:
    prefixes = tuple(f"{part}." for part in parts)
    return {name: array for name, array in arrays.items() if name.startswith(prefixes)}
