"""A run of Markov chains: the host loop over compiled chunks, and everything that it carries.

A session can stop after any chunk and go on later, in the same process or from a checkpoint:
randomness is keyed by (chain, transition), so the draws do not depend on where it stopped.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from quincunx.engine.density import Density
from quincunx.inference.distributed.mesh import everywhere, on_host
from quincunx.inference.distributed.processes import of_first
from quincunx.inference.driver import TOTALS, Block, Carry, Limits, advance, buffer_length
from quincunx.inference.method import Kernel, Machine, Preparation
from quincunx.inference.sinks import Sink

AGENT = "agent_"  # begins the names of what agents have among the statistics
_NEVER = np.iinfo(np.int32).max // 2
_PHASES = ("warmup", "posterior")
_BRANCH = 2**31 - 1  # no transition has this number
_WORTH_MEASURING = 5.0  # seconds of sampling
_TRIAL_SECONDS = 0.3


class Progress(NamedTuple):
    """What the host knows after a chunk.

    Attributes:
        phase: `warm-up` or `sampling`; `training` for methods that learn a sampler; `simulations`
            in a validation.
        done: transitions completed by every chain, steps of training, or simulations.
        total: transitions to complete.
        diverging: divergences while sampling, all chains; what training left out.
        step_size: mean step size; the loss of training.
    """

    phase: str
    done: int
    total: int
    diverging: int
    step_size: float


class Plan(NamedTuple):
    """How a run is laid out.

    Attributes:
        num_warmup: adapting transitions of each chain.
        num_samples: kept draws of each chain.
        thinning: transitions for each kept draw.
        keep_warmup: whether warm-up transitions are kept too, unthinned.
    """

    num_warmup: int
    num_samples: int
    thinning: int
    keep_warmup: bool

    @property
    def total(self) -> int:
        """Transitions of each chain."""
        return self.num_warmup + self.num_samples * self.thinning


class Pace:
    """How many transitions to ask of the next chunk, so that it takes about a given time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.seconds_per_step = 0.0
        self.steps = 8

    def update(self, steps: int, elapsed: float) -> None:
        """Learn from a chunk of `steps` transitions."""
        if steps:
            self.seconds_per_step = elapsed / steps
            wanted = self.seconds * steps / max(elapsed, 1e-4)
            self.steps = int(np.clip(wanted, 1, 4 * max(self.steps, steps)))


def _no_totals(chains: int) -> dict[str, dict[str, np.ndarray]]:
    return {phase: {name: np.zeros(chains, np.int64) for name in TOTALS} for phase in _PHASES}


@dataclass
class Group:
    """Chains that run together.

    Attributes:
        keys: one key for each chain.
        carry: where the chains are.
        done: transitions that all of them have completed.
        totals: sums by phase and name, one for each chain.
        step_size: the last step sizes.
    """

    keys: Array
    carry: Carry
    done: int = 0
    totals: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    step_size: float = float("nan")

    def __post_init__(self) -> None:
        self.totals = self.totals or _no_totals(self.size)

    @property
    def size(self) -> int:
        """Number of chains."""
        return self.keys.shape[0]


class Session:
    """A run in progress.

    Attributes:
        method: the kernel.
        density: the target.
        target: the density as the devices have it.
        start: where the chains started, in words.
        plan: how far the chains go and what is kept.
        groups: the chains, in groups that run together; the one that is behind runs next.
        sink: where draws go.
        key: the run's key.
        layout: how the chains are laid out, `vectorized`, `sequential` or `parallel`.
        preparation: what the method made before the chains started, and its cost.
        compile_seconds: time spent preparing and compiling.
        sample_seconds: time spent running.
        outcome: why the last run stopped before the end of its plan, or `None`.
        free: whether chains go from transition to transition each by itself after warm-up;
            `None` until it is decided.
    """

    def __init__(
        self,
        method: Kernel,
        density: Density,
        plan: Plan,
        groups: list[Group],
        mesh: Mesh | None,
        sink: Sink,
        key: Array,
        layout: str,
        preparation: Preparation,
        *,
        target: Density | None = None,
        start: str = "",
    ) -> None:
        self.method = method
        self.density = density
        self.plan = plan
        self.groups = groups
        self.mesh = mesh
        self.sink = sink
        self.key = key
        self.layout = layout
        self.preparation = preparation
        self.target = density if target is None else target
        self.start = start
        self.outcome: str | None = None
        self.free: bool | None = None
        self.compile_seconds = 0.0
        self.sample_seconds = 0.0
        self._pace = Pace(0.5)

    def copy(self) -> Session:
        """A session that goes on from here without changing this one."""
        groups = [
            Group(group.keys, group.carry, group.done, copy.deepcopy(group.totals), group.step_size)
            for group in self.groups
        ]
        settings = (self.method, self.density, self.plan, groups, self.mesh, self.sink.copy())
        more = (self.key, self.layout, self.preparation)
        session = Session(*settings, *more, target=self.target, start=self.start)
        session.compile_seconds = self.compile_seconds
        session.sample_seconds = self.sample_seconds
        session.free = self.free
        return session

    @property
    def done(self) -> int:
        """Transitions that every chain has completed."""
        return min(group.done for group in self.groups)

    @property
    def finished(self) -> bool:
        """Whether every chain is at the end of the plan."""
        return self.done >= self.plan.total

    @functools.cached_property
    def _schedule(self) -> PyTree:
        return jax.tree.map(np.asarray, self.method.stages(self.plan.num_warmup))

    @functools.cached_property
    def _run_key(self) -> Array:
        return everywhere(self.key, self.mesh)

    @property
    def _capacity(self) -> int:
        longest = max(self.plan.num_warmup, self.plan.num_samples)
        shard = self.target.shard
        agents = 0 if shard is None or shard.axis is not None else shard.parts
        return buffer_length(self.density, self.groups[0].size * (1 + agents), longest)

    def build(self) -> None:
        """Compile the chunk, by running one of no length."""
        began = time.perf_counter()
        idle = Limits(*np.asarray((0, 0, 0, 0, 1), np.int32))
        jax.block_until_ready(self._call(self.groups[0], idle, free=False))
        self.compile_seconds += time.perf_counter() - began

    def advance(self) -> Progress:
        """Run one chunk of the group that is behind."""
        index = min(range(len(self.groups)), key=lambda entry: self.groups[entry].done)
        group = self.groups[index]
        limits, phase = self._limits(group.done)
        sampling = phase == "posterior"
        if sampling and self.free is None:
            self.free = self._choose(group)
        began = time.perf_counter()
        carry, block = self._call(group, limits, free=sampling and bool(self.free))
        if not group.done:
            for kind in _PHASES:  # so that every phase has its names and shapes
                self._store(kind, index, block, 0)
        group.carry = carry
        for name, total in on_host(block.totals).items():
            group.totals[phase][name] += total
        kept = _kept(limits)
        group.step_size = float(np.mean(on_host(block.step_size)))
        group.done = int(limits.stop)
        if kept:
            self._store(phase, index, block, kept)
        elapsed = time.perf_counter() - began
        self._pace.update(int(limits.stop - limits.start), of_first(elapsed))
        self.sample_seconds += elapsed
        return self.progress()

    def branch(
        self, change: Callable[[PyTree], PyTree], count: int, settling: int
    ) -> tuple[dict[str, np.ndarray], int]:
        """Draws that the chains would make from here in a changed state; the run stays as it is.

        Args:
            change: gives the states of all chains others, of the same shapes.
            count: draws of each chain.
            settling: transitions before them.

        Returns:
            Draws by site, `(chain, draw, ...)`, and the evaluations that they took.
        """
        chains, evaluations = [], 0
        for group in self.groups:
            zero = 0 * group.carry.count
            carry = Carry(change(group.carry.state), zero, zero, zero, zero > 0)
            keys = jax.vmap(functools.partial(jax.random.fold_in, data=_BRANCH))(group.keys)
            aside, parts = Group(keys, carry), []
            for start in range(0, settling + count, self._capacity):
                stop = min(start + self._capacity, settling + count)
                limits = Limits(*np.asarray((start, stop, 0, settling, 1), np.int32))
                aside.carry, block = self._call(aside, limits, free=False)
                block, kept = on_host(block), _kept(limits)
                parts.append({name: values[:, :kept] for name, values in block.draws.items()})
                evaluations += int(block.totals["evaluations"].sum())
            chains.append(jax.tree.map(lambda *part: np.concatenate(part, axis=1), *parts))
        return jax.tree.map(lambda *part: np.concatenate(part), *chains), evaluations

    def progress(self) -> Progress:
        """How far the run is."""
        phase = "warm-up" if self.done <= self.plan.num_warmup else "sampling"
        diverging = sum(int(group.totals["posterior"]["diverging"].sum()) for group in self.groups)
        step_size = float(np.mean([group.step_size for group in self.groups]))
        return Progress(phase, self.done, self.plan.total, diverging, step_size)

    def run(
        self,
        report: Callable[[Progress], None],
        *,
        save: Callable[[], str | None] = lambda: None,
        stop: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Run to the end of the plan, or until told to stop.

        Args:
            report: called with the progress after each chunk.
            save: called after each chunk; returns why the run must stop, or `None`.
            stop: called after each chunk; returns why the run should stop, or `None`.
        """
        self.outcome = None
        if not self.finished:
            self.build()
        while not self.finished and self.outcome is None:
            try:
                report(self.advance())
                self.outcome = save() or (None if self.finished else stop())
            except OSError as error:
                self.outcome = f"draws could not be written ({error.strerror})"

    def total(self, name: str, phase: str) -> int:
        """A count over all chains, in one phase."""
        return sum(int(group.totals[phase][name].sum()) for group in self.groups)

    def _store(self, phase: str, index: int, block: Block, kept: int) -> None:
        cut = itemgetter((slice(None), slice(kept)))
        found = on_host((block.draws, block.stats, block.agents))
        draws, stats, agents = jax.tree.map(cut, found)
        stats |= {f"{AGENT}{name}": values for name, values in agents.items()}
        self.sink.append(phase, index, draws, stats)

    def _choose(self, group: Group) -> bool:
        """Whether chains run faster freely than in lockstep, measured on the chunk itself.

        Free chains take a program of their own. It is not compiled where less time is left than
        that would take.
        """
        method, chains = (
            self.method,
            group.size // (1 if self.mesh is None else self.mesh.shape["chains"]),
        )
        if not isinstance(method, Machine) or chains == 1:
            return False
        if method.execution != "auto":
            return method.execution == "free"
        per_transition = self._pace.seconds_per_step
        if per_transition * (self.plan.total - group.done) < _WORTH_MEASURING:
            return False
        began = time.perf_counter()
        steps = int(np.clip(_TRIAL_SECONDS / per_transition, 20, self._capacity))
        numbers = (group.done, group.done + steps, self.plan.num_warmup, _NEVER, 1)
        trial = Limits(*np.asarray(numbers, np.int32))
        seconds = {}
        for free in (False, True):
            for _ in range(2):  # the first run may compile
                start = time.perf_counter()
                jax.block_until_ready(self._call(group, trial, free=free))
                seconds[free] = time.perf_counter() - start
        self.compile_seconds += time.perf_counter() - began
        return of_first(seconds[True]) < of_first(seconds[False])

    def _call(self, group: Group, limits: Limits, *, free: bool) -> tuple[Carry, Block]:
        part = window(self._schedule, int(limits.start), self._capacity)
        return advance(
            self.method,
            self._capacity,
            free,
            self.mesh,
            self.target,
            group.keys,
            group.carry,
            part,
            limits,
            self._run_key,
        )

    def _limits(self, done: int) -> tuple[Limits, str]:
        plan, capacity = self.plan, self._capacity
        if done < plan.num_warmup:
            stop = min(done + min(self._pace.steps, capacity), plan.num_warmup)
            origin = 0 if plan.keep_warmup else _NEVER
            numbers, phase = (done, stop, plan.num_warmup, origin, 1), "warmup"
        else:
            stop = min(done + min(self._pace.steps, capacity * plan.thinning), plan.total)
            numbers = (done, stop, plan.num_warmup, plan.num_warmup, plan.thinning)
            phase = "posterior"
        return Limits(*np.asarray(numbers, np.int32)), phase


def _kept(limits: Limits) -> int:
    def before(count: int) -> int:
        return max(count - int(limits.origin), 0) // int(limits.thinning)

    return before(int(limits.stop)) - before(int(limits.start))


def window(schedule: PyTree, start: int, length: int) -> PyTree:
    """The schedule's entries from `start` on, padded with zeros to a fixed length."""

    def cut(entry: np.ndarray) -> np.ndarray:
        part = entry[start : start + length]
        padding = np.zeros((length - len(part), *entry.shape[1:]), entry.dtype)
        return np.concatenate([part, padding])

    return jax.tree.map(cut, schedule)
