"""JointTrainer: four stages, two modules, and a schedule that says which of them trains.

Shapes: B rows, L positions, I items.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from adapters.torch import AlternatingOptimizer, LateScalar
from alternator import Alternator, Decision, Rule
from ur4rec.config import SCORERS, TrainerConfig, check_joint_loss
from ur4rec.data.batches import Batch, EvaluationBatch
from ur4rec.evaluation.metrics import summarise
from ur4rec.schedule.alternators import ModuleAlternator, build_alternator
from ur4rec.schedule.curriculum import WITHOUT_CURRICULUM, CurriculumWeights, curriculum_weights
from ur4rec.schedule.learning_rate import learning_rates
from ur4rec.schedule.payoff_probe import build_probe
from ur4rec.schedule.stages import JOINT_STAGES, MODULES, TURNS, check_num_steps, find_stage
from ur4rec.training.late_steps import LateStep, LateSteps
from ur4rec.training.progress import count_steps
from ur4rec.training.records import StepRecord
from ur4rec_torch import checkpoint
from ur4rec_torch.device import find_device, seeded, to_device, to_indices
from ur4rec_torch.losses import StepInputs, StepLosses, fused_loss, separate_loss
from ur4rec_torch.ranking import rank_loader
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.strategies import Context, Strategies
from ur4rec_torch.ur4rec import UR4Rec


class JointTrainer:
    """Trains a UR4Rec model through the four stages.

    A step asks the schedule who trains, runs what the loss needs, and updates what is active; the freeze contract of
    `adapters.torch` holds for the rest. Dropout and sampled negatives are functions of (seed, step).

    Args:
        model: The model; it is moved to the device.
        device: ``auto`` is a CUDA device where there is one.
        rule: Any switching rule for joint_finetune; by default the original one with the two ``adaptive_*`` numbers.
        progress: Whether to show a bar per epoch; None is only on a terminal.
        probe: Held-out targets on which a `Payoff` rule measures what each module's training is worth.
        on_step: Called with the record of each step, in order, a step late or at the end of the epoch.
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
        device: str | torch.device = "auto",
        rule: Rule | None = None,
        progress: bool | None = None,
        probe: EvaluationBatch | None = None,
        on_step: Callable[[StepRecord], object] | None = None,
        **settings: Any,
    ) -> None:
        self.config = TrainerConfig(**settings)
        check_joint_loss(self.config.joint_loss, model.config.fusion)
        self.device = find_device(device)
        self.model = model.to(self.device)
        self.step = 0
        self._loss_at_hand = self.device.type == "cpu"
        self.adaptive_alternating: ModuleAlternator | None = None
        self._rule = rule
        self._probe = probe
        self._progress = progress
        self._log = LateSteps(on_step, self.config.max_nonfinite_losses)
        self._optimizers = {name: _adamw(getattr(model, name), self.config.weight_decay) for name in MODULES}
        if any(True for _ in model.fusion.parameters()):
            self._optimizers["fusion"] = _adamw(model.fusion, 0.0)
        self._strategies = Strategies(self.config, model.config, self.device)
        self._retriever_steps = 0
        self._kept_catalogue: tuple[tuple[int, ...], Catalogue] | None = None
        self._alternating: AlternatingOptimizer | None = None
        self.set_training_stage("joint_finetune")

    @property
    def alternator(self) -> Alternator:
        """Whatever schedule runs now, parity included."""
        return self._alternating.alternator

    @property
    def num_probe_forwards(self) -> int:
        """How often a module has scored the held-out targets of a `Payoff` rule in this stage."""
        return 0 if self._payoffs is None else self._payoffs.num_forwards

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
            UnknownNameError: There is no such stage; the message lists the four.
        """
        found = find_stage(stage)
        check_num_steps(num_steps)
        self._log.flush()
        self.stage, self.num_steps, self.stage_step = found.name, num_steps, 0
        self._position = position
        alternator = build_alternator(found, self.config, self._rule)
        self._payoffs = build_probe(alternator, self._probe, self.model.config.fusion, self.score, self._fuse)
        if found.turn is None:
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

        An epoch that was left or saved in its middle goes on there with ``start``; its metrics are then those of an
        epoch that was never interrupted.

        Args:
            train_loader: Training batches; its ``set_epoch`` is called if it has one.
            epoch: The number of the epoch.
            start: Batches to leave out at its beginning, on which the run has trained already.
            max_steps: Train on at most so many batches.
            after_step: Called after each step, where the trainer may be saved; True ends the call there.

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
        stop = None if max_steps is None else start + max_steps
        with self._log.epoch(epoch, start, count_steps(train_loader, start, stop), self._progress) as totals:
            for batch in islice(train_loader, start, stop):
                self.train_step(batch)
                if after_step is not None and after_step():
                    break
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
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
        self._alternating.train()
        config = self.model.config
        inputs = to_device(batch, config.num_items, self.device, with_users=config.num_users > 0)
        losses = self._losses(inputs, TURNS[active])
        decision = self._update(losses, {} if self._payoffs else {active: losses.total, **losses.modules})
        metrics = self._strategies.finish(losses, rates["uncertainty"])
        self.step += 1
        self.stage_step += 1
        self._retriever_steps += "retriever" in TURNS[active]
        record = StepRecord.of_decision(self.step, self.stage, active, decision)
        self._log.add(
            LateStep(
                record=record,
                total=LateScalar(losses.total).read,
                losses={name: LateScalar(loss).read for name, loss in losses.modules.items()},
                learning_rates=rates,
                metrics={name: LateScalar(value).read for name, value in metrics.items()},
            )
        )
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
        with self._inference() as catalogue:
            return rank_loader(
                lambda items_BL, users_B: self.model.scores(items_BL, wanted, catalogue, users_B), loader, self.device
            )

    def score(
        self, items_BL: ArrayLike, scorer: str = "fused", users_B: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Scores of every item as the next one of right-padded histories, (B, I); of these users, if any are named."""
        items, users = to_indices(items_BL, self.device), to_indices(users_B, self.device)
        with self._inference() as catalogue:
            return self.model.score(items, scorer, catalogue, users).cpu().numpy()

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
        self._alternating.train()
        state = {
            "backend": "torch",
            "model": asdict(self.model.config),
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
        checkpoint.save(
            path, self.model, self._optimizers, {**self._strategies.state_dict(), **self._payoff_state()}, state
        )

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Go on exactly where a checkpoint was saved.

        Returns:
            ``epoch`` and ``metrics`` as they were given to `save_checkpoint`.

        Raises:
            CheckpointError: It is missing, damaged, or of another version or configuration.
            StateError: It was saved with another switching rule.
        """
        loaded = checkpoint.load(path, self.model.config, self.config)
        progress, schedule = loaded.state["progress"], loaded.state["schedule"]
        self._check_schedule(progress["stage"], schedule["alternator"])
        self.set_training_stage(progress["stage"], progress["num_steps"])
        self._alternating.load_state_dict(schedule)
        checkpoint.restore(loaded, self.model, self._optimizers)
        self._strategies.load_state_dict(loaded.moments)
        if self._payoffs is not None:
            self._payoffs.load_state_dict(loaded.moments)
        self.step, self.stage_step = progress["step"], progress["stage_step"]
        self._log.load_state_dict(progress)
        self._kept_catalogue = None
        return {"epoch": progress["epoch"], "metrics": loaded.state["metrics"]}

    def _losses(self, inputs: StepInputs, modules: tuple[str, ...]) -> StepLosses:
        """The forward pass: in a joint stage the joint loss, in a stage of one module that module's own."""
        is_joint = self.stage in JOINT_STAGES
        fused = self.config.joint_loss == "fused" and is_joint
        needs_both = self._strategies.needs_both(is_joint)
        needs_retriever = fused or "retriever" in modules or needs_both
        catalogue = self._catalogue(trains="retriever" in modules) if needs_retriever else None
        with (
            seeded(self.config.seed, self.step, self.device),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16),
        ):
            if fused:
                losses = fused_loss(self.model, inputs, catalogue, keeps_scores=needs_both)
            else:
                losses = separate_loss(self.model, self.config, inputs, modules, catalogue, keeps_scores=needs_both)
            context = Context(self.model, inputs, modules, catalogue, is_joint, self._curriculum_weights())
            return self._strategies.apply(losses, context)

    def _update(self, losses: StepLosses, named: dict[str, Tensor]) -> Decision:
        """Backward and update; without effect if the loss is not finite.

        On the CPU the loss is at hand, and the step counts as skipped. An accelerator must not wait for it: there the
        optimizers look at it on the device, and the schedule, which cannot know yet, counts the step as trained.
        """
        if self._loss_at_hand:
            if not math.isfinite(losses.total.item()):
                return self._alternating.skip(named)
        else:
            for optimizer in self._optimizers.values():
                optimizer.found_inf = (~torch.isfinite(losses.total.detach())).float()
        return self._alternating.step(losses.total, named)

    def _learning_rates(self, step: int) -> dict[str, float]:
        """The learning rates at a step of the stage."""
        return learning_rates(self.config, step if self._position is None else self._position(), self.num_steps)

    def _curriculum_weights(self) -> CurriculumWeights:
        """The weights of the retriever's components at this step of the stage."""
        if not self.config.use_curriculum_learning:
            return WITHOUT_CURRICULUM
        return curriculum_weights(self.stage_step, self.num_steps, warmup_steps=self.config.warmup_steps)

    def _catalogue(self, *, trains: bool) -> Catalogue:
        """What the retriever knows of every item: computed anew while it trains, else once until it changes."""
        if trains:
            return self.model.retriever.catalogue(with_users=False)
        key = (self._retriever_steps, *(parameter._version for parameter in self.model.retriever.parameters()))
        if self._kept_catalogue is None or self._kept_catalogue[0] != key:
            with torch.no_grad():
                self._kept_catalogue = (key, self.model.retriever.catalogue())
        return self._kept_catalogue[1]

    @contextmanager
    def _inference(self) -> Iterator[Catalogue]:
        """All modules in inference mode, without gradients; afterwards as the schedule has it."""
        self._alternating.eval()
        try:
            with torch.no_grad():
                yield self._catalogue(trains=False)
        finally:
            self._alternating.train()

    def _build_adapter(self, alternator: Alternator) -> AlternatingOptimizer:
        if self._alternating is not None:
            self._alternating.release()
        return AlternatingOptimizer(
            alternator,
            {name: getattr(self.model, name) for name in MODULES},
            {name: self._optimizers[name] for name in MODULES},
            turns={name: TURNS[name] for name in alternator.modules},
            always=(self.model.fusion, self._optimizers["fusion"]) if "fusion" in self._optimizers else None,
            clip_norm=self.config.clip_norm,
            delay=self.config.loss_delay,
        )

    def _fuse(self, sasrec_BI: ArrayLike, retriever_BI: ArrayLike) -> NDArray[np.float32]:
        """Fused scores of scores on the host."""
        scores = (torch.as_tensor(scores_BI, device=self.device) for scores_BI in (sasrec_BI, retriever_BI))
        with torch.no_grad():
            return self.model.fusion(*scores).cpu().numpy()

    def _payoff_state(self) -> dict[str, Tensor]:
        arrays = {} if self._payoffs is None else self._payoffs.state_dict()
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _check_schedule(self, stage: str, saved: Mapping[str, Any]) -> None:
        """Refuse the schedule of another rule before anything has changed."""
        build_alternator(find_stage(stage), self.config, self._rule).load_state_dict(saved)


def _adamw(module: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), weight_decay=weight_decay, fused=True)
