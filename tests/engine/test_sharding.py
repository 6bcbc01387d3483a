"""Parts of the rows add up to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine.sharding import check_separable
from quincunx.inference.minibatch import Batches, shuffled
from tests.scenarios import SCHOOLS, conjugate, eight_schools, logistic, logistic_data


@qx.model
def beside(y=None, w=None):
    """Observations in a data plate and outside of it, and factors in both places."""
    mu = qx.sample("mu", dist.Normal(0, 1))
    sigma = qx.sample("sigma", dist.HalfNormal(1))
    qx.sample("w", dist.Normal(mu, 1), obs=w)
    qx.factor("outside", -(mu**2))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mu, sigma), obs=t)
        qx.factor("inside", -0.1 * t * mu)


@qx.model
def centred(X, y=None):
    beta = qx.sample("beta", dist.Normal(0, 1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Normal(beta * (x - X.mean()), 1), obs=t)


@qx.model
def fitted(X, y=None):
    beta = qx.sample("beta", dist.Normal(0, 1))
    with qx.plate("row", X, y) as (x, t):
        eta = qx.deterministic("eta", beta * x)
        qx.sample("y", dist.Normal(eta, 1), obs=t)


@qx.model
def largest(X, y=None):
    beta = qx.sample("beta", dist.Normal(0, 1))
    qx.deterministic("top", beta * X.max())
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Normal(beta * x, 1), obs=t)


ROWS = np.random.default_rng(4).normal(size=(2, 50))
PAIR = {"X": ROWS[0], "y": ROWS[1]}


@pytest.mark.parametrize("parts", [1, 3, 4])
@pytest.mark.parametrize(
    ("model", "data"),
    [
        (beside, {"y": ROWS[0, :7], "w": np.array(2.0)}),
        (logistic, logistic_data(np.random.default_rng(5), 41)),
    ],
)
def test_parts_add_up(model, data, parts):
    density = qx.compile(model, data)
    z = 0.3 * density.initial(jax.random.key(1))
    shards = density.structure.shards(parts, prior=1 / parts)
    whole = jax.value_and_grad(density.log_density)(z)
    each = [jax.value_and_grad(shard.log_density)(z) for shard in shards]
    np.testing.assert_allclose(sum(value for value, _ in each), whole[0], rtol=1e-12)
    np.testing.assert_allclose(sum(slope for _, slope in each), whole[1], rtol=1e-10)
    batches, key = Batches(len(data["y"]), 3 * parts), jax.random.key(2)
    blocks = [
        shuffled(shard, key).log_likelihood(z, batches.block(index))
        for shard in shards
        for index in jnp.arange(batches.number)
    ]
    likelihood = density.log_likelihood(z)
    np.testing.assert_allclose(sum(blocks) / batches.number, likelihood, rtol=1e-12)
    elements = sum(part.sum() for shard in shards for part in shard.log_density_elements(z))
    np.testing.assert_allclose(elements, whole[0], rtol=1e-12)


def test_parts_of_given_sizes():
    density = qx.compile(conjugate, {"y": ROWS[0, :6]})
    z = jnp.array([0.4])
    for shard, rows in zip(
        density.structure.shards(3, sizes=(1, 3, 2)), ([0], [1, 2, 3], [4, 5]), strict=True
    ):
        alone = qx.compile(conjugate, {"y": ROWS[0, rows]})
        np.testing.assert_allclose(shard.log_density(z), alone.log_density(z), rtol=1e-12)
    for sizes in ((1, 2, 2), (6, 0, 0), (3, 3)):
        with pytest.raises(qx.ModelError, match="must be 3 positive numbers with the sum 6"):
            density.structure.shards(3, sizes=sizes)
    with pytest.raises(qx.ModelError, match="take blocks that they are cut into evenly"):
        density.structure.shards(3)[0].log_likelihood(z, jnp.array([0]))


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        (centred, PAIR, "is not a sum over rows"),
        (largest, PAIR, "deterministic site .* depends on the rows"),
        (fitted, PAIR, "'eta'.* lies in plate 'row'"),
        (eight_schools, SCHOOLS, "has no data plate"),
        (conjugate, {"y": ROWS[0, :3]}, "has 3 rows, too few for 4 parts"),
    ],
)
def test_what_cannot_be_cut(model, data, says):
    with pytest.raises(qx.ModelError, match=says):
        check_separable(qx.compile(model, data), 4, jax.random.key(0))
