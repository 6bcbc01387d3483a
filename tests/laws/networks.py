"""Linear regression over a network, whose distributed samplers are linear maps with noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.distributed.graph import graph_of
from quincunx.inference.distributed.network import Tuning
from quincunx.inference.distributed.survey import Survey

NOISE, PRIOR, ROWS, DIM = 4.0, 10.0, 50, 2


@qx.model
def regression(X, y=None):
    theta = qx.sample("theta", dist.Normal(0, PRIOR**0.5).expand([X.shape[1]]).to_event(1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Normal(x @ theta, NOISE), obs=t)


@functools.cache
def shards(count, seed=10):
    """Rows of each agent, `(agent, row, ...)`."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, ROWS, DIM))
    return X, X @ np.array([1.5, -2.0]) + NOISE * rng.normal(size=(count, ROWS))


def data_of(count):
    X, y = shards(count)
    return {"X": X.reshape(-1, DIM), "y": y.reshape(-1)}


def quadratics(count):
    """The agents' potentials, x H x / 2 - b x: `(agent, dim, dim)` and `(agent, dim)`."""
    X, y = shards(count)
    H = np.einsum("nri,nrj->nij", X, X) / NOISE**2 + np.eye(DIM) / (PRIOR * count)
    return H, np.einsum("nri,nr->ni", X, y) / NOISE**2


def posterior(count):
    """Mean and covariance."""
    H, b = quadratics(count)
    covariance = np.linalg.inv(H.sum(0))
    return covariance @ b.sum(0), covariance


def adjacency(graph, count):
    matrix = np.zeros((count, count))
    for i, j in graph_of(graph, count).edges:
        matrix[i, j] = matrix[j, i] = 1
    return matrix


def metropolis(graph, count):
    near = adjacency(graph, count)
    degrees = near.sum(1)
    W = near / (1 + np.maximum(degrees[:, None], degrees[None]))
    return W + np.diag(1 - W.sum(1))


def block_diagonal(blocks):
    out = np.zeros((len(blocks) * DIM,) * 2)
    for at, block in enumerate(blocks):
        out[at * DIM : (at + 1) * DIM, at * DIM : (at + 1) * DIM] = block
    return out


def stationary(A, c, Q):
    """Mean and covariance of s' = A s + c + N(0, Q), by doubling.

    Directions in which A has eigenvalue 1 and that neither c nor Q reach stay where they are.
    """
    mean, covariance, power = c, Q, A
    for _ in range(14):
        mean, covariance = mean + power @ mean, covariance + power @ covariance @ power.T
        power = power @ power
    return mean, covariance


def shared_or_own(scales, shared):
    """Covariance of the agents' noise, standard normal draws times scales."""
    scales = np.asarray(scales, float)
    over = np.outer(scales, scales) if shared else np.diag(scales**2)
    return np.kron(over, np.eye(DIM))


def admm_law(count, graph, rho, noise):
    """Mean and covariance of all agents' positions."""
    H, b = quadratics(count)
    near = adjacency(graph, count)
    d = near.sum(1)
    scale = {
        "paper": np.sqrt(2) * d,
        "calibrated": np.sqrt(4 * rho * d),
        "shared": d / d.sum() * np.sqrt(4 * rho * d.sum()),
    }[noise]
    one = np.eye(DIM)
    solve = block_diagonal([np.linalg.inv(H[i] + 2 * rho * d[i] * one) for i in range(count)])
    x_of_x = solve @ np.kron(rho * (np.diag(d) + near), one)
    laplacian = np.kron(rho * (np.diag(d) - near), one)
    size = count * DIM
    A = np.block([[x_of_x, -solve], [laplacian @ x_of_x, np.eye(size) - laplacian @ solve]])
    c = np.concatenate([solve @ b.ravel(), laplacian @ solve @ b.ravel()])
    into = np.concatenate([solve, laplacian @ solve])
    mean, covariance = stationary(A, c, into @ shared_or_own(scale, noise == "shared") @ into.T)
    return mean[:size], covariance[:size, :size]


def gossip_law(count, graph, eta, tracking, noise):
    """Mean and covariance of all agents' positions, when all began at the posterior mean."""
    H, b = quadratics(count)
    H, W = block_diagonal(H), np.kron(metropolis(graph, count), np.eye(DIM))
    size, one = count * DIM, np.eye(count * DIM)
    scale = np.sqrt(2 * eta / count if noise == "shared" else 2 * eta) * np.ones(count)
    Q = shared_or_own(scale, noise == "shared")
    if not tracking:
        return stationary(W - eta * H, eta * b.ravel(), Q)
    A = np.block([[W, -eta * one], [H @ (W - one), W - eta * H]])
    into = np.concatenate([one, H])
    _, covariance = stationary(A, np.zeros(2 * size), into @ Q @ into.T)
    start = np.tile(posterior(count)[0], count)
    mean = np.concatenate([start, H @ start - b.ravel()])
    for _ in range(20_000):
        mean = A @ mean
    return mean[:size], covariance[:size, :size]


def federated_law(count, eps, local_steps, surrogate):
    """Mean and covariance of a walker, as it leaves an agent; agents are visited at random."""
    H, b = quadratics(count)
    one, noise = np.eye(DIM), 2 * eps * np.eye(DIM)
    maps = []
    for agent in range(count):
        drift, pull = (count * H[agent], count * b[agent])
        if surrogate:
            drift, pull = H.sum(0), b.sum(0)
        step, shift = one - eps * drift, eps * pull
        A, c, Q = one, np.zeros(DIM), np.zeros((DIM, DIM))
        for _ in range(local_steps):
            A, c, Q = step @ A, step @ c + shift, step @ Q @ step.T + noise
        maps.append((A, c, Q))
    mean, second = posterior(count)[0], np.zeros((DIM, DIM))
    for _ in range(5000):
        parts = [
            A @ second @ A.T + np.outer(A @ mean, c) + np.outer(c, A @ mean) + np.outer(c, c) + Q
            for A, c, Q in maps
        ]
        second = np.mean(parts, axis=0)
        mean = np.mean([A @ mean + c for A, c, _ in maps], axis=0)
    return mean, second - np.outer(mean, mean)


def of_mean(law, count):
    """The law of the network mean."""
    average = np.kron(np.ones((1, count)) / count, np.eye(DIM))
    return average @ law[0], average @ law[1] @ average.T


def of_agent(law, index):
    part = slice(index * DIM, (index + 1) * DIM)
    return law[0][part], law[1][part, part]


def simulate(method, size, chains=128, burn=60, draws=30, seed=1, start=None):
    """Network draws and agents' positions, `(chain, draw, ...)`."""
    density = qx.compile(regression, data_of(method.count))
    size = jnp.asarray(size, float)
    start = posterior(method.count)[0] if start is None else start
    return _simulate(method, method.share_out(density), size, start, chains, burn, draws, seed)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _simulate(method, parts, size, start, chains, burn, draws, seed):
    tuning = Tuning(jnp.asarray(method.steps, jnp.int32), size, start, jnp.eye(DIM))
    keys = jax.random.split(jax.random.key(seed), chains)
    first = jax.vmap(lambda key: method.init(parts, start, key))(keys)
    found = Survey(start, jnp.eye(DIM), *jnp.ones((3,)))
    own, _ = method.among(parts, lambda own: (method.surveyed(own, found), ()))
    first = first._replace(agents=jax.vmap(method.given, (0, None))(first.agents, own))
    axes = method.state_axes

    def record(agents_draw, index):
        agents, draw = agents_draw
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        step = jax.vmap(lambda state, key: method.step(parts, state, key), (axes, 0), (axes, 0))
        state, info = step(type(first)(agents, draw, tuning), now)
        places = jax.vmap(jax.vmap(method.place))(state.agents)
        return (state.agents, state.draw), (state.draw, places, info.diverging)

    carry = (first.agents, first.draw)
    _, (mean, agents, failed) = jax.lax.scan(record, carry, jnp.arange(burn + draws))
    swap = lambda values: jnp.swapaxes(values[burn:], 0, 1)  # noqa: E731
    return swap(mean), swap(agents), jnp.any(failed)


def deviation(draws, law):
    """By how many standard errors mean and second moments are off, at most."""
    z = np.asarray(draws) - law[0]
    chains = len(z)
    first = z.mean(1)
    second = np.einsum("cdi,cdj->cij", z, z) / z.shape[1] - law[1]
    off = 0.0
    for each in (first, second.reshape(chains, -1)):
        error = each.std(0) / np.sqrt(chains)
        off = max(off, np.max(np.abs(each.mean(0)) / error))
    return off
