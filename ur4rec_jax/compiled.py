"""The functions of a model that are compiled, shared by all trainers of models of one shape."""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import Array

from ur4rec.config import TrainerConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec_jax.retriever import Catalogue, PreferenceRetriever
from ur4rec_jax.sasrec import SASRec
from ur4rec_jax.slices import rank_in_slices, top_in_slices
from ur4rec_jax.state import TrainState
from ur4rec_jax.step import PARTS, Step, write
from ur4rec_jax.ur4rec import UR4Rec

_STEP_SETTINGS = (
    "weight_decay",
    "clip_norm",
    "sasrec_loss",
    "num_negatives",
    "catalogue_loss",
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
    "bf16",
)
"""What a training step is compiled for; the other settings are its arguments, or do not concern it."""


class Functions(NamedTuple):
    """Pure functions of a model's arrays. Each is compiled when it is first called."""

    steps: dict[bool, Step]
    """The training step, by whether the loss is fused."""
    compiled_steps: dict[bool, Callable[..., Any]]
    """The same, compiled once per turn."""
    write: Callable[..., TrainState]
    """What follows it where it gives entries for the memory bank. Compiled apart: in one program with the loss, which
    reads the bank, XLA would copy the bank before it writes."""
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
    """Fused scores from parameters, buffers, both modules' scores and what normalises them."""
    explain: Callable[..., Array]
    """By which texts of histories candidates are found, from parameters, buffers, catalogue, histories, candidates and
    users."""


def functions_of(graphdef: nnx.GraphDef[UR4Rec], config: TrainerConfig, parts: tuple[str, ...] = PARTS) -> Functions:
    """The functions of a model.

    Args:
        graphdef: The model without its arrays, from `flax.nnx.split`.
        config: The settings of the trainer.
        parts: The parts of the model that have parameters.
    """
    return _functions(graphdef, TrainerConfig(**{name: getattr(config, name) for name in _STEP_SETTINGS}), parts)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit`, with matrix products in full float32 on every device, as in PyTorch: TF32 would make them differ."""

    @wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return jax.jit(traced, **options)


def split_model(model: UR4Rec) -> tuple[nnx.GraphDef[UR4Rec], dict[str, Any], dict[str, Any]]:
    """The model without its arrays, its parameters by part, and its buffers."""
    graphdef, params, *rest = nnx.split(model, nnx.Param, ...)
    (buffers,) = rest
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)


@lru_cache(maxsize=8)
def _functions(graphdef: nnx.GraphDef[UR4Rec], config: TrainerConfig, parts: tuple[str, ...]) -> Functions:
    steps = {fused: Step(graphdef, config, fused, parts) for fused in (False, True)}
    return Functions(
        steps=steps,
        compiled_steps={
            fused: compiled(step.__call__, static_argnames=("turn", "distils"), donate_argnames="state")
            for fused, step in steps.items()
        },
        write=compiled(write, donate_argnames="state"),
        project=compiled(partial(_project, graphdef)),
        epochs={},
        scores=compiled(partial(_scores, graphdef), static_argnames="scorers"),
        rank=compiled(partial(_rank, graphdef), static_argnames=("scorers", "width")),
        top=compiled(partial(_top, graphdef), static_argnames=("scorers", "k", "width")),
        read=compiled(partial(_read, graphdef), static_argnames="module"),
        compare=compiled(partial(_compare, graphdef), static_argnames=("module", "width")),
        fuse=compiled(partial(_fuse, graphdef)),
        explain=compiled(partial(_explain, graphdef)),
    )


def _project(graphdef: nnx.GraphDef[UR4Rec], params: Any, buffers: Any) -> Catalogue:
    return nnx.merge(graphdef, params, buffers).retriever.catalogue()


def _scores(
    graphdef: nnx.GraphDef[UR4Rec],
    params: Any,
    buffers: Any,
    catalogue: Catalogue,
    items_BL: Array,
    users_B: Array | None,
    *,
    scorers: tuple[str, ...],
) -> dict[str, Array]:
    return nnx.merge(graphdef, params, buffers).scores(items_BL, scorers, catalogue, users_B)


def _rank(
    graphdef: nnx.GraphDef[UR4Rec],
    params: Any,
    buffers: Any,
    catalogue: Catalogue,
    batch: EvaluationBatch,
    *,
    scorers: tuple[str, ...],
    width: int,
) -> dict[str, tuple[Array, Array]]:
    return rank_in_slices(nnx.merge(graphdef, params, buffers), catalogue, batch, scorers, width)


def _top(
    graphdef: nnx.GraphDef[UR4Rec],
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
    model = nnx.merge(graphdef, params, buffers)
    return top_in_slices(model, catalogue, batch, candidates_I, scorers, k, width)


def _read(
    graphdef: nnx.GraphDef[UR4Rec], params: Any, buffers: Any, items_BL: Array, users_B: Array | None, *, module: str
) -> tuple[Array, Array]:
    model = nnx.merge(graphdef, params, buffers)
    catalogue = None if module == "sasrec" else model.retriever.catalogue(with_users=False)
    outputs = model.encode(items_BL, (module,), catalogue, users_B)
    if catalogue is None:
        assert outputs.hidden_Nd is not None
        return outputs.hidden_Nd, model.sasrec.item_table()
    assert outputs.preferences_NKd is not None
    return outputs.preferences_NKd, catalogue.keys_Id


def _compare(
    graphdef: nnx.GraphDef[UR4Rec],
    params: Any,
    buffers: Any,
    outputs_Bd: Array,
    table_Id: Array,
    first: Array,
    *,
    module: str,
    width: int,
) -> Array:
    model = nnx.merge(graphdef, params, buffers)
    part: SASRec | PreferenceRetriever = getattr(model, module)
    return part.score(outputs_Bd, jax.lax.dynamic_slice_in_dim(table_Id, first, width))


def _fuse(
    graphdef: nnx.GraphDef[UR4Rec],
    params: Any,
    buffers: Any,
    sasrec_Bs: Array,
    retriever_Bs: Array,
    totals: tuple[Array, ...] | None,
) -> Array:
    return nnx.merge(graphdef, params, buffers).fuse(sasrec_Bs, retriever_Bs, totals)


def _explain(
    graphdef: nnx.GraphDef[UR4Rec],
    params: Any,
    buffers: Any,
    catalogue: Catalogue,
    items_BL: Array,
    candidates_BC: Array,
    users_B: Array | None,
) -> Array:
    return nnx.merge(graphdef, params, buffers).explain(items_BL, candidates_BC, catalogue, users_B)
