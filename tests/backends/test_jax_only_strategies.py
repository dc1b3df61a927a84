"""JAX alone: a component that is absent, as its traced weight says."""

import math

import numpy as np

LOSSES = {"sasrec": (1.5, 0.7), "retriever": (-0.4, 2.0)}


def test_a_component_of_weight_zero_is_absent(backend):
    uncertainty, without = backend.uncertainty(), backend.uncertainty()
    absent = {**LOSSES, "consistency": (0.0, np.float32(0))}
    for _ in range(2):
        assert uncertainty.total(absent) == without.total(LOSSES)
        metrics = uncertainty.metrics(absent)
        assert math.isnan(metrics.pop("consistency_uncertainty_weight"))
        assert metrics == without.metrics(LOSSES)
        uncertainty.update(absent, is_finite=True, learning_rate=0.3)
        without.update(LOSSES, is_finite=True, learning_rate=0.3)
        assert uncertainty.log_variances() == without.log_variances()
    assert uncertainty.log_variances()["consistency"] == 0
