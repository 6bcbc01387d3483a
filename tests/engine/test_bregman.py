"""Legendre functions, Bregman proximity operators, envelopes and mirror maps, by brute force."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine import bregman, proximal
from quincunx.engine.bregman.geometry import Piece, build, plan
from quincunx.engine.bregman.proximity import SIDES, envelope, proximity, recentred
from quincunx.engine.composite import Kinks

LINE = np.array([-2.5, -0.6, -0.15, 0.05, 0.4, 1.7])
POSITIVE = np.array([0.05, 0.3, 0.8, 1.5, 4.0])
UNIT = np.array([0.03, 0.2, 0.45, 0.8, 0.99])
FUNCTIONS = {
    "squared": (bregman.Squared(0.0, 0.7, 1.3), LINE),
    "hypentropy": (bregman.Hypentropy(0.0, 0.4), LINE),
    "hypentropy_shifted": (bregman.Hypentropy(0.3, 1.2, 2.0), LINE),
    "exponential": (bregman.Exponential(0.0, 1.1), LINE),
    "boltzmann_shannon": (bregman.BoltzmannShannon(0.0, 1.0, 1.5), POSITIVE),
    "burg": (bregman.Burg(), POSITIVE),
    "burg_below": (bregman.Burg(1.0, -1.0), 1 - POSITIVE),
    "barrier": (bregman.Barrier(0.0, 0.5), POSITIVE),
    "barrier_below": (bregman.Barrier(2.0, -0.5), 2 - POSITIVE),
    "fermi_dirac": (bregman.FermiDirac(), UNIT),
    "box_barrier": (bregman.BoxBarrier(-1.0, 2.0, 0.8), 2 * UNIT - 1),
    "hellinger": (bregman.Hellinger(0.0, 3.0), 6 * UNIT - 3),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


def test_duals_are_slopes_and_invert(function):
    psi, points = function
    x = jnp.asarray(points)
    slope = jax.vmap(jax.grad(lambda t: psi.value(t)))
    np.testing.assert_allclose(psi.dual(x), slope(x), rtol=1e-9)
    curvature = jax.vmap(jax.grad(lambda t: psi.dual(t)))
    np.testing.assert_allclose(psi.hessian(x), curvature(x), rtol=1e-9)
    np.testing.assert_allclose(psi.primal(psi.dual(x)), x, rtol=1e-9, atol=1e-12)
    assert bool(jnp.all(psi.reaches(psi.dual(x))))
    assert not bool(jnp.any(psi.reaches(jnp.array([jnp.nan, jnp.inf]))))


def brute_force(objective, low, high):
    """Least point of a function of one variable: a grid, then grids ever finer about the best."""
    for _ in range(4):
        grid = np.linspace(low, high, 2001)
        values = objective(grid)
        best = int(np.nanargmin(values))
        low, high = grid[max(best - 2, 0)], grid[min(best + 2, 2000)]
    return grid[best]


def domain(psi):
    low, high = sorted(
        float(psi.origin + psi.scale * np.clip(end, -40, 40)) for end in psi.interval
    )
    return low + 1e-9, high - 1e-9


@eqx.filter_jit
def distance(psi, y, x, side):
    return psi.distance(y, x) if side == "left" else psi.distance(x, y)


operator = eqx.filter_jit(proximity)
SLOPES = {"sides": (0.6, 1.4), "one": (1.0, 1.0), "steep": (4.0, 3.0)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("slopes", SLOPES)
def test_proximity_operators_by_brute_force(function, side, slopes):
    psi, points = function
    (left, right), smoothing = SLOPES[slopes], 0.5
    low, high = domain(psi)
    for location in (0.0, 0.35):
        psi = recentred(psi, jnp.asarray(location))
        x = jnp.asarray(points)
        kinks = Kinks(*(jnp.full(x.shape, value) for value in (location, left, right)))
        found = operator(psi, x, kinks, jnp.asarray(smoothing), side)
        for start, point in zip(points, np.asarray(found), strict=True):

            def objective(y, start=start, psi=psi, location=location):
                shifted = y - location
                term = right * np.maximum(shifted, 0) + left * np.maximum(-shifted, 0)
                return term + np.asarray(distance(psi, y, np.full_like(y, start), side)) / smoothing

            best = brute_force(objective, max(low, -6.0), min(high, 6.0))
            least = objective(np.full(2001, best))[0]
            assert objective(np.full(2001, point))[0] < least + 1e-9, (start, point, best)
            np.testing.assert_allclose(point, best, atol=2e-4)


@pytest.mark.parametrize("side", SIDES)
def test_the_derivative_of_an_envelope_is_the_formula(function, side):
    psi, points = function
    x, smoothing = jnp.asarray(points), jnp.asarray(0.3)
    location = jnp.full(x.shape, 0.35)
    psi = recentred(psi, location)
    kinks = Kinks(location, jnp.full(x.shape, 0.6), jnp.full(x.shape, 1.4))
    slope = jax.grad(lambda x: envelope(psi, x, kinks, smoothing, side))(x)
    point = proximity(psi, x, kinks, smoothing, side)
    expected = psi.hessian(x) * (x - point) if side == "left" else psi.dual(x) - psi.dual(point)
    np.testing.assert_allclose(slope, expected / smoothing, rtol=1e-8, atol=1e-9)
    h = 1e-6
    ends = [
        [float(envelope(psi, x.at[i].add(d), kinks, smoothing, side)) for d in (-h, h)]
        for i in range(len(points))
    ]
    numeric = np.array([(b - a) / (2 * h) for a, b in ends])
    np.testing.assert_allclose(slope, numeric, rtol=2e-4, atol=2e-4)


def test_an_envelope_moves_with_the_parameters_of_its_kink():
    psi = bregman.Squared(0.0, 1.0, 1.0)
    x = jnp.array([0.8, -0.2])

    def value(location, scale):
        kinks = Kinks(jnp.full(2, location), jnp.full(2, 1 / scale), jnp.full(2, 1 / scale))
        return envelope(psi, x, kinks, jnp.asarray(0.3), "left")

    for argument, h in ((0, 1e-6), (1, 1e-6)):
        at = [0.1, 0.7]
        ends = []
        for sign in (-1, 1):
            moved = list(at)
            moved[argument] += sign * h
            ends.append(float(value(*moved)))
        found = jax.grad(value, argnums=argument)(*at)
        np.testing.assert_allclose(found, (ends[1] - ends[0]) / (2 * h), rtol=1e-5)


def test_inside_the_kink_the_operator_is_the_kink_and_not_the_distance():
    psi = bregman.Hypentropy(0.0, 1.0)
    x = jnp.array([0.05, -0.2])
    kinks = Kinks(jnp.zeros(2), jnp.ones(2), jnp.ones(2))
    for side in SIDES:
        np.testing.assert_array_equal(proximity(psi, x, kinks, jnp.asarray(0.5), side), 0.0)


def test_group_soft_threshold_by_brute_force(rng):
    grid = np.stack(np.meshgrid(*[np.linspace(-2, 2, 801)] * 2, indexing="ij"), axis=-1)
    for v in rng.normal(size=(4, 2)):
        value = np.linalg.norm(grid, axis=-1) + np.sum((grid - v) ** 2, axis=-1) / (2 * 0.7)
        best = grid[np.unravel_index(np.argmin(value), value.shape)]
        found = proximal.group_soft_threshold(jnp.asarray(v), 0.0, 0.7)
        np.testing.assert_allclose(found, best, atol=5e-3)
    np.testing.assert_array_equal(proximal.group_soft_threshold(jnp.zeros(3), 0.0, 0.1), 0.0)


@qx.model
def mixed():
    qx.sample("line", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    qx.sample("above", dist.HalfNormal(1.0))
    qx.sample("below", dist.TruncatedNormal(0.0, 1.0, high=0.5))
    qx.sample("box", dist.Uniform(-1.0, 3.0).expand([2]).to_event(1))
    for name in ("first", "second"):
        qx.sample(name, dist.Dirichlet(jnp.ones(3)))


@pytest.mark.parametrize(
    "words",
    ["auto", "hypentropy", "burg", "boltzmann_shannon", "fermi_dirac", "hellinger", "euclidean"],
)
def test_a_mirror_map_of_a_mixed_model(words, rng):
    density = qx.compile(mixed).native
    lower, upper = density.structure.composite.bounds()
    x = density.initial(jax.random.key(3))
    scale = jnp.full(density.dim, 0.4)
    geometry = build(plan(density.program, words), x, scale, lower, upper)
    y = geometry.dual(x)
    np.testing.assert_allclose(geometry.primal(y), x, rtol=1e-8)
    assert bool(geometry.reaches(y))
    assert not bool(geometry.reaches(y.at[0].set(jnp.inf)))
    free = np.delete(np.arange(density.dim), [8, 11])  # one entry of each simplex is the others'

    def dual(part):
        whole = jnp.zeros(density.dim).at[free].set(part)
        whole = whole.at[8].set(1 - part[6] - part[7]).at[11].set(1 - part[8] - part[9])
        y = geometry.dual(whole)
        y = y.at[6:9].add(-y[8]).at[9:12].add(-y[11])
        return y[free]

    hessian = np.asarray(jax.jacobian(dual)(x[free]))
    np.testing.assert_allclose(geometry.log_det(x), np.linalg.slogdet(hessian)[1], rtol=1e-9)
    e = jnp.asarray(rng.normal(size=density.dim))
    reduced = np.asarray(e.at[6:9].add(-e[8]).at[9:12].add(-e[11]))[free]
    expected = reduced @ np.linalg.solve(hessian, reduced)
    law = geometry.log_law(x, e, jnp.asarray(0.3), second=False)
    normal = -expected / (4 * 0.3) - 0.5 * np.linalg.slogdet(hessian)[1]
    constant = 0.5 * 6 * np.log(2 * 0.3)  # of the coordinates with a function of their own
    np.testing.assert_allclose(law, normal - constant, rtol=1e-8)
    noise = jax.vmap(lambda k: geometry.noise(x, jax.random.normal(k, x.shape)))
    draws = jax.jit(noise)(jax.random.split(jax.random.key(0), 40_000))
    draws = np.asarray(draws.at[:, 6:9].add(-draws[:, 8:9]).at[:, 9:12].add(-draws[:, 11:12]))
    np.testing.assert_allclose(
        np.cov(draws[:, free].T) / np.sqrt(np.outer(np.diag(hessian), np.diag(hessian))),
        hessian / np.sqrt(np.outer(np.diag(hessian), np.diag(hessian))),
        atol=0.04,
    )


@pytest.mark.parametrize("second", [True, False])
def test_the_law_of_a_step_is_that_of_its_draws(second):
    one, end = jnp.ones(1), jnp.array([jnp.inf])
    geometry = build((Piece(0, 1, "burg", "half-line", 1),), one, one, 0 * one, end)
    x, eps = jnp.array([0.7]), jnp.asarray(0.15)
    xi = jax.random.normal(jax.random.key(0), (40_000, 1))
    drawn = jax.jit(jax.vmap(lambda v: geometry.step(x, v, eps, second=second)))(xi)[:, 0]
    grid = jnp.linspace(-12, 12, 40_001)
    law = jax.jit(jax.vmap(lambda e: geometry.log_law(x, e[None], eps, second=second)))(grid)
    total = np.cumsum(np.exp(law - 0.5 * np.log(2 * np.pi))) * float(grid[1] - grid[0])
    assert total[-1] == pytest.approx(1.0, abs=0.02)
    u = np.interp(np.asarray(drawn), np.asarray(grid), total / total[-1])
    assert stats.kstest(u, "uniform").statistic < 0.02
