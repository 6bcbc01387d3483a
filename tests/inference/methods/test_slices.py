"""Slice samplers: schedules, caps, NaN, tuning, heavy tails, unit vectors, black boxes."""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference import session as session_module
from quincunx.inference.diagnostics.convergence import convergence
from tests.laws.kernels import NaNInside, NoEllipse
from tests.scenarios import SCHOOLS, eight_schools

SLICES = {
    "polar_slice": qx.PolarSlice,
    "elliptical_slice": qx.EllipticalSlice,
    "hit_and_run_slice": qx.HitAndRunSlice,
}
RUN = {"num_warmup": 80, "num_samples": 60, "num_chains": 3, "progress": False}


def standard_error(values):
    """Monte Carlo standard error of a mean of `(chain, draw)` values."""
    return values.std() / np.sqrt(convergence({"v": values}).ess_bulk[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLICES)
def test_free_chains_make_the_draws_of_chains_in_lockstep(name):
    fits = [
        qx.infer(eight_schools, SCHOOLS, SLICES[name](execution=how), key=2, **RUN)
        for how in ("lockstep", "free")
    ]
    assert [fit.tree["posterior"].attrs["execution"] for fit in fits] == ["lockstep", "free"]
    for group in ("posterior", "sample_stats"):
        for variable, values in fits[0].tree[group].data_vars.items():
            np.testing.assert_array_equal(values, fits[1].tree[group][variable], err_msg=variable)
    for count in ("evaluations", "warmup_evaluations"):
        assert fits[0].costs[count] == fits[1].costs[count]


@pytest.mark.parametrize("free_seconds", [0.5, 2.0])
def test_auto_takes_what_is_faster(monkeypatch, free_seconds):
    """On a clock of the test's own, on which a chunk in lockstep takes a second."""
    clock, asked = [0.0], []
    original = session_module.Session._call

    def call(self, group, limits, *, free):
        asked.append(free)
        clock[0] += free_seconds if free else 1.0
        return original(self, group, limits, free=free)

    monkeypatch.setattr(session_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(session_module.Session, "_call", call)
    fit = qx.infer(eight_schools, SCHOOLS, qx.PolarSlice(), **RUN)
    assert {True, False} <= set(asked), "both were timed"
    taken = fit.tree["posterior"].attrs["execution"]
    assert taken == ("free" if free_seconds < 1 else "lockstep")
    assert asked[-1] == (taken == "free")


def test_a_short_run_compiles_one_schedule():
    fit = qx.infer(eight_schools, SCHOOLS, qx.PolarSlice(), **RUN)
    assert fit.tree["posterior"].attrs["execution"] == "lockstep"


def half_line(x):
    """log x - x^2 on the positive half line, NaN elsewhere; times a Gaussian."""
    return jnp.where(x[0] > 0, jnp.log(x[0]) - x[0] ** 2, jnp.nan) - 0.5 * x[1] ** 2


@pytest.mark.parametrize("method", [*SLICES.values(), NaNInside])
def test_nan_is_outside_the_slice(method):
    model = qx.from_log_density(half_line, np.zeros(2))
    fit = qx.infer(model, None, method(), num_samples=4000, num_warmup=500, progress=False)
    x = fit.posterior["x"].values[..., 0]
    if method is NaNInside:
        assert (x < 0).any()
        return
    assert x.min() > 0
    assert abs(x.mean() - np.sqrt(np.pi) / 2) < 4.5 * standard_error(x)
    assert fit.verdict.status == "ok"


def test_a_density_with_jumps():
    def steps(x):
        level = jnp.where(jnp.abs(x[0]) < 1, 0.0, jnp.where(jnp.abs(x[0]) < 2, -1.0, -jnp.inf))
        return level - 0.5 * x[1] ** 2

    model = qx.from_log_density(steps, np.zeros(2))
    fit = qx.infer(model, None, "polar_slice", num_samples=5000, progress=False)
    inner = (np.abs(fit.posterior["x"].values[..., 0]) < 1).astype(float)
    assert abs(inner.mean() - 1 / (1 + np.exp(-1))) < 4.5 * standard_error(inner)
    assert np.abs(fit.posterior["x"].values[..., 0]).max() < 2


def test_giving_up_is_counted_and_fails_the_verdict():
    model = qx.from_log_density(lambda x: -0.5 * jnp.sum(x**2) * 1e6, np.zeros(3))
    method = qx.HitAndRunSlice(affine="none", width=1.0, max_shrinks=3)
    start = {"x": np.full(3, 1e-3)}
    fit = qx.infer(model, None, method, num_warmup=0, num_samples=400, init=start, progress=False)
    capped = fit.tree["sample_stats"]["shrink_capped"].values
    assert 0.5 < capped.mean() < 1
    moves = np.diff(fit.posterior["x"].values, axis=1)
    np.testing.assert_array_equal((moves == 0).all(-1), capped[:, 1:])
    assert fit.verdict.status == "failed"
    assert any("no point of the slice was found" in reason for reason in fit.verdict.reasons)


def test_steps_out_are_divided_and_their_exhaustion_counted():
    model = qx.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(3))
    method = qx.HitAndRunSlice(affine="none", width=0.05, max_steps_out=6)
    fit = qx.infer(model, None, method, num_warmup=0, num_samples=300, progress=False)
    found = fit.tree["sample_stats"]
    assert found["steps_capped"].values.mean() > 0.9
    assert found["steps_out"].values.max() == 5  # the bracket is six widths at most
    assert found["evaluations"].values.max() <= 5 + 1 + found["shrinks"].values.max()


def test_evaluations_are_counted_exactly():
    calls = []

    def counted(x):
        calls.append(1)
        return -0.5 * float(np.sum(x**2))

    model = qx.from_log_density(counted, np.zeros(2), black_box=True)
    method = qx.PolarSlice(width=1.0, affine="none")
    density = qx.compile(model)

    @jax.jit
    def transition(key):
        state = method.init(density, jnp.ones(2), key)
        return method.step(density, state, key)[1].evaluations

    for seed in range(20):
        calls.clear()
        found = int(transition(jax.random.key(seed)))
        assert len(calls) == found + 1  # the start is evaluated, too


def test_tuning_stays_as_it_is_after_warm_up(monkeypatch):
    def shared(fit):
        return jax.device_get(fit._session.groups[0].carry.state.tuning)

    def drift():
        at_end, later = (
            shared(qx.infer(eight_schools, SCHOOLS, qx.PolarSlice(), **{**RUN, "num_samples": n}))
            for n in (1, 80)
        )
        pairs = zip(jax.tree.leaves(at_end), jax.tree.leaves(later), strict=True)
        return max(np.max(np.abs(a - b)) for a, b in pairs)

    assert drift() == 0
    original = session_module.Session._limits

    def unfrozen(self, done):
        limits, phase = original(self, done)
        return limits._replace(num_warmup=limits.stop), phase

    monkeypatch.setattr(session_module.Session, "_limits", unfrozen)
    assert drift() > 0


@pytest.mark.parametrize("name", SLICES)
def test_chains_do_not_see_an_affine_change_of_variables(name):
    """With the map changed alike, the chain on A x + b is A times the chain on x, plus b."""
    rng = np.random.default_rng(4)
    change, shift = rng.normal(size=(3, 3)) + 2 * np.eye(3), rng.normal(size=3)
    inverse = np.linalg.inv(change)

    def log_density(x):
        return -jnp.sum(jnp.abs(x) ** 1.5) - 0.1 * jnp.sum(x) ** 2

    def changed(x):
        return log_density(inverse @ (x - shift))

    method = SLICES[name]()
    centre, factor = rng.normal(size=3), np.tril(rng.normal(size=(3, 3))) + 3 * np.eye(3)

    def chain(fn, start, centre, factor):
        density = qx.compile(qx.from_log_density(fn, np.zeros(3)))
        state = method.init(density, jnp.asarray(start), jax.random.key(0))
        found = state.tuning.affine._replace(centre=jnp.asarray(centre), factor=jnp.asarray(factor))
        y = jnp.linalg.solve(jnp.asarray(factor), jnp.asarray(start - centre))
        state = state._replace(y=y, tuning=state.tuning._replace(affine=found))

        def step(state, key):
            state, _ = method.step(density, state, key)
            return state, state.x

        return jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 40)))(
            state
        )[1]

    start = rng.normal(size=3)
    plain = np.asarray(chain(log_density, start, centre, factor))
    other = chain(changed, change @ start + shift, change @ centre + shift, change @ factor)
    assert np.abs(np.diff(plain, axis=0)).max() > 0.1
    np.testing.assert_allclose(other, plain @ change.T + shift, rtol=1e-6, atol=1e-6)


class Turning(qx.PolarSlice):
    """The move on the circle alone."""

    line = False


class Reaching(qx.PolarSlice):
    """The move of the radius alone."""

    circle = False


def asymmetries(method, lanes=40_000):
    """|z| of E[h(x, x') - h(x', x)] for some h, started from the target."""
    rng = np.random.default_rng(12)
    start = rng.standard_t(6, size=(lanes, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])

    def log_density(x):
        first = x[0]
        second = x[1] - 0.5 * first
        return -3.5 * (jnp.log1p(first**2 / 6) + jnp.log1p(second**2 / 6))

    density = qx.compile(qx.from_log_density(log_density, np.zeros(2)))

    @jax.jit
    def move(start, keys):
        def one(x, key):
            return method.step(density, method.init(density, x, key), key)[0].x

        return jax.vmap(one)(start, keys)

    after = np.asarray(move(jnp.asarray(start), jax.random.split(jax.random.key(3), lanes)))
    found = []
    for h in (
        lambda a, b: a[:, 0] * b[:, 1],
        lambda a, b: a[:, 0] ** 2 * b[:, 1],
        lambda a, b: np.tanh(a[:, 0]) * b[:, 0] ** 3,
        lambda a, b: np.linalg.norm(a, axis=1) * (b[:, 1] > 0.5),
        lambda a, b: np.exp(-np.abs(a[:, 1])) * np.abs(b[:, 0]),
    ):
        difference = h(start, after) - h(after, start)
        found.append(abs(difference.mean()) / (difference.std() / np.sqrt(lanes)))
    return max(found)


REVERSIBLE = {
    "ellipse": qx.EllipticalSlice(),
    "line": qx.HitAndRunSlice(width=2.0),
    "circle": Turning(width=1.0),
    "radius": Reaching(width=1.0),
    "radius_linear": Reaching(width=1.0, radial="linear"),
    "ellipse_capped": qx.EllipticalSlice(max_shrinks=2),
    "line_capped": qx.HitAndRunSlice(width=0.5, max_steps_out=3, max_shrinks=2),
}


@pytest.mark.parametrize("name", REVERSIBLE)
def test_single_moves_are_reversible(name):
    assert asymmetries(REVERSIBLE[name]) < 4.5


def test_the_reversibility_test_sees_a_broken_move():
    assert asymmetries(NoEllipse()) > 8


def test_heavy_tails_are_sampled_to_their_end():
    """Multivariate Cauchy law in 100 dimensions; |x|^2 / d has the F law with (d, 1) degrees."""
    worked = qx.models.load("cauchy", dim=100)
    method = qx.PolarSlice(affine="none")
    fit = qx.infer(worked.model, worked.data, method, num_samples=8000, progress=False)
    x = fit.posterior["x"].values
    radius = np.linalg.norm(x, axis=-1)
    event = ((radius > 14.7721) & (x[..., 0] > 0)).astype(float)
    assert abs(event.mean() - 0.25) < 4 * standard_error(event)
    for share in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        bound = np.sqrt(100 * stats.f.ppf(share, 100, 1))
        below = (radius <= bound).astype(float)
        assert abs(below.mean() - share) < 4.5 * standard_error(below), share


@pytest.mark.slow
def test_tuning_turns_a_shifted_correlated_law_into_an_easy_one():
    dim, df = 20, 10
    precision = np.linalg.inv(0.5 * np.eye(dim) + 0.5)
    centre = np.linspace(1, 10, dim)

    def log_density(x):
        y = x - centre
        return -0.5 * (df + dim) * jnp.log1p(y @ precision @ y / df)

    model = qx.from_log_density(log_density, np.zeros(dim))
    options = {"num_samples": 2000, "progress": False}
    tuned = qx.infer(model, None, qx.PolarSlice(), num_warmup=1500, **options)
    plain = qx.infer(model, None, qx.PolarSlice(affine="none"), num_warmup=1500, **options)
    assert tuned.verdict.status == "ok", tuned.verdict
    assert tuned.convergence.ess_bulk.min() > 8000 / 4
    assert plain.convergence.ess_bulk.max() < 8000 / 20
    means = tuned.posterior["x"].mean(("chain", "draw")).values
    error = np.sqrt(1.25 / tuned.convergence.ess_bulk)
    assert np.max(np.abs(means - centre) / error) < 4.5


def test_single_precision_slices_differences():
    """At |log density| near 1e7, where a float32 step is 1, differences of sums say nothing."""
    rng = np.random.default_rng(1)
    y = (1000 + rng.normal(size=20_000)).astype(np.float32)

    @qx.model
    def shifted(y=None):
        mu = qx.sample("mu", dist.Normal(1000.0, 10.0))
        with qx.plate("row", y) as t:
            qx.sample("y", dist.Normal(mu, 0.1), obs=t)

    options = {"init": {"mu": np.float32(y.mean())}, "num_samples": 2000, "progress": False}
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("ignore", qx.ModelWarning)  # that float32 is coarse here
        fit = qx.infer(shifted, {"y": y}, qx.PolarSlice(), **options)
    assert fit.posterior["mu"].dtype == np.float32
    mu = fit.posterior["mu"].values.astype(float)
    sd = 0.1 / np.sqrt(len(y))
    assert mu.std() == pytest.approx(sd, rel=0.15)
    assert abs(mu.mean() - y.astype(float).mean()) < 0.2 * sd


@qx.model
def von_mises_fisher(x=None):
    mu = qx.sample("mu", dist.ProjectedNormal(jnp.zeros(3)))
    kappa = qx.sample("kappa", dist.Gamma(2.0, 0.2))
    log_norm = jnp.log(kappa) - jnp.log(jnp.sinh(kappa))
    qx.factor("directions", jnp.sum(kappa * (x @ mu)) + len(x) * log_norm)


@pytest.fixture(scope="module")
def directions():
    x = np.random.default_rng(0).normal(size=(30, 3)) + np.array([1.0, 2.0, 0.0])
    return {"x": x / np.linalg.norm(x, axis=1, keepdims=True)}


def log_sinh(x):
    return x + np.log1p(-np.exp(-2 * x)) - np.log(2)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "polar_slice" else pytest.param(name, marks=pytest.mark.slow)
        for name in SLICES
    ],
)
def test_unit_vectors_move_on_the_sphere(name, directions):
    fit = qx.infer(von_mises_fisher, directions, SLICES[name](), num_samples=3000, progress=False)
    mu, kappa = fit.posterior["mu"].values, fit.posterior["kappa"].values
    np.testing.assert_allclose(np.linalg.norm(mu, axis=-1), 1, rtol=1e-12)
    assert fit.verdict.status == "ok", fit.verdict
    # kappa by quadrature: mu integrates to sinh(kappa R) / (kappa R)
    grid = np.linspace(1e-3, 40, 40_000)
    length = np.linalg.norm(directions["x"].sum(0))
    logs = np.log(grid) - 0.2 * grid + 30 * (np.log(grid) - log_sinh(grid))
    logs += log_sinh(grid * length) - np.log(grid * length)
    weights = np.exp(logs - logs.max())
    mean = np.sum(weights * grid) / weights.sum()
    assert abs(kappa.mean() - mean) < 4.5 * standard_error(kappa)
    along = mu @ (directions["x"].sum(0) / length)
    inner = 1 / np.tanh(grid * length) - 1 / (grid * length)  # E of mu along the resultant
    expected = np.sum(weights * inner) / weights.sum()
    assert abs(along.mean() - expected) < 4.5 * standard_error(along)


@pytest.mark.slow
def test_several_unit_vectors_alone():
    """Bingham-like laws on a plate of circles: E cos 2a = I1(c) / I0(c)."""
    from scipy.special import ive

    strength = np.array([0.5, 1.5, 3.0])

    def log_density(v):
        return jnp.sum(strength * (v[:, 0] ** 2 - v[:, 1] ** 2))

    model = qx.from_log_density(log_density, np.tile([1.0, 0.0], (3, 1)), dist.constraints.sphere)
    for method in (qx.PolarSlice(), qx.NUTS()):
        fit = qx.infer(model, None, method, num_samples=3000, progress=False)
        v = fit.posterior["x"].values
        double = v[..., 0] ** 2 - v[..., 1] ** 2
        for index, c in enumerate(strength):
            expected = ive(1, c) / ive(0, c)
            error = standard_error(double[..., index])
            assert abs(double[..., index].mean() - expected) < 4.5 * error, (method, c)


def test_a_black_box_runs_where_gradients_do_not():
    def simulator(x, y, kind):
        assert type(x) is np.ndarray
        assert kind == "plain"
        return -0.5 * float(np.sum((x - y) ** 2))

    model = qx.from_log_density(simulator, np.zeros(2), black_box=True)
    data = {"y": np.array([1.0, -2.0]), "kind": "plain"}
    fit = qx.infer(model, data, "elliptical_slice", num_warmup=200, num_samples=500, progress=False)
    x = fit.posterior["x"].values
    for index, expected in enumerate(data["y"]):
        assert abs(x[..., index].mean() - expected) < 4.5 * standard_error(x[..., index])
    with pytest.raises(qx.MethodError, match=r"needs gradients.*Methods that can: ellipt"):
        qx.infer(model, data, "nuts", progress=False)
    assert "no gradient" in str(qx.explain(model, data))
    assert not qx.applicable(model, data).loc["nuts", "applies"]


def test_a_black_box_that_returns_no_number_is_refused():
    model = qx.from_log_density(lambda x: x, np.zeros(2), black_box=True)
    with pytest.raises(Exception, match="must be a scalar, got shape"):
        qx.infer(model, None, "polar_slice", progress=False)


def test_the_prior_ellipse_needs_a_gaussian_prior(directions):
    method = qx.EllipticalSlice(ellipse="prior")
    with pytest.raises(qx.MethodError, match="not jointly Gaussian"):
        qx.infer(von_mises_fisher, directions, method, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qx.PolarSlice(radial="cubic"), "radial"),
        (lambda: qx.PolarSlice(width=-1.0), "width must be a positive number"),
        (lambda: qx.PolarSlice(max_shrinks=0), "max_shrinks must be an integer of at least 1"),
        (lambda: qx.HitAndRunSlice(max_steps_out=0), "max_steps_out must be an integer"),
        (lambda: qx.EllipticalSlice(affine="full"), "affine"),
        (lambda: qx.EllipticalSlice(ellipse="posterior"), "ellipse"),
        (lambda: qx.HitAndRunSlice(execution="both"), "execution"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(qx.MethodError, match=message):
        make()


def test_chains_share_their_tuning():
    fit = qx.infer(eight_schools, SCHOOLS, qx.PolarSlice(), **RUN)
    tuning = fit._session.groups[0].carry.state.tuning
    assert tuning.affine.factor.shape == (fit.density.dim, fit.density.dim)
    assert tuning.log_width.shape == ()
