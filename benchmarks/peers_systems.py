"""The systems of `peers.py` and what each trains with: theirs as their authors recommend it for each data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ur4rec.runs.presets import preset

DATA = ("ml-100k", "ml-1m", "sports")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the worker of a peer runs in: an environment of its own, with the torch that we have."""

    requirement: str
    """The library, installed without dependencies, some of which would fetch another torch."""
    needed: tuple[str, ...]
    """What importing it needs, and `ur4rec` beside it."""


RECBOLE = Environment(
    requirement="recbole==1.2.1",
    needed=(
        *("numpy", "pandas<3", "scipy", "scikit-learn", "pyyaml", "tqdm", "pyarrow"),
        *("colorlog", "colorama", "texttable", "tensorboard"),
    ),
)
RECTOOLS = Environment(
    requirement="rectools==0.19.0",
    needed=(
        *("numpy", "pandas<3", "scipy", "tqdm", "attrs", "pydantic", "typeguard", "implicit", "pyarrow"),
        *("pytorch-lightning", "torchmetrics"),
    ),
)
ENVIRONMENTS = {"RecBole": RECBOLE, "RecTools": RECTOOLS}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a system trains on one data set."""

    max_seq_len: int
    """The number of newest items that it reads."""
    epochs: int
    """The maximum number of epochs; of ours the plan over which the learning rate falls."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its program takes."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One line of the report."""

    worker: str
    """The program that trains it, beside this file."""
    recipes: Mapping[str, Recipe]
    """By data set."""
    environment: str | None = None
    """Of a peer, the name of its environment; None runs in ours."""
    first_seed: int = 0
    """The system's own seed for our seed 0."""
    patience: int | None = None
    """Epochs without a better validation after which it is stopped; None where it stops by itself or never."""

    @property
    def is_ours(self) -> bool:
        """Whether it is this library."""
        return self.environment is None


def _ours(package: str) -> System:
    """SASRec alone, as the presets have it for data of the kind; `--set` changes what it trains with."""
    names = {"ml-100k": "demo", "ml-1m": "ml-1m", "sports": "amazon"}
    return System(worker="peers_ours.py", recipes={data: _preset(name, package) for data, name in names.items()})


def _preset(name: str, package: str) -> Recipe:
    """What a preset says of SASRec alone. `demo` trains it for a few epochs; on its own it gets a plan of forty."""
    config = preset(name)
    model = {field: value for field, value in config.model.items() if field.startswith("sasrec_")}
    model.pop("sasrec_item_init", None)  # peers have no texts
    settings = {"package": package, "shifted": True, "batch_size": config.batch_size}
    settings |= {"model": model, "trainer": dict(config.trainer)}
    epochs = config.epochs["pretrain_sasrec"]
    if name == "demo":
        epochs, settings["batch_size"], settings["trainer"]["sasrec_lr"] = 40, 16, 1e-3  # docs/log.md, 2026-12-01
    return Recipe(max_seq_len=config.model["max_seq_len"], epochs=epochs, settings=settings)


def _rectools(**settings: Any) -> System:
    """RecTools with the sizes that its authors chose on each data set."""
    sampled = {"loss": "sampled_softmax", "n_negatives": 256, "lr": 1e-3}
    movielens = {"n_factors": 64, "n_blocks": 2, "n_heads": 1, "dropout_rate": 0.1}
    amazon = {"n_factors": 256, "n_blocks": 1, "n_heads": 1, "dropout_rate": 0.2}
    given = {data: {**sampled, **settings} for data in DATA}
    if settings.get("layers") == "LiGR":
        for data, size in {"ml-100k": 4, "ml-1m": 4, "sports": 2}.items():
            given[data]["transformer_layers_kwargs"] = {"ff_factors_multiplier": size}
    return System(
        worker="peers_rectools.py",
        environment="RecTools",
        patience=50,
        recipes={
            "ml-100k": Recipe(max_seq_len=200, epochs=100, settings={**movielens, **given["ml-100k"]}),
            "ml-1m": Recipe(max_seq_len=200, epochs=100, settings={**movielens, **given["ml-1m"]}),
            "sports": Recipe(max_seq_len=50, epochs=200, settings={**amazon, **given["sports"]}),
        },
    )


_LIGR = {"layers": "LiGR", "use_key_padding_mask": True}
SYSTEMS: dict[str, System] = {
    "ours": _ours("ur4rec_torch"),
    "ours in JAX": _ours("ur4rec_jax"),
    "RecBole": System(
        worker="peers_recbole.py",
        environment="RecBole",
        first_seed=2020,
        recipes={data: Recipe(max_seq_len=50, epochs=300) for data in DATA},
    ),
    "RecTools": System(
        worker="peers_rectools.py",
        environment="RecTools",
        patience=50,
        recipes={data: Recipe(max_seq_len=100, epochs=200) for data in DATA},
    ),
    "RecTools SS": _rectools(),
    "eSASRec": _rectools(**_LIGR),
    "eSASRec mixed": _rectools(**_LIGR, in_batch_share=0.6),
}
"""By the name in the report. `RecBole` and `RecTools` are those libraries with every default of theirs (RecBole's
length of 50, RecTools' width of 256, length of 100 and softmax over the catalogue). The others are RecTools with the
sizes that its authors publish for each data set (arXiv:2508.06450 and the configurations beside it; for MovieLens-100K
those of 1M): `RecTools SS` is their SASRec with sampled softmax, `eSASRec` has LiGR blocks too, `eSASRec mixed` draws
0.6 of its negatives from the batch."""
DEFAULT = {
    "ml-100k": ("ours", "RecBole"),
    "ml-1m": ("ours", "RecTools", "eSASRec", "RecBole"),
    "sports": ("ours", "RecTools", "eSASRec", "RecBole"),
}
"""The systems of each data set, unless `--only` names others."""
