"""What users are told of a bad model: the site or argument, the source line and the fix."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine.preflight import preflight
from tests.scenarios import SCHOOLS, eight_schools


def refusal(model, data=None):
    with pytest.raises(qx.ModelError) as caught:
        preflight(qx.compile(model, data))
    return str(caught.value)


def check(message, *parts):
    for part in parts:
        assert part in message, message


def test_duplicate_site_shows_both_lines():
    def model():
        qx.sample("a", dist.Normal(0, 1))
        qx.sample("a", dist.Normal(0, 2))

    message = refusal(model)
    check(message, "two sites named 'a'", "dist.Normal(0, 1)", "dist.Normal(0, 2)", "own name")


def test_plate_size_against_observation():
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        with qx.plate("i", 19):
            qx.sample("y", dist.Normal(mu, 1), obs=y)

    message = refusal(model, {"y": np.zeros(20)})
    check(message, "site 'y'", "test_preflight.py", 'qx.sample("y"', "19", "(20,)", "Reshape")


def test_plate_size_against_distribution():
    def model(x, y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        with qx.plate("i", 19):
            qx.sample("y", dist.Normal(mu * x, 1), obs=y)

    message = refusal(model, {"x": np.zeros(20), "y": np.zeros(20)})
    check(message, "site 'y'", 'qx.sample("y"', "plate 'i' of size 19", "(20,)", "plate's size")


def test_silent_broadcast_of_location_and_observation():
    def model(x, y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(mu * x, 1), obs=y)

    message = refusal(model, {"x": np.zeros((20, 1)), "y": np.zeros(20)})
    check(message, "site 'y'", "(20, 1)", "(20,)", "broadcast silently", "Reshape", 'qx.sample("y"')


def test_silent_broadcast_inside_a_plate():
    def model(x, y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu * x, 1), obs=t)

    message = refusal(model, {"x": np.zeros((20, 1)), "y": np.zeros(20)})
    check(message, "site 'y'", "(20, 20)", "(20,)", "Reshape")


def test_silent_broadcast_of_a_latent_variable():
    def model(x):
        with qx.plate("i", 20):
            qx.sample("theta", dist.Normal(x, 1))

    message = refusal(model, {"x": np.zeros((20, 1))})
    check(message, "site 'theta'", "plate 'i' of size 20", "(20, 20)", "squeeze", "qx.sample(")


def test_batch_without_plate_runs_but_minibatches_explain():
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(mu, 1).expand([20]), obs=y)

    density = qx.compile(model, {"y": np.zeros(20)})
    preflight(density)
    with pytest.raises(qx.ModelError, match=r"no data plate.*site 'y'.*with plate\('row'"):
        density.log_likelihood(jnp.zeros(1), rows=jnp.arange(3))


def test_nan_in_observation():
    y = np.zeros(20)
    y[3] = np.nan

    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu, 1), obs=t)

    message = refusal(model, {"y": y})
    check(message, "site 'y'", "argument 'y'", "1 NaN", "index 3", "obs_mask", 'qx.sample("y"')


def test_observation_outside_support():
    def model(y):
        scale = qx.sample("scale", dist.HalfNormal(1))
        qx.sample("y", dist.HalfNormal(scale).expand([5]), obs=y)

    message = refusal(model, {"y": np.array([1.0, 2.0, -0.3, 1.0, 1.0])})
    check(message, "site 'y'", "y[2] = -0.3", "HalfNormal", "Positive", "Correct the data")


def test_observation_outside_discrete_support():
    def model(y):
        rate = qx.sample("rate", dist.Gamma(1, 1))
        qx.sample("y", dist.Poisson(rate).expand([3]), obs=y)

    message = refusal(model, {"y": np.array([1, -2, 3])})
    check(message, "y[1] = -2", "Poisson")


def test_constant_negative_scale():
    def model():
        qx.sample("a", dist.Normal(0, -1.0))

    message = refusal(model)
    check(message, "site 'a'", "'scale' of Normal is -1", "Positive", "dist.Normal(0, -1.0)")


def test_unconstrained_latent_scale():
    def model(y):
        tau = qx.sample("tau", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(0, tau).expand([3]), obs=y)

    message = refusal(model, {"y": np.ones(3)})
    check(message, "site 'y'", "parameter 'scale' of Normal", "Positive", "HalfNormal", "points")


def test_scale_whose_prior_keeps_it_positive_is_no_fault():
    def model(x, y):
        far = qx.sample("far", dist.Normal(10, 1))
        slope = qx.sample("slope", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(0, far).expand([2]), obs=y)
        qx.sample("t", dist.Normal(0, jnp.exp(slope * x)), obs=y)

    preflight(qx.compile(model, {"x": np.array([900.0, 1500.0]), "y": np.ones(2)}))


def test_scalar_observation_of_many_variables():
    def model():
        a = qx.sample("a", dist.Normal(0, 1))
        with qx.plate("n", 20):
            qx.sample("y", dist.Normal(a, 1), obs=0.3)

    check(refusal(model), "site 'y'", "(20,)", "()", "Reshape")


def test_dimension_names_that_are_taken():
    def model():
        with qx.plate("draw", 3):
            qx.sample("a", dist.Normal(0, 1))

    check(refusal(model), "site 'a'", "'draw'", "Rename")


def test_negative_scale_in_data():
    def model(sigma, y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(mu, sigma), obs=y)

    message = refusal(model, {"sigma": np.array([1.0, -2.0]), "y": np.ones(2)})
    check(message, "site 'y'", "'scale'", "-2", "Positive")


def test_covariance_that_is_not_positive_definite():
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
        covariance = jnp.array([[1.0, 2.0], [2.0, 1.0]])
        qx.sample("y", dist.MultivariateNormal(mu, covariance), obs=y)

    message = refusal(model, {"y": np.ones(2)})
    check(message, "site 'y'", "covariance_matrix", "smallest eigenvalue is -1", "identity")


def test_masked_latent_variable():
    def model(m):
        with numpyro.handlers.mask(mask=m):
            qx.sample("a", dist.Normal(0, 1).expand([3]))

    message = refusal(model, {"m": np.array([True, False, False])})
    check(message, "site 'a'", "mask", "2 of its entries", "obs_mask")


def test_unknown_name_in_init():
    with pytest.raises(qx.ModelError, match=r"Unknown latent site 'tua'.*Did you mean 'tau'"):
        qx.infer(eight_schools, SCHOOLS, init={"tua": 1.0}, progress=False)


def test_wrong_shape_in_init():
    with pytest.raises(qx.ModelError, match=r"init\['z'\].*\(3,\).*site 'z'.*\(8,\)"):
        qx.infer(eight_schools, SCHOOLS, init={"z": np.zeros(3)}, progress=False)


def test_unknown_name_in_condition():
    conditioned = numpyro.handlers.condition(eight_schools, data={"tua": 1.0})
    with pytest.raises(qx.ModelError, match=r"'tua' given to `condition`.*Did you mean 'tau'"):
        qx.compile(conditioned, SCHOOLS)


def test_discrete_latent():
    def model(y):
        k = qx.sample("k", dist.Categorical(jnp.ones(3) / 3))
        qx.sample("y", dist.Normal(1.0 * k, 1), obs=y)

    message = refusal(model, {"y": 1.0})
    check(message, "discrete", "site 'k'", 'qx.sample("k"', "logsumexp", "DiscreteHMCGibbs")


def test_python_if_on_a_latent():
    def model(y):
        a = qx.sample("a", dist.Normal(0, 1))
        if a > 0:
            a = -a
        qx.sample("y", dist.Normal(a, 1), obs=y)

    message = refusal(model, {"y": 1.0})
    check(message, "site 'a'", "`if a > 0:`", "jnp.where", "test_preflight.py")


def test_value_of_an_array_argument():
    def model(n, y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        with qx.plate("i", int(n[0])):
            qx.sample("y", dist.Normal(mu, 1), obs=y)

    message = refusal(model, {"n": np.array([3]), "y": np.zeros(3)})
    check(message, "argument 'n'", "int(n[0])", "Python integers")


def test_observation_as_a_list_is_converted():
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(mu, 1).expand([3]), obs=y)

    as_list = qx.compile(model, {"y": [1, 2, 3]})
    as_array = qx.compile(model, {"y": np.array([1, 2, 3])})
    z = jnp.array([0.3])
    assert as_list.log_density(z) == as_array.log_density(z)

    def literal():
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(mu, 1).expand([3]), obs=[1.0, 2.0, 3.0])

    assert qx.compile(literal).log_density(z) == as_array.log_density(z)


def test_improper_posterior():
    def model(y):
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        qx.sample("a", flat)
        mu = qx.sample("mu", flat)
        qx.sample("y", dist.Normal(mu, 1), obs=y)

    message = refusal(model, {"y": 1.0})
    check(message, "site 'a'", "improper", "proper prior", 'qx.sample("a"')


def test_infinite_gradient_at_the_start_names_the_site():
    def model():
        a = qx.sample("a", dist.Normal(0, 1))
        qx.factor("root", jnp.sum(jnp.sqrt(jnp.abs(a) * 0.0)))

    with pytest.raises(qx.ModelError, match=r"gradient with respect to site 'a'.*Reparametrise"):
        qx.infer(model, num_warmup=5, num_samples=5, progress=False)


def test_density_that_is_never_finite_names_the_site():
    def model(y):
        a = qx.sample("a", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(a / 0.0 * 0.0, 1), obs=y)

    with pytest.raises(qx.ModelError, match=r"site 'y'.*log probability nan"):
        qx.infer(model, {"y": 1.0}, num_warmup=5, num_samples=5, progress=False)


def test_nan_in_a_covariate_is_named():
    def model(x, y):
        slope = qx.sample("slope", dist.Normal(0, 1))
        with qx.plate("row", x, y) as (u, t):
            qx.sample("y", dist.Normal(slope * u, 1), obs=t)

    data = {"x": np.array([1.0, np.nan]), "y": np.zeros(2)}
    with pytest.raises(qx.ModelError, match=r"site 'y'.*argument 'x' has 1 entries that are NaN"):
        qx.infer(model, data, num_warmup=5, num_samples=5, progress=False)


def test_vector_log_density():
    bare = qx.from_log_density(lambda x: -(x**2), np.zeros(2))
    with pytest.raises(qx.ModelError, match=r"must be a scalar, got shape \(2,\)"):
        qx.compile(bare)


def test_misspelt_keywords():
    with pytest.raises(TypeError, match=r"'num_sampels' of `infer`.*'num_samples'"):
        qx.infer(eight_schools, SCHOOLS, num_sampels=3)
    with pytest.raises(TypeError, match=r"'target_acept' of `NUTS`.*'target_accept'"):
        qx.NUTS(target_acept=0.9)
    with pytest.raises(qx.MethodError, match=r"Unknown method 'nust'.*'nuts'"):
        qx.infer(eight_schools, SCHOOLS, "nust")


def test_arguments_that_do_not_fit_the_model():
    with pytest.raises(qx.ModelError, match=r"Unknown argument 'sigm'.*'sigma'"):
        qx.compile(eight_schools, {"sigm": [1.0]})
    with pytest.raises(qx.ModelError, match="needs the argument 'sigma'"):
        qx.compile(eight_schools, {})
    with pytest.raises(qx.ModelError, match="'sigma' is a ragged list"):
        qx.compile(eight_schools, {"sigma": [[1.0], [1.0, 2.0]]})
    with pytest.raises(qx.ModelError, match=r"'sigma' holds .* values, not numbers"):
        qx.compile(eight_schools, {"sigma": np.array(["a", "b"])})


def test_unused_argument_warns():
    def model(x, y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(mu, 1).expand([2]), obs=y)

    with pytest.warns(qx.ModelWarning, match="Argument 'x'.*changes nothing"):
        preflight(qx.compile(model, {"x": np.ones(2), "y": np.ones(2)}))


def test_labels_that_do_not_fit():
    with pytest.raises(qx.ModelError, match=r"Unknown dimension 'shool'.*'school'"):
        qx.compile(eight_schools, SCHOOLS, coords={"shool": list("abcdefgh")})
    with pytest.raises(qx.ModelError, match=r"coords\['school'\].*length 8"):
        qx.compile(eight_schools, SCHOOLS, coords={"school": list("abc")})


def test_param_site_is_refused():
    def model():
        numpyro.param("a", 1.0)
        qx.sample("b", dist.Normal(0, 1))

    check(refusal(model), "param('a')", "not random")


def test_float32_resolution_warns_where_log_densities_are_compared():
    code = """
import numpy as np, pytest, warnings, quincunx as qx, quincunx.distributions as dist
from quincunx.engine.preflight import preflight
def model(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mu, 1), obs=t)
with pytest.warns(qx.ModelWarning, match="float32 resolves only"):
    preflight(qx.compile(model, {"y": np.ones(100_000)}))
with warnings.catch_warnings():
    warnings.simplefilter("error")
    preflight(qx.compile(model, {"y": np.ones(100_000)}), compares=False)
"""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
