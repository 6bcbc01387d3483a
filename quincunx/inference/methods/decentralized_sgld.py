r"""Langevin dynamics on a network by gossip, with or without tracking of the gradient.

Agent i of n, with potential f_i and doubly stochastic weights W along the edges of the graph
(Metropolis: W_ij = 1 / (1 + max(d_i, d_j)), the rest on the diagonal), in each iteration:

    x_i' = sum_j W_ij x_j - eta y_i + w_i
    y_i' = sum_j W_ij y_j + grad f_i(x_i') - grad f_i(x_i)    with tracking
    y_i' = grad f_i(x_i')                                     without: DE-SGLD

from y_i = grad f_i(x_i). The noise:

    shared        w_i = sqrt(2 eta / n) xi, drawn by all agents alike
    independent   w_i ~ N(0, 2 eta), each its own

With tracking y_i follows the mean of the agents' gradients. Either way the network's mean makes
Langevin steps of size eta / n on U, so that its variances are 1 / (1 - eta A / (2 n)) of what they
should be in a direction of curvature A; eta is set for that to be the tolerance, or smaller where
gossip would not be stable. With independent noise, or without tracking, an agent's own law is
wider, or off, by terms in eta that do not vanish with n.

DE-SGLD: Gürbüzbalaban, Gao, Hu and Zhu (2021), Decentralized stochastic gradient Langevin dynamics
and Hamiltonian Monte Carlo, JMLR 22:239; tracking in Langevin dynamics: DIGing-SGLD (2025),
arXiv:2511.12836.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.distributed.collectives import anywhere, locally
from quincunx.inference.distributed.graph import Edges, as_edges
from quincunx.inference.distributed.network import (
    Networked,
    Prepared,
    Report,
    Tuning,
    as_agents,
    noise,
    summarised,
)
from quincunx.inference.distributed.survey import Survey
from quincunx.inference.method import Traffic, one_of, positive
from quincunx.inference.registry import register

_HALVINGS = 30


class Agent(NamedTuple):
    """What an agent has.

    Attributes:
        x: its position, `(dim,)`.
        y: the gradient that it goes by, `(dim,)`.
        begun: whether it has made a transition, so that `y` is known.
    """

    x: Array
    y: Array
    begun: Array


@register
class DecentralizedSGLD(Networked):
    """Langevin dynamics by gossip; only positions and tracked gradients leave an agent.

    Attributes:
        agents: how many, with equal numbers of rows, or each one's number of rows, in their order.
        tracking: whether agents track the mean gradient; without it this is DE-SGLD.
        noise: `shared` or `independent`.
        graph: `complete`, `ring`, `star`, `grid`, an adjacency matrix, or a networkx graph.
        step_size: eta; by default for the tolerance.
        steps: iterations of a transition; by default as many as make draws nearly independent.
        tolerance: relative error of variances that the step size may make.
    """

    name: ClassVar[str] = "decentralized_sgld"
    summary: ClassVar[str] = "Agents with rows of their own on any graph; explicit Langevin steps."
    citation: ClassVar[str] = (
        "Gürbüzbalaban et al. (2021), Decentralized Stochastic Gradient Langevin Dynamics, JMLR"
    )

    agents: int | tuple[int, ...] = eqx.field(default=4, converter=as_agents)
    tracking: bool = True
    noise: str = "shared"
    graph: str | Edges = eqx.field(default="complete", converter=as_edges)
    step_size: float | None = None
    steps: int | None = None
    tolerance: float = 0.05

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        one_of("noise", self.noise, ("shared", "independent"), type(self).__name__)
        if not isinstance(self.tracking, bool):
            message = f"`DecentralizedSGLD(tracking={self.tracking!r})` must be True or False."
            raise MethodError(message)
        if self.step_size is not None:
            positive("step_size", self.step_size, type(self).__name__)

    def start(self, density: Density, z: Array) -> Agent:
        """Nothing is known of gradients yet."""
        del density
        return Agent(z, jnp.zeros_like(z), jnp.zeros((), bool))

    def moved(self, agents: Agent, shift: Array) -> Agent:
        """Agents that are all at one position, at another."""
        return agents._replace(x=agents.x + shift[None])

    def place(self, agent: Agent) -> Array:
        """An agent's position."""
        return agent.x

    def tuned(self, found: Survey) -> tuple[Any, Any]:
        """Eta for the tolerance, halved until gossip is stable; and the time that it forgets in."""
        eta = 2 * self.tolerance * self.count / float(found.largest)
        weights = np.linalg.eigvalsh(self.network.metropolis)[:-1]
        gap, steepest = 1 - np.max(np.abs(weights)), float(found.steepest)
        for _ in range(_HALVINGS):
            if max(self._radius(weight, eta, steepest) for weight in weights) < 1 - gap / 2:
                break
            eta = eta / 2
        if self.step_size is not None:
            eta = self.step_size
        return eta, self.count / (eta * float(found.least))

    def _radius(self, weight: float, eta: float, curvature: float) -> float:
        """How fast a disagreement dies out that W shrinks by `weight`, for agents alike."""
        if not self.tracking:
            return abs(weight - eta * curvature)
        drawn = [[weight, -eta], [curvature * (weight - 1), weight - eta * curvature]]
        return float(np.max(np.abs(np.linalg.eigvals(drawn))))

    def traffic(self, density: Density, prepared: Prepared) -> Traffic:
        """Positions, and with tracking gradients, along the edges in each iteration."""
        steps, item = int(prepared.tuning.steps), np.dtype(jnp.result_type(float)).itemsize
        vectors, network = steps * (2 if self.tracking else 1), self.network
        sent = vectors * network.messages * density.dim * item
        return Traffic(sent + self.reported(density, 1), vectors * network.rounds + 3)

    def transition(
        self, density: Density, agent: Agent, tuning: Tuning, key: Array
    ) -> tuple[Agent, Report]:
        """Iterations, each of one or two means over neighbours."""
        shared = self.noise == "shared"
        gradient = locally(_gradient)

        def iterate(index: Array, carry: tuple) -> tuple:
            x, y, value, slope = carry
            xi = noise(key, index, x, shared=shared)
            x = locally(self.moves)(self.network.mixed(x), y, tuning.size, xi)
            value, new = gradient(density, x)
            if self.tracking:
                y = locally(lambda y, new, old: y + (new - old))(self.network.mixed(y), new, slope)
            return x, y if self.tracking else new, value, new

        value, slope = gradient(density, agent.x)
        y = jnp.where(agent.begun, agent.y, slope)
        carry = (agent.x, y, value, slope)
        x, y, value, slope = jax.lax.fori_loop(0, tuning.steps, iterate, carry)
        draw, log_density, consensus = summarised(x, -value, self.count)
        failed = anywhere(~jnp.all(jnp.isfinite(slope)))
        made = tuning.steps + 1
        report = Report(draw, log_density, consensus, failed, made, made)
        return Agent(x, y, jnp.ones((), bool)), report

    def moves(self, mixed: Array, y: Array, eta: Array, xi: Array) -> Array:
        """A step from the mean over neighbours."""
        scale = 2 * eta / self.count if self.noise == "shared" else 2 * eta
        return mixed - eta * y + jnp.sqrt(scale) * xi


def _gradient(density: Density, x: Array) -> tuple[Array, Array]:
    """An agent's potential and its gradient."""
    value, slope = jax.value_and_grad(density.log_density)(x)
    return -value, -slope
