"""What a model says of each draw: likelihoods, predictions, simulations, in one compiled map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from quincunx.engine.density import Density
from quincunx.engine.errors import ModelError

_BATCH = 256


def draws_shape(draws: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of chains and draws."""
    return next(iter(draws.values())).shape[:2]


def check_latent_shapes(density: Density, draws: Mapping[str, np.ndarray]) -> None:
    """Refuse draws of another shape than the model's latent sites have.

    Raises:
        ModelError: names the site.
    """
    for site in density.program.latents:
        if site.name in draws and draws[site.name].shape[2:] != site.shape:
            message = f"{site} has shape {site.shape} under the new data, but "
            message += f"{draws[site.name].shape[2:]} in the fit. Its units must be the same."
            raise ModelError(message)


def predict_one(density: Density, names: tuple[str, ...], values: Any, key: Any) -> dict[str, Any]:
    """Named sites drawn given a draw."""
    drawn = density.predict(values, key)
    return {name: drawn[name] for name in names}


def simulate_one(density: Density, names: tuple[str, ...], key: Any) -> dict[str, Any]:
    """All sites drawn from the prior."""
    del names
    return density.simulate(key)


def pointwise_one(density: Density, names: tuple[str, ...], values: Any) -> dict[str, Any]:
    """Log likelihood of each observation at a draw."""
    del names
    return density.pointwise_at(values)


@eqx.filter_jit
def _run(fn: Any, density: Density, names: tuple[str, ...], arguments: tuple) -> Any:
    return jax.lax.map(lambda entry: fn(density, names, *entry), arguments, batch_size=_BATCH)


def over_draws(
    fn: Any, density: Density, names: tuple[str, ...], *arguments: Any
) -> dict[str, np.ndarray]:
    """Apply `fn(density, names, *entry)` over the leading (chain, draw) axes of the arguments."""
    shape = jax.tree.leaves(arguments)[0].shape[:2]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), arguments)
    values = jax.device_get(_run(fn, density, names, flat))
    return {name: value.reshape(*shape, *value.shape[1:]) for name, value in values.items()}
