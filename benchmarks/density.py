"""Cost of the compiled density's value and gradient against hand-written JAX, as ratios.

Each model is written twice: in the language, and as a function of the flat unconstrained vector
by hand. Both are looped inside one compiled program and timed in turn. The process keeps to one
core, so that what is compared is work; with `--all-cores` XLA also splits loops over threads, by
rules that favour now one program and now the other, and threads that wait count as CPU time.
"""

import functools
import os
import sys

if hasattr(os, "sched_setaffinity") and "--all-cores" not in sys.argv:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
from _ratio import interleaved
from rich.console import Console
from rich.table import Table

import quincunx as qx
import quincunx.distributions as dist

SCHOOLS = {
    "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32),
    "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32),
}
HALF_LOG_TWO_PI = 0.5 * np.log(2 * np.pi)


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - HALF_LOG_TWO_PI


@qx.model
def eight_schools(sigma, y=None):
    mu = qx.sample("mu", dist.Normal(0, 5))
    tau = qx.sample("tau", dist.HalfCauchy(5))
    with qx.plate("school", len(sigma)):
        theta = qx.sample("theta", dist.Normal(mu, tau))
        qx.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_by_hand(data, z):
    mu, log_tau, theta = z[0], z[1], z[2:10]
    tau = jnp.exp(log_tau)
    half_cauchy = jnp.log(2 / (np.pi * 5)) - jnp.log1p((tau / 5) ** 2)
    prior = normal(mu, 0.0, 5.0) + half_cauchy + log_tau + normal(theta, mu, tau).sum()
    return prior + normal(data["y"], theta, data["sigma"]).sum()


@qx.model
def logistic(X, y=None):
    prior = dist.Normal(0, 1).expand([X.shape[1]]).to_event(1)
    beta = qx.sample("beta", prior)
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


def logistic_by_hand(data, z):
    logits = data["X"] @ z
    likelihood = jnp.sum(data["y"] * logits - jnp.logaddexp(0.0, logits))
    return normal(z, 0.0, 1.0).sum() + likelihood


def logistic_data(rows):
    rng = np.random.default_rng(rows)
    X = rng.normal(size=(rows, 30)).astype(np.float32)
    y = rng.uniform(size=rows) < 1 / (1 + np.exp(-X @ rng.normal(size=30) / 3))
    return {"X": X, "y": y.astype(np.int32)}


@qx.model
def radon(county, floor, uranium, num_counties, y=None):
    mu = qx.sample("mu", dist.Normal(0.0, 10.0))
    tau = qx.sample("tau", dist.HalfNormal(1.0))
    beta = qx.sample("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    sigma = qx.sample("sigma", dist.HalfNormal(1.0))
    with qx.plate("county", num_counties):
        z = qx.sample("z", dist.Normal(0.0, 1.0))
    with qx.plate("home", county, floor, uranium, y) as (c, f, u, t):
        qx.sample("y", dist.Normal((mu + tau * z)[c] + beta[0] * u + beta[1] * f, sigma), obs=t)


def radon_by_hand(data, z):
    mu, log_tau, beta, log_sigma, raw = z[0], z[1], z[2:4], z[4], z[5:]
    tau, sigma = jnp.exp(log_tau), jnp.exp(log_sigma)
    half_normals = 2 * np.log(2) + normal(tau, 0.0, 1.0) + normal(sigma, 0.0, 1.0)
    prior = normal(mu, 0.0, 10.0) + half_normals + log_tau + log_sigma
    prior = prior + normal(beta, 0.0, 10.0).sum() + normal(raw, 0.0, 1.0).sum()
    alpha = (mu + tau * raw)[data["county"]]
    centre = alpha + beta[0] * data["uranium"] + beta[1] * data["floor"]
    return prior + normal(data["y"], centre, sigma).sum()


def radon_data():
    rng = np.random.default_rng(3)
    county = np.sort(rng.integers(0, 85, size=919)).astype(np.int32)
    floor = rng.integers(0, 2, size=919).astype(np.float32)
    uranium = rng.normal(size=85).astype(np.float32)[county]
    y = (1.4 + 0.7 * uranium - 0.7 * floor + rng.normal(size=919)).astype(np.float32)
    return {"county": county, "floor": floor, "uranium": uranium, "num_counties": 85, "y": y}


CASES = {
    "eight schools": (eight_schools, eight_schools_by_hand, SCHOOLS, 100_000),
    "logistic 1e3 x 30": (logistic, logistic_by_hand, logistic_data(1_000), 5_000),
    "logistic 1e4 x 30": (logistic, logistic_by_hand, logistic_data(10_000), 500),
    "logistic 1e5 x 30": (logistic, logistic_by_hand, logistic_data(100_000), 50),
    "radon": (radon, radon_by_hand, radon_data(), 20_000),
}


def loop(density, steps):
    """`steps` evaluations of value and gradient in one compiled program, at moving points."""

    @jax.jit
    def run(arguments, z):
        def body(_, carry):
            z, total = carry
            value, gradient = jax.value_and_grad(functools.partial(density, arguments))(z)
            return z + 1e-9 * gradient, total + value

        return jax.lax.fori_loop(0, steps, body, (z, jnp.zeros(z.shape[:-1])))

    return run


def batched(density):
    """The sum over a batch of positions; its gradient is the batch of gradients."""
    return lambda arguments, z: jnp.sum(jax.vmap(lambda row: density(arguments, row))(z))


def measure(name, chains):
    model, by_hand, data, steps = CASES[name]
    steps = max(steps // chains, 10)
    compiled = qx.compile(model, data)
    arrays = {key: jnp.asarray(value) for key, value in data.items() if np.ndim(value)}
    z = 0.1 * jnp.asarray(np.random.default_rng(0).normal(size=compiled.dim), jnp.float32)
    ours, theirs = qx.Density.log_density, by_hand
    np.testing.assert_allclose(
        jax.jit(jax.grad(ours, argnums=1))(compiled, z),
        jax.jit(jax.grad(theirs, argnums=1))(arrays, z),
        rtol=2e-3,
        atol=2e-2,
    )
    if chains > 1:
        z = jnp.broadcast_to(z, (chains, compiled.dim))
        ours, theirs = batched(ours), batched(theirs)
    first, second = loop(ours, steps), loop(theirs, steps)
    jax.block_until_ready((first(compiled, z), second(arrays, z)))
    times = interleaved(
        lambda: jax.block_until_ready(first(compiled, z)),
        lambda: jax.block_until_ready(second(arrays, z)),
    )
    return [1e6 * time / steps for time in times[:2]] + [times[2]]


def main():
    table = Table(title="value and gradient, CPU microseconds for a batch of chains")
    for column in ("model", "chains", "compiled", "by hand", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in CASES:
        for chains in (1, 4):
            ours, theirs, ratio = measure(name, chains)
            table.add_row(name, str(chains), f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
