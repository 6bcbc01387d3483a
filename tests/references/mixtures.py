"""Mixtures and discrete latents, summed out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

import quincunx as qx
import quincunx.distributions as dist

Data = Mapping[str, Any]


@qx.model
def gaussian_mixture(y: Array | None = None) -> None:
    """y ~ theta N(mu1, sigma1) + (1 - theta) N(mu2, sigma2); mu ~ N(0, 2) cut to mu1 < mu2."""
    mu = qx.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
    qx.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = qx.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = qx.sample("theta", dist.Beta(5.0, 5.0))
    mixing = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    with qx.plate("row", y) as target:
        qx.sample("y", dist.MixtureSameFamily(mixing, dist.Normal(mu, sigma)), obs=target)


@qx.model
def hidden_markov(y: Array) -> None:
    """y_t ~ N(mu[z_t], 1), z a two-state chain with rows theta1, theta2; 0 < mu1 < mu2.

    Summed over z by the forward algorithm: y_t is a mixture weighted by the state given y_<t.
    """
    ordered = dist.constraints.positive_ordered_vector
    mu = qx.sample("mu", dist.ImproperUniform(ordered, (), (2,)))
    qx.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    theta1 = qx.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = qx.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    log_transition = jnp.log(jnp.stack([theta1, theta2]))
    log_emission = dist.Normal(mu, 1.0).log_prob(y[:, None])

    def forward(state: Array, emission: Array) -> tuple[Array, Array]:
        return logsumexp((state + emission)[:, None] + log_transition, axis=0), state

    _, states = jax.lax.scan(forward, jnp.zeros_like(mu), log_emission)
    law = dist.MixtureSameFamily(dist.Categorical(logits=states), dist.Normal(mu, 1.0))
    with qx.plate("time", y.shape[0]):
        qx.sample("y", law, obs=y)


@qx.model
def capture_recapture(captures: Array) -> None:
    """An animal is real with probability omega, then caught with p_t on occasion t; else never."""
    omega = qx.sample("omega", dist.Uniform(0.0, 1.0))
    chance = dist.Uniform(0.0, 1.0).expand([captures.shape[1]]).to_event(1)
    p = qx.sample("p", chance, dims=["occasion"])
    mixing = dist.Categorical(probs=jnp.stack([omega, 1 - omega]))
    caught = dist.Bernoulli(probs=jnp.stack([p, jnp.zeros_like(p)])).to_event(1)
    with qx.plate("animal", captures) as history:
        law = dist.MixtureSameFamily(mixing, caught)
        qx.sample("captures", law, obs=history, dims=["occasion"])
    pr = qx.deterministic("pr", jnp.prod(1 - p))
    qx.deterministic("omega_nd", omega * pr / (omega * pr + 1 - omega))


def series_data(raw: Data) -> dict[str, Any]:
    return {"y": np.asarray(raw["y"], dtype=float)}


def capture_recapture_data(raw: Data) -> dict[str, Any]:
    return {"captures": np.asarray(raw["y"], dtype=float)}
