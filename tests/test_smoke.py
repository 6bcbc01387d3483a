"""The main path in one file, quick enough for every Python version."""

import arviz_stats
import numpy as np

import quincunx as qx
from tests.scenarios import SCHOOLS, conjugate, conjugate_posterior, eight_schools


def test_infer_summarise_save_and_load(tmp_path):
    fit = qx.infer(eight_schools, SCHOOLS, num_warmup=300, num_samples=300, progress=False)
    assert fit.verdict.status != "failed"
    table = fit.summary(round_to="none")
    assert 2.0 < table.loc["mu", "mean"] < 7.0
    fit.log_likelihood()
    fit.predict()
    fit.prior_predictive(50)
    assert -33 < arviz_stats.loo(fit.tree).elpd < -28
    for suffix in (".nc", ".zarr"):
        fit.save(tmp_path / f"fit{suffix}")
        loaded = qx.load(tmp_path / f"fit{suffix}")
        np.testing.assert_array_equal(loaded.posterior["mu"], fit.posterior["mu"])


def test_conjugate_posterior():
    y = np.array([0.5, 1.5, -0.5])
    fit = qx.infer(conjugate, {"y": y}, num_samples=1000, progress=False)
    mean, _ = conjugate_posterior(y)
    row = fit.summary(round_to="none").loc["mu"]
    assert abs(row["mean"] - mean) < 4.5 * row["mcse_mean"]


def test_structure_and_explanation():
    density = qx.compile(eight_schools, SCHOOLS)
    assert density.dim == 10
    assert "school" in str(qx.explain(eight_schools, SCHOOLS))
    assert qx.compile(conjugate, {"y": np.zeros(2)}).structure.gaussian_prior is not None
