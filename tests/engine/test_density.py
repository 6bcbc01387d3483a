"""The compiled density against NumPyro's own and against arithmetic."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import potential_energy
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine import tracing
from tests.scenarios import SCHOOLS, conjugate, eight_schools, logistic, logistic_data


def supports(y):
    """One site for each kind of support."""
    a = qx.sample("positive", dist.Gamma(2.0, 1.0))
    b = qx.sample("interval", dist.Uniform(-1.0, 3.0))
    c = qx.sample("simplex", dist.Dirichlet(jnp.ones(3)))
    d = qx.sample("chol", dist.LKJCholesky(3, 2.0))
    e = qx.sample("nested", dist.Uniform(jnp.zeros(()), a))
    f = qx.sample("half", dist.TruncatedNormal(0.0, 1.0, low=0.5))
    with qx.plate("i", 2):
        g = qx.sample("batched", dist.HalfNormal(1.0))
    h = qx.sample("ordered", dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,)))
    total = a + b + c.sum() + d.sum() + e + f + g.sum() + (h**2).sum()
    qx.sample("y", dist.Normal(total, 1.0), obs=y)


def scanned(y):
    """A state-space model in NumPyro's own scan."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))

    def transition(x, y):
        x = numpyro.sample("x", dist.Normal(x, tau))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(transition, jnp.zeros(()), y)


def reparametrised(y):
    with numpyro.handlers.reparam(config={"a": numpyro.infer.reparam.LocScaleReparam(0)}):
        a = numpyro.sample("a", dist.Normal(3.0, 2.0))
    with numpyro.handlers.scale(scale=2.5), numpyro.handlers.mask(mask=np.array([True, False])):
        numpyro.sample("y", dist.Normal(a, 1.0).expand([2]), obs=y)


CASES = {
    "eight_schools": (eight_schools, SCHOOLS),
    "logistic": (logistic, logistic_data(np.random.default_rng(0))),
    "supports": (supports, {"y": 1.0}),
    "scanned": (scanned, {"y": np.array([0.1, -0.2, 0.3])}),
    "reparametrised": (reparametrised, {"y": np.array([0.5, 1.5])}),
}


@pytest.mark.parametrize("name", CASES)
def test_log_density_is_numpyros(name, rng):
    model, data = CASES[name]
    density = qx.compile(model, data)
    ours = eqx.filter_jit(density.log_density)

    @jax.jit
    def theirs(z):
        return -potential_energy(model, (), density.data, density.program.split(z))

    for _ in range(3):
        z = jnp.asarray(rng.uniform(-1.5, 1.5, density.dim))
        np.testing.assert_allclose(ours(z), theirs(z), rtol=1e-9)
        np.testing.assert_allclose(
            jax.jit(jax.grad(lambda z: density.log_density(z)))(z),
            jax.grad(theirs)(z),
            rtol=1e-7,
            atol=1e-9,
        )


@pytest.mark.parametrize("name", CASES)
def test_unconstrain_inverts_constrain(name, rng):
    model, data = CASES[name]
    density = qx.compile(model, data)
    z = jnp.asarray(rng.uniform(-1.5, 1.5, density.dim))
    values = density.latent(density.constrain(z))
    np.testing.assert_allclose(density.unconstrain(values), z, rtol=1e-6, atol=1e-8)


def test_jacobians_are_those_of_the_transforms(rng):
    def model():
        top = qx.sample("top", dist.Gamma(2.0, 1.0))
        qx.sample("share", dist.Beta(2.0, 3.0))
        qx.sample("nested", dist.Uniform(-top, top))
        qx.sample("cut", dist.TruncatedNormal(0.0, 1.0, high=0.5))
        qx.sample("ordered", dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,)))
        with qx.plate("i", 2):
            qx.sample("batched", dist.LogNormal(0.0, 1.0))

    density = qx.compile(model)

    def flat(z):
        return jnp.concatenate([jnp.ravel(value) for value in density.constrain(z).values()])

    for _ in range(3):
        z = jnp.asarray(rng.uniform(-1.5, 1.5, density.dim))
        given = tracing.given(density.constrain(z))
        trace = tracing.at_point(density.program.model, {}, given)
        native = sum(tracing.scaled_sum(s) for s in trace.values() if s["type"] == "sample")
        log_jacobian = jnp.linalg.slogdet(jax.jacobian(flat)(z))[1]
        np.testing.assert_allclose(density.log_density(z), native + log_jacobian, rtol=1e-9)


def test_log_density_is_prior_plus_likelihood(rng):
    density = qx.compile(*CASES["logistic"])
    z = jnp.asarray(rng.normal(size=3))
    data = CASES["logistic"][1]
    logits = data["X"] @ np.asarray(z)
    likelihood = np.sum(data["y"] * logits - np.logaddexp(0, logits))
    np.testing.assert_allclose(density.log_likelihood(z), likelihood)
    np.testing.assert_allclose(density.log_prior(z), stats.norm.logpdf(z).sum())
    np.testing.assert_allclose(density.log_density(z), stats.norm.logpdf(z).sum() + likelihood)
    for beta in (0.0, 0.3, 1.0):
        tempered = density.tempered(beta).log_density(z)
        np.testing.assert_allclose(tempered, density.log_prior(z) + beta * likelihood)


def numpyro_minibatch(X, y):
    """NumPyro's own subsampling idiom, plate and `subsample`."""
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("row", X.shape[0], subsample_size=2):
        x, t = numpyro.subsample(X, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


def local_latents(y):
    """A latent variable in the data plate."""
    mu = qx.sample("mu", dist.Normal(0, 1))
    with qx.plate("row", y) as t:
        tau = qx.sample("tau", dist.HalfNormal(1.0))
        qx.sample("y", dist.Normal(mu, tau), obs=t)


MINIBATCH = {
    "quincunx": (logistic, logistic_data(np.random.default_rng(1), rows=6)),
    "numpyro": (numpyro_minibatch, logistic_data(np.random.default_rng(1), rows=6)),
    "local latents": (local_latents, {"y": np.linspace(-1, 2, 6)}),
}


@pytest.mark.parametrize("name", MINIBATCH)
def test_average_over_all_minibatches_is_the_full_likelihood(name, rng):
    model, data = MINIBATCH[name]
    density = qx.compile(model, data)
    z = jnp.asarray(rng.normal(size=density.dim))
    batches = jnp.asarray(list(itertools.combinations(range(6), 2)))
    estimates = jax.vmap(lambda rows: density.log_likelihood(z, rows))(batches)
    full = density.log_likelihood(z)
    np.testing.assert_allclose(jnp.mean(estimates), full)
    assert jnp.std(estimates) > 0.01
    pointwise = density.pointwise_log_likelihood(z)["y"]
    assert pointwise.shape == (6,)
    np.testing.assert_allclose(pointwise.sum(), full)
    by_hand = 3.0 * (pointwise[1] + pointwise[4])
    np.testing.assert_allclose(density.log_likelihood(z, jnp.array([1, 4])), by_hand)


def test_all_rows_in_any_order_and_repeated_rows():
    density = qx.compile(*MINIBATCH["quincunx"])
    z = jnp.array([0.1, -0.4, 0.7])
    pointwise = density.pointwise_log_likelihood(z)["y"]
    full = density.log_likelihood(z, jnp.array([5, 3, 1, 0, 2, 4]))
    np.testing.assert_allclose(full, pointwise.sum())
    repeated = density.log_likelihood(z, jnp.array([5, 5, 5, 5, 5, 5]))
    np.testing.assert_allclose(repeated, 6 * pointwise[5])


def test_terms_outside_the_data_plate_are_never_scaled():
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.factor("penalty", -jnp.abs(mu))
        qx.sample("anchor", dist.Normal(mu, 1.0), obs=2.0)
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu, 1.0), obs=t)

    y = np.arange(4.0)
    density = qx.compile(model, {"y": y})
    z = jnp.array([0.3])
    np.testing.assert_allclose(density.log_prior(z), stats.norm.logpdf(0.3) - 0.3)
    half = density.log_likelihood(z, jnp.array([0, 2]))
    expected = stats.norm.logpdf(2.0, 0.3) + 2 * stats.norm.logpdf(y[[0, 2]], 0.3).sum()
    np.testing.assert_allclose(half, expected)


def test_rows_that_do_not_fit_are_refused():
    density = qx.compile(*MINIBATCH["quincunx"])
    z = jnp.zeros(3)
    with pytest.raises(qx.ModelError, match="7 rows were asked of plate 'row', which has 6"):
        density.log_likelihood(z, jnp.arange(7))
    with pytest.raises(qx.ModelError, match="vector of integers"):
        density.log_likelihood(z, jnp.zeros(2))
    with pytest.raises(qx.ModelError, match="Unknown data plate 'rwo'"):
        density.log_likelihood(z, {"rwo": jnp.arange(2)})


def test_observation_beyond_a_support_that_the_model_computes():
    def model(y):
        top = qx.sample("top", dist.Gamma(2.0, 1.0))
        qx.sample("y", dist.Uniform(0.0, top).expand([2]), obs=y)

    density = qx.compile(model, {"y": np.array([0.5, 2.0])})
    at = lambda top: density.log_likelihood(jnp.log(jnp.array([top])))  # noqa: E731
    assert at(1.5) == -jnp.inf
    np.testing.assert_allclose(at(2.5), -2 * np.log(2.5))


def test_new_data_of_the_same_shapes_trace_the_model_no_more():
    runs = []

    @qx.model
    def counted(y):
        runs.append(1)
        mu = qx.sample("mu", dist.Normal(0, 1))
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu, 1), obs=t)

    value = jax.jit(lambda density, z: density.log_density(z))
    first = value(qx.compile(counted, {"y": np.zeros(5)}), jnp.zeros(1))
    traced = len(runs)
    second = value(qx.compile(counted, {"y": np.ones(5)}), jnp.zeros(1))
    assert len(runs) == traced
    assert first != second
    value(qx.compile(counted, {"y": np.ones(6)}), jnp.zeros(1))
    assert len(runs) > traced


def test_compiling_computes_no_array():
    with jax.log_compiles(False), jax.disable_jit(False):
        before = jax.live_arrays()
        density = qx.compile(logistic, logistic_data(np.random.default_rng(3), rows=7))
        explanation = str(qx.explain(logistic, density.data))
    assert len(jax.live_arrays()) == len(before)
    assert "data plate 'row' of size 7 over X, y" in explanation
    assert "jointly Gaussian" in explanation


def test_nested_data_scalars_and_strings_are_constants():
    def model(group, n, kind):
        assert isinstance(n, int)
        assert kind == "normal"
        mu = qx.sample("mu", dist.Normal(jnp.zeros(n), 1.0).to_event(1))
        qx.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=group["y"])

    density = qx.compile(model, {"group": {"y": [1.0, 2.0]}, "n": np.int64(2), "kind": "normal"})
    assert density.dim == 2
    assert density.program.signature.array_names == ("group.y",)


def test_a_callable_that_cannot_be_hashed_is_a_model():
    class Linear(eqx.Module):
        slope: np.ndarray

        def __call__(self, y):
            mu = qx.sample("mu", dist.Normal(0, 1))
            qx.sample("y", dist.Normal(mu * self.slope, 1), obs=y)

    density = qx.compile(Linear(np.array([2.0, 3.0])), {"y": np.zeros(2)})
    likelihood = density.log_likelihood(jnp.array([0.5]))
    np.testing.assert_allclose(likelihood, stats.norm.logpdf([1.0, 1.5]).sum())


def test_dims_come_from_plates_and_names():
    density = qx.compile(logistic, logistic_data(np.random.default_rng(0)))
    assert density.labels.dims == {"beta": ["feature"], "y": ["row"]}
    assert qx.compile(eight_schools, SCHOOLS).labels.dims["theta"] == ["school"]

    def model():
        qx.sample("a", dist.Normal(0, 1).expand([3]), dims=["x", "y"])

    with pytest.raises(qx.ModelError, match="names 2 event dims"):
        qx.compile(model)


def test_none_arrays_stay_none_in_a_data_plate():
    density = qx.compile(logistic, {"X": np.zeros((4, 2)), "y": None})
    assert [site.role for site in density.program.sites] == ["latent", "latent"]
    with pytest.raises(qx.ModelError, match="leading lengths"):
        qx.compile(logistic, {"X": np.zeros((4, 2)), "y": np.zeros(5)})


def test_simulate_draws_from_the_prior_predictive():
    density = qx.compile(conjugate, {"y": np.zeros(3)})
    draws = jax.vmap(density.simulate)(jax.random.split(jax.random.key(0), 20_000))
    assert draws["y"].shape == (20_000, 3)
    sd = np.sqrt(2.0**2 + 1.5**2)
    assert abs(draws["y"][:, 0].mean() - 1.0) < 4.5 * sd / np.sqrt(20_000)
    correlation = np.corrcoef(draws["y"][:, 0], draws["y"][:, 1])[0, 1]
    assert abs(correlation - 2.0**2 / sd**2) < 0.03
    flat = qx.from_log_density(lambda x: -(x**2).sum(), np.zeros(2))
    with pytest.raises(qx.ModelError, match="improper"):
        qx.compile(flat).simulate(jax.random.key(0))


def test_bare_log_density_with_supports():
    def log_density(values, shift):
        return -jnp.sum((values["a"] - shift) ** 2) - values["b"]["c"]

    example = {"a": np.zeros(2), "b": {"c": 1.0}}
    supports = {"b": {"c": dist.constraints.positive}}
    bare = qx.from_log_density(log_density, example, supports)
    density = qx.compile(bare, {"shift": 1.5})
    assert [site.name for site in density.program.latents] == ["a", "b_c"]
    z = jnp.array([0.2, -0.3, 0.4])
    expected = -((0.2 - 1.5) ** 2) - (0.3 + 1.5) ** 2 - np.exp(0.4) + 0.4
    np.testing.assert_allclose(density.log_density(z), expected)
    assert qx.compile(qx.from_log_density(jnp.sum, np.zeros(3))).labels.dims == {"x": ["x_dim_0"]}
    with pytest.raises(qx.ModelError, match="Unknown variable 'd'"):
        qx.from_log_density(log_density, example, {"d": dist.constraints.positive})


def test_scan_with_a_plate_inside_the_step():
    def model(y):
        def step(carry, t):
            with numpyro.plate("p", 3):
                scale = numpyro.sample("scale", dist.HalfNormal(1.0))
                numpyro.sample("y", dist.Normal(0.0, scale), obs=t)
            return carry, None

        scan(step, jnp.zeros(()), y)

    for length in (2, 3, 4):
        y = np.linspace(-1, 1, 3 * length).reshape(length, 3)
        density = qx.compile(model, {"y": y})
        z = jnp.linspace(-0.5, 0.5, density.dim)
        scale = np.exp(np.asarray(z)).reshape(length, 3)
        expected = stats.halfnorm.logpdf(scale) + np.asarray(z).reshape(length, 3)
        expected = expected + stats.norm.logpdf(y, 0.0, scale)
        np.testing.assert_allclose(density.log_density(z), expected.sum())


def test_a_changed_global_or_closure_is_seen():
    def build(scale):
        def model(y):
            a = qx.sample("a", dist.Normal(0, scale["sd"]))
            qx.sample("y", dist.Normal(a, 1), obs=y)

        return model

    settings = {"sd": 1.0}
    model, z = build(settings), jnp.array([0.5])
    first = qx.compile(model, {"y": 1.0}).log_prior(z)
    settings["sd"] = 3.0
    second = qx.compile(model, {"y": 1.0})
    np.testing.assert_allclose(first, stats.norm.logpdf(0.5, 0, 1))
    np.testing.assert_allclose(second.log_prior(z), stats.norm.logpdf(0.5, 0, 3))
    assert qx.compile(model, {"y": 1.0}).program is second.program


def test_dims_of_deterministic_values():
    def model(items):
        with qx.plate("item", items):
            a = qx.sample("a", dist.Dirichlet(jnp.ones(3)), dims=["category"])
            qx.deterministic("log_a", jnp.log(a))

    with jax.numpy_rank_promotion("allow"):
        four = qx.compile(model, {"items": 4}).labels.dims
        ambiguous = qx.compile(model, {"items": 3}).labels.dims
    assert four["a"] == ["item", "category"]
    assert four["log_a"] == ["item", "log_a_dim_1"]
    assert ambiguous["log_a"] == ["log_a_dim_0", "log_a_dim_1"]


def test_subsampled_numpyro_plate_by_index():
    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("N", 6, subsample_size=2) as rows:
            numpyro.sample("y", dist.Normal(mu, 1), obs=x[rows])

    density = qx.compile(model, {"x": np.arange(6.0)})
    assert [plate.name for plate in density.structure.data_plates] == ["N"]
    z = jnp.array([0.2])
    by_hand = 3 * stats.norm.logpdf([1.0, 4.0], 0.2).sum()
    np.testing.assert_allclose(density.log_likelihood(z, jnp.array([1, 4])), by_hand)
    whole = stats.norm.logpdf(np.arange(6.0), 0.2).sum()
    np.testing.assert_allclose(density.log_likelihood(z), whole)


def test_rows_beyond_the_plate_are_refused():
    density = qx.compile(*MINIBATCH["quincunx"])
    z = jnp.zeros(3)
    with pytest.raises(qx.ModelError, match=r"must lie in 0 \.\.\. 5"):
        density.log_likelihood(z, jnp.array([7]))
    with pytest.raises(qx.ModelError, match="one index or more"):
        density.log_likelihood(z, jnp.zeros(0, int))
    from_list = density.log_likelihood(z, [0, 3])
    np.testing.assert_allclose(from_list, density.log_likelihood(z, jnp.array([0, 3])))


def test_elements_without_a_choice_are_known(rng):
    """Against values at several positions."""
    improper = dist.ImproperUniform
    laws = {
        "cholesky": (dist.LKJCholesky(3, 2.0), 5),
        "correlation": (dist.LKJ(3, 2.0), 6),
        "several": (improper(dist.constraints.lower_cholesky, (2,), (3, 3)), 12),
        "softplus": (improper(dist.constraints.softplus_lower_cholesky, (), (3, 3)), 6),
        "scaled": (improper(dist.constraints.scaled_unit_lower_cholesky, (), (3, 3)), 6),
        "covariance": (dist.Wishart(4.0, jnp.eye(3)), 9),
        "simplex": (dist.Dirichlet(jnp.ones(3)), 3),
        "whole": (dist.Dirichlet(jnp.ones(1)), 0),
        "one": (improper(dist.constraints.corr_cholesky, (), (1, 1)), 0),
        "zero_sum": (dist.ZeroSumNormal(1.0, (3,)), 3),
        "real": (dist.Normal(0.0, 1.0), 1),
    }

    def model():
        for name, (law, _) in laws.items():
            qx.sample(name, law)

    density = qx.compile(model)
    values = jax.jit(jax.vmap(density.constrain))(rng.normal(size=(5, density.dim)))
    for site in density.program.latents:
        held = np.ptp(np.asarray(values[site.name]), axis=0) < 1e-9
        np.testing.assert_array_equal(site.constant, held, err_msg=site.name)
        assert np.sum(~site.constant) == laws[site.name][1]
