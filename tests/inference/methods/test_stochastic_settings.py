"""Settings of stochastic-gradient samplers, what they refuse, and what the pilot run finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference import pilot
from quincunx.inference.noise import noise_of, row_errors
from quincunx.inference.pilot import autocorrelation_time
from tests.scenarios import conjugate, conjugate_posterior, logistic, logistic_data

SHORT = {"num_warmup": 50, "num_samples": 50, "progress": False}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qx.SGLD(step_size=-1.0), "step_size must be a positive number"),
        (lambda: qx.SGLD(batch_size=0), "batch_size must be an integer of at least 1"),
        (lambda: qx.SGLD(tolerance=1.5), "must lie between 0 and 1"),
        (lambda: qx.SGLD(preconditioner="diag"), "diagonal"),
        (lambda: qx.SGLD(schedule="cyclic"), "cyclical"),
        (lambda: qx.SGLD(control_variates="modes"), "mode"),
        (lambda: qx.SGHMC(friction=0.0), "friction must be a positive number"),
        (lambda: qx.SGNHT(preconditioner="rmsprop"), "diagonal"),
        (lambda: qx.StructuredSGLD(dropout=1.5), "at most 1"),
        (lambda: qx.StructuredSGLD(groups="sites"), "site"),
        (lambda: qx.StructuredSGLD(copies_kept=3), "of use with `dropout`"),
        (lambda: qx.StructuredSGLD(control_variates="saga"), "control_variates"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(qx.MethodError, match=message):
        make()


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="batch_size"):
        qx.SGLD(batchsize=3)


@qx.model
def local(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    with qx.plate("row", y) as t:
        tau = qx.sample("tau", dist.HalfNormal(1.0))
        qx.sample("y", dist.Normal(mu, tau), obs=t)


@qx.model
def no_plate(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    qx.sample("y", dist.Normal(mu, 1.0), obs=y)


@qx.model
def two_plates(y, x):
    mu = qx.sample("mu", dist.Normal(0, 1))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mu, 1.0), obs=t)
    with qx.plate("column", x) as u:
        qx.sample("x", dist.Normal(mu, 1.0), obs=u)


@qx.model
def not_separable(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mu + jnp.mean(t), 1.0), obs=t)


@pytest.mark.parametrize(
    ("model", "names", "message"),
    [
        (local, "y", "'tau'.* is a latent variable inside the data plate 'row'"),
        (no_plate, "y", "the model has no data plate. Put site 'y'"),
        (two_plates, "yx", "has several: 'row', 'column'"),
        (not_separable, "y", "not a sum over the rows of plate 'row'"),
    ],
)
def test_models_without_minibatches_are_refused(model, names, message):
    data = {name: np.arange(6.0) for name in names}
    with pytest.raises(qx.MethodError, match=message):
        qx.infer(model, data, qx.SGLD(), **SHORT)


def test_a_minibatch_larger_than_the_data_is_refused():
    with pytest.raises(qx.MethodError, match="plate 'row' has 6 rows"):
        qx.infer(conjugate, {"y": np.zeros(6)}, qx.SGLD(batch_size=7), **SHORT)
    assert qx.applicable(conjugate, {"y": np.zeros(6)})["applies"]["sgld"]


def test_groups_that_do_not_fit_are_refused():
    data = {"y": np.zeros(6)}
    with pytest.raises(qx.MethodError, match="must hold each of mu once"):
        qx.infer(conjugate, data, qx.StructuredSGLD(groups=(("mu",), ("mu",))), **SHORT)
    with pytest.raises(qx.MethodError, match="Unknown latent site 'nu'"):
        qx.infer(conjugate, data, qx.StructuredSGLD(groups=(("nu",),)), **SHORT)


def test_pilot_finds_the_mode_scales_and_step_size():
    y = np.random.default_rng(0).normal(2.0, 1.5, size=300)
    density = qx.compile(conjugate, {"y": y})
    mean, sd = conjugate_posterior(y)
    full = qx.SGLD(batch_size=300, tolerance=0.1).prepare(density, jax.random.key(0))
    tuning = full.value.tuning
    np.testing.assert_allclose(tuning.anchor.position, [mean], rtol=1e-6)
    exact = jax.grad(density.log_likelihood)(jnp.array([mean]))
    np.testing.assert_allclose(tuning.anchor.score, exact, atol=1e-6)
    fisher = np.sum((y - y.mean()) ** 2) / 1.5**4 + 1 / 2.0**2
    np.testing.assert_allclose(tuning.scale, [1 / fisher], rtol=1e-6)
    curvature = sd**-2 / fisher
    np.testing.assert_allclose(tuning.step_size, 2 * 0.1 / curvature, rtol=1e-6)
    minibatch = qx.SGLD(batch_size=30, tolerance=0.1).prepare(density, jax.random.key(0))
    noise = 300**2 * np.var(y) / 1.5**4 / 30 * (1 - 30 / 300) / fisher
    expected = 0.2 / (curvature + noise)
    np.testing.assert_allclose(minibatch.value.tuning.step_size, expected, rtol=1e-6)
    time = 2 / (expected * curvature)  # of an autoregression with coefficient 1 - step * curvature
    assert int(minibatch.value.tuning.steps) == pytest.approx(time, rel=0.3)


@qx.model
def confident(X, y=None):
    beta = qx.sample("beta", dist.Normal(0, 10).expand([X.shape[1]]).to_event(1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


@pytest.mark.slow
def test_pilot_looks_at_the_noise_that_chains_meet(monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 10))
    y = (5 * X @ rng.normal(size=10) > rng.logistic(size=200)).astype(int)
    density, method = qx.compile(confident, {"X": X, "y": y}), qx.SGLD(batch_size=20)
    steps = []
    for surprise in (2, np.inf):
        monkeypatch.setattr(pilot, "_SURPRISE", surprise)
        tuning = method.prepare(density, jax.random.key(0)).value.tuning
        steps.append(float(tuning.step_size))
    at_mode = row_errors(density, tuning.anchor.position)
    noise = noise_of(at_mode, tuning.scale, method.batches(density), jax.random.key(0))
    assert method.noise_bias(tuning, noise) < method.tolerance
    assert steps[0] < 0.5 * steps[1]


def test_autocorrelation_time_of_an_autoregression():
    rng, series = np.random.default_rng(0), np.zeros((4, 4000, 2))
    for index in range(1, 4000):
        series[:, index] = series[:, index - 1] * [0.9, 0.5] + rng.normal(size=(4, 2))
    assert autocorrelation_time(series) == pytest.approx(19.0, rel=0.2)
    assert autocorrelation_time(np.zeros((4, 50, 1))) == 50


def test_starts_are_about_the_mode_unless_they_are_given():
    y = np.random.default_rng(0).normal(50.0, 1.5, size=300)
    settings = {"num_warmup": 0, "num_samples": 1, "num_chains": 8, "progress": False}
    method = qx.SGLD(steps=1)
    free = qx.infer(conjugate, {"y": y}, method, **settings).posterior["mu"].values
    mean, sd = conjugate_posterior(y)
    assert np.abs(free - mean).max() < 8 * sd
    given = qx.infer(conjugate, {"y": y}, method, init={"mu": 3.0}, **settings)
    assert np.abs(given.posterior["mu"].values - 3.0).max() < 5.0
    uniform = qx.infer(conjugate, {"y": y}, method, init="uniform", **settings)
    assert uniform.posterior["mu"].values.max() < 10.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        qx.SGLD(preconditioner="rmsprop"),
        qx.SGLD(schedule="cyclical"),
        qx.SGLD(schedule="polynomial"),
        qx.SGLD(control_variates="svrg"),
        qx.SGLD(control_variates="saga"),
        qx.SGHMC(control_variates="mode"),
        qx.SGNHT(),
    ],
    ids=str,
)
def test_every_kind_finds_a_logistic_posterior(method):
    data = logistic_data(np.random.default_rng(3), rows=1500, features=3)
    exact = qx.infer(logistic, data, num_warmup=300, num_samples=1000, progress=False)
    fit = qx.infer(logistic, data, method, num_warmup=100, num_samples=600, progress=False)
    ours, theirs = fit.posterior["beta"], exact.posterior["beta"]
    mean, sd = theirs.mean(("chain", "draw")), theirs.std(("chain", "draw"))
    assert np.abs((ours.mean(("chain", "draw")) - mean) / sd).max() < 0.2, method
    assert np.abs(ours.std(("chain", "draw")) / sd - 1).max() < 0.15, method


def test_a_step_that_is_not_finite_is_left_out_and_told():
    data = {"y": np.random.default_rng(0).normal(size=50)}
    method = qx.SGLD(step_size=1e200, preconditioner=None, control_variates="none", steps=3)
    fit = qx.infer(conjugate, data, method, **SHORT)
    assert np.isfinite(fit.posterior["mu"].values).all()
    assert fit.verdict.status == "failed"
    assert "not finite" in " ".join(fit.verdict.reasons)


def test_extend_and_checkpoint_continue_the_same_draws(tmp_path):
    data = {"y": np.random.default_rng(0).normal(size=50)}
    method = qx.SGLD(batch_size=8, steps=3)
    whole = qx.infer(conjugate, data, method, **SHORT)
    part = qx.infer(conjugate, data, method, checkpoint=tmp_path, **SHORT | {"num_samples": 20})
    longer = qx.infer(conjugate, data, method, checkpoint=tmp_path, resume=True, **SHORT)
    for fit in (longer, part.extend(50)):
        np.testing.assert_array_equal(fit.posterior["mu"].values, whole.posterior["mu"].values)
