r"""Ranks that are uniform if a method is right, and how far from uniform they are.

For a true value theta and data y from the model and draws theta_1 ... theta_L of the method given
y, the rank of any quantity f,

    r = #{l : f(theta_l, y) < f(theta, y)},

is uniform on 0 ... L over repetitions if the method is exact and its draws are independent.
Parameters alone do not tell: a method that ignores the data and returns the prior passes them. So
quantities that depend on the data belong to every check: the log likelihood, the joint density, and
the distance to a point r(y) that the data lead to (TARP). For the last, r is the regression of
theta on y and its squares over other simulations.

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv:1804.06788; Modrak, Moon, Kim,
Buerkner, Huurre, Faltejskova, Gelman and Vehtari (2025), Simulation-based calibration checking for
Bayesian computation, Bayesian Analysis 20:461; Lemos, Coogan, Hezaveh and Perreault-Levasseur
(2023), Sampling-based accuracy testing of posterior estimators for general inference, ICML.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

_BINS = 10
_PER_BIN = 10  # expected ranks, at least
_RIDGE = 1e-2


def ranks(truth: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ranks of true values among draws, ties broken at random.

    Args:
        truth: `(simulation, quantity)`.
        draws: `(simulation, draw, quantity)`.
        rng: for ties.
    """
    below = np.sum(draws < truth[:, None, :], axis=1)
    equal = np.sum(draws == truth[:, None, :], axis=1)
    return below + rng.integers(0, equal + 1)


def uniformity(found: np.ndarray, number: int) -> np.ndarray:
    """p-values that ranks on 0 ... number are uniform, by chi-square in at most ten bins.

    Args:
        found: `(simulation, quantity)`.
        number: draws of each simulation.
    """
    bins = int(np.clip(len(found) // _PER_BIN, 2, min(_BINS, number + 1)))
    edges = np.arange(number + 1) * bins // (number + 1)
    expected = np.bincount(edges, minlength=bins) * len(found) / (number + 1)
    p_values = [
        stats.chisquare(np.bincount(edges[column], minlength=bins), expected).pvalue
        for column in found.T
    ]
    return np.array(p_values)


def pointers(theta: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points that data lead to, `(simulation, dim)`: ridge regression on y and its squares.

    Each half of the simulations is told by the other half, so that the point depends on nothing of
    its own simulation but the data.

    Args:
        theta: true values, `(simulation, dim)`.
        y: data, `(simulation, entry)`.
    """
    scale = y.std(axis=0)
    y = y[:, scale > 0] / scale[scale > 0]
    y = y - y.mean(axis=0)
    features = np.concatenate([y, y**2 - np.mean(y**2, axis=0)], axis=1)
    half = np.arange(len(y)) % 2 == 0
    found = np.zeros_like(theta)
    for told in (half, ~half):
        x, t = features[~told], theta[~told]
        gram = x @ x.T + _RIDGE * max(np.trace(x @ x.T), 1e-300) / len(x) * np.eye(len(x))
        weights = np.linalg.solve(gram, t - t.mean(axis=0))
        found[told] = t.mean(axis=0) + features[told] @ (x.T @ weights)
    return found


def autocorrelation(draws: np.ndarray) -> np.ndarray:
    """Mean correlation of successive draws, by quantity; `(simulation, draw, quantity)`."""
    centred = draws - draws.mean(axis=1, keepdims=True)
    variance = np.maximum(np.mean(centred**2, axis=1), 1e-300)
    successive = np.mean(centred[:, 1:] * centred[:, :-1], axis=1) / variance
    return successive.mean(axis=0) + 1 / draws.shape[1]  # the bias of estimated means
