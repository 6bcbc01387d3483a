"""Training of path samplers: many steps in one compiled scan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from quincunx.inference.paths.buffer import Buffer, empty, search
from quincunx.inference.paths.losses import (
    ON_PATHS_BACK,
    THROUGH,
    Learned,
    adjoint_matching,
    loss_on_paths,
)
from quincunx.inference.paths.process import Process, back_from, simulate
from quincunx.inference.paths.target import Target
from quincunx.inference.training import Budget

CHUNK = 25


@dataclass(frozen=True)
class Recipe:
    """How to train; constants of the compiled chunk.

    Attributes:
        loss: what is minimised.
        off_policy: every second step is on paths back from the buffer.
        local_search: whether places in the buffer are improved by Langevin steps.
        iterations: steps in all, which the learning rate follows.
        batch: paths in a step.
        learning_rate: of the networks.
        schedule_rate: of step sizes, temperatures and p_0, as a share of it.
        explore: standard deviation, in a step, of noise added at the beginning.
        segments: of a path, for losses on segments.
        decay: of the moving average of the parameters.
        buffer: places that it has.
    """

    loss: str
    off_policy: bool
    local_search: bool
    iterations: int
    batch: int
    learning_rate: float
    schedule_rate: float
    explore: float
    segments: int
    decay: float
    buffer: int

    @property
    def searched(self) -> int:
        """Places that a local search improves."""
        return self.batch

    @property
    def moves(self) -> int:
        """Steps of a local search, after each chunk."""
        return 20


class State(NamedTuple):
    """Where training is.

    Attributes:
        learned: the parameters.
        average: their moving average, which is what is used in the end.
        optimiser: its state.
        buffer: ends of paths.
        search_step: step size of the local search.
        done: steps so far.
    """

    learned: Learned
    average: Learned
    optimiser: Any
    buffer: Buffer
    search_step: Array
    done: Array


class Seen(NamedTuple):
    """What a chunk saw, means over its steps.

    Attributes:
        loss: of the paths.
        left_out: paths and updates that were not finite.
    """

    loss: Array
    left_out: Array


def _groups(learned: Learned) -> Learned:
    """Which learning rate each parameter has."""
    net = jax.tree.map(lambda _: "net", learned)
    process = lambda tree: tree.process  # noqa: E731
    net = eqx.tree_at(lambda tree: tree.log_z, net, "log_z")
    chosen = lambda tree: (  # noqa: E731
        process(tree).mean,
        process(tree).log_sd,
        process(tree).log_size,
        process(tree).increments,
    )
    return eqx.tree_at(chosen, net, ("schedule",) * 4)


def optimiser(recipe: Recipe, learned: Learned) -> optax.GradientTransformation:
    """Adam after clipping, with a rate for each group that falls by cosine to a hundredth."""

    def adam(rate: float) -> optax.GradientTransformation:
        falling = optax.cosine_decay_schedule(rate, recipe.iterations, 0.01)
        return optax.adam(falling, b2=0.99)

    rates: dict[Hashable, optax.GradientTransformation] = {
        "net": adam(recipe.learning_rate),
        "schedule": adam(recipe.schedule_rate * recipe.learning_rate)
        if recipe.schedule_rate
        else optax.set_to_zero(),
        "log_z": adam(0.1),
    }
    parts = eqx.filter(learned, eqx.is_inexact_array)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(rates, _groups(parts)))


@eqx.filter_jit
def begin(recipe: Recipe, learned: Learned, cloud: Array, log_gamma: Array, step: Array) -> State:
    """The state before the first step, with some places in the buffer."""
    dtype = learned.log_z.dtype
    buffer = empty(recipe.buffer, cloud.shape[1], dtype).push(cloud, log_gamma)
    parts = eqx.filter(learned, eqx.is_inexact_array)
    begun = optimiser(recipe, learned).init(parts)
    return State(learned, learned, begun, buffer, step, jnp.zeros((), jnp.int32))


@eqx.filter_jit
def chunk(recipe: Recipe, target: Target, state: State, key: Array) -> tuple[State, Seen]:
    """`CHUNK` steps of training, and a local search."""
    frozen = eqx.partition(state.learned, eqx.is_inexact_array)[1]
    variables = lambda tree: eqx.filter(tree, eqx.is_inexact_array)  # noqa: E731
    transform = optimiser(recipe, state.learned)
    dim = target.whitening.mean.shape[0]
    through = recipe.loss in THROUGH

    def own(values: Any, key: Array, explore: Array) -> tuple[Array, tuple]:
        learned = eqx.combine(values, frozen)
        path_key, match_key = jax.random.split(key)
        paths = simulate(
            learned.process, target, path_key, recipe.batch, explore=explore, differentiable=through
        )
        if recipe.loss == "adjoint_matching":
            ends = (paths.x[-1], paths.score[-1])
            found = adjoint_matching(learned, *ends, match_key, weigh=float(dim))
        else:
            found = loss_on_paths(learned, paths, recipe.loss, recipe.segments, float(dim))
        return found.value, (paths.x[-1], paths.log_gamma[-1], found.left_out)

    def returning(values: Any, key: Array, buffer: Buffer) -> tuple[Array, Array]:
        learned = eqx.combine(values, frozen)
        draw_key, path_key = jax.random.split(key)
        ends = buffer.sample(draw_key, recipe.batch)
        paths = back_from(learned.process, target, path_key, ends)
        found = loss_on_paths(learned, paths, recipe.loss, recipe.segments, float(dim))
        return found.value, found.left_out

    def forwards(values: Any, key: Array, buffer: Buffer, explore: Array) -> tuple:
        (value, (ends, log_gamma, left_out)), slope = jax.value_and_grad(own, has_aux=True)(
            values, key, explore
        )
        return value, slope, buffer.push(ends, log_gamma), left_out

    def backwards(values: Any, key: Array, buffer: Buffer, explore: Array) -> tuple:
        del explore
        (value, left_out), slope = jax.value_and_grad(returning, has_aux=True)(values, key, buffer)
        return value, slope, buffer, left_out

    def step(carry: State, index: Array) -> tuple[State, tuple]:
        values = variables(carry.learned)
        step_key = jax.random.fold_in(key, index)
        share = carry.done / recipe.iterations
        explore = (recipe.explore * jnp.maximum(1 - 2 * share, 0.0)).astype(carry.search_step.dtype)
        arguments = (values, step_key, carry.buffer, explore)
        if recipe.loss in ON_PATHS_BACK:
            value, slope, buffer, left_out = backwards(*arguments)
        elif recipe.off_policy:
            value, slope, buffer, left_out = jax.lax.cond(
                carry.done % 2 == 0, forwards, backwards, *arguments
            )
        else:
            value, slope, buffer, left_out = forwards(*arguments)
        leaves = jax.tree.leaves(slope)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        slope = jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.zeros_like(leaf)), slope)
        update, moved = transform.update(slope, carry.optimiser, values)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        values = jax.tree.map(keep, optax.apply_updates(values, update), values)
        moved = jax.tree.map(keep, moved, carry.optimiser)
        old = variables(carry.average)
        decay = jnp.minimum(recipe.decay, (1 + carry.done) / (10 + carry.done))
        average = jax.tree.map(
            lambda a, b: (decay * a + (1 - decay) * b).astype(a.dtype), old, values
        )
        state = State(
            eqx.combine(values, frozen),
            eqx.combine(average, frozen),
            moved,
            buffer,
            carry.search_step,
            carry.done + 1,
        )
        return state, (value, left_out + jnp.where(finite, 0, 1))

    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(carry: Any, index: Array) -> tuple[Any, tuple]:
        state, seen = step(eqx.combine(carry, static), index)
        return eqx.filter(state, eqx.is_array), seen

    dynamic, (values, left_out) = jax.lax.scan(body, dynamic, jnp.arange(CHUNK))
    state = eqx.combine(dynamic, static)
    if recipe.local_search:
        pick_key, search_key = jax.random.split(jax.random.fold_in(key, CHUNK))
        ends = state.buffer.sample(pick_key, recipe.searched)
        ends, log_gamma, size = search(target, ends, state.search_step, search_key, recipe.moves)
        state = state._replace(buffer=state.buffer.push(ends, log_gamma), search_step=size)
    return state, Seen(jnp.mean(values), jnp.sum(left_out))


def train(
    recipe: Recipe,
    target: Target,
    learned: Learned,
    key: Array,
    budget: Budget,
    cloud: np.ndarray,
    log_gamma: np.ndarray,
    step: float,
    sampler: Callable[[Process], Any],
) -> Learned:
    """Train to the end of the recipe or of the budget.

    Args:
        recipe: how.
        target: what.
        learned: the parameters to start from.
        key: the only source of randomness.
        budget: told of the costs, and asked whether to go on.
        cloud: places to put into the buffer.
        log_gamma: there.
        step: of the local search.
        sampler: makes a sampler of trained kernels, for those who look on.

    Returns:
        The moving average of the parameters at the end.
    """
    dtype = learned.log_z.dtype
    places = (jnp.asarray(cloud, dtype), jnp.asarray(log_gamma, dtype), jnp.asarray(step, dtype))
    state = budget.restored(begin(recipe, learned, *places))
    done = int(state.done)
    made = CHUNK * recipe.batch * (learned.process.steps + 1)
    made += recipe.searched * (recipe.moves + 1) if recipe.local_search else 0
    while done < recipe.iterations:
        state, sums = chunk(recipe, target, state, jax.random.fold_in(key, done))
        loss, left_out = jax.device_get(sums)
        done += CHUNK
        budget.count(gradients=made, evaluations=made)
        seen = {"loss": float(loss), "skipped": int(left_out)}
        look = functools.partial(sampler, state.average.process)
        if budget.note(done, recipe.iterations, **seen, state=state, now=look):
            break
    return state.average
