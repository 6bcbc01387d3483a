"""Broken samplers on path space: each must fail the test that is there for it."""

import functools

import jax
import numpy as np
import pytest

from quincunx.inference.paths.process import Process, log_gauss, simulate
from tests.inference.paths import test_losses, test_weights


@pytest.mark.slow
def test_a_backward_kernel_of_the_step_before(monkeypatch):
    back = Process.back

    def shifted(self, at, x, score):
        return back(self, at._replace(after=at.before, there=at.here), x, score)

    monkeypatch.setattr(Process, "back", shifted)
    with pytest.raises(AssertionError):
        test_weights.test_annealed_kernels_are_those_of_the_formulas("cmcd")


@pytest.mark.slow
def test_a_bridge_of_the_next_step(monkeypatch):
    back = Process.back

    def shifted(self, at, x, score):
        return back(self, at._replace(index=at.index + 1), x, score)

    monkeypatch.setattr(Process, "back", shifted)
    jax.clear_caches()
    with pytest.raises(AssertionError):
        test_weights.test_pis_weight_is_its_closed_cost()
    jax.clear_caches()


@pytest.mark.slow
def test_paths_that_are_not_detached(monkeypatch):
    monkeypatch.setattr(test_losses, "simulate", functools.partial(simulate, differentiable=True))
    with pytest.raises(AssertionError):
        test_losses.test_paths_are_constants_for_these("log_variance")


@pytest.mark.slow
def test_noise_of_exploration_in_the_loss(monkeypatch):
    log_kernels = Process.log_kernels

    def wider(self, paths):
        _, backward = log_kernels(self, paths)
        at = jax.tree.map(lambda leaf: np.repeat(leaf, paths.x.shape[1], axis=0), self.plan())
        flat = [np.reshape(leaf, (-1, 2)) for leaf in (paths.x[:-1], paths.score[:-1])]
        mean, variance = self.forward(at, *map(jax.numpy.asarray, flat))
        rest = np.reshape(paths.x[1:], (-1, 2)) - mean
        return log_gauss(rest, variance + 0.25).reshape(backward.shape), backward

    monkeypatch.setattr(Process, "log_kernels", wider)
    with pytest.raises(AssertionError):
        test_losses.test_noise_of_exploration_is_not_in_the_loss()
