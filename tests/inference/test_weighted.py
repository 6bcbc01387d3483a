"""Weighted draws: their figures, their fit, samplers that are kept, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
from quincunx.inference.diagnostics.importance import (
    diagnose,
    equal_weights,
    log_evidence,
    pareto_smoothed,
)
from tests.scenarios import conjugate, conjugate_posterior

Y = np.array([0.3, 1.9, 2.2, -0.4, 1.1])


class Normal(qx.Sampler):
    """Independent normal draws."""

    mean: jax.Array
    sd: jax.Array

    def draw(self, density, key, n):
        noise = jax.random.normal(key, (n, density.dim))
        z = self.mean[None] + self.sd * noise
        log_q = jnp.sum(-0.5 * noise**2 - jnp.log(self.sd) - 0.5 * jnp.log(2 * jnp.pi), axis=1)
        return qx.Weighted(z, jax.vmap(density.log_density)(z) - log_q)


class Fitted(qx.Approximation):
    """A normal about the mean of the observations."""

    name = "fitted"
    summary = "For tests."
    citation = ""
    sd: float = 1.0

    def fit(self, density, key, budget):
        del key
        budget.count(gradients=3, evaluations=5)
        budget.note(1, 1)
        return self.skeleton(density)

    def skeleton(self, density):
        return Normal(jnp.full(density.dim, Y.mean()), jnp.asarray(self.sd))


def evidence(y):
    """Exact log evidence of `conjugate`."""
    covariance = 1.5**2 * np.eye(len(y)) + 2.0**2
    rest = y - 1.0
    _, determinant = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (determinant + rest @ np.linalg.solve(covariance, rest))


@pytest.fixture(scope="module")
def fit():
    return qx.infer(conjugate, {"y": Y}, Fitted(), num_samples=2000, progress=False)


def test_evidence_is_that_of_the_model(fit):
    found = fit.log_evidence
    assert 0 < found.error < 0.02
    assert abs(found.value - evidence(Y)) < 4 * found.error


def test_equal_weight_draws_have_the_posterior_moments(fit):
    mean, sd = conjugate_posterior(Y)
    draws = fit.posterior["mu"].values
    assert draws.shape == (4, 2000)
    error = sd / fit.importance.ess**0.5
    assert abs(draws.mean() - mean) < 5 * error
    assert abs(draws.std() - sd) < 5 * error


def test_raw_draws_and_weights_are_kept(fit):
    raw = fit.tree["weighted_posterior"]["mu"].values
    assert abs(raw.mean() - Y.mean()) < 0.05
    assert abs(raw.std() - 1.0) < 0.05
    stats = fit.tree["weighted_sample_stats"]
    weights = np.exp(stats["log_weight_smoothed"].values)
    assert weights.sum() == pytest.approx(1)
    mean, sd = conjugate_posterior(Y)
    assert abs(np.sum(weights * raw) - mean) < 5 * sd / fit.importance.ess**0.5
    chosen = fit.tree["sample_stats"]["lp"].values
    assert np.isin(chosen, stats["lp"].values).all()


def test_r_hat_is_not_applicable(fit):
    assert np.isnan(fit.convergence.r_hat).all()
    table = fit.summary()
    assert np.isnan(table["r_hat"].astype(float)).all()
    assert "R-hat" not in str(fit.verdict)


def test_verdict_has_the_coverage_caveat(fit):
    assert fit.verdict.status == "ok"
    assert "Modes may be missing" in str(fit.verdict)
    assert fit.kind is qx.Kind.WEIGHTED


def test_narrow_proposal_shows_in_pareto_k():
    fit = qx.infer(conjugate, {"y": Y}, Fitted(sd=0.2), progress=False)
    assert fit.importance.pareto_k > 0.7
    assert fit.verdict.status != "ok"
    assert "Pareto k" in str(fit.verdict)


def test_fit_survives_saving(fit, tmp_path):
    fit.save(tmp_path / "fit.nc")
    again = qx.load(tmp_path / "fit.nc")
    assert again.log_evidence == fit.log_evidence
    assert again.verdict == fit.verdict


def test_sampler_survives_saving(fit, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("quincunx").inference.registry._REGISTRY, "fitted", Fitted)
    path = tmp_path / "sampler.qx"
    fit.sampler.save(path)
    again = qx.load_sampler(path, conjugate, {"y": Y})
    ours, theirs = fit.sampler.draw(100, key=3), again.draw(100, key=3)
    assert np.array_equal(ours.posterior["mu"], theirs.posterior["mu"])
    assert ours.log_evidence == theirs.log_evidence
    stale = qx.load_sampler(path, conjugate, {"y": Y + 6}).draw(1000)
    assert stale.importance.share < 0.1 < fit.importance.share
    with pytest.raises(qx.ModelError, match="latent sites"):
        qx.load_sampler(path, qx.from_log_density(lambda x: -(x**2), 0.0))


@pytest.mark.parametrize(
    "setting",
    [{"num_warmup": 10}, {"thinning": 2}, {"init": "prior"}, {"store": "a.zarr"}],
)
def test_settings_of_chains_are_refused(setting):
    with pytest.raises(qx.MethodError, match=next(iter(setting))):
        qx.infer(conjugate, {"y": Y}, Fitted(), progress=False, **setting)


def test_target_of_chains_is_refused():
    with pytest.raises(qx.MethodError, match="R-hat"):
        qx.infer(conjugate, {"y": Y}, Fitted(), until=qx.Until(r_hat=1.01), progress=False)


def test_tempered_sampler_has_the_evidence_of_the_power():
    fit = qx.infer(conjugate, {"y": Y}, Fitted(), num_samples=2000, progress=False)
    half = fit.sampler.tempered(0.5).draw(8000).log_evidence
    n, noise, scale = len(Y), 1.5, 2.0
    precision = 1 / scale**2 + 0.5 * n / noise**2
    mean = (1.0 / scale**2 + 0.5 * Y.sum() / noise**2) / precision
    quadratic = 1 / scale**2 + 0.5 * (Y**2).sum() / noise**2 - precision * mean**2
    exact = -0.5 * quadratic - 0.5 * np.log(precision) - np.log(scale)
    exact -= 0.25 * n * np.log(2 * np.pi * noise**2)
    assert abs(half.value - exact) < 4 * half.error


def test_adapted_sampler_is_for_the_other_data():
    fit = qx.infer(conjugate, {"y": Y}, Fitted(), progress=False)
    other = fit.sampler.adapted({"y": Y + 0.3}).draw(4000).log_evidence
    assert abs(other.value - evidence(Y + 0.3)) < 4 * other.error


def test_weighted_draws_cannot_be_extended(fit):
    with pytest.raises(qx.QuincunxError, match="sampler.draw"):
        fit.extend(3000)


def test_chains_have_no_evidence(schools):
    with pytest.raises(qx.QuincunxError, match="AnnealedSMC"):
        schools.log_evidence  # noqa: B018


def test_pareto_k_of_known_tails(rng):
    for k in (0.2, 0.5, 0.9):
        weights = rng.pareto(1 / k, 100_000) + 1
        assert pareto_smoothed(np.log(weights))[1] == pytest.approx(k, abs=0.1)


def test_pareto_smoothing_changes_the_tail_alone(rng):
    log_weight = np.sort(rng.normal(scale=2, size=1000))
    smoothed, _ = pareto_smoothed(log_weight)
    assert np.exp(smoothed).sum() == pytest.approx(1)
    shift = smoothed - log_weight
    assert shift[:900] == pytest.approx(shift[0])
    assert (np.diff(smoothed) >= 0).all()
    assert np.ptp(shift[-90:]) > 0


def test_dependent_draws_take_their_error_from_batches(rng):
    batches = np.log(rng.lognormal(size=(8, 1))) + np.zeros((8, 500))
    means = np.exp(batches[:, 0])
    expected = means.std(ddof=1) / 8**0.5 / means.mean()
    assert log_evidence(batches, independent=False).error == pytest.approx(expected)
    assert log_evidence(batches).error < expected / 10


def test_infinite_weights_are_told():
    log_weight = np.zeros((1, 100))
    log_weight[0, 3] = np.nan
    found = diagnose(log_weight)
    assert found.nonfinite == 1
    assert found.log_evidence.value == pytest.approx(np.log(0.99))


def test_resampling_counts_are_within_one_of_their_means(rng):
    log_weight = rng.normal(size=200)
    weights = np.exp(log_weight) / np.exp(log_weight).sum()
    counts = np.bincount(equal_weights(log_weight, rng), minlength=200)
    assert (np.abs(counts - 200 * weights) < 1).all()


def test_one_function_makes_the_fit_of_any_weighted_draws():
    density = qx.compile(conjugate, {"y": Y})
    z = np.linspace(-1, 3, 50)[:, None]
    fit = qx.Fit.weighted(density, z, np.zeros(50), method=Fitted(), costs={"gradients": 0})
    assert fit.posterior["mu"].shape == (1, 50)
    assert fit.importance.ess == pytest.approx(50)


def test_elements_that_the_support_holds_are_not_free(rng):
    density = qx.compile(lambda: qx.sample("L", qx.distributions.LKJCholesky(2, 2.0)))
    z = rng.normal(size=(20, density.dim))
    fit = qx.Fit.weighted(density, z, np.zeros(20), method=Fitted(), costs={})
    assert fit.free().tolist() == [False, False, True, True]
