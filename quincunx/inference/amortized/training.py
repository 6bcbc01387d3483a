"""Training on fresh simulations: a host loop over one compiled chunk of steps.

Each step draws new data sets, so that nothing can be overfitted. Its randomness is keyed by the
step's number: where chunks are cut changes nothing. A step whose loss or gradient is not finite is
left out; data sets that are not finite take no part in a step. What is used in the end are averages
of the weights over late steps.
"""

from __future__ import annotations

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
from quincunx.inference.method import integer, positive
from quincunx.inference.session import Pace, Progress
from quincunx.inference.stopping import INTERRUPTED

_CLIP = 1.0  # largest norm of a gradient
_AVERAGED = 0.998  # weight of the past in the average of the network's weights
_WARMING = 0.03  # share of the training in which the learning rate rises
_HELD_OUT, _PARTS = 1024, 8  # data sets of the held-out loss, and in how many parts
_ENDLESS = 2**30  # steps
_SECONDS = 1.0  # a chunk takes about so long


@dataclass(frozen=True)
class Training:
    """How a network is trained; it ends with the limit that is reached first.

    The learning rate falls to zero towards that limit. With a limit of `seconds` the result depends
    on the machine's speed.

    Attributes:
        steps: gradient steps.
        seconds: time, compilation not counted.
        simulations: simulated data sets.
        batch_size: data sets of a step.
        learning_rate: its largest value.
    """

    steps: int | None = None
    seconds: int | float | None = None
    simulations: int | None = None
    batch_size: int = 128
    learning_rate: float = 5e-3

    def __post_init__(self) -> None:
        """Refuse a training without limits or with wrong settings."""
        if self.steps is None and self.seconds is None and self.simulations is None:
            raise MethodError("`Training()` needs a limit: `steps`, `seconds` or `simulations`.")
        for name in ("steps", "simulations"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), "Training")
        integer("batch_size", self.batch_size, "Training")
        if self.seconds is not None:
            positive("seconds", self.seconds, "Training")
        positive("learning_rate", self.learning_rate, "Training")

    def share(self, steps: int, seconds: float) -> float:
        """Which share of the limits so many steps and seconds are."""
        costs = (steps, self.steps), (seconds, self.seconds)
        costs = (*costs, (steps * self.batch_size, self.simulations))
        return max(cost / limit for cost, limit in costs if limit is not None)

    def remaining(self, steps: int) -> int:
        """Steps that are left of the limits that count them."""
        left = [_ENDLESS]
        if self.steps is not None:
            left.append(self.steps - steps)
        if self.simulations is not None:
            left.append(-(-self.simulations // self.batch_size) - steps)
        return max(min(left), 0)


def as_training(budget: Any) -> Training:
    """A training from itself or a number of steps.

    Raises:
        MethodError: it is neither.
    """
    if isinstance(budget, Training):
        return budget
    if isinstance(budget, int) and not isinstance(budget, bool):
        return Training(steps=budget)
    message = f"`budget` must be a number of steps or a `qx.Training(...)`, not {budget!r}."
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


def loss_of(network: Network, z: Array, inputs: Inputs, keys: Array) -> tuple[Array, Array]:
    """Mean of -log q over the data sets that are finite, and how many are not."""
    finite = jnp.isfinite(z).all(axis=1) & jnp.isfinite(inputs.fixed).all(axis=1)
    for rows in inputs.sets:
        finite &= jnp.isfinite(rows).all(axis=(1, 2))
    z = jnp.where(finite[:, None], z, 0.0)
    inputs = jax.tree.map(
        lambda part: jnp.where(jnp.isfinite(part), part, 0).astype(part.dtype), inputs
    )
    terms = jnp.where(finite, -jax.vmap(network.log_prob)(z, inputs, keys), 0.0)
    return jnp.sum(terms) / jnp.maximum(jnp.sum(finite), 1), jnp.sum(~finite)


def _loss_on_fresh(source: Source, network: Network, key: Array, count: int) -> tuple[Array, Array]:
    simulating, looking = jax.random.split(key)
    data = jax.vmap(source)(jax.random.split(simulating, count))
    keys = jax.random.split(looking, count)
    return loss_of(network, data.z, jax.vmap(source.inputs)(data), keys)


@eqx.filter_jit
def _chunk(
    source: Source, shape: Network, learner: Learner, key: Array, plan: tuple, batch: int
) -> Learner:
    """Steps up to a number; the plan says which share of the training they are."""
    stop, origin, shares, peak = plan

    def loss(weights: Any, key: Array) -> tuple[Array, Array]:
        return _loss_on_fresh(source, eqx.combine(weights, shape), key, batch)

    def step(learner: Learner) -> Learner:
        here = jax.random.fold_in(key, learner.steps)
        (value, dropped), slope = jax.value_and_grad(loss, has_aux=True)(learner.weights, here)
        fine = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(slope))
        share = shares[0] + shares[1] * (learner.steps - origin)
        rise = jnp.minimum((share + shares[1]) / _WARMING, 1.0)
        rate = peak * rise * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0)))
        change, optimiser = _optimiser().update(slope, learner.optimiser)
        moved = jax.tree.map(
            lambda old, part: old - (rate * part).astype(old.dtype), learner.weights, change
        )
        before = (learner.weights, learner.optimiser)
        weights, optimiser = jax.tree.map(
            lambda new, old: jnp.where(fine, new, old), (moved, optimiser), before
        )
        past = jnp.minimum(_AVERAGED, (1 + learner.steps) / (10 + learner.steps))
        averaged = jax.tree.map(
            lambda old, new: (past * old + (1 - past) * new).astype(old.dtype),
            learner.averaged,
            weights,
        )
        out = learner.skipped + (~fine).astype(jnp.int32)
        dropped = learner.dropped + dropped.astype(jnp.int32)
        return Learner(weights, averaged, optimiser, learner.steps + 1, out, dropped)

    return jax.lax.while_loop(lambda learner: learner.steps < stop, step, learner)


@eqx.filter_jit
def _held_out(source: Source, shape: Network, weights: Any, key: Array) -> Array:
    """The loss on data sets that no step sees."""

    def part(key: Array) -> Array:
        return _loss_on_fresh(source, eqx.combine(weights, shape), key, _HELD_OUT // _PARTS)[0]

    return jnp.mean(jax.lax.map(part, jax.random.split(key, _PARTS)))


def begin(network: Network) -> Learner:
    """The state before the first step."""
    weights = eqx.filter(network, eqx.is_inexact_array)
    zero = jnp.zeros((), jnp.int32)
    return Learner(weights, weights, _optimiser().init(weights), zero, zero, zero)


def train(
    source: Source,
    network: Network,
    learner: Learner,
    training: Training,
    key: Array,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train until a limit is reached or the user interrupts.

    Args:
        source: where data sets come from.
        network: the network, for its structure.
        learner: the state to start from.
        training: what it may cost from there.
        key: of the data sets.
        report: told after each chunk; in place of a step size it is given the held-out loss, in
            place of divergences the steps that were left out.
        interrupted: asked between chunks.

    Raises:
        MethodError: no step had a finite loss and gradient.
    """
    shape = eqx.filter(network, eqx.is_inexact_array, inverse=True)
    testing, key = jax.random.split(key)
    peak, batch = np.float32(training.learning_rate), training.batch_size
    origin, pace = int(learner.steps), Pace(_SECONDS)
    skipped = int(learner.skipped)
    losses: list[tuple[int, float]] = []
    seconds, stopped = 0.0, ""

    def advance(learner: Learner, count: int, shares: tuple[float, float]) -> tuple[Learner, float]:
        at = int(learner.steps)
        plan = (np.int32(at + count), np.int32(at), np.asarray(shares, np.float32), peak)
        learner = _chunk(source, shape, learner, key, plan, batch)
        return learner, float(_held_out(source, shape, learner.averaged, testing))

    began = time.perf_counter()
    advance(learner, 0, (0.0, 0.0))
    compile_seconds = time.perf_counter() - began
    while True:
        done = int(learner.steps) - origin
        share, left = training.share(done, seconds), training.remaining(done)
        if share >= 1 or not left:
            break
        if interrupted():
            stopped = INTERRUPTED
            break
        count = min(pace.steps, left)
        ahead = training.share(done + count, seconds + count * pace.seconds_per_step)
        began = time.perf_counter()
        learner, loss = advance(learner, count, (share, (ahead - share) / count))
        elapsed = time.perf_counter() - began
        seconds += elapsed
        pace.update(count, elapsed)
        done += count
        losses.append((done + origin, loss))
        share = training.share(done, seconds)
        total = done + left - count if left < _ENDLESS else max(done, round(done / share))
        out = int(learner.skipped) - skipped
        report(Progress("training", done, total, out, loss))
        if out == done:
            message = "No step of the training had a finite loss and gradient: look for NaN or "
            raise MethodError(message + "overflow in the model, run forward from its priors.")
    network = eqx.combine(learner.averaged, shape)
    return Outcome(network, learner, tuple(losses), seconds, compile_seconds, stopped)
