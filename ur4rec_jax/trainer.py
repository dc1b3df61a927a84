"""JointTrainer: four stages, two modules, and a schedule that says which of them trains.

Shapes: B rows, L positions, I items.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike, NDArray

from adapters.jax import DeviceAlternator, HostAlternator
from alternator import Alternator, Decision, Payoff, Rule
from ur4rec.config import SCORERS, TrainerConfig, check_joint_loss
from ur4rec.data.batches import Batch, EvaluationBatch
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.metrics import summarise
from ur4rec.schedule.alternators import ModuleAlternator, build_alternator
from ur4rec.schedule.curriculum import CurriculumWeights, curriculum_weights
from ur4rec.schedule.learning_rate import learning_rates
from ur4rec.schedule.payoff_probe import build_probe
from ur4rec.schedule.stages import JOINT_STAGES, MODULES, TURNS, check_num_steps, find_stage
from ur4rec.training.late_steps import LateStep, LateSteps
from ur4rec.training.progress import count_steps
from ur4rec.training.records import StepRecord
from ur4rec_jax import checkpoint
from ur4rec_jax.compiled import functions_of
from ur4rec_jax.device import find_device, to_indices, to_inputs
from ur4rec_jax.epoch import Epoch, stack_inputs
from ur4rec_jax.ranking import rank_loader
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.step import PARTS, StepReport
from ur4rec_jax.ur4rec import UR4Rec

_LOGGER = logging.getLogger("alternator")


class JointTrainer:
    """Trains a UR4Rec model through the four stages.

    A step asks the schedule who trains, runs what the loss needs, and updates what is active; the freeze contract of
    `adapters.optax` holds for the rest. Dropout and sampled negatives are functions of (seed, step).

    Args:
        model: The model; its arrays are copied to the device.
        device: ``auto`` is an accelerator where there is one.
        rule: Any switching rule for joint_finetune; by default the original one with the two ``adaptive_*`` numbers.
        progress: Whether to show a bar per epoch; None is only on a terminal.
        probe: Held-out targets on which a `Payoff` rule measures what each module's training is worth.
        on_step: Called with the record of each step, in order, a step late or at the end of the epoch.
        on_device: Whether `train_epoch` runs all steps on the device, the schedule included, without the host. The
            decisions are the same until a number that a rule compares lies within float32 rounding of its limit.
        **settings: The fields of `TrainerConfig`.

    Attributes:
        adaptive_alternating: The schedule of joint_finetune; None with ``use_adaptive_alternating=False``.
        step: Training steps so far, over all stages.
        stage: The stage.
        stage_step: Training steps so far in this stage.
        num_steps: The length of the stage; None if that was not given.

    Raises:
        ConfigurationError: A setting is out of range, or two do not go together.

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

    def __init__(
        self,
        model: UR4Rec,
        *,
        device: str | jax.Device = "auto",
        rule: Rule | None = None,
        progress: bool | None = None,
        probe: EvaluationBatch | None = None,
        on_step: Callable[[StepRecord], object] | None = None,
        on_device: bool = False,
        **settings: Any,
    ) -> None:
        self.config = TrainerConfig(**settings)
        check_joint_loss(self.config.joint_loss, model.config.fusion)
        self.device = find_device(device)
        self.step = 0
        self._loss_at_hand = self.device.platform == "cpu"
        self.adaptive_alternating: ModuleAlternator | None = None
        self._rule = rule
        self._probe = probe
        self._progress = progress
        self._log = LateSteps(on_step, self.config.max_nonfinite_losses)
        self._model_config = model.config
        self._graphdef, params, buffers = nnx.split(model, nnx.Param, ...)
        self._buffers = self._place(nnx.to_pure_dict(buffers))
        parts = nnx.to_pure_dict(params)
        self._functions = functions_of(self._graphdef, self.config, tuple(name for name in PARTS if name in parts))
        self._state = self._place(self._functions.steps[True].init(parts, model.config.retriever_output_dim))
        self._key = jax.device_put(jax.random.key(self.config.seed), self.device)
        self._on_device = on_device
        self._usual_targets: int | None = None
        self._kept_catalogue: Catalogue | None = None
        self.set_training_stage("joint_finetune")

    @property
    def model(self) -> UR4Rec:
        """The model with a copy of the weights as they are now."""
        return nnx.merge(self._graphdef, self._place(self._state.params), self._buffers)

    @property
    def alternator(self) -> Alternator:
        """Whatever schedule runs now, parity included."""
        return self._alternating.alternator

    @property
    def _is_fused(self) -> bool:
        """Whether the fused scores are trained: in a joint stage, if that is the joint loss."""
        return self.config.joint_loss == "fused" and self.stage in JOINT_STAGES

    @property
    def _distils(self) -> bool:
        """Whether the modules learn from each other: in a joint stage, if that is on."""
        config = self.config
        return config.use_knowledge_distillation and config.kd_weight > 0 and self.stage in JOINT_STAGES

    @property
    def num_probe_forwards(self) -> int:
        """How often a module has scored the held-out targets of a `Payoff` rule in this stage."""
        return 0 if self._payoffs is None else self._payoffs.num_forwards

    @property
    def _reads_users(self) -> bool:
        """Whether the model has user texts."""
        return self._model_config.num_users > 0

    def set_training_stage(
        self, stage: str, num_steps: int | None = None, *, position: Callable[[], float] | None = None
    ) -> None:
        """Enter a stage. Optimizer state lives on; the schedule and the learning rates start anew.

        Args:
            stage: ``pretrain_sasrec``, ``pretrain_retriever``, ``joint_finetune`` or ``end_to_end``.
            num_steps: Length of the stage, over which the learning rates fall to 0; None keeps them constant.
            position: Says at each step how far the stage has come, in steps, for a stage whose end is a budget of
                something else; by default the steps trained in it. Only the learning rates follow it.

        Raises:
            ConfigurationError: A position is given to a trainer that runs ``on_device``, without the host.
            UnknownNameError: There is no such stage; the message lists the four.
        """
        found = find_stage(stage)
        check_num_steps(num_steps)
        if position is not None and self._on_device:
            raise ConfigurationError("position must be left out with on_device=True: no step asks the host there")
        self._log.flush()
        self.stage, self.num_steps, self.stage_step = found.name, num_steps, 0
        self._position = position
        alternator = build_alternator(found, self.config, self._rule)
        if self._on_device and isinstance(alternator.rule, Payoff):
            raise ConfigurationError("a Payoff rule needs the host, which measures payoffs; leave out on_device=True")
        self._payoffs = build_probe(alternator, self._probe, self._model_config.fusion, self.score, self._fuse)
        if found.turn is None:
            self.adaptive_alternating = alternator if self.config.use_adaptive_alternating else None
        self._alternating = HostAlternator(alternator, delay=self.config.loss_delay)

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

        An epoch that was left or saved in its middle goes on there with ``start``; its metrics are then those of an
        epoch that was never interrupted.

        Args:
            train_loader: Training batches; its ``set_epoch`` is called if it has one.
            epoch: The number of the epoch.
            start: Batches to leave out at its beginning, on which the run has trained already.
            max_steps: Train on at most so many batches.
            after_step: Called after each step, where the trainer may be saved; True ends the call there.
                With ``on_device`` the host sees no single step and it is not called.

        Returns:
            ``total_loss``, ``sasrec_loss``, ``retriever_loss`` and those of the other components that were computed
            (means over the steps in which they were; see `ur4rec.training.components`),
            ``steps`` in all and per turn, ``switches`` and ``nonfinite_steps`` of this epoch, ``adaptive_switch_count``
            of the schedule so far, and the last learning rates.

        Raises:
            NonFiniteError: Too many losses in a row were not finite.
        """
        if hasattr(train_loader, "set_epoch"):
            train_loader.set_epoch(epoch)
        self._usual_targets = getattr(train_loader, "usual_targets", None)
        stop = None if max_steps is None else start + max_steps
        try:
            with self._log.epoch(epoch, start, count_steps(train_loader, start, stop), self._progress) as totals:
                batches = islice(train_loader, start, stop)
                if self._on_device:
                    self._train_on_device(list(batches))
                    batches = iter(())
                for batch in batches:
                    self.train_step(batch)
                    if after_step is not None and after_step():
                        break
        finally:
            self._usual_targets = None
        rates = self._learning_rates(max(self.stage_step - 1, 0))
        return {
            **totals.metrics(),
            "adaptive_switch_count": self.alternator.stats().switch_count,
            **{f"{name}_lr": rates[name] for name in MODULES},
        }

    def train_step(self, batch: Batch) -> Decision:
        """Train on one batch what the schedule says.

        Raises:
            NonFiniteError: Too many losses in a row were not finite.
        """
        if self._payoffs is not None:
            self._payoffs.before_step()
        active, rates = self.alternator.active, self._learning_rates(self.stage_step)
        losses = self._update(batch, active, rates)
        decision = self._observe(active, losses, at_hand=self._loss_at_hand)
        self._count_step(active, decision, losses, rates)
        return decision

    def evaluate(
        self, loader: Iterable[EvaluationBatch], k_list: Sequence[int] = (5, 10, 20), scorer: str = "fused"
    ) -> dict[str, float]:
        """Hit@k, NDCG@k and MRR of a ranking of the whole catalogue; see `rank`."""
        return summarise(self.rank(loader, scorer), k_list)

    def rank(self, loader: Iterable[EvaluationBatch], scorer: str = "fused") -> NDArray[np.int64]:
        """The rank of every target, in the loader's order.

        Args:
            loader: Evaluation batches.
            scorer: ``fused``, or one module alone: ``sasrec``, ``retriever``.

        Raises:
            NonFiniteError: A score is NaN or infinite.
        """
        return self.rank_all(loader, (scorer,))[scorer]

    def rank_all(
        self, loader: Iterable[EvaluationBatch], scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.int64]]:
        """The rank of every target by several scorers, as `rank` gives it; each module is run once."""
        wanted = tuple(scorers)
        ranks = rank_loader(self._scores(wanted), loader)
        return {scorer: ranks[scorer] for scorer in wanted}

    def score(
        self, items_BL: ArrayLike, scorer: str = "fused", users_B: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Scores of every item as the next one of right-padded histories, (B, I); of these users, if any are named."""
        return np.asarray(self._scores((scorer,))(to_indices(items_BL), users_B)[scorer])

    def flush(self) -> None:
        """Report the steps whose losses have not been read, waiting for the device.

        Raises:
            NonFiniteError: Too many losses in a row were not finite.
        """
        self._log.flush()

    def save_checkpoint(self, path: str | Path, epoch: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        """Write everything that the run needs to go on exactly, as a directory that is whole or absent.

        Args:
            path: The directory to make.
            epoch: The epoch that is finished, kept for `load_checkpoint` to return.
            metrics: Its metrics, kept likewise.
        """
        self._log.flush()
        state = {
            "backend": "jax",
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
            "schedule": {"version": 1, **self._alternating.state_dict(), "user_frozen": [], "inference": []},
            "metrics": dict(metrics or {}),
        }
        payoffs = {} if self._payoffs is None else self._payoffs.state_dict()
        checkpoint.save(path, self._state, self._buffers, payoffs, state)

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Go on exactly where a checkpoint was saved.

        Returns:
            ``epoch`` and ``metrics`` as they were given to `save_checkpoint`.

        Raises:
            CheckpointError: It is missing, damaged, or of another version or configuration.
            StateError: It was saved with another switching rule.
        """
        loaded = checkpoint.load(path, self._model_config, self.config)
        progress, schedule = loaded.state["progress"], loaded.state["schedule"]
        self._check_schedule(progress["stage"], schedule["alternator"])
        state, buffers = checkpoint.restore(loaded, self._state, self._buffers)
        self.set_training_stage(progress["stage"], progress["num_steps"])
        self._alternating.load_state_dict(schedule)
        self._state, self._buffers = self._place(state), self._place(buffers)
        self.step, self.stage_step = progress["step"], progress["stage_step"]
        self._log.load_state_dict(progress)
        if self._payoffs is not None:
            self._payoffs.load_state_dict(loaded.moments)
        self._kept_catalogue = None
        return {"epoch": progress["epoch"], "metrics": loaded.state["metrics"]}

    def _update(self, batch: Batch, turn: str, rates: Mapping[str, float]) -> StepReport:
        """The compiled step: in a joint stage of the joint loss, in a stage of one module of that module's own."""
        trains_retriever = "retriever" in TURNS[turn]
        self._state, losses, entries = self._functions.compiled_steps[self._is_fused](
            self._state,
            self._buffers,
            self._catalogue() if (self._is_fused or self._distils) and not trains_retriever else None,
            to_inputs(batch, self._model_config.num_items, self._usual_targets, with_users=self._reads_users),
            self._key,
            np.int32(self.step),
            {name: np.float32(rate) for name, rate in rates.items()},
            self._curriculum(self.stage_step),
            turn=turn,
            distils=self._distils,
        )
        if entries is not None:
            self._state = self._functions.write(self._state, entries)
        if trains_retriever:
            self._kept_catalogue = None
        return losses

    def _count_step(self, active: str, decision: Decision, losses: StepReport, rates: Mapping[str, float]) -> None:
        self.step += 1
        self.stage_step += 1
        record = StepRecord.of_decision(self.step, self.stage, active, decision)
        self._log.add(
            LateStep(
                record=record,
                total=partial(float, losses.total),
                losses={name: partial(float, loss) for name, loss in losses.modules.items()},
                learning_rates=rates,
                metrics={name: partial(float, value) for name, value in losses.metrics.items()},
            )
        )

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
        )
        epoch, saved = self._epoch(), self._alternating.state_dict()
        catalogue = self._catalogue() if epoch.keeps_catalogue else None
        self._state, self._kept_catalogue, steps, schedule = epoch.run(
            self._state, saved, catalogue, self._buffers, self._key, inputs_S
        )
        for step, step_rates in zip(steps, rates, strict=True):
            active = self.alternator.active if step.decision is None else step.decision.previous
            decision = step.decision or self._observe(active, step.losses, at_hand=True)
            self._count_step(active, decision, step.losses, step_rates)
            if step.decision is not None and decision.switched:
                _LOGGER.info(decision.explain())
        if schedule is not None:
            self._alternating.load_state_dict(schedule)

    def _observe(self, active: str, losses: StepReport, *, at_hand: bool) -> Decision:
        """Tell the schedule the losses of a step, which had no effect if the loss is not finite.

        Where it is at hand, as on the CPU, the step counts as skipped then. An accelerator must not wait for it: there
        the schedule, which cannot know yet, counts the step as trained.
        """
        updated = not at_hand or math.isfinite(float(losses.total))
        told = {} if self._payoffs else {active: losses.total, **losses.modules}
        return self._alternating.observe(told, updated=updated)

    def _epoch(self) -> Epoch:
        """The epoch of this stage, compiled when it is first run; trainers of one shape and schedule share it."""
        alternator, turn, delay = self.alternator, find_stage(self.stage).turn, self.config.loss_delay
        key = (self._is_fused, self._distils, alternator.fingerprint(), turn, delay)
        if key not in self._functions.epochs:
            machine = None if turn else DeviceAlternator(alternator.modules, alternator.rule, delay=delay)
            step, project = self._functions.steps[self._is_fused], self._functions.project
            self._functions.epochs[key] = Epoch(step, machine, turn, project, distils=self._distils)
        return self._functions.epochs[key]

    def _learning_rates(self, step: int) -> dict[str, float]:
        """The learning rates at a step of the stage."""
        return learning_rates(self.config, step if self._position is None else self._position(), self.num_steps)

    def _curriculum(self, step: int) -> CurriculumWeights | None:
        """The curriculum's weights at a step of the stage; None if it is off."""
        if not self.config.use_curriculum_learning:
            return None
        weights = curriculum_weights(step, self.num_steps, warmup_steps=self.config.warmup_steps)
        return CurriculumWeights(*map(np.float32, weights))

    def _catalogue(self) -> Catalogue:
        """What the retriever knows of every item: computed once until the retriever trains."""
        if self._kept_catalogue is None:
            self._kept_catalogue = self._functions.project(self._state.params, self._buffers)
        return self._kept_catalogue

    def _scores(self, scorers: tuple[str, ...]) -> Callable[[ArrayLike, ArrayLike | None], dict[str, Array]]:
        """The scorers as they are now."""
        scores = partial(self._functions.scores, self._state.params, self._buffers, self._catalogue(), scorers=scorers)
        return lambda items_BL, users_B: scores(items_BL, to_indices(users_B) if self._reads_users else None)

    def _place(self, tree: Any) -> Any:
        """A copy of arrays on the device: what training steps consume is nobody else's."""
        return jax.device_put(tree, self.device, may_alias=False)

    def _fuse(self, sasrec_BI: ArrayLike, retriever_BI: ArrayLike) -> NDArray[np.float32]:
        """Fused scores of scores on the host."""
        return np.asarray(self.model.fusion(jnp.asarray(sasrec_BI), jnp.asarray(retriever_BI)))

    def _check_schedule(self, stage: str, saved: Mapping[str, Any]) -> None:
        """Refuse the schedule of another rule before anything has changed."""
        build_alternator(find_stage(stage), self.config, self._rule).load_state_dict(saved)
