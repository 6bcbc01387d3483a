r"""Federated Langevin dynamics: walkers visit the agents and step on the rows that they find there.

A walker is at agent s of n, each with probability 1/n, for T local steps, then moves on. With f_s
the agent's potential (its rows and 1/n of the log prior), a local step is

    x' = x + eps (v_s(x) + g_s(x)) + sqrt(2 eps) xi
    v_s = -n grad f_s                                   unbiased for the full gradient over s
    g_s = grad log q - n grad log q_s                   the conducive gradient

where q_s is a Gaussian surrogate of exp(-f_s) and q their product. The g_s add up to zero, so that
they change no mean; where q_s = exp(-f_s), v_s + g_s is the full gradient at every agent, so that
neither the differences between agents nor T cost anything. Surrogates:

    taylor    log q_s = quadratic Taylor polynomial of -f_s at the common mode
    laplace   Gaussian at the agent's own mode; far off where agents' modes are far apart
    none      g_s = 0: DSGLD, whose draws are too wide where agents' rows differ

The surrogates' natural parameters are added up once. A chain has n walkers, one at each agent; in
each round all move on by the same random number of agents, so that each visits all alike. Draws are
those of one of them; the others are in the fit's agents, by the agent that they are at.

El Mekkaoui, Mesquita, Blomstedt and Kaski (2021), Federated stochastic gradient Langevin dynamics,
UAI; DSGLD: Ahn, Shahbaba and Welling (2014), Distributed stochastic gradient MCMC, ICML.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.inference.distributed.collectives import AXIS, anywhere, locally, sent, total
from quincunx.inference.distributed.network import (
    Networked,
    Prepared,
    Report,
    Tuning,
    as_agents,
    summarised,
)
from quincunx.inference.distributed.survey import Survey, alone
from quincunx.inference.method import Traffic, integer, one_of, positive
from quincunx.inference.registry import register


class Surrogate(NamedTuple):
    """Gaussians in natural form, grad log q(x) = shift - precision x.

    Attributes:
        shift: of the agent's own, `(dim,)`.
        precision: of the agent's own, `(dim, dim)`.
        all_shift: of the product of all.
        all_precision: of the product of all.
    """

    shift: Array
    precision: Array
    all_shift: Array
    all_precision: Array


class Agent(NamedTuple):
    """What an agent has.

    Attributes:
        x: position of the walker that is here, `(dim,)`.
        first: at which agent the walker is whose draws are kept.
        surrogate: of the agent.
    """

    x: Array
    first: Array
    surrogate: Surrogate


@register
class FederatedSGLD(Networked):
    """Langevin dynamics whose walkers go from agent to agent; only walkers leave one.

    Attributes:
        agents: how many, with equal numbers of rows, or each one's number of rows, in their order.
        surrogate: `taylor`, `laplace` or `none`.
        local_steps: steps at an agent before a walker moves on.
        step_size: eps; by default for the tolerance, were surrogates exact.
        steps: rounds of a transition; by default as many as make draws nearly independent.
        tolerance: relative error of variances that the step size may make.
    """

    name: ClassVar[str] = "federated_sgld"
    summary: ClassVar[str] = "Walkers visit agents with rows of their own; few exchanges."
    citation: ClassVar[str] = (
        "El Mekkaoui et al. (2021), Federated Stochastic Gradient Langevin Dynamics, UAI"
    )

    agents: int | tuple[int, ...] = eqx.field(default=4, converter=as_agents)
    surrogate: str = "taylor"
    local_steps: int = 10
    step_size: float | None = None
    steps: int | None = None
    tolerance: float = 0.05

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        label = type(self).__name__
        one_of("surrogate", self.surrogate, ("taylor", "laplace", "none"), label)
        integer("local_steps", self.local_steps, label)
        if self.step_size is not None:
            positive("step_size", self.step_size, label)

    def surveyed(self, own: Density, found: Survey) -> Surrogate:
        """The agent's surrogate, and the product of all."""
        zero = jnp.zeros_like(found.mode)
        if self.surrogate == "none":
            flat = jnp.zeros_like(found.hessian)
            return Surrogate(zero, flat, zero, flat)

        def taylor(own: Density, z: Array) -> tuple[Array, Array]:
            slope = jax.grad(own.log_density)(z)
            precision: Any = -jax.hessian(own.log_density)(z)
            return slope + precision @ z, precision

        def laplace(own: Density, z: Array) -> tuple[Array, Array]:
            at = alone(own, z)
            return at.hessian @ at.z, at.hessian

        parts = locally(taylor if self.surrogate == "taylor" else laplace)(own, found.mode)
        return Surrogate(*parts, *total(parts))

    def start(self, density: Density, z: Array) -> Agent:
        """A walker at each agent; surrogates come with what is prepared."""
        del density
        flat = jnp.zeros((len(z), len(z)), z.dtype)
        none = jnp.zeros_like(z)
        return Agent(z, jnp.zeros((), jnp.int32), Surrogate(none, flat, none, flat))

    def moved(self, agents: Agent, shift: Array) -> Agent:
        """Walkers that are all at one position, at another."""
        return agents._replace(x=agents.x + shift[None])

    def given(self, agents: Agent, own: Surrogate) -> Agent:
        """Agents with their surrogates."""
        return agents._replace(surrogate=own)

    def place(self, agent: Agent) -> Array:
        """The position of the walker at an agent."""
        return agent.x

    def tuned(self, found: Survey) -> tuple[Any, Any]:
        """Eps for the tolerance, and the rounds that it takes to forget."""
        eps = self.step_size or 2 * self.tolerance / float(found.largest)
        return eps, 1 / (eps * float(found.least) * self.local_steps)

    def traffic(self, density: Density, prepared: Prepared) -> Traffic:
        """Walkers, in each round, and the draw that is kept."""
        item = np.dtype(jnp.result_type(float)).itemsize
        exchanges = int(prepared.tuning.steps) * len(self._jumps)
        moved = (exchanges + 1) * self.count * density.dim * item
        return Traffic(moved + self.reported(density, 1), exchanges + 4)

    def transition(
        self, density: Density, agent: Agent, tuning: Tuning, key: Array
    ) -> tuple[Agent, Report]:
        """Rounds: local steps, then all walkers move on."""

        def go(index: Array, carry: tuple) -> tuple:
            x, first, _, _ = carry
            here = jax.random.fold_in(key, 2 * index)
            bits = jax.random.key_data(jax.random.fold_in(here, jax.lax.axis_index(AXIS)))
            x, value = locally(self.stay)(density, agent.surrogate, x, tuning.size, bits)
            move = jax.random.fold_in(key, 2 * index + 1)
            away = jax.random.randint(move, (), 0, self.count, jnp.int32)
            left = x
            for bit, pairs in enumerate(self._jumps):
                x = jnp.where((away >> bit) & 1 == 1, sent(x, pairs), x)
            return x, (first + away) % self.count, value, (left, first)

        blank = jnp.zeros((), agent.x.dtype)
        carry = (agent.x, agent.first, blank, (agent.x, agent.first))
        x, first, value, (left, was) = jax.lax.fori_loop(0, tuning.steps, go, carry)
        _, log_density, spread = summarised(left, value, self.count)
        draw = total(jnp.where(jax.lax.axis_index(AXIS) == was, left, 0.0))
        failed = anywhere(~jnp.all(jnp.isfinite(left)))
        made = tuning.steps * self.local_steps
        report = Report(draw, log_density, spread, failed, made, made)
        return agent._replace(x=x, first=first), report

    def stay(
        self, density: Density, surrogate: Surrogate, x: Array, eps: Array, bits: Array
    ) -> tuple[Array, Array]:
        """A walker's local steps at an agent, and the log density of its rows at the last."""
        key = jax.random.wrap_key_data(bits)

        def step(carry: tuple, index: Array) -> tuple[tuple, None]:
            x, _ = carry
            value, slope = jax.value_and_grad(density.log_density)(x)
            own = surrogate.shift - surrogate.precision @ x
            every = surrogate.all_shift - surrogate.all_precision @ x
            drift = self.drift(slope, own, every)
            xi = jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
            return (x + eps * drift + jnp.sqrt(2 * eps) * xi, value), None

        first = (x, jnp.zeros((), x.dtype))
        return jax.lax.scan(step, first, jnp.arange(self.local_steps))[0]

    def drift(self, slope: Array, own: Array, every: Array) -> Array:
        """V_s + g_s, from the gradients of the agent's log density, of its surrogate and of all."""
        return self.count * (slope - own) + every

    @property
    def _jumps(self) -> list[list[tuple[int, int]]]:
        """Moves by 1, 2, 4, ... agents, from which any move is made."""
        number = (self.count - 1).bit_length()
        return [
            [(i, (i + 2**bit) % self.count) for i in range(self.count)] for bit in range(number)
        ]
