r"""What samplers in a mirror's dual space share: the step, its correction, and the warm-up.

Positions x are native (`density.native`). With a mirror map phi, a dual drift b and a step size
eps,

    y' = grad phi(x) + b(x) + sqrt(2 eps) Hess phi(x)^(1/2) xi + c(x) (xi^2 - 1),
    x' = grad phi*(y'),   xi ~ N(0, I).

The last term of y', c_i = eps phi_i^(3) / (2 phi_i^(2)) for the coordinates of a separable phi, is
Milstein's. Without it the noise is that of the old point all along the step, an error of order
eps^(1/2) that in d bounded coordinates would ask for steps of order 1 / d. It is there where a
Metropolis step follows, and not otherwise.

Let q(e | x) be the density of e = y' - grad phi(x) - b(x): normal, or with the last term that of a
quadratic function of a normal variable. As a density over x' it has the factor det Hess phi(x') of
the change of variables, dy' = det Hess phi(x') dx'. So a Metropolis step accepts with the log
probability, e* being that of the way back,

    log pi(x') - log pi(x) + log q(e* | x') - log q(e | x) + log det Hess phi(x)
    - log det Hess phi(x').

A transition is a number of such steps. In warm-up, all chains together learn a typical position
and the scales of the coordinates, from which the mirror map is made; the step size, by dual
averaging of the acceptance; and the number of steps, from how far transitions go in units of the
scales.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from quincunx.engine.bregman.geometry import Geometry, build, plan, typical
from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.distributed.mesh import everywhere
from quincunx.inference.method import (
    Discretised,
    Info,
    Kind,
    Pool,
    Preparation,
    fraction,
    integer,
    lacks_gradient,
    positive,
)
from quincunx.inference.mode import Mode, find_mode
from quincunx.inference.windows import Stage, averaging, choose, windows

_FIRST_STEP, _FIRST_STEPS = 0.1, 5
_LEAST = 0.01  # acceptance of a chain that counts as such while chains find their way
_SMOOTHING = 2.0  # in units of the step size
_SPREAD = 1.0  # of the starts about the mode, in scales
_CORRELATION = 0.4  # of a coordinate in successive transitions
_GROWTH, _MOST_STEPS = 8.0, 1000
_PRIOR_DRAWS = 5.0


class Point(NamedTuple):
    """A position and what a step needs to know there.

    Attributes:
        x: native position.
        log_density: the true one, kinks and supports included.
        drift: b, the displacement of the dual.
    """

    x: Float[Array, " dim"]
    log_density: Float[Array, ""]
    drift: Float[Array, " dim"]


class Window(NamedTuple):
    """Sums over the draws of a window, relative to the centre and in units of the scales.

    Attributes:
        count: draws.
        first: their sum.
        second: sum of their squares.
        jump: sum of the squared distances of successive draws.
    """

    count: Array
    first: Array
    second: Array
    jump: Array


class Tuning(NamedTuple):
    """What all chains share.

    Attributes:
        step_size: eps, unitless where the mirror map has scales.
        smoothing: lam of the envelopes, in the same units.
        steps: steps of a transition.
        centre: a typical position.
        scale: how far each coordinate usually is from it.
        lower: lower ends of the supports, the least finite number where there is none.
        upper: upper ends.
        stale: whether points were made with other tuning.
        averaging: state of the step size's dual averaging.
        window: what is known of this window's draws.
    """

    step_size: Array
    smoothing: Array
    steps: Array
    centre: Array
    scale: Array
    lower: Array
    upper: Array
    stale: Array
    averaging: Any
    window: Window


class State(NamedTuple):
    """State of a chain.

    Attributes:
        point: where it is.
        before: its position before the last transition.
        tuning: what all chains share.
    """

    point: Point
    before: Array
    tuning: Tuning


class Phase(NamedTuple):
    """What a warm-up step does.

    Attributes:
        stage: windows.
        opening: whether chains are still finding their way.
    """

    stage: Stage
    opening: Any


class MirrorKernel(Discretised):
    """A sampler that moves in the dual space of a mirror map.

    Its settings, which subclasses declare: `step_size`, `steps`, `target_accept`, and `geometry`,
    `smoothing` and `adjust` where they are not fixed.
    """

    kind: ClassVar[Kind] = Kind.EXACT
    state_axes: ClassVar[Any] = State(0, 0, None)  # pyright: ignore[reportArgumentType]

    if TYPE_CHECKING:
        geometry: str | Mapping[str, str]
        smoothing: float | None
        step_size: float | None
        steps: int | None
        adjust: bool
        target_accept: float

    def check(self) -> None:
        """Refuse impossible settings."""
        label = type(self).__name__
        for name in ("step_size", "smoothing"):
            if getattr(self, name, None) is not None:
                positive(name, getattr(self, name), label)
        if self.steps is not None:
            integer("steps", self.steps, label)
        fraction("target_accept", self.target_accept, label)

    @abc.abstractmethod
    def drift(
        self, density: Density, x: Array, geometry: Geometry, tuning: Tuning
    ) -> tuple[Array, Array]:
        """The true log density at a position, and the displacement of the dual there."""

    def acceptance(self, density: Density) -> float:
        """The acceptance that the step size aims at."""
        del density
        return self.target_accept

    def missing(self, density: Density) -> str | None:
        """A gradient, and supports that the geometry fits."""
        if lacking := lacks_gradient(density):
            return lacking
        try:
            plan(density.native.program, self.geometry)
        except MethodError as error:
            return str(error)
        return None

    def target(self, density: Density) -> Density:
        """The density over native coordinates."""
        return density.native

    def prepare(self, density: Density, key: Array, *, mesh: Mesh | None = None) -> Preparation:
        """A mode and the scales there."""
        found = find_mode(density, everywhere(jax.random.fold_in(key, 1), mesh), mesh)
        return Preparation(found.mode, found.gradients, found.gradients, found.gradients)

    def init(self, density: Density, position: Array, key: Array) -> State:
        """The state at a position, with scales for nothing but the supports."""
        del key
        dtype = position.dtype
        start, _, _ = averaging(self.acceptance(density))
        size = jnp.asarray(self.step_size or _FIRST_STEP, dtype)
        most, zero = jnp.finfo(dtype).max, jnp.zeros_like(position)
        lower, upper = density.structure.composite.bounds()
        centre, scale = typical(plan(density.program, self.geometry), lower, upper)
        tuning = Tuning(
            step_size=size,
            smoothing=self._smoothing(size),
            steps=jnp.asarray(self.steps or _FIRST_STEPS, jnp.int32),
            centre=centre,
            scale=scale,
            lower=jnp.maximum(lower, -most),
            upper=jnp.minimum(upper, most),
            stale=jnp.zeros((), bool),
            averaging=jax.tree.map(jnp.asarray, start(size)),
            window=_nothing(zero),
        )
        point = self.point(density, position, self.mirror(density, tuning), tuning)
        return State(point, position, tuning)

    def settle(self, states: State, prepared: Mode, keys: Array, *, at_will: bool) -> State:
        """The mode's scales; starts about the mode, unless the user said where."""
        found = jnp.isfinite(prepared.mass)
        tuning = states.tuning
        tuning = tuning._replace(
            centre=jnp.where(found, prepared.position, tuning.centre),
            scale=jnp.where(found, prepared.scale, tuning.scale),
            stale=jnp.ones((), bool),
        )
        x = states.point.x
        if at_will:
            mirror = prepared.mirror
            here = mirror.dual(tuning.centre)

            def start(x: Array, key: Array) -> Array:
                xi = jax.random.normal(key, x.shape, x.dtype)
                y = here + _SPREAD * mirror.noise(tuning.centre, xi)
                return jnp.where(found & mirror.reaches(y), mirror.primal(y), x)

            x = jax.vmap(start)(x, keys)
        return State(states.point._replace(x=x), x, tuning)

    def step(self, density: Density, state: State, key: Array) -> tuple[State, Info]:
        """A transition: as many steps as were tuned."""
        tuning = state.tuning
        mirror = self.mirror(density, tuning)
        start = jax.lax.cond(
            tuning.stale,
            lambda point: self.point(density, point.x, mirror, tuning),
            lambda point: point,
            state.point,
        )

        def one(index: Array, carry: tuple) -> tuple:
            point, accepted, overflows, bad = carry
            moved, chance, sound, reached = self.move(
                density, point, mirror, tuning, jax.random.fold_in(key, index)
            )
            return moved, accepted + chance, overflows + ~reached, bad | ~sound

        zero, none = jnp.zeros((), start.x.dtype), jnp.zeros((), jnp.int32)
        first = (start, zero, none, jnp.zeros((), bool))
        point, accepted, overflows, bad = jax.lax.fori_loop(0, tuning.steps, one, first)
        gradients = tuning.steps + tuning.stale
        info = Info(
            log_density=point.log_density,
            acceptance=accepted / tuning.steps,
            diverging=bad & (not self.adjust),
            step_size=tuning.step_size,
            gradients=gradients,
            evaluations=gradients,
            extra={"n_steps": tuning.steps, "dual_overflow": overflows / tuning.steps},
        )
        fresh = tuning._replace(stale=jnp.zeros((), bool))
        return State(point, state.point.x, fresh), info

    def move(
        self, density: Density, point: Point, mirror: Geometry, tuning: Tuning, key: Array
    ) -> tuple[Point, Array, Array, Array]:
        """One step.

        Returns:
            The next point; the probability with which a Metropolis step accepts; whether the
            proposal was a sound one; whether its dual could be mapped back.
        """
        noise_key, accept_key = jax.random.split(key)
        eps, x = tuning.step_size, point.x
        xi = jax.random.normal(noise_key, x.shape, x.dtype)
        here = mirror.dual(x)
        there = here + point.drift + mirror.step(x, xi, eps, second=self.adjust)
        reached = mirror.reaches(there)
        proposal = self.point(
            density, mirror.primal(jnp.where(reached, there, here)), mirror, tuning
        )
        ratio = self.log_ratio(mirror, point, proposal, eps)
        chance = jnp.exp(jnp.minimum(ratio, 0.0))
        sound = reached & jnp.all(jnp.isfinite(proposal.x)) & jnp.all(jnp.isfinite(proposal.drift))
        if self.adjust:
            sound &= jnp.isfinite(proposal.log_density)
        started = jnp.isfinite(point.log_density)
        chance = jnp.where(sound & started, jnp.nan_to_num(chance, nan=0.0), sound)
        taken = sound
        if self.adjust:
            taken = jax.random.uniform(accept_key, dtype=x.dtype) < chance
        kept = jax.tree.map(lambda a, b: jnp.where(taken, a, b), proposal, point)
        return kept, chance, sound, reached

    def log_ratio(self, mirror: Geometry, point: Point, proposal: Point, eps: Array) -> Array:
        """Log of the ratio of a Metropolis step."""
        here, there = mirror.dual(point.x), mirror.dual(proposal.x)
        law = functools.partial(mirror.log_law, eps=eps, second=self.adjust)
        forward = law(point.x, there - here - point.drift)
        backward = law(proposal.x, here - there - proposal.drift)
        volumes = mirror.log_det(point.x) - mirror.log_det(proposal.x)
        return proposal.log_density - point.log_density + backward - forward + volumes

    def point(self, density: Density, x: Array, mirror: Geometry, tuning: Tuning) -> Point:
        """What is needed at a position; without correction, outside a support its nearest end."""
        log_density, drift = self.drift(density, x, mirror, tuning)
        return Point(x, log_density, drift)

    def mirror(self, density: Density, tuning: Tuning) -> Geometry:
        """The mirror map."""
        pieces = plan(density.program, self.geometry)
        most = jnp.finfo(tuning.lower.dtype).max
        lower = jnp.where(tuning.lower > -most, tuning.lower, -jnp.inf)
        upper = jnp.where(tuning.upper < most, tuning.upper, jnp.inf)
        return build(pieces, tuning.centre, tuning.scale, lower, upper)

    def position(self, state: State) -> Array:
        """The position of a state, put back on the edge of a support that it is outside of."""
        return _inside(state.point.x, state.tuning)

    def stages(self, num_warmup: int) -> Phase:
        """Windows of doubling length."""
        stage = windows(num_warmup)
        return Phase(stage, np.cumsum(stage.learning) == 0)

    def adapt(
        self, density: Density, states: State, infos: Info, stage: Phase, pool: Pool
    ) -> State:
        """Dual averaging of the step size in every step; scales and steps at windows' ends.

        While the chains find their way the harmonic mean of their acceptances counts, so that none
        is left behind.
        """
        current, opening = stage
        tuning = states.tuning
        start, update, final = averaging(self.acceptance(density))
        chains = pool(jnp.asarray(states.before.shape[0], tuning.scale.dtype))
        each = jnp.nan_to_num(infos.acceptance)
        harmonic = chains / pool(jnp.sum(1 / jnp.maximum(each, _LEAST)))
        acceptance = jnp.where(opening, harmonic, pool(jnp.sum(each)) / chains)
        averaged = update(tuning.averaging, acceptance)

        def learn(window: Window) -> Window:
            x = (states.point.x - tuning.centre[None]) / tuning.scale[None]
            jump = (states.point.x - states.before) / tuning.scale[None]
            sums = (jnp.sum(x, axis=0), jnp.sum(x**2, axis=0), jnp.sum(jump**2, axis=0))
            return Window(window.count + chains, *map(jnp.add, window[1:], map(pool, sums)))

        def renew(tuning: Tuning) -> Tuning:
            renewed = self._renewed(tuning)
            return renewed._replace(averaging=start(final(averaged)))

        tuning = tuning._replace(
            averaging=averaged, window=choose(current.learning, learn, tuning.window)
        )
        tuning = choose(current.window_end, renew, tuning)
        running = jnp.exp(tuning.averaging.log_step_size)
        size = jnp.where(current.last, final(tuning.averaging), running)
        if self.step_size is not None:
            size = tuning.step_size
        smoothing = self._smoothing(size)
        tuning = tuning._replace(step_size=size, smoothing=smoothing, stale=jnp.ones((), bool))
        return states._replace(tuning=tuning)

    def halved(self, state: State) -> State:
        """Half the step size and the smoothing, twice the steps."""
        tuning = state.tuning
        half = tuning._replace(
            step_size=tuning.step_size / 2,
            smoothing=tuning.smoothing / 2,
            steps=2 * tuning.steps,
            stale=jnp.ones((), bool),
        )
        return state._replace(tuning=half)

    def at(self, density: Density, position: Array, state: State) -> State:
        """A chain at another position."""
        mirror = self.mirror(density, state.tuning)
        return State(self.point(density, position, mirror, state.tuning), position, state.tuning)

    def _smoothing(self, step_size: Array) -> Array:
        given = getattr(self, "smoothing", None)
        return _SMOOTHING * step_size if given is None else jnp.full_like(step_size, given)

    def _renewed(self, tuning: Tuning) -> Tuning:
        """Centre, scales and steps from the window's draws."""
        window = tuning.window
        count = jnp.maximum(window.count, 1.0)
        mean = window.first / count
        variance = jnp.maximum(window.second / count - mean**2, 0.0)
        moved = jnp.where(variance > 0, window.jump / count, 2.0)
        kept = jnp.max(1 - moved / jnp.where(variance > 0, 2 * variance, 1.0))
        kept = jnp.clip(kept, 0.02, 0.999)
        growth = jnp.clip(jnp.log(_CORRELATION) / jnp.log(kept), 1 / _GROWTH, _GROWTH)
        steps = jnp.clip(jnp.ceil(tuning.steps * growth), 1, _MOST_STEPS)
        shrunk = (count * variance + _PRIOR_DRAWS) / (count + _PRIOR_DRAWS)
        return tuning._replace(
            centre=_inside(tuning.centre + tuning.scale * mean, tuning),
            scale=tuning.scale * jnp.sqrt(shrunk),
            steps=tuning.steps if self.steps is not None else steps.astype(jnp.int32),
            window=_nothing(tuning.centre),
        )


def _nothing(like: Array) -> Window:
    zero = jnp.zeros_like(like)
    return Window(jnp.zeros((), like.dtype), zero, zero, zero)


def _inside(x: Array, tuning: Tuning) -> Array:
    return jnp.clip(x, tuning.lower, tuning.upper)
