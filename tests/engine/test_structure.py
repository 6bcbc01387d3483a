"""Structure found in models: composite parts, Gaussian priors, dependence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from scipy import optimize

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine import proximal, tracing
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


LASSO = {"x": np.ones((4, 2)), "y": np.arange(4.0)}


def test_composite_split_adds_up():
    density = qx.compile(lasso, LASSO)
    composite = density.structure.composite
    assert {(term.site, term.kind) for term in composite.terms} == {
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
    x = density.native.unconstrain(values)
    split = composite.split(x)
    by_numpyro = jax.grad(dist.AsymmetricLaplace(0.0, 1.0, 2.0).log_prob)
    left, right = by_numpyro(-0.5), -by_numpyro(0.5)
    np.testing.assert_allclose(split.kinks.left, [0, 1 / 0.7, 1 / 0.7, left, 0, 0, 0, 0])
    np.testing.assert_allclose(split.kinks.right, [0, 1 / 0.7, 1 / 0.7, right, 0, 0, 0, 0])
    np.testing.assert_allclose(split.kinks.location[1:3], 0.2)
    np.testing.assert_allclose(split.kinks.value(x), (0.3 + 1.2) / 0.7 + 0.4 * left)
    np.testing.assert_allclose(split.log_density, density.native.log_density(x))
    np.testing.assert_allclose(-split.smooth - split.kinks.value(x), split.log_density)
    lower, upper = composite.bounds()
    np.testing.assert_array_equal(lower, [0.0, *[-np.inf] * 6, -1.0])
    np.testing.assert_array_equal(upper, [*[np.inf] * 7, 2.0])
    outside = composite.split(x.at[7].set(2.5))
    assert outside.log_density == -jnp.inf
    assert jnp.isfinite(outside.smooth)
    assert qx.compile(eight_schools, SCHOOLS).structure.composite.terms[0].site == "tau"


def test_the_smooth_part_has_no_kink():
    """Second differences across the kinks of `beta` and `skew` are of the size of h^2."""
    composite = qx.compile(lasso, LASSO).structure.composite
    smooth = jax.jit(lambda x: composite.split(x).smooth)
    whole = jax.jit(lambda x: composite.split(x).log_density)
    x, h = jnp.array([0.7, 0.2, 0.2, 0.0, 0.2, 0.3, 0.5, 1.1]), 1e-4
    for index in (1, 3):
        second = [
            float(f(x.at[index].add(h)) + f(x.at[index].add(-h)) - 2 * f(x))
            for f in (smooth, whole)
        ]
        assert abs(second[0]) < 100 * h**2
        assert abs(second[1]) > 0.5 * h


def test_native_density_has_supports_and_no_jacobian():
    density = qx.compile(lasso, LASSO)
    native = density.native
    assert native.native.program is native.program
    assert native.unconstrained.program is density.program
    assert (density.dim, native.dim) == (7, 8)
    z = density.initial(jax.random.key(1))
    values = density.latent(density.constrain(z))
    x = native.unconstrain(values)
    for name, value in native.latent(native.constrain(x)).items():
        np.testing.assert_array_equal(value, values[name])
    np.testing.assert_allclose(native.latent(native.constrain(native.initial(jax.random.key(1))))
                               ["tau"], values["tau"])  # fmt: skip
    np.testing.assert_allclose(native.log_likelihood(x), density.log_likelihood(z))
    jacobian = density.program.substitution(z, {})
    tracing.at_point(density.program.model, density.data, jacobian)
    total = sum(jnp.sum(term) for term in jacobian.log_jacobians)
    np.testing.assert_allclose(native.log_prior(x) + total, density.log_prior(z))
    assert native.log_density(x.at[7].set(-1.1)) == -jnp.inf
    assert not jnp.isfinite(native.log_density(x.at[0].set(-0.1)))


def test_bounds_that_variables_move_stay_unconstrained():
    def model(width):
        top = qx.sample("top", dist.Gamma(2.0, 1.0))
        qx.sample("moved", dist.Uniform(0.0, top))
        qx.sample("given", dist.Uniform(0.0, width))

    density = qx.compile(model, {"width": np.array(3.0)}).native
    native = {site.name: site.is_native for site in density.program.latents}
    assert native == {"top": True, "moved": False, "given": True}
    np.testing.assert_array_equal(density.structure.composite.bounds()[1], [np.inf, np.inf, 3.0])
    assert [term.site for term in density.structure.composite.terms] == ["top", "given"]


def test_truncation_scaling_and_plates_keep_the_kink():
    def model():
        cut = dist.LeftTruncatedDistribution(dist.Laplace(1.0, 0.5), 0.0)
        qx.sample("cut", cut)
        with handlers.scale(scale=3.0), qx.plate("unit", 2):
            qx.sample("scaled", dist.Laplace(0.0, jnp.array([1.0, 2.0])))
        with handlers.mask(mask=jnp.array(True)):
            qx.sample("masked", dist.Laplace(0.0, 1.0))

    composite = qx.compile(model).structure.composite
    kinds = [(term.site, term.kind) for term in composite.terms]
    assert kinds == [("cut", "l1"), ("cut", "half-line"), ("scaled", "l1")]
    split = composite.split(jnp.array([2.0, 1.0, -1.0, 0.3]))
    np.testing.assert_allclose(split.kinks.left, [2.0, 3.0, 1.5, 0.0])
    np.testing.assert_allclose(split.kinks.location, [1.0, 0.0, 0.0, 0.0])


def test_group_laplace_is_a_law_and_a_term():
    law = dist.GroupLaplace(jnp.array([1.0, -1.0]), 0.7)
    draws = np.asarray(law.sample(jax.random.key(0), (40_000,)))
    error = np.sqrt(np.asarray(law.variance) / 40_000)
    assert np.all(np.abs(draws.mean(0) - [1.0, -1.0]) < 4.5 * error)
    np.testing.assert_allclose(draws.var(0), law.variance, rtol=0.05)
    side = jnp.linspace(-12, 12, 601)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1)
    total = (
        np.exp(law.log_prob(grid + jnp.array([[[1.0, -1.0]]]))).sum()
        * float(side[1] - side[0]) ** 2
    )
    assert total == pytest.approx(1.0, abs=1e-3)
    line = dist.GroupLaplace(jnp.array([0.3]), 0.7).log_prob(jnp.array([-1.1]))
    np.testing.assert_allclose(line, dist.Laplace(0.3, 0.7).log_prob(-1.1))
    with pytest.raises(ValueError, match="must be a vector"):
        dist.GroupLaplace(0.0, 1.0)

    def model():
        tau = qx.sample("tau", dist.HalfNormal(1.0))
        with qx.plate("group", 2):
            qx.sample("beta", dist.GroupLaplace(jnp.zeros(3), tau))

    density = qx.compile(model)
    composite = density.structure.composite
    assert ("beta", "group l2") in [(term.site, term.kind) for term in composite.terms]
    x = jnp.array([0.5, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    split = composite.split(x)
    group = split.groups["beta"]
    np.testing.assert_allclose(group.weight, 2.0)
    value = x[1:].reshape(2, 3)
    np.testing.assert_allclose(group.value(value), 10.0)
    np.testing.assert_allclose(group.prox(value, 0.5)[0], value[0] * (1 - 1 / 5))
    np.testing.assert_allclose(-split.smooth - 10.0, split.log_density)
    assert np.isfinite(jax.grad(lambda x: composite.split(x).smooth)(x)).all()


def soft(v, step):
    return proximal.soft_threshold(v, 0.0, 2.0 * step)


def test_a_factor_with_its_operator_is_a_term():
    def model(prox):
        level = qx.sample("level", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        qx.factor("sparse", -2.0 * jnp.sum(jnp.abs(level)), prox=prox)

    composite = qx.compile(lambda: model({"level": soft})).structure.composite
    assert composite.terms == (("level", "factor", "sparse"),)
    x = jnp.array([1.0, -0.1, 0.4])
    split = composite.split(x, {"sparse": jnp.asarray(0.1)})
    np.testing.assert_allclose(split.moved["sparse"], [0.8, 0.0, 0.2])
    np.testing.assert_allclose(split.smooth, 0.5 * jnp.sum(x**2) + 1.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(split.log_density, -split.smooth - 2.0 * 1.5)
    text = str(qx.explain(lambda: model({"level": soft})))
    assert "Factor 'sparse' is a nonsmooth term of 'level'" in text
    with pytest.raises(qx.ModelError, match="level"):
        qx.explain(lambda: model({"levels": soft})).findings()
    with pytest.raises(qx.ModelError, match="factor 'sparse'"):
        qx.compile(lambda: model({}))


def test_a_factor_of_several_variables_stays_in_the_smooth_part():
    def model():
        weight = qx.sample("weight", dist.HalfNormal(1.0))
        level = qx.sample("level", dist.Normal(0.0, 1.0))
        qx.factor("sparse", -weight * jnp.abs(level), prox={"level": soft})

    assert [term.kind for term in qx.compile(model).structure.composite.terms] == ["half-line"]


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
