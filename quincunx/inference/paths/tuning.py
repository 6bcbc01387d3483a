r"""Temperatures and steps for annealed particles, from pilot runs.

The error of the evidence is least, for a number of temperatures, where they are spaced evenly in

    Lambda(b) = int_0^b sd_{pi_t}(psi) dt

(Syed, Bouchard-Cote, Chern and Doucet, 2024, Optimised annealed sequential Monte Carlo samplers,
arXiv:2408.12057). A pilot run estimates it, and the next one runs on the new temperatures. How
many there are grows with Lambda(1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.inference.paths.annealing import Annealed, Schedule, anneal
from quincunx.inference.paths.start import cloud, laplace
from quincunx.inference.paths.target import Target, Whitening
from quincunx.inference.training import Budget

LENGTH = 320
_PILOT, _FEWEST, _PER_BARRIER, _POWER = 100, 32, 16, 4
_ROUNDS = 3
_LARGE = 200  # coordinates above which pilots are shorter
_SHORT_PILOT, _FEW_PARTICLES = 40, 32


class Tuned(NamedTuple):
    """What pilots found.

    Attributes:
        target: in the coordinates of the start that was chosen.
        schedule: temperatures and steps.
        barrier: Lambda(1).
        log_evidence: of the last pilot.
        log_weight: its log weights.
        y: its particles.
        several: whether there is reason to think of several modes.
    """

    target: Target
    schedule: Schedule
    barrier: float
    log_evidence: float
    log_weight: np.ndarray
    y: np.ndarray
    several: bool


@eqx.filter_jit
def _pilot(
    target: Target, schedule: Schedule, key: Array, n: int, moves: int, *, gradient: bool
) -> Annealed:
    options = {"moves": moves, "threshold": 0.5, "gradient": gradient, "adapt": True}
    return anneal(target, schedule, key, n, **options)


def even(
    inverse_temperatures: np.ndarray, spread: np.ndarray, steps: np.ndarray, count: int | None
) -> tuple[Schedule, float]:
    """Temperatures evenly spaced in Lambda, and Lambda(1).

    Args:
        inverse_temperatures: of the pilot, from 0 to 1.
        spread: standard deviations of psi at all of them but the last.
        steps: step sizes at all but the first.
        count: how many temperatures; by Lambda where `None`.
    """
    spread = np.where(np.isfinite(spread), spread, 0.0)
    rate = np.append(spread, spread[-1])
    pieces = 0.5 * (rate[1:] + rate[:-1]) * np.diff(inverse_temperatures) + 1e-12
    barrier = np.concatenate([[0.0], np.cumsum(pieces)])
    if count is None:
        count = int(np.clip(np.ceil(_PER_BARRIER * barrier[-1]), _FEWEST, LENGTH))
    levels = np.linspace(0, barrier[-1], count + 1)
    chosen = np.interp(levels, barrier, inverse_temperatures)
    chosen[0], chosen[-1] = 0.0, 1.0
    sizes = np.exp(np.interp(levels[1:], barrier[1:], np.log(steps)))
    dtype = jax.dtypes.canonicalize_dtype(float)
    padded = np.concatenate([chosen, np.ones(LENGTH - count)])
    sizes = np.concatenate([sizes, np.full(LENGTH - count, sizes[-1])])
    schedule = Schedule(
        jnp.asarray(padded, dtype), jnp.asarray(sizes, dtype), jnp.asarray(count, jnp.int32)
    )
    return schedule, float(barrier[-1])


def tune(
    target: Target,
    key: Array,
    budget: Budget,
    *,
    particles: int,
    moves: int,
    steps: int | None,
    several: bool = False,
    gradient: bool = True,
) -> Tuned:
    """Run pilots on a target from the standard normal law.

    Args:
        target: what to tune for.
        key: the only source of randomness.
        budget: told of the costs.
        particles: of the pilots.
        moves: steps at each temperature.
        steps: temperatures, `None` to have their number follow from the target.
        several: passed on.
        gradient: whether moves use the gradient.
    """
    large = target.whitening.mean.shape[0] > _LARGE
    pilot = _SHORT_PILOT if large else _PILOT
    particles = min(particles, _FEW_PARTICLES) if large else particles
    even_levels = np.linspace(0, 1, pilot + 1)
    grid, first = even_levels**_POWER, np.full(pilot, 0.2)
    schedule, _ = even(grid, np.gradient(even_levels, grid)[:-1], first, pilot)
    barrier, runs = 0.0, list[Any]()
    for index in range(_ROUNDS):
        run_key = jax.random.fold_in(key, index)
        run: Any = jax.device_get(
            _pilot(target, schedule, run_key, particles, moves, gradient=gradient)
        )
        runs.append(run)
        count = int(schedule.count)
        made = particles * (1 + count * moves)
        budget.count(gradients=made if gradient else 0, evaluations=made)
        grid = np.asarray(schedule.inverse_temperatures)[: count + 1]
        wanted = pilot if index < _ROUNDS - 2 else steps
        schedule, barrier = even(grid, run.spread[:count], run.step_sizes[:count], wanted)
        if budget.note(index + 1, _ROUNDS):
            break
    run = runs[-1]
    top = run.log_weight.max()
    value = float(top + np.log(np.mean(np.exp(run.log_weight - top))))
    return Tuned(target, schedule, barrier, value, run.log_weight, run.particles.y, several)


def choose_start(
    density: Density,
    key: Array,
    budget: Budget,
    *,
    start: str,
    particles: int,
    moves: int,
    steps: int | None,
) -> Tuned:
    """Tune from the start that is asked for, or from the one from which more mass is found.

    Args:
        density: the target.
        key: the only source of randomness.
        budget: told of the costs.
        start: `laplace`, `cloud`, or `auto` for the better of the two.
        particles: as in `tune`.
        moves: as in `tune`.
        steps: as in `tune`.
    """
    mode_key, cloud_key, tune_key = jax.random.split(key, 3)
    candidates: list[Whitening] = []
    several = start == "cloud"
    if start != "cloud":
        modes = laplace(density, mode_key)
        budget.count(gradients=modes.evaluations, evaluations=modes.evaluations)
        several = modes.several
        if start == "laplace" or (modes.usable and not several):
            candidates.append(modes.whitening)
    if start == "cloud" or (start == "auto" and density.dim <= _LARGE) or not candidates:
        whitening, cost = cloud(density, cloud_key)
        budget.count(gradients=cost, evaluations=cost)
        candidates.append(whitening)
    found = [
        tune(
            Target(density, whitening),
            tune_key,
            budget,
            particles=particles,
            moves=moves,
            steps=steps,
            several=several,
        )
        for whitening in candidates
    ]
    if len(found) == 1:
        return found[0]
    near, far = found
    if far.log_evidence > near.log_evidence + 1.0 and far.barrier < 4 * near.barrier + 40:
        return far._replace(several=True)
    return near
