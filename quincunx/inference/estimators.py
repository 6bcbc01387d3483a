r"""Estimates of the score from a minibatch, as parts that any sampler takes.

With l_k(z) the log likelihood of block k of K and p(z) the prior, whose gradient is always exact:

    minibatch         grad log p(z) + K grad l_k(z)
    control variates  grad log p(z) + grad l(m) + K (grad l_k(z) - grad l_k(m)),  m the mode
    SVRG              the same with m an earlier position of the chain, renewed every epoch
    SAGA              grad log p(z) + sum_j g_j + K (grad l_k(z) - g_k);  then g_k := grad l_k(z)

All are unbiased given how the rows are cut into blocks. Minibatch and SAGA take one gradient of a
block a step, the other two take two of the same block.

Baker, Fearnhead, Fox and Nemeth (2019), Control variates for stochastic gradient MCMC, Statistics
and Computing 29:599; Dubey et al. (2016), Variance reduction in stochastic gradient Langevin
dynamics, NeurIPS.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from quincunx.engine import Block
from quincunx.engine.density import Density
from quincunx.inference.minibatch import Batches, Turn


class Anchor(NamedTuple):
    """A position at which the likelihood of all rows is known.

    Attributes:
        position: `(dim,)`.
        value: log likelihood of all rows there.
        score: its gradient, `(dim,)`.
    """

    position: Array
    value: Array
    score: Array


class Estimate(NamedTuple):
    """What a minibatch tells.

    Attributes:
        value: estimate of the log density.
        score: estimate of its gradient.
        memory: what the estimator carries on.
    """

    value: Array
    score: Array
    memory: PyTree


def weighed(density: Density, z: Array, block: Block, prior: Any = 1.0) -> tuple[Array, Array]:
    """Value and gradient of prior weight times log prior plus a block's log likelihood."""

    def terms(z: Array) -> Array:
        log_prior, log_likelihood = density.log_terms(z, block)
        return prior * log_prior + log_likelihood

    return jax.value_and_grad(terms)(z)


def anchored(density: Density, batches: Batches, z: Array) -> Anchor:
    """Likelihood of all rows and its gradient, block by block."""

    def add(total: tuple, index: Array) -> tuple[tuple, None]:
        found = weighed(density, z, batches.block(index), 0.0)
        return jax.tree.map(lambda a, b: a + b / batches.number, total, found), None

    zero = (jnp.zeros((), z.dtype), jnp.zeros_like(z))
    (value, score), _ = jax.lax.scan(add, zero, jnp.arange(batches.number))
    return Anchor(z, value, score)


class Minibatch:
    """The gradient of a block."""

    gradients = 1
    epoch_gradients = 0  # per block, at the beginning of an epoch
    reduces_noise = False

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def start(self, z: Array) -> PyTree:
        """What is carried from step to step."""
        del z
        return ()

    def epoch(self, density: Density, z: Array, memory: PyTree) -> PyTree:
        """What is carried from the beginning of an epoch on."""
        del density, z
        return memory

    def __call__(
        self, density: Density, z: Array, turn: Turn, memory: PyTree, anchor: Anchor
    ) -> Estimate:
        """The estimate from a block.

        Args:
            density: the target, its rows shuffled.
            z: position.
            turn: the block.
            memory: what is carried.
            anchor: the mode, of use to control variates.
        """
        del anchor
        return Estimate(*weighed(density, z, self.batches.block(*turn)), memory)


class ControlVariates(Minibatch):
    """The difference between the gradients of a block here and at the mode."""

    gradients = 2
    reduces_noise = True

    def __call__(
        self, density: Density, z: Array, turn: Turn, memory: PyTree, anchor: Anchor
    ) -> Estimate:
        """The estimate from a block."""
        block = self.batches.block(*turn)
        both = jnp.stack([z, anchor.position])
        here = jnp.array([1.0, 0.0], z.dtype)
        value, score = jax.vmap(weighed, (None, 0, None, 0))(density, both, block, here)
        return Estimate(
            value[0] - value[1] + anchor.value, score[0] - score[1] + anchor.score, memory
        )


class SVRG(ControlVariates):
    """Control variates at the position where the epoch began."""

    epoch_gradients = 1

    def start(self, z: Array) -> Anchor:
        """An anchor, which the first epoch sets."""
        return Anchor(z, jnp.zeros((), z.dtype), jnp.zeros_like(z))

    def epoch(self, density: Density, z: Array, memory: Anchor) -> Anchor:
        """All rows at the present position."""
        return anchored(density, self.batches, z)

    def __call__(
        self, density: Density, z: Array, turn: Turn, memory: Anchor, anchor: Anchor
    ) -> Estimate:
        """The estimate from a block."""
        del anchor
        return super().__call__(density, z, turn, memory, memory)


class Table(NamedTuple):
    """The last gradient of each block.

    Attributes:
        score: `(K, dim)`.
        total: their sum, `(dim,)`.
    """

    score: Array
    total: Array


class SAGA(Minibatch):
    """The difference between the gradient of a block and the last one that was seen of it.

    After the rows are shuffled anew the table is of other rows for an epoch, which costs accuracy
    there but biases nothing.
    """

    reduces_noise = True

    def start(self, z: Array) -> Table:
        """Zeros: the first epoch is that of plain minibatches."""
        return Table(jnp.zeros((self.batches.number, z.size), z.dtype), jnp.zeros_like(z))

    def __call__(
        self, density: Density, z: Array, turn: Turn, memory: Table, anchor: Anchor
    ) -> Estimate:
        """The estimate from a block."""
        del anchor
        number = self.batches.number
        block = self.batches.block(*turn)
        value, score = weighed(density, z, block)
        prior = jax.grad(density.log_prior)(z)
        own = (score - prior) / number
        change = own - memory.score[turn.index]
        estimate = prior + memory.total + number * change
        table = Table(memory.score.at[turn.index].set(own), memory.total + change)
        return Estimate(value, estimate, table)


ESTIMATORS = {"none": Minibatch, "mode": ControlVariates, "svrg": SVRG, "saga": SAGA}
