r"""What all distributed samplers share: agents with rows of their own, and a network of them.

The rows are cut into n parts, one for each agent. With U the potential -log p(z | data) of all rows
up to a constant, agent i has

    f_i(z) = -log p(data of i | z) - (1/n) log p(z),    sum_i f_i = U.

The code of an agent is written once, with collectives over an axis named `agents`. On one device it
runs under `vmap`, on several, in one process or more, under `shard_map` with one agent on each. A
chain is the whole network; several chains are independent copies of it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from quincunx.engine import sharding
from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.distributed.collectives import AXIS, locally, total
from quincunx.inference.distributed.graph import Graph, graph_of
from quincunx.inference.distributed.survey import PASSES, TICKS, Survey, survey
from quincunx.inference.method import (
    Discretised,
    Info,
    Kind,
    Preparation,
    Traffic,
    fraction,
    integer,
    lacks_gradient,
)

_SPREAD = 2.0  # of the starts about the mode, in posterior standard deviations
_MOST_STEPS = 5000


class Tuning(NamedTuple):
    """What all agents and chains share.

    Attributes:
        steps: iterations of a transition.
        size: what sets the size of an iteration: a step, or a penalty.
        mode: where U is least, `(dim,)`.
        hessian: of U there, `(dim, dim)`.
    """

    steps: Array
    size: Array
    mode: Array
    hessian: Array


class Prepared(NamedTuple):
    """What the agents found together.

    Attributes:
        tuning: what all share.
        own: what each agent keeps, with a leading axis over agents.
    """

    tuning: Tuning
    own: PyTree


class State(NamedTuple):
    """A network.

    Attributes:
        agents: what each agent has, with a leading axis over the agents of the device.
        draw: the position that the network stands for, `(dim,)`.
        tuning: what all agents and chains share.
    """

    agents: PyTree
    draw: Array
    tuning: Tuning


class Report(NamedTuple):
    """What a transition tells of the network, alike for all agents.

    Attributes:
        draw: the position that the network stands for, `(dim,)`.
        log_density: sum of the agents' log densities, each at its own position.
        consensus: root mean square distance of the agents from their mean, by coordinate.
        failed: whether an agent's part of the transition failed.
        gradients: gradients of an agent's rows.
        evaluations: evaluations of an agent's log density, those with a gradient included.
    """

    draw: Array
    log_density: Array
    consensus: Array
    failed: Array
    gradients: Array
    evaluations: Array


class Networked(Discretised):
    """A sampler whose agents keep their rows to themselves.

    Its settings, which subclasses declare: `agents`, `steps`, `tolerance`, and `graph` where it
    has one.
    """

    kind: ClassVar[Kind] = Kind.BIASED
    state_axes: ClassVar[Any] = State._make((0, 0, None))
    parties: ClassVar[Any] = State._make((True, False, False))
    prepared_for: ClassVar[Any] = Prepared._make((False, True))

    if TYPE_CHECKING:
        agents: int | tuple[int, ...]
        graph: Any
        steps: int | None
        tolerance: float

    def check(self) -> None:
        """Refuse impossible settings."""
        label = type(self).__name__
        sizes = self.agents if isinstance(self.agents, tuple) else (self.agents,)
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            message = f"`{label}(agents={self.agents!r})`: agents must be a positive integer, or a "
            raise MethodError(message + "tuple of them, each agent's number of rows.")
        if self.steps is not None:
            integer("steps", self.steps, label)
        if self.count < 2:
            raise MethodError(f"`{label}(agents={self.agents!r})`: there must be 2 agents or more.")
        fraction("tolerance", self.tolerance, label)

    @property
    def count(self) -> int:
        """Number of agents, n."""
        return len(self.agents) if isinstance(self.agents, tuple) else self.agents

    @property
    def network(self) -> Graph:
        """Who talks to whom."""
        return graph_of(self.graph, self.count)

    def missing(self, density: Density) -> str | None:
        """A gradient, and a data plate whose rows can be shared out."""
        if lacking := lacks_gradient(density):
            return lacking
        if density.structure.unit_vectors.max(initial=-1) >= 0:
            return "it cannot keep to the lengths of unit vectors."
        reason = sharding.obstacle(density)
        return None if reason is None else f"its agents have rows of their own. {reason}"

    def prior_share(self) -> float:
        """The share of the log prior that each agent counts."""
        return 1 / self.count

    def share_out(self, density: Density) -> Density:
        """The density cut into the agents' parts."""
        sizes = self.agents if isinstance(self.agents, tuple) else None
        return sharding.cut(density, self.count, sizes=sizes, prior=self.prior_share())

    def among(
        self, density: Density, run: Callable[..., tuple[PyTree, PyTree]], *each: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Run an agent's code for all agents of this device.

        Args:
            density: the agents' parts.
            run: an agent's code, from its density and its entries of `each` to what it has then
                and what all agents have alike.
            each: trees with a leading axis over the agents of the device.
        """
        assert density.shard is not None
        here = next(iter(density.shard.starts.values())).shape[0]
        axes = (sharding.axes(density, 0, None), *(0 for _ in each))
        name = AXIS if here == self.count else None  # else the axis is that of the mesh
        own, common = jax.vmap(run, axes, axis_name=name)(density, *each)
        return own, jax.tree.map(lambda leaf: leaf[0], common)

    @abc.abstractmethod
    def start(self, density: Density, z: Array) -> PyTree:
        """What an agent has at a start where all agents are at one position."""

    @abc.abstractmethod
    def transition(
        self, density: Density, agent: PyTree, tuning: Tuning, key: Array
    ) -> tuple[PyTree, Report]:
        """An agent's part of a transition: `tuning.steps` iterations.

        Args:
            density: the agent's.
            agent: what it has.
            tuning: what all share.
            key: the same for all agents.
        """

    @abc.abstractmethod
    def place(self, agent: PyTree) -> Array:
        """An agent's position."""

    def halved(self, state: State) -> State:
        """Half the step size and twice the iterations."""
        tuning = state.tuning
        half = tuning._replace(size=tuning.size / 2, steps=2 * tuning.steps)
        return state._replace(tuning=half)

    @abc.abstractmethod
    def tuned(self, found: Survey) -> tuple[Any, Any]:
        """The size of an iteration, and the iterations after which draws hardly depend."""

    @abc.abstractmethod
    def traffic(self, density: Density, prepared: Prepared) -> Traffic:
        """What leaves the agents in a transition."""

    def reported(self, density: Density, integers: int) -> int:
        """Bytes that leave the agents at the end of a transition, beside what it needs itself.

        Positions and two figures for sums over agents, and integers for what failed and the cost.
        """
        item = np.dtype(jnp.result_type(float)).itemsize
        return self.count * ((density.dim + 2) * item + 4 * integers)

    def prepare(self, density: Density, key: Array, *, mesh: Mesh | None = None) -> Preparation:
        """The mode of U and its Hessian there, by Newton steps that agents take together."""
        found, own = survey(self, density, jax.random.fold_in(key, 1), mesh)
        size, steps = self.tuned(found)
        steps = self.steps or np.clip(np.ceil(steps), 1, _MOST_STEPS)
        begun: Any = (np.asarray(steps, np.int32), np.asarray(size, found.mode.dtype))
        tuning = Tuning._make((*begun, found.mode, found.hessian))
        dim = density.dim
        item = jnp.result_type(float).itemsize
        sent = TICKS * self.count * (1 + dim + dim**2) * item
        spent = TICKS * (1 + dim)
        return Preparation(Prepared(tuning, own), spent, spent, PASSES, sent, TICKS)

    def surveyed(self, own: Density, found: Survey) -> PyTree:
        """What an agent keeps of the survey, from its density; nothing by default."""
        del own, found
        return ()

    def given(self, agents: PyTree, own: PyTree) -> PyTree:
        """The agents of a device with what they kept of the survey."""
        del own
        return agents

    def init(self, density: Density, position: Array, key: Array) -> State:
        """All agents at one position."""
        del key

        def begin(own: Density) -> tuple[PyTree, Array]:
            return self.start(own, position), position

        agents, draw = self.among(density, begin)
        none = jnp.zeros_like(position)
        blank = Tuning(jnp.ones((), jnp.int32), jnp.ones((), none.dtype), none, jnp.eye(len(none)))
        return State(agents, draw, blank)

    def settle(self, states: State, prepared: Prepared, keys: Array, *, at_will: bool) -> State:
        """Starts about the mode, unless the user said where."""
        tuning = prepared.tuning
        agents = jax.vmap(self.given, (0, None))(states.agents, prepared.own)
        if not at_will:
            return State(agents, states.draw, tuning)
        factor = jnp.linalg.cholesky(tuning.hessian)

        def about(key: Array) -> Array:
            xi = jax.random.normal(key, tuning.mode.shape, tuning.mode.dtype)
            return tuning.mode + _SPREAD * jax.scipy.linalg.solve_triangular(factor.T, xi)

        z = jax.vmap(about)(keys)
        return State(jax.vmap(self.moved)(agents, z - states.draw), z, tuning)

    @abc.abstractmethod
    def moved(self, agents: PyTree, shift: Array) -> PyTree:
        """The agents of a device as they start, all at one position, moved to another."""

    def step(self, density: Density, state: State, key: Array) -> tuple[State, Info]:
        """A transition of the network."""

        def run(own: Density, agent: PyTree) -> tuple[tuple, Report]:
            agent, report = self.transition(own, agent, state.tuning, key)
            values = locally(lambda own, z: own.constrain(z))(own, self.place(agent))
            return (agent, values), report

        (agents, values), report = self.among(density, run, state.agents)
        info = Info(
            log_density=report.log_density,
            acceptance=jnp.ones_like(report.log_density),
            diverging=report.failed,
            step_size=state.tuning.size,
            gradients=report.gradients,
            evaluations=report.evaluations,
            extra={"consensus": report.consensus, "n_steps": state.tuning.steps},
            agents=values,
        )
        return State(agents, report.draw, state.tuning), info

    def position(self, state: State) -> Array:
        """The position that the network stands for."""
        return state.draw


def as_agents(agents: Any) -> Any:
    """Agents as a setting keeps them: a number, or a tuple of numbers of rows."""
    return tuple(agents) if isinstance(agents, list) else agents


def summarised(z: Array, value: Array, count: int) -> tuple[Array, Array, Array]:
    """Mean of the agents' positions, sum of a value over them, and their consensus spread."""
    draw = total(z) / count
    square = locally(lambda z, draw: jnp.mean((z - draw) ** 2))(z, draw)
    sums = total(jnp.stack([value, square]))
    return draw, sums[0], jnp.sqrt(sums[1] / count)


def noise(key: Array, index: Array, like: Array, *, shared: bool) -> Array:
    """Standard normal noise of an iteration, the agent's own or that of all."""
    key = jax.random.fold_in(key, index)
    if not shared:
        key = jax.random.fold_in(key, 1 + jax.lax.axis_index(AXIS))
    return jax.random.normal(key, like.shape, like.dtype)


def check_agents(method: Networked, mesh: Mesh | None) -> None:
    """Refuse a mesh whose agents are not the method's.

    Raises:
        MethodError: with both numbers.
    """
    if mesh is None:
        return
    devices, label = mesh.shape[AXIS], type(method).__name__
    if devices not in (1, method.count):
        message = f"`mesh` has {devices} devices for agents and `{label}` has {method.count} "
        raise MethodError(message + "agents: give one to each, or none (`agents=1`) in `mesh`.")
    if mesh.shape["data"] > 1:
        message = f"`{label}` has its rows with its agents: use `mesh(agents={method.count})`, "
        raise MethodError(message + "without `data`.")
