"""The compiled chunk that runs every Markov kernel.

A chunk advances all chains by a number of transitions that is decided at run time, so that one
compiled program serves warm-up and sampling, and the host can report, stop or store between
chunks. Randomness is keyed by (chain, transition): where the chunks are cut changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from quincunx.engine import sharding
from quincunx.engine.density import Density
from quincunx.inference.method import Info, Kernel, Machine, Pool

_BUFFER_BYTES = 64 * 2**20
SHARED = -1


class Carry(eqx.Module):
    """Where the chains are; every leaf has a leading axis over chains, save what they share.

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
        agents: constrained values of each agent by site, `(chains, capacity, agents, ...)`.
    """

    draws: dict[str, Array]
    stats: dict[str, Array]
    totals: dict[str, Array]
    step_size: Array
    agents: dict[str, Array]


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


def axes_of(method: Kernel, state: PyTree) -> PyTree:
    """For each leaf of a state its axis over chains, `SHARED` where there is none."""
    axes = jax.tree.map(
        lambda axis: SHARED if axis is None else axis, method.state_axes, is_leaf=_absent
    )
    return jax.tree.broadcast(axes, state)


def placement(method: Kernel) -> Carry:
    """How the parts of a carry lie on a mesh."""
    chains = PartitionSpec("chains")

    def spec(axis: Any, party: Any = False) -> PartitionSpec:  # noqa: FBT002
        if axis is None:
            return PartitionSpec()
        return PartitionSpec("chains", "agents") if party else chains

    trees = (method.state_axes, method.parties) if method.parties else (method.state_axes,)
    state = jax.tree.map(spec, *trees, is_leaf=_absent)
    zero = jnp.zeros((), jnp.int32)
    carry = jax.tree.map(lambda _: chains, Carry(zero, zero, zero, zero, zero))
    return eqx.tree_at(lambda carry: carry.state, carry, state)


def prepared_specs(method: Kernel) -> Any:
    """How what a method prepared lies on a mesh."""
    return jax.tree.map(
        lambda party: PartitionSpec("agents") if party else PartitionSpec(), method.prepared_for
    )


def _absent(leaf: Any) -> bool:
    return leaf is None


def _as_before(new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, old)


def stepping(method: Kernel, density: Density) -> Callable[[PyTree, Array], tuple[PyTree, Info]]:
    """A method's step for all chains: at once, or one after the other where that is faster."""
    step, axes = functools.partial(method.step, density), method.state_axes
    if not (method.in_turn and jax.default_backend() == "cpu"):
        return jax.vmap(step, (axes, 0), (axes, 0))

    def in_turn(state: PyTree, keys: Array) -> tuple[PyTree, Info]:
        leaves, tree = jax.tree.flatten(state)
        shared = [axis == SHARED for axis in jax.tree.leaves(axes_of(method, state))]
        each = [None if common else leaf for leaf, common in zip(leaves, shared, strict=True)]

        def one(chain: tuple) -> tuple[PyTree, Info]:
            own = [a if b is None else b for a, b in zip(leaves, chain[0], strict=True)]
            return step(jax.tree.unflatten(tree, own), chain[1])

        state, info = jax.lax.map(one, (each, keys))
        made = zip(jax.tree.leaves(state), shared, strict=True)
        return jax.tree.unflatten(tree, [a[0] if common else a for a, common in made]), info

    return in_turn


class _Chains:
    """What a method and a density do with all chains of a device at once."""

    def __init__(self, method: Kernel, density: Density, keys: Array) -> None:
        axes = method.state_axes
        self.method, self.density, self.keys = method, density, keys
        self.count = keys.shape[0]
        self.position = jax.vmap(method.position, (axes,))
        self.constrain = jax.jit(jax.vmap(first_part(density).constrain), inline=True)
        if isinstance(method, Machine):
            self.begin = self._over_all(method.begin, (axes, 0), axes)
            self.tick = self._over_all(method.tick, (axes, 0), axes)
            self.end = self._over_all(method.end, (axes,), (axes, 0))
            self.done = jax.vmap(method.done, (axes,))
            step = self._transition
        else:
            step = stepping(method, density)
        self.step = jax.jit(step, inline=True)

    def _over_all(self, fn: Callable, in_axes: tuple, out_axes: Any) -> Callable:
        """A part of a transition, compiled by itself, so that every schedule rounds alike."""
        mapped = jax.vmap(functools.partial(fn, self.density), in_axes, out_axes)

        def sealed(*arguments: Any) -> Any:
            return jax.lax.optimization_barrier(mapped(*jax.lax.optimization_barrier(arguments)))

        return jax.jit(sealed, inline=True)

    def _transition(self, state: PyTree, keys: Array) -> tuple[PyTree, Info]:
        """A whole transition of all chains: each waits for the slowest."""
        state = jax.lax.while_loop(
            lambda state: ~jnp.all(self.done(state)),
            lambda state: _as_before(self.tick(state, keys), state),
            self.begin(state, keys),
        )
        return self.end(state)

    def key(self, carry: Carry) -> Array:
        """Keys of the transitions that the chains are in."""
        return jax.vmap(jax.random.fold_in)(self.keys, carry.count)

    def values(self, state: PyTree) -> dict[str, Array]:
        """Constrained values at the chains' positions."""
        return self.constrain(self.position(state))

    def specs(self, carry: Carry) -> tuple[dict, Info]:
        """Shapes and types of constrained values and of what a step says."""

        def both(carry: Carry) -> tuple[dict, Info]:
            state, info = self.step(carry.state, self.keys)
            return self.values(state), info

        return jax.eval_shape(both, carry)


class _Record(NamedTuple):
    """What a chunk has gathered so far."""

    draws: dict[str, Array]
    stats: dict[str, Array]
    totals: dict[str, Array]
    step_size: Array
    agents: dict[str, Array]


def _blank(chains: _Chains, capacity: int, carry: Carry) -> _Record:
    values, info = chains.specs(carry)
    stats = jax.eval_shape(_stats, info, carry.gradients, carry.evaluations, carry.diverging)

    def empty(spec: Any) -> Array:
        return jnp.zeros((chains.count, capacity, *spec.shape[1:]), spec.dtype)

    draws, stats, agents = jax.tree.map(empty, (values, stats, info.agents))
    totals = {name: jnp.zeros(chains.count, jnp.int32) for name in TOTALS}
    size = jnp.full(chains.count, jnp.nan, info.step_size.dtype)
    return _Record(draws, stats, totals, size, agents)


def _complete(
    carry: Carry,
    record: _Record,
    limits: Limits,
    state: PyTree,
    info: Info,
    values: dict[str, Array],
    done: Array | None,
) -> tuple[Carry, _Record]:
    """Count transitions that are complete and keep their draws where the plan says so.

    Args:
        carry: the chains before.
        record: what was gathered before.
        limits: what the chunk is asked to do.
        state: the chains' state now.
        info: what is said of the transitions.
        values: constrained values at the chains' positions.
        done: which chains completed one; `None` for all, so that all are at the same transition.
    """
    together = done is None
    done = jnp.ones(carry.count.shape, bool) if done is None else done
    gradients = carry.gradients + jnp.where(done, info.gradients, 0).astype(jnp.int32)
    evaluations = carry.evaluations + jnp.where(done, info.evaluations, 0).astype(jnp.int32)
    diverging = carry.diverging | (info.diverging & done)
    past = carry.count + 1 - limits.origin
    kept = done & (past > 0) & (past % limits.thinning == 0)
    capacity = next(iter(record.stats.values())).shape[1]
    base = jnp.maximum(limits.start - limits.origin, 0) // limits.thinning
    slot = jnp.where(kept, past // limits.thinning - 1 - base, capacity)

    def store(buffer: Array, value: Array) -> Array:
        if together:
            return buffer.at[:, slot[0]].set(value, mode="drop")
        return buffer.at[jnp.arange(len(slot)), slot].set(value, mode="drop")

    draws = jax.tree.map(store, record.draws, values)
    stats = jax.tree.map(store, record.stats, _stats(info, gradients, evaluations, diverging))
    agents = jax.tree.map(store, record.agents, info.agents)
    counted = kept | (done & (past <= 0))
    new = Carry(
        state,
        carry.count + done,
        jnp.where(counted, 0, gradients),
        jnp.where(counted, 0, evaluations),
        diverging & ~counted,
    )
    spent = (done, info.diverging, info.gradients, info.evaluations)
    totals = {
        name: record.totals[name] + jnp.where(done, cost, 0).astype(jnp.int32)
        for name, cost in zip(TOTALS, spent, strict=True)
    }
    step_size = jnp.where(done, info.step_size, record.step_size)
    return new, _Record(draws, stats, totals, step_size, agents)


def _in_lockstep(
    chains: _Chains, schedule: PyTree, limits: Limits, pool: Pool
) -> Callable[[tuple], tuple]:
    """Advance every chain by one transition; adapt in warm-up."""

    def body(loop: tuple[Carry, _Record]) -> tuple[Carry, _Record]:
        carry, record = loop
        state, info = chains.step(carry.state, chains.key(carry))
        state = _as_before(chains.method.exchange(state), carry.state)
        at = carry.count[0]

        def adapt(state: PyTree) -> PyTree:
            stage = jax.tree.map(lambda entry: entry[at - limits.start], schedule)
            adapted = chains.method.adapt(chains.density, state, info, stage, pool)
            return _as_before(adapted, state)

        state = jax.lax.cond(at < limits.num_warmup, adapt, lambda state: state, state)
        return _complete(carry, record, limits, state, info, chains.values(state), None)

    return body


def _by_view(
    chains: _Chains, schedule: PyTree, limits: Limits, pool: Pool, key: Array
) -> Callable[[tuple], tuple]:
    """Advance every chain to where the method's view of the density is made anew."""
    method = chains.method

    def body(loop: tuple[Carry, _Record]) -> tuple[Carry, _Record]:
        period: Any = method.period(loop[0].state)
        index = loop[0].count[0] // period
        end = jnp.minimum((index + 1) * period, limits.stop)
        view = _Chains(method, method.view(chains.density, key, index), chains.keys)
        advance = _in_lockstep(view, schedule, limits, pool)
        return jax.lax.while_loop(lambda loop: loop[0].count[0] < end, advance, loop)

    return body


def _freely(chains: _Chains, limits: Limits) -> Callable[[tuple], tuple]:
    """One evaluation for every chain, each in a transition of its own."""

    def pick(mask: Array, new: PyTree, old: PyTree) -> PyTree:
        def leaf(axis: int, a: Array, b: Array) -> Array:
            if axis == SHARED:
                return b
            return jnp.where(mask.reshape(mask.shape + (1,) * (b.ndim - 1)), a, b).astype(b.dtype)

        return jax.tree.map(leaf, axes_of(chains.method, old), new, old)

    def body(loop: tuple) -> tuple:
        carry, record, idle, info, values = loop
        keys = chains.key(carry)
        opening = idle & (carry.count < limits.stop)
        state = jax.lax.cond(
            jnp.any(opening),
            lambda state: pick(opening, chains.begin(state, keys), state),
            lambda state: state,
            carry.state,
        )
        state = _as_before(chains.tick(state, keys), state)
        done = chains.done(state) & (carry.count < limits.stop)

        def close(kept: tuple) -> tuple:
            ended, info = chains.end(state)
            values = chains.values(ended)
            return pick(done, ended, state), _as_before(info, kept[1]), _as_before(values, kept[2])

        state, info, values = jax.lax.cond(
            jnp.any(done), close, lambda kept: kept, (state, info, values)
        )
        idle = done | (idle & ~opening)
        carry, record = _complete(carry, record, limits, state, info, values, done)
        return carry, record, idle, info, values

    return body


def advance_here(
    method: Kernel,
    capacity: int,
    free: bool,  # noqa: FBT001
    pool: Pool,
    density: Density,
    keys: Array,
    carry: Carry,
    schedule: PyTree,
    limits: Limits,
    key: Array,
) -> tuple[Carry, Block]:
    """`advance` on one device, not compiled by itself."""
    chains = _Chains(method, density, keys)
    loop: tuple = (carry, _blank(chains, capacity, carry))
    if free and isinstance(method, Machine):
        body = _freely(chains, limits)
        values, info = jax.tree.map(
            lambda spec: jnp.zeros(spec.shape, spec.dtype), chains.specs(carry)
        )
        loop = (*loop, jnp.ones(chains.count, bool), info, values)
    elif method.period(carry.state) is None:
        body = _in_lockstep(chains, schedule, limits, pool)
    else:
        body = _by_view(chains, schedule, limits, pool, key)

    def unfinished(loop: tuple) -> Array:
        return jnp.any(loop[0].count < limits.stop)

    carry, record = jax.lax.while_loop(unfinished, body, loop)[:2]
    return carry, Block(*record)


@eqx.filter_jit
def advance(
    method: Kernel,
    capacity: int,
    free: bool,  # noqa: FBT001
    mesh: Mesh | None,
    density: Density,
    keys: Array,
    carry: Carry,
    schedule: PyTree,
    limits: Limits,
    key: Array,
) -> tuple[Carry, Block]:
    """Run all chains until each has completed `limits.stop` transitions.

    They are spread over the devices of a mesh where there is one.

    Args:
        method: the kernel.
        capacity: how many draws the chunk may hold.
        free: whether each chain goes from transition to transition by itself; a `Machine` only,
            and not in warm-up.
        mesh: the devices, along axes named as in `distributed/mesh.py`.
        density: the target.
        keys: one for each chain.
        carry: where the chains are.
        schedule: entries of the warm-up schedule from `limits.start` on, `capacity` of them.
        limits: what to do.
        key: the run's.
    """
    if mesh is None:
        run = functools.partial(advance_here, method, capacity, free, lambda array: array)
        return run(density, keys, carry, schedule, limits, key)
    pool = functools.partial(jax.lax.psum, axis_name="chains")
    everywhere, chains = PartitionSpec(), PartitionSpec("chains")
    lies = placement(method)

    def part(density: Density, *rest: Any) -> tuple[Carry, Block]:
        return advance_here(method, capacity, free, pool, own_rows(density), *rest)

    run = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(density_specs(density), chains, lies, everywhere, everywhere, everywhere),
        out_specs=(lies, Block._make((*(chains,) * 4, PartitionSpec("chains", None, "agents")))),
        check_vma=False,
    )
    return run(density, keys, carry, schedule, limits, key)


def density_specs(density: Density) -> Any:
    """How a density lies on a mesh: its parts along the axis that they were cut for."""
    if density.shard is None:
        return PartitionSpec()
    along = PartitionSpec(density.shard.axis or "agents")
    return sharding.axes(density, along, PartitionSpec())


def own_rows(density: Density) -> Density:
    """The density as a method sees it inside `shard_map`.

    Rows that likelihoods are summed over are those of the device; agents keep an axis.
    """
    if density.shard is None or density.shard.axis is None:
        return density
    return sharding.local(density)


def on_devices(
    mesh: Mesh | None, run: Callable[..., PyTree], density: Density, *rest: PyTree
) -> PyTree:
    """What a function makes of a density, on all devices that have parts of its rows.

    Args:
        mesh: the devices.
        run: sees the density as a method does; its results must be the same on all devices.
        density: the target.
        rest: further arguments, everywhere alike.
    """
    if mesh is None or density.shard is None:
        return run(density, *rest)
    everywhere = PartitionSpec()
    return jax.shard_map(
        lambda density, *rest: run(own_rows(density), *rest),
        mesh=mesh,
        in_specs=(density_specs(density), *(everywhere,) * len(rest)),
        out_specs=everywhere,
        check_vma=False,
    )(density, *rest)


def first_part(density: Density) -> Density:
    """A density that can be evaluated: itself, or where it is cut for agents, the first one's."""
    if density.shard is None or density.shard.axis is not None:
        return density
    return sharding.local(density)


def buffer_length(density: Density, chains: int, longest: int) -> int:
    """How many draws a chunk may hold: those of the longest phase, within a memory bound.

    Args:
        density: the target.
        chains: their number, times one more than that of agents.
        longest: the longest phase.
    """
    z = jax.ShapeDtypeStruct((density.dim,), jnp.result_type(float))
    values = jax.tree.leaves(jax.eval_shape(Density.constrain, density, z))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in values) + 64
    return int(np.clip(_BUFFER_BYTES // (size * chains), 1, min(max(longest, 1), 1000)))
