"""Which epochs of a run were kept, and what ended its stages, in a few sentences made from its epochs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ur4rec.config import TrainerConfig
from ur4rec.evaluation.results import CRITERION, Result
from ur4rec.runs.plan import FUSION_WEIGHTS, TABLE_ROWS, Plan, describe_number


def explain_epochs(plan: Plan, epochs: Sequence[Mapping[str, Any]], results: Mapping[str, Result]) -> str:
    """The epoch of each row of the results table, the chosen fusion weights, what ended stages early, and the rates.

    Args:
        plan: Of the run.
        epochs: The rows of ``metrics.json``.
        results: The rows of the results table.

    Example:
        >>> from ur4rec.runs.config import RunConfig
        >>> given = {"epochs": {"pretrain_sasrec": 9, "joint_finetune": 1}, "early_stopping": 1, "trainer": {"joint_lr_scale": 0.3}}
        >>> plan = Plan(config=RunConfig(**given))
        >>> metrics = {"sasrec": {"ndcg@10": 0.25}}
        >>> rows = [{"stage": "pretrain_sasrec", "epoch": epoch, "validation": metrics} for epoch in (0, 1)]
        >>> result = Result(name="SASRec alone", epoch=0, validation=metrics["sasrec"], test={}, test_ranks=())
        >>> rows += [{"stage": "joint_finetune", "epoch": 2, "validation": {}, "train": {"retriever_fusion_weight": 0.5}}]
        >>> fused = Result(name="fused", epoch=2, validation={"ndcg@10": 0.3}, test={}, test_ranks=())
        >>> print(explain_epochs(plan, rows, {"SASRec alone": result, "fused": fused}))
        Kept: SASRec alone at epoch 1 of pretrain_sasrec (validation NDCG@10 0.2500); fused at epoch 1 of joint_finetune (validation NDCG@10 0.3000).
        The fused scores are SASRec's plus 0.5 times the retriever's, as validation chose.
        pretrain_sasrec ended after 2 of 9 epochs: its validation was not better 1 time in a row.
        Learning rates rose over the first 5% of a stage and fell along a cosine that reaches 0 at the last of its epochs; a stage that ended early had not come so far (lr_schedule=constant keeps the rate); those of joint stages were 0.3 of the others.
    """  # noqa: E501
    trained = Counter(row["stage"] for row in epochs)
    kept = []
    for criterion, rows in dict.fromkeys((each[0], tuple(each[1].items())) for each in TABLE_ROWS.values()):
        if (result := results.get(dict(rows)[criterion])) is not None:
            place = describe_number(result.epoch, epochs)
            kept.append(f"{result.name} at {place} (validation NDCG@10 {result.validation[CRITERION]:.4f})")
    num, patience = plan.config.epochs, plan.config.early_stopping
    times = f"{patience} time{'' if patience == 1 else 's'}"
    early = [
        f"{stage} ended after {count} of {num[stage]} epochs: its validation was not better {times} in a row."
        for stage, count in trained.items()
        if count < num[stage]
    ]
    rates = _explain_rates(TrainerConfig(**plan.config.trainer), ended_early=bool(early))
    return "\n".join([f"Kept: {'; '.join(kept)}.", *_explain_fusion(epochs, results), *early, rates])


def _explain_fusion(epochs: Sequence[Mapping[str, Any]], results: Mapping[str, Result]) -> list[str]:
    train = epochs[results["fused"].epoch].get("train", {}) if "fused" in results else {}
    names = {FUSION_WEIGHTS["retriever"]: "the retriever's", FUSION_WEIGHTS["popularity"]: "popularity's"}
    terms = [f"{train[key]:.3g} times {name}" for key, name in names.items() if key in train]
    return [f"The fused scores are SASRec's plus {' and '.join(terms)}, as validation chose."] if terms else []


def _explain_rates(trainer: TrainerConfig, *, ended_early: bool) -> str:
    rise = f"Learning rates rose over the first {trainer.warmup:.0%} of a stage and"
    scaled = (
        f"; those of joint stages were {trainer.joint_lr_scale:g} of the others" if trainer.joint_lr_scale != 1 else ""
    )
    if trainer.lr_schedule == "constant":
        return f"{rise} stayed at their peak{scaled}."
    then = "; a stage that ended early had not come so far (lr_schedule=constant keeps the rate)" if ended_early else ""
    return f"{rise} fell along a cosine that reaches 0 at the last of its epochs{then}{scaled}."
