r"""Stein control variates: posterior means with far smaller errors, from draws that are there.

For a polynomial P, L P = Laplacian P + grad P . s with s = grad log p has mean zero under p, so

    c = mean(f) - mean(Z) B,    Z = [L P_1, ..., L P_k],

has the mean of f's for any coefficients B, and far smaller variance where f is near the span.
Polynomials are of order 1 (columns s_i) or 2 (also z_i s_i + 1 and z_i s_j + z_j s_i), in
unconstrained coordinates that are centred and scaled; those of order 2 without products of two
coordinates take fewer draws. B is by least squares with a ridge. Order and ridge are chosen for
each quantity by cross-validation over five contiguous blocks of the chains; order 0, the plain
mean, is among the choices. An order with k columns is tried only where there are 20 k effective
draws. With n of them the variance of the mean is that of the residuals f - Z B, no smaller than for
independent draws, times

    n / (n - k - 1)  *  (n - 2) / (n - k - 2):

residuals of a fit are too small, and mean(Z) B carries the errors of B.

On a Gaussian posterior polynomials of the order are integrated exactly. The mean of Z is zero only
if the density times the polynomial's gradient vanishes at infinity, as it does for proper
posteriors with enough moments.

Mira, Solgi and Imparato (2013), Zero variance Markov chain Monte Carlo for Bayesian estimators,
Statistics and Computing 23:653; South, Oates, Mira and Drovandi (2023), Regularized zero-variance
control variates, Bayesian Analysis 18:865.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import pandas as pd
from jaxtyping import Array

from quincunx.engine.errors import MethodError, QuincunxError, unknown
from quincunx.inference.diagnostics.agreement import Moments
from quincunx.inference.diagnostics.convergence import flatten
from quincunx.inference.diagnostics.scores import log_density_and_scores, positions
from quincunx.inference.fit import Fit
from quincunx.inference.method import lacks_gradient
from quincunx.inference.weighted import is_weighted

_FOLDS = 5
_RIDGES = (0.0, 1e-6, 1e-4, 1e-2, 1.0)
_DRAWS_PER_COLUMN = 20
_ORDERS = ("auto", 0, 1, 2)
_GAIN = 0.95  # cross-validated variance below which a control variate is worth it
_NONE, _DIAGONAL = "0", "2, no products"


class Refined(NamedTuple):
    """Posterior means with and without control variates.

    Attributes:
        table: one row for each quantity: `mean` and `mean_error` as they are, `refined` and
            `refined_error`, `reduction` (the ratio of squared errors), `order`, `columns`, and a
            `note` where none was used.
    """

    table: pd.DataFrame

    def __str__(self) -> str:
        return self.table.to_string()

    def __repr__(self) -> str:
        return str(self)


class _Columns(NamedTuple):
    """Control variates of one order, `(n, k)`, centred to mean zero under the posterior."""

    order: str
    z: np.ndarray


def refine(
    fit: Fit,
    fns: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
    *,
    order: str | int = "auto",
) -> Refined:
    """Posterior means by Stein control variates; the fit's draws stay as they are.

    Args:
        fit: any fit that has its model, which must have a gradient.
        fns: quantities by name, each a function of one draw's values by site; by default all
            parameters themselves.
        order: of the polynomials, 0, 1 or 2; chosen for each quantity by default.

    Returns:
        A table of plain and refined means with their standard errors.

    Raises:
        QuincunxError: the fit has no model, or draws that are not finite.
        MethodError: the model has no gradient, or an unknown order.
    """
    if order not in _ORDERS or isinstance(order, bool):
        raise MethodError(unknown("order", str(order), list(map(str, _ORDERS)), " of `refine`"))
    if fit.density is None:
        message = "`refine` needs the model: load with `qx.load(path, model, data)`."
        raise QuincunxError(message)
    density = fit.density.unconstrained
    missing = lacks_gradient(density)
    if missing is not None:
        raise MethodError(f"`refine` cannot be used on model `{density.program.name}`: {missing}")
    draws = {str(name): array.values for name, array in fit.posterior.items()}
    names, values = flatten(draws) if fns is None else _quantities(draws, fns)
    at = positions(density, draws)
    score = np.asarray(jax.device_get(log_density_and_scores(density, at)[1]))
    z = np.asarray(at)
    for what, array in (("The quantities", values), ("Draws", z), ("Scores", score)):
        if not np.isfinite(array).all():
            raise QuincunxError(f"{what} are not finite everywhere, so nothing can be refined.")
    ess = fit.worth()[0] if is_weighted(fit.tree) else None
    size = float(min(fit.convergence.ess_bulk[fit.free()].min(initial=len(z)), len(z)))
    candidates = [_Columns(_NONE, np.zeros((len(z), 0))), *_controls(z, score, size, order)]
    rows = _rows(values, candidates, ess, size)
    return Refined(pd.DataFrame(rows, index=pd.Index(names, name="quantity")))


@eqx.filter_jit
def _mapped(fns: Any, values: Any) -> dict[str, Array]:
    return jax.lax.map(lambda entry: {name: fn(entry) for name, fn in fns.items()}, values)


def _quantities(
    draws: Mapping[str, np.ndarray], fns: Mapping[str, Callable]
) -> tuple[list[str], np.ndarray]:
    """Quantities as columns, `(chain, draw, quantity)`."""
    shape = next(iter(draws.values())).shape[:2]
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in draws.items()}
    found = jax.device_get(_mapped(dict(fns), flat))
    every = {name: np.asarray(found[name], float) for name in fns}
    return flatten({name: v.reshape(*shape, *v.shape[1:]) for name, v in every.items()})


def _controls(z: np.ndarray, score: np.ndarray, size: float, order: str | int) -> list[_Columns]:
    """Control variates of the orders that are wanted and that there are enough draws for."""
    sd = z.std(axis=0)
    moving = sd > 0
    u, s = ((z - z.mean(axis=0)) / np.where(moving, sd, 1.0))[:, moving], (score * sd)[:, moving]
    dim = u.shape[1]
    squares = u * s + 1
    wanted = {}
    if order in ("auto", 1):
        wanted["1"] = (dim, lambda: s)
    if order in ("auto", 2):
        wanted[_DIAGONAL] = (2 * dim, lambda: np.concatenate([s, squares], axis=1))
        if dim > 1:
            i, j = np.triu_indices(dim, 1)
            full = lambda: np.concatenate([s, squares, u[:, i] * s[:, j] + u[:, j] * s[:, i]], 1)  # noqa: E731
            wanted["2"] = (dim * (dim + 3) // 2, full)
    return [
        _Columns(name, make())
        for name, (count, make) in wanted.items()
        if count and size >= _DRAWS_PER_COLUMN * count
    ]


class _LeastSquares:
    """Ridge regressions of all quantities on the same columns."""

    def __init__(self, z: np.ndarray, f: np.ndarray) -> None:
        self.scale = z.std(axis=0)
        self.scale = np.where(self.scale > 0, self.scale, 1.0)
        scaled = (z - z.mean(axis=0)) / self.scale
        self.left, self.singular, self.right = np.linalg.svd(scaled, full_matrices=False)
        self.projected = self.left.T @ (f - f.mean(axis=0))
        self.floor = len(z) * np.finfo(float).eps * self.singular.max(initial=0.0)

    def coefficients(self, ridge: float, count: int) -> np.ndarray:
        """B for one ridge, relative to the columns' variances."""
        kept = self.singular > self.floor
        shrunk = np.zeros_like(self.singular)
        square = self.singular[kept] ** 2
        shrunk[kept] = self.singular[kept] / (square + ridge * count)
        return (self.right.T @ (shrunk[:, None] * self.projected)) / self.scale[:, None]


def _validated(z: np.ndarray, f: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Residual variance out of the fold, by ridge and quantity."""
    total = np.zeros((len(_RIDGES), f.shape[1]))
    for number in range(_FOLDS):
        out = fold == number
        fitted = _LeastSquares(z[~out], f[~out])
        centre = f[~out].mean(axis=0), z[~out].mean(axis=0)
        for index, ridge in enumerate(_RIDGES):
            b = fitted.coefficients(ridge, int((~out).sum()))
            rest = f[out] - centre[0] - (z[out] - centre[1]) @ b
            total[index] += np.sum(rest**2, axis=0)
    return total / len(f)


def _rows(
    values: np.ndarray,
    candidates: list[_Columns],
    ess: float | None,
    size: float,
) -> list[dict[str, Any]]:
    chains, length, count = values.shape
    fold = np.tile(np.arange(length) * _FOLDS // length, chains)
    f = values.reshape(-1, count)
    number = len(f)
    plain = Moments.of(values, ess)
    best = f.var(axis=0) * _GAIN
    chosen: list[tuple[int, float]] = [(0, 0.0)] * count
    for at, columns in enumerate(candidates[1:], start=1):
        found = _validated(columns.z, f, fold)
        ridge = np.argmin(found, axis=0)
        for index in np.flatnonzero(found.min(axis=0) < best):
            best[index] = found[ridge[index], index]
            chosen[index] = (at, _RIDGES[ridge[index]])
    refined, errors = plain.mean.copy(), plain.mean_error.copy()
    for choice in set(chosen) - {(0, 0.0)}:
        members = [index for index in range(count) if chosen[index] == choice]
        z = candidates[choice[0]].z
        b = _LeastSquares(z, f[:, members]).coefficients(choice[1], number)
        rest = f[:, members] - z @ b
        refined[members] = rest.mean(axis=0)
        k = z.shape[1]
        inflated = np.sqrt(size / (size - k - 1) * (size - 2) / (size - k - 2))
        series = rest.reshape(chains, length, -1)
        least = rest.std(axis=0) / np.sqrt(number if ess is None else ess)
        errors[members] = np.maximum(Moments.of(series, ess).mean_error, least) * inflated
    note = "no control variate lowers the error"
    if len(candidates) == 1:
        note = f"too few effective draws ({size:.0f})"
    rows = []
    for index in range(count):
        columns = candidates[chosen[index][0]]
        used = columns.order != _NONE
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = (plain.mean_error[index] / errors[index]) ** 2 if used else 1.0
        rows.append(
            {
                "mean": plain.mean[index],
                "mean_error": plain.mean_error[index],
                "refined": refined[index],
                "refined_error": errors[index],
                "reduction": gain,
                "order": columns.order,
                "columns": columns.z.shape[1],
                "note": "" if used or plain.sd[index] == 0 else note,
            }
        )
    return rows
