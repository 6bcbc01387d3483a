"""Products of learned samplers, bounds from other draws, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
from quincunx.inference.diagnostics.importance import bounds
from quincunx.inference.paths.product import product
from quincunx.inference.paths.sampler import PathSampler
from quincunx.inference.paths.target import Target, Whitening
from tests.inference.paths.problems import (
    LOG_Z,
    MEAN,
    gaussian,
    gaussian_target,
    mixture_target,
    untrained,
)
from tests.inference.test_weighted import evidence
from tests.scenarios import conjugate, conjugate_posterior

Y = np.array([0.3, 1.9, -0.4, 2.2, 1.1])
SMALL = {"steps": 8, "width": 16, "iterations": 0, "start": "laplace"}
RUN = {"num_samples": 100, "num_chains": 2, "progress": False}


def other(x):
    return -0.5 * jnp.sum((x + 0.3) ** 2 / 1.2)


@pytest.fixture(scope="module")
def kernels():
    """Of two random processes, in coordinates of their own, for two densities."""
    density = qx.compile(qx.from_log_density(other, np.zeros(2)))
    shifted = Whitening(jnp.array([0.1, -0.2]), jnp.array([[1.1, 0.0], [-0.3, 0.8]]))
    targets = (gaussian_target(), Target(density, shifted))
    return product((untrained("cmcd"), untrained("mcd", key=5)), targets, (0.7, 0.4))


def mean_weight(kernels, *, resample):
    """Means of w / Z over batches, and of w (z - mean) / Z, with their standard errors."""
    settings = {"resample": resample, "threshold": 0.999, "moves": 1}
    sampler = PathSampler(kernels, kernels.whitening, jnp.full(4, 0.1), **settings)
    density = qx.compile(qx.from_log_density(gaussian, np.zeros(2)))
    draw = eqx.filter_jit(lambda key: sampler.draw(density, key, 200))
    drawn = jax.lax.map(draw, jax.random.split(jax.random.key(1), 300))
    ratio = np.exp(np.asarray(drawn.log_weight) - LOG_Z)
    moment = np.mean(ratio[..., None] * (np.asarray(drawn.z) - MEAN), axis=1)
    each = np.concatenate([ratio.mean(axis=1)[:, None], moment], axis=1)
    return each.mean(axis=0), each.std(axis=0) / 300**0.5


@pytest.mark.parametrize("resample", [pytest.param(False, marks=pytest.mark.slow), True])
def test_weights_of_a_product_are_those_of_the_last_density(kernels, resample):
    mean, error = mean_weight(kernels, resample=resample)
    assert error.max() < 0.03
    assert (np.abs(mean - [1, 0, 0]) < 4 * error).all()


@pytest.mark.slow
def test_a_product_without_the_law_of_its_start_is_seen(kernels, monkeypatch):
    """Mutation."""
    monkeypatch.setattr(type(kernels), "log_start", lambda self, y: jnp.zeros(y.shape[:-1]))
    mean, error = mean_weight(kernels, resample=False)
    assert abs(mean[0] - 1) > 4 * error[0]


def test_slopes_are_gradients_of_the_levels(kernels):
    """So coordinates of the parts are turned into those of the product as they should be."""
    density = qx.compile(qx.from_log_density(gaussian, np.zeros(2)))
    target = kernels.target(density, kernels.whitening)
    at = jax.tree.map(lambda leaf: leaf[1], kernels.plan().after)
    y = jax.random.normal(jax.random.key(2), (5, 2))

    def level(y):
        return jnp.sum(kernels.annealed(at, y, target.with_score(y)[0]))

    slope = kernels.slope(at, y, target.with_score(y)[1])
    np.testing.assert_allclose(slope, jax.grad(level)(y), rtol=1e-6, atol=1e-8)


def test_it_starts_from_the_product_of_the_starts(kernels):
    """Log pi_0 and the log density of the start differ by a constant."""
    density = qx.compile(qx.from_log_density(gaussian, np.zeros(2)))
    target = kernels.target(density, kernels.whitening)
    at = jax.tree.map(lambda leaf: jnp.zeros(()), kernels.plan().after)
    y = jax.random.normal(jax.random.key(2), (5, 2))
    gap = kernels.annealed(at, y, target.with_score(y)[0]) - kernels.log_start(y)
    np.testing.assert_allclose(gap, gap[0], rtol=1e-6)


@pytest.fixture(scope="module")
def parts():
    return [qx.infer(conjugate, {"y": y}, qx.CMCD(**SMALL), **RUN) for y in (Y[:3], Y[2:])]


@pytest.mark.slow
def test_posteriors_of_parts_give_that_of_the_whole(parts):
    joint = qx.compose([fit.sampler for fit in parts], conjugate, {"y": Y})
    fit = joint.draw(500, batches=8)
    value, error = fit.log_evidence
    assert 0 < error < 0.05
    assert abs(value - evidence(Y)) < 5 * error
    mean, sd = conjugate_posterior(Y)
    draws = fit.posterior["mu"].values
    assert abs(draws.mean() - mean) < 5 * sd / 500**0.5
    assert abs(draws.std() - sd) < 5 * sd / 500**0.5
    with pytest.raises(qx.QuincunxError, match="save the samplers"):
        joint.save("joint.qx")
    with pytest.raises(qx.QuincunxError, match="compose anew"):
        joint.adapted({"y": Y})


@pytest.mark.slow
def test_bounds_hold_for_exact_draws(parts):
    """And both are close, since the start is the posterior."""
    mean, sd = conjugate_posterior(Y[:3])
    draws = np.random.default_rng(0).normal(mean, sd, (1, 1000))
    reference = qx.infer(conjugate, {"y": Y[:3]}, num_samples=20, num_warmup=20, progress=False)
    reference.tree["posterior"] = reference.posterior.isel(draw=[0] * 1000, chain=[0]).assign(
        mu=(("chain", "draw"), draws)
    )
    found = parts[0].sampler.bounds(reference, n=1000)
    exact = evidence(Y[:3])
    assert found.lower.value - 4 * found.lower.error < exact
    assert exact < found.upper.value + 4 * found.upper.error
    assert abs(found.upper.value - found.lower.value) < 0.1
    assert 0.9 < found.share <= 1


@pytest.mark.slow
def test_bounds_hold_on_nine_modes_before_and_after_training():
    means = np.stack(np.meshgrid(*(np.array([-1.5, 0.0, 1.5]),) * 2), -1).reshape(-1, 2)
    density = mixture_target(means, 0.3).density
    rng = np.random.default_rng(3)
    exact = means[rng.integers(0, 9, 4000)] + 0.3 * rng.normal(size=(4000, 2))
    gaps = []
    for iterations in (0, 200):
        method = qx.CMCD(steps=16, width=32, iterations=iterations, start="cloud")
        sampler = method.fit(density, jax.random.key(0), qx.Budget())
        forwards = eqx.filter_jit(sampler.forwards)(density, jax.random.key(1), 4000)
        backwards = eqx.filter_jit(sampler.backwards)(density, jax.random.key(2), exact)
        found = bounds(np.asarray(forwards), np.asarray(backwards))
        assert found.lower.value < 0 < found.upper.value
        gaps.append(found.upper.value - found.lower.value)
    assert gaps[1] < gaps[0]


@pytest.mark.slow
def test_an_upper_bound_sees_a_mode_that_the_sampler_misses():
    """Its own weights do not: they say that all is well."""

    def log_density(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x - 8) ** 2), -0.5 * jnp.sum((x + 8) ** 2))

    model = qx.from_log_density(log_density, np.zeros(1))
    one = qx.infer(model, method=qx.CMCD(**SMALL), **{**RUN, "num_samples": 500})
    assert abs(one.posterior["x"].values.mean()) > 7
    assert one.importance.share > 0.5
    both = np.random.default_rng(0).normal(0, 1, (1, 400, 1))
    both += np.where(np.arange(400) % 2, 8.0, -8.0)[None, :, None]
    values = {"x": (("chain", "draw", "x_dim_0"), both)}
    reference = qx.infer(model, num_samples=400, num_warmup=10, num_chains=1, progress=False)
    reference.tree["posterior"] = reference.posterior.assign(values)
    found = one.sampler.bounds(reference, n=400)
    assert found.lower.value < np.log(2 * np.sqrt(2 * np.pi)) < found.upper.value
    assert found.upper.value - found.lower.value > 10
    assert found.share < 0.1


@pytest.mark.slow
def test_what_cannot_be_composed_is_refused(parts):
    samplers = [fit.sampler for fit in parts]
    with pytest.raises(qx.MethodError, match="one sampler or more"):
        qx.compose([], conjugate, {"y": Y})
    with pytest.raises(qx.MethodError, match="2 samplers and 1 powers"):
        qx.compose(samplers, conjugate, {"y": Y}, powers=[1.0])
    with pytest.raises(qx.MethodError, match="positive"):
        qx.compose(samplers, conjugate, {"y": Y}, powers=[1.0, -1.0])
    with pytest.raises(qx.ModelError, match="latent sites"):
        qx.compose(samplers, qx.from_log_density(gaussian, np.zeros(2)))
    from quincunx.inference.approximate import Trained

    pis = qx.PIS(steps=8, width=16)
    single = Trained(pis, pis.skeleton(samplers[0].density), samplers[0].density)
    with pytest.raises(qx.MethodError, match=r"Sampler 1 was learned by `pis`.*cmcd"):
        qx.compose([samplers[0], single], conjugate, {"y": Y})
    smc = qx.AnnealedSMC()
    single = Trained(smc, smc.skeleton(samplers[0].density), samplers[0].density)
    with pytest.raises(qx.MethodError, match="no paths that go backwards"):
        single.bounds(parts[0])
    longer = qx.CMCD(steps=16, width=16)
    single = Trained(longer, longer.skeleton(samplers[0].density), samplers[0].density)
    with pytest.raises(qx.MethodError, match=r"\[8, 16\] steps"):
        qx.compose([samplers[0], single], conjugate, {"y": Y})
