"""JointTrainer: four stages, two modules or three, and a schedule that says which of them trains.

What both backends share is `ur4rec.training.trainer.BaseTrainer`; shapes: B rows, I items.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike, NDArray

from adapters.jax import DeviceAlternator, HostAlternator
from alternator import Alternator, Decision, Payoff, Rule, Trial
from alternator.recordings.log import StepRecord
from ur4rec.config import TrainerSettings
from ur4rec.data.batches import Batch, EvaluationBatch
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.stages import TEXT_ENCODER, TURNS, find_stage
from ur4rec.training.arrays import StepReport
from ur4rec.training.checkpoint import Arrays
from ur4rec.training.length_groups import LengthGroups
from ur4rec.training.mesh import Mesh
from ur4rec.training.processes import Processes
from ur4rec.training.scorer import Scores
from ur4rec.training.shapes import CACHED, ENCODED_TEXTS
from ur4rec.training.step_log import Reader
from ur4rec.training.trainer import BaseTrainer
from ur4rec_jax.checkpoint import export_arrays, restore_arrays
from ur4rec_jax.compiled import functions_of, split_model
from ur4rec_jax.device import find_device, find_mesh, send, to_inputs
from ur4rec_jax.epoch import Epoch, StepInput, stack_inputs
from ur4rec_jax.layout import ONE_DEVICE, POPULARITY, Layout, check_layout, to_host
from ur4rec_jax.losses import StepInputs
from ur4rec_jax.processes import known_processes
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.slices import ModelScores
from ur4rec_jax.snapshots import ModuleSnapshots
from ur4rec_jax.state import TrainState
from ur4rec_jax.step import FUSION, PARTS, Entries
from ur4rec_jax.text_cache import MODULE, VECTORS, CacheState, TextCache, with_vectors
from ur4rec_jax.text_groups import Groups
from ur4rec_jax.ur4rec import UR4Rec

CACHED_TEXTS = f"{ENCODED_TEXTS}/{CACHED}"
"""The cache of a text encoder in a checkpoint, where it is older than the weights."""
_LOGGER = logging.getLogger("alternator")


class TrainerArguments(TrainerSettings, total=False):
    """The keyword arguments of `BaseTrainer`, for type checkers."""

    device: str | jax.Device
    rule: Rule | None
    progress: bool | None
    probe: EvaluationBatch | None
    on_step: Callable[[StepRecord], object] | None
    item_counts: ArrayLike | None
    memory: int | str
    readers: int | None
    mesh: str | Mesh | None
    shard: bool
    processes: Processes | None


class JointTrainer(BaseTrainer[UR4Rec, jax.Device, Array]):
    """Trains a UR4Rec model through the four stages; arguments and attributes are those of `BaseTrainer`.

    The model's arrays are copied to the device; the freeze contract is that of `adapters.optax`. A ``mesh`` is over all
    devices of all processes; without one, one process trains on one device, and several divide batches.

    Args:
        model: The model.
        on_device: Whether `train_epoch` runs all steps on the device, the schedule included, without the host, and so
            without ``after_step``. The decisions are the same until a number that a rule compares lies within float32
            rounding of its limit.
        **arguments: The further arguments of `BaseTrainer`.

    Example:
        >>> from ur4rec.data.batches import EvaluationBatches, TrainBatches
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> split = leave_one_out(synthetic(num_users=40, num_items=50))
        >>> model = UR4Rec(split.num_items, np.eye(split.num_items), text_embedding_dim=split.num_items, max_seq_len=8)
        >>> trainer = JointTrainer(model, device="cpu", progress=False)
        >>> trainer.set_training_stage("joint_finetune", num_steps=20)
        >>> loader = TrainBatches(split.train, split.num_items, max_seq_len=8, batch_size=16, seed=0)
        >>> metrics = trainer.train_epoch(loader, epoch=0)
        >>> metrics["sasrec_steps"] + metrics["retriever_steps"] == len(loader)
        True
        >>> targets = EvaluationBatches(split.validation, split.num_items, max_seq_len=8, batch_size=16)
        >>> sorted(trainer.evaluate(targets, k_list=[10]))
        ['hit@10', 'mrr', 'ndcg@10']
    """

    backend = "jax"
    _alternating: HostAlternator
    _to_host = staticmethod(to_host)

    def __init__(
        self,
        model: UR4Rec,
        *,
        on_device: bool = False,
        **arguments: Unpack[TrainerArguments],
    ) -> None:
        self._on_device = on_device
        self._kind = arguments.get("device", "auto")
        if arguments.get("processes") is None:
            arguments["processes"] = known_processes()
        if arguments.get("compile"):
            _LOGGER.warning("compile=True changes nothing in JAX, which compiles every step anyway")
        super().__init__(model, **arguments)

    @property
    def model(self) -> UR4Rec:
        """The model with a copy of the weights as they are now, on one device; several processes take it together."""
        params, buffers = self._layout.fetch(self._state.params), self._layout.fetch(self._current_buffers())
        params = jax.device_put(params, self.device, may_alias=False)
        buffers = jax.device_put(
            buffers, self.device, may_alias=False if self._text_cache else None
        )  # it is written to
        model: UR4Rec = nnx.merge(self._graphdef, params, buffers)
        return model

    def _lay_out(self, mesh: str | Mesh | None, *, shard: bool) -> Mesh:
        if shard:
            raise ConfigurationError("shard must be left out with the backend jax, got True; give mesh='items=N'")
        self._devices, found = find_mesh(self._kind, mesh)
        return found

    def _set_up(self, model: UR4Rec, device: str | jax.Device) -> None:
        if self._on_device and model.config.has_text_encoder:
            raise ConfigurationError(
                f"on_device=True needs text_encoder='none', got {model.config.text_encoder!r}, whose cache the host "
                "refreshes; leave out on_device=True"
            )
        self._layout = ONE_DEVICE
        if self._devices is not None:
            check_layout(self.mesh, model.config)
            self._layout = Layout.over(self._devices, self.mesh, model.config.num_items)
            device = next(each for each in self._devices if each.process_index == jax.process_index())
        self.device = find_device(device)
        self._loss_at_hand = self.device.platform == "cpu"
        self._graphdef, params, buffers = split_model(model)
        self._buffers = self._place(buffers)
        parts = tuple(name for name in PARTS if name in params)
        self._functions = functions_of(self._graphdef, self.config, parts, self._layout)
        self._state = self._place(self._functions.steps[True].init(params, model.config.retriever_output_dim))
        self._key = self._place(jax.random.key(self.config.seed))
        self._usual_targets: int | None = None
        self._kept_catalogue: Catalogue | None = None
        self._averaged_catalogue: Catalogue | None = None
        self._text_cache = TextCache(model.text_encoder, self.device) if TEXT_ENCODER in self.modules else None

    def _check_stage(self, alternator: Alternator, position: Callable[[], float] | None) -> None:
        if self._on_device and position is not None:
            raise ConfigurationError("position must be left out with on_device=True: no step asks the host there")
        if self._on_device and isinstance(alternator.rule, Payoff | Trial):
            kind = type(alternator.rule).__name__
            raise ConfigurationError(f"a {kind} rule needs the host, which measures; leave out on_device=True")

    def _build_adapter(self, alternator: Alternator) -> HostAlternator:
        return HostAlternator(alternator, delay=self.config.loss_delay)

    def _train_batches(
        self, loader: Iterable[Batch], batches: Iterable[Batch], after_step: Callable[[], bool] | None
    ) -> None:
        self._usual_targets = _usual_targets(loader, self._layout.num_parts)
        try:
            if self._on_device:
                self._train_on_device(list(batches))
            else:
                super()._train_batches(loader, batches, after_step)
        finally:
            self._usual_targets = None

    def _preparer(self, groups: LengthGroups | None = None) -> Callable[[Batch, int], StepInputs]:
        num_items, usual_targets, layout = self._model_config.num_items, self._usual_targets, self._layout
        options: dict[str, Any] = {"with_users": self._reads_users, "sampler": self._sampler, "groups": groups}
        options["texts"] = None if self._text_cache is None else self._text_cache.groups

        def prepare(batch: Batch, step: int) -> StepInputs:
            inputs = to_inputs(batch, num_items, usual_targets, step=step, num_parts=layout.num_parts, **options)
            if layout.mesh is not None:
                return layout.place_inputs(inputs)
            sent: StepInputs = send(inputs, self.device)
            return sent

        return prepare

    def _update(self, batch: Batch, active: str, rates: Mapping[str, float]) -> tuple[Decision, StepReport[Array]]:
        modules = TURNS[active]
        changes_catalogue = not {"retriever", TEXT_ENCODER}.isdisjoint(modules)
        needs_catalogue = self._sampler is None and (self._is_fused or self._distils)
        inputs, numbers = self._inputs(batch), (dict(rates), self._curriculum(self.stage_step))
        inputs, groups = self._prepare_texts(modules, inputs)
        self._state, report, entries = self._functions.compiled_steps[self._is_fused](
            self._state,
            self._buffers,
            self._catalogue() if needs_catalogue and not changes_catalogue else None,
            inputs,
            self._key,
            *self._send((np.int32(self.step), *jax.tree.map(np.float32, numbers))),
            turn=active,
            distils=self._distils,
            groups=groups,
        )
        self._write(entries)
        if changes_catalogue:
            self._kept_catalogue = self._averaged_catalogue = None
        return self._observe(active, report, at_hand=self._loss_at_hand), report

    def _write(self, entries: Entries) -> None:
        """Write what a step gives into the memory bank and the cache of the text encoder."""
        if entries.bank is not None:
            self._state = self._functions.write(self._state, entries.bank)
        if entries.texts is not None:
            assert self._text_cache is not None
            vectors_JT = self._functions.write_texts(self._buffers[MODULE][VECTORS], entries.texts)
            self._buffers = with_vectors(self._buffers, vectors_JT)
            self._text_cache.trained()

    def _prepare_texts(self, modules: tuple[str, ...], inputs: StepInputs) -> tuple[StepInputs, Groups]:
        """The inputs of a step with the texts that it encodes, and their groups; none where the encoder is frozen.

        All texts are encoded again if it has trained and is frozen now: from here on its cache stays.
        """
        if self._text_cache is None:
            return inputs, ()
        if TEXT_ENCODER not in modules:
            self._buffers = self._text_cache.refreshed(self._state.params, self._buffers)
            return inputs._replace(texts_E=None), ()
        assert inputs.texts_E is not None
        return inputs, self._text_cache.groups.of(len(inputs.texts_E))

    def _current_buffers(self) -> Any:
        """The buffers, of a text encoder with vectors of the weights as they are."""
        return (
            self._buffers if self._text_cache is None else self._text_cache.current(self._state.params, self._buffers)
        )

    def _send(self, numbers: tuple[Any, ...]) -> tuple[Any, ...]:
        """Numbers of the host where a step takes them from."""
        on_mesh = self._layout.mesh is not None
        sent: tuple[Any, ...] = self._layout.place_whole(numbers) if on_mesh else send(numbers, self.device)
        return sent

    def _late(self, value: Array) -> Reader:
        return partial(float, value)

    def _scoring(self, scorers: tuple[str, ...]) -> nullcontext[Scores[Array]]:
        arrays = (self._state.averages or self._state.params, self._current_buffers(), self._scored_catalogue())
        scores = ModelScores(self._functions, arrays, scorers, self._model_config, self.device, self._layout)
        return nullcontext(scores)

    def _snapshots(self) -> ModuleSnapshots:
        def arrays() -> tuple[dict[str, Any], Any]:
            return self._state.params, self._current_buffers()

        return ModuleSnapshots(
            *(self._functions, arrays, self._place, self._layout),
            padding=self._model_config.num_items,
            reads_users=self._reads_users,
        )

    def _popularity(self) -> NDArray[np.float32]:
        part, name = POPULARITY
        popularity_J = self._layout.fetch({part: self._buffers[part]})[part][name]
        return np.asarray(popularity_J)[: self._model_config.num_items]

    def _set_fusion(self, weights: NDArray[np.float32]) -> None:
        def with_weights(params: dict[str, Any]) -> dict[str, Any]:
            return {**params, FUSION: self._place(jax.tree.map(lambda _: jnp.array(weights), params[FUSION]))}

        averages = self._state.averages
        self._state = self._state._replace(
            params=with_weights(self._state.params),
            averages=None if averages is None else with_weights(averages),
        )

    def _take_state(self) -> tuple[TrainState, CacheState | None]:
        texts = None if self._text_cache is None else self._text_cache.take(self._state.params, self._buffers)
        state: tuple[TrainState, CacheState | None] = jax.tree.map(jnp.copy, (self._state, texts))
        return state  # a copy: a step consumes its own arrays

    def _set_state(self, state: tuple[TrainState, CacheState | None]) -> None:
        self._state, texts = jax.tree.map(jnp.copy, state)
        if self._text_cache is not None:
            self._buffers = self._text_cache.set(texts, self._buffers)
        self._kept_catalogue = self._averaged_catalogue = None

    def _export_arrays(self) -> tuple[Arrays, Arrays]:
        weights, moments = export_arrays(*self._layout.fetch((self._state, self._current_buffers())))
        if self._text_cache is not None and self._text_cache.is_stale:
            moments[CACHED_TEXTS] = np.asarray(self._buffers[MODULE][VECTORS])
        return weights, moments

    def _restore_arrays(self, weights: Arrays, moments: Arrays) -> None:
        moments = dict(moments)
        cached_JT = moments.pop(CACHED_TEXTS, None)
        state, buffers = restore_arrays(weights, moments, *self._layout.model_shape((self._state, self._buffers)))
        self._state, self._buffers = self._place(state), self._place(buffers)
        self._kept_catalogue = self._averaged_catalogue = None
        if self._text_cache is not None:
            vectors_JT = self._buffers[MODULE][VECTORS]
            saved = CacheState(vectors_JT) if cached_JT is None else CacheState(self._place(cached_JT), vectors_JT)
            self._buffers = self._text_cache.set(saved, self._buffers)
            self._text_cache.read(self._buffers[MODULE]["tokens"][...])

    def _catalogue(self) -> Catalogue:
        """What the retriever knows of every item: computed once until it or the text encoder trains."""
        if self._kept_catalogue is None:
            self._kept_catalogue = self._functions.project(self._state.params, self._current_buffers())
        return self._kept_catalogue

    def _scored_catalogue(self) -> Catalogue:
        """The catalogue of the averages, if there are any."""
        if self._state.averages is None:
            return self._catalogue()
        if self._averaged_catalogue is None:
            self._averaged_catalogue = self._functions.project(self._state.averages, self._buffers)
        return self._averaged_catalogue

    def _observe(self, active: str, report: StepReport[Array], *, at_hand: bool) -> Decision:
        """Give the schedule the losses of a step, which had no effect if the loss is not finite."""
        updated = not at_hand or math.isfinite(float(report.total))
        return self._alternating.observe(self._observed(active, report.total, report.modules), updated=updated)

    def _train_on_device(self, batches: Sequence[Batch]) -> None:
        """Train on all batches in one call of the device, then take over its log and its schedule."""
        if not batches:
            return
        stage_steps = range(self.stage_step, self.stage_step + len(batches))
        rates = [self._learning_rates(step) for step in stage_steps]
        curricula = [self._curriculum(step) for step in stage_steps]
        inputs_S = stack_inputs(
            *(batches, self._model_config.num_items, self._usual_targets, self.step, rates, curricula),
            with_users=self._reads_users,
            sampler=self._sampler,
            num_parts=self._layout.num_parts,
            groups=self.length_groups,
        )
        if self._layout.mesh is not None:
            placed = self._layout.place_inputs(inputs_S.inputs, stacked=True)
            inputs_S = StepInput(placed, *self._layout.place_whole(inputs_S[1:]))
        else:
            inputs_S = send(inputs_S, self.device)
        epoch, saved = self._epoch(), self._alternating.state_dict()
        catalogue = self._catalogue() if epoch.keeps_catalogue else None
        self._state, self._kept_catalogue, steps, schedule = epoch.run(
            self._state, saved, catalogue, self._buffers, self._key, inputs_S
        )
        self._averaged_catalogue = None
        for step, step_rates in zip(steps, rates, strict=True):
            active = self.alternator.active if step.decision is None else step.decision.previous
            decision = step.decision or self._observe(active, step.report, at_hand=True)
            self._count_step(active, decision, step.report, step_rates)
            if step.decision is not None and decision.switched:
                _LOGGER.info(decision.explain())
        if schedule is not None:
            self._alternating.load_state_dict(schedule)

    def _epoch(self) -> Epoch:
        """The epoch of this stage, compiled when it is first run; trainers of one shape and schedule share it."""
        alternator, turn, delay = self.alternator, find_stage(self.stage).turn, self.config.loss_delay
        key = (self._is_fused, self._distils, alternator.fingerprint(), turn, delay)
        if key not in self._functions.epochs:
            schedule = turn or DeviceAlternator(alternator.modules, alternator.rule, delay=delay)
            step, project = self._functions.steps[self._is_fused], self._functions.project
            self._functions.epochs[key] = Epoch(step, schedule, project, distils=self._distils)
        epoch: Epoch = self._functions.epochs[key]
        return epoch

    def _place(self, tree: Any) -> Any:
        """A copy of arrays where they are trained: what training steps consume is nobody else's."""
        if self._layout.mesh is not None:
            return self._layout.place(tree, self._layout.specs(tree))
        return jax.device_put(tree, self.device, may_alias=False)


def _usual_targets(loader: Iterable[Batch], num_parts: int) -> int | None:
    """The usual maximum of the number of targets of a part of a batch, if the loader knows it."""
    usual: int | None = getattr(loader, "usual_targets", None)
    if num_parts == 1 or usual is None:
        return usual
    of_part: Callable[[int], int] | None = getattr(loader, "usual_targets_of_part", None)
    return None if of_part is None else of_part(num_parts)
