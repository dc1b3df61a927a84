"""The components of a training loss: their names, their order, and how they are reported; the same in both backends.

A step minimises the sum over its components of weight · loss::

    component       weight                                   loss, a mean over the positions with a target
    sasrec          sasrec_loss_weight                       under `separate`: SASRec's own
    retriever       retriever_loss_weight · retrieval        under `separate`: the retriever's own
    fused           1                                        cross-entropy of the fused scores
    consistency     of the curriculum                        squared distance of wanted from read, both normalised
    contrastive     of the curriculum, else its full weight  the memory bank's, a mean over rows
    diversity       of the curriculum                        −log det of the preference vectors' similarity
    distillation    kd_weight                                T² · KL(teacher || student), of each module that trains

A component whose weight is 0 in a step is absent from it. The metric ``<component>_loss`` is the loss without its
weight. Under `fused`, ``sasrec_loss`` and ``retriever_loss`` are what the schedule observes, which is the fused loss.

**Uncertainty weighting** (Kendall, Gal & Cipolla, CVPR 2018) minimises the sum of exp(−s) · weight · loss + s / 2
instead, with a log-variance s per component that starts at 0. The metric ``uncertainty_loss`` is the sum of s / 2 over
the components of the step, ``<component>_uncertainty_weight`` is exp(−s). The gradient of s is known without a backward
pass, ½ − exp(−s) · weight · loss, so the trainer takes plain descent steps with it: it does not count in clipping, and
the s of a component that is absent from a step does not move.
"""

COMPONENTS = ("sasrec", "retriever", "fused", "consistency", "contrastive", "diversity", "distillation")
"""All components, in the order of their log-variances."""
UNCERTAINTY = "uncertainty"
"""The metric of the log-variances' own part of the loss, and the prefix of their name in a checkpoint."""
DIVERSITY_RIDGE = 0.1
"""What is added to the diagonal of the preference vectors' Gram matrix before its determinant is taken."""
RANK_CONSTANT = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009)."""
LOG_VARIANCES = f"{UNCERTAINTY}.log_variances"
"""Its name in a checkpoint: float32, one per component, in the order of `COMPONENTS`."""
BANK_ITEMS = "memory_bank.items"
"""Its name in a checkpoint: int32, (memory_bank_size,); -1 where the bank has no entry yet."""
BANK_KEYS = "memory_bank.keys"
"""Its name in a checkpoint: float32, (memory_bank_size, retriever_output_dim); 0 where it has no entry yet."""
BANK_CURSOR = "memory_bank.cursor"
"""Its name in a checkpoint: int32, a scalar: where the next entry goes, 0 to memory_bank_size - 1."""


def loss_name(component: str) -> str:
    """The metric of a component's loss."""
    return f"{component}_loss"


def weight_name(component: str) -> str:
    """The metric of a component's uncertainty weight."""
    return f"{component}_uncertainty_weight"
