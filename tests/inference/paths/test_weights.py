"""Weights of paths are exact for whatever networks and however few steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from quincunx.inference.paths.process import KERNELS, back_from, make, simulate
from quincunx.inference.paths.resampling import multinomial, stratified, systematic
from quincunx.inference.paths.sampler import PathSampler
from quincunx.inference.paths.target import LOG_2PI, Target, Whitening
from tests.inference.paths.problems import (
    FACTOR,
    LOG_Z,
    MEAN,
    gaussian_target,
    mixture_target,
    untrained,
)


@eqx.filter_jit
def weights(process, target, key, n):
    paths = simulate(process, target, key, n)
    return process.log_weights(paths), paths


@eqx.filter_jit
def backwards(process, target, key, x):
    return process.log_weights(back_from(process, target, key, x))


def mean_weight(log_weight):
    """Mean of w / Z and its standard error."""
    ratio = np.exp(np.asarray(log_weight) - LOG_Z)
    return ratio.mean(), ratio.std() / ratio.size**0.5


@pytest.mark.parametrize("kernel", KERNELS)
def test_mean_weight_is_the_evidence(kernel):
    log_weight, _ = weights(untrained(kernel), gaussian_target(), jax.random.key(3), 100_000)
    mean, error = mean_weight(log_weight)
    assert error < 0.03
    assert abs(mean - 1) < 4 * error


@pytest.mark.parametrize("kernel", KERNELS)
def test_mean_inverse_weight_backwards_is_the_inverse_evidence(kernel):
    noise = np.random.default_rng(5).normal(size=(100_000, 2))
    exact = jnp.asarray(MEAN + noise @ FACTOR.T)
    log_weight = backwards(untrained(kernel), gaussian_target(), jax.random.key(6), exact)
    mean, error = mean_weight(2 * LOG_Z - np.asarray(log_weight))
    assert error < 0.03
    assert abs(mean - 1) < 4 * error


@pytest.mark.parametrize("kernel", ["pis", "dds", "bridge"])
def test_draws_have_the_weights_of_their_paths(kernel):
    target = gaussian_target()
    sampler = PathSampler(
        untrained(kernel),
        target.whitening,
        jnp.full(2, 0.2),
        resample=False,
        threshold=0.5,
        moves=1,
    )
    drawn = eqx.filter_jit(sampler.draw)(target.density, jax.random.key(8), 50_000)
    mean, error = mean_weight(drawn.log_weight)
    assert error < 0.03
    assert abs(mean - 1) < 4 * error
    share = np.exp(drawn.log_weight - LOG_Z)
    moment = share[:, None] * (np.asarray(drawn.z) - MEAN)
    assert (np.abs(moment.mean(axis=0)) < 4 * moment.std(axis=0) / 50_000**0.5).all()


@pytest.mark.parametrize("kernel", ["mcd", "bridge"])
def test_resampling_and_moves_leave_the_evidence_right(kernel):
    target = gaussian_target()
    sampler = PathSampler(
        untrained(kernel),
        target.whitening,
        jnp.full(4, 0.3),
        resample=True,
        threshold=0.999,
        moves=2,
    )
    draw = eqx.filter_jit(lambda key: sampler.draw(target.density, key, 200))
    drawn = jax.lax.map(draw, jax.random.split(jax.random.key(1), 300))
    ratio = np.exp(np.asarray(drawn.log_weight) - LOG_Z)
    means, error = ratio.mean(axis=1), ratio.mean(axis=1).std() / 300**0.5
    assert np.isfinite(np.asarray(drawn.tempered)).any()
    assert error < 0.02
    assert abs(means.mean() - 1) < 4 * error
    moment = np.mean(ratio[:, :, None] * (np.asarray(drawn.z) - MEAN), axis=1)
    assert (np.abs(moment.mean(axis=0)) < 4 * moment.std(axis=0) / 300**0.5).all()


def test_dds_weight_is_its_closed_cost():
    process, target = untrained("dds", steps=6, dim=2), gaussian_target()
    log_weight, paths = weights(process, target, jax.random.key(4), 50)
    plan, variance = process.plan(), np.exp(2 * np.asarray(process.log_sd))
    cost = np.zeros(50)
    for k in range(6):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], plan)
        mean, wide = process.forward(at, paths.x[k], paths.score[k])
        c = -np.expm1(-2 * np.asarray(at.size))
        u = (np.asarray(mean) - np.sqrt(1 - c) * np.asarray(paths.x[k])) / (c * variance)
        noise = (np.asarray(paths.x[k + 1]) - np.asarray(mean)) / np.sqrt(np.asarray(wide))
        cost += np.sum(0.5 * c * variance * u**2 + np.sqrt(c * variance) * u * noise, axis=1)
    end = np.asarray(paths.x[-1])
    log_end = -0.5 * np.sum(end**2 / variance + np.log(variance) + LOG_2PI, axis=1)
    closed = np.asarray(paths.log_gamma[-1]) - log_end - cost
    assert np.abs(closed - np.asarray(log_weight)).max() < 1e-8


def test_pis_weight_is_its_closed_cost():
    process, target = untrained("pis", steps=6), gaussian_target()
    log_weight, paths = weights(process, target, jax.random.key(4), 50)
    plan, variance = process.plan(), np.exp(2 * np.asarray(process.log_sd))
    cost, step = np.zeros(50), variance / 6
    for k in range(6):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], plan)
        mean, _ = process.forward(at, paths.x[k], paths.score[k])
        u = (np.asarray(mean) - np.asarray(paths.x[k])) / step
        noise = (np.asarray(paths.x[k + 1]) - np.asarray(mean)) / np.sqrt(step)
        cost += np.sum(0.5 * step * u**2 + np.sqrt(step) * u * noise, axis=1)
    end = np.asarray(paths.x[-1])
    log_end = -0.5 * np.sum(end**2 / variance + np.log(variance) + LOG_2PI, axis=1)
    closed = np.asarray(paths.log_gamma[-1]) - log_end - cost
    assert np.abs(closed - np.asarray(log_weight)).max() < 1e-8


class Optimal(eqx.Module):
    """The best control of `pis` for a target N(m, s^2) from Brownian motion of variance 1 at 1."""

    mean: float
    sd: float
    steps: int = eqx.field(static=True)

    def times(self, steps):
        from quincunx.inference.paths.control import Times

        t = jnp.linspace(0.0, 1.0, steps + 1)[:, None]
        return Times(t, t)

    def __call__(self, at, x, score):
        # the h-transform of N(x, 1 - t) smoothing of N(m, s^2) / N(0, 1)
        del score
        t = jnp.broadcast_to(at.embedded, x.shape)
        precision = 1 / self.sd**2 - 1
        wide = 1 + (1 - t) * precision
        return (self.mean / self.sd**2 - precision * x) / wide


def test_weights_even_out_at_the_optimum_as_steps_grow():
    mean, sd = 1.0, 0.5

    def log_density(x):
        return jnp.sum(-0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * LOG_2PI)

    import quincunx as qx

    density = qx.compile(qx.from_log_density(log_density, np.zeros(1)))
    target = Target(density, Whitening(jnp.zeros(1), jnp.eye(1)))
    variances = []
    for steps in (10, 50, 200):
        process = make("pis", 1, steps, 4, jax.random.key(0))
        process = eqx.tree_at(lambda p: p.control, process, Optimal(mean, sd, steps))
        log_weight, _ = weights(process, target, jax.random.key(2), 4000)
        variances.append(float(np.var(np.asarray(log_weight))))
    assert variances[0] > variances[1] > variances[2]
    assert variances[2] < 0.05


def test_bounds_of_the_evidence_hold():
    means = jnp.stack(jnp.meshgrid(*(jnp.array([-1.5, 0.0, 1.5]),) * 2), -1).reshape(-1, 2)
    target = mixture_target(means, 0.3)
    process = untrained("cmcd", steps=8)
    log_weight, _ = weights(process, target, jax.random.key(2), 4000)
    exact = means[jax.random.randint(jax.random.key(1), (4000,), 0, 9)]
    exact = exact + 0.3 * jax.random.normal(jax.random.key(0), exact.shape)
    back = backwards(process, target, jax.random.key(7), exact)
    assert np.mean(np.asarray(log_weight)) < 0 < np.mean(np.asarray(back))


@pytest.mark.parametrize("resample", [systematic, stratified, multinomial])
def test_resampling_counts(resample):
    log_weight = jnp.asarray(np.log([0.05, 0.4, 0.15, 0.1, 0.3]))
    spread = jnp.repeat(log_weight, 4) - np.log(4)
    keys = jax.random.split(jax.random.key(0), 20_000)
    chosen = np.asarray(jax.jit(jax.vmap(lambda key: resample(key, spread)))(keys))
    first = chosen[:, 7]  # one place of each call: independent
    counts = np.bincount(chosen.reshape(-1), minlength=20) / (20 * 20_000)
    assert counts == pytest.approx(np.exp(np.asarray(spread)), abs=0.003)
    if resample is multinomial:
        assert stats.chisquare(np.bincount(first, minlength=20), np.exp(spread) * 20_000)[1] > 1e-3
    else:
        exact = np.exp(np.asarray(spread)) * 20
        each = np.stack([np.bincount(row, minlength=20) for row in chosen[:500]])
        slack = 1 if resample is systematic else 2
        assert (np.abs(each - exact) < slack).all()


def test_a_start_that_is_left_out_is_seen():
    """Mutation: the weights without the law of the start."""
    process, target = untrained("cmcd"), gaussian_target()
    _, paths = weights(process, target, jax.random.key(3), 20_000)
    forward, backward = process.log_kernels(paths)
    mean, error = mean_weight(paths.log_gamma[-1] + jnp.sum(backward - forward, axis=0))
    assert abs(mean - 1) > 4 * error


def test_a_kernel_that_is_not_the_sampled_one_is_seen():
    """Mutation: log F of slightly longer steps than those that made the path."""
    process, target = untrained("cmcd"), gaussian_target()
    _, paths = weights(process, target, jax.random.key(3), 100_000)
    longer = eqx.tree_at(lambda p: p.log_size, process, process.log_size + 0.05)
    forward, _ = longer.log_kernels(paths)
    _, backward = process.log_kernels(paths)
    log_start = process.log_start(paths.x[0])
    log_weight = paths.log_gamma[-1] - log_start + jnp.sum(backward - forward, axis=0)
    mean, error = mean_weight(log_weight)
    assert abs(mean - 1) > 4 * error


@pytest.mark.parametrize("kernel", ["ula", "mcd", "cmcd"])
def test_annealed_kernels_are_those_of_the_formulas(kernel):
    """The backward kernel is shifted by no index; its weights would be exact if it were."""
    process, target = untrained(kernel, steps=3), gaussian_target()
    log_weight, paths = weights(process, target, jax.random.key(4), 20)
    b, times = np.asarray(process.inverse_temperatures), process.control.times(3)
    size, mean = np.exp(np.asarray(process.log_size)), np.asarray(process.mean)
    variance = np.exp(2 * np.asarray(process.log_sd))

    def annealed(k, at):
        x = np.asarray(paths.x[at])
        return (1 - b[k]) * (mean - x) / variance + b[k] * np.asarray(paths.score[at])

    def control(k, at):
        time = jax.tree.map(lambda leaf: leaf[k], times)
        return np.asarray(process.control(time, paths.x[at], jnp.asarray(annealed(k, at))))

    def log_gauss(rest, wide):
        return -0.5 * np.sum(rest**2 / wide + np.log(2 * np.pi * wide), axis=1)

    x = np.asarray(paths.x)
    total = np.asarray(paths.log_gamma[-1]) - log_gauss(x[0] - mean, variance)
    for k in range(3):
        ahead, behind = annealed(k + 1, k), annealed(k + 1, k + 1)
        if kernel == "cmcd":
            ahead = ahead + control(k, k)
        if kernel != "ula":
            behind = behind - control(k + 1, k + 1)
        total -= log_gauss(x[k + 1] - x[k] - size[k] * ahead, 2 * size[k])
        total += log_gauss(x[k] - x[k + 1] - size[k] * behind, 2 * size[k])
    assert np.abs(total - np.asarray(log_weight)).max() < 1e-8
