r"""Consensus Monte Carlo: each agent samples its own part, and weighted means of draws are kept.

Agent s of n runs chains of its own on the subposterior

    pi_s(x) proportional to p(x)^(1/n) p(data of s | x),

and with W_s the inverse covariance of its draws, the t-th draws are combined to

    x_t = (sum_s W_s)^(-1) sum_s W_s x_(s,t).

That is exact where all subposteriors are Gaussian, and approximate otherwise. The weights are those
of the second half of the warm-up, or where that is short the Hessians at the common mode. Agents
exchange nothing but what the mean needs.

Scott, Blocker, Bonassi, Chipman, George and McCulloch (2016), Bayes and big data: the consensus
Monte Carlo algorithm, International Journal of Management Science and Engineering Management 11:78.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.distributed.collectives import AXIS, anywhere, largest, locally, total
from quincunx.inference.distributed.network import (
    Networked,
    Prepared,
    Report,
    State,
    Tuning,
    as_agents,
    summarised,
)
from quincunx.inference.distributed.survey import Survey
from quincunx.inference.driver import SHARED, axes_of
from quincunx.inference.method import Info, Kernel, Kind, Pool, Traffic
from quincunx.inference.methods.nuts import NUTS
from quincunx.inference.registry import register, resolve
from quincunx.inference.stochastic import StochasticKernel

_ENOUGH = 10  # draws for each coordinate


class Weights(NamedTuple):
    """Precisions by which draws are combined.

    Attributes:
        own: W_s, `(dim, dim)`.
        every: the sum over agents, `(dim, dim)`.
    """

    own: Array
    every: Array


class Seen(NamedTuple):
    """Sums over the draws of a chain that the weights are made of.

    Attributes:
        count: number of draws.
        total: their sum, `(dim,)`.
        square: sum of their outer products, `(dim, dim)`.
    """

    count: Array
    total: Array
    square: Array


class Agent(NamedTuple):
    """What an agent has.

    Attributes:
        inner: the state of its chain.
        info: what the last transition said.
        seen: of its draws in warm-up, from its first position.
        origin: its first position, `(dim,)`.
        weights: for the combination.
    """

    inner: PyTree
    info: Info
    seen: Seen
    origin: Array
    weights: Weights


class Stage(NamedTuple):
    """What a warm-up step is told.

    Attributes:
        inner: the stage of the agents' own method.
        learning: whether draws enter the weights.
        last: whether warm-up ends, so that the weights are made.
    """

    inner: Any
    learning: Any
    last: Any


@register
class Consensus(Networked):
    """Each agent samples its own part; weighted means of the agents' draws are kept.

    Attributes:
        agents: how many, with equal numbers of rows, or each one's number of rows, in their order.
        inner: the agents' method, an object or a name; one that takes no minibatches.
    """

    name: ClassVar[str] = "consensus"
    kind: ClassVar[Kind] = Kind.APPROXIMATE
    summary: ClassVar[str] = "Agents sample their own rows alone; draws are averaged by precision."
    citation: ClassVar[str] = (
        "Scott et al. (2016), Bayes and Big Data: the Consensus Monte Carlo Algorithm, IJMSEM 11:78"
    )
    steps: ClassVar[int] = 1
    tolerance: ClassVar[float] = 0.05

    agents: int | tuple[int, ...] = eqx.field(default=4, converter=as_agents)
    inner: Any = eqx.field(default_factory=NUTS, converter=resolve)

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        self.check()
        if not isinstance(self.inner, Kernel) or isinstance(
            self.inner, (StochasticKernel, Networked)
        ):
            message = f"`Consensus(inner={type(self.inner).__name__}())` cannot run by itself on "
            raise MethodError(message + "an agent's rows. Take `NUTS()` or a slice sampler.")

    def settings(self) -> dict[str, Any]:
        """The settings as a JSON-able dict."""
        return {"agents": self.agents, "inner": [self.inner.name, self.inner.settings()]}

    def missing(self, density: Density) -> str | None:
        """What agents need, and what their own method does."""
        return super().missing(density) or self.inner.missing(density)

    def surveyed(self, own: Density, found: Survey) -> Weights:
        """Hessians at the common mode, until there are better ones."""
        curvature = locally(lambda own, z: -jax.hessian(own.log_density)(z))(own, found.mode)
        return Weights(curvature, total(curvature))

    def start(self, density: Density, z: Array) -> Agent:
        """A chain of its own at the common position."""
        key = jax.random.key(0)
        inner = locally(lambda own, z: self.inner.init(own, z, key))(density, z)
        shape = jax.eval_shape(lambda inner: self.inner.step(density, inner, key)[1], inner)
        info = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), shape)
        flat = jnp.zeros((len(z), len(z)), z.dtype)
        seen = Seen(jnp.zeros((), z.dtype), jnp.zeros_like(z), flat)
        return Agent(inner, info, seen, z, Weights(flat, flat))

    def moved(self, agents: Agent, shift: Array) -> Agent:
        """Agents stay where they start: each looks for its own part of the space."""
        del shift
        return agents

    def given(self, agents: Agent, own: Weights) -> Agent:
        """Agents with their weights."""
        return agents._replace(weights=own)

    def place(self, agent: Agent) -> Array:
        """The position of an agent's chain."""
        return self.inner.position(agent.inner)

    def tuned(self, found: Survey) -> tuple[Any, Any]:
        """There is no step size, and a transition is one of the agents' own."""
        del found
        return np.nan, 1

    def halved(self, state: State) -> State:
        """Nothing to halve."""
        return state

    def traffic(self, density: Density, prepared: Prepared) -> Traffic:
        """A weighted position, and what is reported."""
        del prepared
        item = np.dtype(jnp.result_type(float)).itemsize
        return Traffic(self.count * density.dim * item + self.reported(density, 3), 5)

    def transition(
        self, density: Density, agent: Agent, tuning: Tuning, key: Array
    ) -> tuple[Agent, Report]:
        """One transition of the agent's own, then the weighted mean."""
        del tuning
        bits = jax.random.key_data(jax.random.fold_in(key, jax.lax.axis_index(AXIS)))

        def alone(density: Density, inner: PyTree, bits: Array) -> tuple[PyTree, Info, Array]:
            inner, info = self.inner.step(density, inner, jax.random.wrap_key_data(bits))
            return inner, info, self.inner.position(inner)

        inner, info, x = locally(alone)(density, agent.inner, bits)
        draw = self.combined(agent.weights, x)
        _, log_density, consensus = summarised(x, info.log_density, self.count)
        counts = jnp.stack([jnp.asarray(count, jnp.int32) for count in info[4:6]])
        failed = anywhere(info.diverging)
        made = largest(counts)
        report = Report(draw, log_density, consensus, failed, made[0], made[1])
        return agent._replace(inner=inner, info=info), report

    def combined(self, weights: Weights, x: Array) -> Array:
        """The mean of the agents' positions, weighted by precision."""
        weighed = total(locally(jnp.matmul)(weights.own, x))
        return locally(jnp.linalg.solve)(weights.every, weighed)

    def stages(self, num_warmup: int) -> Stage:
        """Those of the agents' own method; weights are learnt in the second half."""
        index = np.arange(num_warmup)
        learning = index >= num_warmup // 2
        return Stage(self.inner.stages(num_warmup), learning, index == num_warmup - 1)

    def adapt(
        self, density: Density, states: State, infos: Info, stage: Stage, pool: Pool
    ) -> State:
        """The agents' own method adapts; then weights."""
        del infos

        def alone(own: Density, chains: Agent) -> tuple[PyTree, Seen, Array]:
            inner = self._adapted(own, chains, stage.inner, pool)
            seen = jax.vmap(self._taken_down, (0, 0, 0, None))(
                chains.seen, jax.vmap(self.inner.position)(inner), chains.origin, stage.learning
            )
            return inner, seen, self._learnt(seen, chains.weights.own[0], pool)

        def one(own: Density, chains: Agent) -> tuple[Agent, tuple]:
            inner, seen, precision = locally(alone)(own, chains)

            def renew() -> Weights:
                both = Weights(precision, total(precision))
                return jax.tree.map(
                    lambda a, b: jnp.broadcast_to(a[None], b.shape), both, chains.weights
                )

            weights = jax.lax.cond(stage.last, renew, lambda: chains.weights)
            return chains._replace(inner=inner, seen=seen, weights=weights), ()

        swapped = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), states.agents)
        agents, _ = self.among(density, one, swapped)
        back = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), agents)
        return states._replace(agents=back)

    def _adapted(self, own: Density, chains: Agent, stage: Any, pool: Pool) -> PyTree:
        """The chains of an agent after its method's adaptation; each has what they share."""
        axes = axes_of(self.inner, chains.inner)
        given = jax.tree.map(lambda axis, a: a[0] if axis == SHARED else a, axes, chains.inner)
        made = self.inner.adapt(own, given, chains.info, stage, pool)

        def back(axis: int, new: Array, old: Array) -> Array:
            new = jnp.asarray(new[None] if axis == SHARED else new, old.dtype)
            return jnp.broadcast_to(new, old.shape)

        return jax.tree.map(back, axes, made, chains.inner)

    @staticmethod
    def _taken_down(seen: Seen, x: Array, origin: Array, learning: Array) -> Seen:
        shift = x - origin
        new = Seen(seen.count + 1, seen.total + shift, seen.square + shift[:, None] * shift[None])
        return jax.tree.map(lambda a, b: jnp.where(learning, a, b), new, seen)

    def _learnt(self, seen: Seen, before: Array, pool: Pool) -> Array:
        """Inverse covariance of an agent's draws, of all its chains about their own means."""
        mean = seen.total / jnp.maximum(seen.count, 1)[:, None]
        inside = seen.square - seen.count[:, None, None] * mean[:, :, None] * mean[:, None]
        square, count = pool(jnp.sum(inside, axis=0)), pool(jnp.sum(seen.count))
        enough = count >= _ENOUGH * square.shape[0]
        covariance = jnp.where(enough, square / jnp.maximum(count, 1), jnp.eye(square.shape[0]))
        return jnp.where(enough, jnp.linalg.inv(covariance), before)
