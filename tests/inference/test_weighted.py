"""Weighted draws: their figures, their fit, samplers that are kept, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
from quincunx.inference.diagnostics.importance import (
    Evidence,
    Importance,
    bounds,
    diagnose,
    effective_size,
    equal_weights,
    judge_weights,
    log_evidence,
    pareto_smoothed,
)
from quincunx.inference.diagnostics.lineages import effective_sizes
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


def test_attributes_have_the_numbers_of_batches_and_draws(fit):
    attributes = fit.posterior.attrs
    assert (attributes["num_chains"], attributes["num_samples"]) == (4, 2000)
    assert "num_warmup" not in attributes


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


def test_weights_that_are_the_same_in_a_batch_are_kept(rng):
    """After a last resampling they are; the Pareto law's scale may then not be found."""
    for share in (90, 100, 104, 110, 300):
        log_weight = np.sort(rng.normal(scale=0.3, size=1200))
        log_weight[-10 - share : -10] = log_weight[-11]
        smoothed, k = pareto_smoothed(rng.permutation(log_weight).reshape(4, 300))
        assert np.isfinite(smoothed).all()
        assert np.exp(smoothed).sum() == pytest.approx(1)
        assert not np.isnan(k)


def resampled(rng, batches, n):
    """Particles of N(0, 4.0^2), resampled to N(0, 1) and moved a little: log weights, origins."""
    x = 4.0 * rng.normal(size=(batches, n))
    log_weight = -0.5 * x**2 + 0.5 * (x / 4.0) ** 2 + np.log(4.0)
    total = np.log(np.exp(log_weight).mean(axis=1, keepdims=True))
    origin = np.stack([equal_weights(each, rng) for each in log_weight])
    x = np.take_along_axis(x, origin, axis=1)
    x = 0.95 * x + np.sqrt(1 - 0.95**2) * rng.normal(size=x.shape)
    return x, total + np.zeros_like(x), origin


def test_errors_of_resampled_draws_are_those_of_repetitions(rng):
    """The last weights are even: without lineages each draw would count as one."""
    means, evidences, sizes, errors = [], [], [], []
    for _ in range(400):
        x, log_weight, origin = resampled(rng, 3, 200)
        means.append(x.mean())
        sizes.append(effective_sizes(x[..., None], log_weight, origin)[0].item())
        found = log_evidence(log_weight, origin)
        evidences.append(found.value)
        errors.append(found.error)
        assert effective_size(log_weight) == pytest.approx(600, rel=0.1)
    size = 1 / np.var(means)
    assert size < 450
    assert np.mean(sizes) == pytest.approx(size, rel=0.2)
    assert np.mean(errors) == pytest.approx(np.std(evidences), rel=0.2)


def test_tails_of_resampled_draws_have_sizes_of_their_own(rng):
    low, high, sizes = [], [], []
    for _ in range(200):
        x, log_weight, origin = resampled(rng, 1, 600)
        low.append(np.mean(x < -1.645))
        high.append(np.mean(x < 1.645))
        sizes.append(effective_sizes(x[..., None], log_weight, origin)[1].item())
    assert np.mean(sizes) == pytest.approx(
        0.05 * 0.95 / np.mean([np.var(low), np.var(high)]), rel=0.3
    )


def test_draws_with_origins_of_their_own_are_independent(rng):
    log_weight, origin = rng.normal(size=(4, 500)), np.tile(np.arange(500), (4, 1))
    values = rng.normal(size=(4, 500, 2))
    apart = log_evidence(log_weight, origin), log_evidence(log_weight)
    assert apart[0].value == pytest.approx(apart[1].value)
    assert apart[0].error == pytest.approx(apart[1].error, rel=0.05)
    bulk, tail = effective_sizes(values, log_weight, origin)
    assert bulk == pytest.approx(effective_size(log_weight), rel=0.2)
    assert (tail <= effective_size(log_weight) * (1 + 1e-9)).all()
    constant = effective_sizes(np.ones((4, 500, 1)), log_weight, origin)
    assert constant[0].item() == pytest.approx(effective_size(log_weight))


def test_one_family_is_worth_next_to_nothing(rng):
    """Half of the draws descend from one particle."""
    origin = np.where(np.arange(400) < 200, 0, np.arange(400))[None]
    values = np.where(np.arange(400) < 200, 2.0, rng.normal(size=400))[None, :, None]
    bulk, _ = effective_sizes(values, np.zeros((1, 400)), origin)
    assert bulk.item() < 10
    density = qx.compile(conjugate, {"y": Y})
    fit = qx.Fit.weighted(
        density, values[0], np.zeros(400), method=Fitted(), costs={}, origin=origin[0]
    )
    assert fit.importance.ess == pytest.approx(400)
    assert fit.verdict.status == "failed"
    assert "descend from few particles: for 'mu'" in str(fit.verdict)
    assert fit.summary()["ess_bulk"].item() == fit.convergence.ess_bulk.item() == fit.worth()[0]


def test_infinite_weights_are_told():
    log_weight = np.zeros((1, 100))
    log_weight[0, 3], log_weight[0, 4] = np.nan, np.inf
    found = diagnose(log_weight)
    assert found.nonfinite == 2
    assert found.log_evidence.value == pytest.approx(np.log(0.98))
    assert np.isnan(found.elbo)


def test_figures_of_weights_are_those_of_their_formulas(rng):
    log_weight = 3 + rng.normal(size=(2, 2000))
    weights = np.exp(log_weight)
    found = diagnose(log_weight)
    assert found.ess == pytest.approx(weights.sum() ** 2 / np.sum(weights**2))
    assert found.share == pytest.approx(found.ess / 4000)
    assert found.largest == pytest.approx(np.exp(pareto_smoothed(log_weight)[0]).max())
    assert found.elbo == pytest.approx(log_weight.mean())
    assert found.log_evidence.value == pytest.approx(np.log(weights.mean()))
    dependent = diagnose(log_weight, origin=np.tile(np.arange(2000), (2, 1)))
    assert dependent.log_evidence.value == pytest.approx(np.log(weights.mean()))
    assert np.isnan(dependent.elbo)
    stages = np.stack([log_weight, 4 * log_weight], axis=1)
    assert diagnose(log_weight, stages).pareto_k > found.pareto_k + 0.5
    assert diagnose(4 * log_weight, stages).pareto_k > found.pareto_k + 0.5
    both = bounds(log_weight[0], 1 + log_weight[1])
    error = log_weight.std(axis=1, ddof=1) / 2000**0.5
    assert both.lower == pytest.approx((log_weight[0].mean(), error[0]))
    assert both.upper == pytest.approx((1 + log_weight[1].mean(), error[1]))
    back = weights[1]
    assert both.share == pytest.approx(1 / (back.mean() * np.mean(1 / back)))
    assert bounds(np.zeros(50), np.zeros(50)).share == pytest.approx(1)


@pytest.mark.parametrize(
    ("k", "ess", "size", "status", "word"),
    [
        (0.69, 101, 4000, "ok", ""),
        (0.71, 101, 4000, "suspect", "above 0.70"),
        (1.01, 101, 4000, "failed", "above 1"),
        (np.nan, 101, 4000, "failed", "no finite mean"),
        (0.55, 101, 200, "ok", ""),
        (0.6, 101, 200, "suspect", "above 0.57"),
        (0.1, 99, 4000, "suspect", "99 effective"),
        (0.1, 9, 4000, "failed", "9 effective"),
    ],
)
def test_thresholds_of_weights_are_those_that_are_told(k, ess, size, status, word):
    found = Importance(Evidence(0.0, 0.1), ess, ess / size, k, 0.1, 0.0, 0)
    result = judge_weights(found, size)
    assert result.status == status
    assert word in result.reasons[0] or not word


def test_resampling_counts_are_within_one_of_their_means(rng):
    log_weight = rng.normal(size=200)
    weights = np.exp(log_weight) / np.exp(log_weight).sum()
    counts = np.bincount(equal_weights(log_weight, rng), minlength=200)
    assert (np.abs(counts - 200 * weights) < 1).all()


def test_resampled_draws_are_in_random_order(rng):
    """Copies of a draw that stood together would pass for a chain that sticks."""
    chosen = equal_weights(rng.normal(size=1000), rng)
    assert abs(np.corrcoef(chosen[1:], chosen[:-1])[0, 1]) < 0.15


def test_one_function_makes_the_fit_of_any_weighted_draws():
    density = qx.compile(conjugate, {"y": Y})
    z = np.linspace(-1, 3, 50)[:, None]
    fit = qx.Fit.weighted(density, z, np.zeros(50), method=Fitted(), costs={"gradients": 0})
    assert fit.posterior["mu"].shape == (1, 50)
    assert fit.importance.ess == pytest.approx(50)
