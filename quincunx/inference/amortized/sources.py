"""Where simulated data sets come from: the model run forward on arguments of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine import arguments
from quincunx.engine.density import Density, compile
from quincunx.engine.errors import MethodError, ModelError
from quincunx.engine.preflight import preflight
from quincunx.engine.sharding import check_separable
from quincunx.inference.amortized.inputs import (
    Inputs,
    Layout,
    inputs_of,
    layout_of,
    with_rows,
)

Simulate = Callable[[Array], Mapping[str, Any]]


class Simulated(NamedTuple):
    """A data set with the parameters that it was drawn with.

    Attributes:
        z: the unconstrained parameters.
        leaves: the data's arrays, padded.
        counts: rows of each set.
    """

    z: Float[Array, " dim"]
    leaves: list[Array]
    counts: tuple[Array, ...]


class Source(eqx.Module):
    """Draws data sets from the joint law of parameters and data.

    Attributes:
        density: the model with data of the largest size.
        layout: where the parts of a data set go.
        pool: the arrays whose rows simulated data sets are made of; `None` where `arguments`
            makes them.
        arguments: the user's function; `None` where there is a pool.
    """

    density: Density
    layout: Layout = eqx.field(static=True)
    pool: list[Any] | None
    arguments: Simulate | None = eqx.field(static=True)

    def __call__(self, key: Array) -> Simulated:
        """One data set."""
        arrays, number, forward, lengths = jax.random.split(key, 4)
        leaves = self._arguments(arrays)
        density = with_leaves(self.density, leaves)
        values = density.simulate(forward)
        z = density.unconstrain(density.latent(values))
        z = _off_sphere(density, z, lengths)
        names = density.program.signature.array_names
        for site in density.program.role("observed"):
            index = names.index(str(site.argument))
            leaves[index] = values[site.name].astype(leaves[index].dtype)
        counts = tuple(
            jax.random.randint(jax.random.fold_in(number, place), (), rows.least, rows.most + 1)
            for place, rows in enumerate(self.layout.sets)
        )
        return Simulated(z, leaves, counts)

    def inputs(self, data: Simulated) -> Inputs:
        """What the encoder sees of a data set."""
        return inputs_of(self.layout, data.leaves, data.counts)

    def posterior(self, data: Simulated) -> Density:
        """The density given a data set."""
        return with_rows(with_leaves(self.density, data.leaves), self.layout, data.counts)

    def _arguments(self, key: Array) -> list[Any]:
        if self.arguments is not None:
            signature, leaves = arguments.normalise(self.arguments(key))
            _check_same(self.density, signature)
            return [jnp.asarray(leaf) for leaf in leaves]
        assert self.pool is not None
        leaves = [jnp.asarray(leaf) for leaf in self.pool]
        for place, rows in enumerate(self.layout.sets):
            if rows.least == rows.most == leaves[rows.leaves[0]].shape[0]:
                continue  # the design is kept as it is
            size = leaves[rows.leaves[0]].shape[0]
            chosen = jax.random.randint(jax.random.fold_in(key, place), (rows.most,), 0, size)
            for index in rows.leaves:
                leaves[index] = leaves[index][chosen]
        return leaves


def with_leaves(density: Density, leaves: list[Any]) -> Density:
    """The density with other arrays of the same shapes."""
    return eqx.tree_at(lambda density: density.leaves, density, leaves)


def source_of(
    model: Callable[..., Any],
    simulate: Mapping[str, Any] | Simulate,
    rows: Any,
    key: Array,
    *,
    checked: bool = True,
) -> Source:
    """Where the simulated data sets of a model come from.

    Args:
        model: the model.
        simulate: an example of the data, or a traceable function of a key that returns one.
        rows: least and most rows of a data set.
        key: for checks.
        checked: whether to look at simulated data sets, which takes seconds.

    Raises:
        ModelError: the model cannot be simulated from, or rows vary that cannot.
        MethodError: a wrong `simulate` or `rows`.
    """
    function = simulate if callable(simulate) else None
    if function is not None:
        example = _first(function, key)
    elif isinstance(simulate, Mapping):
        example = dict(simulate)
    else:
        message = "`simulate` must be an example of the data, as a dict of the model's arguments, "
        message += f"or a function of a JAX key that returns one, not {type(simulate).__name__}."
        raise MethodError(message)
    density = compile(model, example)
    check_simulable(density)
    layout = layout_of(density, rows)
    largest = resized(density, layout)
    if function is None:
        source = Source(largest, layout, list(density.leaves), None)
    else:
        for site in layout.sets:
            size = np.shape(density.leaves[site.leaves[0]])[0]
            if size != site.most:
                message = f"`simulate` returns {size} rows for plate '{site.plate}', but must "
                message += f"return the most that a data set may have, {site.most}; how many of "
                raise MethodError(message + "them are used is drawn for each data set.")
        source = Source(largest, layout, None, function)
    if checked:
        check_rows(model, source, key)
    return source


def resized(density: Density, layout: Layout) -> Density:
    """The model compiled for data of the largest size: rows repeated, or the first ones."""
    leaves = [np.asarray(leaf) for leaf in density.leaves]
    for rows in layout.sets:
        for index in rows.leaves:
            leaves[index] = np.resize(leaves[index], (rows.most, *leaves[index].shape[1:]))
    return compile(density.program.model, density.program.signature.rebuild(leaves))


def check_simulable(density: Density) -> None:
    """Refuse models whose data or parameters cannot be drawn."""
    program = density.program
    for site in program.role("factor"):
        message = f"Model `{program.name}` has a factor, {site}, which cannot be drawn from. "
        raise ModelError(message + "Write it as a `sample` site, or use `infer`.")
    observed = program.role("observed")
    if not observed:
        message = f"Model `{program.name}` observes nothing, so there is nothing to condition on. "
        message += "Give observed arguments arrays of the right shape; their values do not matter."
        raise ModelError(message)
    for site in observed:
        if site.argument is None:
            message = f"Model `{program.name}`, {site}: what is observed is not an argument as it "
            raise ModelError(message + "stands. Pass it to the model in the form it is observed.")
    if program.base is not None or density.is_on_disk:
        raise ModelError(f"The data of model `{program.name}` are on disk; load them first.")
    leaves = dict(zip(program.signature.array_names, density.leaves, strict=True))
    forward: Any = jax.eval_shape(density.simulate, jax.random.key(0))
    for site in observed:
        shape, wanted = forward[site.name].shape, np.shape(leaves[str(site.argument)])
        if shape != wanted:
            message = f"Model `{program.name}`, {site}: run forward it has shape {shape}, but its "
            raise ModelError(message + f"argument '{site.argument}' has shape {wanted}.")


def check_rows(model: Callable[..., Any], source: Source, key: Array) -> None:
    """Run the preflight on a simulated data set, and refuse rows that vary and cannot.

    Raises:
        ModelError: the prior depends on the rows, or rows on each other.
    """
    layout = source.layout
    one, other = jax.device_get(_some(source, key))
    density = with_leaves(source.density, one.leaves)
    preflight(density)
    if not layout.varies:
        return
    name = source.density.program.name
    if min(rows.most for rows in layout.sets) > 1:
        check_separable(density, 2, key)
    leaves = list(other.leaves)
    for rows in layout.sets:
        for index in rows.leaves:
            leaves[index] = leaves[index][: rows.least]
    few = compile(model, source.density.program.signature.rebuild(leaves))
    if few.dim != density.dim:
        message = f"Model `{name}` has {few.dim} parameters with the least rows and {density.dim} "
        raise ModelError(message + "with the most. Their number must not depend on the data.")
    priors = [float(_log_prior(each, one.z)) for each in (few, density)]
    if not np.isclose(*priors, rtol=1e-5, atol=1e-5):
        message = f"The prior of model `{name}` depends on the rows of its data plate: at the same "
        message += f"parameters its log density is {priors[0]:.6g} and {priors[1]:.6g}. "
        raise ModelError(message + "Leave out `rows`, or make the prior's settings arguments.")


@eqx.filter_jit
def _some(source: Source, key: Array) -> tuple[Simulated, Simulated]:
    first, second = jax.random.split(key)
    return source(first), source(second)


@eqx.filter_jit
def _log_prior(density: Density, z: Array) -> Array:
    return density.log_prior(z)


def _first(function: Simulate, key: Array) -> dict[str, Any]:
    """One data set of the user's function, run as it will be run: traced."""
    form: list[Any] = []

    def run(key: Array) -> list[Any]:
        data = function(key)
        if not isinstance(data, Mapping):
            message = f"`simulate` returned {type(data).__name__}; it must return a dict of the "
            raise MethodError(message + "model's arguments.")
        signature, leaves = arguments.normalise(data)
        form.append(signature)
        return [jnp.asarray(leaf) for leaf in leaves]

    leaves, again = jax.device_get([jax.jit(lambda key: run(key))(key) for _ in range(2)])
    if not all(np.array_equal(*pair, equal_nan=True) for pair in zip(leaves, again, strict=True)):
        message = "`simulate` gave different data for the same key. It is traced once, so that "
        message += "what it draws by other means than `jax.random` and its key is the same in all "
        raise MethodError(message + "data sets: draw it from the key.")
    return form[-1].rebuild(leaves)


def _check_same(density: Density, signature: arguments.Signature) -> None:
    if signature != density.program.signature:
        message = "`simulate` returned arguments of other names, shapes or constants than before. "
        raise MethodError(message + "Data sets must be alike but for the values of their arrays.")


def _off_sphere(density: Density, z: Array, key: Array) -> Array:
    """Give unit vectors the lengths that they have in the position: those of normal vectors."""
    for site in density.program.latents:
        if site.is_sphere:
            here = slice(site.offset, site.offset + site.size)
            noise = jax.random.normal(key, site.unconstrained_shape, z.dtype)
            length = jnp.linalg.norm(noise, axis=-1, keepdims=True)
            scaled = z[here].reshape(site.unconstrained_shape) * length
            z = z.at[here].set(scaled.reshape(-1))
    return z
