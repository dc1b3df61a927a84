"""Losses, strategies and fusions in plain NumPy (float64, with loops): what both backends must compute.

Shapes: B rows, L positions, N positions with a target (row · L + position, ascending), I items, K preference vectors,
d width, M drawn negatives. None of the arrays holds anything that only fills up.
"""

import numpy as np

RANK_CONSTANT = 60


def log_softmax(scores):
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def normalise(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def softplus(values):
    return np.logaddexp(0, values)


def smoothed_cross_entropy(scores, targets, smoothing):
    """(1 - ε) · cross-entropy + ε · the mean over items of minus their log-probability, a mean over positions."""
    logs = log_softmax(scores.astype(float))
    own = logs[np.arange(len(targets)), targets]
    return np.mean((1 - smoothing) * -own + smoothing * -logs.mean(axis=1))


def catalogue_loss(factors, targets_N, smoothing=0.0):
    """The cross-entropy of the whole logits, and its gradients; factors that are left out of the logits have none.

    Args:
        factors: By name: SASRec's ``hidden`` (N, d) and ``table`` (I, d), the retriever's ``queries`` (N, K, d) and
            ``keys`` (I, d), and the ``weights`` of the two, 1 by default.
        targets_N: The targets.
        smoothing: The share of a target's probability that all items have.
    """
    rows, scores, shares_NKI = np.arange(len(targets_N)), {}, None
    if "hidden" in factors:
        scores["sasrec"] = factors["hidden"] @ factors["table"].T
    if "queries" in factors:
        products_NKI = np.einsum("nke,ie->nki", factors["queries"], factors["keys"])
        scores["retriever"] = np.log(np.exp(products_NKI).sum(axis=1))
        shares_NKI = np.exp(products_NKI - scores["retriever"][:, None])
    weights = dict(zip(scores, factors.get("weights", np.ones(2)), strict=False))
    logs_NI = log_softmax(sum(weights[name] * each for name, each in scores.items()))
    wanted_NI = np.full_like(logs_NI, smoothing / logs_NI.shape[1])
    wanted_NI[rows, targets_N] += 1 - smoothing
    slopes_NI = (np.exp(logs_NI) - wanted_NI) / len(rows)
    gradients = {"weights": np.array([(slopes_NI * each).sum() for each in scores.values()])}
    if "hidden" in factors:
        own_NI = weights["sasrec"] * slopes_NI
        gradients |= {"hidden": own_NI @ factors["table"], "table": own_NI.T @ factors["hidden"]}
    if "queries" in factors:
        own_NKI = weights["retriever"] * slopes_NI[:, None] * shares_NKI
        gradients["queries"] = np.einsum("nki,ie->nke", own_NKI, factors["keys"])
        gradients["keys"] = np.einsum("nki,nke->ie", own_NKI, factors["queries"])
    return -(wanted_NI * logs_NI).sum(axis=1).mean(), {name: gradients[name] for name in factors}


def sampled_loss(hidden_Nd, table_Id, targets_N, negatives_M, smoothing=0.0):
    """Softmax over the target and the drawn items that are not it."""
    losses = []
    for hidden_d, target in zip(hidden_Nd.astype(float), targets_N, strict=True):
        scores = [hidden_d @ table_Id[target], *(hidden_d @ table_Id[item] for item in negatives_M if item != target)]
        losses.append(smoothed_cross_entropy(np.array([scores]), [0], smoothing))
    return np.mean(losses)


def gbce_loss(hidden_Nd, table_Id, targets_N, negatives_M, t):
    """Binary cross-entropy with the target's probability to a power."""
    alpha = min(len(negatives_M) / (len(table_Id) - 1), 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    losses = []
    for hidden_d, target in zip(hidden_Nd.astype(float), targets_N, strict=True):
        positive = beta * softplus(-hidden_d @ table_Id[target])
        negative = sum(softplus(hidden_d @ table_Id[item]) for item in negatives_M if item != target)
        losses.append(positive + negative)
    return np.mean(losses)


def bpr_loss(hidden_Nd, table_Id, targets_N, rows_NL, negatives_N):
    """The target above one drawn item; one that is the target or in the row's history counts for nothing."""
    losses = []
    for hidden_d, target, row_L, item in zip(hidden_Nd.astype(float), targets_N, rows_NL, negatives_N, strict=True):
        margin = hidden_d @ table_Id[target] - hidden_d @ table_Id[item]
        losses.append(0.0 if item == target or item in row_L else softplus(-margin))
    return np.mean(losses)


def order(scores_I):
    """Item numbers, the best first; equal scores by number."""
    return np.array(sorted(range(len(scores_I)), key=lambda item: (-scores_I[item], item)))


def rank_fusion(sasrec_NI, retriever_NI):
    """The sum of reciprocal ranks."""
    fused_NI = np.zeros(sasrec_NI.shape)
    for scores_NI in (sasrec_NI, retriever_NI):
        for fused_I, scores_I in zip(fused_NI, scores_NI, strict=True):
            fused_I[order(scores_I)] += 1 / (RANK_CONSTANT + 1 + np.arange(len(scores_I)))
    return fused_NI


def cascade_fusion(sasrec_NI, retriever_NI, size):
    """Minus the final rank, from 0 on: SASRec's top in the retriever's order, then the others in SASRec's."""
    fused_NI = np.zeros(sasrec_NI.shape)
    for fused_I, sasrec_I, retriever_I in zip(fused_NI, sasrec_NI, retriever_NI, strict=True):
        by_sasrec = order(sasrec_I)
        top = sorted(by_sasrec[:size], key=lambda item: (-retriever_I[item], item))
        fused_I[[*top, *by_sasrec[size:]]] = -np.arange(len(sasrec_I))
    return fused_NI


def history_means(items_BL, positions_N, keys_Id):
    """The normalised mean of the history's keys at each position with a target, (N, d)."""
    length = items_BL.shape[1]
    rows = [(position // length, position % length) for position in positions_N]
    return normalise(np.array([keys_Id[items_BL[row, : last + 1]].mean(axis=0) for row, last in rows]))


def consistency_loss(preferences_NKd, items_BL, positions_N, keys_Id):
    """Squared distance of the preferences' mean from the history's, both normalised."""
    wanted_Nd = normalise(preferences_NKd.mean(axis=1))
    return ((wanted_Nd - history_means(items_BL, positions_N, keys_Id)) ** 2).sum(axis=1).mean()


def diversity_loss(preferences_NKd):
    """Minus the log-determinant of the preferences' Gram matrix plus 0.1 on its diagonal."""
    grams = [vectors_Kd @ vectors_Kd.T + 0.1 * np.eye(len(vectors_Kd)) for vectors_Kd in preferences_NKd.astype(float)]
    return -np.mean([np.linalg.slogdet(gram).logabsdet for gram in grams])


def last_targets(positions_N, length):
    """Which of the N positions is the last of its row, in the order of the rows."""
    rows = positions_N // length
    return np.array([index for index in range(len(rows)) if index + 1 == len(rows) or rows[index + 1] != rows[index]])


def contrastive_loss(preferences_NKd, positions_N, length, targets_N, keys_Id, bank, temperature=0.07):
    """Each row's last target against the bank's entries of other items; ``bank`` is a `Bank`."""
    losses = []
    for index in last_targets(positions_N, length):
        query_d, target = normalise(preferences_NKd[index].astype(float).mean(axis=0)), targets_N[index]
        negatives = [query_d @ key_d for item, key_d in bank.entries if item != target]
        losses.append(-log_softmax(np.array([query_d @ keys_Id[target], *negatives]) / temperature)[0])
    return np.mean(losses)


class Bank:
    """The newest (item, key) pairs, at most ``size`` of them, the oldest first."""

    def __init__(self, size):
        self.size, self.entries, self.written = size, [], 0

    def write(self, positions_N, length, targets_N, keys_Id):
        """What is written after a step that trained the retriever: the last target of each row, in their order."""
        for index in last_targets(positions_N, length):
            self.entries = [*self.entries, (int(targets_N[index]), keys_Id[targets_N[index]])][-self.size :]
            self.written += 1

    def arrays(self, dim):
        """Items, keys and cursor as in a checkpoint: entry number n lies at n modulo the size."""
        items, keys = np.full(self.size, -1, np.int32), np.zeros((self.size, dim), np.float32)
        for back, (item, key_d) in enumerate(reversed(self.entries), start=1):
            place = (self.written - back) % self.size
            items[place], keys[place] = item, key_d
        return items, keys, self.written % self.size


def distillation_loss(student_NI, teacher_NI, temperature):
    """T² · KL(softmax(teacher / T) || softmax(student / T)), without its weight."""
    student, teacher = (log_softmax(scores.astype(float) / temperature) for scores in (student_NI, teacher_NI))
    return temperature**2 * (np.exp(teacher) * (teacher - student)).sum(axis=1).mean()


def uncertainty_total(losses, weights, log_variances):
    """What is minimised; all three by component."""
    return sum(np.exp(-log_variances[name]) * weights[name] * losses[name] + log_variances[name] / 2 for name in losses)


def uncertainty_step(losses, weights, log_variances, learning_rate):
    """The log-variances after a step of plain gradient descent; of absent components as they were."""
    moved = {
        name: log_variances[name] - learning_rate * (0.5 - np.exp(-log_variances[name]) * weights[name] * losses[name])
        for name in losses
    }
    return {**log_variances, **moved}


def explanation(weights, history, candidates, temperature, user=None):
    """By which texts of one history (and of its user, last) each candidate is found, from the retriever's weights."""

    def project(name, texts):
        return texts @ weights[f"{name}.weight"].T.astype(float) + weights[f"{name}.bias"]

    texts_MT = weights["item_text_vectors"][list(history)].astype(float)
    recency_KL = weights["recency.weight"][:, : len(history)][:, ::-1]
    bias_KM = np.column_stack([recency_KL, weights["user_bias"]])
    if user is None:
        bias_KM = recency_KL
    else:
        texts_MT = np.vstack([texts_MT, weights["user_text_vectors"][user]])
    keys_Md = project("key_projection", texts_MT)
    logits_KM = weights["queries.weight"] @ keys_Md.T / np.sqrt(keys_Md.shape[1]) + bias_KM
    attention_KM = np.exp(log_softmax(logits_KM))
    preferences_Kd = normalise(project("preference_projection", attention_KM @ project("value_projection", texts_MT)))
    items_Cd = normalise(project("item_projection", weights["item_text_vectors"][list(candidates)].astype(float)))
    return np.exp(log_softmax(items_Cd @ preferences_Kd.T / temperature)) @ attention_KM
