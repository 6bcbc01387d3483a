r"""The pilot run: what stochastic-gradient samplers need to know before they start.

1. The mode m: Adam on minibatches with a step that falls as a cosine, then Newton steps with all
   rows' gradient, solved by conjugate gradients.
2. Scales G = 1 / (Fisher information + prior precision), both diagonals at the mode.
3. In coordinates scaled by G: the largest curvature A, by power iteration with Hessian-vector
   products, and the noise V of the gradient estimate, from the gradients of single rows: at the
   mode, or for control variates their differences between the mode and points one G^(1/2) N(0, I)
   away from it.
4. The step size, from A, V and the tolerance; each sampler knows its own bias.
5. The steps of a transition: the integrated autocorrelation time of the slowest coordinate of
   chains that are run for it, so that the draws of successive transitions hardly depend on each
   other. Where those chains meet more noise than was found at the mode, steps 4 and 5 are taken
   once more with theirs: a confident classifier has little at its mode.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.engine.rows import cut_evenly
from quincunx.engine.sharding import alone, over_devices
from quincunx.inference import minibatch
from quincunx.inference.driver import on_devices, stepping
from quincunx.inference.estimators import Anchor, ControlVariates, anchored, weighed
from quincunx.inference.method import Preparation
from quincunx.inference.minibatch import Batches
from quincunx.inference.noise import (
    POWER,
    finite_share,
    largest_eigenvalue,
    noise_of,
    row_errors,
    rows_used,
    typical_noise,
)
from quincunx.inference.stochastic import Noise, Pilot, State, StochasticKernel, Tuning

_SEARCH, _SEARCH_ROWS, _RATE = 1500, 256, 0.05
_NEWTON, _CONJUGATE = 3, 30
_HESSIAN_ROWS, _READ = 400_000, 20_000
_PROBES = 16
_CHAINS, _RECORDS, _WATCHED = 4, 400, 64
_STRIDES = (1, 8, 64)
_RESOLVED = 25  # records that an autocorrelation time may take
_MOST_STEPS = 1000
_SURPRISE = 2  # how many times the error that the step was to have calls for another


class Survey(NamedTuple):
    """What is known about the mode.

    Attributes:
        anchor: the mode, and the likelihood of all rows there.
        scale: G, `(dim,)`.
        curvature: largest eigenvalue of the Hessian in scaled coordinates.
        noise: of the gradient estimate in scaled coordinates.
        spread: conditional standard deviations, `(dim,)`.
    """

    anchor: Anchor
    scale: Array
    curvature: Array
    noise: Noise
    spread: Array


def pilot(
    method: StochasticKernel, density: Density, key: Array, mesh: Mesh | None = None
) -> Preparation:
    """What the settings leave open, and its cost.

    Args:
        method: the sampler.
        density: the target.
        key: the run's.
        mesh: the devices, where the run is spread over several.

    Raises:
        MethodError: no mode with finite density was found.
    """
    estimator = method.estimator(density)
    batches, dtype = estimator.batches, jax.dtypes.canonicalize_dtype(float)
    steps = jnp.asarray(method.steps or 1, jnp.int32)
    begun = (jnp.zeros((), jnp.int32), jnp.zeros((), dtype), steps)
    searched = not method.is_tuned or type(estimator) is ControlVariates
    gradients, passes = 0, 2.0  # to see that the likelihood is a sum over rows
    if searched:
        survey = _survey(method, mesh, density, key)
        if not np.isfinite(np.asarray(survey.noise.largest + survey.curvature)):
            message = f"No mode of model `{density.program.name}` was found to start from: "
            message += "the search ended where the log density or its derivatives are not finite. "
            raise MethodError(message + "Give `step_size`, `preconditioner=None` and `init`.")
        size, friction = method.tuned_step(survey.curvature, survey.noise)
        size = jnp.asarray(method.step_size or size, dtype)
        tuning = Tuning(*begun, size, survey.scale, jnp.asarray(friction, dtype), survey.anchor)
        spread, (gradients, passes) = survey.spread, _spent(density, batches)
    else:
        none = jnp.zeros(density.dim, dtype)
        anchor, spread = Anchor(none, jnp.zeros((), dtype), none), jnp.ones_like(none)
        friction = jnp.asarray(getattr(method, "friction", None) or 0.0, dtype)
        tuning = Tuning(*begun, jnp.asarray(method.step_size, dtype), spread, friction, anchor)
    if method.steps is None:
        found, made, ends = _transition(method, mesh, density, Pilot(tuning, spread, searched), key)
        gradients, passes = gradients + made, passes + made / batches.number
        if searched and method.step_size is None:
            noise = typical_noise(method, mesh, density, tuning, ends, key)
            rows = len(ends) * rows_used(density, batches.rows)
            gradients, passes = gradients + rows, passes + rows / batches.rows
            if method.noise_bias(tuning, noise) > _SURPRISE * method.tolerance:
                size, friction = method.tuned_step(survey.curvature, noise)
                tuning = tuning._replace(step_size=size, friction=friction)
                again = Pilot(tuning, spread, searched)
                found, made, _ = _transition(method, mesh, density, again, key)
                gradients, passes = gradients + made, passes + made / batches.number
        tuning = tuning._replace(steps=jnp.asarray(found, jnp.int32))
    return Preparation(Pilot(tuning, spread, searched), gradients, gradients, passes)


def _hessian_rows(density: Density, batches: Batches) -> int:
    """Rows that the Hessian is of: fewer where each of its products reads them anew."""
    return min(batches.rows, _READ if density.is_on_disk else _HESSIAN_ROWS)


def _spent(density: Density, batches: Batches) -> tuple[int, float]:
    """Gradients of a survey, and how often they went through all rows."""
    rows, search = batches.rows, Batches.of(density, max(batches.size, _SEARCH_ROWS))
    products = _NEWTON * _CONJUGATE + POWER
    sampled = _hessian_rows(density, batches) / rows
    noise = 4 * rows_used(density, rows)
    passes = _SEARCH / search.number + 2 * _NEWTON + 1 + 2 * products * sampled + noise / rows
    return _SEARCH + 2 * products + 2 * _NEWTON + 1 + noise, passes


@eqx.filter_jit
def _survey(method: StochasticKernel, mesh: Mesh | None, density: Density, key: Array) -> Survey:
    """Mode, scales, curvature and noise."""
    return on_devices(mesh, functools.partial(_surveyed, method), density, key)


def _surveyed(method: StochasticKernel, density: Density, key: Array) -> Survey:
    estimator = method.estimator(density)
    batches, keys = estimator.batches, jax.random.split(key, 6)
    view = minibatch.shuffled(density, keys[0])
    search = Batches.of(density, max(batches.size, _SEARCH_ROWS))
    own, share = alone(view), 1.0 if view.shard is None else 1.0 / view.shard.parts
    some = cut_evenly(batches.rows, -(-batches.rows // _hessian_rows(density, batches)), 0)

    def curved(z: Array, direction: Array) -> Array:
        """Hessian of -log density, from some rows, times a direction."""
        slope = lambda z: weighed(own, z, some, share)[1]  # noqa: E731
        return -over_devices(view, jax.jvp(slope, (z,), (direction,))[1])

    found = _search(view, search, 0.1 * density.initial(keys[1]), keys[2])
    rough = 1 / (
        row_errors(view, found).diagonal / batches.rows + _prior_precision(view, found, keys[3])
    )
    mode = _newton(view, search, curved, rough, found)
    anchor = anchored(view, search, mode)
    errors = row_errors(view, mode)
    information = errors.diagonal / batches.rows
    precision = information + _prior_precision(view, mode, keys[3])
    spread = 1 / jnp.sqrt(precision)
    if estimator.reduces_noise:
        xi = jax.random.normal(keys[4], mode.shape, mode.dtype)
        errors = row_errors(view, mode + spread * xi, mode)
    scale = jnp.ones_like(mode)
    if method.metric == "diagonal":
        scale = 1 / precision
    elif method.metric == "rmsprop":
        variance = finite_share(batches) * errors.diagonal
        scale = 1 / (1e-5 + jnp.sqrt(variance + information))
    unit = jnp.sqrt(scale)
    curvature = largest_eigenvalue(lambda v: unit * curved(mode, unit * v), mode, keys[5])
    noise = noise_of(errors, scale, batches, keys[5])
    return Survey(anchor, scale, curvature, noise, spread)


def _search(density: Density, batches: Batches, z: Array, key: Array) -> Array:
    """Adam on minibatches; a step that is not finite is left out."""
    optimiser = optax.adam(optax.cosine_decay_schedule(_RATE, _SEARCH))

    def step(carry: tuple, index: Array) -> tuple[tuple, None]:
        z, state = carry
        block = jax.random.randint(jax.random.fold_in(key, index), (), 0, batches.number)
        score = weighed(density, z, batches.block(block))[1]
        score = jnp.where(jnp.all(jnp.isfinite(score)), score, 0.0)
        update, state = optimiser.update(-score, state)
        return (jnp.asarray(optax.apply_updates(z, update)), state), None

    return jax.lax.scan(step, (z, optimiser.init(z)), jnp.arange(_SEARCH))[0][0]


def _newton(density: Density, batches: Batches, curved: Any, scale: Array, z: Array) -> Array:
    """Newton steps, each taken only where it raises the log density."""

    def terms(z: Array) -> tuple[Array, Array]:
        prior, slope = jax.value_and_grad(density.log_prior)(z)
        anchor = anchored(density, batches, z)
        return prior + anchor.value, slope + anchor.score

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        z, value, score = carry
        change, _ = jax.scipy.sparse.linalg.cg(
            functools.partial(curved, z),
            score,
            maxiter=_CONJUGATE,
            tol=1e-6,
            M=lambda v: scale * v,
        )
        moved = z + change
        raised, slope = terms(moved)
        better = (raised > value) & jnp.all(jnp.isfinite(slope))
        return jax.tree.map(
            lambda a, b: jnp.where(better, a, b), (moved, raised, slope), carry
        ), None

    return jax.lax.scan(step, (z, *terms(z)), None, _NEWTON)[0][0]


def _prior_precision(density: Density, z: Array, key: Array) -> Array:
    """Diagonal of the Hessian of -log prior, by Hutchinson's estimator."""
    slope = jax.grad(density.log_prior)

    def probe(key: Array) -> Array:
        signs = jax.random.rademacher(key, z.shape, z.dtype)
        return -signs * jax.jvp(slope, (z,), (signs,))[1]

    found = jnp.mean(jax.vmap(probe)(jax.random.split(key, _PROBES)), axis=0)
    return jnp.maximum(found, 1e-6)


def _transition(
    method: StochasticKernel, mesh: Mesh | None, density: Density, found: Pilot, key: Array
) -> tuple[int, int, Array]:
    """Steps of a transition by the autocorrelation, gradients spent on them, and a few draws."""
    made, gradients, stride, ends = 0.0, 0, _STRIDES[0], jnp.zeros(())
    for stride in _STRIDES:
        *run, ends = _rehearse(method.rehearsed, mesh, density, found, np.int32(stride), key)
        record, spent = jax.device_get(run)
        gradients += int(spent)
        made = autocorrelation_time(record)
        if made < _RESOLVED:
            break
    steps = np.ceil(method.transition_steps(made * stride))
    return int(np.clip(steps, 1, _MOST_STEPS)), gradients, ends


@eqx.filter_jit
def _rehearse(
    method: StochasticKernel,
    mesh: Mesh | None,
    density: Density,
    found: Pilot,
    stride: Any,
    key: Array,
) -> tuple[Array, Array, Array]:
    """Chains that are run to see how they move.

    Returns:
        Some coordinates every `stride` steps, `(chain, record, coordinate)`; gradients spent; where
        the chains were in the middle and at the end, `(draw, dim)`.
    """
    return on_devices(mesh, functools.partial(_rehearsed, method), density, found, stride, key)


def _rehearsed(
    method: StochasticKernel, density: Density, found: Pilot, stride: Any, key: Array
) -> tuple[Array, Array, Array]:
    view = minibatch.shuffled(density, jax.random.fold_in(key, 0))
    keys = jax.random.split(jax.random.fold_in(key, 1), _CHAINS)
    tuning = found.tuning._replace(steps=jnp.asarray(stride, jnp.int32))
    watched = jax.random.permutation(keys[0], density.dim)[:_WATCHED]
    starts = jax.vmap(density.initial)(keys)
    axes = method.state_axes
    states: State = jax.vmap(lambda z, key: method.init(density, z, key), out_axes=axes)(
        starts, keys
    )
    states = method.settle(states, found._replace(tuning=tuning), keys, at_will=True)

    step = stepping(method, view)

    def record(states: State, index: Array) -> tuple[State, tuple]:
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        states, info = step(states, now)
        return states, (states.z[:, watched], jnp.sum(info.gradients))

    def half(states: State, indices: Array) -> tuple[State, tuple]:
        states, (draws, gradients) = jax.lax.scan(record, states, indices)
        return states, (draws, jnp.sum(gradients), states.z)

    indices = jnp.arange(2 * _RECORDS).reshape(2, _RECORDS)
    _, (draws, gradients, ends) = jax.lax.scan(half, states, indices)
    return jnp.swapaxes(draws[1], 0, 1), jnp.sum(gradients), ends.reshape(-1, density.dim)


def autocorrelation_time(record: np.ndarray) -> float:
    """Integrated autocorrelation time of the slowest coordinate, in records.

    1 + 2 sum_k rho_k, summed up to the first window longer than five times the sum; the
    autocovariances are means over chains about their common mean.
    """
    length = record.shape[1]
    centred = record - record.mean(axis=(0, 1))
    spectrum = np.abs(np.fft.rfft(centred, 2 * length, axis=1)) ** 2
    covariance = np.fft.irfft(spectrum.mean(axis=0), axis=0)[:length]
    moving = covariance[0] > 0
    if not moving.any() or not np.isfinite(covariance).all():
        return float(length)
    rho = covariance[:, moving] / covariance[0, moving]
    times = 2 * np.cumsum(rho, axis=0) - 1
    window = np.arange(length)[:, None] >= 5 * times
    first = np.where(window.any(axis=0), window.argmax(axis=0), length - 1)
    return float(np.max(np.take_along_axis(times, first[None], axis=0)))
