"""Which epoch the best checkpoint of a run is of."""

from ur4rec.runs.run import TrainingRun


def final_epoch(*epochs):
    run = TrainingRun.__new__(TrainingRun)
    run.epochs = [
        {"epoch": number, "stage": stage, "validation": {} if quality is None else {scorer: {"ndcg@10": quality}}}
        for number, (stage, scorer, quality) in enumerate(epochs)
    ]
    return run.final_epoch


def test_it_is_the_newest_that_was_better_than_all_before_with_the_same_criterion():
    sasrec, joint = ("pretrain_sasrec", "sasrec"), ("joint_finetune", "fused")
    assert final_epoch((*sasrec, 0.3), (*joint, 0.2), (*joint, 0.1)) == 1
    assert final_epoch((*sasrec, 0.3), (*joint, 0.2), ("end_to_end", "fused", 0.25)) == 2
    assert final_epoch((*joint, 0.2), ("end_to_end", "fused", 0.2)) == 0
    assert final_epoch((*sasrec, 0.3), (*sasrec, None), (*sasrec, 0.2)) == 0
