"""Data sets drawn from a model, in the place of those that it was compiled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quincunx.engine import tracing
from quincunx.engine.density import Density, compile
from quincunx.engine.dependence import influences
from quincunx.engine.errors import ModelError
from quincunx.engine.program import Program

TOGETHER = 128  # simulations that are computed at once


def observed_arguments(density: Density) -> dict[str, str]:
    """For each observed site the argument that holds its values.

    Raises:
        ModelError: it is no argument as it stands, or one that the model uses for more than this
            observation; or the model has factors or no observations.
    """
    program = density.program
    factors = [site for site in program.sites if site.role == "factor"]
    if factors:
        message = f"{factors[0]} is a factor, which has no data that could be simulated. "
        raise ModelError(message + "`validate` needs a model of sample sites alone.")
    observed = program.role("observed")
    if not observed:
        message = f"Model `{program.name}` observes nothing under `data_like`: give the observed "
        raise ModelError(message + "arguments as well, for their shapes.")
    hidden = [site for site in observed if not site.argument]
    if hidden:
        message = f"The values of {hidden[0]} are not an argument of the model as it stands, so "
        raise ModelError(message + "simulated ones cannot be put in their place.")
    arguments = {site.name: str(site.argument) for site in observed}
    _check_use(program, arguments)
    return arguments


def _check_use(program: Program, arguments: Mapping[str, str]) -> None:
    """Refuse observed arguments that are used for more than one observation.

    Data are simulated with the example's values wherever else an argument is used, and fitted with
    the simulated ones there: these would be two models.
    """
    found = _distributions(program)
    names = program.signature.array_names
    for site in program.role("latent", "observed"):
        for name, argument in arguments.items():
            other = program.site(name)
            if site.role == "observed" and site.name != name and site.argument == argument:
                message = f"Model `{program.name}`: {site} and {other} both observe the argument "
                message += f"'{argument}', and simulated data of the two differ. "
                raise ModelError(message + "Give each an argument of its own.")
            if names.index(argument) in found[site.name]:
                whose = "its own observation" if site.name == name else f"observed by {other}"
                message = f"Model `{program.name}`, {site}: its distribution depends on the "
                message += f"argument '{argument}', {whose}, so there is no one model to simulate "
                message += f"from. Give what is computed from '{argument}' as another argument."
                raise ModelError(message)


def _distributions(program: Program) -> dict[str, frozenset[int]]:
    """For each latent and observed site the arrays that its distribution may depend on."""

    def terms(leaves: Any, values: Any) -> Any:
        data = program.signature.rebuild(leaves)
        trace = tracing.forward(program.model, data, jax.random.key(0), values)
        return {name: tracing.scaled_sum(trace[name]) for name in values}

    leaves = program.signature.specs()
    sites = program.role("latent", "observed")
    values = {site.name: jax.ShapeDtypeStruct(site.shape, site.dtype) for site in sites}
    return influences(terms, leaves, values)


def able_to_hold(density: Density, arguments: Mapping[str, str]) -> Density:
    """The density with observed arguments of a type that holds what is simulated for them.

    Integers in the place of real numbers would cut off what is behind the point.
    """
    names = list(density.program.signature.array_names)
    drawn = jax.eval_shape(density.simulate, jax.random.key(0))
    leaves = list(density.leaves)
    for site, argument in arguments.items():
        index = names.index(argument)
        old = np.asarray(leaves[index])
        leaves[index] = old.astype(jnp.promote_types(old.dtype, drawn[site].dtype))
    pairs = zip(leaves, density.leaves, strict=True)
    if all(new is old or new.dtype == old.dtype for new, old in pairs):
        return density
    return compile(density.program.model, density.program.signature.rebuild(leaves))


@eqx.filter_jit
def simulated(density: Density, keys: Array) -> dict[str, Array]:
    """Values of all sites by name, `(simulation, ...)`."""
    return jax.lax.map(density.simulate, keys, batch_size=TOGETHER)


def with_data(
    density: Density, arguments: Mapping[str, str], drawn: Mapping[str, np.ndarray]
) -> list[Any]:
    """Arrays that differ between simulations, with a leading axis; `None` for all others."""
    names = list(density.program.signature.array_names)
    leaves: list[Any] = [None] * len(names)
    for site, argument in arguments.items():
        index = names.index(argument)
        leaves[index] = np.asarray(drawn[site]).astype(np.asarray(density.leaves[index]).dtype)
    return leaves


def one_of(density: Density, leaves: list[Any]) -> Density:
    """The density with the data of one simulation."""
    pairs = zip(density.leaves, leaves, strict=True)
    own = [old if new is None else new for old, new in pairs]
    return eqx.tree_at(lambda one: one.leaves, density, own)
