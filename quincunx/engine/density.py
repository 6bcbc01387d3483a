"""The compiled model: a log density that keeps the model's structure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from quincunx.engine import arguments, sharding, tracing
from quincunx.engine.errors import ModelError, listing, unknown
from quincunx.engine.labels import Labels
from quincunx.engine.language import Model
from quincunx.engine.native import native
from quincunx.engine.program import Program, trace_program
from quincunx.engine.rows import Block, Part, cut_evenly
from quincunx.engine.sharding import Shard
from quincunx.engine.structure import Structure
from quincunx.engine.surroundings import surroundings

Rows = Any
_STREAMED = 8192  # rows that are gone through at once where they are on disk


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _elements(program: Program, leaves: list[Any], z: Any, rows: Mapping[str, Any]) -> tuple:
    """Elements of the log prior (with Jacobians) and of the log likelihood at a position."""
    substitution = program.substitution(z, rows)
    trace = tracing.at_point(program.model, program.signature.rebuild(leaves), substitution, rows)
    prior = list(substitution.log_jacobians)
    for site in program.latents:
        if site.is_native and site.region in ("half-line", "box"):
            inside = trace[site.name]["fn"].support(trace[site.name]["value"])
            prior.append(jnp.where(inside, jnp.zeros((), z.dtype), -jnp.inf))
    data_plates = {plate.name for plate in program.data_plates}
    own, likelihood = tracing.terms(trace, data_plates, rows)
    return prior + own, likelihood


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _terms(program: Program, leaves: list[Any], z: Any, rows: Mapping[str, Any]) -> tuple:
    """Log prior (with Jacobians), and log likelihood, at a flat position."""
    zero = jnp.zeros((), z.dtype)
    prior, likelihood = _elements(program, leaves, z, rows)
    return sum(map(jnp.sum, prior), zero), sum(map(jnp.sum, likelihood), zero)


@functools.partial(jax.jit, static_argnums=(0, 3), inline=True)
def _at_values(
    program: Program, leaves: list[Any], values: Mapping[str, Any], want: str
) -> dict[str, Any]:
    """Log probability or value of each observed site at given latent values."""
    data = program.signature.rebuild(leaves)
    trace = tracing.at_point(program.model, data, tracing.given(values))
    observed = {site.name: trace[site.name] for site in program.role("observed")}
    if want == "value":
        return {name: tracing.unmasked(site, site["value"]) for name, site in observed.items()}
    return {name: tracing.unmasked(site, tracing.log_prob(site)) for name, site in observed.items()}


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _constrain(program: Program, leaves: list[Any], z: Any) -> dict[str, Any]:
    substitution = program.substitution(z, {})
    trace = tracing.at_point(program.model, program.signature.rebuild(leaves), substitution)
    return {
        site.name: trace[site.name]["value"] for site in program.role("latent", "deterministic")
    }


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _unconstrain(program: Program, leaves: list[Any], values: Mapping[str, Any]) -> Any:
    data = program.signature.rebuild(leaves)
    trace = tracing.at_point(program.model, data, tracing.given(values))
    parts = []
    for site in program.latents:
        value = trace[site.name]["value"]
        if not site.is_native:
            value = tracing.bijection(trace[site.name]["fn"].support).inv(value)
        parts.append(value.reshape(-1))
    return jnp.concatenate(parts) if parts else jnp.zeros(0)


class Density(eqx.Module):
    """A posterior as a log density over flat unconstrained positions `z` of shape `(dim,)`.

    log p(z | data) + const = log_prior(z) + log_likelihood(z), where the log prior holds the
    log Jacobian of the map from `z` to the constrained values.

    `native` is the same posterior over the model's own coordinates: sites on the real line, on
    half-lines, boxes and simplexes are in the position as they are, with no Jacobian, and the
    log density is not finite outside their supports. All else is the same.

    Array data are leaves of this module, so they are traced arguments of whatever is compiled
    from it: new data of the same shapes compile nothing again.

    Attributes:
        leaves: the traced arrays of the data.
        temperature: the power of the likelihood, `None` for one.
        program: the traced model.
        labels: dims and coords for output.
        order: by data plate, the row that stands in the place of each; only for plates whose
            arrays cannot be put in another order themselves.
        shard: which part of the rows this is of; `None` for all.
    """

    leaves: list[Any]
    temperature: Any
    program: Program = eqx.field(static=True)
    labels: Labels = eqx.field(static=True)
    order: Mapping[str, Any] = eqx.field(default_factory=dict, kw_only=True)
    shard: Shard | None = eqx.field(default=None, kw_only=True)

    @property
    def dim(self) -> int:
        """Number of coordinates of a position."""
        return self.program.dim

    @property
    def native(self) -> Density:
        """The density over the model's own coordinates."""
        return self._with(native(self.program))

    @property
    def unconstrained(self) -> Density:
        """The density over unconstrained coordinates."""
        return self._with(self.program.base or self.program)

    @property
    def structure(self) -> Structure:
        """What the compiler found: data plates, composite parts, Gaussian prior, supports."""
        return Structure(self)

    @property
    def data(self) -> dict[str, Any]:
        """The model's arguments."""
        return self.program.signature.rebuild(self.leaves)

    @property
    def is_on_disk(self) -> bool:
        """Whether rows of a data plate are on disk."""
        return any(plate.on_disk for plate in self.program.data_plates)

    def log_density(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Log posterior density up to a constant, with the Jacobian of the transforms."""
        prior, likelihood = self.log_terms(z)
        return prior + likelihood

    def log_prior(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Log prior density with the Jacobian, and factors outside data plates."""
        prior = _terms(self.program, self.leaves, z, self._first_rows())[0]
        return prior if self.shard is None else self.shard.prior * prior

    def log_likelihood(self, z: Float[Array, " dim"], rows: Rows = None) -> Float[Array, ""]:
        """Log likelihood of all rows, or its unbiased estimate from some.

        With `rows` a set of n distinct indices into a data plate of N rows, the terms in that
        plate are summed over `rows` and multiplied by N/n; all other terms are kept whole.

        A `Block` of contiguous rows is cut out of the arrays in one piece, which is faster than
        gathering chosen rows; n is then the number of its rows that count.

        Args:
            z: position.
            rows: integer indices, of shape `(n,)`, or a `Block`; by plate name where there are
                several data plates.

        Raises:
            ModelError: the model has no data plate, or not one of that name.
        """
        return self.log_terms(z, rows)[1]

    def log_terms(
        self, z: Float[Array, " dim"], rows: Rows = None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`log_prior` and `log_likelihood` from one run of the model.

        Rows on disk are gone through in blocks, which a gradient reads twice.
        """
        if self.shard is not None:
            return self._of_part(self.shard, z, rows)
        if rows is None and self.is_on_disk:
            return self.log_prior(z), self._by_blocks(z)
        named = {} if rows is None else self._rows(rows)
        prior, likelihood = _terms(self.program, self.leaves, z, named)
        return prior, self._tempered(likelihood)

    def permuted(self, permutation: Any) -> Density:
        """The density with the rows of its data plate in another order.

        Row i becomes row `permutation[i]` of the plate. The arrays of the plate are copied, no
        other ones. Where they are not the model's arguments as they stand, so that they cannot be
        copied, blocks of rows are gathered in that order instead.

        Args:
            permutation: a permutation of the rows, of shape `(N,)`.

        Raises:
            ModelError: the model has no data plate, or several.
        """
        plates = self.program.data_plates
        if len(plates) != 1:
            message = f"Model `{self.program.name}` has {len(plates)} data plates, "
            raise ModelError(message + "and not the one whose rows could be put in another order.")
        plate, permutation = plates[0], jnp.asarray(permutation)
        if plate.as_given and not plate.on_disk:
            names = self.program.signature.array_names
            leaves = [
                jnp.asarray(leaf)[permutation] if name in plate.arrays else leaf
                for name, leaf in zip(names, self.leaves, strict=True)
            ]
            return eqx.tree_at(lambda density: density.leaves, self, leaves)
        present = self.order.get(plate.name)
        order = permutation if present is None else jnp.asarray(present)[permutation]
        return eqx.tree_at(
            lambda density: density.order,
            self,
            {plate.name: order},
            is_leaf=lambda node: node is self.order,
        )

    def log_density_elements(self, z: Float[Array, " dim"]) -> list[Array]:
        """Arrays whose sums add up to `log_density`.

        In single precision log density differences are more exact when these are subtracted one
        by one before they are summed.
        """
        prior, _ = _elements(self.program, self.leaves, z, self._first_rows())
        if self.shard is not None:
            prior = [self.shard.prior * part for part in prior]
        return prior + self.log_likelihood_elements(z)

    def log_likelihood_elements(self, z: Float[Array, " dim"]) -> list[Array]:
        """Arrays whose sums add up to `log_likelihood`."""
        if self.is_on_disk:
            return [self._by_blocks(z)]
        if self.shard is not None:
            return [self.log_likelihood(z)]
        _, likelihood = _elements(self.program, self.leaves, z, {})
        return [self._tempered(part) for part in likelihood]

    def pointwise_log_likelihood(self, z: Float[Array, " dim"]) -> dict[str, Array]:
        """Log likelihood of each observation, by site; never scaled."""
        return self.pointwise_at(self.latent(self.constrain(z)))

    def pointwise_at(self, values: Mapping[str, Any]) -> dict[str, Array]:
        """Log likelihood of each observation at constrained latent values; never scaled.

        Entries under a mask are NaN: they were not observed.

        Raises:
            ModelError: the observations are on disk.
        """
        self._check_in_memory("their log likelihoods")
        return _at_values(self.program, self.leaves, dict(values), "log_prob")

    def observations(self, z: Float[Array, " dim"]) -> dict[str, Array]:
        """The values of the observed sites.

        Raises:
            ModelError: they are on disk.
        """
        self._check_in_memory("they")
        return _at_values(self.program, self.leaves, self.latent(self.constrain(z)), "value")

    def latent(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Only the latent sites of a dict of values by site."""
        return {site.name: values[site.name] for site in self.program.latents}

    def constrain(self, z: Float[Array, " dim"]) -> dict[str, Array]:
        """Latent and deterministic values at a position, by site."""
        return _constrain(self.program, self.leaves, z)

    def unconstrain(self, values: Mapping[str, Any]) -> Float[Array, " dim"]:
        """The position at which the latent sites have the given values.

        Raises:
            ModelError: an unknown or missing site, or a value of the wrong shape.
        """
        values = {name: jnp.asarray(value) for name, value in values.items()}
        self.check_values(values)
        missing = [site.name for site in self.program.latents if site.name not in values]
        if missing:
            raise ModelError(f"No value for {listing(missing)}; give one for every latent site.")
        return _unconstrain(self.program, self.leaves, values)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """A starting position, uniform on (-2, 2) in each unconstrained coordinate."""
        free = self.unconstrained
        z = jax.random.uniform(key, (free.dim,), minval=-2.0, maxval=2.0)
        return z if self.program.base is None else self.unconstrain(free.latent(free.constrain(z)))

    def simulate(self, key: PRNGKeyArray) -> dict[str, Array]:
        """One draw of every site from the prior predictive law.

        Raises:
            ModelError: a prior is improper, so that it cannot be drawn from.
        """
        return self.predict({}, key)

    def predict(self, values: Mapping[str, Any], key: PRNGKeyArray) -> dict[str, Array]:
        """One draw of all sites that are not in `values`, observed ones included.

        Raises:
            ModelError: an unknown site, a wrong shape, or an improper prior to be drawn from.
        """
        self.check_values(values)
        improper = [
            site
            for site in self.program.latents
            if site.distribution == "ImproperUniform" and site.name not in values
        ]
        if improper:
            message = f"{improper[0]} has an improper prior, which cannot be drawn from. "
            raise ModelError(message + "Give it a proper prior to simulate from the model.")
        trace = tracing.forward(self.program.model, self.data, key, values)
        kinds = ("sample", "deterministic")
        return {
            name: message["value"]
            for name, message in trace.items()
            if message["type"] in kinds and not tracing.is_factor(message)
        }

    def tempered(self, temperature: Any) -> Density:
        """The density with its likelihood raised to a power: 0 is the prior, 1 the posterior."""
        power = jnp.asarray(temperature)
        kept = {"order": self.order, "shard": self.shard}
        return Density(self.leaves, power, self.program, self.labels, **kept)

    def _with(self, program: Program) -> Density:
        kept = {"order": self.order, "shard": self.shard}
        return Density(self.leaves, self.temperature, program, self.labels, **kept)

    def check_values(self, values: Mapping[str, Any]) -> None:
        """Refuse values for unknown sites or of the wrong shape."""
        latents = {site.name: site for site in self.program.latents}
        for name, value in values.items():
            if name not in latents:
                raise ModelError(unknown("latent site", name, latents))
            shape, expected = tuple(jnp.shape(value)), latents[name].shape
            if shape != expected:
                message = f"The value of {latents[name]} has shape {shape}; it must be {expected}."
                raise ModelError(message)

    def _check_in_memory(self, what: str) -> None:
        for plate in self.program.data_plates:
            if plate.on_disk:
                message = f"The {plate.size} rows of plate '{plate.name}' are on disk, and {what} "
                raise ModelError(message + "are not read into memory: ask for some of the rows.")

    def _first_rows(self) -> dict[str, Any]:
        """Few rows, where all would have to be read for terms that do not depend on them."""
        if self.shard is not None:
            return dict(self.shard.rows(self))
        return {plate.name: Block(0, 1) for plate in self.program.data_plates if plate.on_disk}

    def _by_blocks(self, z: Any) -> Any:
        """The log likelihood as a sum over blocks of rows, none of which is kept.

        A block of n of N rows gives its own terms times N/n, and those outside the plate: so the
        blocks' means, weighted by n/N, add up to the whole.
        """
        plates = [plate for plate in self.program.data_plates if plate.on_disk]
        if len(plates) > 1:
            message = f"Model `{self.program.name}` has rows on disk in {len(plates)} data plates, "
            raise ModelError(message + "which are not gone through together. Load some of them.")
        rows = plates[0].size
        number = -(-rows // _STREAMED)

        @jax.checkpoint
        def part(z: Any, index: Any) -> Any:
            block = cut_evenly(rows, number, index, jnp.minimum(index + 1, number - 1))
            share = (block.size if block.count is None else block.count) / rows
            named = self._rows({plates[0].name: block})
            return share * _terms(self.program, self.leaves, z, named)[1]

        def add(total: Any, index: Any) -> tuple[Any, None]:
            return total + part(z, index), None

        total, _ = jax.lax.scan(add, jnp.zeros((), z.dtype), jnp.arange(number))
        return self._tempered(total)

    def _of_part(self, shard: Shard, z: Any, rows: Rows) -> tuple[Any, Any]:
        """Terms of a part of the rows, summed over the devices that have the others."""
        own = shard.pieces(self, {} if rows is None else self._rows(rows))
        if shard.axis is None:
            prior, likelihood = _terms(self.program, self.leaves, z, own)
            return shard.prior * prior, self._tempered(likelihood)
        prior, likelihood = _terms(self.program, self.leaves, sharding.spread(shard.axis, z), own)
        both: Any = sharding.total(shard.axis, jnp.stack([prior / shard.parts, likelihood]))
        return shard.prior * both[0], self._tempered(both[1])

    def _tempered(self, likelihood: Any) -> Any:
        return likelihood if self.temperature is None else self.temperature * likelihood

    def _rows(self, rows: Rows) -> dict[str, Any]:
        plates = {plate.name: plate for plate in self.program.data_plates}
        if not plates:
            raise ModelError(_no_data_plate(self.program))
        if not isinstance(rows, Mapping):
            if len(plates) > 1:
                message = f"The model has several data plates, {listing(plates)}; "
                raise ModelError(message + "give `rows` as a dict by plate name.")
            rows = {next(iter(plates)): rows}
        rows = dict(rows)
        for name, indices in rows.items():
            if name not in plates:
                raise ModelError(unknown("data plate", name, plates))
            order = self.order.get(name)
            if isinstance(indices, Part):
                continue
            if isinstance(indices, Block):
                _check_block(indices, name, plates[name].size)
                rows[name] = replace(indices, order=order)
                continue
            indices = rows[name] = jnp.asarray(indices)
            if not indices.shape or indices.shape[0] == 0:
                raise ModelError(f"rows of plate '{name}' must be a vector of one index or more.")
            if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
                message = f"rows of plate '{name}' must be a vector of integers, "
                raise ModelError(message + f"not {indices.dtype} of shape {indices.shape}.")
            if indices.shape[0] > plates[name].size:
                message = f"{indices.shape[0]} rows were asked of plate '{name}', "
                raise ModelError(message + f"which has {plates[name].size}.")
            known = not isinstance(indices, Tracer)
            if known and not bool(((indices >= 0) & (indices < plates[name].size)).all()):
                message = f"rows of plate '{name}' must lie in 0 ... {plates[name].size - 1}."
                raise ModelError(message)
            if order is not None:
                rows[name] = jnp.asarray(order)[indices]
        return rows


def _check_block(block: Block, name: str, rows: int) -> None:
    if not 0 < block.size <= rows:
        message = f"A block of {block.size} rows was asked of plate '{name}', which has {rows}."
        raise ModelError(message)


def _no_data_plate(program: Program) -> str:
    observed = program.role("observed")
    message = f"Model `{program.name}` has no data plate, so its rows cannot be subsampled. "
    if observed:
        message += f"Put {observed[0]} inside `with plate('row', X, y) as (x, t):` and use x, t."
    return message


def compile(
    model: Callable[..., Any],
    data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Density:
    """Compile a model and its data to a `Density` from one abstract trace.

    No array is computed and nothing is compiled by XLA here.

    Args:
        model: a Quincunx model, a NumPyro model function, or what `from_log_density` returns.
        data: the model's arguments by name. Arrays and lists of numbers are traced; Python
            scalars, strings and `None` are constants of the program.
        coords: labels by dimension name.

    Returns:
        The density.

    Raises:
        ModelError: the model, its data or its labels are wrong; the message says what and where.
    """
    if not callable(model):
        message = f"`model` must be a function, not {type(model).__name__}. "
        raise ModelError(message + "For a bare log density use `qx.from_log_density`.")
    try:
        hash(model)
    except TypeError:
        model = Model(model)
    signature, leaves = arguments.normalise(data)
    arguments.check_names(model, data or {}, getattr(model, "__name__", "model"))
    program = trace_program(model, signature, surroundings(model))
    labels = Labels.of(program.sites, coords)
    return Density(leaves, None, program, labels)
