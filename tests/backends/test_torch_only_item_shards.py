"""PyTorch alone: the catalogue in parts on one, two and four processes; values and gradients of the whole one.

Cases run on every rank; see `tests.several_ranks`.
"""

from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.backends.catalogue_factors import NAMES, draw_factors
from ur4rec.config import TrainerConfig
from ur4rec.data import Sequences, Targets
from ur4rec.data.batches import EvaluationBatches
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.stages import MODULES, CurriculumWeights
from ur4rec.training import scorer as scoring
from ur4rec.training.sampling import Sampler
from ur4rec_torch import Scorer, UR4Rec, catalogue_loss
from ur4rec_torch.catalogue_loss import catalogue_cross_entropy, catalogue_log_probabilities
from ur4rec_torch.device import to_device
from ur4rec_torch.item_shards import ItemShard
from ur4rec_torch.losses import fused_loss, separate_loss
from ur4rec_torch.strategies import Context, Strategies

NUM_RANKS, NUM_ITEMS, CPU = 4, 23, torch.device("cpu")
PARTS = (1, 2, 4)
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
TABLES = ("sasrec.item_embedding.weight",)


@cache
def group_of(num_parts):
    """This rank's group; all are made in every process in the same order, once: each has threads of its own."""
    firsts = range(0, NUM_RANKS, num_parts)
    groups = [dist.new_group([*range(first, first + num_parts)]) for first in firsts]
    return groups[dist.get_rank() // num_parts]


def make_shard(num_parts, num_items=NUM_ITEMS):
    return ItemShard(num_items, group_of(num_parts))


def own_rows(name, array, shard):
    """The part of a shard of what has a row per item."""
    if name in ("table", "keys"):
        return array[shard.items]
    return shard.cut(array) if name in TABLES else array


def weighted_loss(targets_N, sasrec, retriever, weights_2, shard=None):
    """Minus the logarithm of a mixture of both modules' probabilities."""
    log_weights = torch.log_softmax(weights_2, dim=0)
    found = zip(({"sasrec": sasrec}, {"retriever": retriever}), log_weights, strict=True)
    if shard is None:
        parts = [
            -torch.nn.functional.cross_entropy(_logits(**each), targets_N, reduction="none") + w for each, w in found
        ]
    else:
        parts = [catalogue_log_probabilities(targets_N, **each, shard=shard) + w for each, w in found]
    return -torch.logaddexp(*parts).mean()


def _logits(sasrec=None, retriever=None):
    if sasrec is not None:
        return sasrec[0] @ sasrec[1].T
    return torch.stack([query @ retriever[1].T for query in retriever[0].unbind(1)]).logsumexp(0)


def logit_loss(targets_N, factors, **options):
    """Of the weighted sum of both modules' logits."""
    sasrec, retriever = (factors["hidden"], factors["table"]), (factors["queries"], factors["keys"])
    return catalogue_cross_entropy(
        targets_N, sasrec=sasrec, retriever=retriever, weights_2=factors["weights"], **options
    )


LOSSES = {
    "sasrec": (NAMES[:2], lambda t, f, **s: catalogue_cross_entropy(t, sasrec=(f["hidden"], f["table"]), **s)),
    "retriever": (NAMES[2:4], lambda t, f, **s: catalogue_cross_entropy(t, retriever=(f["queries"], f["keys"]), **s)),
    "logit": (NAMES, logit_loss),
    "smoothed": (NAMES, lambda t, f, **s: logit_loss(t, f, smoothing=0.3, **s)),
    "weighted": (
        NAMES,
        lambda t, f, **s: weighted_loss(t, (f["hidden"], f["table"]), (f["queries"], f["keys"]), f["weights"], **s),
    ),
}


def compared_losses(rank, num_parts, name, num_rows):
    catalogue_loss.CPU_SLICE, catalogue_loss.MINIMUM_ROWS = 1, num_rows
    shard, (needed, compute) = make_shard(num_parts), LOSSES[name]
    factors, targets_N = draw_factors(num_items=NUM_ITEMS)
    whole = {key: torch.tensor(factors[key], dtype=torch.float32, requires_grad=True) for key in needed}
    own = {key: own_rows(key, each.detach(), shard).clone().requires_grad_() for key, each in whole.items()}
    targets_N = torch.as_tensor(targets_N)
    expected, found = compute(targets_N, whole), compute(targets_N, own, shard=shard)
    (2 * expected).backward()
    (2 * found).backward()
    torch.testing.assert_close(found, expected, **CLOSE)
    for key in needed:
        torch.testing.assert_close(own[key].grad, own_rows(key, whole[key].grad, shard), **CLOSE)
    return [own[key].grad.numpy().tobytes() for key in needed if key not in ("table", "keys")]


@pytest.mark.parametrize("num_parts", PARTS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_whole_catalogue(four, num_parts, name):
    """And of what is replicated every process has the same gradients, bit for bit."""
    for num_rows in (5, 64):
        found = four.run(compared_losses, num_parts, name, num_rows)
        assert all(each == found[0] for each in found)


def make_model(fusion="logit"):
    vectors_IT = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    sasrec = {"sasrec_hidden_dim": 8, "sasrec_num_heads": 2, "sasrec_dropout": 0.0}
    retriever = {"retriever_output_dim": 4, "retriever_num_queries": 3, "retriever_dropout": 0.0}
    return UR4Rec(NUM_ITEMS, vectors_IT, text_embedding_dim=6, max_seq_len=5, fusion=fusion, **sasrec, **retriever)


def draw_batch():
    """Histories of several lengths and the items after each position."""
    random = np.random.default_rng(4)
    rows = random.integers(NUM_ITEMS, size=(6, 6))
    rows[np.arange(6)[:, None], np.arange(6)] = np.where(np.arange(6) < random.integers(3, 7, (6, 1)), rows, NUM_ITEMS)
    return rows[:, :-1], np.where(rows[:, :-1] == NUM_ITEMS, NUM_ITEMS, rows[:, 1:]), np.zeros(6, np.int64)


def step_of(model, config, fusion):
    """The loss of a step of both modules with all that is computed from the catalogue, and its gradients by name."""
    sampler = Sampler(config, NUM_ITEMS, np.arange(NUM_ITEMS)) if config.catalogue_loss == "sampled" else None
    model.sasrec.item_embedding.sparse = sampler is not None
    inputs = to_device(draw_batch(), NUM_ITEMS, CPU, sampler=sampler, step=3)
    items_J = None if inputs.sample is None else inputs.sample.items_J
    catalogue = model.retriever.catalogue(items_J, with_users=False)
    if config.joint_loss == "fused":
        losses = fused_loss(model, inputs, catalogue, label_smoothing=config.label_smoothing)
    else:
        losses = separate_loss(model, config, inputs, MODULES, catalogue)
    weights = CurriculumWeights(retrieval=1.0, consistency=0.5, contrastive=0.5, diversity=0.5)
    losses = Strategies(config, model.config, CPU).apply(
        losses, Context(model, inputs, MODULES, catalogue, True, weights)
    )
    losses.total.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return losses.total.detach(), {name: each.to_dense() for name, each in gradients.items()}


def compared_steps(rank, num_parts, fusion, settings):
    config = TrainerConfig(**settings)
    whole, own = make_model(fusion), make_model(fusion)
    shard = make_shard(num_parts)
    own.divide_items(shard)
    assert own.state_dict().keys() == whole.state_dict().keys()
    (expected, by), (found, by_own) = step_of(whole, config, fusion), step_of(own, config, fusion)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert by_own.keys() == by.keys()
    for name, gradient in by_own.items():
        torch.testing.assert_close(
            gradient, own_rows(name, by[name], shard), **CLOSE, msg=lambda m, n=name: f"{n}: {m}"
        )
    return {name: each.numpy().tobytes() for name, each in by_own.items() if name not in TABLES}


@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize(
    ("fusion", "settings"),
    [
        ("logit", {"joint_loss": "fused", "use_memory_bank": True, "memory_bank_size": 16}),
        ("weighted", {"joint_loss": "fused"}),
        ("logit", {"joint_loss": "separate"}),
        ("logit", {"joint_loss": "separate", "label_smoothing": 0.2}),
        ("logit", {"joint_loss": "fused", "catalogue_loss": "sampled", "num_negatives": 9, "num_in_batch": 4}),
        ("rank", {"joint_loss": "separate", "catalogue_loss": "sampled", "num_negatives": 9, "num_in_batch": 4}),
    ],
    ids=["fused", "weighted", "separate", "smoothed", "sampled", "sampled-separate"],
)
def test_the_step_of_a_model_in_parts_is_that_of_the_whole_model(four, num_parts, fusion, settings):
    found = four.run(compared_steps, num_parts, fusion, settings)
    assert all(each == found[0] for each in found)


COPIED = 60
"""Items of a model in which items i, i + 20 and i + 40 are the same, so that their scores are equal."""


def make_scorer(fusion, shard=None):
    random = np.random.default_rng(1)
    vectors_IT = np.tile(random.normal(size=(COPIED // 3, 12)), (3, 1))
    shape = {"sasrec_hidden_dim": 16, "sasrec_num_heads": 2, "retriever_output_dim": 8, "retriever_num_queries": 3}
    model = UR4Rec(COPIED, vectors_IT, text_embedding_dim=12, max_seq_len=8, fusion=fusion, **shape)
    with torch.no_grad():
        table_Jd = model.sasrec.item_embedding.weight
        table_Jd[:COPIED] = table_Jd[: COPIED // 3].repeat(3, 1)
    if shard is not None:
        model.divide_items(shard)
    return Scorer(model, device="cpu")


def answers_of(scorer):
    """Ranks, the best items with their probabilities, and scores, by all scorers."""
    random = np.random.default_rng(2)
    histories, seen = (
        Sequences.from_lists([random.integers(0, COPIED, length).tolist() for length in lengths])
        for lengths in ((3, 1, 9, 5, 2, 7, 8), (3, 0, 2, 4, 0, 1, 20))
    )
    items_T, users_T = random.integers(0, COPIED, 7).astype(np.int32), np.arange(7, dtype=np.int32)
    targets = Targets(users_T=users_T, items_T=items_T, histories=histories, seen=seen)
    batches = EvaluationBatches(targets, COPIED, max_seq_len=8, batch_size=4)
    candidates_I = np.arange(COPIED) % 5 != 0
    (best,) = scorer.top(histories, 25, excluded=seen, candidates_I=candidates_I)
    (few,) = scorer.top(histories, 3, scorer="retriever")
    return scorer.rank_all(batches), best, few, scorer.scores(next(iter(batches)).items_BL)


def compared_answers(rank, num_parts, fusion, width):
    scoring.slice_width = lambda *arguments, **settings: width
    expected = answers_of(make_scorer(fusion))
    ranks, best, few, scores = answers_of(make_scorer(fusion, make_shard(num_parts, COPIED)))
    for name, ranks_V in expected[0].items():
        np.testing.assert_array_equal(ranks[name], ranks_V, err_msg=name)
        np.testing.assert_allclose(scores[name], expected[3][name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(best.probabilities[name], expected[1].probabilities[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(best.items_Bk, expected[1].items_Bk)
    np.testing.assert_array_equal(few.items_Bk, expected[2].items_Bk)
    return [(each >= 2).sum() for each in ranks.values()]


@pytest.mark.parametrize("num_parts", PARTS)
@pytest.mark.parametrize("fusion", ["logit", "weighted"])
def test_ranks_and_best_items_of_parts_are_those_of_the_whole_catalogue_ties_included(four, num_parts, fusion):
    for width in (16, COPIED):
        assert min(four.run(compared_answers, num_parts, fusion, width)[0]) >= 4  # the copies of a target tie with it


def too_many_parts(rank):
    with pytest.raises(ConfigurationError, match="3 items do not fill 4 parts"):
        make_shard(4, num_items=3)
    shard = make_shard(4, num_items=7)
    table_Jd = torch.arange(16.0).reshape(8, 2)
    whole_Jd = shard.join(shard.cut(table_Jd))
    return None if whole_Jd is None else torch.equal(whole_Jd, table_Jd)


def test_a_table_is_cut_and_joined_again(four):
    assert four.run(too_many_parts) == [True, None, None, None]
