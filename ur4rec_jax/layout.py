"""How a model's arrays lie on the devices of a mesh: batches are cut along ``data``, tables of items along ``items``.

Most of a step is compiled as for one device, and the compiler divides it by how the inputs lie. What it would move
whole tables for is written out here, as functions of each device's part: looking up items, and reading positions.

Without a mesh every function does what one device does, and nothing else.

Shapes: B rows, J = I + 1 items with the padding, filled up to a multiple of the parts of the catalogue.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from ur4rec.config import ModelConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import ConfigurationError
from ur4rec.training import arrays
from ur4rec.training import mesh as meshes
from ur4rec.training.slices import MULTIPLE

StepInputs: TypeAlias = arrays.StepInputs[Array]

DATA, ITEMS = "data", "items"
"""The axes of a mesh."""
BATCH, BATCH_SECOND, TABLES, WHOLE = P(DATA), P(None, DATA), P(ITEMS), P()  # type: ignore[no-untyped-call]
"""How arrays lie with a row per history, with it as second axis, with a row per item, and on every device."""
TABLE = ("sasrec", "item_embedding", "embedding")
TEXTS = ("retriever", "item_text_vectors")
POPULARITY = ("fusion", "item_popularity")
ENCODED = ("text_encoder", "vectors")
"""The paths of what has a row per item, in parameters and buffers; moments have those of their parameters, and a part
alone has them without its name."""
MASKED = -1e9
"""The logit of a row that only fills up a table: finite, so that differences of two are no NaN."""

_constrain: Callable[..., Any] = jax.lax.with_sharding_constraint
_psum: Callable[..., Any] = jax.lax.psum
_pmax: Callable[..., Any] = jax.lax.pmax


def check_layout(mesh: meshes.Mesh, model: ModelConfig) -> None:
    """Refuse what a mesh cannot do.

    Raises:
        ConfigurationError: Naming the setting and the remedy.
    """
    if model.has_text_encoder:
        raise ConfigurationError(
            f"a layout with {mesh} needs a model without a text encoder, got text_encoder={model.text_encoder!r}; "
            "leave out the mesh, or take text_encoder='none'"
        )


@dataclass(frozen=True)
class Layout:
    """Where arrays are, and how each device's parts of them are put together."""

    mesh: jax.sharding.Mesh | None = None
    """The devices; None is one device, on which everything is whole."""
    num_items: int | None = None
    """The number of items, of which the rows of padding follow, where tables are cut; None where they are whole."""

    @classmethod
    def over(cls, devices: list[jax.Device], mesh: meshes.Mesh, num_items: int) -> "Layout":
        """The layout of a mesh.

        Args:
            devices: The devices of all processes.
            mesh: The parts of each axis.
            num_items: Size of the catalogue.

        Raises:
            ConfigurationError: Random numbers would depend on the mesh.
        """
        if not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
            raise ConfigurationError(
                "a mesh needs random numbers that do not depend on it, got jax_threefry_partitionable=False; "
                "leave that option as it is by default"
            )
        grid = np.array(devices).reshape(mesh.data, mesh.items)
        return cls(jax.sharding.Mesh(grid, (DATA, ITEMS)), num_items)

    @property
    def of_rows(self) -> "Layout":
        """The layout of a model that has only the items of a step: its tables are whole on every device."""
        return replace(self, num_items=None)

    @property
    def num_parts(self) -> int:
        """The number of parts of a batch."""
        return 1 if self.mesh is None else self.mesh.shape[DATA]

    def fill_up(self, num_rows: int) -> int:
        """The rows of a batch with those that make its parts equal."""
        return -(-num_rows // self.num_parts) * self.num_parts

    def candidates(self, rows_Jx: Array) -> Array:
        """The rows of a table that items are compared with: without the padding, unless the table is cut."""
        return rows_Jx[:-1] if self.num_items is None else rows_Jx

    def count_items(self, num_rows: int) -> int:
        """The number of items among the rows of what `candidates` returned."""
        return num_rows if self.num_items is None else self.num_items

    def without_padding(self, scores_NI: Array, items_I: Array | None = None) -> Array:
        """Logits in which rows that only fill up have no part of a softmax.

        Args:
            scores_NI: The logits.
            items_I: The items that they are of; None is all.
        """
        if self.num_items is None:
            return scores_NI
        items_I = jnp.arange(scores_NI.shape[1]) if items_I is None else items_I
        return jnp.where(items_I < self.num_items, scores_NI, MASKED)

    def whole(self, array: Array) -> Array:
        """The array, whole on every device."""
        kept: Array = array if self.mesh is None else _constrain(array, NamedSharding(self.mesh, WHOLE))
        return kept

    def in_order(self, draws_N: Array, is_target_N: Array) -> Array:
        """Random numbers of the positions with a target, as one device gives them to its list of these.

        Each part of a batch has a list of its own, which begins with its targets; one device has one such list.
        """
        if self.mesh is None:
            return draws_N
        return draws_N[jnp.maximum(jnp.cumsum(is_target_N) - 1, 0)]

    def join_items(self, scores_BI: Array) -> Array:
        """Scores of every item, each device with all of its rows; those of rows that only fill up are left out."""
        if self.mesh is None or self.num_items is None:
            return scores_BI
        whole: Array = _constrain(scores_BI, NamedSharding(self.mesh, BATCH))
        return whole[:, : self.num_items]

    # What depends on other parts than a device's own

    def take(self, table_Jx: Array, places: Array, *, of_batch: bool = True, mode: str | None = None) -> Array:
        """The rows of some items, looked up where they are.

        Args:
            table_Jx: A table with a row per item.
            places: The items.
            of_batch: Whether they are cut as batches are; else every device has them all.
            mode: As for `jax.numpy`'s indexing, of items that a table which is not cut does not have.
        """
        if self.mesh is None:
            return table_Jx.at[places].get(mode=mode)
        spec = BATCH if of_batch else WHOLE
        rows: Array = self._map(self.take_here, (self.table, spec), spec)(table_Jx, places)
        return rows

    def rows_from(self, table_Jx: Array, first: Array, width: int) -> Array:
        """The rows of consecutive items, the same on every device."""
        if self.mesh is None:
            return jax.lax.dynamic_slice_in_dim(table_Jx, first, width)
        return self.take(table_Jx, first + jnp.arange(width), of_batch=False)

    def put(self, table_Jx: Array, places_J: Array, rows_Jx: Array) -> Array:
        """The table with the rows of some items, ascending, replaced."""
        if self.mesh is None:
            return table_Jx.at[places_J].set(rows_Jx, indices_are_sorted=True)
        put: Array = self._map(self._put_here, (self.table, WHOLE, WHOLE), self.table)(table_Jx, places_J, rows_Jx)
        return put

    def per_part(self, function: Callable[..., Any], *trees: Any) -> Any:
        """What a function returns for each part of a batch, put together along the first axis.

        Args:
            function: Of the parts of arrays.
            *trees: Arrays whose first axis is cut as batches are.
        """
        return function(*trees) if self.mesh is None else self._map(function, BATCH, BATCH)(*trees)

    def over_catalogue(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """A function of parts that puts its results together itself, without derivatives; as it is without a mesh."""
        return function if self.mesh is None else self._map(function, in_specs, out_specs, check_vma=False)

    # Within `over_catalogue`

    def sum(self, value: Any, *axes: str) -> Any:
        """The sum of the parts along some axes of the mesh."""
        return value if self.mesh is None else _psum(value, axes)

    def maximum(self, value: Array, axis: str) -> Array:
        """The maximum of the parts along an axis of the mesh."""
        return value if self.mesh is None else _pmax(value, axis)

    def logsumexp(self, logits_nI: Array) -> Array:
        """The logarithm of the sum of exponentials over all parts of the catalogue, (n,)."""
        if self.mesh is None:
            return jax.nn.logsumexp(logits_nI, axis=1)
        largest_n = self.maximum(logits_nI.max(1), ITEMS)
        largest_n = jnp.where(jnp.isfinite(largest_n), largest_n, 0)
        return jnp.log(self.sum(jnp.exp(logits_nI - largest_n[:, None]).sum(1), ITEMS)) + largest_n

    def first_item(self, num_rows: int) -> Array | int:
        """The first item of this device's part of a table, which has so many rows here."""
        return 0 if self.mesh is None or self.num_items is None else jax.lax.axis_index(ITEMS) * num_rows

    def first_row(self, num_rows: int) -> Array | int:
        """The first row of this device's part of a batch, which has so many rows here."""
        return 0 if self.mesh is None else jax.lax.axis_index(DATA) * num_rows

    def join_logs(self, log_B: Array) -> Array:
        """The logarithm of the sum of what has these logarithms on the parts of the catalogue."""
        return log_B if self.mesh is None else self.logsumexp(log_B[:, None])

    def are_items(self, items_s: Array, among_s: Array) -> Array:
        """Which of some rows are of items, and not only there to fill up."""
        return among_s if self.num_items is None else among_s & (items_s < self.num_items)

    def rows_here(self, batch: EvaluationBatch) -> Any:
        """The rows of a part of a batch that seen items are of; out of range if they are in another part."""
        if self.mesh is None:
            return batch.seen_rows_M
        num_rows = len(batch.items_BL)
        rows_M = batch.seen_rows_M - self.first_row(num_rows)
        return jnp.where((rows_M >= 0) & (rows_M < num_rows), rows_M, num_rows)

    def take_here(self, table_jx: Array, places: Array) -> Array:
        """The rows of items whose table is a device's part: 0 for items of other parts, then the sum over the parts."""
        if self.mesh is None:
            return table_jx[places]
        if self.num_items is None:
            return table_jx.at[places].get(mode="clip")
        here = places - self.first_item(len(table_jx))
        is_here = (here >= 0) & (here < len(table_jx))
        rows = table_jx[jnp.where(is_here, here, 0)]
        is_here = is_here.reshape(*is_here.shape, *[1] * (rows.ndim - is_here.ndim))
        found: Array = _psum(jnp.where(is_here, rows, 0), ITEMS)
        return found

    # Where arrays lie

    @property
    def table(self) -> P:
        """How arrays with a row per item lie."""
        return WHOLE if self.num_items is None else TABLES

    def specs(self, tree: Any) -> Any:
        """How the arrays of a model lie, of parameters, buffers or moments."""
        return jax.tree_util.tree_map_with_path(lambda path, _: self.table if _has_items(path) else WHOLE, tree)

    def batch_specs(self, batch: EvaluationBatch) -> Any:
        """How the arrays of a batch of evaluation lie."""
        specs: Any = jax.tree.map(lambda _: WHOLE, batch)
        return specs._replace(items_BL=BATCH, targets_B=BATCH, users_B=None if batch.users_B is None else BATCH)

    def catalogue_specs(self, catalogue: Any) -> Any:
        """How the arrays of the retriever's catalogue lie."""
        users = jax.tree.map(lambda _: WHOLE, catalogue.users)
        return jax.tree.map(lambda _: self.table, catalogue._replace(users=None))._replace(users=users)

    def keep(self, tree: Any, specs: Any = None) -> Any:
        """The same arrays, lying where they should: so a step returns them as it takes them."""
        if self.mesh is None:
            return tree
        return _constrain(tree, self._shardings(self.specs(tree) if specs is None else specs))

    def place(self, tree: Any, specs: Any) -> Any:
        """Arrays of the host, which are whole, on the devices.

        Args:
            tree: The arrays, the same in all processes; those with a row per item without what fills them up.
            specs: How each of them lies.
        """
        return jax.tree.map(self._place, tree, specs)

    def place_whole(self, tree: Any) -> Any:
        """Arrays whole on every device; random keys too."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda array: self._place(array, WHOLE), tree)

    def place_inputs(self, inputs: StepInputs, *, stacked: bool = False) -> StepInputs:
        """The inputs of a step on the devices; ``stacked`` are those of many steps, with a leading axis."""
        cut = BATCH_SECOND if stacked else BATCH
        specs = jax.tree.map(lambda _: cut, inputs._replace(sample=None))
        placed: StepInputs = self.place(inputs, specs._replace(sample=jax.tree.map(lambda _: WHOLE, inputs.sample)))
        return placed

    def place_histories(self, items_BL: NDArray[Any], users_B: NDArray[Any] | None, padding: int) -> tuple[Any, Any]:
        """Histories and their users on the devices, with rows that make the parts equal."""
        if self.mesh is None:
            return items_BL, users_B
        return self._place_rows(items_BL, padding), None if users_B is None else self._place_rows(users_B, -1)

    def place_batch(self, batch: EvaluationBatch, padding: int) -> EvaluationBatch:
        """A batch of evaluation on the devices, with rows that make the parts equal and do not count."""
        if self.mesh is None:
            return batch
        items, users = self.place_histories(batch.items_BL, batch.users_B, padding)
        targets: Any = self._place_rows(batch.targets_B, 0)
        return batch._replace(items_BL=items, users_B=users, targets_B=targets)

    def place_items(self, values_I: NDArray[Any]) -> Any:
        """Values of items on the devices."""
        return values_I if self.mesh is None else self._place(np.append(values_I, values_I.dtype.type(0)), self.table)

    def width(self, num_items: int) -> int:
        """The items that each device scores at once, of so many that are scored at once by all."""
        if self.mesh is None or self.num_items is None:
            return num_items
        parts: int = self.mesh.shape[ITEMS]
        return min(-(-(self.num_items + 1) // parts), -(-num_items // parts // MULTIPLE) * MULTIPLE)

    def model_shape(self, tree: Any) -> Any:
        """The shapes of a model's arrays without what fills them up."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _shape(self._cut(path, leaf.shape), leaf.dtype), tree
        )

    def fetch(self, tree: Any) -> Any:
        """A model's arrays on the host, whole, without what fills them up; all processes call it together."""
        if self.mesh is None:
            return tree
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: to_host(leaf)[: self._cut(path, leaf.shape)[0]] if leaf.ndim else to_host(leaf), tree
        )

    def _place(self, array: Any, spec: P) -> Array:
        assert self.mesh is not None
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            keys: Array = jax.random.wrap_key_data(self._place(jax.random.key_data(array), spec))
            return keys
        values = np.asarray(array)
        if spec == TABLES:
            missing = -len(values) % self.mesh.shape[ITEMS]
            values = np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))
        return jax.make_array_from_callback(values.shape, NamedSharding(self.mesh, spec), lambda index: values[index])

    def _place_rows(self, rows: Any, filling: int) -> Array:
        values = np.asarray(rows)
        missing = self.fill_up(len(values)) - len(values)
        widths = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
        return self._place(np.pad(values, widths, constant_values=filling), BATCH)

    def _cut(self, path: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.num_items is None or not _has_items(path) else (self.num_items + 1, *shape[1:])

    def _shardings(self, specs: Any) -> Any:
        assert self.mesh is not None
        mesh = self.mesh
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, P))

    def _map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any, *, check_vma: bool = True) -> Any:
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)

    def _put_here(self, table_jx: Array, places_J: Array, rows_Jx: Array) -> Array:
        here_J = places_J - self.first_item(len(table_jx))
        is_here_J = (here_J >= 0) & (here_J < len(table_jx))
        return table_jx.at[jnp.where(is_here_J, here_J, len(table_jx))].set(rows_Jx, mode="drop")


def _has_items(path: Any) -> bool:
    names = tuple(str(getattr(key, "key", "")) for key in path)
    return any(names[1 - len(each) :] == each[1:] for each in (TABLE, TEXTS, POPULARITY))


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def to_host(array: Array) -> NDArray[Any]:
    """The same array in NumPy, whole; all processes call it together."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    # NumPy ends the process where XLA had no memory for the array; this raises an error.
    return np.asarray(array.block_until_ready())


ONE_DEVICE = Layout()
"""No mesh."""
