r"""What slice samplers have in common: a transition that makes one evaluation at a time.

Within a transition the position moves on a plane through the present one,

    x = c + a p + b q,

first along a circle (or an ellipse), (a, b) = (cos t, sin t), then along a ray or a line,
(a, b) = s(t) (cos t', sin t') with t' the angle that was found. With g(x) = log pi(x) - log pi(m),
m the centre that warm-up has found, and a correction k that is the sampler's own and 0 at the
present point x_0, a point is in the slice if

    g(x) + k > log u + g(x_0),    u ~ U(0, 1);

a density that is NaN or infinite is never in the slice. On the circle the bracket is all of it and
shrinks towards the present point after each point outside the slice (Murray, Adams and MacKay 2010;
Habeck, Hasenpflug, Kodgirwar and Rudolf 2023). On the line it is placed at random, steps out while
its ends are in the slice, and then shrinks (Neal 2003, figures 3 and 5). The steps out that are
allowed are divided between the two ends at random beforehand, which leaves the law as it is. After
`max_shrinks` points outside the slice the chain stays where it is in that move; this leaves the law
as it is too, and is counted.

Unit vectors are moved first, one after the other, each on a great circle through it in a direction
that is uniform: geodesic slice sampling on the sphere (Habeck et al. 2023, arXiv:2301.08056).

Every random number is keyed by (transition, role, trial). So the draws are the same whether chains
run in lockstep or each on its own.
"""

from __future__ import annotations

import abc
import functools
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from quincunx.engine.density import Density
from quincunx.inference import affine, counters
from quincunx.inference.affine import Affine, Stage
from quincunx.inference.method import Info, Machine, Pool, integer, one_of, positive

_CIRCLE, _LEFT, _RIGHT, _LINE, _DONE = range(5)
_THRESHOLD, _SECOND, _ANGLE, _PLACE, _BUDGET, _FIRST, _TRIAL = range(7)
_TURN = 2 * np.pi
_CLIP = 8


class Tuning(NamedTuple):
    """What all chains share.

    Attributes:
        affine: the map from latent coordinates.
        log_width: log of the first bracket's width on the line, in latent units.
        level: log density at the centre.
        reference: its elements there, for differences in single precision.
    """

    affine: Affine
    log_width: Array
    level: Array
    reference: list[Array]


class Slice(NamedTuple):
    """A transition in progress.

    Attributes:
        centre: c, `(dim,)`.
        first: p, `(dim,)`.
        second: q, `(dim,)`.
        along: latent counterpart of p in the last move, `(dim,)`.
        across: and of q, `(dim,)`.
        later: what the moves after the first need, where there are unit vectors.
        move: number of the present move.
        phase: on the circle, stepping out to the left or right, on the line, or done.
        t: the candidate.
        origin: the present point on the line.
        low: lower end of the bracket.
        high: upper end.
        left: steps out that are left to the left.
        right: and to the right.
        trial: points outside the slice in this phase.
        bound: what g + k must exceed.
        seed: the seed of the transition's uniform numbers, `(2,)`.
        angle: the angle that was found.
        gap: g at the point that was found last.
        evaluations: of the density, so far.
        shrinks: points outside the slice on the line.
        steps: steps out.
        shrink_capped: whether a move was given up.
        steps_capped: whether steps out ran out.
    """

    centre: Array
    first: Array
    second: Array
    along: Array
    across: Array
    later: PyTree
    move: Array
    phase: Array
    t: Array
    origin: Array
    low: Array
    high: Array
    left: Array
    right: Array
    trial: Array
    bound: Array
    seed: Array
    angle: Array
    gap: Array
    evaluations: Array
    shrinks: Array
    steps: Array
    shrink_capped: Array
    steps_capped: Array


class State(NamedTuple):
    """State of a chain.

    Attributes:
        x: position.
        y: the same in latent coordinates; 0 for coordinates of unit vectors.
        gap: log density above that at the centre.
        before: x and y before the last transition.
        owed: evaluations that tuning made since the last transition.
        slice: the transition in progress.
        tuning: what the chains share.
    """

    x: Array
    y: Array
    gap: Array
    before: tuple[Array, Array]
    owed: Array
    slice: Slice
    tuning: Tuning


def _uniform(s: Slice, role: int, trial: Any) -> Array:
    return counters.uniform(s.seed, role, trial, s.t.dtype)


class SliceSampler(Machine):
    """A slice sampler on affinely tuned coordinates.

    Attributes:
        circle: whether a transition moves on a circle.
        line: whether it moves on a line, after the circle if there is one.
        affine: what is tuned in warm-up.
        max_shrinks: points outside the slice after which a move is given up.
    """

    state_axes: ClassVar[Any] = State(0, 0, 0, 0, 0, 0, None)  # pyright: ignore[reportArgumentType]
    circle: ClassVar[bool] = True
    line: ClassVar[bool] = True

    if TYPE_CHECKING:
        affine: str
        max_shrinks: int

    def check(self) -> None:
        """Refuse impossible settings."""
        name = type(self).__name__
        one_of("affine", self.affine, affine.KINDS, name)
        one_of("execution", self.execution, ("auto", "lockstep", "free"), name)
        integer("max_shrinks", self.max_shrinks, name)

    @abc.abstractmethod
    def plane(self, state: State, normal: Array, dim: int) -> tuple[Array, Array, Array, Array]:
        """Where a transition moves: c, the latent counterparts of p and q, and the line's origin.

        Args:
            state: the chain.
            normal: standard normal, 0 for coordinates of unit vectors.
            dim: number of coordinates that are none of unit vectors.
        """

    def scale(self, s: Slice, dim: int) -> Array:
        """The factor of p and q at a candidate on the line; 1 at the present point of a ray."""
        del dim
        return s.t

    def correction(self, state: State, scale: Array, angle: Array, dim: int) -> Array:
        """k, which is added to the log density; 0 at the present point."""
        del state, angle, dim
        return jnp.zeros_like(scale)

    def latent(self, state: State, scale: Array, angle: Array) -> Array:
        """The latent coordinates at the end of a transition."""
        s = state.slice
        return scale * (jnp.cos(angle) * s.along + jnp.sin(angle) * s.across)

    def line_bound(self, s: Slice) -> Array:
        """The bound on the line, where a circle came before it."""
        return s.bound

    def floor(self, dim: int) -> float:
        """The smallest value of t on the line."""
        del dim
        return -np.inf

    def turns(self, dim: int) -> bool:
        """Whether there is a circle: where there is a line too, not on one coordinate."""
        return self.circle and (dim > 1 or not self.line)

    def first_width(self, dim: int) -> float:
        """The bracket's width before it is adapted."""
        return max(float(np.sqrt(dim)) / 2, 1.0)

    @property
    def adapts_width(self) -> bool:
        """Whether the width follows the numbers of steps and shrinkages."""
        return self.line

    @property
    def steps_allowed(self) -> int:
        """Steps out in a transition, at most."""
        return 0

    def value(self, density: Density, x: Array) -> Array:
        """The function that is sliced, in logarithms."""
        return density.log_density(x)

    def elements(self, density: Density, x: Array) -> list[Array]:
        """Arrays whose sums add up to `value`."""
        return density.log_density_elements(x)

    def log_density(self, density: Density, x: Array, value: Array) -> Array:
        """The log density, given what was sliced."""
        del density, x
        return value

    def start(self, density: Density, dtype: Any) -> Affine:
        """The affine map before it is tuned."""
        return affine.start(self.affine, density.dim, dtype)

    def init(self, density: Density, position: Array, key: Array) -> State:
        """The state at a position; unit vectors are given length 1."""
        del key
        layout, dtype = _Layout(density), position.dtype
        x = layout.normalised(position) if layout.vectors else position
        zero, none, no = jnp.zeros((), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        reference = []
        if dtype == jnp.float32:
            specs = jax.eval_shape(lambda z: self.elements(density, z), x)
            reference = [jnp.zeros(spec.shape, spec.dtype) for spec in specs]
        width = jnp.asarray(np.log(self.first_width(layout.dim)), dtype)
        tuning = Tuning(self.start(density, dtype), width, zero, reference)
        y = layout.free(tuning.affine.solve(x[None])[0])
        later = _Later(x, x, x, x) if layout.vectors else ()
        idle = Slice(
            x, x, x, x, x, later, none, none + _DONE, zero, zero, zero, zero, none, none, none,
            zero, jnp.zeros(2, jnp.uint32), zero, zero, none, none, none, no, no,
        )  # fmt: skip
        return State(x, y, self.value(density, x), (x, y), none, idle, tuning)

    def begin(self, density: Density, state: State, key: Array) -> State:
        """Choose the plane, the bound and the first candidate."""
        layout, dtype = _Layout(density), state.x.dtype
        normal_key, seed_key = jax.random.split(key)
        normal = jax.random.normal(normal_key, state.x.shape, dtype)
        seed = jax.random.bits(seed_key, (2,), jnp.uint32)
        centre, along, across, origin = self.plane(state, layout.free(normal), layout.dim)
        first, second = state.tuning.affine.apply(jnp.stack([along, across]))
        zero, none, no = jnp.zeros((), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        s = Slice(
            centre, first, second, along, across, (), none, none, zero, origin, zero, zero, none,
            none, none, zero, seed, zero, state.gap, state.owed, none, none, no, no,
        )  # fmt: skip
        if layout.vectors:
            s = s._replace(later=_Later(centre, first, second, normal), move=none - 1)
            s = self._next_move(layout, state.tuning, s, state.x)
        else:
            s = self._open(layout.dim, state.tuning, s)
        return state._replace(slice=s, owed=none)

    def tick(self, density: Density, state: State, key: Array) -> State:
        """Evaluate the density at the candidate, and choose the next one."""
        del key  # the transition's seed is in its state
        layout, s = _Layout(density), state.slice
        dim = layout.dim
        scale, angle = self._polar(s, dim)
        x = _candidate(s, scale, angle)
        gap = self._gap(density, state.tuning, x)
        extra = self.correction(state, scale, angle, dim)
        if layout.vectors:
            extra = jnp.where(s.move < layout.vectors, 0.0, extra)
        inside = gap + extra > s.bound
        uniform = _uniform(s, _TRIAL, s.evaluations)
        new = self._next_candidate(state.tuning, s, inside, gap, uniform, dim)
        turned = (s.phase == _CIRCLE) & (new.phase == _DONE)
        if layout.vectors:
            here = _candidate(new, jnp.ones_like(scale), new.angle)
            after = self._next_move(layout, state.tuning, new, here)
        else:
            after = self._after_turn(state.tuning, new, dim)
        new = jax.tree.map(functools.partial(jnp.where, turned), after, new)
        return state._replace(slice=new)

    def done(self, state: State) -> Array:
        """Whether the transition is complete."""
        return state.slice.phase == _DONE

    def end(self, density: Density, state: State) -> tuple[State, Info]:
        """The position that was found."""
        layout, s = _Layout(density), state.slice
        scale, angle = self._polar(s, layout.dim)
        x = _candidate(s, scale, angle)
        y = layout.free(self.latent(state, scale, angle))
        extra = {"shrink_capped": s.shrink_capped}
        if self.line:
            counts = {"steps_out": s.steps, "shrinks": s.shrinks}
            extra |= counts | {"steps_capped": s.steps_capped}
        value = s.gap + state.tuning.level
        width = jnp.exp(state.tuning.log_width) if self.line else jnp.full((), jnp.nan, x.dtype)
        info = Info(
            log_density=self.log_density(density, x, value),
            acceptance=jnp.ones((), x.dtype),
            diverging=jnp.zeros((), bool),
            step_size=width,
            gradients=jnp.zeros((), jnp.int32),
            evaluations=s.evaluations,
            extra=extra,
        )
        return state._replace(x=x, y=y, gap=s.gap, before=(state.x, state.y)), info

    def position(self, state: State) -> Array:
        """The position of a state."""
        return state.x

    def stages(self, num_warmup: int) -> Stage:
        """Windows of growing length, and a gain that falls."""
        return affine.schedule(num_warmup)

    def adapt(
        self, density: Density, states: State, infos: Info, stage: Stage, pool: Pool
    ) -> State:
        """Learn the affine map and the width from all chains."""
        layout, tuning = _Layout(density), states.tuning
        if self.adapts_width and layout.dim:
            steps, shrinks = infos.extra["steps_out"], infos.extra["shrinks"]
            excess = jnp.minimum(steps, _CLIP) - jnp.minimum(shrinks, _CLIP)
            mean = pool(jnp.sum(excess)) / pool(jnp.asarray(len(excess)))
            log_width = tuning.log_width + stage.gain * mean
            tuning = tuning._replace(log_width=log_width.astype(tuning.log_width.dtype))
        if not tuning.affine.learns or not layout.dim:
            return states._replace(tuning=tuning)

        def placed(x: Array) -> Array:
            return jnp.where(layout.mask[None], x, tuning.affine.centre[None])

        now, before = (placed(states.x), states.y), (placed(states.before[0]), states.before[1])
        found = affine.learn(tuning.affine, now, before, layout.dim, pool)
        states = states._replace(tuning=tuning._replace(affine=found))
        renew = functools.partial(self._renew, density)
        return jax.lax.cond(stage.renew, renew, lambda states: states, states)

    def _renew(self, density: Density, states: State) -> State:
        """Put the affine map to use, and count log densities from the new centre."""
        layout, tuning = _Layout(density), states.tuning
        found = affine.renew(tuning.affine, layout.dim)
        value = self.value(density, found.centre)
        level = jnp.where(jnp.isfinite(value), value, tuning.level)
        gap, owed, reference = states.gap + tuning.level - level, states.owed + 1, []
        if tuning.reference:
            at_centre = self.elements(density, found.centre)
            reference = [jnp.where(jnp.isfinite(part), part, 0) for part in at_centre]
        tuning = Tuning(found, tuning.log_width, level, reference)
        if reference:
            gap = jax.vmap(functools.partial(self._gap, density, tuning))(states.x)
            owed = owed + 1
        y = jax.vmap(layout.free)(found.solve(states.x))
        return states._replace(y=y, gap=gap, owed=owed, tuning=tuning)

    def _gap(self, density: Density, tuning: Tuning, x: Array) -> Array:
        if tuning.reference:
            pairs = zip(self.elements(density, x), tuning.reference, strict=True)
            gap = sum((jnp.sum(part - at) for part, at in pairs), jnp.zeros((), x.dtype))
        else:
            gap = self.value(density, x) - tuning.level
        return jnp.where(jnp.isfinite(gap), gap, -jnp.inf)

    def _polar(self, s: Slice, dim: int) -> tuple[Array, Array]:
        """Scale and angle of the candidate, or of the point that was found."""
        if not self.line or not dim:
            return jnp.ones_like(s.t), jnp.where(s.phase == _CIRCLE, s.t, s.angle)
        on_circle = s.phase == _CIRCLE
        return (
            jnp.where(on_circle, 1.0, self.scale(s, dim)),
            jnp.where(on_circle, s.t, s.angle),
        )

    def _next_candidate(
        self, tuning: Tuning, s: Slice, inside: Array, gap: Array, uniform: Array, dim: int
    ) -> Slice:
        """Shrink or widen the bracket; done where the move is over."""
        on_circle, on_line = s.phase == _CIRCLE, s.phase == _LINE
        found, missed = inside & (on_circle | on_line), ~inside & (on_circle | on_line)
        to_left, to_right = inside & (s.phase == _LEFT), inside & (s.phase == _RIGHT)
        here = jnp.where(on_circle, 0.0, s.origin)
        width, floor = jnp.exp(tuning.log_width), self.floor(dim)
        low = jnp.where(missed & (s.t < here), s.t, s.low)
        low = jnp.where(to_left, jnp.maximum(s.low - width, floor), low)
        high = jnp.where(missed & (s.t >= here), s.t, s.high)
        high = jnp.where(to_right, s.high + width, high)
        left, right, trial = s.left - to_left, s.right - to_right, s.trial + missed
        given_up = missed & (trial >= self.max_shrinks)
        more_left = to_left & (left > 0) & (low > floor)
        phase = jnp.where((s.phase == _LEFT) & ~more_left, _stepping(right), s.phase)
        phase = jnp.where((s.phase == _RIGHT) & ~(to_right & (right > 0)), _LINE, phase)
        phase = jnp.where(found | given_up, _DONE, phase)
        t = _place(phase, low, high, uniform)
        t = jnp.where(found | (s.phase == _DONE), s.t, jnp.where(given_up, here, t))
        out = (to_left & (left == 0) & (low > floor)) | (to_right & (right == 0))
        return s._replace(
            phase=phase, t=t, low=low, high=high, left=left, right=right, trial=trial,
            angle=jnp.where(on_circle, t, s.angle),
            gap=jnp.where(found, gap, s.gap),
            evaluations=s.evaluations + (s.phase != _DONE),
            shrinks=s.shrinks + (missed & on_line),
            steps=s.steps + to_left + to_right,
            shrink_capped=s.shrink_capped | given_up,
            steps_capped=s.steps_capped | out,
        )  # fmt: skip

    def _next_move(self, layout: _Layout, tuning: Tuning, s: Slice, here: Array) -> Slice:
        """With unit vectors: the next of them, then the circle of the rest, then its line."""
        s = s._replace(move=s.move + 1)
        vector = layout.great_circle(s, here)
        vector = self._open_circle(vector)
        rest = s._replace(
            centre=jnp.where(layout.mask, s.later.centre, here),
            first=s.later.first,
            second=s.later.second,
        )
        if layout.dim:
            rest = self._open(layout.dim, tuning, rest)
        else:
            rest = rest._replace(phase=jnp.full_like(s.phase, _DONE), angle=0 * s.angle)
        line = self._after_turn(tuning, s, layout.dim)

        def pick(a: Array, b: Array, c: Array) -> Array:
            last = jnp.where(s.move == layout.vectors, b, c)
            return jnp.where(s.move < layout.vectors, a, last)

        return jax.tree.map(pick, vector, rest, line)

    def _open(self, dim: int, tuning: Tuning, s: Slice) -> Slice:
        """Open the move of all coordinates but those of unit vectors."""
        if self.turns(dim):
            return self._open_circle(s)
        return self._open_line(tuning, _bounded(s._replace(angle=0 * s.angle)), dim)

    def _open_circle(self, s: Slice) -> Slice:
        angle = _TURN * _uniform(s, _ANGLE, s.move)
        s = s._replace(
            t=angle, low=angle - _TURN, high=angle, phase=jnp.full_like(s.phase, _CIRCLE)
        )
        return _bounded(s)

    def _after_turn(self, tuning: Tuning, s: Slice, dim: int) -> Slice:
        if not self.line or not dim:
            return s
        return self._open_line(tuning, s._replace(bound=self.line_bound(s)), dim)

    def _open_line(self, tuning: Tuning, s: Slice, dim: int) -> Slice:
        width, floor = jnp.exp(tuning.log_width), self.floor(dim)
        low = s.origin - _uniform(s, _PLACE, 0) * width
        low, high = jnp.maximum(low, floor), low + width
        left = jnp.floor(_uniform(s, _BUDGET, 0) * (self.steps_allowed + 1)).astype(s.left.dtype)
        right = self.steps_allowed - left
        phase = jnp.where((left > 0) & (low > floor), _LEFT, _stepping(right)).astype(s.phase.dtype)
        t = _place(phase, low, high, _uniform(s, _FIRST, 0))
        return s._replace(
            low=low, high=high, left=left, right=right, phase=phase, t=t, trial=0 * s.trial
        )  # fmt: skip


class LineSampler(SliceSampler):
    """A slice sampler that moves on a line, with a bracket whose width may be set.

    Attributes:
        width: the first bracket's width in latent units; `None` to adapt it.
        max_steps_out: how many widths the bracket may grow to.
    """

    if TYPE_CHECKING:
        width: float | None
        max_steps_out: int

    def check(self) -> None:
        """Refuse impossible settings."""
        super().check()
        name = type(self).__name__
        integer("max_steps_out", self.max_steps_out, name)
        if self.width is not None:
            positive("width", self.width, name)

    @property
    def adapts_width(self) -> bool:
        """Whether the width follows the numbers of steps and shrinkages."""
        return self.width is None

    @property
    def steps_allowed(self) -> int:
        """Steps out in a transition, at most."""
        return self.max_steps_out - 1


class _Later(NamedTuple):
    """What the moves after the first unit vector need: the plane of the rest, and normals."""

    centre: Array
    first: Array
    second: Array
    normal: Array


class _Layout:
    """Which coordinates are those of unit vectors.

    Attributes:
        vectors: number of unit vectors.
        dim: number of coordinates that belong to none.
        mask: which those are.
    """

    def __init__(self, density: Density) -> None:
        self.block = density.structure.unit_vectors
        self.vectors = int(self.block.max(initial=-1)) + 1
        self.mask = self.block < 0
        self.dim = int(self.mask.sum())

    def free(self, x: Array) -> Array:
        """0 in place of unit vectors."""
        return jnp.where(self.mask, x, 0) if self.vectors else x

    def normalised(self, x: Array) -> Array:
        """With unit vectors of length 1."""
        squares = jax.ops.segment_sum(x**2, self.block + 1, self.vectors + 1)
        length = jnp.where(self.mask, 1.0, jnp.sqrt(squares)[self.block + 1])
        return x / length

    def great_circle(self, s: Slice, here: Array) -> Slice:
        """The circle of the unit vector that moves, in the direction of the normals."""
        chosen = jnp.asarray(self.block) == s.move
        first = jnp.where(chosen, here, 0)
        normal = jnp.where(chosen, s.later.normal, 0)
        square = jnp.sum(first**2)
        tangent = normal - first * (jnp.sum(normal * first) / square)
        tangent = tangent * jnp.sqrt(square / jnp.sum(tangent**2))
        return s._replace(centre=jnp.where(chosen, 0, here), first=first, second=tangent)


def _candidate(s: Slice, scale: Array, angle: Array) -> Array:
    return s.centre + scale * (jnp.cos(angle) * s.first + jnp.sin(angle) * s.second)


def _bounded(s: Slice) -> Slice:
    """A fresh bound: log u + g(x_0)."""
    uniform = _uniform(s, _THRESHOLD, s.move)
    return s._replace(bound=s.gap + jnp.log(uniform), trial=0 * s.trial)


def threshold(s: Slice) -> Array:
    """A second bound within a transition: log u + g at the point that was found last."""
    return s.gap + jnp.log(_uniform(s, _SECOND, 0))


def _stepping(right: Array) -> Array:
    return jnp.where(right > 0, _RIGHT, _LINE)


def _place(phase: Array, low: Array, high: Array, uniform: Array) -> Array:
    """The candidate: an end of the bracket while stepping out, else a uniform point of it."""
    inner = low + uniform * (high - low)
    return jnp.where(phase == _LEFT, low, jnp.where(phase == _RIGHT, high, inner))
