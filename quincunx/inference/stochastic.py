"""What all stochastic-gradient samplers share: minibatches, tuning, and the steps of a transition.

A transition is a number of steps, so that its draws are nearly independent; that number, the step
size and the scales are found by a pilot run (`inference/pilot.py`). Each step takes the gradient
estimate of one block of rows. A sampler writes what a step does with it.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from quincunx.engine.density import Density
from quincunx.inference import minibatch
from quincunx.inference.distributed.mesh import everywhere
from quincunx.inference.estimators import ESTIMATORS, Anchor, Estimate, Minibatch
from quincunx.inference.method import (
    Discretised,
    Info,
    Kind,
    Preparation,
    fraction,
    integer,
    lacks_gradient,
    one_of,
    positive,
)
from quincunx.inference.minibatch import Batches, Turn

_BATCH = 256
_MANY_ROWS = 10_000
_SPREAD = 2.0  # of the starts about the mode, in conditional standard deviations


class Tuning(NamedTuple):
    """What all chains share.

    Attributes:
        place: steps made since the beginning of the epoch.
        elapsed: steps made since the start, as a floating-point number.
        steps: steps of a transition.
        step_size: of a step, in units in which the curvature is about one; zero before `settle`.
        scale: squared scale of each coordinate, `(dim,)`.
        friction: what kinetic samplers lose of their momentum in unit time.
        anchor: the mode, and the likelihood of all rows there.
    """

    place: Array
    elapsed: Array
    steps: Array
    step_size: Array
    scale: Array
    friction: Array
    anchor: Anchor


class State(NamedTuple):
    """State of a chain.

    Attributes:
        z: position.
        order: the blocks in the order of this epoch.
        memory: what the gradient estimator carries.
        motion: what the sampler carries, such as a momentum.
        tuning: what all chains share.
    """

    z: Array
    order: Array
    memory: PyTree
    motion: PyTree
    tuning: Tuning


class Noise(NamedTuple):
    """Covariance of a gradient estimate in scaled coordinates, for independent minibatches.

    Attributes:
        largest: its largest eigenvalue.
        mean: the mean of its eigenvalues.
    """

    largest: Array
    mean: Array


class Pilot(NamedTuple):
    """What a pilot run found.

    Attributes:
        tuning: what all chains share.
        spread: conditional standard deviations at the mode, `(dim,)`.
        searched: whether the mode was searched for.
    """

    tuning: Tuning
    spread: Array
    searched: bool


class StochasticKernel(Discretised):
    """A sampler that moves by gradient estimates from minibatches.

    Its settings, which subclasses declare: `batch_size`, `step_size`, `steps`, `control_variates`,
    `temperature`, `tolerance`, and `preconditioner` where it has one.
    """

    kind: ClassVar[Kind] = Kind.BIASED
    in_turn: ClassVar[bool] = True
    independent: ClassVar[bool] = False  # whether minibatches must be
    state_axes: ClassVar[Any] = State._make((0, 0, 0, 0, None))

    if TYPE_CHECKING:
        batch_size: int | None
        step_size: float | None
        steps: int | None
        preconditioner: str | None
        control_variates: str
        temperature: float
        tolerance: float

    def check(self) -> None:
        """Refuse impossible settings."""
        label = type(self).__name__
        for name in ("batch_size", "steps"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), label)
        if self.step_size is not None:
            positive("step_size", self.step_size, label)
        positive("temperature", self.temperature, label)
        fraction("tolerance", self.tolerance, label)
        one_of("control_variates", self.control_variates, ("auto", *ESTIMATORS), label)

    def missing(self, density: Density) -> str | None:
        """A gradient, and a data plate without latent variables of its own."""
        if lacking := lacks_gradient(density):
            return lacking
        if density.structure.unit_vectors.max(initial=-1) >= 0:
            return "it cannot keep to the lengths of unit vectors."
        return minibatch.obstacle(density)

    @abc.abstractmethod
    def rest(self, z: Array) -> PyTree:
        """What the sampler carries at a start: nothing, or a momentum."""

    def estimate(
        self, estimator: Minibatch, density: Density, state: State, turn: Turn, key: Array
    ) -> Estimate:
        """What a step goes by: the score at the position, estimated from a block.

        Args:
            estimator: the gradient estimator.
            density: the target, its rows shuffled.
            state: the chain; its order and place are those at the beginning of the transition.
            turn: the block.
            key: the step's, for draws that are not those of `move`.
        """
        del key
        return estimator(density, state.z, turn, state.memory, state.tuning.anchor)

    def copies(self, density: Density) -> int:
        """Gradient estimates of a step."""
        del density
        return 1

    def halted(self, z: Array, motion: PyTree) -> PyTree:
        """What the sampler carries on from a step that was not finite, and so was left out."""
        del z
        return motion

    @abc.abstractmethod
    def move(
        self, z: Array, motion: PyTree, score: Array, tuning: Tuning, index: Array, key: Array
    ) -> tuple[Array, PyTree]:
        """One step.

        Args:
            z: position.
            motion: what the sampler carries.
            score: estimate of the gradient of the log density.
            tuning: what all chains share, as it was when the transition began.
            index: steps of the transition before this one.
            key: for this step.
        """

    @abc.abstractmethod
    def tuned_step(self, curvature: Array, noise: Noise) -> tuple[Array, Array]:
        """Step size and friction for the tolerance.

        Args:
            curvature: largest eigenvalue of the Hessian of -log density, in scaled coordinates.
            noise: of the gradient estimate, in the same.
        """

    @abc.abstractmethod
    def euler_step(self, tuning: Tuning) -> Array:
        """The step size of the overdamped Langevin step that a step amounts to."""

    @abc.abstractmethod
    def noise_bias(self, tuning: Tuning, noise: Noise) -> Array:
        """Relative error of the variance that gradient noise of independent minibatches makes."""

    @property
    def is_tuned(self) -> bool:
        """Whether the settings leave nothing to a search for the mode."""
        return self.step_size is not None and self.metric is None

    def batches(self, density: Density) -> Batches:
        """How the rows are cut."""
        size = self.batch_size or _BATCH
        return Batches.of(density, size, independent=self.independent)

    def estimator(self, density: Density) -> Minibatch:
        """The gradient estimator; `auto` takes control variates where rows are many."""
        batches, name = self.batches(density), self.control_variates
        if name == "auto":
            name = "mode" if batches.rows >= _MANY_ROWS else "none"
        return ESTIMATORS[name](batches)

    @property
    def rehearsed(self) -> StochasticKernel:
        """The method whose autocorrelation says how many steps a transition takes."""
        return self

    def transition_steps(self, autocorrelation: float) -> float:
        """Steps of a transition, from the integrated autocorrelation time of single steps."""
        return autocorrelation

    @property
    def metric(self) -> str | None:
        """The preconditioner, for samplers that have one."""
        return getattr(self, "preconditioner", None)

    def prepare(self, density: Density, key: Array, *, mesh: Mesh | None = None) -> Preparation:
        """A pilot run for what the settings leave open."""
        from quincunx.inference.pilot import pilot  # it uses what is defined here

        minibatch.check_size(density, self.batch_size, type(self).__name__)
        key = everywhere(jax.random.fold_in(key, 1), mesh)
        minibatch.check_separable(density, key, mesh)
        return pilot(self, density, key, mesh)

    def init(self, density: Density, position: Array, key: Array) -> State:
        """The state at a position, with no step size yet unless one was set."""
        estimator, dtype = self.estimator(density), position.dtype
        zero, none = jnp.zeros((), dtype), jnp.zeros_like(position)
        steps = jnp.asarray(self.steps or 1, jnp.int32)
        size = jnp.asarray(self.step_size or 0.0, dtype)
        anchor = Anchor(none, zero, none)
        begun = (jnp.zeros((), jnp.int32), zero, steps)
        tuning = Tuning(*begun, size, jnp.ones_like(position), zero, anchor)
        order = estimator.batches.order(key)
        return State(position, order, estimator.start(position), self.rest(position), tuning)

    def settle(self, states: State, prepared: Pilot, keys: Array, *, at_will: bool) -> State:
        """What the pilot run found; starts about the mode, unless the user said where."""
        z, tuning = states.z, prepared.tuning
        if at_will:
            noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:], z.dtype))(keys)
            about = tuning.anchor.position[None] + _SPREAD * prepared.spread[None] * noise
            z = jnp.where(prepared.searched, about, z)
        return states._replace(z=z, tuning=tuning)

    def step(self, density: Density, state: State, key: Array) -> tuple[State, Info]:
        """A transition: as many steps as were tuned, each on the next block of the epoch."""
        estimator = self.estimator(density)
        number = estimator.batches.number
        tuning, total = state.tuning, state.tuning.steps

        def one(carry: tuple) -> tuple:
            index, z, order, memory, motion, _, bad = carry
            now = state._replace(z=z, memory=memory, motion=motion)
            place = (tuning.place + index) % number
            turn = Turn(order[place], order[jnp.minimum(place + 1, number - 1)])
            step_key = jax.random.fold_in(key, 2 * index)
            found = self.estimate(estimator, density, now, turn, step_key)
            moved, carried = self.move(z, motion, found.score, tuning, index, step_key)
            sound = jnp.all(jnp.isfinite(moved))
            moved = jnp.where(sound, moved, z)
            halted = self.halted(z, motion)
            motion = jax.tree.map(lambda a, b: jnp.where(sound, a, b), carried, halted)
            return index + 1, moved, order, found.memory, motion, found.value, bad | ~sound

        def epoch(carry: tuple) -> tuple:
            index, z, order, memory, motion, value, bad = carry
            place = (tuning.place + index) % number

            def begin(parts: tuple) -> tuple:
                order_key = jax.random.fold_in(key, 2 * index + 1)
                del parts
                return estimator.batches.order(order_key), estimator.epoch(density, z, memory)

            order, memory = jax.lax.cond(place == 0, begin, lambda parts: parts, (order, memory))
            end = jnp.minimum(total, index + number - place)
            carry = (index, z, order, memory, motion, value, bad)
            return jax.lax.while_loop(lambda carry: carry[0] < end, one, carry)

        zero, no = jnp.zeros((), state.z.dtype), jnp.zeros((), bool)
        first = (jnp.zeros((), jnp.int32), *state[:4], zero, no)
        carry = jax.lax.while_loop(lambda carry: carry[0] < total, epoch, first)
        _, z, order, memory, motion, value, bad = carry
        epochs = (tuning.place + total - 1) // number - (tuning.place - 1) // number
        each = estimator.gradients * self.copies(density)
        gradients = total * each + epochs * number * estimator.epoch_gradients
        info = Info(
            log_density=value,
            acceptance=jnp.ones_like(value),
            diverging=bad,
            step_size=tuning.step_size,
            gradients=gradients,
            evaluations=gradients,
            extra={"n_steps": total},
        )
        place, elapsed = (tuning.place + total) % number, tuning.elapsed + total
        later = tuning._replace(place=place, elapsed=elapsed)
        return State(z, order, memory, motion, later), info

    def position(self, state: State) -> Array:
        """The position of a state."""
        return state.z

    def period(self, state: State) -> Array:
        """Whole epochs, so that every block is visited before the rows are shuffled anew."""
        return Batches(0, state.order.shape[-1]).period(state.tuning.steps)

    def view(self, density: Density, key: Array, index: Array) -> Density:
        """The density with its rows shuffled."""
        return minibatch.shuffled(density, jax.random.fold_in(jax.random.fold_in(key, 2), index))

    def passes(self, density: Density) -> float:
        """One block of how many."""
        return 1.0 / self.batches(density).number

    def halved(self, state: State) -> State:
        """The state with steps of half the size, twice as many in a transition."""
        tuning = state.tuning
        half = tuning._replace(step_size=tuning.step_size / 2, steps=2 * tuning.steps)
        return state._replace(tuning=half)
