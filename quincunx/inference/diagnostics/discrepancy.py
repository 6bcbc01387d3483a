r"""Kernel Stein discrepancy: how far draws are from a density whose score is known.

    KSD^2 = E k_p(x, x'),
    k_p = s.s' k + s.grad' k + s'.grad k + tr grad grad' k,    k = (1 + |x - x'|^2)^(-1/2),

with s = grad log p, x and x' independent draws, in coordinates whitened by the draws. It needs no
normalising constant and no other draws. Two caveats: it is blind to the weights of modes far from
each other, since the score sees only one of them at a time; and its power falls with the dimension.

Gorham and Mackey (2017), Measuring sample quality with kernels, ICML.
"""

from __future__ import annotations

import numpy as np


def kernel_stein_discrepancy(z: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """The discrepancy of draws, and the one to be expected of as many independent exact draws.

    Args:
        z: positions, `(n, dim)`.
        score: gradients of the log density there, `(n, dim)`.
    """
    count, dim = z.shape
    centred = z - z.mean(axis=0)
    if count > 4 * dim:
        covariance = np.atleast_2d(np.cov(z, rowvar=False))
        factor = np.linalg.cholesky(covariance + 1e-12 * np.diag(np.diag(covariance)))
        x, s = np.linalg.solve(factor, centred.T).T, score @ factor
    else:
        sd = centred.std(axis=0)
        x, s = centred / sd, score * sd
    squares = np.sum(x**2, axis=1)
    distance = np.maximum(squares[:, None] + squares[None, :] - 2 * x @ x.T, 0.0)
    base = 1.0 + distance
    s_x = s @ x.T  # s_i . x_j
    own = np.sum(s * x, axis=1)
    towards = own[:, None] - s_x  # s_i . (x_i - x_j)
    slopes = (towards + towards.T) * base**-1.5
    trace = dim * base**-1.5 - 3 * distance * base**-2.5
    kernel = (s @ s.T) * base**-0.5 + slopes + trace
    level = np.mean(np.diag(kernel)) / count
    return float(np.sqrt(max(kernel.mean(), 0.0))), float(np.sqrt(level))
