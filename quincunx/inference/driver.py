"""The compiled chunk that runs every Markov kernel.

A chunk advances all chains by a number of transitions that is decided at run time, so that one
compiled program serves warm-up and sampling, and the host can report, stop or store between
chunks. Randomness is keyed by (chain, transition): where the chunks are cut changes nothing.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from quincunx.engine.density import Density
from quincunx.inference.method import Info, Kernel

_BUFFER_BYTES = 64 * 2**20


class Carry(eqx.Module):
    """Where the chains are; every leaf has a leading axis over chains.

    Attributes:
        state: the method's state.
        count: transitions completed since the start.
        gradients: gradient evaluations since the last completed transition that was kept.
        evaluations: log-density evaluations since then.
        diverging: whether a transition diverged since then.
    """

    state: PyTree
    count: Array
    gradients: Array
    evaluations: Array
    diverging: Array


class Limits(NamedTuple):
    """What a chunk is asked to do, all traced.

    Attributes:
        start: transitions completed before the chunk.
        stop: transitions completed after it.
        num_warmup: transitions that adapt.
        origin: transitions before the first that may be kept.
        thinning: one of how many is kept.
    """

    start: Any
    stop: Any
    num_warmup: Any
    origin: Any
    thinning: Any


class Block(NamedTuple):
    """What a chunk returns, leading axis over chains.

    Attributes:
        draws: constrained values by site, `(chains, capacity, ...)`.
        stats: statistics by name, `(chains, capacity)`.
        totals: sums over the chunk's steps by name, `(chains,)`.
        step_size: the last step size, `(chains,)`.
    """

    draws: dict[str, Array]
    stats: dict[str, Array]
    totals: dict[str, Array]
    step_size: Array


TOTALS = ("steps", "diverging", "gradients", "evaluations")


def _stats(info: Info, gradients: Array, evaluations: Array, diverging: Array) -> dict[str, Array]:
    return {
        "lp": info.log_density,
        "acceptance_rate": info.acceptance,
        "diverging": diverging,
        "step_size": info.step_size,
        "gradients": gradients,
        "evaluations": evaluations,
        **info.extra,
    }


def _where(active: Array, new: PyTree, old: PyTree) -> PyTree:
    def pick(a: Array, b: Array) -> Array:
        return jnp.where(active.reshape(active.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)


def _as_before(new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, old)


def _advance(
    method: Kernel,
    capacity: int,
    density: Density,
    keys: Array,
    carry: Carry,
    schedule: PyTree,
    limits: Limits,
) -> tuple[Carry, Block]:
    """Run all chains until each has completed `limits.stop` transitions."""
    chains = carry.count.shape[0]
    base = jnp.maximum(limits.start - limits.origin, 0) // limits.thinning
    step = jax.jit(jax.vmap(functools.partial(method.step, density)), inline=True)
    positions = jax.vmap(method.position)
    constrain = jax.jit(jax.vmap(density.constrain), inline=True)

    def shapes(carry: Carry) -> tuple[dict, dict, Array]:
        state, info = step(carry.state, keys)
        values = constrain(positions(state))
        stats = _stats(info, carry.gradients, carry.evaluations, carry.diverging)
        return values, stats, info.step_size

    def empty(spec: Any) -> Array:
        return jnp.zeros((chains, capacity, *spec.shape[1:]), spec.dtype)

    draw_spec, stat_spec, step_spec = jax.eval_shape(shapes, carry)
    zeros = {name: jnp.zeros(chains, jnp.int32) for name in TOTALS}
    last = jnp.full(chains, jnp.nan, step_spec.dtype)
    buffers = jax.tree.map(empty, (draw_spec, stat_spec))

    def unfinished(loop: tuple) -> Array:
        return jnp.any(loop[0].count < limits.stop)

    def body(loop: tuple) -> tuple:
        carry, (draws, stats), totals, last = loop
        active = carry.count < limits.stop
        state, info = step(carry.state, jax.vmap(jax.random.fold_in)(keys, carry.count))
        state = _as_before(state, carry.state)
        info = info._replace(
            gradients=jnp.asarray(info.gradients, jnp.int32),
            evaluations=jnp.asarray(info.evaluations, jnp.int32),
        )
        slowest = jnp.min(carry.count)

        def adapt(state: PyTree) -> PyTree:
            index = jnp.clip(slowest - limits.start, 0, capacity - 1)
            stage = jax.tree.map(lambda entry: entry[index], schedule)
            return _as_before(method.adapt(density, state, info, stage), state)

        state = jax.lax.cond(slowest < limits.num_warmup, adapt, lambda state: state, state)
        gradients = carry.gradients + info.gradients
        evaluations = carry.evaluations + info.evaluations
        diverging = carry.diverging | (info.diverging & info.done)
        done = info.done & active
        past = carry.count + 1 - limits.origin
        kept = done & (past > 0) & (past % limits.thinning == 0)
        slot = jnp.where(kept, past // limits.thinning - 1 - base, capacity)

        def store(buffer: Array, value: Array) -> Array:
            if method.lockstep:
                return buffer.at[:, slot[0]].set(value, mode="drop")
            return buffer.at[jnp.arange(chains), slot].set(value, mode="drop")

        draws = jax.tree.map(store, draws, constrain(positions(state)))
        stats = jax.tree.map(store, stats, _stats(info, gradients, evaluations, diverging))
        counted = kept | (done & (past <= 0))
        new = Carry(
            state,
            carry.count + done,
            jnp.where(counted, 0, gradients),
            jnp.where(counted, 0, evaluations),
            diverging & ~counted,
        )
        if not method.lockstep:
            new = _where(active, new, carry)
        spent = (done, info.diverging & done, info.gradients, info.evaluations)
        totals = {
            name: totals[name] + jnp.where(active, cost, 0).astype(jnp.int32)
            for name, cost in zip(TOTALS, spent, strict=True)
        }
        return new, (draws, stats), totals, jnp.where(active, info.step_size, last)

    loop = (carry, buffers, zeros, last)
    carry, (draws, stats), totals, last = jax.lax.while_loop(unfinished, body, loop)
    return carry, Block(draws, stats, totals, last)


@eqx.filter_jit
def advance(
    method: Kernel,
    capacity: int,
    mesh: Mesh | None,
    density: Density,
    keys: Array,
    carry: Carry,
    schedule: PyTree,
    limits: Limits,
) -> tuple[Carry, Block]:
    """`_advance`, with the chains spread over the devices of a mesh where there is one."""
    run = functools.partial(_advance, method, capacity)
    if mesh is not None:
        everywhere, chains = PartitionSpec(), PartitionSpec("chains")
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(everywhere, chains, chains, everywhere, everywhere),
            out_specs=chains,
            check_vma=False,
        )
    return run(density, keys, carry, schedule, limits)


def buffer_length(density: Density, chains: int, longest: int) -> int:
    """How many draws a chunk may hold: those of the longest phase, within a memory bound."""
    z = jax.ShapeDtypeStruct((density.dim,), jnp.result_type(float))
    values = jax.tree.leaves(jax.eval_shape(Density.constrain, density, z))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in values) + 64
    return int(np.clip(_BUFFER_BYTES // (size * chains), 1, min(max(longest, 1), 1000)))
