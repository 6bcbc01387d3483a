r"""Sampling by the alternating direction method of multipliers, with noise in the proximal step.

Agent i of n, with potential f_i, d_i neighbours N_i and a multiplier p_i, in each iteration:

    x_i' = argmin_x f_i(x) + p_i x + e_i x + rho sum_(j in N_i) |x - (x_i + x_j) / 2|^2
    p_i' = p_i + rho sum_(j in N_i) (x_i' - x_j')

The multipliers begin at zero and always add up to zero. Summed over the agents, at consensus and
with D = sum_i d_i, an iteration is an implicit Euler step of size h = 1 / (2 rho D):

    x' = x - h grad U(x') - h sum_i e_i,

a Langevin step if the variance of sum_i e_i is 2 / h = 4 rho D. The noise:

    calibrated   e_i ~ N(0, 4 rho d_i), independently for each agent
    shared       e_i = (d_i / D) e,  e ~ N(0, 4 rho D) drawn by all agents alike
    paper        e_i ~ N(0, 2 d_i^2): the published code's, which makes the covariance of the mean
                 d / (2 rho) times that of the posterior on a graph where each has d neighbours

What is left is the implicit step's bias: variances are 1 / (1 + h A / 2) of what they should be in
a direction in which U has curvature A. By default rho = L / (4 tolerance D), with L the largest
curvature at the mode, so that this is at least 1 - tolerance. With independent noise the agents
differ by far more than the posterior is wide; with shared noise each follows it.

The proximal step is taken by damped Newton steps to a residual of 10^-4 of the noise, and the
transition is said to have diverged where it is above 10^-3. They solve linear systems in all
coordinates, so this is for some hundreds of them; and where the gradient jumps, as at the kinks of
Laplace priors, no such residual is reached, so that models with kinks are refused.

The published code of the distributed ADMM sampler (D-ADMMS) is sisl/Distributed_ADMM_Sampler on
GitHub; the calibration is derived above, from the sum of the optimality conditions.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import listing
from quincunx.inference.distributed.collectives import AXIS, anywhere, largest, locally
from quincunx.inference.distributed.graph import Edges, as_edges
from quincunx.inference.distributed.network import (
    Networked,
    Prepared,
    Report,
    State,
    Tuning,
    as_agents,
    noise,
    summarised,
)
from quincunx.inference.distributed.survey import Survey
from quincunx.inference.method import Traffic, one_of, positive
from quincunx.inference.registry import register

_NEAR, _FAR, _TICKS = 1e-4, 1e-3, 40


class Agent(NamedTuple):
    """What an agent has.

    Attributes:
        x: its position, `(dim,)`.
        p: its multiplier, `(dim,)`.
        around: the sum of its neighbours' positions, `(dim,)`.
        degree: how many they are.
    """

    x: Array
    p: Array
    around: Array
    degree: Array


class _Solve(NamedTuple):
    """A proximal step on its way."""

    x: Array
    residual: Array
    size: Array
    ticks: Array


@register
class ADMM(Networked):
    """Langevin sampling on a network, an implicit step at a time; only positions leave an agent.

    Attributes:
        agents: how many, with equal numbers of rows, or each one's number of rows, in their order.
        rho: the penalty; `auto` for the tolerance.
        graph: `complete`, `ring`, `star`, `grid`, an adjacency matrix, or a networkx graph.
        noise: `calibrated`, `shared` or `paper`.
        steps: iterations of a transition; by default as many as make draws nearly independent.
        tolerance: relative error of variances that the penalty may make.
    """

    name: ClassVar[str] = "admm"
    summary: ClassVar[str] = "Agents with rows of their own on any graph; implicit Langevin steps."
    citation: ClassVar[str] = "Distributed ADMM sampler (D-ADMMS), sisl/Distributed_ADMM_Sampler"

    agents: int | tuple[int, ...] = eqx.field(default=4, converter=as_agents)
    rho: float | str = "auto"
    graph: str | Edges = eqx.field(default="complete", converter=as_edges)
    noise: str = "calibrated"
    steps: int | None = None
    tolerance: float = 0.05

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        one_of("noise", self.noise, ("calibrated", "shared", "paper"), "ADMM")
        if isinstance(self.rho, str):
            one_of("rho", self.rho, ("auto",), "ADMM")
        else:
            positive("rho", self.rho, "ADMM")
        self.network.degrees  # noqa: B018

    def missing(self, density: Density) -> str | None:
        """What agents need, and gradients without jumps, which Newton steps follow."""
        if lacking := super().missing(density):
            return lacking
        kinked = density.structure.composite.kinked()
        if not kinked:
            return None
        reason = "its proximal steps are by Newton's method, and the density has kinks in "
        return reason + f"{listing(kinked)}."

    def start(self, density: Density, z: Array) -> Agent:
        """No multipliers yet."""
        del density
        degree = jnp.asarray(self.network.degrees, z.dtype)[jax.lax.axis_index(AXIS)]
        return Agent(z, jnp.zeros_like(z), degree * z, degree)

    def moved(self, agents: Agent, shift: Array) -> Agent:
        """Agents that are all at one position, at another."""
        around = agents.around + agents.degree[:, None] * shift[None]
        return agents._replace(x=agents.x + shift[None], around=around)

    def place(self, agent: Agent) -> Array:
        """An agent's position."""
        return agent.x

    def tuned(self, found: Survey) -> tuple[Any, Any]:
        """Rho for the tolerance, and the time that the implicit Euler step takes to forget."""
        degrees = int(self.network.degrees.sum())
        rho = found.largest / (4 * self.tolerance * degrees)
        if not isinstance(self.rho, str):
            rho = self.rho
        return rho, 2 * rho * degrees / found.least

    def halved(self, state: State) -> State:
        """Twice the penalty and twice the iterations."""
        tuning = state.tuning
        half = tuning._replace(size=2 * tuning.size, steps=2 * tuning.steps)
        return state._replace(tuning=half)

    def traffic(self, density: Density, prepared: Prepared) -> Traffic:
        """Positions along the edges in each iteration, and at its end what is reported."""
        steps, item = int(prepared.tuning.steps), np.dtype(jnp.result_type(float)).itemsize
        sent = steps * self.network.messages * density.dim * item
        return Traffic(sent + self.reported(density, 2), steps * self.network.rounds + 4)

    def transition(
        self, density: Density, agent: Agent, tuning: Tuning, key: Array
    ) -> tuple[Agent, Report]:
        """Iterations: a proximal step, then one sum over neighbours."""
        level = jnp.sqrt(4 * tuning.size * agent.degree * density.dim)

        def iterate(index: Array, carry: tuple) -> tuple:
            agent, ticks, worst = carry
            xi = noise(key, index, agent.x, shared=self.noise == "shared")
            solved = locally(self.propose)(density, agent, tuning.size, xi)
            around = self.network.neighbours(solved.x)
            agent = locally(_followed)(agent, tuning.size, solved.x, around)
            size = jnp.linalg.norm(solved.residual)
            worst = jnp.where(size <= worst, worst, size)  # NaN stays
            return agent, ticks + solved.ticks, worst

        first = (agent, jnp.zeros((), jnp.int32), jnp.zeros((), agent.x.dtype))
        agent, ticks, worst = jax.lax.fori_loop(0, tuning.steps, iterate, first)
        value = locally(lambda own, x: own.log_density(x))(density, agent.x)
        draw, log_density, consensus = summarised(agent.x, value, self.count)
        failed = anywhere(~(worst <= _FAR * level))
        ticks = largest(ticks)
        gradients = ticks * (1 + density.dim) + tuning.steps
        spent = (gradients, gradients + 1)
        return agent, Report(draw, log_density, consensus, failed, *spent)

    def propose(self, density: Density, agent: Agent, rho: Array, xi: Array) -> _Solve:
        """The proximal step, with noise."""
        x, degree = agent.x, agent.degree
        linear = agent.p - rho * (degree * x + agent.around) + self.noise_scale(rho, degree) * xi
        tolerance = _NEAR * jnp.sqrt(4 * rho * degree * density.dim)
        return _proximal(density, x, linear, 2 * rho * degree, tolerance)

    def noise_scale(self, rho: Array, degree: Array) -> Array:
        """Standard deviation of e_i, as a factor of standard normal noise."""
        if self.noise == "paper":
            return jnp.sqrt(2.0) * degree
        if self.noise == "shared":
            total = self.network.degrees.sum()
            return degree / total * jnp.sqrt(4 * rho * total)
        return jnp.sqrt(4 * rho * degree)


def _followed(agent: Agent, rho: Array, x: Array, around: Array) -> Agent:
    """The multiplier's step, when the neighbours' positions are known."""
    p = agent.p + rho * (agent.degree * x - around)
    return Agent(x, p, around, agent.degree)


def _proximal(
    density: Density, start: Array, linear: Array, curvature: Array, tolerance: Array
) -> _Solve:
    """Where -log p(x) + linear x + curvature |x|^2 / 2 is least.

    Newton steps, halved where the residual does not shrink.
    """

    def residual(x: Array) -> Array:
        return -jax.grad(density.log_density)(x) + linear + curvature * x

    def unsolved(at: _Solve) -> Array:
        return (at.ticks < _TICKS) & ~(jnp.linalg.norm(at.residual) <= tolerance)

    def tick(at: _Solve) -> _Solve:
        hessian: Any = -jax.hessian(density.log_density)(at.x)
        newton = jnp.linalg.solve(hessian + curvature * jnp.eye(len(at.x)), at.residual)
        x = at.x - at.size * newton
        new = residual(x)
        shrunk = jnp.linalg.norm(new) <= (1 - at.size / 4) * jnp.linalg.norm(at.residual)
        return _Solve(
            jnp.where(shrunk, x, at.x),
            jnp.where(shrunk, new, at.residual),
            jnp.where(shrunk, jnp.minimum(2 * at.size, 1.0), at.size / 2),
            at.ticks + 1,
        )

    first = _Solve(start, residual(start), jnp.ones((), start.dtype), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unsolved, tick, first)
