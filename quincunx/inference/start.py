"""Where chains start: a position with finite log density and state."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError, ModelError, unknown
from quincunx.engine.preflight import blame
from quincunx.inference.driver import (
    SHARED,
    Carry,
    axes_of,
    density_specs,
    own_rows,
    placement,
    prepared_specs,
)
from quincunx.inference.method import Kernel

_TRIES = 100
_STRATEGIES = ("uniform", "prior")
AT_WILL = "at will"


def chain_keys(key: Array, chains: Any) -> tuple[Array, Array]:
    """Keys for the start and for the transitions of each chain."""
    start, steps = jax.random.split(key)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return fold(start, chains), fold(steps, chains)


def given_values(density: Density, init: Any, num_chains: int) -> tuple[str, dict[str, np.ndarray]]:
    """The strategy and the values that `init` fixes, with a leading axis over chains.

    Raises:
        ModelError: an unknown site or a value of the wrong shape.
        MethodError: an unknown strategy.
    """
    if init is None:
        return AT_WILL, {}
    if isinstance(init, str):
        if init not in _STRATEGIES:
            raise MethodError(unknown("strategy", init, _STRATEGIES, " in `init`"))
        return init, {}
    if not isinstance(init, Mapping):
        message = f"`init` must be 'uniform', 'prior' or a dict of values by site, not {init!r}."
        raise MethodError(message)
    latents = {site.name: site for site in density.program.latents}
    values = {}
    for name, value in init.items():
        if name not in latents:
            raise ModelError(unknown("latent site", name, latents, " in `init`"))
        array, shape = np.asarray(value), latents[name].shape
        if array.dtype.kind not in "biuf":
            raise ModelError(f"`init['{name}']` must be numbers, not {value!r}.")
        if array.shape == shape:
            array = np.broadcast_to(array, (num_chains, *shape))
        if array.shape != (num_chains, *shape):
            message = f"`init['{name}']` has shape {array.shape}; {latents[name]} needs {shape}, "
            raise ModelError(message + f"or {(num_chains, *shape)} for one value per chain.")
        if not np.all(np.isfinite(array)):
            raise ModelError(f"`init['{name}']` is not finite.")
        values[name] = array.astype(jax.dtypes.canonicalize_dtype(latents[name].dtype))
    return "uniform", values


@eqx.filter_jit
def begin(
    method: Kernel,
    strategy: str,
    density: Density,
    key: Array,
    chains: Any,
    given: Mapping[str, Any],
    prepared: Any = (),
    mesh: Mesh | None = None,
) -> tuple[Carry, Array, Array, Array]:
    """Find a start for each chain.

    Where there is a mesh, every device looks for the starts of its chains.

    Returns:
        The carry, the chains' step keys, which chains found a start, and the last positions.
    """
    if mesh is None:
        return begin_here(method, strategy, density, key, chains, given, prepared)

    def run(density: Density, *rest: Any) -> tuple[Carry, Array, Array, Array]:
        return begin_here(method, strategy, own_rows(density), *rest)

    everywhere, along = PartitionSpec(), PartitionSpec("chains")
    run = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(density_specs(density), everywhere, along, along, prepared_specs(method)),
        out_specs=(placement(method), along, along, along),
        check_vma=False,
    )
    return run(density, key, chains, given, prepared)


def begin_here(
    method: Kernel,
    strategy: str,
    density: Density,
    key: Array,
    chains: Any,
    given: Mapping[str, Any],
    prepared: Any,
) -> tuple[Carry, Array, Array, Array]:
    """`begin` on one device, not compiled by itself."""
    start_keys, step_keys = chain_keys(key, chains)
    find = functools.partial(_find, method, strategy, density)
    state, found, position = jax.vmap(find)(start_keys, given)
    state = jax.tree.map(
        lambda axis, leaf: leaf[0] if axis == SHARED else leaf, axes_of(method, state), state
    )
    state = jax.tree.map(
        lambda new, old: jnp.asarray(new, old.dtype),
        method.settle(state, prepared, start_keys, at_will=strategy == AT_WILL),
        state,
    )
    zero = jnp.zeros(chains.shape[0], jnp.int32)
    return Carry(state, zero, zero, zero, zero > 0), step_keys, found, position


def _find(
    method: Kernel, strategy: str, density: Density, key: Array, given: Mapping[str, Array]
) -> tuple[Any, Array, Array]:
    def candidate(trial: Array) -> tuple[Any, Array, Array]:
        trial_key = jax.random.fold_in(key, trial)
        if strategy == "prior":
            position = density.unconstrain(density.latent(density.simulate(trial_key)))
        else:
            position = density.initial(trial_key)
        if given:
            drawn = density.latent(density.constrain(position))
            position = density.unconstrain({**drawn, **given})
        state = jax.tree.map(_strong, method.init(density, position, trial_key))
        return state, _finite(state), position

    def search(loop: tuple) -> tuple:
        return (loop[0] + 1, *candidate(loop[0]))

    def unfinished(loop: tuple) -> Array:
        return ~loop[2] & (loop[0] < _TRIES)

    candidate = jax.jit(candidate, inline=True)
    trial = jnp.zeros((), jnp.int32)
    blank = jax.tree.map(
        lambda spec: jnp.zeros(spec.shape, spec.dtype), jax.eval_shape(candidate, trial)
    )
    _, state, found, position = jax.lax.while_loop(unfinished, search, (trial, *blank))
    return state, found, position


def _strong(leaf: Array) -> Array:
    """Without weak type, so that a state has one type before and after a step."""
    return (
        leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
        else jnp.asarray(leaf, leaf.dtype)
    )


def _finite(state: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def check_start(density: Density, found: Any, positions: Any) -> None:
    """Refuse to run when a chain found no start, saying which site is to blame.

    Raises:
        ModelError: with the log probability and gradient of each site at the last position.
    """
    found = np.asarray(found)
    if found.all():
        return
    position = np.asarray(positions)[int(np.argmin(found))]
    message = f"Model `{density.program.name}`: no start with finite log density and gradient was "
    message += f"found in {_TRIES} tries for {int((~found).sum())} of {len(found)} chains. "
    raise ModelError(message + blame(density, position))
