"""The analytic targets: their draws, moments, evidence and densities must all be of one law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from quincunx import models
from quincunx.engine import compile

N = 20_000
TARGETS = {
    "banana": ("banana", {}),
    "cauchy": ("cauchy", {}),
    "funnel": ("funnel", {}),
    "gaussian_mixture": ("gaussian_mixture", {}),
    "gaussian_mixture-3d": ("gaussian_mixture", {"dim": 3, "modes": 3, "radius": 2.0, "sd": 0.7}),
    "grid_25": ("grid_25", {}),
    "hyperplane_disk": ("hyperplane_disk", {}),
    "hyperplane_disk-3d": ("hyperplane_disk", {"dim": 3}),
    "ill_conditioned_gaussian": ("ill_conditioned_gaussian", {}),
    "many_well": ("many_well", {}),
    "student_t": ("student_t", {}),
    "student_t-12": ("student_t", {"dim": 4, "df": 12.0}),
}


@functools.cache
def target(case):
    """The density, the reference, exact draws by site and flat, all of one target."""
    name, options = TARGETS[case]
    model, data, reference = models.load(name, **options)
    density = compile(model, data)
    values = reference.draws(jax.random.key(sum(map(ord, case))), N)
    return density, reference, values, jax.vmap(density.unconstrain)(values)


def standard_errors(terms, truth):
    """How many Monte Carlo standard errors the columns' means are from the truth."""
    terms = np.asarray(terms, dtype=float).reshape(len(terms), -1)
    error = terms.std(axis=0) / np.sqrt(len(terms))
    return np.abs(terms.mean(axis=0) - np.ravel(truth)) / error


@pytest.mark.parametrize("case", TARGETS)
def test_draws_have_the_shape_of_the_sites(case):
    density, reference, values, z = target(case)
    assert z.shape == (N, density.dim)
    sites = density.constrain(z[0])
    assert {k: v.shape[1:] for k, v in values.items()} == {k: v.shape for k, v in sites.items()}
    again = jax.jit(reference.draws, static_argnums=1)(jax.random.key(3), 5)
    assert {k: v.shape for k, v in again.items()} == {k: (5, *v.shape) for k, v in sites.items()}


@pytest.mark.parametrize("case", TARGETS)
def test_draws_have_the_stated_moments(case):
    _, reference, values, _ = target(case)
    for site, mean in reference.mean.items():
        draws = np.asarray(values[site], dtype=float)
        assert standard_errors(draws, mean).max() < 5
        if case == "funnel" and site == "x":
            continue  # a variance that rests on a few draws: see the test of the funnel below
        sd = reference.sd[site]
        assert standard_errors((draws - mean) ** 2, sd**2).max() < 5


@pytest.mark.parametrize("case", TARGETS)
def test_score_identities_tie_the_draws_to_the_density(case):
    """E[d/dx_i log p] = 0 and E[x_i d/dx_i log p] = -1, for every coordinate."""
    density, _, _, z = target(case)
    score = jax.vmap(jax.grad(density.log_density))(z)
    assert standard_errors(score, np.zeros(density.dim)).max() < 5
    assert standard_errors(z * score, -np.ones(density.dim)).max() < 5


def test_a_wrong_draw_would_be_seen():
    density, _, _, z = target("hyperplane_disk-3d")
    score = jax.vmap(jax.grad(density.log_density))(1.05 * z)
    assert standard_errors(1.05 * z * score, -np.ones(density.dim)).max() > 5


def box(*half_widths):
    """The identity chart on a box: from (-1, 1)^2 to positions, and the log Jacobian."""
    widths = jnp.asarray(half_widths)
    return lambda t: (widths * t, jnp.log(widths).sum())


def funnel_chart(t):
    v, w = 24.0 * t[0], 8.0 * t[1]
    return jnp.stack([v, w * jnp.exp(0.5 * v)]), jnp.log(24.0 * 8.0) + 0.5 * v


def banana_chart(t):
    x, w = 80.0 * t[0], 8.0 * t[1]
    return jnp.stack([x, w + 0.03 * (x**2 - 100.0)]), jnp.log(80.0 * 8.0)


PLANE = {
    "banana": ({}, banana_chart),
    "funnel": ({"dim": 2}, funnel_chart),
    "gaussian_mixture": ({}, box(14.0, 14.0)),
    "grid_25": ({}, box(14.0, 14.0)),
    "hyperplane_disk": ({"dim": 2}, box(6.0, 6.0)),
    "ill_conditioned_gaussian": ({"dim": 2, "condition": 10.0}, box(25.0, 25.0)),
    "many_well": ({"dim": 2}, box(4.0, 8.0)),
}


@pytest.mark.parametrize("name", PLANE)
def test_quadrature_in_the_plane_gives_evidence_and_moments(name):
    """Integrates the density as coded: evidence, mean and variance by the trapezoidal rule."""
    options, chart = PLANE[name]
    model, data, reference = models.load(name, **options)
    density = compile(model, data)
    line = jnp.linspace(-1.0, 1.0, 801)
    nodes = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)

    @jax.jit
    def at_nodes(nodes):
        z, jacobian = jax.vmap(chart)(nodes)
        return z, jax.vmap(density.log_density)(z) + jacobian

    z, log_mass = (np.asarray(a, dtype=float) for a in at_nodes(nodes))
    spacing = float(line[1] - line[0])
    evidence = special.logsumexp(log_mass) + 2 * np.log(spacing)
    assert evidence == pytest.approx(reference.log_evidence, abs=1e-3)

    weights = np.exp(log_mass - special.logsumexp(log_mass))
    mean = weights @ z
    sd = np.sqrt(weights @ (z - mean) ** 2)
    flat = lambda values: np.asarray(density.unconstrain(values), dtype=float)  # noqa: E731
    np.testing.assert_allclose(mean, flat(reference.mean), atol=2e-3 * sd.max())
    np.testing.assert_allclose(sd, flat(reference.sd), rtol=2e-3)


@pytest.mark.parametrize("name", ["cauchy", "student_t"])
def test_radial_quadrature_gives_the_evidence(name):
    model, data, reference = models.load(name)
    density = compile(model, data)
    dim = density.dim
    log_sphere = np.log(2) + 0.5 * dim * np.log(np.pi) - special.gammaln(0.5 * dim)
    log_radius = np.linspace(-10.0, 25.0, 4001)
    points = jnp.exp(log_radius)[:, None] * jnp.eye(1, dim)
    log_density = np.asarray(jax.vmap(density.log_density)(points), dtype=float)
    integrand = np.exp(log_sphere + dim * log_radius + log_density)
    evidence = np.log(integrate.trapezoid(integrand, log_radius))
    assert evidence == pytest.approx(reference.log_evidence, abs=1e-3)


@pytest.mark.parametrize(("case", "df"), [("cauchy", 1), ("student_t", 5), ("student_t-12", 12)])
def test_radius_of_a_heavy_tailed_draw_has_the_f_law(case, df):
    density, _, _, z = target(case)
    ratio = np.sum(np.asarray(z, dtype=float) ** 2, axis=1) / density.dim
    assert stats.kstest(ratio, stats.f(density.dim, df).cdf).pvalue > 1e-4


def test_cauchy_states_no_moments():
    reference = models.load("cauchy").reference
    assert not reference.mean
    assert not reference.sd
    assert models.load("student_t", df=1.5).reference.mean
    assert not models.load("student_t", df=1.5).reference.sd


def test_funnel_draws_are_standard_normal_after_rescaling():
    _, reference, values, _ = target("funnel")
    v, x = (np.asarray(values[site], dtype=float) for site in ("v", "x"))
    assert stats.kstest(v / 3.0, stats.norm.cdf).pvalue > 1e-4
    assert stats.kstest((x / np.exp(0.5 * v)[:, None]).ravel(), stats.norm.cdf).pvalue > 1e-4
    np.testing.assert_allclose(reference.sd["x"], np.exp(2.25))


@pytest.mark.parametrize("case", ["hyperplane_disk", "ill_conditioned_gaussian"])
def test_gaussian_densities_agree_with_scipy(case):
    density, reference, _, z = target(case)
    if case == "hyperplane_disk":
        covariance = 0.5 * (np.eye(density.dim) - 1.0 / (1.0 + density.dim))
    else:
        whitener = np.asarray(models.load(case).data["whitener"])
        covariance = np.linalg.inv(whitener @ whitener.T)
        assert np.linalg.cond(covariance) == pytest.approx(1e3)
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), reference.sd["x"])
    points = np.asarray(z[:20], dtype=float)
    expected = stats.multivariate_normal(cov=covariance).logpdf(points) + reference.log_evidence
    np.testing.assert_allclose(jax.vmap(density.log_density)(z[:20]), expected, rtol=1e-4)


def test_many_well_is_the_published_one():
    density, reference, _, z = target("many_well")
    assert reference.log_evidence == pytest.approx(164.695675, abs=1e-5)
    share = np.asarray(z[:, 0::2] > 0)
    assert standard_errors(share, np.full(16, 0.8443)).max() < 5
    pair = models.load("many_well", dim=2)
    by_pairs = jax.vmap(compile(pair.model, pair.data).log_density)(z[0].reshape(16, 2))
    assert float(density.log_density(z[0])) == pytest.approx(float(by_pairs.sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("funnel", {"dim": 1}),
        ("banana", {"scale": 0.0}),
        ("student_t", {"df": 0.0}),
        ("many_well", {"dim": 3}),
        ("hyperplane_disk", {"dim": 0}),
        ("gaussian_mixture", {"modes": 0}),
        ("ill_conditioned_gaussian", {"condition": 0.5}),
    ],
)
def test_senseless_options_are_refused(name, options):
    with pytest.raises(ValueError, match="need "):
        models.load(name, **options)
