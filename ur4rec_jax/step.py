"""The training step: a pure function of the parameters and the optimizer state, one compilation per turn.

Parameters are nested dictionaries, by module first. The freeze contract of `adapters.optax` holds for what is frozen.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]
from flax import nnx
from jax import Array

from adapters.optax import active_value_and_grad, alternating, apply_updates
from ur4rec.config import TrainerConfig
from ur4rec.schedule.stages import (
    MODULES,
    TEXT_ENCODER,
    TURNS,
    WITHOUT_CURRICULUM,
    CurriculumWeights,
    turns_of,
)
from ur4rec.training.arrays import StepReport
from ur4rec.training.components import UNCERTAINTY
from ur4rec_jax.averages import follow
from ur4rec_jax.layout import ONE_DEVICE, Layout
from ur4rec_jax.losses import StepInputs, StepLosses, fused_loss, separate_loss
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.rows import put_rows, take_rows, take_texts
from ur4rec_jax.state import TrainState
from ur4rec_jax.strategies import BankEntries, Context, Strategies, StrategyState
from ur4rec_jax.text_groups import Groups
from ur4rec_jax.ur4rec import UR4Rec, laid_out

FUSION = "fusion"
OUTSIDE = 2**31 - 1
"""The number of no item."""
PARTS = (*MODULES, TEXT_ENCODER, FUSION)


class EncodedTexts(NamedTuple):
    """The texts that a step has encoded, by the weights that it began with."""

    items_E: Array
    """The items; out of range where nothing is to be written."""
    vectors_ET: Array
    """Their vectors, detached."""


class Entries(NamedTuple):
    """What a step gives to be written after it, in place."""

    bank: BankEntries | None
    """Into the memory bank, by `write`."""
    texts: EncodedTexts | None
    """Into the cache of the text encoder, by `write_texts`."""


Given: TypeAlias = tuple[BankEntries | None, Array | None]
"""What the forward pass gives: for the memory bank, and the texts that it has encoded, (E, T)."""


class Step:
    """The training step of a model under one joint or separate loss.

    Args:
        graphdef: The model without its arrays, from `flax.nnx.split`.
        config: The settings.
        fused: Whether the fused scores are trained; else each module by its own loss.
        parts: The parts of the model that have parameters: not every fusion does.
        layout: Where the model's arrays and batches are.

    Attributes:
        fused: As given.
        layout: As given.
        sampled: Whether losses are sampled, so that a step needs the items of its inputs' sample alone.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[UR4Rec],
        config: TrainerConfig,
        fused: bool,
        parts: tuple[str, ...] = PARTS,
        layout: Layout = ONE_DEVICE,
    ) -> None:
        self._graphdef = graphdef
        self._config = config
        self.fused = fused
        self.sampled = config.catalogue_loss == "sampled"
        self.layout = layout
        self._strategies = Strategies(config)
        self._labels = {name: name for name in parts}
        always = (FUSION,) if FUSION in parts else ()
        self._turns = {
            turn: (*TURNS[turn], *always) if fused or _trains_both(turn) else TURNS[turn] for turn in turns_of(parts)
        }
        self._optimizer = alternating(
            {name: _adamw(name, 0.0 if name == FUSION else config.weight_decay) for name in parts},
            self._labels,
            turns=self._turns,
        )

    def init(self, params: dict[str, Any], dim: int) -> TrainState:
        """The state at the beginning of training.

        Args:
            params: The parameters of each part of the model.
            dim: Width of the preference space.
        """
        averages = jax.tree.map(jnp.copy, params) if self._config.ema_decay else None
        return TrainState(params, self._optimizer.init(params), self._strategies.init(dim), averages)

    def __call__(
        self,
        state: TrainState,
        buffers: Any,
        catalogue: Catalogue | None,
        inputs: StepInputs,
        key: Array,
        step: Array,
        learning_rates: dict[str, Array],
        curriculum: CurriculumWeights | None = None,
        *,
        turn: str,
        distils: bool = False,
        groups: Groups = (),
    ) -> tuple[TrainState, StepReport[Array], Entries]:
        """One step, without effect if the loss is not finite; what is to be written after it, is given back.

        Args:
            state: Before the step.
            buffers: The rest of the model.
            catalogue: The retriever's, if it and the text encoder are frozen and the loss needs it.
            inputs: The batch.
            key: The run's; random numbers are a function of it and the step.
            step: The training step of the run.
            learning_rates: Of each part.
            curriculum: The curriculum's weights at this step; None if it is off.
            turn: What trains; static.
            distils: Whether the modules learn from each other; static.
            groups: Of the texts that it encodes, if it trains the text encoder; static.
        """
        whole, sample, active = state, inputs.sample, self._turns[turn]
        if sample is not None:
            state = take_rows(whole, sample.items_J, active, self.layout)
            buffers = take_texts(buffers, sample.items_J, self.layout)
        loss = partial(self._loss(turn), distils, groups, state.strategies, curriculum)
        gradients = active_value_and_grad(loss, self._labels, tuple(self._labels), turns=self._turns, has_aux=True)
        (_, (losses, (bank_entries, encoded_ET))), grads = gradients(
            state.params, buffers, catalogue, inputs, jax.random.fold_in(key, step), active=turn
        )
        good = jnp.isfinite(losses.total)
        kept = _keep_unless(good, self._move(state, grads, turn, learning_rates), state, active)
        if sample is not None:
            kept = put_rows(whole, kept, sample.items_J, active, self.layout)
        if self._config.ema_decay:
            kept = follow(kept, active, good, self._config.ema_decay)
        bank, log_variances_C = state.strategies
        log_variances_C, metrics = self._strategies.finish(log_variances_C, losses, learning_rates.get(UNCERTAINTY))
        if bank_entries is not None:
            bank_entries = bank_entries._replace(is_kept_B=bank_entries.is_kept_B & good)
        entries = Entries(bank_entries, _texts(inputs, encoded_ET, good))
        report = StepReport(losses.total, losses.modules, metrics)
        kept = kept._replace(strategies=StrategyState(bank, log_variances_C))
        found: tuple[TrainState, StepReport[Array], Entries] = self.layout.keep((kept, report, entries))
        return found

    def _move(self, state: TrainState, grads: Any, turn: str, learning_rates: dict[str, Array]) -> TrainState:
        """What is active, clipped and updated."""
        active = self._turns[turn]
        scale = _clip_scale({name: grads[name] for name in active}, self._config.clip_norm)
        updates, optimizers = self._optimizer.update(
            jax.tree.map(lambda grad: grad * scale, grads),
            state.optimizers,
            state.params,
            active=turn,
            learning_rates=learning_rates,
        )
        moved = {name: apply_updates(state.params[name], updates[name]) for name in active}
        return state._replace(params={**state.params, **moved}, optimizers=optimizers)

    def _loss(self, turn: str) -> Callable[..., tuple[Array, tuple[StepLosses, Given]]]:
        modules, config = TURNS[turn], self._config

        def loss(
            distils: bool,
            groups: Groups,
            strategies: StrategyState,
            curriculum: CurriculumWeights | None,
            params: Any,
            buffers: Any,
            catalogue: Catalogue | None,
            inputs: StepInputs,
            key: Array,
        ) -> tuple[Array, tuple[StepLosses, Given]]:
            if config.bf16:
                params, buffers, catalogue = _to_bf16((params, buffers, catalogue))
            layout = self.layout.of_rows if self.sampled else self.layout
            model = laid_out(self._graphdef, layout, params, buffers)
            rngs, encoded_ET = random_numbers(key), None
            if TEXT_ENCODER in modules:
                texts_JT, encoded_ET = encode_step(model, inputs, groups)
                catalogue = model.catalogue(with_users=False, texts_JT=texts_JT)
            elif catalogue is None and (self.fused or "retriever" in modules or (distils and self.sampled)):
                catalogue = model.catalogue(with_users=False)
            if self.fused:
                assert catalogue is not None
                smoothing = config.label_smoothing
                losses = fused_loss(
                    model, inputs, modules, catalogue, rngs, keeps_scores=distils, label_smoothing=smoothing
                )
            else:
                losses = separate_loss(model, config, inputs, modules, catalogue, rngs, keeps_scores=distils)
            context = Context(model, inputs, modules, catalogue, distils, curriculum or WITHOUT_CURRICULUM)
            losses, entries = self._strategies.apply(strategies, losses, context)
            return losses.total, (losses, (entries, encoded_ET))

        return loss


def encode_step(model: UR4Rec, inputs: StepInputs, groups: Groups) -> tuple[Array, Array]:
    """The texts of a step that trains the text encoder, (J, T), and those of them that it encodes, (E, T).

    Those of its own items are encoded, all others are in the cache.
    """
    assert inputs.texts_E is not None
    encoder, items_E, encoded, first = model.text_encoder, inputs.texts_E, [], 0
    for number, num_tokens in groups:
        encoded.append(encoder.encode(encoder.tokens[...][items_E[first : first + number], :num_tokens]))
        first += number
    encoded_ET, vectors_JT = jnp.concatenate(encoded), jax.lax.stop_gradient(encoder.vectors[...])
    places_E = items_E if inputs.sample is None else jnp.searchsorted(inputs.sample.items_J, items_E)
    outside_E = len(vectors_JT) + jnp.arange(len(items_E))  # no place occurs twice: so the gradient is a look-up
    places_E = jnp.where(items_E == model.config.num_items, outside_E, places_E)
    return vectors_JT.at[places_E].set(encoded_ET, mode="drop", unique_indices=True), encoded_ET


def write_texts(vectors_JT: Array, texts: EncodedTexts) -> Array:
    """The cache with what a step has encoded."""
    return vectors_JT.at[texts.items_E].set(texts.vectors_ET, mode="drop")


def write(state: TrainState, entries: BankEntries | None, layout: Layout = ONE_DEVICE) -> TrainState:
    """The state with the entries of a step in its memory bank; None is a step that writes nothing."""
    bank = state.strategies.bank
    if entries is None or bank is None:
        return state
    return state._replace(strategies=state.strategies._replace(bank=layout.keep(bank.write(*entries))))


def random_numbers(key: Array) -> nnx.Rngs:
    """Streams of random numbers of a step: the same whenever it is run."""
    dropout, negatives = jax.random.split(key)
    return nnx.Rngs(dropout=dropout, negatives=negatives)


def _texts(inputs: StepInputs, encoded_ET: Array | None, good: Array) -> EncodedTexts | None:
    """What is to be written into the cache: nothing after a loss that is not finite."""
    if encoded_ET is None or inputs.texts_E is None:
        return None
    return EncodedTexts(jnp.where(good, inputs.texts_E, OUTSIDE), encoded_ET.astype(jnp.float32))


def _trains_both(turn: str) -> bool:
    """Whether a turn trains SASRec and what is compared with it, the retriever or its texts."""
    return "sasrec" in TURNS[turn] and len(TURNS[turn]) > 1


def _adamw(part: str, weight_decay: float) -> optax.GradientTransformationExtraArgs:
    """AdamW with PyTorch's constants; its learning rate is the part's of the argument ``learning_rates``."""

    def scale(
        updates: Any, state: optax.EmptyState, params: Any = None, *, learning_rates: dict[str, Array], **_: Any
    ) -> tuple[Any, optax.EmptyState]:
        return jax.tree.map(lambda update: -learning_rates[part] * update, updates), state

    by_learning_rate = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scale)
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay), by_learning_rate)


def _clip_scale(grads: Any, clip_norm: float) -> Array:
    """The factor of the gradients with which their norm is at most ``clip_norm``, as PyTorch does it."""
    norm = jnp.sqrt(sum(jnp.square(grad).sum() for grad in jax.tree.leaves(grads)))
    return jnp.minimum(clip_norm / (norm + 1e-6), 1.0)


def _keep_unless(good: Array, new: TrainState, old: TrainState, active: tuple[str, ...]) -> TrainState:
    """The new state where ``good`` holds, else the old one. What is frozen is not looked at."""

    def choose(new_parts: dict[str, Any], old_parts: dict[str, Any]) -> dict[str, Any]:
        chosen = {
            name: jax.tree.map(lambda a, b: jnp.where(good, a, b), new_parts[name], old_parts[name]) for name in active
        }
        return {**old_parts, **chosen}

    optimizers = new.optimizers._replace(inner_states=choose(new.optimizers.inner_states, old.optimizers.inner_states))
    return new._replace(params=choose(new.params, old.params), optimizers=optimizers)


def _to_bf16(tree: Any) -> Any:
    def cast(array: Array) -> Array:
        return array.astype(jnp.bfloat16) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(cast, tree)
