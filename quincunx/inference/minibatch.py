"""Minibatches without replacement: blocks of shuffled rows, each visited once an epoch.

The rows of the data plate are shuffled into a copy that all chains share, and cut into K blocks
whose sizes differ by one row at most. An epoch of a chain visits all blocks, in an order that is
drawn anew for each chain and epoch. So a minibatch is a contiguous slice of the shuffled copy,
which costs a fraction of a gather of its rows. The copy is shuffled anew once in `_EPOCHS` epochs.

With n_k rows in block k of N rows, the estimate from a block is

    K sum_{i in block k} log p(y_i | z).

Given the shuffle it is unbiased for a block drawn at random, and its errors add up to zero over an
epoch. The latter is what makes the bias of a sampler of higher order in the step size: Franzese,
Milios, Filippone and Michiardi (2022), Revisiting the effects of stochasticity for Hamiltonian
samplers, ICML.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from quincunx.engine import Block
from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.engine.rows import cut_evenly
from quincunx.inference.driver import on_devices
from quincunx.inference.shuffling import permutation

_EPOCHS = 64  # between two shuffles: one costs as much as some epochs of small minibatches


_READ = 65_536  # rows on disk that are read at once


class Turn(NamedTuple):
    """The block of a step.

    Attributes:
        index: which block.
        ahead: which will be asked for next.
    """

    index: Array
    ahead: Array


class Batches(NamedTuple):
    """How the rows of a data plate are cut.

    Attributes:
        rows: number of rows, N.
        number: number of blocks, K.
        independent: whether blocks are drawn independently, so that an epoch may visit some twice
            and others never.
    """

    rows: int
    number: int
    independent: bool = False

    @classmethod
    def of(cls, density: Density, size: int, *, independent: bool = False) -> Batches:
        """Blocks of at most `size` rows of the model's one data plate."""
        rows = density.structure.data_plates[0].size
        return cls(rows, -(-rows // min(size, rows)), independent)

    @property
    def size(self) -> int:
        """Rows of a block, of the largest where they differ."""
        return -(-self.rows // self.number)

    def block(self, index: Array, ahead: Array | None = None) -> Block:
        """The rows of a block, weighted so that the likelihood is K times their sum.

        Args:
            index: which block.
            ahead: which will be asked for next.
        """
        block = cut_evenly(self.rows, self.number, index, ahead)
        if block.count is None:
            return block
        return replace(block, weight=self.number * block.count / self.rows)

    def order(self, key: Array) -> Array:
        """The blocks in the order of an epoch."""
        if self.independent:
            return jax.random.randint(key, (self.number,), 0, self.number)
        return jax.random.permutation(key, self.number)

    def period(self, steps: Array) -> Array:
        """Transitions of `steps` steps between two shuffles: whole epochs, `_EPOCHS` or more."""
        cycle = self.number // jnp.gcd(self.number, steps)
        return cycle * jnp.maximum(-(-_EPOCHS * self.number // (cycle * steps)), 1)


def shuffled(density: Density, key: Array) -> Density:
    """The density with its rows in random order; where devices have parts, each shuffles its own.

    A row that pads a part stays at its end.
    """
    plate = density.program.data_plates[0]
    if density.shard is None:
        return density.permuted(permutation(key, plate.size))
    own = density.shard.rows(density)[plate.name]
    order, last = permutation(key, own.size), own.size - 1
    place = jnp.argmax(order == last)
    padded = order.at[place].set(order[last]).at[last].set(last)
    return density.permuted(jnp.where(own.count < own.size, padded, order))


def obstacle(density: Density) -> str | None:
    """Why rows of a model cannot be taken in minibatches, as one sentence; `None` if they can."""
    program = density.program
    plates = program.data_plates
    if not plates:
        observed = program.role("observed")
        message = "it takes minibatches of rows, and the model has no data plate."
        if observed:
            message += f" Put {observed[0]} inside `with qx.plate('row', X, y) as (x, t):`."
        return message
    if len(plates) > 1:
        names = ", ".join(f"'{plate.name}'" for plate in plates)
        return f"it takes minibatches of one data plate, and the model has several: {names}."
    plate = program.data_plates[0]
    for site in program.latents:
        if plate.name in site.plates:
            message = f"{site} is a latent variable inside the data plate '{plate.name}', "
            return message + "so that each row has its own and a minibatch would leave most still."
    return None


def check_size(density: Density, size: int | None, method: str) -> None:
    """Refuse a minibatch larger than the data.

    Raises:
        MethodError: with the number of rows.
    """
    plate = density.structure.data_plates[0]
    if size is not None and size > plate.size:
        message = f"`{method}(batch_size={size})`: plate '{plate.name}' has {plate.size} rows. "
        raise MethodError(message + "Take fewer, or leave `batch_size` out.")


def check_separable(density: Density, key: Array, mesh: Mesh | None = None) -> None:
    """Refuse a log likelihood that is not a sum over rows, whatever their order.

    Args:
        density: the target.
        key: of the order and the place.
        mesh: the devices, where the run is spread over several.

    Raises:
        MethodError: the likelihood of shuffled blocks does not add up to that of all rows.
    """
    whole, parts = jax.device_get(_sums(mesh, density, key))
    if not abs(whole - parts) <= 1e-3 * (1.0 + abs(whole)):
        plate = density.structure.data_plates[0]
        message = f"The log likelihood is not a sum over the rows of plate '{plate.name}': it is "
        message += f"{whole:.6g} for all rows and {parts:.6g} for the sum over shuffled blocks. "
        message += "Inside the plate use the rows that entering it yields, and nothing that depends"
        raise MethodError(message + " on their order or number.")


@eqx.filter_jit
def _sums(mesh: Mesh | None, density: Density, key: Array) -> tuple[Array, Array]:
    """Log likelihood at a start, of all rows and by blocks of shuffled ones."""
    rows = density.structure.data_plates[0].size
    batches = Batches.of(
        density, min(-(-rows // 4), _READ) if density.is_on_disk else -(-rows // 4)
    )

    def both(density: Density, key: Array) -> tuple[Array, Array]:
        z, view = 0.1 * density.initial(key), shuffled(density, key)
        estimates = jax.lax.map(
            lambda index: view.log_likelihood(z, batches.block(index)), jnp.arange(batches.number)
        )
        return density.log_likelihood(z), jnp.mean(estimates)

    return on_devices(mesh, both, density, key)
