r"""The no-U-turn sampler.

Hamiltonian dynamics on the unconstrained space with potential U(z) = -log pi(z) and kinetic
energy K(p) = p^T M^{-1} p / 2, integrated by the leapfrog scheme

    p <- p + (eps/2) grad log pi(z),   z <- z + eps M^{-1} p,   p <- p + (eps/2) grad log pi(z),

along a trajectory that doubles until it turns back on itself; the next position is drawn from
the trajectory in proportion to exp(-U - K). In warm-up the step size eps follows the acceptance
statistic by dual averaging, and the inverse mass matrix M^{-1} is estimated from the draws in
windows of doubling length.

Hoffman and Gelman (2014), The No-U-Turn Sampler, JMLR 15; Betancourt (2017), arXiv:1701.02434.
The low-rank mass matrix: Seyboldt, Carlson and Carpenter (2026), arXiv:2603.18845.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from quincunx.engine.density import Density
from quincunx.inference.method import (
    Info,
    Kernel,
    Kind,
    Pool,
    fraction,
    integer,
    lacks_gradient,
    one_of,
    positive,
)
from quincunx.inference.registry import register
from quincunx.inference.windows import Stage, averaging, blackjax, choose, windows

_RECIPES = {"diag": "welford_diag", "dense": "welford_dense", "low_rank": "fisher_low_rank"}
_LOW_RANK_BUFFER = 256


class State(NamedTuple):
    """State of a chain.

    Attributes:
        chain: position, log density and its gradient.
        step_size: the leapfrog step.
        averaging: state of the step size's dual averaging.
        metric: state of the mass matrix's estimation; holds the matrix in use.
    """

    chain: Any
    step_size: Array
    averaging: Any
    metric: PyTree


@register
class NUTS(Kernel):
    """The no-U-turn sampler on BlackJAX's kernel, with Stan's warm-up schedule.

    Attributes:
        target_accept: acceptance statistic that the step size aims at, in (0, 1).
        mass_matrix: `diag`, `dense` or `low_rank`.
        max_tree_depth: at most 2^depth leapfrog steps a transition.
        step_size: the first step size, before adaptation; the fixed one without warm-up.
        divergence_threshold: energy error beyond which a trajectory is called divergent.
    """

    name: ClassVar[str] = "nuts"
    kind: ClassVar[Kind] = Kind.EXACT
    summary: ClassVar[str] = "Gradient-based baseline for smooth densities of any shape."
    citation: ClassVar[str] = "Hoffman and Gelman (2014), The No-U-Turn Sampler, JMLR 15:1593"

    target_accept: float = 0.8
    mass_matrix: str = "diag"
    max_tree_depth: int = 10
    step_size: float = 0.5
    divergence_threshold: int = 1000

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        blackjax()
        fraction("target_accept", self.target_accept, "NUTS")
        one_of("mass_matrix", self.mass_matrix, tuple(_RECIPES), "NUTS")
        positive("step_size", self.step_size, "NUTS")
        positive("divergence_threshold", self.divergence_threshold, "NUTS")
        integer("max_tree_depth", self.max_tree_depth, "NUTS")

    def missing(self, density: Density) -> str | None:
        """A gradient."""
        return lacks_gradient(density)

    def init(self, density: Density, position: Array, key: Array) -> State:
        """The state at a position: unit mass matrix, first step size."""
        del key
        start, _, _ = averaging(self.target_accept)
        step_size = jnp.asarray(self.step_size, position.dtype)
        metric = _metric(self.mass_matrix).init(density.dim)
        return State(
            blackjax().init(position, density.log_density),
            step_size,
            jax.tree.map(jnp.asarray, start(step_size)),
            jax.tree.map(jnp.asarray, metric),
        )

    def step(self, density: Density, state: State, key: Array) -> tuple[State, Info]:
        """One trajectory."""
        kernel = blackjax().build_kernel(divergence_threshold=self.divergence_threshold)
        chain, info = kernel(
            key,
            state.chain,
            density.log_density,
            state.step_size,
            state.metric.inverse_mass_matrix,
            self.max_tree_depth,
        )
        steps = info.num_integration_steps
        extra = {
            "energy": info.energy,
            "n_steps": steps,
            "tree_depth": info.num_trajectory_expansions,
            "reached_max_tree_depth": info.num_trajectory_expansions >= self.max_tree_depth,
        }
        common = Info(
            log_density=jnp.asarray(chain.logdensity),
            acceptance=jnp.asarray(info.acceptance_rate),
            diverging=jnp.asarray(info.is_divergent),
            step_size=state.step_size,
            gradients=jnp.asarray(steps),
            evaluations=jnp.asarray(steps),
            extra=extra,
        )
        return state._replace(chain=chain), common

    def position(self, state: State) -> Array:
        """The position of a state."""
        return jnp.asarray(state.chain.position)

    def stages(self, num_warmup: int) -> Stage:
        """Stan's: step size only, then windows of doubling length, then step size only."""
        return windows(num_warmup)

    def adapt(
        self, density: Density, states: State, infos: Info, stage: Stage, pool: Pool
    ) -> State:
        """Dual averaging of the step size; mass matrix in the slow windows."""
        del density, pool
        start, update, final = averaging(self.target_accept)
        core = _metric(self.mass_matrix)
        acceptance = jnp.where(jnp.isfinite(infos.acceptance), infos.acceptance, 0.0)
        averaged = jax.vmap(update)(states.averaging, acceptance)

        def learn(metric: PyTree) -> PyTree:
            chain = states.chain
            return jax.vmap(core.update)(metric, chain.position, chain.logdensity_grad)

        def renew(pair: tuple) -> tuple:
            metric, averaged = pair
            return jax.vmap(core.final)(metric), jax.vmap(lambda s: start(final(s)))(averaged)

        metric = choose(stage.learning, learn, states.metric)
        metric, averaged = choose(stage.window_end, renew, (metric, averaged))
        step_size = jnp.where(
            stage.last, jax.vmap(final)(averaged), jnp.exp(averaged.log_step_size)
        )
        return State(states.chain, step_size, averaged, metric)


@functools.cache
def _metric(name: str) -> Any:
    size = _LOW_RANK_BUFFER if name == "low_rank" else None
    return blackjax().lookup_recipe(_RECIPES[name]).build_core(buffer_size=size)
