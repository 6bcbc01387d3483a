r"""The conditional sampler: an encoder of data sets, a head, and the scales of the parameters.

With u the standardised parameters, z = a + b u and c the context of data y,

    log q(z | y) = log head(u | c) - sum log b.

It is trained on pairs (z, y) from the model, by minimising

    E[ -log q(z | y) ] = E[ KL( p(z | y) || q(z | y) ) ] + const,

which makes q cover the posterior, as importance weights need. Where q is of paths that end in z,
log q of a random path back from z takes its place, whose mean is no more than log q(z | y).

Papamakarios and Murray (2016), Fast epsilon-free inference of simulation models with Bayesian
conditional density estimation, NeurIPS; Cranmer, Brehmer and Louppe (2020), The frontier of
simulation-based inference, PNAS 117:30055.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine.errors import MethodError, ModelError
from quincunx.inference.amortized.encoder import Encoder, Scale
from quincunx.inference.amortized.heads import Flow, Head, Mixture, Paths
from quincunx.inference.amortized.inputs import Inputs, Layout
from quincunx.inference.amortized.sources import Simulated, Source

HEADS = ("auto", "mixture", "flow", "paths")
_MIXTURE, _MOST = 12, 50  # parameters up to which a mixture is best, and a head any good
_PILOT = 512  # data sets that scales are taken from


class Network(eqx.Module):
    """A conditional sampler.

    Attributes:
        encoder: reads data.
        head: the conditional density of standardised parameters.
        location: the parameters' centre.
        scale: their spread.
    """

    encoder: Encoder
    head: Head
    location: Float[Array, " dim"]
    scale: Float[Array, " dim"]

    def log_prob(self, z: Float[Array, " dim"], inputs: Inputs, key: Array) -> Float[Array, ""]:
        """Log q(z | data), in single precision; of a path to z where the head is of paths."""
        location, scale = self._affine()
        u = ((z - location) / scale).astype(jnp.float32)
        log_scale = jnp.sum(jnp.log(scale)).astype(jnp.float32)
        return self.head.log_prob(u, self.encoder(inputs), key) - log_scale

    def draw(
        self, key: Array, context: Float[Array, " width"], n: int
    ) -> tuple[Float[Array, "n dim"], Float[Array, " n"]]:
        """Draws at the context of a data set, and their log density."""
        location, scale = self._affine()
        u, log_q = self.head.draw(key, context, n)
        z = location[None] + scale[None] * u.astype(scale.dtype)
        return z, log_q.astype(scale.dtype) - jnp.sum(jnp.log(scale))

    def _affine(self) -> tuple[Array, Array]:
        return jax.lax.stop_gradient((self.location, self.scale))


def build(source: Source, head: str, width: int, key: Array) -> Network:
    """An untrained network with scales from simulated data sets.

    Raises:
        MethodError: too many parameters.
        ModelError: simulated parameters are not finite.
    """
    dim, name = source.density.dim, source.density.program.name
    if dim > _MOST:
        message = (
            f"Model `{name}` has {dim} unconstrained parameters; `amortize` is good for up to "
        )
        raise MethodError(message + f"{_MOST}. Sum some out of the model, or use `infer`.")
    keys = jax.random.split(jax.random.split(key)[0], _PILOT)
    data, inputs = jax.device_get(_simulated(source, keys))
    z = data.z[np.isfinite(data.z).all(axis=1)]
    if len(z) < _PILOT // 2:
        message = f"Of {_PILOT} parameter sets from the prior of model `{name}` only {len(z)} are "
        message += "finite in unconstrained space. Use priors with less mass at the ends of their "
        raise ModelError(message + "supports.")
    whole = np.isfinite(inputs.fixed).all(axis=1)
    for values in inputs.sets:
        whole &= np.isfinite(values).all(axis=(1, 2))
    if np.sum(whole) < _PILOT // 2:
        message = (
            f"Of {_PILOT} data sets that model `{name}` makes only {np.sum(whole)} are finite. "
        )
        message += "Look for overflow in the model, run forward from its priors, and for NaN or "
        raise ModelError(message + "infinite entries in what `simulate` gives.")
    spread = Scale.of(z)
    if not np.isfinite(spread.spread).all():
        raise ModelError(f"A parameter of model `{name}` never varies under its prior.")
    sets = tuple(
        Scale.of(np.concatenate([rows[:count] for rows, count in zip(values, counts, strict=True)]))
        for values, counts in zip(inputs.sets, inputs.counts, strict=True)
    )
    scales = (sets, Scale.of(inputs.fixed))
    start = jax.random.split(key)[1]
    return assemble(source.layout, dim, head, width, scales, spread, start)


@eqx.filter_jit
def assemble(
    layout: Layout,
    dim: int,
    head: str,
    width: int,
    scales: tuple[tuple[Scale, ...], Scale],
    parameters: Scale,
    key: Array,
) -> Network:
    """A network with random weights and given scales of the data and of the parameters."""
    encoding, start = jax.random.split(key)
    encoder = Encoder(layout, scales, width, encoding)
    kind = ("mixture" if dim <= _MIXTURE else "flow") if head == "auto" else head
    made: Any = {"mixture": Mixture, "flow": Flow, "paths": Paths}[kind](dim, width, start)
    return Network(encoder, made, parameters.centre, parameters.spread)


def skeleton(source: Source, head: str, width: int) -> Network:
    """A network whose arrays have shapes alone, for loading."""

    def make(key: Array) -> Network:
        form: Any = jax.eval_shape(lambda key: source.inputs(source(key)), key)
        sizes = [*(rows.shape[1] for rows in form.sets), form.fixed.shape[0], source.density.dim]
        *sets, fixed, parameters = (Scale(jnp.zeros(size), jnp.ones(size)) for size in sizes)
        scales = (tuple(sets), fixed)
        return assemble(source.layout, source.density.dim, head, width, scales, parameters, key)

    return eqx.filter_eval_shape(make, jax.random.key(0))


@eqx.filter_jit
def _simulated(source: Source, keys: Array) -> tuple[Simulated, Inputs]:
    data = jax.vmap(source)(keys)
    return data, jax.vmap(source.inputs)(data)
