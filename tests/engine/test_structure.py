"""Structure found in models: composite parts, Gaussian priors, dependence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine import proximal
from quincunx.engine.dependence import influences
from tests.scenarios import SCHOOLS, eight_schools


def brute_force(term, v, step):
    """argmin_x term(x) + (x - v)^2 / (2 step) on a fine grid."""
    grid = np.linspace(-6, 6, 240_001)
    return grid[np.argmin(term(grid) + (grid - v) ** 2 / (2 * step))]


@pytest.mark.parametrize("v", [-3.0, -0.7, 0.1, 0.55, 2.5])
def test_proximal_operators_against_brute_force(v):
    step, loc, scale = 0.8, 0.3, 0.5
    found = proximal.soft_threshold(jnp.array(v), loc, step / scale)
    expected = brute_force(lambda x: np.abs(x - loc) / scale, v, step)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    found = proximal.asymmetric_soft_threshold(jnp.array(v), loc, step * 0.4, step * 1.5)
    sides = lambda x: np.where(x > loc, 1.5 * (x - loc), 0.4 * (loc - x))  # noqa: E731
    np.testing.assert_allclose(found, brute_force(sides, v, step), atol=1e-4)
    box = lambda x: np.where((x >= -0.5) & (x <= 1.0), 0.0, np.inf)  # noqa: E731
    found = proximal.project_box(jnp.array(v), -0.5, 1.0)
    np.testing.assert_allclose(found, brute_force(box, v, step), atol=1e-4)


def test_simplex_projection_is_the_nearest_point(rng):
    for v in rng.normal(size=(5, 4)) * 2:
        found = np.asarray(proximal.project_simplex(jnp.asarray(v)))
        best = optimize.minimize(
            lambda x, v=v: np.sum((x - v) ** 2),
            np.full(4, 0.25),
            bounds=[(0, None)] * 4,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(found, best.x, atol=1e-4)
    batch = proximal.project_simplex(jnp.asarray(rng.normal(size=(3, 2, 5))))
    np.testing.assert_allclose(batch.sum(-1), 1.0)


def lasso(x, y):
    tau = qx.sample("tau", dist.HalfNormal(1.0))
    beta = qx.sample("beta", dist.Laplace(0.2, tau).expand([2]).to_event(1))
    skew = qx.sample("skew", dist.AsymmetricLaplace(0.0, 1.0, 2.0))
    weight = qx.sample("weight", dist.Dirichlet(jnp.ones(3)))
    share = qx.sample("share", dist.Uniform(-1.0, 2.0))
    qx.sample("y", dist.Normal(x @ beta + skew + weight[0] + share, 1.0), obs=y)


def test_composite_split_adds_up():
    density = qx.compile(lasso, {"x": np.ones((4, 2)), "y": np.arange(4.0)})
    composite = density.structure.composite
    kinds = {(term.site, term.kind) for term in composite.terms}
    assert kinds == {
        ("tau", "half-line"),
        ("beta", "l1"),
        ("skew", "asymmetric l1"),
        ("weight", "simplex"),
        ("share", "box"),
    }
    values = {
        "tau": jnp.array(0.7),
        "beta": jnp.array([0.5, -1.0]),
        "skew": jnp.array(-0.4),
        "weight": jnp.array([0.2, 0.3, 0.5]),
        "share": jnp.array(1.1),
    }
    kinked = (0.3 + 1.2) / 0.7
    parameters = composite.parameters(values)
    kinked += 0.4 * parameters["skew", "asymmetric l1"]["left"]
    np.testing.assert_allclose(composite.nonsmooth(values), kinked)
    total = composite.smooth(values) - composite.nonsmooth(values)
    np.testing.assert_allclose(total, composite.log_density(values))
    by_numpyro = dist.AsymmetricLaplace(0.0, 1.0, 2.0)
    slope = jax.grad(by_numpyro.log_prob)
    p = parameters["skew", "asymmetric l1"]
    np.testing.assert_allclose([slope(-0.5), slope(0.5)], [p["left"], -p["right"]])
    box = next(term for term in composite.terms if term.kind == "box")
    np.testing.assert_allclose(box.prox(jnp.array(5.0), 1.0, parameters["share", "box"]), 2.0)
    assert qx.compile(eight_schools, SCHOOLS).structure.composite.terms[0].site == "tau"


def linear_gaussian(x, y):
    a = qx.sample("a", dist.Normal(1.0, 2.0))
    b = qx.sample("b", dist.Normal(0.5 * a + 1.0, 0.3).expand([2]).to_event(1))
    qx.sample("y", dist.Poisson(jnp.exp(x @ b)), obs=y)


def test_joint_gaussian_prior():
    density = qx.compile(linear_gaussian, {"x": np.ones((3, 2)), "y": np.ones(3)})
    prior = density.structure.gaussian_prior
    np.testing.assert_allclose(prior.mean, [1.0, 1.5, 1.5], atol=1e-12)
    covariance = np.array([[4.0, 2.0, 2.0], [2.0, 1.09, 1.0], [2.0, 1.0, 1.09]])
    np.testing.assert_allclose(prior.cholesky @ prior.cholesky.T, covariance, rtol=1e-9)


@pytest.mark.parametrize(
    "distribution",
    [
        lambda a: dist.Normal(0.0, jnp.exp(a)),
        lambda a: dist.Normal(a**2, 1.0),
        lambda a: dist.StudentT(3.0, a, 1.0),
        lambda a: dist.Laplace(a, 1.0),
        lambda a: dist.HalfNormal(1.0),
    ],
)
def test_priors_that_are_not_jointly_gaussian(distribution):
    def model(y):
        a = qx.sample("a", dist.Normal(0.0, 1.0))
        b = qx.sample("b", distribution(a))
        qx.sample("y", dist.Normal(b, 1.0), obs=y)

    assert qx.compile(model, {"y": 1.0}).structure.gaussian_prior is None


def test_influences_follow_the_data_flow():
    def fn(a, b, c):
        inner = jax.jit(lambda x, y: (x * 2, y + 1))
        first, second = inner(a, b)
        third = jax.lax.cond(c > 0, lambda: b, lambda: b * 2)
        return {"first": first, "second": second, "third": third, "none": jnp.zeros(())}

    one = jax.ShapeDtypeStruct((), float)
    found = influences(fn, one, one, one)
    assert found["first"] == {0}
    assert found["second"] == {1}
    assert found["third"] == {1, 2}
    assert found["none"] == set()


def test_explanation_shows_sites_supports_and_structure():
    text = str(qx.explain(lasso, {"x": np.ones((4, 2)), "y": np.arange(4.0)}))
    for part in ("Laplace", "Positive", "Simplex", "l1", "No data plate", "observed", "y_dim_0"):
        assert part in text
