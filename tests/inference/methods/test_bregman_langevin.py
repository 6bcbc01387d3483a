"""Mirror samplers through `infer`: known moments, supports, settings, bias report, resumed runs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine import QuincunxError
from quincunx.inference.diagnostics.convergence import convergence
from quincunx.inference.mode import find_mode

QUIET = {"progress": False}
DATA = {"y": np.array([3.0, 0.0, 1.0, 2.0])}


def standard_error(values):
    """Monte Carlo standard error of a mean of `(chain, draw)` values."""
    return values.std() / np.sqrt(convergence({"v": values}).ess_bulk[0])


def check_mean(values, expected):
    assert abs(values.mean() - expected) < 4.5 * standard_error(values)


@qx.model
def supports(y):
    """Laws with known moments on each kind of support; counts that move one of them."""
    qx.sample("kinked", dist.Laplace(0.5, 2.0))
    qx.sample("flat", dist.Uniform(-1.0, 3.0))
    qx.sample("simplex", dist.Dirichlet(jnp.array([2.0, 1.0, 3.0])))
    qx.sample("below", dist.TruncatedNormal(0.0, 1.0, high=0.5))
    qx.sample("group", dist.GroupLaplace(jnp.zeros(2), 0.5))
    rate = qx.sample("rate", dist.Gamma(2.0, 1.0))
    with qx.plate("row", y) as count:
        qx.sample("y", dist.Poisson(rate), obs=count)


@pytest.fixture(scope="module")
def fit():
    return qx.infer(supports, DATA, qx.BregmanLangevin(), num_samples=1500, **QUIET)


def test_moments_on_every_support(fit):
    draws = {str(name): array.values for name, array in fit.posterior.items()}
    check_mean(draws["kinked"], 0.5)
    check_mean(np.abs(draws["kinked"] - 0.5), 2.0)
    check_mean(draws["flat"], 1.0)
    check_mean((draws["flat"] - 1.0) ** 2, 4.0**2 / 12)
    for index, share in enumerate((2 / 6, 1 / 6, 3 / 6)):
        x = draws["simplex"][..., index]
        check_mean(x, share)
        check_mean((x - share) ** 2, share * (1 - share) / 7)
    cut = stats.truncnorm(-np.inf, 0.5)
    check_mean(draws["below"], cut.mean())
    check_mean((draws["below"] - cut.mean()) ** 2, cut.var())
    check_mean(np.linalg.norm(draws["group"], axis=-1), 2 * 0.5)
    check_mean(draws["rate"], (2 + 6) / (1 + 4))
    check_mean((draws["rate"] - 8 / 5) ** 2, 8 / 25)
    assert fit.verdict.status == "ok", fit.verdict
    assert fit.kind is qx.Kind.EXACT


def test_draws_respect_every_support(fit):
    draws = {str(name): array.values for name, array in fit.posterior.items()}
    assert draws["flat"].min() >= -1.0
    assert draws["flat"].max() <= 3.0
    assert draws["below"].max() <= 0.5
    assert draws["rate"].min() > 0
    assert np.all(dist.constraints.simplex(draws["simplex"]))
    np.testing.assert_allclose(draws["simplex"].sum(-1), 1.0, atol=1e-12)


def test_costs_and_statistics(fit):
    found = fit.tree["sample_stats"]
    steps = int(found["n_steps"][0, 0])
    assert np.all(found["n_steps"].values == steps)
    np.testing.assert_array_equal(found["gradients"].values[:, 1:], steps)
    assert np.all(found["gradients"].values[:, 0] == steps + 1)  # with the tuning that was frozen
    assert float(found["acceptance_rate"].mean()) == pytest.approx(0.6, abs=0.1)
    assert np.all(found["dual_overflow"].values == 0)
    assert fit.log_likelihood()["y"].shape == (4, 1500, 4)
    native, latent = fit.density, {n: fit.posterior[n].values[0, 7] for n in fit.posterior}
    value = native.log_density(native.unconstrain(latent))
    np.testing.assert_allclose(found["lp"].values[0, 7], value, rtol=1e-9)
    with pytest.raises(QuincunxError, match="exact"):
        _ = fit.bias


@pytest.mark.slow
def test_runs_go_on_from_a_checkpoint_and_start_where_they_are_told(tmp_path):
    settings = {"num_warmup": 60, "num_chains": 2, "key": 3, **QUIET}
    method = qx.BregmanLangevin(steps=3)
    whole = qx.infer(supports, DATA, method, num_samples=40, **settings)
    qx.infer(supports, DATA, method, num_samples=15, checkpoint=tmp_path / "run", **settings)
    resumed = qx.infer(
        supports, DATA, method, num_samples=40, checkpoint=tmp_path / "run", resume=True, **settings
    )
    for name in whole.posterior:
        np.testing.assert_array_equal(whole.posterior[name], resumed.posterior[name])
    start = {"rate": 40.0, "simplex": np.array([0.98, 0.01, 0.01])}
    tiny = qx.BregmanLangevin(steps=1, step_size=1e-12)
    options = {**settings, "num_warmup": 0, "num_samples": 15, "init": start}
    there = qx.infer(supports, DATA, tiny, **options)
    np.testing.assert_allclose(there.posterior["rate"], 40.0, atol=1e-3)
    np.testing.assert_allclose(there.posterior["simplex"][..., 0], 0.98, atol=1e-3)


@qx.model
def pulled(y):
    x = qx.sample("x", dist.Laplace(0.0, 0.5).expand([3]).to_event(1))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(x[None, :], 1.0).to_event(1), obs=t)


Y = np.random.default_rng(0).normal(size=(6, 3)) * 0.5


def test_without_correction_the_fit_is_biased_and_says_so():
    coarse = qx.BregmanLangevin(adjust=False, step_size=0.4, steps=4)
    fit = qx.infer(pulled, {"y": Y}, coarse, num_samples=1500, num_warmup=200, **QUIET)
    assert fit.kind is qx.Kind.BIASED
    assert fit.tree["posterior"].attrs["kind"] == "BIASED"
    assert fit.verdict.status in ("suspect", "failed")
    assert any("Step halving" in reason for reason in fit.verdict.reasons), fit.verdict
    bias = fit.bias
    assert bias.attrs["noise_bias"] == 0
    grid = np.linspace(-6, 6, 6001)
    weight = np.exp(-2 * np.abs(grid)[:, None] - 3 * (grid[:, None] - Y.mean(0)) ** 2)
    weight /= weight.sum(0)
    sd = np.sqrt(np.sum(weight * (grid[:, None] - np.sum(weight * grid[:, None], 0)) ** 2, 0))
    off = fit.posterior["x"].std(("chain", "draw")).values / sd - 1
    assert off.min() > 0.1
    np.testing.assert_allclose(bias["sd_bias"], off, atol=0.15)


@pytest.mark.slow
def test_without_correction_the_tuned_steps_are_small_enough():
    method = qx.BregmanLangevin(adjust=False)
    fit = qx.infer(pulled, {"y": Y}, method, num_samples=2000, **QUIET)
    assert fit.bias.attrs["acceptance"] > 0.9
    assert fit.bias.attrs["ksd"] < 3 * fit.bias.attrs["ksd_of_exact_draws"]
    assert fit.verdict.status == "ok", fit.verdict


@pytest.mark.slow
def test_a_dual_that_leaves_its_domain_is_counted_and_told():
    @qx.model
    def half():
        qx.sample("x", dist.HalfNormal(1.0).expand([3]).to_event(1))

    method = qx.BregmanLangevin(geometry="burg", step_size=0.4, steps=4, adjust=False)
    fit = qx.infer(half, None, method, num_warmup=50, num_samples=200, num_chains=2, **QUIET)
    assert float(fit.tree["sample_stats"]["dual_overflow"].mean()) > 0.05
    assert any("dual point" in reason for reason in fit.verdict.reasons), fit.verdict
    assert any("left out" in reason for reason in fit.verdict.reasons), fit.verdict
    assert fit.posterior["x"].values.min() > 0
    assert np.isfinite(fit.posterior["x"].values).all()
    density, x = fit.density, jnp.ones(3)
    for adjust in (True, False):
        settings = {"geometry": "boltzmann_shannon", "step_size": 1e6, "steps": 3}
        far = qx.BregmanLangevin(**settings, adjust=adjust)
        state = far.init(density, x, jax.random.key(0))
        moved, info = eqx.filter_jit(far.step)(density, state, jax.random.key(1))
        np.testing.assert_array_equal(far.position(moved), x)
        assert info.extra["dual_overflow"] == 1
        assert bool(info.diverging) is not adjust
        assert info.acceptance == 0


def test_plain_geometry_without_correction_is_the_published_step():
    """MYULA: one step, by hand, with the same normal variables; draws are put back on the box."""

    @qx.model
    def both():
        qx.sample("x", dist.Laplace(0.0, 0.5).expand([2]).to_event(1))
        qx.sample("u", dist.Uniform(0.0, 1.0))

    eps, lam = 0.05, 0.2
    method = qx.BregmanLangevin(
        geometry="euclidean", adjust=False, step_size=eps, smoothing=lam, steps=1
    )
    density = method.target(qx.compile(both))
    x, key = jnp.array([0.8, -0.1, 0.97]), jax.random.key(4)
    step = eqx.filter_jit(lambda d: method.step(d, method.init(d, x, key), key))
    state, info = step(density)
    xi = jax.random.normal(jax.random.split(jax.random.fold_in(key, 0))[0], (3,))
    prox = np.array([0.8 - lam / 0.5, 0.0, 0.97])
    expected = x - eps / lam * (x - prox) + np.sqrt(2 * eps) * xi
    np.testing.assert_allclose(state.point.x, expected, rtol=1e-9)
    assert info.gradients == 1
    position = method.position(state)
    np.testing.assert_allclose(position, expected.at[2].set(np.clip(expected[2], 0, 1)), rtol=1e-9)


def test_proximal_mala_steps_by_the_prox():
    @qx.model
    def sparse():
        x = qx.sample("x", dist.Laplace(0.0, 0.5).expand([2]).to_event(1))
        qx.factor("centre", -0.5 * jnp.sum((x - 1.0) ** 2))
        qx.sample("v", dist.Uniform(0.0, 1.0))
        qx.sample("g", dist.GroupLaplace(jnp.zeros(2), 0.25))

    method, x = qx.ProximalMALA(step_size=0.1), jnp.array([0.3, -0.2, 0.5, 0.9, -0.4])
    density = method.target(qx.compile(sparse))
    drift = method.init(density, x, jax.random.key(0)).point.drift
    forward = np.array([0.3 - 0.1 * (0.3 - 1.0), -0.2 - 0.1 * (-0.2 - 1.0)])
    shrunk = np.sign(forward) * np.maximum(np.abs(forward) - 0.1 / 0.5, 0)
    size = np.hypot(0.9, 0.4)
    group = np.array([0.9, -0.4]) * (1 - 0.1 / 0.25 / size)
    np.testing.assert_allclose(drift, np.concatenate([shrunk, [0.5], group]) - x, atol=1e-12)


@qx.model
def penalised():
    x = qx.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    soft = lambda v, step: jnp.sign(v) * jnp.maximum(jnp.abs(v) - 3 * step, 0)  # noqa: E731
    qx.factor("l1", -3.0 * jnp.sum(jnp.abs(x)), prox={"x": soft})


def test_the_operator_of_a_factor_makes_the_drift():
    x, key = jnp.array([0.8, -0.05]), jax.random.key(0)
    density = qx.compile(penalised).native
    mala = qx.ProximalMALA(step_size=0.1).init(density, x, key)
    forward = np.asarray(x) * 0.9
    shrunk = np.sign(forward) * np.maximum(np.abs(forward) - 0.3, 0)
    np.testing.assert_allclose(mala.point.drift, shrunk - x, atol=1e-12)
    for geometry in ("auto", "euclidean"):
        method = qx.BregmanLangevin(step_size=0.1, smoothing=0.2, geometry=geometry)
        state = method.init(density, x, key)
        moved = np.array([0.8 - 0.6, 0.0])
        np.testing.assert_allclose(state.point.drift, -0.1 * (x + (x - moved) / 0.2), atol=1e-12)


def test_a_factor_with_its_operator_keeps_the_law():
    fit = qx.infer(penalised, None, qx.BregmanLangevin(), **QUIET)
    grid = np.linspace(-8, 8, 4001)
    weight = np.exp(-0.5 * grid**2 - 3 * np.abs(grid))
    check_mean(
        np.abs(fit.posterior["x"].values[..., 0]), np.sum(weight * np.abs(grid)) / np.sum(weight)
    )


def test_the_mode_of_a_lasso_is_the_solution_of_its_equations():
    """X orthogonal: each weight is soft-thresholded, and the scale is that of its curvature."""
    y, s = np.array([2.0, -0.3, 0.9, 0.1]), 0.5

    @qx.model
    def lasso(y):
        beta = qx.sample("beta", dist.Laplace(0.0, 1.0).expand([4]).to_event(1))
        qx.sample("y", dist.Normal(beta, s).to_event(1), obs=y)

    density = qx.compile(lasso, {"y": y}).native
    found = find_mode(density, jax.random.key(0))
    expected = np.sign(y) * np.maximum(np.abs(y) - s**2, 0)
    np.testing.assert_allclose(found.mode.position, expected, atol=1e-6)
    np.testing.assert_allclose(found.mode.scale, 1 / np.sqrt(1 / s**2 + 0.5), rtol=1e-6)
    assert found.gradients > 0


def test_wrong_settings_are_refused():
    for settings, message in (
        ({"envelope": "both"}, "envelope"),
        ({"geometry": "round"}, "geometry"),
        ({"geometry": {"x": "rounded"}}, "geometry"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"step_size": 0.0}, "step_size"),
        ({"steps": 0}, "steps"),
        ({"target_accept": 1.0}, "between 0 and 1"),
        ({"envelope": None, "smoothing": 0.1}, "leave out `smoothing`"),
    ):
        with pytest.raises(qx.MethodError, match=message):
            qx.BregmanLangevin(**settings)
    with pytest.raises(qx.MethodError, match="target_accept"):
        qx.ProximalMALA(target_accept=-1.0)


def test_what_does_not_fit_a_model_is_said():
    @qx.model
    def line():
        qx.sample("x", dist.Normal(0.0, 1.0))

    for geometry, message in (
        ("burg", "fits none of the supports"),
        ({"x": "burg"}, "whose support is Real"),
        ({"z": "squared"}, "latent site"),
    ):
        with pytest.raises(qx.MethodError, match=message):
            qx.infer(line, None, qx.BregmanLangevin(geometry=geometry), **QUIET)
    with pytest.raises(qx.MethodError, match="leave a simplex"):
        qx.infer(supports, DATA, "proximal_mala", **QUIET)
    table = qx.applicable(supports, DATA)
    assert table.loc["bregman_langevin", "applies"]
    assert not table.loc["proximal_mala", "applies"]
