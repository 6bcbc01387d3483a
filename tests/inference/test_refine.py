"""Stein control variates: exact where they must be, smaller errors that are told rightly."""

import jax
import numpy as np
import pytest
import xarray as xr

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.refine import _Columns, _rows
from tests.inference.approximate import Gaussian
from tests.scenarios import SCHOOLS, eight_schools, logistic, logistic_data

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def gaussian():
    """Independent draws, few and far too wide, on a Gaussian posterior."""
    data = {"y": np.array([1.0, 2.0, 0.5])}
    fit = qx.infer(two, data, Gaussian(factor=1.7), num_warmup=0, num_samples=100, **QUIET)
    return data, fit


@qx.model
def two(y=None):
    a = qx.sample("a", dist.Normal(0, 2))
    b = qx.sample("b", dist.Normal(a, 1))
    qx.sample("y", dist.Normal(a + b, 1.5).expand([3]).to_event(1), obs=y)


def exact(data):
    """Mean and covariance of (a, b)."""
    precision = np.array([[0.25 + 1, -1], [-1, 1]]) + len(data["y"]) / 1.5**2 * np.ones((2, 2))
    covariance = np.linalg.inv(precision)
    return covariance @ np.full(2, data["y"].sum() / 1.5**2), covariance


def test_quadratics_of_a_gaussian_are_exact_whatever_drew_the_points(gaussian):
    data, fit = gaussian
    mean, covariance = exact(data)
    fns = {"a": lambda v: v["a"], "square": lambda v: v["b"] ** 2, "ab": lambda v: v["a"] * v["b"]}
    before = fit.posterior.copy(deep=True)
    found = qx.refine(fit, fns, order=2).table
    second = covariance + np.outer(mean, mean)
    np.testing.assert_allclose(found["refined"], [mean[0], second[1, 1], second[0, 1]], rtol=1e-9)
    assert not np.allclose(found["mean"].loc["square"], second[1, 1], rtol=0.1)
    assert (found["refined_error"] < 1e-8).all()
    assert fit.posterior.identical(before)


def test_too_few_draws_are_left_as_they_are(gaussian):
    data, fit = gaussian
    short = qx.infer(two, data, Gaussian(), num_warmup=0, num_samples=6, **QUIET)
    found = qx.refine(short).table
    assert (found["order"] == "0").all()
    assert found["note"].str.contains("too few").all()
    np.testing.assert_array_equal(found["mean"], found["refined"])


def test_what_control_variates_cannot_help_is_left_alone(schools):
    """An odd step function far from polynomials, beside a parameter that is helped."""
    fns = {"odd": lambda v: jax.numpy.sign(jax.numpy.sin(40 * v["mu"])), "mu": lambda v: v["mu"]}
    found = qx.refine(schools, fns).table
    assert found["order"]["odd"] == "0"
    assert found["reduction"]["odd"] == 1
    assert found["reduction"]["mu"] > 1
    assert "mu" in str(qx.refine(schools, fns))


def test_errors_name_what_to_do(schools, tmp_path):
    with pytest.raises(qx.MethodError, match="order"):
        qx.refine(schools, order=3)
    schools.save(tmp_path / "fit.nc")
    with pytest.raises(qx.QuincunxError, match="qx.load"):
        qx.refine(qx.load(tmp_path / "fit.nc"))
    assert len(qx.refine(qx.load(tmp_path / "fit.nc", eight_schools, SCHOOLS)).table) > 8


def refined(f, z, ess=None):
    """Tables of the draws of one chain, quantities `(n, count)`, columns `(n, k)`."""
    candidates = [_Columns("0", np.zeros((len(z), 0))), _Columns("2", z)]
    return _rows(f[None], candidates, ess, float(len(z)))


def test_errors_allow_for_the_coefficients():
    """Five columns and a hundred draws: without that, errors would be a twentieth too small."""
    rng = np.random.default_rng(4)
    right = np.sqrt(98 / 93) / 10  # one over the root of n, and the errors of the coefficients
    told, found = [], []
    for _ in range(20):
        z = rng.normal(size=(100, 5))
        f = z @ rng.uniform(1, 2, size=(5, 200)) + rng.normal(size=(100, 200))
        rows = refined(f, z, ess=100.0)
        assert all(row["order"] == "2" for row in rows)
        told += [row["refined_error"] for row in rows]
        found += [row["refined"] for row in rows]
    assert np.std(found) == pytest.approx(right, rel=0.04)
    assert np.mean(told) == pytest.approx(right, rel=0.015)
    gain = [(row["mean_error"] / row["refined_error"]) ** 2 for row in rows]
    np.testing.assert_allclose([row["reduction"] for row in rows], gain)


def test_slow_series_that_have_nothing_in_common_do_not_help():
    """Neighbours of a slow series would tell it from any other, so blocks are left out whole."""
    rng = np.random.default_rng(4)
    walks = rng.normal(size=(1000, 24))
    for t in range(1, 1000):
        walks[t] = 0.98 * walks[t - 1] + np.sqrt(1 - 0.98**2) * walks[t]
    rows = refined(walks[:, 4:], walks[:, :4])
    assert [row["order"] for row in rows].count("0") >= 16


def test_errors_of_several_chains_are_by_how_slow_each_is():
    """What is left has correlation 0.9 along each of four chains."""
    rng = np.random.default_rng(4)
    z, rest = rng.normal(size=(4, 1000, 2)), rng.normal(size=(4, 1000, 8))
    for t in range(1, 1000):
        rest[:, t] = 0.9 * rest[:, t - 1] + np.sqrt(1 - 0.81) * rest[:, t]
    columns = [_Columns("0", np.zeros((4000, 0))), _Columns("2", z.reshape(4000, 2))]
    rows = _rows(rest + 2 * z.sum(axis=2, keepdims=True), columns, None, 4000.0)
    assert all(row["order"] == "2" for row in rows)
    errors = [row["refined_error"] for row in rows]
    assert np.mean(errors) == pytest.approx(np.sqrt(19 / 4000), rel=0.2)


def test_weighted_draws_are_worth_what_their_weights_say(gaussian):
    """Four hundred draws, and some thirty effective ones."""
    density = qx.compile(two, gaussian[0])
    z = np.random.default_rng(1).normal(size=(400, 2))
    log_weight = np.where(np.arange(400) < 30, 0.0, -6.0)
    fit = qx.Fit.weighted(density, z, log_weight, method=Gaussian(), costs={})
    found = qx.refine(fit).table
    assert fit.importance.ess == pytest.approx(31.8, abs=0.1)
    assert (found["order"] == "0").all()
    assert found["note"].str.contains("32").all()
    expected = fit.posterior["a"].values.std() / fit.importance.ess**0.5
    assert found["mean_error"]["a"] == pytest.approx(expected)


def test_errors_are_no_smaller_than_those_of_independent_draws():
    """Residuals of alternating sign, whose mean seems to be known far better."""
    rng = np.random.default_rng(4)
    z = rng.normal(size=(400, 2))
    rest = np.abs(rng.normal(size=(400, 1))) * (-1.0) ** np.arange(400)[:, None]
    row = refined(z @ np.ones((2, 1)) + rest, z)[0]
    assert row["order"] == "2"
    assert row["refined_error"] > rest.std() / 20


REPETITIONS = 200


def part(fit, index):
    """Four of a fit's chains as a fit of their own."""
    tree = fit.tree.copy()
    for group in ("posterior", "sample_stats"):
        chains = fit.tree[group].to_dataset().isel(chain=slice(4 * index, 4 * index + 4))
        tree[group] = xr.DataTree(chains)
    return qx.Fit(tree, method=fit.method, costs=fit.costs, density=fit.density)


@pytest.fixture(scope="module")
def repeated():
    """Plain and refined means of a logistic regression, 1000 draws of NUTS, many times."""
    data = logistic_data(np.random.default_rng(5), rows=100, features=3)
    settings = {"num_warmup": 300, "progress": False}
    truth = qx.refine(qx.infer(logistic, data, num_samples=20_000, key=999, **settings)).table
    many = {"num_chains": 4 * REPETITIONS, "num_samples": 250}
    fit = qx.infer(logistic, data, key=1, **many, **settings)
    return truth["refined"], [qx.refine(part(fit, i)).table for i in range(REPETITIONS)]


@pytest.mark.slow
def test_mean_squared_errors_are_thirty_times_smaller(repeated):
    truth, tables = repeated
    plain = np.mean([(t["mean"] - truth) ** 2 for t in tables], axis=0)
    refined = np.mean([(t["refined"] - truth) ** 2 for t in tables], axis=0)
    print("mean squared errors, plain over refined:", plain / refined)
    assert (plain / refined > 30).all()


@pytest.mark.slow
def test_standard_errors_cover(repeated):
    """Errors a tenth too small or a quarter too large would be seen."""
    truth, tables = repeated
    z = np.array([(t["refined"] - truth) / t["refined_error"] for t in tables])
    covered = np.mean(np.abs(z) < 1.96)
    size = np.sqrt(np.mean(z**2))
    print(f"coverage of nominal 95 %: {covered:.3f}; errors over those told: {size:.3f}")
    assert 0.925 < covered < 0.985
    assert 0.85 < size < 1.08
