"""Training on fresh simulations: a host loop over one compiled chunk of steps.

Each step draws new data sets, so that nothing can be overfitted. Its randomness is keyed by the
step's number: where chunks are cut changes nothing. A step whose loss or gradient is not finite is
left out; data sets that are not finite take no part in a step. What is used in the end are averages
of the weights over late steps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from quincunx.engine.errors import MethodError
from quincunx.inference.amortized.inputs import Inputs
from quincunx.inference.amortized.network import Network
from quincunx.inference.amortized.sources import Source
from quincunx.inference.session import Pace

_CLIP = 1.0  # largest norm of a gradient
_AVERAGED = 0.998  # weight of the past in the average of the network's weights
_WARMING = 0.03  # share of the training in which the learning rate rises
_HELD_OUT = 1024  # data sets of the held-out loss
_SECONDS = 1.0  # a chunk takes about so long


@dataclass(frozen=True)
class Budget:
    """What a training may cost; it ends with the limit that is reached first.

    The learning rate falls to zero towards that limit. With a limit of `seconds` the result depends
    on the machine's speed.

    Attributes:
        steps: gradient steps.
        seconds: time, compilation not counted.
        simulations: simulated data sets.
    """

    steps: int | None = None
    seconds: float | None = None
    simulations: int | None = None

    def __post_init__(self) -> None:
        """Refuse a budget without limits or with wrong ones."""
        limits = {name: getattr(self, name) for name in ("steps", "seconds", "simulations")}
        if all(limit is None for limit in limits.values()):
            raise MethodError("`Budget()` needs a limit: `steps`, `seconds` or `simulations`.")
        for name, limit in limits.items():
            if limit is None:
                continue
            whole = name == "seconds" or hasattr(limit, "__index__")
            if isinstance(limit, bool) or not whole or not limit > 0:
                kind = "number" if name == "seconds" else "integer"
                raise MethodError(f"`Budget({name}={limit!r})` must be a positive {kind}.")

    def share(self, steps: int, seconds: float, batch_size: int) -> float:
        """Which share of the budget so many steps and seconds are."""
        spent = [
            cost / limit
            for cost, limit in (
                (steps, self.steps),
                (seconds, self.seconds),
                (steps * batch_size, self.simulations),
            )
            if limit is not None
        ]
        return max(spent)

    def remaining(self, steps: int, batch_size: int) -> int:
        """Steps that are left of the limits that count them."""
        left = [2**30]
        if self.steps is not None:
            left.append(self.steps - steps)
        if self.simulations is not None:
            left.append(-(-self.simulations // batch_size) - steps)
        return max(min(left), 0)


def as_budget(budget: Any) -> Budget:
    """A budget from itself or a number of steps."""
    if isinstance(budget, Budget):
        return budget
    if hasattr(budget, "__index__") and not isinstance(budget, bool):
        return Budget(steps=int(budget))
    message = f"`budget` must be a number of steps or a `qx.Budget(...)`, not {budget!r}."
    raise MethodError(message)


class Learner(NamedTuple):
    """The state of a training.

    Attributes:
        weights: the network's arrays.
        averaged: their average over steps, which is what is used.
        optimiser: Adam's state.
        steps: how many were made.
        skipped: steps that were left out because their loss or gradient was not finite.
        dropped: data sets that were left out because they were not finite.
    """

    weights: Any
    averaged: Any
    optimiser: Any
    steps: Array
    skipped: Array
    dropped: Array


class Told(NamedTuple):
    """What an observer of a training is told between chunks.

    Attributes:
        done: steps so far.
        total: steps to be made, as far as the limits say; `None` where time is the limit.
        loss: the held-out loss, E[-log q(z | data)] in nats.
        skipped: steps that were left out because they were not finite.
        seconds: time so far, compilation left out.
    """

    done: int
    total: int | None
    loss: float
    skipped: int
    seconds: float


class Outcome(NamedTuple):
    """A training that has ended.

    Attributes:
        network: the network with averaged weights.
        learner: the state, for training further.
        losses: held-out losses, `(steps, loss)` after each chunk.
        seconds: time it took, compilation left out.
        compile_seconds: time that compilation took.
        stopped: why it ended before its budget, empty where it did not.
    """

    network: Network
    learner: Learner
    losses: tuple[tuple[int, float], ...]
    seconds: float
    compile_seconds: float
    stopped: str


def _optimiser() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(_CLIP), optax.scale_by_adam(b2=0.99))


def loss_of(network: Network, z: Array, inputs: Inputs) -> tuple[Array, Array]:
    """Mean of -log q over the data sets that are finite, and how many are not."""
    finite = jnp.isfinite(z).all(axis=1) & jnp.isfinite(inputs.fixed).all(axis=1)
    for rows in inputs.sets:
        finite &= jnp.isfinite(rows).all(axis=(1, 2))
    z = jnp.where(finite[:, None], z, 0.0)
    inputs = jax.tree.map(
        lambda part: jnp.where(jnp.isfinite(part), part, 0).astype(part.dtype), inputs
    )
    terms = jnp.where(finite, -jax.vmap(network.log_prob)(z, inputs), 0.0)
    return jnp.sum(terms) / jnp.maximum(jnp.sum(finite), 1), jnp.sum(~finite)


@functools.cache
def _compiled() -> Any:
    """The chunk and the held-out loss, compiled once for each form of source and network."""

    @eqx.filter_jit(donate="none")
    def chunk(
        source: Source, shape: Network, learner: Learner, key: Array, plan: tuple, batch: int
    ) -> Learner:
        stop, origin, shares, peak = plan

        def loss(weights: Any, key: Array) -> tuple[Array, Array]:
            data = jax.vmap(source)(jax.random.split(key, batch))
            network = eqx.combine(weights, shape)
            return loss_of(network, data.z, jax.vmap(source.inputs)(data))

        def step(learner: Learner) -> Learner:
            here = jax.random.fold_in(key, learner.steps)
            (value, dropped), slope = jax.value_and_grad(loss, has_aux=True)(learner.weights, here)
            fine = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(slope))
            slope = jax.tree.map(lambda part: jnp.where(fine, part, 0.0), slope)
            share = shares[0] + shares[1] * (learner.steps - origin)
            rising = jnp.minimum(share / _WARMING, 1.0)
            rate = peak * rising * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0)))
            change, optimiser = _optimiser().update(slope, learner.optimiser)
            moved = jax.tree.map(
                lambda old, part: old - (rate * part).astype(old.dtype), learner.weights, change
            )
            kept = jax.tree.map(
                lambda new, old: jnp.where(fine, new, old),
                (moved, optimiser),
                (learner.weights, learner.optimiser),
            )
            past = jnp.minimum(_AVERAGED, (1 + learner.steps) / (10 + learner.steps))
            averaged = jax.tree.map(
                lambda old, new: (past * old + (1 - past) * new).astype(old.dtype),
                learner.averaged,
                kept[0],
            )
            return Learner(
                kept[0],
                averaged,
                kept[1],
                learner.steps + 1,
                learner.skipped + ~fine,
                learner.dropped + dropped,
            )

        return jax.lax.while_loop(lambda learner: learner.steps < stop, step, learner)

    @eqx.filter_jit
    def held_out(source: Source, shape: Network, weights: Any, key: Array) -> Array:
        def part(key: Array) -> Array:
            data = jax.vmap(source)(jax.random.split(key, _HELD_OUT // 8))
            network = eqx.combine(weights, shape)
            return loss_of(network, data.z, jax.vmap(source.inputs)(data))[0]

        return jnp.mean(jax.lax.map(part, jax.random.split(key, 8)))

    return chunk, held_out


def begin(network: Network) -> Learner:
    """The state before the first step."""
    weights = eqx.filter(network, eqx.is_inexact_array)
    zero = jnp.zeros((), jnp.int32)
    return Learner(weights, weights, _optimiser().init(weights), zero, zero, zero)


def train(
    source: Source,
    network: Network,
    learner: Learner,
    budget: Budget,
    key: Array,
    *,
    batch_size: int,
    learning_rate: float,
    report: Callable[[Told], None],
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train until a budget is spent or the user interrupts.

    Args:
        source: where data sets come from.
        network: the network, for its structure.
        learner: the state to start from.
        budget: what it may cost from there.
        key: of the data sets.
        batch_size: data sets of a step.
        learning_rate: its largest value.
        report: told after each chunk.
        interrupted: asked between chunks.

    Raises:
        MethodError: no step had a finite loss and gradient.
    """
    chunk, held_out = _compiled()
    shape = eqx.filter(network, eqx.is_inexact_array, inverse=True)
    origin, pace, stopped = int(learner.steps), Pace(_SECONDS), ""
    testing, training = jax.random.split(key)
    losses: list[tuple[int, float]] = []
    seconds = 0.0
    began = time.perf_counter()
    nothing = (np.int32(origin), np.int32(origin), np.zeros(2, np.float32), np.float32(0))
    jax.block_until_ready(chunk(source, shape, learner, training, nothing, batch_size))
    jax.block_until_ready(held_out(source, shape, learner.averaged, testing))
    compile_seconds = time.perf_counter() - began
    while True:
        done = int(learner.steps) - origin
        share = budget.share(done, seconds, batch_size)
        left = budget.remaining(done, batch_size)
        if share >= 1 or not left:
            break
        if interrupted():
            stopped = "it was interrupted"
            break
        count = min(pace.steps, left)
        expected = budget.share(done + count, seconds + count * pace.seconds_per_step, batch_size)
        shares = np.array([share, (expected - share) / count], np.float32)
        plan = (np.int32(origin + done + count), np.int32(origin + done), shares)
        began = time.perf_counter()
        learner = chunk(source, shape, learner, training, (*plan, np.float32(learning_rate)), batch_size)
        loss = float(held_out(source, shape, learner.averaged, testing))
        elapsed = time.perf_counter() - began
        seconds += elapsed
        pace.update(count, elapsed)
        losses.append((int(learner.steps), loss))
        total = None if left >= 2**29 else done + left
        report(Told(done + count, total, loss, int(learner.skipped), seconds))
        if int(learner.skipped) == int(learner.steps):
            message = "No step of the training had a finite loss and gradient: look for NaN or "
            raise MethodError(message + "overflow in the model, run forward from its priors.")
    network = eqx.combine(learner.averaged, shape)
    return Outcome(network, learner, tuple(losses), seconds, compile_seconds, stopped)
