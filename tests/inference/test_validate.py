"""Calibration passes exact methods and rejects wrong ones that marginal ranks pass."""

import numpy as np
import pytest
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.diagnostics.calibration import pointers, ranks, uniformity
from quincunx.inference.validate import COVERAGE, JOINT, LIKELIHOOD
from tests.inference.approximate import Gaussian

X = np.random.default_rng(3).normal(size=(20, 2))
FAST = {"simulations": 300, "num_draws": 39, "num_warmup": 0, "thinning": 1}


@qx.model
def linear(X, y=None):
    w = qx.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Normal(x @ w, 1.5), obs=t)


@qx.model
def counts(y=None):
    rate = qx.sample("rate", dist.Gamma(3, 1))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Poisson(rate), obs=t)


@qx.model
def spread(y=None):
    mean = qx.sample("mean", dist.Normal(0, 1))
    sd = qx.sample("sd", dist.LogNormal(0, 0.5))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mean, sd), obs=t)


LINEAR = {"X": X, "y": np.zeros(20)}


def validated(method, **settings):
    return qx.validate(linear, method, LINEAR, **{**FAST, **settings})


@pytest.fixture(scope="module")
def right():
    return validated(Gaussian())


def test_an_exact_method_passes(right):
    assert right.verdict.status == "ok", right
    assert list(right.table.index) == ["w[0]", "w[1]", LIKELIHOOD, JOINT, COVERAGE]
    assert right.ranks.shape == (300, 5)
    assert right.ranks.max() == 39
    assert right.ranks.min() == 0
    expected = np.minimum(1.0, len(right.table) * right.table["p_value"])
    np.testing.assert_allclose(right.table["adjusted"], expected)


def test_the_prior_passes_marginal_ranks_alone():
    found = validated(Gaussian(rows=0))
    assert found.verdict.status == "failed"
    assert (found.table["p_value"][["w[0]", "w[1]"]] > 1e-3).all()
    assert found.table["p_value"][LIKELIHOOD] < 1e-10
    assert found.table["p_value"][COVERAGE] < 1e-10


def test_half_the_data_pass_marginal_ranks_alone():
    found = validated(Gaussian(rows=10))
    assert found.verdict.status == "failed"
    assert (found.table["p_value"][["w[0]", "w[1]"]] > 1e-3).all()
    assert found.table["p_value"][[LIKELIHOOD, COVERAGE]].min() < 1e-3


def test_sds_a_fifth_too_wide_are_rejected():
    found = validated(Gaussian(factor=1.2), simulations=500, num_draws=99)
    assert found.verdict.status == "failed"
    assert LIKELIHOOD in str(found) or JOINT in str(found)


def test_ranks_are_plotted_against_bands(right):
    figure = right.plot(backend="matplotlib").viz["figure"].item()
    assert len(figure.axes) >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "data"),
    [(linear, LINEAR), (counts, {"y": np.zeros(10, int)}), (spread, {"y": np.zeros(12)})],
    ids=["linear", "counts", "spread"],
)
def test_nuts_passes(model, data):
    found = qx.validate(model, qx.NUTS(target_accept=0.9), data, simulations=500, thinning=5)
    print(found)
    assert found.verdict.status == "ok", found


def test_nuts_on_many_data_sets_at_once():
    settings = {"simulations": 60, "num_draws": 19, "num_warmup": 150}
    found = qx.validate(spread, "nuts", {"y": np.zeros(12)}, **settings)
    assert found.verdict.status != "failed", found


@pytest.mark.slow
def test_methods_that_prepare_run_one_by_one():
    settings = {"simulations": 20, "num_draws": 9, "num_warmup": 50}
    found = qx.validate(linear, qx.SGLD(batch_size=10), LINEAR, **settings)
    assert found.ranks.shape == (20, 5)


def test_dependent_draws_are_told():
    settings = {"simulations": 40, "num_draws": 19, "num_warmup": 20, "thinning": 1}
    found = qx.validate(spread, "hit_and_run_slice", {"y": np.zeros(12)}, **settings)
    assert any("thinning" in advice for advice in found.verdict.advice), found


def test_ranks_of_ties_are_broken_at_random(rng):
    found = ranks(np.zeros((4000, 1)), np.zeros((4000, 9, 1)), rng)
    assert stats.chisquare(np.bincount(found[:, 0], minlength=10)).pvalue > 1e-4


def test_uniformity_holds_its_level(rng):
    found = uniformity(rng.integers(0, 100, size=(300, 400)), 99)
    assert np.mean(found < 0.05) == pytest.approx(0.05, abs=0.035)
    assert uniformity(rng.integers(0, 80, size=(300, 1)), 99)[0] < 1e-6
    uneven = uniformity(rng.integers(0, 13, size=(300, 400)), 12)  # ten bins of one or two
    assert np.mean(uneven < 0.05) == pytest.approx(0.05, abs=0.035)


def test_points_follow_squares_of_the_data(rng):
    """As those of a scale do."""
    y = rng.normal(size=(200, 3))
    scale = np.sum(y**2, axis=1, keepdims=True)
    assert np.corrcoef(pointers(scale, y)[:, 0], scale[:, 0])[0, 1] > 0.9


def test_points_depend_on_the_data_and_on_no_value_of_their_own(rng):
    theta = rng.normal(size=(100, 2))
    y = theta @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(100, 5))
    found = pointers(theta, y)
    assert np.corrcoef(found[:, 0], theta[:, 0])[0, 1] > 0.95
    other = theta.copy()
    other[0] += 100.0
    np.testing.assert_array_equal(pointers(other, y)[0], found[0])


def test_errors_say_what_cannot_be_simulated():
    with pytest.raises(qx.ModelError, match="observes nothing"):
        qx.validate(linear, "nuts", {"X": X})
    with pytest.raises(qx.MethodError, match="at least 20"):
        qx.validate(linear, "nuts", LINEAR, simulations=3)

    @qx.model
    def shifted(y):
        m = qx.sample("m", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(m, 1).expand([3]).to_event(1), obs=y + 1)

    with pytest.raises(qx.ModelError, match="not an argument"):
        qx.validate(shifted, "nuts", {"y": np.zeros(3)})
