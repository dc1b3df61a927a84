"""The functions of a model that are compiled, shared by all trainers of models of one shape."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

from flax import nnx
from jax import Array

from ur4rec.config import TrainerConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec_jax.layout import ONE_DEVICE, WHOLE, Layout
from ur4rec_jax.precision import compiled
from ur4rec_jax.retriever import Catalogue, PreferenceRetriever
from ur4rec_jax.sasrec import SASRec
from ur4rec_jax.slices import PlacedModel, rank_in_slices, top_in_slices
from ur4rec_jax.state import TrainState
from ur4rec_jax.step import PARTS, Step, write, write_texts
from ur4rec_jax.ur4rec import UR4Rec, laid_out

_STEP_SETTINGS = (
    "weight_decay",
    "clip_norm",
    "sasrec_loss",
    "num_negatives",
    "catalogue_loss",
    "label_smoothing",
    "fusion_fit",
    "gbce_t",
    "sasrec_loss_weight",
    "retriever_loss_weight",
    "use_curriculum_learning",
    "use_memory_bank",
    "memory_bank_size",
    "memory_bank_temperature",
    "kd_temperature",
    "kd_weight",
    "use_uncertainty_weighting",
    "ema_decay",
    "bf16",
)
"""What a training step is compiled for; the other settings are its arguments, or do not concern it."""


Merge: TypeAlias = Callable[[Any, Any], UR4Rec]
"""Makes the model of parameters and buffers."""


class Functions(NamedTuple):
    """Pure functions of a model's arrays. Each is compiled when it is first called."""

    steps: dict[bool, Step]
    """The training step, by whether the loss is fused."""
    compiled_steps: dict[bool, Callable[..., Any]]
    """The same, compiled once per turn."""
    write: Callable[..., TrainState]
    """What follows it where it gives entries for the memory bank. Compiled apart: in one program with the loss, which
    reads the bank, XLA would copy the bank before it writes."""
    write_texts: Callable[[Array, Any], Array]
    """The cache of a text encoder, consumed, with what a step has encoded; compiled apart for the same reason."""
    project: Callable[[Any, Any], Catalogue]
    """The retriever's catalogue from parameters and buffers."""
    epochs: dict[tuple[Any, ...], Any]
    """Whole epochs (`ur4rec_jax.epoch.Epoch`), by what each is compiled for."""
    scores: Callable[..., dict[str, Array]]
    """Scores by scorer from parameters, buffers, catalogue, histories and their users; compiled once per tuple of
    scorers."""
    rank: Callable[..., dict[str, tuple[Array, Array]]]
    """Ranks by scorer, and whether the scores are finite, from parameters, buffers, catalogue and a batch; in slices of
    the catalogue."""
    top: Callable[..., tuple[Array, Array, Array]]
    """The best items from parameters, buffers, catalogue, a batch and which items are candidates; in slices too."""
    read: Callable[..., tuple[Array, Array]]
    """What a module says of histories, and the table that it compares it with, from parameters, buffers, histories and
    users."""
    compare: Callable[..., Array]
    """Scores of a module from parameters, buffers, what `read` returned and the first item of a slice."""
    fuse: Callable[..., Array]
    """Fused scores from parameters, buffers, both modules' scores, the first item of a slice and what normalises
    them."""
    explain: Callable[..., Array]
    """By which texts of histories candidates are found, from parameters, buffers, catalogue, histories, candidates and
    users."""


def functions_of(
    graphdef: nnx.GraphDef[UR4Rec], config: TrainerConfig, parts: tuple[str, ...] = PARTS, layout: Layout = ONE_DEVICE
) -> Functions:
    """The functions of a model.

    Args:
        graphdef: The model without its arrays, from `flax.nnx.split`.
        config: The settings of the trainer.
        parts: The parts of the model that have parameters.
        layout: Where the model's arrays and batches are.
    """
    settings = TrainerConfig(**{name: getattr(config, name) for name in _STEP_SETTINGS})
    return _functions(graphdef, settings, parts, layout)


def split_model(model: UR4Rec) -> tuple[nnx.GraphDef[UR4Rec], dict[str, Any], dict[str, Any]]:
    """The model without its arrays, its parameters by part, and its buffers."""
    graphdef, params, *rest = nnx.split(model, nnx.Param, ...)
    (buffers,) = rest
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)


@lru_cache(maxsize=8)
def _functions(
    graphdef: nnx.GraphDef[UR4Rec], config: TrainerConfig, parts: tuple[str, ...], layout: Layout
) -> Functions:
    steps = {fused: Step(graphdef, config, fused, parts, layout) for fused in (False, True)}
    merge = partial(laid_out, graphdef, layout)
    return Functions(
        steps=steps,
        compiled_steps={
            fused: compiled(step.__call__, static_argnames=("turn", "distils", "groups"), donate_argnames="state")
            for fused, step in steps.items()
        },
        write=compiled(partial(write, layout=layout), donate_argnames="state"),
        write_texts=compiled(write_texts, donate_argnames="vectors_JT"),
        project=compiled(partial(_project, merge, layout)),
        epochs={},
        scores=compiled(partial(_scores, merge), static_argnames="scorers"),
        rank=compiled(partial(_rank, merge, layout), static_argnames=("scorers", "width")),
        top=compiled(partial(_top, merge, layout), static_argnames=("scorers", "k", "width")),
        read=compiled(partial(_read, merge), static_argnames=("module", "num_rows")),
        compare=compiled(partial(_compare, merge), static_argnames=("module", "width")),
        fuse=compiled(partial(_fuse, merge)),
        explain=compiled(partial(_explain, merge)),
    )


def _project(merge: Merge, layout: Layout, params: Any, buffers: Any) -> Catalogue:
    def of_part(params: Any, buffers: Any) -> tuple[Any, ...]:
        model = merge(params, buffers)
        return model.retriever.catalogue_in_blocks(texts_JT=model.item_texts())[:4]

    specs = layout.specs(params), layout.specs(buffers)
    lie = (layout.table, layout.table, layout.table, WHOLE)
    return Catalogue(*layout.over_catalogue(of_part, specs, lie)(params, buffers))


def _scores(
    merge: Merge,
    params: Any,
    buffers: Any,
    catalogue: Catalogue,
    items_BL: Array,
    users_B: Array | None,
    *,
    scorers: tuple[str, ...],
) -> dict[str, Array]:
    return merge(params, buffers).scores(items_BL, scorers, catalogue, users_B)


def _rank(
    merge: Merge,
    layout: Layout,
    params: Any,
    buffers: Any,
    catalogue: Catalogue,
    batch: EvaluationBatch,
    *,
    scorers: tuple[str, ...],
    width: int,
) -> dict[str, tuple[Array, Array]]:
    return rank_in_slices(PlacedModel(merge, layout, params, buffers, catalogue), batch, scorers, width)


def _top(
    merge: Merge,
    layout: Layout,
    params: Any,
    buffers: Any,
    catalogue: Catalogue,
    batch: EvaluationBatch,
    candidates_I: Array | None,
    *,
    scorers: tuple[str, ...],
    k: int,
    width: int,
) -> tuple[Array, Array, Array]:
    model = PlacedModel(merge, layout, params, buffers, catalogue)
    return top_in_slices(model, batch, candidates_I, scorers, k, width)


def _read(
    merge: Merge,
    params: Any,
    buffers: Any,
    items_BL: Array,
    users_B: Array | None,
    *,
    module: str,
    num_rows: int,
) -> tuple[Array, Array]:
    model = merge(params, buffers)
    catalogue = None if module == "sasrec" else model.catalogue(with_users=False)
    encoded = model.encode(items_BL, (module,), catalogue, users_B)
    outputs_Bd = encoded.hidden_Nd if catalogue is None else encoded.preferences_NKd
    assert outputs_Bd is not None
    table_Id = model.sasrec.item_table() if catalogue is None else catalogue.keys_Id
    return model.layout.whole(outputs_Bd)[:num_rows], table_Id


def _compare(
    merge: Merge,
    params: Any,
    buffers: Any,
    outputs_Bd: Array,
    table_Id: Array,
    first: Array,
    *,
    module: str,
    width: int,
) -> Array:
    model = merge(params, buffers)
    part: SASRec | PreferenceRetriever = getattr(model, module)
    return model.layout.whole(part.score(outputs_Bd, model.layout.rows_from(table_Id, first, width)))


def _fuse(
    merge: Merge,
    params: Any,
    buffers: Any,
    sasrec_Bs: Array,
    retriever_Bs: Array,
    first: Array,
    totals: tuple[Array, ...] | None,
) -> Array:
    model = merge(params, buffers)

    def take(table_J: Array) -> Array:
        return model.layout.whole(model.layout.rows_from(table_J, first, sasrec_Bs.shape[1]))

    return model.fuse(sasrec_Bs, retriever_Bs, totals, take)


def _explain(
    merge: Merge,
    params: Any,
    buffers: Any,
    catalogue: Catalogue,
    items_BL: Array,
    candidates_BC: Array,
    users_B: Array | None,
) -> Array:
    return merge(params, buffers).explain(items_BL, candidates_BC, catalogue, users_B)
