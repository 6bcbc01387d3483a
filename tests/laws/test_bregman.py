"""Mirror samplers on kinked and constrained laws with exact draws, and broken ones there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine.bregman import proximity as proximity_module
from tests.laws.kernels import NoiseAtEnd, NoVolume, TakenForNormal

LANES, STEPS = 20_000, 6


@qx.model
def kinked():
    """One law on each kind of support, kinks in several places, and a scale that moves a kink."""
    tau = qx.sample("tau", dist.Gamma(3.0, 3.0))
    qx.sample("beta", dist.Laplace(0.2, tau).expand([2]).to_event(1))
    qx.sample("skew", dist.AsymmetricLaplace(0.0, 1.0, 1.5))
    qx.sample("group", dist.GroupLaplace(jnp.zeros(2), 0.5))
    qx.sample("half", dist.HalfNormal(1.0))
    qx.sample("below", dist.TruncatedNormal(0.0, 1.0, high=0.7))
    qx.sample("cut", dist.LeftTruncatedDistribution(dist.Laplace(0.0, 1.0), -0.5))
    qx.sample("flat", dist.Uniform(-1.0, 3.0))
    qx.sample("share", dist.Beta(2.0, 3.0))
    qx.sample("simplex", dist.Dirichlet(jnp.array([1.5, 1.0, 2.0])))


STATISTICS = {
    "tau": lambda v: v["tau"],
    "beta": lambda v: v["beta"][:, 0],
    "size": lambda v: np.abs(v["beta"][:, 1] - 0.2),
    "standard": lambda v: (v["beta"][:, 0] - 0.2) / v["tau"],
    "skew": lambda v: v["skew"],
    "group": lambda v: np.linalg.norm(v["group"], axis=1),
    "half": lambda v: v["half"],
    "below": lambda v: v["below"],
    "cut": lambda v: v["cut"],
    "flat": lambda v: v["flat"],
    "share": lambda v: v["share"],
    "first": lambda v: v["simplex"][:, 0],
    "second": lambda v: v["simplex"][:, 1],
}


@pytest.fixture(scope="module")
def draws():
    """Exact draws, in two halves."""
    density = qx.compile(kinked).native

    @eqx.filter_jit
    def drawn(density, keys):
        return jax.vmap(lambda key: density.unconstrain(density.latent(density.simulate(key))))(
            keys
        )

    return density, drawn(density, jax.random.split(jax.random.key(1), 2 * LANES))


def smallest_p_value(kernel, draws):
    """Kolmogorov-Smirnov tests of all statistics after some steps from exact draws."""
    density, exact = draws

    @eqx.filter_jit
    def moved(density, positions):
        def one(x, key):
            state = kernel.init(density, x, key)
            return kernel.position(kernel.step(density, state, key)[0])

        return jax.vmap(one)(positions, jax.random.split(jax.random.key(2), len(positions)))

    after = moved(density, exact[:LANES])
    values = eqx.filter_jit(jax.vmap(density.constrain))
    found, fresh = (jax.device_get(values(x)) for x in (after, exact[LANES:]))
    assert np.mean(np.any(np.asarray(after) != np.asarray(exact[:LANES]), axis=1)) > 0.3
    for site in density.program.latents:
        support = {"tau": dist.constraints.positive, "simplex": dist.constraints.simplex}
        assert site.name not in support or np.all(support[site.name](found[site.name]))
    assert np.all(found["below"] <= 0.7)
    assert np.all(found["cut"] >= -0.5)
    assert np.all((found["flat"] >= -1.0) & (found["flat"] <= 3.0))
    return min(stats.ks_2samp(f(found), f(fresh)).pvalue for f in STATISTICS.values())


EXACT = {
    "auto": qx.BregmanLangevin(step_size=0.1, steps=STEPS),
    "no_envelope": qx.BregmanLangevin(step_size=0.1, steps=STEPS, envelope=None),
    "hypentropy_burg": qx.BregmanLangevin(
        step_size=0.08,
        steps=STEPS,
        geometry={"beta": "hypentropy", "half": "burg", "flat": "fermi_dirac", "cut": "burg"},
    ),
    "right": qx.BregmanLangevin(
        step_size=0.04,
        steps=STEPS,
        envelope="right",
        geometry={
            "beta": "exponential",
            "half": "boltzmann_shannon",
            "below": "boltzmann_shannon",
            "flat": "hellinger",
            "skew": "hypentropy",
        },
    ),
    "euclidean": qx.BregmanLangevin(step_size=0.02, steps=STEPS, geometry="euclidean"),
}


SLOW = ("no_envelope", "hypentropy_burg", "euclidean")
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in EXACT]


@pytest.mark.parametrize("name", NAMES)
def test_the_law_stays_as_it_is(name, draws):
    assert smallest_p_value(EXACT[name], draws) > 1e-3


SETTINGS = {"step_size": 0.1, "steps": STEPS}
BROKEN = [NoVolume(**SETTINGS), TakenForNormal(**SETTINGS), NoiseAtEnd(step_size=0.25, steps=25)]


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda kernel: kernel.name)
def test_the_law_changes_under_a_broken_kernel(broken, draws):
    assert smallest_p_value(broken, draws) < 1e-5


def test_without_correction_the_law_is_another(draws):
    assert smallest_p_value(qx.BregmanLangevin(adjust=False, **SETTINGS), draws) < 1e-5


RIGHT = proximity_module.proximity


def distance_inside(psi, x, kinks, smoothing, side):
    """Where the operator should be the kink it is the Bregman distance to it."""
    right = RIGHT(psi, x, kinks, smoothing, side)
    distance = (
        psi.distance(kinks.location, x) if side == "left" else psi.distance(x, kinks.location)
    )
    return jnp.where(right == kinks.location, kinks.location + distance, right)


def projection(psi, x, kinks, smoothing, side):
    """The nearest point of the support."""
    return x


def drift_error(kernel, mutation, monkeypatch):
    """Largest difference of the drift from the slope of an envelope by brute force."""
    if mutation is not None:
        monkeypatch.setattr(proximity_module, "proximity", mutation)
    density = kernel.target(qx.compile(lambda: qx.sample("x", dist.Laplace(0.1, 0.5))))
    points, h = np.array([-0.9, -0.2, 0.02, 0.3, 1.4]), 1e-5
    function = {"squared": lambda t: t**2 / 2, "hypentropy": None}[kernel.geometry]
    if function is None:
        function = lambda t: t * np.arcsinh(t) - np.sqrt(1 + t**2)  # noqa: E731
    slope = np.arcsinh if kernel.geometry == "hypentropy" else (lambda t: t)

    def envelope(x):
        """The least value over a grid that is finer and finer about the best point."""
        low, high = -3.0, 3.0
        for _ in range(4):
            y = np.linspace(low, high, 2001)
            a, b = (y, x) if kernel.envelope == "left" else (x, y)
            a, b = a - 0.1, b - 0.1
            values = np.abs(y - 0.1) / 0.5 + (function(a) - function(b) - slope(b) * (a - b)) / 0.4
            best = y[np.argmin(values)]
            low, high = best - 2 * (y[1] - y[0]), best + 2 * (y[1] - y[0])
        return values.min()

    expected = np.array([(envelope(x + h) - envelope(x - h)) / (2 * h) for x in points])
    states = jax.vmap(lambda x: kernel.init(density, x, jax.random.key(0)))(points[:, None])
    return np.max(np.abs(states.point.drift[:, 0] / kernel.step_size + expected))


@pytest.mark.parametrize("geometry", ["squared", "hypentropy"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mutation", [None, distance_inside, projection])
def test_the_drift_is_the_slope_of_the_envelope(mutation, side, geometry, monkeypatch):
    kernel = qx.BregmanLangevin(side, geometry, smoothing=0.4, step_size=0.1)
    error = drift_error(kernel, mutation, monkeypatch)
    assert error < 1e-3 if mutation is None else error > 0.01


@pytest.mark.parametrize("envelope", ["left", None])
def test_without_correction_the_law_is_that_of_the_envelope(envelope):
    """A Laplace law of rate 1 with smoothing 0.3: E x^2 is far from 2, and known by quadrature."""
    smoothing, eps = 0.3, 0.01
    kernel = qx.BregmanLangevin(
        envelope,
        smoothing=smoothing if envelope else None,
        step_size=eps,
        steps=1200,
        adjust=False,
    )
    density = kernel.target(qx.compile(lambda: qx.sample("x", dist.Laplace(0.0, 1.0))))

    @eqx.filter_jit
    def moved(density, keys):
        def one(key):
            state = kernel.init(density, jax.random.laplace(key, (1,)), key)
            return kernel.position(kernel.step(density, state, key)[0])[0]

        return jax.vmap(one)(keys)

    found = np.asarray(moved(density, jax.random.split(jax.random.key(5), 8000)))

    def weight(x):
        inside = np.abs(x) < smoothing
        smooth = np.where(inside, x**2 / (2 * smoothing), np.abs(x) - smoothing / 2)
        return np.exp(-(smooth if envelope else np.abs(x)))

    total, second = (integrate.quad(lambda x, p=p: x**p * weight(x), -40, 40)[0] for p in (0, 2))
    error = np.std(found**2) / np.sqrt(len(found))
    assert abs(np.mean(found**2) - second / total) < 4 * error + 4 * eps
