"""The schedule of a warm-up in windows of doubling length, and the step size in it."""

from __future__ import annotations

import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


@functools.cache
def blackjax() -> Any:
    """What is used of BlackJAX.

    Its import computes something, after which a process could not join others any more.
    """
    with jax.ensure_compile_time_eval():
        from blackjax.adaptation.metric_recipes import lookup_recipe
        from blackjax.adaptation.staged_adaptation import build_schedule
        from blackjax.adaptation.step_size import dual_averaging_adaptation
        from blackjax.mcmc import hmc, nuts
    return types.SimpleNamespace(
        init=hmc.init,
        build_kernel=nuts.build_kernel,
        build_schedule=build_schedule,
        dual_averaging_adaptation=dual_averaging_adaptation,
        lookup_recipe=lookup_recipe,
    )


class Stage(NamedTuple):
    """What a warm-up step does.

    Attributes:
        learning: whether the draw enters the estimate of scales.
        window_end: whether the estimate is put to use.
        last: whether warm-up ends, so that the averaged step size is frozen.
    """

    learning: Any
    window_end: Any
    last: Any


def windows(num_warmup: int) -> Stage:
    """Stan's schedule: step size only, then windows of doubling length, then step size only."""
    last = np.arange(num_warmup) == num_warmup - 1
    if not num_warmup:
        return Stage(last, last, last)
    labels = np.asarray(blackjax().build_schedule(num_warmup))
    return Stage(labels[:, 0].astype(bool), labels[:, 1].astype(bool), last)


@functools.cache
def averaging(target_accept: float) -> tuple:
    """Start, update and end of the dual averaging of a step size towards an acceptance."""
    return blackjax().dual_averaging_adaptation(target_accept)


def choose(condition: Any, change: Any, value: PyTree) -> PyTree:
    """Apply `change` where `condition` holds, keeping every dtype."""

    def changed(value: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), change(value), value)

    return jax.lax.cond(condition, changed, lambda value: value, value)
