"""Kernels for tests: correct ones of other kinds than the package has, and broken ones."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

import quincunx as qx
from quincunx.engine.bregman import Geometry
from quincunx.inference.estimators import Minibatch
from quincunx.inference.minibatch import Batches


class Walk(NamedTuple):
    z: jax.Array
    log_density: jax.Array
    accepted: jax.Array
    tries: jax.Array
    done: jax.Array


class RandomWalk(qx.Machine):
    """Metropolis random walk that makes a random number of ticks in each transition.

    A transition is one Metropolis step followed by pauses, as many as a geometric variable
    says: a stand-in for kernels whose transitions vary in cost.
    """

    name: ClassVar[str] = "test_random_walk"
    kind: ClassVar[qx.Kind] = qx.Kind.EXACT
    summary: ClassVar[str] = "For tests."
    citation: ClassVar[str] = "None"

    scale: float = 1.5
    pause: float = 0.5
    execution: str = "lockstep"

    def init(self, density, position, key):
        zero, yes = jnp.zeros((), jnp.int32), jnp.ones((), bool)
        return Walk(position, density.log_density(position), ~yes, zero, yes)

    def begin(self, density, state, key):
        no = jnp.zeros((), bool)
        return state._replace(tries=jnp.zeros((), jnp.int32), accepted=no, done=no)

    def tick(self, density, state, key):
        propose, accept, wait = jax.random.split(key, 3)
        proposal = state.z + self.scale * jax.random.normal(propose, state.z.shape)
        log_density = density.log_density(proposal)
        threshold = jnp.log(jax.random.uniform(accept))
        better = (state.tries == 0) & (threshold < log_density - state.log_density)
        roll = jax.random.uniform(jax.random.fold_in(wait, state.tries))
        new = Walk(
            jnp.where(better, proposal, state.z),
            jnp.where(better, log_density, state.log_density),
            state.accepted | better,
            state.tries + 1,
            roll > self.pause,
        )
        return jax.tree.map(lambda a, b: jnp.where(state.done, b, a), new, state)

    def done(self, state):
        return state.done

    def end(self, density, state):
        info = qx.Info(
            log_density=state.log_density,
            acceptance=jnp.where(state.accepted, 1.0, 0.0),
            diverging=jnp.zeros((), bool),
            step_size=jnp.asarray(self.scale),
            gradients=jnp.zeros((), int),
            evaluations=state.tries,
            extra={},
        )
        return state, info

    def position(self, state):
        return state.z


class NoDensityRatio(RandomWalk):
    """Broken: accepts every proposal."""

    name: ClassVar[str] = "test_no_density_ratio"

    def begin(self, density, state, key):
        return super().begin(density, state._replace(log_density=jnp.full((), -jnp.inf)), key)


class Cold(qx.Density):
    """A power of the density that was asked for."""

    power: float

    def log_density(self, z):
        return self.power * super().log_density(z)


class ColdNUTS(qx.NUTS):
    """Broken: follows the dynamics of a colder density."""

    name: ClassVar[str] = "test_cold_nuts"

    power: float = 1.15

    def step(self, density, state, key):
        cold = Cold(
            density.leaves, density.temperature, density.program, density.labels, self.power
        )
        chain = self.init(cold, state.chain.position, key).chain
        return super().step(cold, state._replace(chain=chain), key)


class NoJacobian(qx.PolarSlice):
    """Broken: leaves out r^(d - 1)."""

    name: ClassVar[str] = "test_no_jacobian"

    def correction(self, state, scale, angle, dim):
        return jnp.zeros_like(scale)


class WrongShrink(qx.PolarSlice):
    """Broken: shrinks the bracket away from the present point."""

    name: ClassVar[str] = "test_wrong_shrink"

    def _next_candidate(self, tuning, s, inside, gap, uniform, dim):
        new = super()._next_candidate(tuning, s, inside, gap, uniform, dim)
        missed = new.trial > s.trial
        below = s.t < jnp.where(s.phase == 0, 0.0, s.origin)
        low = jnp.where(missed & ~below, s.t, s.low)
        high = jnp.where(missed & below, s.t, s.high)
        shrunk = new._replace(low=low, high=high, t=low + uniform * (high - low))
        return jax.tree.map(lambda a, b: jnp.where(missed, a, b), shrunk, new)


class NaNInside(qx.PolarSlice):
    """Broken: takes points whose density is NaN, as a test for `<=` does."""

    name: ClassVar[str] = "test_nan_inside"

    def _gap(self, density, tuning, x):
        gap = self.value(density, x) - tuning.level
        return jnp.where(jnp.isnan(gap), jnp.inf, gap)


class Unfrozen(qx.PolarSlice):
    """Broken: the centre follows the chain in every transition."""

    name: ClassVar[str] = "test_unfrozen"

    def plane(self, state, normal, dim):
        centre = 0.5 * state.x
        tuning = state.tuning._replace(affine=state.tuning.affine._replace(centre=centre))
        return super().plane(state._replace(y=state.x - centre, tuning=tuning), normal, dim)


class NoEllipse(qx.EllipticalSlice):
    """Broken: slices the posterior where the ratio to the Gaussian is due."""

    name: ClassVar[str] = "test_no_ellipse"

    def correction(self, state, scale, angle, dim):
        return jnp.zeros_like(scale)


class NoVolume(qx.BregmanLangevin):
    """Broken: leaves out the log determinant of the Hessian, as if q were a density of the dual."""

    name: ClassVar[str] = "test_no_volume"

    def log_ratio(self, mirror, point, proposal, eps):
        volumes = mirror.log_det(point.x) - mirror.log_det(proposal.x)
        return super().log_ratio(mirror, point, proposal, eps) - volumes


class TakenForNormal(qx.BregmanLangevin):
    """Broken: q is taken to be normal, which it is not with the term of second order."""

    name: ClassVar[str] = "test_taken_for_normal"

    def log_ratio(self, mirror, point, proposal, eps):
        plain = qx.BregmanLangevin(adjust=False)
        return plain.log_ratio(mirror, point, proposal, eps)


class Elsewhere(Geometry):
    at: jax.Array

    def step(self, x, xi, eps, *, second):
        return super().step(self.at, xi, eps, second=second)


class NoiseAtEnd(qx.BregmanLangevin):
    """Broken: the noise has the covariance of the point that the drift leads to."""

    name: ClassVar[str] = "test_noise_at_end"

    def move(self, density, point, mirror, tuning, key):
        here = mirror.dual(point.x)
        y = here + point.drift
        end = mirror.primal(jnp.where(mirror.reaches(y), y, here))
        return super().move(density, point, Elsewhere(mirror.pieces, mirror.maps, end), tuning, key)


class Unscaled(Batches):
    """Broken: the likelihood of a block is not scaled up to all rows."""

    def block(self, index, ahead=None):
        block = super().block(index, ahead)
        return eqx.tree_at(lambda b: b.weight, block, 1 / self.number, is_leaf=lambda x: x is None)


class ReplacingSGLD(qx.SGLD):
    """Blocks drawn independently."""

    independent: ClassVar[bool] = True


class ReplacingSGHMC(qx.SGHMC):
    """Blocks drawn independently."""

    independent: ClassVar[bool] = True


class UnscaledSGLD(qx.SGLD):
    """Broken: minibatches count for themselves only."""

    def batches(self, density):
        return Unscaled.of(density, self.batch_size)


class _ScaledPrior(Minibatch):
    def __call__(self, density, z, turn, memory, anchor):
        found = super().__call__(density, z, turn, memory, anchor)
        prior = jax.grad(density.log_prior)(z)
        return found._replace(score=found.score + (self.batches.number - 1) * prior)


class ScaledPriorSGLD(qx.SGLD):
    """Broken: the prior is scaled as the likelihood is."""

    def estimator(self, density):
        return _ScaledPrior(self.batches(density))


class LoudSGHMC(qx.SGHMC):
    """Broken: momentum noise of an explicit Euler step, 2 C h in place of 1 - c^2."""

    def move(self, z, motion, score, tuning, index, key):
        h, unit = tuning.step_size, jnp.sqrt(tuning.scale)
        keep, kicked = jnp.exp(-tuning.friction * h), motion + h * unit * score
        xi = jax.random.normal(key, z.shape, z.dtype)
        thrown = keep * kicked + jnp.sqrt(2 * tuning.friction * h * self.temperature) * xi
        return z + 0.5 * h * unit * (kicked + thrown), thrown
