"""Gaussian targets and processes with random networks, for tests of weights."""

import jax
import jax.numpy as jnp
import numpy as np

import quincunx as qx
from quincunx.inference.paths.process import Process, make
from quincunx.inference.paths.target import Target, Whitening

MEAN = np.array([0.2, -0.1])
FACTOR = np.array([[0.9, 0.0], [0.2, 0.95]])
LOG_Z = np.log(2 * np.pi) + np.log(0.9 * 0.95)  # of the density below, which is not normalised


def gaussian(x):
    rest = jnp.linalg.solve(FACTOR, x - MEAN)
    return -0.5 * jnp.sum(rest**2)


def gaussian_target():
    density = qx.compile(qx.from_log_density(gaussian, np.zeros(2)))
    return Target(density, Whitening(jnp.zeros(2), jnp.eye(2)))


def mixture_target(means, sd):
    """A normalised mixture of equal Gaussians in the plane."""

    def log_density(x):
        square = jnp.sum((x[None, :] - means) ** 2, axis=1)
        return jax.scipy.special.logsumexp(
            -0.5 * square / sd**2 - jnp.log(2 * jnp.pi * sd**2 * len(means))
        )

    density = qx.compile(qx.from_log_density(log_density, np.zeros(2)))
    return Target(density, Whitening(jnp.zeros(2), jnp.eye(2)))


def untrained(kernel, steps=4, key=0, strength=0.1, dim=2, **options) -> Process:
    """A process whose networks, schedules and start are all random."""
    process = make(kernel, dim, steps, 16, jax.random.key(key), **{"gate": 0.2} | options)
    leaves, tree = jax.tree.flatten(process)
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    moved = [
        leaf + strength * jax.random.normal(k, leaf.shape)
        if isinstance(leaf, jax.Array) and leaf.dtype.kind == "f"
        else leaf
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    process = jax.tree.unflatten(tree, moved)
    if kernel in ("pis", "dds", "dis"):  # whose start is centred
        import equinox as eqx

        process = eqx.tree_at(lambda p: p.mean, process, jnp.zeros(dim))
    return process
