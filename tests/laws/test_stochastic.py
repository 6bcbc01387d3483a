"""Stochastic-gradient samplers have exactly the biased laws that theory gives them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.estimators import ESTIMATORS, anchored
from quincunx.inference.minibatch import Batches, Turn
from tests.laws.kernels import (
    LoudSGHMC,
    ReplacingSGHMC,
    ReplacingSGLD,
    ScaledPriorSGLD,
    UnscaledSGLD,
)
from tests.scenarios import conjugate

Y = np.array([0.3, 1.9, -0.4, 2.2, 1.1, 3.0, -1.2, 0.9])
PLAIN = {"preconditioner": None, "control_variates": "none", "steps": 3}
PRECISION = 1 / 2.0**2 + len(Y) / 1.5**2
ERRORS = (len(Y) * Y - Y.sum()) / 1.5**2  # of the score estimated from one row
NOISE = np.mean(ERRORS**2)


def second_moments(method, model, data, name, mean, chains=400, draws=150):
    """E (z - mean)(z - mean)' of the stationary law, and its standard error between chains."""
    fit = qx.infer(
        model, data, method, num_chains=chains, num_samples=draws, num_warmup=200, key=1,
        init={name: mean}, progress=False,
    )  # fmt: skip
    z = fit.posterior[name].values - np.asarray(mean)
    z = z.reshape(chains, draws, -1)
    each = np.einsum("cdi,cdj->cij", z, z) / draws
    return each.mean(0), each.std(0) / np.sqrt(chains)


def deviation(method, expected, model=conjugate, data=None, name="mu", mean=None):
    """By how many standard errors second moments are off, at most."""
    data = {"y": Y} if data is None else data
    if mean is None:
        mean = (1.0 / 2.0**2 + Y.sum() / 1.5**2) / PRECISION
    found, error = second_moments(method, model, data, name, mean)
    return np.max(np.abs(found - expected) / error)


def independent(step, temperature=1.0):
    """SGLD with independent minibatches of one row."""
    return (temperature + step * NOISE / 2) / (PRECISION * (1 - step * PRECISION / 2))


def reshuffled(step, errors=ERRORS, precision=PRECISION, temperature=1.0):
    """SGLD where each row is visited once an epoch in random order; mean over the epoch.

    x_(t+1) = a x_t + step e_t + noise: the errors e_t of an epoch add up to zero, so that two of
    them have covariance -V / (K - 1).
    """
    count, a = len(errors), 1 - step * precision
    variance = np.mean(errors**2)
    covariance = np.full((count, count), -variance / (count - 1))
    np.fill_diagonal(covariance, variance)

    def added(t):
        powers = a ** np.arange(t - 1, -1, -1)
        within = step**2 * powers @ covariance[:t, :t] @ powers
        return within + 2 * step * temperature * np.sum(powers**2)

    first = added(count) / (1 - a ** (2 * count))
    return np.mean([a ** (2 * t) * first + added(t) for t in range(count)])


def kinetic(step, friction, precision, noise):
    """Covariance of x for BAOA with independent errors of covariance `noise`, by Lyapunov."""
    dim = len(precision)
    one, zero = np.eye(dim), np.zeros((dim, dim))
    keep = np.exp(-friction * step)
    kick = np.block([[one, zero], [-step * precision, one]])
    drift = np.block([[one, step / 2 * one], [zero, one]])
    throw = np.block([[one, zero], [zero, keep * one]])
    rest = drift @ throw @ drift
    kicked = rest @ np.block([[zero, zero], [zero, step**2 * noise]]) @ rest.T
    thrown = drift @ np.block([[zero, zero], [zero, (1 - keep**2) * one]]) @ drift.T
    return linalg.solve_discrete_lyapunov(rest @ kick, kicked + thrown)[:dim, :dim]


SCALAR_SGHMC = lambda step: kinetic(  # noqa: E731
    step, 1.5, np.array([[PRECISION]]), np.array([[NOISE]])
)[0, 0]


@pytest.mark.parametrize("step", [0.3, 0.1, 0.03])
def test_sgld_on_all_rows(step):
    method = qx.SGLD(step_size=step, **PLAIN)
    assert deviation(method, 1 / (PRECISION * (1 - step * PRECISION / 2))) < 4


@pytest.mark.parametrize("step", [0.1, 0.03, 0.01])
def test_sgld_with_independent_minibatches(step):
    method = ReplacingSGLD(batch_size=1, step_size=step, **PLAIN)
    assert deviation(method, independent(step)) < 4


@pytest.mark.parametrize("step", [0.1, 0.03, 0.01])
def test_sgld_without_replacement(step):
    method = qx.SGLD(batch_size=1, step_size=step, **PLAIN)
    assert deviation(method, reshuffled(step)) < 4
    assert reshuffled(step) < independent(step)


def test_sgld_at_another_temperature():
    method = qx.SGLD(step_size=0.1, temperature=0.3, **PLAIN)
    assert deviation(method, 0.3 / (PRECISION * (1 - 0.1 * PRECISION / 2))) < 4


@pytest.mark.parametrize("step", [0.4, 0.2, 0.1])
def test_sghmc_on_all_rows_is_exact_on_a_gaussian(step):
    method = qx.SGHMC(step_size=step, friction=1.5, **PLAIN)
    assert deviation(method, 1 / PRECISION) < 4


@pytest.mark.parametrize("step", [0.2, 0.1, 0.05])
def test_sghmc_with_independent_minibatches(step):
    method = ReplacingSGHMC(batch_size=1, step_size=step, friction=1.5, **PLAIN)
    assert deviation(method, SCALAR_SGHMC(step)) < 4


BROKEN = {
    "likelihood not scaled": (
        UnscaledSGLD(batch_size=4, step_size=0.1, **PLAIN),
        lambda: reshuffled(0.1, np.array([Y[:4].sum() - Y[4:].sum()] * 2)),
    ),
    "prior scaled": (
        ScaledPriorSGLD(batch_size=1, step_size=0.03, **PLAIN),
        lambda: reshuffled(0.03),
    ),
    "momentum noise": (
        LoudSGHMC(step_size=0.4, friction=1.5, **PLAIN),
        lambda: 1 / PRECISION,
    ),
    "with replacement": (
        ReplacingSGLD(batch_size=1, step_size=0.03, **PLAIN),
        lambda: reshuffled(0.03),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_laws_see_a_broken_sampler(name):
    method, expected = BROKEN[name]
    assert deviation(method, expected()) > 8


@qx.model
def regression(X, y):
    beta = qx.sample("beta", dist.Normal(0, 1).expand([2]).to_event(1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Normal(x @ beta, 1.0), obs=t)


RNG = np.random.default_rng(5)
X = RNG.normal(size=(12, 2)) @ np.array([[0.5, 0.4], [0.0, 0.2]])
DATA = {"X": X, "y": X @ np.array([1.0, -1.0]) + RNG.normal(size=12)}
MATRIX = np.eye(2) + X.T @ X
BETA = np.linalg.solve(MATRIX, X.T @ DATA["y"])
on_regression = functools.partial(deviation, model=regression, data=DATA, name="beta", mean=BETA)


@pytest.mark.parametrize("step", [0.3, 0.1])
def test_sgld_on_a_correlated_gaussian(step):
    contraction = np.eye(2) - step * MATRIX
    expected = linalg.solve_discrete_lyapunov(contraction, 2 * step * np.eye(2))
    assert on_regression(qx.SGLD(step_size=step, **PLAIN), expected) < 4
    uncorrelated = np.diag(np.diag(expected))
    assert on_regression(qx.SGLD(step_size=step, **PLAIN), uncorrelated) > 8


@pytest.mark.parametrize("step", [0.5, 0.25])
def test_sghmc_on_a_correlated_gaussian(step):
    expected = kinetic(step, 1.0, MATRIX, np.zeros((2, 2)))
    np.testing.assert_allclose(expected, np.linalg.inv(MATRIX))
    method = qx.SGHMC(step_size=step, friction=1.0, **PLAIN)
    assert on_regression(method, expected) < 4


@pytest.mark.parametrize("step", [0.2, pytest.param(0.1, marks=pytest.mark.slow)])
def test_control_variates(step):
    """z' - m = (I - step (I + N x x')) (z - m) + noise with a row x drawn at random."""
    rows = np.eye(2) + len(X) * X[:, :, None] * X[:, None, :]
    moves = np.eye(2) - step * rows
    mean = np.mean([np.kron(move, move) for move in moves], axis=0)
    expected = np.linalg.solve(np.eye(4) - mean, 2 * step * np.eye(2).ravel()).reshape(2, 2)
    settings = PLAIN | {"control_variates": "mode"}
    method = ReplacingSGLD(batch_size=1, step_size=step, **settings)
    assert on_regression(method, expected) < 4
    plain = ReplacingSGLD(batch_size=1, step_size=step, **PLAIN)
    assert on_regression(plain, expected) > 8


def test_an_anchor_takes_all_noise_from_rows_that_differ_by_constants():
    method = qx.SGLD(batch_size=1, step_size=0.03, **PLAIN | {"control_variates": "svrg"})
    assert deviation(method, 1 / (PRECISION * (1 - 0.03 * PRECISION / 2))) < 4


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_unbiased_and_variance_reduction_reduces_variance(name):
    density, z = qx.compile(regression, DATA), jnp.array([0.4, -0.2])
    estimator = ESTIMATORS[name](Batches(12, 5))
    anchor = anchored(density, estimator.batches, jnp.array([0.9, -0.8]))
    exact = jax.grad(density.log_density)(z)
    memory = estimator.epoch(density, z + 0.1, estimator.start(z))
    turns = [Turn(*jnp.array([index, index])) for index in range(5)]

    def blocks(z, memory):
        indices = jnp.arange(5)
        return jax.vmap(lambda index: estimator(density, z, Turn(index, index), memory, anchor))(
            indices
        )

    np.testing.assert_allclose(blocks(z, memory).score.mean(0), exact)
    assert jnp.isfinite(blocks(z, memory).value).all()
    for turn in turns:
        memory = estimator(density, z + 0.1, turn, memory, anchor).memory
    found = blocks(z, memory)
    np.testing.assert_allclose(found.score.mean(0), exact)
    plain = ESTIMATORS["none"](Batches(12, 5))
    spread = np.std([plain(density, z, turn, (), anchor).score for turn in turns], axis=0)
    assert np.all(found.score.std(0) < 0.5 * spread) or name == "none"


def test_a_thermostat_absorbs_noise_that_is_alike_in_all_directions():
    @qx.model
    def location(y):
        mu = qx.sample("mu", dist.Normal(0.0, 2.0).expand([6]).to_event(1))
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu[None, :], 1.5).to_event(1), obs=t)

    rows = np.concatenate([np.eye(6), -np.eye(6)]) * 2.0
    precision = 1 / 2.0**2 + 12 / 1.5**2
    noise = 12 * 2 * np.sum(rows[:6, 0] ** 2) / 1.5**4
    step, friction = 0.05, 2.0
    settings = {"batch_size": 1, "step_size": step, "friction": friction, **PLAIN}
    off = functools.partial(
        deviation, model=location, data={"y": rows}, name="mu", mean=np.zeros(6)
    )
    hot = kinetic(step, friction, np.array([[precision]]), np.array([[noise]]))[0, 0]
    assert hot > 1.15 / precision
    found, error = second_moments(qx.SGNHT(**settings), location, {"y": rows}, "mu", np.zeros(6))
    size = np.diag(found) * precision - 1
    assert np.max(np.abs(size)) < 4 * precision * error.max() + 0.02
    assert off(ReplacingSGHMC(**settings), hot * np.eye(6)) < 4.5


def variances(method, steps, **settings):
    """Variance that minibatches alone make: at temperature zero nothing else does."""
    cold = {"temperature": 1e-12, "batch_size": 1, **PLAIN, **settings}
    mean = (1.0 / 2.0**2 + Y.sum() / 1.5**2) / PRECISION
    return [
        second_moments(method(step_size=step, **cold), conjugate, {"y": Y}, "mu", mean, 200)[0][
            0, 0
        ]
        for step in steps
    ]


def slope(steps, values):
    return np.polyfit(np.log(steps), np.log(values), 1)[0]


@pytest.mark.slow
def test_order_of_the_bias_in_the_step_size():
    steps = [0.02, 0.01, 0.005, 0.0025]
    assert slope(steps, variances(ReplacingSGLD, steps)) == pytest.approx(1.0, abs=0.1)
    assert slope(steps, variances(qx.SGLD, steps)) > 1.9
    assert slope(steps, [reshuffled(step, temperature=0.0) for step in steps]) > 1.9
    steps = [0.04, 0.02, 0.01]
    assert slope(steps, variances(ReplacingSGHMC, steps, friction=4.0)) == pytest.approx(1, abs=0.1)
    assert slope(steps, variances(qx.SGHMC, steps, friction=4.0)) > 2.5


def local_errors(kernel, steps, half, count=1_000_000):
    """E x'^2 - E x^2 of one step from the exact law of the well U(x) = 2 log cosh x, by step size.

    A scheme of order p changes expectations under the exact law by O(h^(p + 1)).
    """
    uniform = (np.arange(count) + 0.5) / count
    x = jnp.asarray(np.random.default_rng(0).permutation(np.arctanh(2 * uniform - 1)))[:, None]
    keys = jax.random.split(jax.random.key(0), count)
    p = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), (1,)))(keys)
    score = lambda x: -2 * jnp.tanh(x)  # noqa: E731
    found = []
    for step in steps:
        state = qx.SGHMC(step_size=step, friction=1.0, **PLAIN).init(
            qx.compile(conjugate, {"y": Y}), x[0], keys[0]
        )
        tuning = state.tuning._replace(friction=jnp.asarray(1.0))
        first = jnp.zeros((), jnp.int32)
        opened = p - half * step * score(x)  # what belongs to the step before
        move = jax.vmap(lambda z, m, s, k: kernel.move(z, m, s, tuning, first, k))  # noqa: B023
        moved, _ = jax.jit(move)(x, opened, score(x), keys)
        found.append(float(jnp.mean(moved**2 - x**2)))
    return np.abs(found)


class Euler(qx.SGHMC):
    def move(self, z, motion, score, tuning, index, key):
        h, c = tuning.step_size, tuning.friction
        kicked = (motion + h * score) * (1 - c * h)
        thrown = kicked + jnp.sqrt(2 * c * h) * jax.random.normal(key, z.shape)
        return z + h * thrown, thrown


def test_baoab_is_of_second_order():
    steps = [0.6, 0.4, 0.25]
    assert slope(steps, local_errors(qx.SGHMC(), steps, half=0.5)) > 2.9
    steps = [0.2, 0.1, 0.05]
    assert slope(steps, local_errors(Euler(), steps, half=0.0)) < 2.3


def test_chains_visit_every_block_once_an_epoch_each_in_its_own_order():
    density = qx.compile(conjugate, {"y": np.arange(10.0)})
    method = qx.SGLD(batch_size=3, step_size=0.01, **PLAIN)
    batches = method.batches(density)
    assert (batches.number, batches.size) == (4, 3)
    blocks = [batches.block(jnp.asarray(index)) for index in range(4)]
    rows = [np.asarray(block.indices)[: int(block.count)] for block in blocks]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(10))
    z = jnp.array([0.4])
    estimates = [density.log_likelihood(z, block) for block in blocks]
    np.testing.assert_allclose(np.mean(estimates), density.log_likelihood(z))
    orders = [batches.order(key) for key in jax.random.split(jax.random.key(0), 20)]
    assert all(sorted(order.tolist()) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) > 8


def averaged(step, dropout, copies):
    """Covariance of structured SGLD on `regression` with a long history, from second moments.

    With history t of independent coordinates of variance diag S, r the groups that keep their
    values: z' = z - step (B z + D t) + noise, and S is the fixed point of z's second moments.
    """
    blocks = np.diag(np.diag(MATRIX))
    if dropout is None:
        pairs = [(1.0, blocks, [MATRIX - blocks])]
    else:
        pairs = []
        for kept in itertools.product([0, 1], repeat=2 * copies):
            masks = np.array(kept).reshape(copies, 2)
            chance = np.prod(np.where(masks, dropout, 1 - dropout))
            sides = [np.diag(mask) @ MATRIX / (dropout * copies) for mask in masks]
            own = sum(side @ np.diag(mask) for side, mask in zip(sides, masks, strict=True))
            others = [side @ np.diag(1 - mask) for side, mask in zip(sides, masks, strict=True)]
            pairs.append((chance, own, others))
    covariance = np.linalg.inv(MATRIX)
    for _ in range(5000):
        past = np.diag(np.diag(covariance))
        new = 2 * step * np.eye(2)
        for chance, own, others in pairs:
            move = np.eye(2) - step * own
            thrown = step**2 * sum(other @ past @ other.T for other in others)
            new = new + chance * (move @ covariance @ move.T + thrown)
        covariance = new
    return covariance


@pytest.mark.parametrize(
    ("step", "dropout", "copies"),
    [
        (0.1, 0.5, 1),
        *(
            pytest.param(step, *settings, marks=pytest.mark.slow)
            for step in (0.1, 0.03)
            for settings in ((None, 1), (0.5, 1), (0.5, 2))
            if (step, *settings) != (0.1, 0.5, 1)
        ),
    ],
)
def test_structured_sgld_has_its_own_law(step, dropout, copies):
    expected = averaged(step, dropout, copies)
    settings = PLAIN | {"steps": 5, "groups": "coordinate", "history": 300}
    method = qx.StructuredSGLD(step_size=step, dropout=dropout, copies_kept=copies, **settings)
    assert on_regression(method, expected) < 4
    off = MATRIX - np.diag(np.diag(MATRIX))
    limit = np.linalg.inv(MATRIX - off + (dropout or 0.0) * off)
    np.testing.assert_allclose(averaged(1e-3, dropout, copies), limit, atol=4e-3)
    assert np.abs(limit - np.linalg.inv(MATRIX)).max() > 0.05
