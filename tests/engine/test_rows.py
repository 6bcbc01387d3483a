"""Contiguous blocks of rows: the same likelihood as by indices, in any order of the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine import Block
from tests.scenarios import logistic, logistic_data


@qx.model
def derived(X, y):
    """The plate runs over arrays that are computed."""
    beta = qx.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with qx.plate("row", 2.0 * X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=0.5 * x @ beta), obs=t)


@qx.model
def numpyro_rows(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("row", X.shape[0], subsample_size=2) as rows:
        numpyro.sample("y", dist.Bernoulli(logits=X[rows] @ beta), obs=y[rows])


MODELS = {"arguments": logistic, "derived": derived, "numpyro": numpyro_rows}
Z = jnp.array([0.1, -0.4, 0.7])


@pytest.fixture(params=MODELS)
def density(request):
    return qx.compile(MODELS[request.param], logistic_data(np.random.default_rng(1), rows=7))


def test_a_block_is_its_rows(density):
    by_index = density.log_likelihood(Z, jnp.arange(2, 5))
    np.testing.assert_allclose(density.log_likelihood(Z, Block(2, 3)), by_index)
    np.testing.assert_allclose(density.log_likelihood(Z, {"row": Block(2, 3)}), by_index)
    uneven = density.log_likelihood(Z, Block(2, 3, count=2))
    np.testing.assert_allclose(uneven, density.log_likelihood(Z, jnp.arange(2, 4)))


def test_blocks_of_permuted_rows(density, rng):
    permutation = rng.permutation(7)
    permuted = jax.jit(lambda density, order: density.permuted(order))(density, permutation)
    np.testing.assert_allclose(permuted.log_density(Z), density.log_density(Z))
    expected = density.log_likelihood(Z, jnp.asarray(permutation[2:5]))
    np.testing.assert_allclose(permuted.log_likelihood(Z, Block(2, 3)), expected)
    np.testing.assert_allclose(permuted.log_likelihood(Z, jnp.arange(2, 5)), expected)
    cold = permuted.tempered(0.5)
    np.testing.assert_allclose(cold.log_likelihood(Z, Block(2, 3)), 0.5 * expected)
    again = rng.permutation(7)
    twice = density.log_likelihood(Z, jnp.asarray(permutation[again][2:5]))
    found = permuted.permuted(again).log_likelihood(Z, Block(2, 3))
    np.testing.assert_allclose(found, twice)


def test_only_the_plate_is_permuted():
    def model(y, scale):
        mu = qx.sample("mu", dist.Normal(0, scale).to_event(1))
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu[0], 1), obs=t)

    data = {"y": np.arange(3.0), "scale": np.array([1.0, 2.0, 3.0])}
    permuted = qx.compile(model, data).permuted(np.array([2, 0, 1]))
    np.testing.assert_array_equal(permuted.data["y"], [2.0, 0.0, 1.0])
    np.testing.assert_array_equal(permuted.data["scale"], data["scale"])


def test_gradients_and_chains(density, rng):
    starts = jnp.array([0, 2, 4, 1])
    positions = jnp.asarray(rng.normal(size=(4, 3)))
    estimate = lambda z, start: density.log_likelihood(z, Block(start, 3))  # noqa: E731
    together = jax.jit(jax.vmap(jax.grad(estimate)))(positions, starts)
    alone = [jax.grad(estimate)(z, start) for z, start in zip(positions, starts, strict=True)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-12)
    many = jax.vmap(lambda start: estimate(Z, start))(jnp.arange(40) % 5)
    np.testing.assert_allclose(many, [estimate(Z, start) for start in np.arange(40) % 5])
    assert jnp.isfinite(jax.jvp(jax.grad(lambda z: estimate(z, 1)), (Z,), (Z,))[1]).all()


def test_terms_outside_the_plate_are_kept_whole():
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("anchor", dist.Normal(mu, 1.0), obs=2.0)
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu, 1.0), obs=t)

    density, z = qx.compile(model, {"y": np.arange(4.0)}), jnp.array([0.3])
    rows = density.log_likelihood(z, jnp.array([1, 2]))
    np.testing.assert_allclose(density.log_likelihood(z, Block(1, 2)), rows)
    np.testing.assert_allclose(density.log_likelihood(z, Block(1, 3, count=2)), rows)
    prior, likelihood = density.log_terms(z, Block(1, 2))
    np.testing.assert_allclose(prior, density.log_prior(z))
    np.testing.assert_allclose(likelihood, rows)


def test_blocks_that_do_not_fit_are_refused(density):
    with pytest.raises(qx.ModelError, match="8 rows was asked of plate 'row', which has 7"):
        density.log_likelihood(Z, Block(0, 8))
    bare = qx.compile(qx.from_log_density(lambda x: -(x**2).sum(), np.zeros(2)))
    with pytest.raises(qx.ModelError, match="0 data plates"):
        bare.permuted(np.arange(3))
