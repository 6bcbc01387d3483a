r"""A network that reads data sets, blind to the order of rows and to padding.

With x_1 ... x_n the real rows of a plate, f and g networks,

    h_i = f(x_i),    context = g( mean_i h_i, max_i h_i, log n, other numbers ),

with the means and maxima of every plate that is seen as a set. Numbers enter as arcsinh of their
distance from the prior predictive median, in units of the spread, so that heavy-tailed simulations
do not wreck the training.

Zaheer, Kottur, Ravanbakhsh, Poczos, Salakhutdinov and Smola (2017), Deep sets, NeurIPS.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.inference.amortized.inputs import Inputs, Layout

_IQR = 1.349  # interquartile range of a standard normal variable


class Scale(eqx.Module):
    """Centre and spread of some numbers; never trained.

    Attributes:
        centre: medians.
        spread: their spread, infinite for numbers that are always the same.
    """

    centre: Float[Array, " numbers"]
    spread: Float[Array, " numbers"]

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """From an array `(sample, numbers)`; entries that are not finite are left out."""
        if not values.shape[1]:
            return cls(jnp.zeros(0), jnp.ones(0))
        values = np.where(np.isfinite(values), values, np.nan).astype(float)
        low, centre, high = np.nanquantile(values, [0.25, 0.5, 0.75], axis=0)
        spread = (high - low) / _IQR
        spread = np.where(spread > 0, spread, np.nanstd(values, axis=0))
        tiny = 1e-10 * np.maximum(np.abs(centre), 1e-290)
        spread = np.where(spread > tiny, spread, np.inf)
        return cls(jnp.asarray(centre), jnp.asarray(spread))

    def standard(self, values: Float[Array, "... numbers"]) -> Float[Array, "... numbers"]:
        """Values in units of the spread, in single precision."""
        centre, spread = jax.lax.stop_gradient((self.centre, self.spread))
        shape = (1,) * (values.ndim - 1) + centre.shape
        return ((values - centre.reshape(shape)) / spread.reshape(shape)).astype(jnp.float32)

    def constant_differs(self, values: Float[Array, "... numbers"]) -> Array:
        """Whether a number that is always the same is another one here."""
        shape = (1,) * (values.ndim - 1) + self.centre.shape
        centre, spread = self.centre.reshape(shape), self.spread.reshape(shape)
        off = jnp.abs(values - centre) > 1e-6 * (1e-30 + jnp.abs(centre))
        return jnp.any(off & jnp.isinf(spread), axis=-1)


class Encoder(eqx.Module):
    """Reads a data set.

    Attributes:
        row_scales: of the rows of each set.
        fixed_scale: of all other numbers.
        rows: the network of each set's rows.
        joint: the network of what is pooled.
        most: the most rows of each set.
    """

    row_scales: tuple[Scale, ...]
    fixed_scale: Scale
    rows: tuple[eqx.nn.MLP, ...]
    joint: eqx.nn.MLP
    most: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, layout: Layout, scales: tuple[tuple[Scale, ...], Scale], width: int, key: Array
    ) -> None:
        self.row_scales, self.fixed_scale = scales
        self.most = tuple(rows.most for rows in layout.sets)
        first, *others = jax.random.split(key, 1 + len(layout.sets))
        self.rows = tuple(
            _network(scale.centre.shape[0], width, key)
            for scale, key in zip(self.row_scales, others, strict=True)
        )
        size = len(self.rows) * (2 * width + 1) + self.fixed_scale.centre.shape[0]
        self.joint = _network(size, width, first)

    def __call__(self, inputs: Inputs) -> Float[Array, " width"]:
        """The context of a data set."""
        parts = [jnp.arcsinh(self.fixed_scale.standard(inputs.fixed))]
        sets = zip(self.row_scales, self.rows, self.most, inputs.sets, inputs.counts, strict=True)
        for scale, network, most, rows, count in sets:
            h = jax.vmap(network)(jnp.arcsinh(scale.standard(rows)))
            real = (jnp.arange(most) < count)[:, None]
            number = count.astype(h.dtype)
            parts.append(jnp.sum(jnp.where(real, h, 0.0), axis=0) / number)
            parts.append(jnp.max(jnp.where(real, h, -jnp.inf), axis=0))
            parts.append(jnp.log(number / most)[None])
        return self.joint(jnp.concatenate(parts))

    def unseen(self, inputs: Inputs) -> Array:
        """Whether numbers that never varied in simulated data are other ones here."""
        found = self.fixed_scale.constant_differs(inputs.fixed)
        for scale, most, rows, count in zip(
            self.row_scales, self.most, inputs.sets, inputs.counts, strict=True
        ):
            found |= jnp.any(scale.constant_differs(rows) & (jnp.arange(most) < count))
        return found


def _network(size: int, width: int, key: Array) -> eqx.nn.MLP:
    return eqx.nn.MLP(size, width, width, 2, activation=jax.nn.silu, dtype=jnp.float32, key=key)
