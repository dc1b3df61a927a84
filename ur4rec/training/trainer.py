"""The trainer that both backends share: stages, epochs, the schedule, the log of steps and the checkpoint's document.

Shapes: B rows, I items.
"""

import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alternator import Alternator, Decision, Rule
from alternator.checks import check_integer
from alternator.errors import quoted
from alternator.recordings.log import StepRecord
from ur4rec.config import (
    AUTO,
    HELD_OUT,
    LARGE_CATALOGUE,
    ModelConfig,
    TrainerConfig,
    TrainerSettings,
    check_averages,
    check_catalogue_loss,
    check_fusion_fit,
    check_joint_loss,
    resolve_catalogue_loss,
)
from ur4rec.data.batches import Batch, EvaluationBatch
from ur4rec.errors import CheckpointError, ConfigurationError, refuse_malformed
from ur4rec.files import hash_bytes
from ur4rec.schedule.alternators import ModuleAlternator, build_alternator
from ur4rec.schedule.probes import Probe, build_probe
from ur4rec.schedule.stages import (
    JOINT_STAGES,
    MODULES,
    CurriculumWeights,
    curriculum_weights,
    find_stage,
    learning_rates,
    modules_of,
    turns_of,
)
from ur4rec.schedule.trial_probe import Attempt, TrialProbe
from ur4rec.training.ahead import ahead
from ur4rec.training.arrays import ArrayT, StepInputs, StepReport
from ur4rec.training.backend import Adapter, Model, check_model
from ur4rec.training.checkpoint import (
    Arrays,
    Checkpoint,
    SharedTexts,
    load_checkpoint,
    remedy_for,
    save_checkpoint,
)
from ur4rec.training.fusion_fit import FusionWeights, choose_weights
from ur4rec.training.held_out import HeldOutTargets, SnapshotScores, held_out_targets
from ur4rec.training.length_groups import LengthGroups, find_groups
from ur4rec.training.memory import enough_for_model, enough_for_steps
from ur4rec.training.mesh import Mesh
from ur4rec.training.processes import ONE_PROCESS, Processes, check_equal
from ur4rec.training.sampling import Sampler
from ur4rec.training.scorer import BaseScorer
from ur4rec.training.slices import DEFAULT_MEMORY, parse_memory, slice_width
from ur4rec.training.step_log import LateStep, LateSteps, Reader
from ur4rec.training.undo import Undo

logger = logging.getLogger(__name__)

_GIVEN = "given."
"""Names of the arrays in a checkpoint that its trainer was given begin so."""

ModelT = TypeVar("ModelT", bound=Model)
DeviceT = TypeVar("DeviceT")


class BaseTrainer(BaseScorer[ArrayT], Generic[ModelT, DeviceT, ArrayT]):
    """Trains a UR4Rec model through the four stages.

    With ``ema_decay`` it ranks and scores with averages of the weights, and trains on from the weights.

    A step asks the schedule who trains, runs what the loss needs, and updates what is active; the freeze contract of
    `adapters` holds for the rest. Dropout and sampled negatives are functions of (seed, step). A backend says how
    the model is held and scored, how a step updates it, and which arrays a checkpoint keeps.

    Args:
        model: The model.
        device: ``auto`` is an accelerator where there is one.
        rule: Any switching rule for joint_finetune; by default the original one with the two ``adaptive_*`` numbers.
        progress: Whether to show a bar per epoch; None is only on a terminal. Of several processes, the first shows it.
        probe: Held-out targets on which a `Payoff` rule measures what each module's training is worth, or a `Trial`
            what it has tried.
        on_step: Called with the record of each step, in order, a step late or at the end of the epoch.
        item_counts: How often each item is a target in the training data, `TrainBatches.item_counts`; needed, and read,
            for ``catalogue_loss="sampled"``, which ``auto`` chooses for a large catalogue only where they are given.
        memory: Bytes that scores may take at once while targets are ranked, a number or a string such as ``4GB``.
        readers: The number of threads that prepare the batches of a loader with a length ahead, and send them to the
            device; None is one for an accelerator, and none on the CPU, which they would share with the steps. Results
            do not depend on it.
        mesh: How devices divide the work, such as ``data=4,items=2``; see `ur4rec.training.mesh`.
        shard: Whether to spread parameters and the states of optimizers over the processes.
        processes: The processes that train the model together, from ``start_processes``; None is this one alone.
        **settings: The fields of `TrainerConfig`.

    Attributes:
        adaptive_alternating: The schedule of joint_finetune; None with ``use_adaptive_alternating=False``.
        config: The settings; ``catalogue_loss`` is what ``auto`` has chosen.
        device: The device.
        length_groups: How the rows of batches are divided by their lengths, in the last epoch that was trained; None
            where they are not.
        memory: Bytes that scores may take at once.
        mesh: How devices divide the work.
        model: The model, with the weights that it trains on.
        modules: The names of its modules.
        processes: The processes that train it.
        num_steps: The length of the stage; None if that was not given.
        stage: The stage.
        stage_step: The number of training steps in this stage so far.
        step: The number of training steps so far, over all stages.

    Raises:
        ConfigurationError: A setting is out of range, or two do not go together.
    """

    backend: ClassVar[str]
    """The name of the backend, kept in checkpoints."""
    device: DeviceT
    _alternating: Adapter
    _loss_at_hand: bool
    """Whether the device is the CPU, which has computed a loss when it has it."""

    def __init__(
        self,
        model: ModelT,
        *,
        device: str | DeviceT = "auto",
        rule: Rule | None = None,
        progress: bool | None = None,
        probe: EvaluationBatch | None = None,
        on_step: Callable[[StepRecord], object] | None = None,
        item_counts: ArrayLike | None = None,
        memory: int | str = DEFAULT_MEMORY,
        readers: int | None = None,
        mesh: str | Mesh | None = None,
        shard: bool = False,
        processes: Processes | None = None,
        **settings: Unpack[TrainerSettings],
    ) -> None:
        check_model(model)
        self._given_readers = None if readers is None else check_integer("readers", readers, 0)
        self._prepared: tuple[Batch | None, StepInputs[ArrayT] | None] = (None, None)
        self.config = _with_catalogue_loss(TrainerConfig(**settings), model.config, has_counts=item_counts is not None)
        check_joint_loss(self.config.joint_loss, model.config.fusion)
        check_fusion_fit(self.config, model.config)
        check_catalogue_loss(self.config.catalogue_loss, model.config.fusion)
        check_averages(self.config.ema_decay, model.config.text_encoder)
        self._sampler: Sampler | None = None
        if self.config.catalogue_loss == "sampled":
            self._sampler = Sampler(self.config, model.config.num_items, item_counts)
        self.memory = parse_memory(memory)
        self.processes: Processes = ONE_PROCESS if processes is None else processes
        self.mesh = self._lay_out(mesh, shard=shard)
        self.step = 0
        self.length_groups: LengthGroups | None = None
        self.modules = modules_of(model.config)
        self.adaptive_alternating: ModuleAlternator | None = None
        self._model_config = model.config
        self._rule = rule
        self._probe = probe
        self._progress = progress if self.processes.rank == 0 else False
        self._texts = SharedTexts()
        self._log = LateSteps(on_step, self.config.max_nonfinite_losses)
        with enough_for_model(model.config, "the optimizers of a model"):
            self._set_up(model, device)
        self.set_training_stage("joint_finetune")

    @property
    def alternator(self) -> Alternator:
        """Whatever schedule runs now, parity included."""
        return self._alternating.alternator

    @property
    def num_probe_forwards(self) -> int:
        """How often a module has scored the held-out targets of a `Payoff` or `Trial` rule in this stage."""
        return 0 if self._measuring is None else self._measuring.num_forwards

    def set_training_stage(
        self, stage: str, num_steps: int | None = None, *, position: Callable[[], float] | None = None
    ) -> None:
        """Enter a stage. Optimizer state lives on; the schedule and the learning rates start from scratch.

        Args:
            stage: ``pretrain_sasrec``, ``pretrain_retriever``, ``joint_finetune`` or ``end_to_end``.
            num_steps: Length of the stage, over which the learning rates fall to 0; None keeps them constant.
            position: Returns at each step how far the stage has come, in steps, for a stage whose end is a budget of
                something else; by default the steps trained in it. Only the learning rates follow it.

        Raises:
            ConfigurationError: The backend or the held-out targets do not fit the schedule; nothing has changed then.
            UnknownNameError: There is no such stage; the message lists the four.
        """
        found = find_stage(stage)
        if num_steps is not None:
            check_integer("num_steps", num_steps, 1)
        alternator = build_alternator(found, self.config, self._rule, self.modules)
        self._check_stage(alternator, position)
        measuring = build_probe(alternator, self._probe, self._model_config.fusion, self._held_out(), Undo(self))
        self._log.flush()
        self.stage, self.num_steps, self.stage_step = found.name, num_steps, 0
        self._position = position
        self._measuring: Probe | None = measuring
        if isinstance(alternator, ModuleAlternator):
            self.adaptive_alternating = alternator if self.config.use_adaptive_alternating else None
        self._alternating = self._build_adapter(alternator)

    def train_epoch(
        self,
        train_loader: Iterable[Batch],
        epoch: int = 0,
        *,
        start: int = 0,
        max_steps: int | None = None,
        after_step: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Train on the batches of one epoch.

        An epoch that was left or saved in its middle continues there with ``start``; its metrics are then those of an
        epoch that was never interrupted.

        Args:
            train_loader: Training batches; its ``set_epoch`` is called if it has one.
            epoch: The number of the epoch.
            start: The number of batches to leave out at its beginning, on which the run has trained already.
            max_steps: Train on at most this number of batches.
            after_step: Called after each step, where the trainer may be saved; True ends the call there.

        Returns:
            ``total_loss``, ``sasrec_loss``, ``retriever_loss`` and those of the other components that were computed
            (means over the steps in which they were; see `ur4rec.training.components`),
            ``steps`` in all and per turn, ``switches`` and ``nonfinite_steps`` of this epoch, ``adaptive_switch_count``
            of the schedule so far, and the last learning rates.

        Raises:
            NonFiniteError: Too many losses in a row were not finite.
            OutOfMemoryError: A batch or what a step computes is too large.
        """
        if hasattr(train_loader, "set_epoch"):
            train_loader.set_epoch(epoch)
        self._group_rows(train_loader)
        stop = None if max_steps is None else start + max_steps
        expected = len(range(len(train_loader))[start:stop]) if isinstance(train_loader, Sized) else None
        enough = enough_for_steps(self._model_config, getattr(train_loader, "batch_size", "a batch of"))
        with enough, self._log.epoch(epoch, start, expected, self._progress) as totals:
            self._train_batches(train_loader, islice(train_loader, start, stop), after_step)
        self._check_agreement()
        rates = self._learning_rates(max(self.stage_step - 1, 0))
        return {
            **{f"{turn}_steps": 0 for turn in turns_of(self.modules)},
            **totals.metrics(),
            "adaptive_switch_count": self.alternator.stats().switch_count,
            **{f"{name}_lr": rates[name] for name in self.modules},
        }

    def train_step(self, batch: Batch) -> Decision:
        """Train on one batch what the schedule says.

        Raises:
            NonFiniteError: Too many losses in a row were not finite.
            OutOfMemoryError: The batch or what the step computes is too large.
        """
        with enough_for_steps(self._model_config, len(batch[0])):
            if self._measuring is not None:
                self._measuring.before_step()
            active, rates = self.alternator.active, self._learning_rates(self.stage_step)
            decision, report = self._update(batch, active, rates)
            self._count_step(active, decision, report, rates)
            return decision

    def fit_fusion(self, loader: Iterable[EvaluationBatch]) -> FusionWeights:
        """Choose fusion weights by the NDCG@10 of held-out targets, the modules being as they are.

        They are the retriever's, of `ur4rec.training.fusion_fit.WEIGHTS`, and of a model with ``fusion_popularity``
        popularity's, of `ur4rec.training.fusion_fit.POPULARITY_WEIGHTS`, where SASRec's is 1; and a factor of all,
        with which the fused scores are logits of honest probabilities. It needs ``fusion_fit="held_out"``; the weights
        stay until they are set again, and are both 1 before, popularity's 0. All processes call it together.

        Args:
            loader: The targets; some thousand are enough.

        Returns:
            The weights; 0 leaves a term out.

        Raises:
            ConfigurationError: The weights learn from the training data.
            DataError: The loader is empty, or a batch cannot be fed.
            NonFiniteError: A score is NaN or infinite.
        """
        self._check_held_out()
        chosen = choose_weights(self, loader, self._popularity() if self._model_config.fusion_popularity else None)
        self.set_fusion_weights(chosen.terms(self._model_config.num_fusion_weights))
        return chosen

    def set_fusion_weights(self, weights: ArrayLike) -> None:
        """Set the weights of the fusion, of SASRec, the retriever and maybe popularity, as `fit_fusion` does.

        Raises:
            ConfigurationError: The weights learn from the training data, or these are not as many finite numbers.
        """
        self._check_held_out()
        given, count = np.asarray(weights, np.float32), self._model_config.num_fusion_weights
        if given.shape != (count,) or not np.isfinite(given).all():
            raise ConfigurationError(f"fusion weights must be {count} finite numbers, got {quoted(weights)}")
        self._set_fusion(given)

    @property
    def attempts(self) -> Sequence[Attempt]:
        """What a `Trial` rule has tried in this stage since it was entered or loaded, and what was undone."""
        return self._measuring.attempts if isinstance(self._measuring, TrialProbe) else ()

    def flush(self) -> None:
        """Report the steps whose losses have not been read, waiting for the device.

        Raises:
            NonFiniteError: Too many losses in a row were not finite.
        """
        self._log.flush()

    def save_checkpoint(
        self,
        path: str | Path,
        epoch: int = 0,
        metrics: Mapping[str, Any] | None = None,
        *,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        shares_texts: bool = False,
    ) -> None:
        """Write everything that the run needs to continue exactly, as a directory that is whole or absent.

        Args:
            path: The directory to make; of several processes, the first one makes it.
            epoch: The epoch that is finished, kept for `load_checkpoint` to return.
            metrics: Its metrics, kept likewise.
            arrays: What else of it is kept likewise, and is too long for JSON: arrays by name.
            shares_texts: Keep the text vectors, which never change, in one file beside ``path``, for all checkpoints
                that are saved there; by default the directory holds all that is needed.
        """
        self._log.flush()
        self._check_agreement()
        weights, moments = self._export_arrays()
        if self._measuring is not None:
            moments |= self._measuring.state_dict()
        moments |= {f"{_GIVEN}{name}": array for name, array in (arrays or {}).items()}
        state = {
            "backend": self.backend,
            "model": asdict(self._model_config),
            "trainer": asdict(self.config),
            "progress": {
                "step": self.step,
                "stage": self.stage,
                "num_steps": self.num_steps,
                "stage_step": self.stage_step,
                "epoch": epoch,
                **self._log.state_dict(),
            },
            "schedule": self._alternating.state_dict(),
            "metrics": dict(metrics or {}),
        }
        if self.processes.rank == 0:
            save_checkpoint(path, Checkpoint(weights, moments, state), self._texts if shares_texts else None)
        self.processes.wait()

    def load_checkpoint(self, path: str | Path, *, position: Callable[[], float] | None = None) -> dict[str, Any]:
        """Continue exactly where a checkpoint was saved.

        Args:
            path: The checkpoint.
            position: As `set_training_stage` was given it, of the stage in which it was saved.

        Returns:
            ``epoch`` and ``metrics`` as they were given to `save_checkpoint`, and ``arrays`` if any were.

        Raises:
            CheckpointError: It is missing, damaged, or of another version or configuration.
            StateError: It was saved with another switching rule.
        """
        loaded = load_checkpoint(path)
        loaded.check_settings(self._model_config, self.config)
        with refuse_malformed(f"{path}: its state", remedy_for(path), CheckpointError):
            return self._restore(loaded, position)

    def load_weights(self, path: str | Path) -> None:
        """Take the weights of a checkpoint of the run, with the state of optimizers and averages, and go on from them.

        All else goes on as it is: the count of steps, the stage, the schedule, and with the steps the random draws.

        Args:
            path: The checkpoint.

        Raises:
            CheckpointError: It is missing, damaged, or of another version or configuration.
        """
        loaded = load_checkpoint(path)
        loaded.check_settings(self._model_config, self.config)
        self._log.flush()
        with refuse_malformed(f"{path}: its state", remedy_for(path), CheckpointError):
            self._restore_arrays(loaded.weights, loaded.moments)

    def _restore(self, loaded: Checkpoint, position: Callable[[], float] | None) -> dict[str, Any]:
        progress, schedule = loaded.state["progress"], loaded.state["schedule"]
        # The schedule of another rule is refused before anything has changed.
        stage = find_stage(progress["stage"])
        build_alternator(stage, self.config, self._rule, self.modules).load_state_dict(schedule["alternator"])
        for counter in ("step", "stage_step", "epoch"):
            check_integer(counter, progress[counter], 0)
        self._log.flush()
        self._texts = SharedTexts()
        self.config = replace(self.config, length_groups=loaded.length_groups)
        self._restore_arrays(loaded.weights, loaded.moments)
        self.set_training_stage(progress["stage"], progress["num_steps"], position=position)
        self._alternating.load_state_dict(schedule)
        if self._measuring is not None:
            self._measuring.load_state_dict(loaded.moments, loaded.weights)
        self.step, self.stage_step = progress["step"], progress["stage_step"]
        self._log.load_state_dict(progress)
        given = {name.removeprefix(_GIVEN): each for name, each in loaded.moments.items() if name.startswith(_GIVEN)}
        found = {"epoch": progress["epoch"], "metrics": loaded.state["metrics"]}
        return {**found, "arrays": given} if given else found

    @abstractmethod
    def _lay_out(self, mesh: str | Mesh | None, *, shard: bool) -> Mesh:
        """The mesh of the devices of all processes.

        Raises:
            ConfigurationError: The backend cannot divide the work so.
        """

    @abstractmethod
    def _set_up(self, model: ModelT, device: str | DeviceT) -> None:
        """Take over the model on a device, build its optimizers; the settings are known, the stage is not."""

    @abstractmethod
    def _build_adapter(self, alternator: Alternator) -> Adapter:
        """What applies the schedule of a new stage; it takes the modules over from the adapter before."""

    @abstractmethod
    def _preparer(self, groups: LengthGroups | None = None) -> Callable[[Batch, int], StepInputs[ArrayT]]:
        """What prepares the batch of a training step of the run, in any thread, and sends it to the device.

        Args:
            groups: Divide the rows of batches by their lengths.
        """

    @abstractmethod
    def _update(self, batch: Batch, active: str, rates: Mapping[str, float]) -> tuple[Decision, StepReport[ArrayT]]:
        """Train a turn on one batch, with the learning rate of each part, and let the schedule decide.

        Without effect if the loss is not finite. On the CPU the loss is at hand, and the step counts as skipped then.
        An accelerator must not wait for it: the schedule, which cannot know yet, counts the step as trained there.
        """

    @abstractmethod
    def _late(self, value: ArrayT) -> Reader:
        """Sets a scalar on its way to the host and returns what reads it there."""

    @abstractmethod
    def _snapshots(self) -> SnapshotScores[ArrayT]:
        """What takes snapshots of the modules, and scores with them."""

    @abstractmethod
    def _set_fusion(self, weights: NDArray[np.float32]) -> None:
        """Set the weights of the fusion, and their average if there is one."""

    @abstractmethod
    def _popularity(self) -> NDArray[np.float32]:
        """The popularity of each item that a model with ``fusion_popularity`` has, (I,)."""

    @abstractmethod
    def _take_state(self) -> Any:
        """All that training changes, copied on the device: weights, moments, averages, what strategies keep."""

    @abstractmethod
    def _set_state(self, state: Any) -> None:
        """Set all that to what `_take_state` returned, to the bit; it may be set again."""

    @abstractmethod
    def _export_arrays(self) -> tuple[Arrays, Arrays]:
        """The weights and moments of a `Checkpoint`. It is called before the state of the schedule is taken."""

    @abstractmethod
    def _restore_arrays(self, weights: Arrays, moments: Arrays) -> None:
        """Take over the weights and moments of a `Checkpoint`.

        Raises:
            CheckpointError: They do not fit the model; nothing has been changed then.
        """

    def _check_stage(self, alternator: Alternator, position: Callable[[], float] | None) -> None:
        """Refuse the schedule of a stage if the backend, as it is set up, cannot run it."""

    def _check_held_out(self) -> None:
        """Refuse to set fusion weights that learn with the modules."""
        if self.config.fusion_fit != HELD_OUT:
            raise ConfigurationError(
                f"fusion weights can be set with fusion_fit={HELD_OUT!r} alone, got {self.config.fusion_fit!r}, with "
                "which they learn from the training data; give the trainer that"
            )

    def _check_agreement(self) -> None:
        """Refuse to go on where processes have decided differently, or hold different weights.

        Raises:
            ProcessesError: In all of them.
        """
        if self.processes.count > 1:
            state = json.dumps(self._alternating.state_dict(), sort_keys=True)
            decided = f"{self.alternator.active} ({hash_bytes(state.encode())[:16]})"
            check_equal(self.processes, f"what the schedule has decided by step {self.step}", decided)
            check_equal(self.processes, f"the weights after step {self.step}", self._digest())

    def _digest(self) -> str:
        """What must be equal in all processes beside the schedule."""
        return ""

    def _train_batches(
        self, loader: Iterable[Batch], batches: Iterable[Batch], after_step: Callable[[], bool] | None
    ) -> None:
        """Train on batches of a loader, one after the other."""
        to_inputs, first = self._preparer(self.length_groups), self.step

        def prepare(batch: Batch, number: int) -> StepInputs[ArrayT]:
            with enough_for_steps(self._model_config, len(batch[0])):
                return to_inputs(batch, first + number)

        try:
            with ahead(batches, prepare, readers=self._readers_of(loader)) as prepared:
                for batch, inputs in prepared:
                    self._prepared = batch, inputs
                    self.train_step(batch)
                    if after_step is not None and after_step():
                        break
        finally:
            self._prepared = None, None

    def _group_rows(self, loader: Iterable[Batch]) -> None:
        """Choose how the rows of a loader's batches are divided by their lengths, and say so if that is new."""
        before, self.length_groups = self.length_groups, None
        is_whole = self.processes.count == self.mesh.size == 1
        if self.config.length_groups and is_whole and not self.config.compile:  # which compiles each shape of a group
            self.length_groups = find_groups(loader, is_accelerator=not self._loss_at_hand)
        if self.length_groups is not None and self.length_groups != before:
            logger.info(
                "rows go through the model by their lengths, %s positions: %d of %d in a batch; length_groups=False "
                "computes all",
                *(self.length_groups, self.length_groups.num_positions),
                self.length_groups.num_rows * self.length_groups.width,
            )

    def _inputs(self, batch: Batch) -> StepInputs[ArrayT]:
        """A batch on the device: as it was prepared ahead, or prepared now."""
        known, inputs = self._prepared
        return inputs if inputs is not None and batch is known else self._preparer()(batch, self.step)

    def _held_out(self) -> HeldOutTargets[ArrayT] | None:
        """The held-out targets of a `Payoff` or `Trial` rule, if there are any."""
        if self._probe is None:
            return None
        model, num_rows = self._model_config, max(self._probe.num_valid, 1)
        width = slice_width(model, num_rows, MODULES, self.memory, device=self.device)
        items, num_parts = self._own_items()
        return held_out_targets(self._probe, items, width, self._snapshots(), model.fusion, self.processes, num_parts)

    def _own_items(self) -> tuple[slice, int]:
        """The items that snapshots score in this process, and among how many processes they are divided."""
        return slice(0, self._model_config.num_items), 1

    @property
    def _is_joint(self) -> bool:
        """Whether the stage is a joint one."""
        return self.stage in JOINT_STAGES

    @property
    def _is_fused(self) -> bool:
        """Whether the fused scores are trained: in a joint stage, if that is the joint loss."""
        return self.config.joint_loss == "fused" and self._is_joint

    @property
    def _distils(self) -> bool:
        """Whether the modules learn from each other: in a joint stage, if that is on."""
        return self.config.use_knowledge_distillation and self.config.kd_weight > 0 and self._is_joint

    @property
    def _reads_users(self) -> bool:
        """Whether the model has user texts."""
        return self._model_config.num_users > 0

    def _learning_rates(self, step: int) -> dict[str, float]:
        """The learning rates at a step of the stage."""
        place = step if self._position is None else self._position()
        return learning_rates(self.config, self.stage, place, self.num_steps)

    def _curriculum(self, step: int) -> CurriculumWeights | None:
        """The curriculum's weights at a step of the stage; None if it is off."""
        if not self.config.use_curriculum_learning:
            return None
        return curriculum_weights(step, self.num_steps, warmup_steps=self.config.warmup_steps)

    def _observed(self, active: str, total: ArrayT, modules: Mapping[str, ArrayT]) -> dict[str, ArrayT]:
        """The losses of a step that the schedule observes: none where something is measured in their place."""
        if self._measuring is not None:
            return {}
        return {active: total, **{name: loss for name, loss in modules.items() if name in self.alternator.modules}}

    def _count_step(
        self, active: str, decision: Decision, report: StepReport[ArrayT], rates: Mapping[str, float]
    ) -> None:
        """Count a step and log it; its losses are read when they have arrived."""
        self.step += 1
        self.stage_step += 1
        step = LateStep(
            record=StepRecord.of_decision(self.step, self.stage, active, decision),
            total=self._late(report.total),
            losses={name: self._late(loss) for name, loss in report.modules.items()},
            learning_rates=rates,
            metrics={name: self._late(value) for name, value in report.metrics.items()},
        )
        self._log.add(step)


def _with_catalogue_loss(trainer: TrainerConfig, model: ModelConfig, *, has_counts: bool) -> TrainerConfig:
    """The settings with what ``catalogue_loss="auto"`` chooses, which is said of a large catalogue."""
    chosen = resolve_catalogue_loss(trainer, model, has_counts=has_counts)
    if trainer.catalogue_loss == AUTO and model.num_items > LARGE_CATALOGUE:
        reason = f"{model.num_items:,} items are more than {LARGE_CATALOGUE:,}"
        if chosen == "sampled":
            logger.info(
                "losses are sampled, %d + %d negatives of a step, for %s; catalogue_loss=full is exact and slower",
                *(trainer.num_negatives, trainer.num_in_batch, reason),
            )
        else:
            logger.warning(
                "a training step grows with the catalogue, and %s: catalogue_loss=sampled does not, but needs "
                "sasrec_loss='ce', another fusion than 'weighted', and item_counts",
                reason,
            )
    return replace(trainer, catalogue_loss=chosen)


AnyTrainer: TypeAlias = BaseTrainer[Any, Any, Any]
"""The trainer of one backend or the other."""
