"""Bregman proximal Langevin, by its defaults, on the reference that has a kink."""

import numpy as np
import pytest

import quincunx as qx
from tests.references.catalogue import (
    POSTERIORS,
    folder,
    load_data,
    load_reference,
    reference_values,
)
from tests.references.test_nuts import discrepancies


@pytest.mark.slow
@pytest.mark.skipif(folder() is None, reason="the reference posteriors are not on this machine")
@pytest.mark.parametrize("moment", ["mean", "mean_sq"])
def test_the_bayesian_lasso_agrees_with_its_reference(moment):
    posterior = next(p for p in POSTERIORS if p.name == "diabetes-bayes_lasso")
    data = posterior.data(load_data(posterior.name))
    fit = qx.infer(posterior.model, data, qx.BregmanLangevin(), num_samples=2000, progress=False)
    draws = {str(name): array.values for name, array in fit.posterior.items()}
    power = 1 if moment == "mean" else 2
    values = reference_values(posterior, draws)
    scores = discrepancies(values, load_reference(posterior.name), moment, power)
    assert np.max(np.abs(list(scores.values()))) < 4.5, scores
    assert fit.verdict.status == "ok", fit.verdict
