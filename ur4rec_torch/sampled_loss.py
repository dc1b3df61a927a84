"""Scores of each position's target and of the negatives that all share; see `ur4rec.training.sampling`.

Shapes: N positions with a target, d width, K preference vectors, J items of the step with the padding, C negatives,
S = C + 1 candidates of a position: its target and the negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ur4rec.training import arrays
from ur4rec.training.sampling import HIT
from ur4rec_torch.retriever import PreferenceRetriever


def sasrec_scores(hidden_Nd: Tensor, table_Jd: Tensor, targets_N: Tensor, sample: arrays.Sample[Tensor]) -> Tensor:
    """SASRec's logits of the candidates, (N, S)."""
    positive_N1 = (hidden_Nd * F.embedding(targets_N, table_Jd)).sum(1, keepdim=True)
    negative_NC = hidden_Nd @ F.embedding(sample.candidates_C, table_Jd).T
    return torch.cat([positive_N1.float(), negative_NC.float()], dim=1)


def retriever_scores(
    retriever: PreferenceRetriever,
    preferences_NKd: Tensor,
    keys_Id: Tensor,
    targets_N: Tensor,
    sample: arrays.Sample[Tensor],
) -> Tensor:
    """The retriever's logits of the candidates, (N, S)."""
    keys_N1d = F.embedding(targets_N, keys_Id).unsqueeze(1)
    positive_N1 = (retriever.scale(preferences_NKd) * keys_N1d).sum(2).float().logsumexp(1, keepdim=True)
    negative_NC = retriever.score(preferences_NKd, F.embedding(sample.candidates_C, keys_Id))
    return torch.cat([positive_N1, negative_NC], dim=1)


def corrections(targets_N: Tensor, sample: arrays.Sample[Tensor]) -> Tensor:
    """What is added to the candidates' logits, (N, S): 0 to the target's; a negative that is it drops out."""
    is_hit_NC = sample.candidates_C == targets_N[:, None]
    offsets_NC = torch.where(is_hit_NC, HIT, sample.offsets_C)
    return torch.cat([offsets_NC.new_zeros(len(targets_N), 1), offsets_NC], dim=1)


def sampled_cross_entropy(
    scores_NS: Tensor, targets_N: Tensor, sample: arrays.Sample[Tensor], smoothing: float = 0.0
) -> Tensor:
    """Mean negative log-probability of the targets, as the sample estimates it.

    Args:
        scores_NS: The logits of the candidates.
        targets_N: The targets.
        sample: The candidates.
        smoothing: The share of a target's probability that its candidates have in equal parts, itself among them; one
            that was drawn twice counts twice, a negative that is the target not at all.
    """
    corrected_NS = scores_NS + corrections(targets_N, sample)
    wanted_N = scores_NS[:, 0]
    if smoothing:
        counts_NS = F.pad((sample.candidates_C != targets_N[:, None]).to(scores_NS.dtype), (1, 0), value=1)
        mean_N = (scores_NS * counts_NS).sum(1) / counts_NS.sum(1)
        wanted_N = (1 - smoothing) * wanted_N + smoothing * mean_N
    return (corrected_NS.logsumexp(1) - wanted_N).mean()
