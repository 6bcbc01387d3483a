r"""Chains in place of weighted draws, where those are poor or the data unlike the simulated ones.

They start at draws resampled by their weights. Where the data are like the simulated ones, the
covariance of the network's draws, which training makes cover the posterior, is the first inverse
mass matrix: a short warm-up refines it. Elsewhere nothing that the network says of scales is relied
on, and warm-up is longer.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from quincunx.engine.density import Density
from quincunx.engine.errors import ModelWarning
from quincunx.inference.amortized.answers import POOR, Draws, notes
from quincunx.inference.diagnostics.importance import pareto_smoothed
from quincunx.inference.fit import Fit
from quincunx.inference.method import Preparation
from quincunx.inference.methods.nuts import NUTS, State
from quincunx.inference.run import infer

_CHAINS, _LEAST = 4, 250  # chains, and the fewest draws of each
_WARMUP, _SHORT = 500, 300  # transitions of warm-up, from unit scales and from known ones


class Scaled(NUTS):
    """NUTS whose warm-up starts from a mass matrix that is about right.

    Attributes:
        inverse_mass_matrix: `(dim, dim)`.
    """

    mass_matrix: str = "dense"
    inverse_mass_matrix: Float[np.ndarray, "dim dim"] = eqx.field(kw_only=True)

    def settings(self) -> dict[str, Any]:
        """Those of NUTS."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(NUTS)}

    def prepare(self, density: Density, key: Array, *, mesh: Any = None) -> Preparation:
        """The matrix, for `settle`."""
        del density, key, mesh
        return Preparation(self.inverse_mass_matrix)

    def settle(self, states: State, prepared: PyTree, keys: Array, *, at_will: bool) -> State:
        """Every chain has the matrix."""
        del keys, at_will
        metric = states.metric
        shape = metric.inverse_mass_matrix.shape
        whole = jnp.broadcast_to(jnp.asarray(prepared), shape)
        return states._replace(metric=metric._replace(inverse_mass_matrix=whole))


def by_chains(
    model: Callable[..., Any],
    data: Mapping[str, Any],
    density: Density,
    found: Draws,
    k: float,
    num_samples: int,
    key: Array,
    spent: int,
    coords: Mapping[str, Any] | None,
) -> Fit:
    """Short chains of NUTS from draws resampled by their weights.

    Args:
        model: the model.
        data: a data set.
        density: of the model with data of any size.
        found: draws for this data set.
        k: Pareto k of their weights.
        num_samples: draws that were asked for.
        key: the only source of randomness.
        spent: density evaluations so far.
        coords: labels by dimension name.
    """
    distance = float(found.distance)
    alike = distance <= 1
    reason = f"Pareto k of the weights is {k:.2f} (not below {POOR})"
    if not alike:
        reason = "The data are unlike those that the model simulates"
    message = f"{reason}: the amortised answer was replaced by {_CHAINS} chains of NUTS."
    warnings.warn(message, ModelWarning, stacklevel=3)
    matrix = covariance(found.z) if alike else None
    method = NUTS() if matrix is None else Scaled(inverse_mass_matrix=matrix)
    fit = infer(
        model,
        data,
        method,
        num_warmup=_WARMUP if matrix is None else _SHORT,
        num_samples=max(-(-num_samples // _CHAINS), _LEAST),
        num_chains=_CHAINS,
        key=key,
        init=starts(density, found, key),
        coords=coords,
        progress=False,
    )
    fit.costs["evaluations"] += spent
    for group in ("posterior", "sample_stats"):
        fit.tree[group].attrs.update(notes("nuts", k, distance))
        fit.tree[group].attrs["costs"] = json.dumps(fit.costs)
    return fit


def covariance(z: Float[np.ndarray, "n dim"]) -> np.ndarray | None:
    """Covariance of the draws that are finite; `None` where it is singular."""
    z = np.asarray(z, float)
    z = z[np.isfinite(z).all(axis=1)]
    if len(z) <= 2 * z.shape[1]:
        return None
    made = np.atleast_2d(np.cov(z.T))
    scales = np.sqrt(np.diag(made))
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        return None
    values = np.linalg.eigvalsh(made / np.outer(scales, scales))
    return made if values[0] > 1e-8 else None


def starts(density: Density, found: Draws, key: Array) -> dict[str, np.ndarray] | None:
    """Distinct draws in proportion to their weights, one for each chain."""
    log_weight, _ = pareto_smoothed(found.log_weight)
    usable = np.flatnonzero(np.isfinite(log_weight))
    if len(usable) < _CHAINS:
        return None
    seed = np.asarray(jax.random.key_data(key)).astype(np.uint32)
    noise = np.random.default_rng(seed).gumbel(size=len(usable))
    chosen = usable[np.argsort(-(log_weight[usable] + noise))[:_CHAINS]]
    return {site.name: found.values[site.name][chosen] for site in density.program.latents}
