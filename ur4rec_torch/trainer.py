"""JointTrainer: four stages, two modules or three, and a schedule that says which of them trains.

What both backends share is `ur4rec.training.trainer.BaseTrainer`; shapes: B rows, I items, J = I + 1 items with the
padding.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from adapters.torch import AlternatingOptimizer, LateScalar
from adapters.torch.snapshots import Snapshot
from alternator import Alternator, Decision
from ur4rec.data.batches import Batch
from ur4rec.schedule.stages import TEXT_ENCODER, TURNS, WITHOUT_CURRICULUM
from ur4rec.training.arrays import Sample, StepReport
from ur4rec.training.checkpoint import Arrays
from ur4rec.training.components import UNCERTAINTY
from ur4rec.training.item_texts import token_counts
from ur4rec.training.length_groups import LengthGroups
from ur4rec.training.mesh import Mesh, parse_mesh
from ur4rec.training.parts import cut_batch
from ur4rec.training.scorer import Scores
from ur4rec.training.step_log import Reader
from ur4rec.training.trainer import BaseTrainer
from ur4rec_torch.averages import Averages
from ur4rec_torch.checkpoint import export_arrays, refuse_renamed, restore_arrays
from ur4rec_torch.compiled import as_written, compile_modules, refuse_failures
from ur4rec_torch.device import find_device, find_texts, seeded, to_device, to_host
from ur4rec_torch.dropout import rows_of
from ur4rec_torch.layout import Layout, check_layout
from ur4rec_torch.lazy_adamw import LazyAdamW
from ur4rec_torch.losses import StepInputs, StepLosses, fused_loss, separate_loss, share
from ur4rec_torch.processes import device_mesh
from ur4rec_torch.replicas import Replicas, average_losses, average_rows, gather_rows, sum_of_bits
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.slices import ModelScores
from ur4rec_torch.snapshots import ModuleSnapshots
from ur4rec_torch.spread import Spread, groups_of
from ur4rec_torch.strategies import Context, Strategies
from ur4rec_torch.ur4rec import LogitFusion, UR4Rec

FUSION = "fusion"


class _KeptCatalogue(NamedTuple):
    """The catalogue of a frozen retriever, and what it depends on."""

    key: tuple[int, ...]
    texts_JT: Tensor
    catalogue: Catalogue


class _State(NamedTuple):
    """All that training changes."""

    snapshot: Snapshot
    kept: dict[str, Tensor]
    """What the strategies and the averages keep."""
    is_stale: bool
    """Whether the vectors of a text encoder are older than its weights; they are among the buffers of the snapshot."""


class JointTrainer(BaseTrainer[UR4Rec, torch.device, Tensor]):
    """Trains a UR4Rec model through the four stages; arguments and attributes are those of `BaseTrainer`.

    The model is moved to the device, and trained there in place; the freeze contract is that of `adapters.torch`. One
    that was compiled, whole or in part, or is compiled with ``compile=True``, is saved under its plain names.

    Example:
        >>> import numpy as np
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

    backend = "torch"
    _alternating: AlternatingOptimizer
    _to_host = staticmethod(to_host)

    def _lay_out(self, mesh: str | Mesh | None, *, shard: bool) -> Mesh:
        self._shards = shard
        return parse_mesh(mesh, self.processes.count)

    def _set_up(self, model: UR4Rec, device: str | torch.device) -> None:
        refuse_renamed(model)
        self.part = self.processes.rank // self.mesh.items, self.mesh.data
        self.device = find_device(device)
        check_layout(self.mesh, model.config, self.config, shard=self._shards)
        self._devices = None if self.processes.count == 1 else device_mesh(self.mesh, self.device)
        self._layout = Layout(model, self._devices)
        self.model = model.to(self.device)
        self._group = None if self._devices is None else self._devices["data"].get_group()
        self._replicas: Replicas | Spread | None = None
        if self._devices is not None and self._group is not None and self.mesh.data > 1:
            if self._shards:
                modules = {name: model.get_submodule(name) for name in self.modules}
                self._replicas = Spread(modules, self._devices["data"], self._layout.table)
            else:
                parts = {name: model.get_submodule(name) for name in (*self.modules, FUSION)}
                apart = () if self._sampler is None else (model.sasrec.item_embedding.weight,)
                self._replicas = Replicas(parts, self._group, apart)
        if self.config.compile:
            compile_modules(self.model)
        self._loss_at_hand = self.device.type == "cpu"
        model.sasrec.item_embedding.sparse = self._sampler is not None
        kind = torch.optim.AdamW if self._sampler is None else LazyAdamW
        self._optimizers = {
            name: kind(groups_of(getattr(model, name)), weight_decay=self.config.weight_decay, fused=True)
            for name in self.modules
        }
        if any(True for _ in model.fusion.parameters()):
            self._optimizers[FUSION] = torch.optim.AdamW(model.fusion.parameters(), weight_decay=0.0, fused=True)
        gather = None if self._group is None else partial(gather_rows, group=self._group)
        self._strategies = Strategies(self.config, model.config, self.device, gather)
        self._averages: Averages | None = None
        if self.config.ema_decay:
            trained = {name: getattr(model, name) for name in self._optimizers}
            self._averages = Averages(trained, self._optimizers, self.config.ema_decay)
        self._averaged_catalogue: Catalogue | None = None
        self._release: Callable[[], None] = lambda: None
        self._retriever_steps = 0
        self._kept_catalogue: _KeptCatalogue | None = None
        self._encoded: tuple[Tensor, Tensor] | None = None
        self._token_counts_I = self._count_tokens()

    def _build_adapter(self, alternator: Alternator) -> AlternatingOptimizer:
        self._release()
        adapter = AlternatingOptimizer(
            alternator,
            {name: getattr(self.model, name) for name in self.modules},
            {name: self._optimizers[name] for name in self.modules},
            turns={name: TURNS[name] for name in alternator.modules},
            always=(self.model.fusion, self._optimizers[FUSION]) if FUSION in self._optimizers else None,
            clip_norm=None if self._is_divided else self.config.clip_norm,
            delay=self.config.loss_delay,
            process_group=self._group,
        )
        self._release = adapter.release
        return adapter

    def _preparer(self, groups: LengthGroups | None = None) -> Callable[[Batch, int], StepInputs]:
        num_items, with_users = self._model_config.num_items, self._reads_users
        counts_I = self._token_counts_I if self.device.type == "cuda" else None  # else a step looks for its texts
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

        def prepare(batch: Batch, step: int) -> StepInputs:
            with nullcontext() if stream is None else torch.cuda.stream(stream):  # a thread has one of its own
                part = None if self._group is None else cut_batch(batch, num_items, *self.part)
                own = batch if part is None else part.batch
                return to_device(
                    own,
                    num_items,
                    self.device,
                    with_users=with_users,
                    sampler=self._sampler,
                    step=step,
                    part=part,
                    token_counts_I=counts_I,
                    groups=groups,
                )

        return prepare

    def _update(self, batch: Batch, active: str, rates: Mapping[str, float]) -> tuple[Decision, StepReport[Tensor]]:
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
        self._alternating.train()
        self._refresh_texts(TURNS[active])
        inputs = self._inputs(batch)
        with refuse_failures() if self.config.compile else nullcontext():
            losses = self._losses(inputs, TURNS[active])
        loss = losses.total
        if self._group is not None and dist.group.WORLD is not None:
            losses = average_losses(losses, dist.group.WORLD)  # not finite in one process is so in all
        decision = self._step(loss, losses, self._observed(active, losses.total, losses.modules), inputs.sample)
        self._average(TURNS[active], losses.total.detach())
        metrics = self._strategies.finish(losses, rates[UNCERTAINTY])
        self._retriever_steps += "retriever" in TURNS[active]
        return decision, StepReport(losses.total, losses.modules, metrics)

    def _average(self, modules: tuple[str, ...], loss: Tensor) -> None:
        """Let the averages follow what a step has updated: nothing, if its loss is not finite."""
        if self._averages is None or (self._loss_at_hand and not math.isfinite(loss.item())):
            return
        trains_fusion = FUSION in self._optimizers and (self._is_fused or len(modules) > 1)
        self._averages.follow(
            (*modules, FUSION) if trains_fusion else modules, None if self._loss_at_hand else torch.isfinite(loss)
        )
        if "retriever" in modules:
            self._averaged_catalogue = None

    def _refresh_texts(self, modules: tuple[str, ...]) -> None:
        """Encode all texts again if the encoder has trained and is frozen now: from here on its cache stays."""
        if self._has_texts and TEXT_ENCODER not in modules and self.model.text_encoder.is_stale:
            self.model.text_encoder.refresh()
            self._alternating.apply()  # what has been written stays

    def _late(self, value: Tensor) -> Reader:
        return LateScalar(value).read

    @contextmanager
    def _scoring(self, scorers: tuple[str, ...]) -> Iterator[Scores[Tensor]]:
        with self._averaged(), self._inference():
            yield ModelScores(self.model, self._scored_catalogue(), self.device, scorers)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model has the averages for weights within it, if there are any."""
        self._reshard()
        with nullcontext() if self._averages is None else self._averages.in_place():
            yield

    def _scored_catalogue(self) -> Catalogue:
        """The catalogue of the weights that `_averaged` gives."""
        if self._averages is None:
            return self._catalogue(trains=False)
        if self._averaged_catalogue is None:
            self._averaged_catalogue = self.model.catalogue()
        return self._averaged_catalogue

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """All modules in inference mode, as they are written, without gradients; afterwards as the schedule has it."""
        self._alternating.eval()
        try:
            with torch.no_grad(), as_written() if self.config.compile else nullcontext(), self._gathered():
                yield
        finally:
            self._alternating.train()

    def _snapshots(self) -> ModuleSnapshots:
        return ModuleSnapshots(self.model, self.device, self._inference, self._layout)

    def _popularity(self) -> NDArray[np.float32]:
        assert isinstance(self.model.fusion, LogitFusion)
        popularity_I = self.model.fusion.item_popularity[:-1]
        shard = self.model.shard
        return to_host(popularity_I if shard is None else shard.columns(popularity_I[None])[0])

    def _set_fusion(self, weights: NDArray[np.float32]) -> None:
        assert isinstance(self.model.fusion, LogitFusion)
        self.model.fusion.weights.data.copy_(torch.from_numpy(weights))
        if self._averages is not None:
            self._averages.restart(FUSION)

    def _take_state(self) -> _State:
        self._reshard()
        averages = {} if self._averages is None else self._averages.state_dict()
        own = {**self._strategies.state_dict(), **averages}
        kept = {name: each.detach().clone() for name, each in own.items()}
        return _State(self._alternating.snapshot(), kept, self._has_texts and self.model.text_encoder.is_stale)

    def _set_state(self, state: _State) -> None:
        self._reshard()
        self._alternating.rollback(state.snapshot)
        self._strategies.load_state_dict(state.kept)
        if self._averages is not None:
            self._averages.load_state_dict(state.kept)
        if self._has_texts:
            self.model.text_encoder.is_stale = state.is_stale
        self._kept_catalogue = self._averaged_catalogue = None

    def _own_items(self) -> tuple[slice, int]:
        shard = self._layout.shard
        return super()._own_items() if shard is None else (shard.items, shard.num_parts)

    def _digest(self) -> str:
        return " ".join(str(sum_of_bits(parameter)) for parameter in self._layout.copies)

    def _export_arrays(self) -> tuple[Arrays, Arrays]:
        self._alternating.train()  # a mode set since the last step is not what the user wants to keep
        if self.processes.rank > 0 and not self._is_divided:
            return {}, {}
        self._reshard()
        return export_arrays(self.model, self._optimizers, self._strategies, self._averages, self._layout)

    def _restore_arrays(self, weights: Arrays, moments: Arrays) -> None:
        self._reshard()
        parts = self.model, self._optimizers, self._strategies, self._averages, self._layout
        restore_arrays(weights, moments, *parts)
        self._kept_catalogue = self._averaged_catalogue = None
        self._token_counts_I = self._count_tokens()

    def _catalogue(self, *, trains: bool) -> Catalogue:
        """What the retriever knows of every item: computed again while it trains, else once until it changes."""
        if trains:
            return self.model.catalogue(with_users=False)
        texts_JT, parameters = self.model.item_texts(), self.model.retriever.parameters()
        key = (self._retriever_steps, texts_JT._version, *(parameter._version for parameter in parameters))
        kept = self._kept_catalogue
        if kept is None or kept.texts_JT is not texts_JT or kept.key != key:
            with torch.no_grad():
                kept = self._kept_catalogue = _KeptCatalogue(key, texts_JT, self.model.catalogue())
        return kept.catalogue

    def _step_catalogue(self, inputs: StepInputs, modules: tuple[str, ...]) -> Catalogue:
        """The catalogue of a step: of what it encodes, if it trains the text encoder."""
        if TEXT_ENCODER in modules:
            return self.model.catalogue(with_users=False, texts_JT=self._encode(inputs))
        if inputs.sample is not None:
            return self.model.catalogue(inputs.sample.items_J, with_users=False)
        return self._catalogue(trains="retriever" in modules)

    def _encode(self, inputs: StepInputs) -> Tensor:
        """The texts of a step that trains the text encoder, (J, T): those of its own items encoded, others cached."""
        encoder, sample = self.model.text_encoder, inputs.sample
        texts_E, chunks = inputs.texts_E, inputs.text_chunks
        if texts_E is None:
            assert self._token_counts_I is not None
            items = (inputs.items_BL, inputs.targets_N) if sample is None else (sample.items_J,)
            texts_E, chunks = find_texts(map(to_host, items), self._token_counts_I, self.device)
        with self._autocast():
            vectors_ET = encoder.encode_chunks(texts_E, chunks)
        self._encoded = texts_E, vectors_ET.detach()
        if sample is None:
            return encoder.vectors.index_copy(0, texts_E, vectors_ET)
        padding_JT = vectors_ET.new_zeros(len(sample.items_J), vectors_ET.shape[1])  # a sample has no other items
        return padding_JT.index_copy(0, torch.searchsorted(sample.items_J, texts_E), vectors_ET)

    def _losses(self, inputs: StepInputs, modules: tuple[str, ...]) -> StepLosses:
        """The forward pass, whose backward pass averages gradients over the processes that divide the batch."""
        if self._replicas is None:
            return self._forward(inputs, modules)
        found: list[StepLosses] = []

        def compute() -> Tensor:
            with rows_of(self.model, inputs.part):
                found.append(self._forward(inputs, modules))
            return found[0].total

        total = self._replicas.run((*modules, FUSION), compute)
        return found[0]._replace(total=total)

    def _forward(self, inputs: StepInputs, modules: tuple[str, ...]) -> StepLosses:
        """In a joint stage the joint loss, in a stage of one module that module's own."""
        needs_retriever = self._is_fused or self._distils or not {"retriever", TEXT_ENCODER}.isdisjoint(modules)
        self._encoded = None
        catalogue = self._step_catalogue(inputs, modules) if needs_retriever else None
        with seeded(self.config.seed, self.step, self.device), self._autocast():
            if self._is_fused:
                assert catalogue is not None
                smoothing = self.config.label_smoothing
                losses = fused_loss(
                    self.model, inputs, catalogue, keeps_scores=self._distils, label_smoothing=smoothing
                )
            else:
                losses = separate_loss(self.model, self.config, inputs, modules, catalogue, keeps_scores=self._distils)
            weights = self._curriculum(self.stage_step) or WITHOUT_CURRICULUM
            return self._strategies.apply(
                share(losses, inputs.part), Context(self.model, inputs, modules, catalogue, self._is_joint, weights)
            )

    def _step(
        self, loss: Tensor, losses: StepLosses, observed: dict[str, Tensor], sample: Sample[Tensor] | None
    ) -> Decision:
        """Backward and update; without effect if the loss is not finite, at which an accelerator looks by itself.

        Args:
            loss: What this process minimises: its part of the loss.
            losses: The losses of the whole batch.
            observed: Those of them that the schedule observes.
            sample: The items of the step, with sampled losses.
        """
        if self._loss_at_hand:
            if not math.isfinite(losses.total.item()):
                self._reshard()
                return self._alternating.skip(observed)
            self._write_texts(None)
        else:
            is_finite = torch.isfinite(losses.total.detach())
            for optimizer in self._optimizers.values():
                optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            self._write_texts(is_finite)
        rows_J = None if sample is None else sample.batch_items_J
        if self._group is None or (rows_J is None and not self._is_divided):
            return self._alternating.step(loss, observed)
        self._alternating.backward(loss)
        if rows_J is not None:
            average_rows(self.model.sasrec.item_embedding.weight, self._layout.rows(rows_J), self._group)
        if isinstance(self._replicas, Spread):
            apart = [] if rows_J is not None else self._layout.table
            self._layout.average([*apart, *self.model.fusion.parameters()])
        if self._is_divided:
            self._layout.clip(self._optimizers.values(), self.config.clip_norm)
        return self._alternating.step(None, observed)

    def _count_tokens(self) -> NDArray[np.int64] | None:
        """With a text encoder, the number of tokens of each item's text."""
        return token_counts(self.model.text_encoder.tokens[:-1].cpu()) if self._has_texts else None

    def _write_texts(self, is_finite: Tensor | None) -> None:
        """Put into the cache what the step has encoded, before the weights change and the encoder may be frozen."""
        if self._encoded is not None:
            self.model.text_encoder.write(*self._encoded, is_finite)
            self._encoded = None

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    @property
    def _has_texts(self) -> bool:
        """Whether the model has a text encoder."""
        return TEXT_ENCODER in self.modules

    @property
    def _is_divided(self) -> bool:
        """Whether there is a parameter of which this process has a part."""
        return isinstance(self._replicas, Spread) or self._layout.shard is not None

    def _reshard(self) -> None:
        """Put the parameters back that optimizers know."""
        if isinstance(self._replicas, Spread):
            self._replicas.reshard()

    def _gathered(self) -> AbstractContextManager[None]:
        """All parameters are at hand within it."""
        return self._replicas.gathered() if isinstance(self._replicas, Spread) else nullcontext()
