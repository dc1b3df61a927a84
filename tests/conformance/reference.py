"""The NumPy reference backend: every line of the contract written out, in float64, with no framework."""

import copy
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from alternator import Alternator, Decision
from tests.conformance.harness import Snapshot
from tests.conformance.problem import (
    ALWAYS,
    BETAS,
    DECAY,
    EPSILON,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Batch,
    Setup,
    initial_weights,
)

Gradients = dict[str, dict[str, np.ndarray]]


class ReferenceHarness:
    """See `harness.Harness`. Its mutants override one method each."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.alternator = Alternator(setup.names, rule=setup.rule)
        self.pending: deque[dict[str, float]] = deque()
        self.weights = {
            name: {key: value.astype(np.float64) for key, value in module.items()}
            for name, module in initial_weights(setup).items()
        }
        self.mix_N = np.ones(len(setup.modules))
        self.optimizer = {name: self.fresh_optimizer(name) for name in setup.groups}
        self.last_gradients: Gradients = {}
        self.away: set[str] = set()  # of these no moments are on the device
        self.enter_states()

    @property
    def active(self) -> str:
        return self.alternator.active

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        trained = self.setup.trains(self.active)
        reported = dict(self.losses_to_report(batch, trained) if losses is None else losses)
        self.check_names(reported)
        self.last_gradients = {}
        if updated:
            self.last_gradients = self.gradients(batch, trained)
            self.move_means(batch, trained)
            self.update(self.clip(self.last_gradients), trained)
        return self.decide(reported, updated=updated)

    def losses_to_report(self, batch: Batch, trained: tuple[str, ...]) -> dict[str, float]:
        own = self.losses(batch, trained)
        return {
            name: sum(own[module] for module in self.setup.trains(name) if module != ALWAYS)
            for name in self.setup.names
        }

    def check_names(self, reported: Mapping[str, float]) -> None:
        for name in reported:
            self.alternator.loss_history(name)  # an unknown one is an error, before anything has changed

    def decide(self, reported: dict[str, float], *, updated: bool) -> Decision:
        step = self.alternator.step + 1
        self.pending.append(reported)
        while len(self.pending) > self.setup.delay:
            for name, value in self.pending.popleft().items():
                self.alternator.record(name, value, step=step - self.setup.delay)
        decision = self.alternator.advance(updated=updated)
        if decision.switched:
            self.enter()
        return decision

    def force(self, name: str) -> None:
        self.alternator.force(name)
        self.enter()

    def enter(self) -> None:
        """After a switch: the states of what is frozen leave."""
        self.enter_states()

    def enter_states(self) -> None:
        self.away = set()
        if self.setup.frozen_state != "keep":
            self.away = set(self.setup.modules) - set(self.setup.trains(self.active))
        if self.setup.frozen_state == "drop":
            for name in self.away:
                self.drop(name)

    def drop(self, name: str) -> None:
        count = self.optimizer[name]["schedule/count"]
        self.optimizer[name] = {**self.fresh_optimizer(name), "schedule/count": count}

    def centred(self, batch: Batch, name: str, trained: tuple[str, ...]) -> np.ndarray:
        inputs_BD = batch.inputs_NBD[self.setup.modules.index(name)].astype(np.float64)
        by_batch = name in self.setup.by_batch(trained)
        return inputs_BD - (inputs_BD.mean(0) if by_batch else self.weights[name]["mean"])

    def predictions(self, batch: Batch, trained: tuple[str, ...]) -> np.ndarray:
        return np.stack(
            [
                self.centred(batch, name, trained) @ module["weight"] + module["bias"]
                for name, module in self.weights.items()
            ]
        )

    def losses(self, batch: Batch, trained: tuple[str, ...]) -> dict[str, float]:
        errors_NB = self.predictions(batch, trained) - batch.targets_B
        return {name: float((errors_B**2).mean()) for name, errors_B in zip(self.setup.modules, errors_NB, strict=True)}

    def gradients(self, batch: Batch, trained: tuple[str, ...]) -> Gradients:
        """Those of what trains; nothing is computed for the rest."""
        predictions_NB = self.predictions(batch, trained)
        if self.setup.coupled:
            slope_B = 2 * (self.mix_N @ predictions_NB - batch.targets_B) / len(batch.targets_B)
            slopes_NB = self.mix_N[:, None] * slope_B
        else:
            slopes_NB = 2 * (predictions_NB - batch.targets_B) / len(batch.targets_B)
        found: Gradients = {}
        for name, slope_B in zip(self.setup.modules, slopes_NB, strict=True):
            if name in trained:
                found[name] = {"weight": slope_B @ self.centred(batch, name, trained), "bias": slope_B.sum()}
        if ALWAYS in trained:
            slope_B = 2 * (self.mix_N @ predictions_NB - batch.targets_B) / len(batch.targets_B)
            found[ALWAYS] = {"mix": predictions_NB @ slope_B * self.setup.coupled}
        return found

    def move_means(self, batch: Batch, trained: tuple[str, ...]) -> None:
        for index, (name, module) in enumerate(self.weights.items()):
            if name in trained:
                module["mean"] = (1 - MOMENTUM) * module["mean"] + MOMENTUM * batch.inputs_NBD[index].mean(0)

    def clip(self, gradients: Gradients) -> Gradients:
        if self.setup.clip_norm is None:
            return gradients
        norm = np.sqrt(sum((value**2).sum() for module in gradients.values() for value in module.values()))
        scale = min(1.0, self.setup.clip_norm / norm)
        return {name: {key: value * scale for key, value in module.items()} for name, module in gradients.items()}

    def update(self, gradients: Gradients, trained: tuple[str, ...]) -> None:
        for name in trained:
            self.adamw(name, gradients[name])

    def adamw(self, name: str, gradients: dict[str, np.ndarray], rate: float = LEARNING_RATE) -> None:
        """One AdamW step of one group (Loshchilov and Hutter 2019)."""
        state = self.optimizer[name]
        rate *= DECAY ** state["schedule/count"]
        state["schedule/count"] = state["schedule/count"] + 1
        state["optimizer/count"] = state["optimizer/count"] + 1
        first, second = BETAS
        for key, gradient in gradients.items():
            m = state[f"optimizer/m/{key}"] = first * state[f"optimizer/m/{key}"] + (1 - first) * gradient
            v = state[f"optimizer/v/{key}"] = second * state[f"optimizer/v/{key}"] + (1 - second) * gradient**2
            m, v = m / (1 - first ** state["optimizer/count"]), v / (1 - second ** state["optimizer/count"])
            self.add(name, key, -rate * (m / (np.sqrt(v) + EPSILON) + WEIGHT_DECAY * self.value(name, key)))

    def value(self, name: str, key: str) -> np.ndarray:
        return self.mix_N if name == ALWAYS else self.weights[name][key]

    def add(self, name: str, key: str, change: np.ndarray) -> None:
        if name == ALWAYS:
            self.mix_N = self.mix_N + change
        else:
            self.weights[name][key] = self.weights[name][key] + change

    def fresh_optimizer(self, name: str) -> dict[str, Any]:
        keys = {"mix": self.mix_N} if name == ALWAYS else {key: self.weights[name][key] for key in ("weight", "bias")}
        moments = {f"optimizer/{m}/{key}": np.zeros_like(value) for m in "mv" for key, value in keys.items()}
        return {**moments, "optimizer/count": np.int64(0), "schedule/count": np.int64(0)}

    def snapshot(self) -> Snapshot:
        taken: Snapshot = {}
        for name in self.setup.groups:
            taken[name] = {key: np.array(value) for key, value in self.optimizer[name].items()}
            if name == ALWAYS:
                taken[name]["parameters/mix"] = self.mix_N.copy()
                continue
            taken[name] |= {f"parameters/{key}": np.array(self.weights[name][key]) for key in ("weight", "bias")}
            taken[name]["buffers/mean"] = self.weights[name]["mean"].copy()
        return taken

    def held(self) -> set[str]:
        return set(self.setup.groups) - self.away

    def computed(self) -> set[str]:
        return {name for name, module in self.last_gradients.items() if any(value.any() for value in module.values())}

    def own_losses(self, batch: Batch) -> dict[str, float]:
        return self.losses(batch, ())

    def scores(self, batch: Batch) -> np.ndarray:
        return np.asarray(self.mix_N @ self.predictions(batch, ()))

    def save(self) -> Any:
        held = (self.pending, self.weights, self.mix_N, self.optimizer)
        return self.alternator.state_dict(), copy.deepcopy(held)

    def load(self, saved: Any) -> None:
        state, held = saved
        self.alternator.load_state_dict(state)
        self.pending, self.weights, self.mix_N, self.optimizer = copy.deepcopy(held)
        self.enter_states()

    def take(self) -> Any:
        return copy.deepcopy((self.weights, self.mix_N, self.optimizer))

    def rollback(self, kept: Any) -> None:
        self.weights, self.mix_N, self.optimizer = copy.deepcopy(kept)

    def num_traces(self) -> int | None:
        return None
