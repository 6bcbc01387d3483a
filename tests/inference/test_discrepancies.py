"""Discrepancies agree with independent formulas, and their null bands hold their level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from quincunx.inference.diagnostics.agreement import (
    Moments,
    agreement,
    heavy_tailed,
    normal_scores,
)
from quincunx.inference.diagnostics.discrepancy import Whitening, stein_kernel, stein_test
from quincunx.inference.diagnostics.independence import BLOCK, slowest, thinned
from quincunx.inference.diagnostics.transport import (
    directions,
    sliced_wasserstein,
    squared_distances,
    transport_test,
)

LEVEL = 0.01


def chains(rng, rho, number, length, dim):
    """Autoregressive chains whose law is standard normal."""
    x = rng.normal(size=(number, length, dim))
    x[:, 1:] *= np.sqrt(1 - rho**2)
    for t in range(1, length):
        x[:, t] += rho * x[:, t - 1]
    return x


def independent(values, most=400):
    kept = thinned(values.shape[1], values.shape[0], slowest(values), most)
    return values.reshape(-1, values.shape[2])[kept]


def test_stein_kernel_is_the_operator_applied_twice(rng):
    x, s = rng.normal(size=(2, 6, 3))

    def base(x, y):
        return (3 + jnp.sum((x - y) ** 2)) ** -0.5

    def brute(x, s, y, t):
        mixed = jnp.trace(jax.jacfwd(jax.grad(base, argnums=1), argnums=0)(x, y))
        slopes = s @ jax.grad(base, argnums=1)(x, y) + t @ jax.grad(base, argnums=0)(x, y)
        return mixed + slopes + base(x, y) * (s @ t)

    expected = jax.vmap(
        lambda x, s, xs, ss: jax.vmap(lambda y, t: brute(x, s, y, t))(xs, ss), (0, 0, None, None)
    )(x, s, x, s)
    np.testing.assert_allclose(stein_kernel(x, s, 3.0), expected, rtol=1e-9)


def test_stein_statistic_is_the_mean_over_pairs(rng):
    x = 1 + rng.normal(size=(24, 2))
    kernel = stein_kernel(x, -x, 2.0)
    expected = np.mean([kernel[i, j] for i in range(24) for j in range(24) if i != j])
    found = stein_test(x, -x, np.arange(24) // BLOCK, LEVEL, rng)
    assert found.squared == pytest.approx(expected)
    assert found.ksd == pytest.approx(np.sqrt(expected))
    family, weight = np.arange(24) // 3, rng.uniform(size=24)
    found = stein_test(x, -x, family, LEVEL, rng, weight)
    apart = family[:, None] != family
    mass = np.outer(weight, weight)[apart]
    assert found.squared == pytest.approx(mass @ kernel[apart] / mass.sum())


@pytest.mark.parametrize("sizes", [(30, 30), (30, 45), (7, 40)])
def test_projected_distances_are_those_of_quantile_functions(rng, sizes):
    x, y = rng.normal(size=sizes[0]), 1 + 2 * rng.normal(size=sizes[1])
    grid = (np.arange(840_000) + 0.5) / 840_000  # a multiple of all sizes
    apart = np.sort(x)[(grid * sizes[0]).astype(int)] - np.sort(y)[(grid * sizes[1]).astype(int)]
    found = squared_distances(x[None], y[None])[0]
    assert found == pytest.approx(np.mean(apart**2), rel=1e-4)
    if sizes[0] == sizes[1]:  # an optimal matching
        from scipy.optimize import linear_sum_assignment

        cost = (x[:, None] - y[None, :]) ** 2
        assert found == pytest.approx(cost[linear_sum_assignment(cost)].mean())


def test_first_order_distance_of_scipy_is_a_lower_bound(rng):
    x, y = rng.normal(size=50), 3 + rng.normal(size=80)
    found = squared_distances(x[None], y[None])[0]
    first = stats.wasserstein_distance(x, y)
    assert first**2 <= found
    shifted = squared_distances(x[None], x[None] + 2.0)[0]
    assert shifted == pytest.approx(stats.wasserstein_distance(x, x + 2.0) ** 2)


def test_sliced_distance_of_a_shift_is_known(rng):
    x = rng.normal(size=(200, 4))
    shift = np.array([1.0, 0.0, 2.0, 0.0])
    lines = directions(4, 64, rng)
    np.testing.assert_allclose(lines[:4] @ lines[:4].T, np.eye(4), atol=1e-12)
    assert sliced_wasserstein(x, x + shift, lines) == pytest.approx(shift @ shift / 4)


def test_transport_test_uses_the_sliced_distance(rng):
    x, y = rng.normal(size=(2, 40, 1))
    found = transport_test(x, y, BLOCK, LEVEL, rng)
    assert found.squared == pytest.approx(squared_distances(x.T, y.T)[0])


def p_values(rho, dim, repetitions, length=600):
    found = []
    for repetition in range(repetitions):
        rng = np.random.default_rng([repetition, dim, int(10 * rho)])
        a, b = chains(rng, rho, 4, length, dim), chains(rng, rho, 4, length, dim)
        x, y = independent(a), independent(b)
        count = min(len(x), len(y)) // BLOCK * BLOCK
        names = [str(index) for index in range(dim)]
        moments = agreement(names, Moments.of(a), Moments.of(b), np.zeros(dim, bool))
        found.append(
            (
                stein_test(x, -x, np.arange(len(x)) // BLOCK, LEVEL, rng).p_value,
                transport_test(x[:count], y[:count], BLOCK, LEVEL, rng).p_value,
                moments.mean_p,
                moments.log_sd_p,
            )
        )
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dim", [2, 10])
def test_null_bands_hold_their_level(rho, dim):
    """At most as many rejections as a level of 5 % gives with probability 0.999."""
    repetitions, length = 200, 2000 if rho == 0.9 else 600
    rejected = np.sum(p_values(rho, dim, repetitions, length) <= 0.05, axis=0)
    assert (rejected <= stats.binom.isf(1e-3, repetitions, 0.05)).all(), rejected


def test_a_slow_chain_is_not_taken_for_another_law():
    rejected = np.sum(p_values(0.9, 2, 25) <= 0.01, axis=0)
    assert (rejected <= 2).all(), rejected


def test_without_thinning_it_would_be():
    """The same chains, all draws taken as independent."""
    rejected = 0
    for repetition in range(4):
        rng = np.random.default_rng([repetition, 2, 9])
        a, b = chains(rng, 0.9, 4, 50, 2), chains(rng, 0.9, 4, 50, 2)
        test = transport_test(a.reshape(-1, 2), b.reshape(-1, 2), 1, LEVEL, rng)
        rejected += test.p_value <= 0.01
    assert rejected >= 3, rejected


def test_dependence_within_blocks_is_allowed_for():
    """Draws of a block that have half of their variance in common."""
    found = []
    for repetition in range(40):
        rng = np.random.default_rng([repetition, 5])
        common = np.repeat(rng.normal(size=(2, 20, 2)), BLOCK, axis=1)
        x, y = (common + rng.normal(size=(2, 20 * BLOCK, 2))) / np.sqrt(2)
        stein = stein_test(x, -x, np.arange(len(x)) // BLOCK, LEVEL, rng)
        moved = transport_test(x, y, BLOCK, LEVEL, rng)
        found.append((stein.p_value, moved.p_value, moved.ratio))
    found = np.array(found)
    assert (np.sum(found[:, :2] <= 0.05, axis=0) <= 6).all(), found
    assert 0.7 < np.median(found[:, 2]) < 1.4


def test_faults_are_seen(rng):
    x, y = rng.normal(size=(2, 400, 5))
    block = np.arange(400) // BLOCK
    for wrong in (0.7 * x, x + 0.4):
        assert stein_test(wrong, -wrong, block, LEVEL, rng).p_value < 0.0025
        assert transport_test(wrong, y, BLOCK, LEVEL, rng).p_value < 0.0025


@pytest.mark.parametrize("level", [0.01, 1e-4])
def test_p_values_reach_half_the_level(rng, level):
    """Many methods share one level: a fault must be told at a small part of it."""
    x, y = rng.normal(size=(2, 80, 2))
    shifted = x + 2
    stein = stein_test(shifted, -shifted, np.arange(80) // BLOCK, level, rng).p_value
    moved = transport_test(shifted, y, BLOCK, level, rng).p_value
    assert max(stein, moved) <= level / 2
    assert min(stein, moved) > 0


def test_weighted_draws_are_not_taken_for_another_law(rng):
    """Weights of uniform draws make a normal law of them."""
    p_values, naive, each = [], [], np.arange(300)
    for _ in range(40):
        x = rng.uniform(-6, 6, size=(300, 1))
        weight = np.exp(-0.5 * x[:, 0] ** 2)
        p_values.append(stein_test(x, -x, each, LEVEL, rng, weight / weight.sum()).p_value)
        x = x[rng.choice(300, size=300, p=weight / weight.sum())]
        naive.append(stein_test(x, -x, each, LEVEL, rng).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.15
    assert 0.2 < np.median(p_values) < 0.8
    assert np.mean(np.array(naive) <= 0.05) > 0.4
    weight = np.exp(-0.5 * (x[:, 0] / 0.7) ** 2)
    assert stein_test(x, -x, each, LEVEL, rng, weight / weight.sum()).p_value < 0.01


def test_families_of_resampled_draws_are_blocks(rng):
    p_values, naive, even = [], [], np.full(300, 1 / 300)
    for _ in range(40):
        x = 4.0 * rng.normal(size=(300, 1))
        weight = np.exp(-0.5 * x[:, 0] ** 2 * (1 - 1 / 4.0**2))
        family = rng.choice(300, size=300, p=weight / weight.sum())
        x = 0.98 * x[family] + np.sqrt(1 - 0.98**2) * rng.normal(size=(300, 1))
        p_values.append(stein_test(x, -x, family, LEVEL, rng, even).p_value)
        naive.append(stein_test(x, -x, np.arange(300), LEVEL, rng, even).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.15
    assert np.mean(np.array(naive) <= 0.05) > 0.4
    assert stein_test(x + 0.6, -x - 0.6, family, LEVEL, rng, even).p_value < 0.01


def test_the_discrepancy_is_blind_to_weights_of_far_modes(rng):
    """The caveat that every report carries."""
    x = 5 + rng.normal(size=(400, 1))  # of 1/2 N(-5, 1) + 1/2 N(5, 1)
    score = -(x - 5 * np.tanh(5 * x))
    assert stein_test(x, score, np.arange(400) // BLOCK, LEVEL, rng).p_value > 0.01


def test_errors_are_in_combined_standard_errors(rng):
    a, b = rng.normal(size=(4, 500, 2)), rng.normal(size=(4, 2000, 2))
    a[..., 1] = 0.3 + 1.5 * a[..., 1]
    found = agreement(["x", "y"], Moments.of(a), Moments.of(b), np.zeros(2, bool))
    row = found.table.loc["y"]
    expected = 0.3 / np.sqrt(1.5**2 / 2000 + 1 / 8000)
    assert row["mean_z"] == pytest.approx(expected, rel=0.3)
    assert row["log_sd_difference"] == pytest.approx(np.log(1.5), abs=0.06)
    assert row["log_sd_error"] == pytest.approx(np.sqrt(1 / 4000 + 1 / 16000), rel=0.15)
    assert found.worst("log_sd")[1] == "y"
    assert found.mean_p < 1e-4
    assert found.log_sd_p < 1e-4


def test_errors_are_combined_by_their_squares():
    """By hand: two parameters, errors of both sides."""
    found = Moments(*(np.array(part) for part in ([1.0, 0.0], [2.0, 1.0], [0.3, 0.1], [0.03, 0.1])))
    right = Moments(*(np.array(part) for part in ([0.0, 0.0], [1.0, 1.0], [0.4, 0.1], [0.04, 0.1])))
    compared = agreement(["x", "y"], found, right, np.zeros(2, bool))
    row = compared.table.loc["x"]
    assert row["mean_z"] == pytest.approx(1.0 / 0.5)
    assert row["mean_error"] == pytest.approx(0.5)
    assert row["log_sd_z"] == pytest.approx(np.log(2) / 0.05)
    assert compared.mean_p == pytest.approx(min(1.0, 4 * stats.t.sf(2.0, 50)))
    assert compared.log_sd_p == pytest.approx(4 * stats.t.sf(np.log(2) / 0.05, 50))


def test_the_error_of_an_sd_is_by_how_slow_the_squares_are(rng):
    """Signs are fast and sizes slow: the correlation of squares is 0.81, of values none."""
    slow = np.abs(chains(rng, 0.9, 4, 5000, 1))
    found = Moments.of(rng.choice((-1.0, 1.0), size=slow.shape) * slow)
    assert found.mean_error.item() == pytest.approx(20_000**-0.5, rel=0.2)
    expected = (2 * 20_000 * (1 - 0.81) / (1 + 0.81)) ** -0.5
    assert found.log_sd_error.item() == pytest.approx(expected, rel=0.3)


def test_chains_about_different_means_have_their_distance_in_the_error(rng):
    values = rng.normal(size=(4, 500, 1)) + np.array([0.0, 0.0, 4.0, 4.0])[:, None, None]
    assert Moments.of(values, 100.0).mean_error.item() == pytest.approx(0.1 * 5**0.5, rel=0.05)


def test_the_worst_error_keeps_its_sign():
    zero, one = np.zeros(2), np.ones(2)
    right = Moments(zero, one, 0.1 * one, 0.1 * one)
    found = right._replace(mean=np.array([0.2, -0.5]), sd=np.array([0.0, 1.0]))
    found = found._replace(log_sd_error=np.array([np.nan, 0.1]))
    compared = agreement(["x", "y"], found, right, np.zeros(2, bool))
    assert compared.worst("mean") == (pytest.approx(-0.5 / np.hypot(0.1, 0.1)), "y")
    assert compared.worst("log_sd") == (-np.inf, "x")  # constant where it ought to vary
    assert compared.log_sd_p == 0


def test_a_stuck_chain_has_no_error_that_could_accuse(rng):
    a, b = rng.normal(size=(2, 4, 200, 1))
    a[0] = a[0, 0]
    found = agreement(["x"], Moments.of(a), Moments.of(b), np.zeros(1, bool))
    assert found.table["mean_error"].item() == np.inf
    assert found.mean_p == 1


def test_heavy_tails_are_compared_by_ranks(rng):
    light, heavy = rng.normal(size=(4000, 1)), rng.standard_cauchy(size=(4000, 1))
    assert heavy_tailed(np.concatenate([light, heavy, np.zeros((4000, 1))], axis=1)).tolist() == [
        False,
        True,
        False,
    ]
    first, second = normal_scores(heavy[:2000], heavy[2000:] + 1.0)
    pooled = np.concatenate([first, second])
    assert stats.kstest(pooled.ravel(), "norm").pvalue > 0.99
    assert second.mean() > first.mean() + 0.2


def test_tails_of_either_side_and_of_counts_are_seen(rng):
    """An indicator has no tail, and its draws are the same but for a few."""
    heavy = np.abs(rng.standard_cauchy(size=(4000, 1)))
    rare = rng.uniform(size=(4000, 1)) < 0.01
    columns = [heavy, -heavy, np.floor(heavy), rare, ~rare, rng.poisson(0.1, size=(4000, 1))]
    found = heavy_tailed(np.concatenate(columns, axis=1).astype(float))
    assert found.tolist() == [True, True, True, False, False, False]


def test_equal_draws_share_their_rank():
    """By hand; the three draws of one set weigh as much as the six of the other."""
    first, second = normal_scores(
        np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0, 1.0, 2.0, 3.0])
    )
    levels = {0: 1 / 12, 1: 5 / 12, 2: 19 / 24, 3: 23 / 24}
    np.testing.assert_allclose(stats.norm.cdf(first), [levels[v] for v in (0, 1, 2)])
    np.testing.assert_allclose(stats.norm.cdf(second), [levels[v] for v in (1, 1, 1, 1, 2, 3)])


def test_unequal_sets_have_equal_weight_in_normal_scores(rng):
    first, second = normal_scores(rng.normal(size=100), rng.normal(size=5000))
    assert abs(first.mean()) < 0.5
    assert np.mean(first < 0) == pytest.approx(0.5, abs=0.2)


def test_the_slowest_coordinate_is_told_by_values_and_squares(rng):
    fast, slow = chains(rng, 0.0, 4, 2000, 1), chains(rng, 0.9, 4, 2000, 1)
    assert slowest(fast) == pytest.approx(8000, rel=0.2)
    assert slowest(np.concatenate([fast, slow], axis=-1)) == pytest.approx(8000 / 19, rel=0.4)
    signs = rng.choice((-1.0, 1.0), size=fast.shape)
    assert slowest(signs * np.abs(slow)) < 2500  # only the squares are slow


def test_thinning_keeps_whole_blocks_of_one_chain():
    kept = thinned(1000, 4, 1000.0)
    assert len(kept) % BLOCK == 0
    assert (np.ptp(kept.reshape(-1, BLOCK) // 1000, axis=1) == 0).all()
    assert np.diff(kept.reshape(4, -1), axis=1).min() >= 8
    assert len(thinned(1000, 4, 0.0)) == 0
    assert len(thinned(1000, 4, 4000.0, most=200)) <= 200


def test_few_draws_are_whitened_by_their_scales(rng):
    z = 3 + rng.normal(size=(12, 4)) * [1.0, 10.0, 0.1, 5.0]
    x = Whitening.of(z).positions(z)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=0), 1)


def test_whitening_makes_covariances_one(rng):
    z = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + 2
    white = Whitening.of(z)
    np.testing.assert_allclose(np.cov(white.positions(z).T), np.eye(3), atol=1e-6)
    precision = np.linalg.inv(np.cov(z.T))
    score = -(z - z.mean(axis=0)) @ precision
    np.testing.assert_allclose(white.scores(score), -white.positions(z), atol=1e-6)


def test_tests_take_many_dimensions_with_few_draws(rng):
    """No square of the dimension is held: this would be 7 GB."""
    dim = 30_000
    x, y = rng.normal(size=(2, 64, dim))
    z = 3 * x + 1
    white = Whitening.of(z)
    positions, scores = white.positions(z), white.scores(-x / 3)
    np.testing.assert_allclose(positions.std(axis=0), 1, atol=1e-6)
    block = np.arange(64) // BLOCK
    assert stein_test(positions, scores, block, LEVEL, rng).p_value > 0
    assert transport_test(positions, y, BLOCK, LEVEL, rng).p_value > 0
    lines = directions(500, 64, rng)
    assert lines.shape == (64, 500)
    np.testing.assert_allclose(lines @ lines.T, np.eye(64), atol=1e-12)
