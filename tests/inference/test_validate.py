"""Calibration passes exact methods and rejects wrong ones that marginal ranks pass."""

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import arviz_plots
import jax
import numpy as np
import pytest
import xarray as xr
from numpyro import handlers
from scipy import stats

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine.density import compile
from quincunx.inference.diagnostics.calibration import autocorrelation, pointers, ranks, uniformity
from quincunx.inference.simulations import TOGETHER, able_to_hold
from quincunx.inference.validate import COVERAGE, JOINT, LIKELIHOOD, _judge, _one_by_one, _told
from tests.inference.approximate import Gaussian, Weigher

X = np.random.default_rng(3).normal(size=(20, 2))
FAST: dict[str, Any] = {"simulations": 299, "num_draws": 39, "num_warmup": 0, "thinning": 1}


@qx.model
def linear(X, y=None):
    w = qx.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Normal(x @ w, 1.5), obs=t)


@qx.model
def counts(y=None):
    rate = qx.sample("rate", dist.Gamma(3, 1))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Poisson(rate), obs=t)


@qx.model
def spread(y=None):
    mean = qx.sample("mean", dist.Normal(0, 1))
    sd = qx.sample("sd", dist.LogNormal(0, 0.5))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mean, sd), obs=t)


@qx.model
def two(a=None, b=None):
    mean = qx.sample("mean", dist.Normal(0, 1))
    with qx.plate("first", a) as t:
        qx.sample("a", dist.Normal(mean, 1), obs=t)
    with qx.plate("second", b) as t:
        qx.sample("b", dist.Normal(mean, 2), obs=t)
    qx.deterministic("residual", a - mean)


LINEAR = {"X": X, "y": np.zeros(20)}
FEW = {"X": X[:3], "y": np.zeros(3)}
WEIGHTED: dict[str, Any] = {"simulations": 80, "num_draws": 9, "key": 1}
SHOWN: list[Any] = []


def validated(method, **settings):
    return qx.validate(linear, method, LINEAR, **{**FAST, **settings})


@pytest.fixture(scope="module")
def right():
    return validated(Gaussian(), progress=SHOWN.append)


def test_an_exact_method_passes(right):
    assert right.verdict.status == "ok", right
    assert list(right.table.index) == ["w[0]", "w[1]", LIKELIHOOD, JOINT, COVERAGE]
    assert right.ranks.shape == (299, 5)
    assert right.ranks.max() == 39
    assert right.ranks.min() == 0
    expected = np.minimum(1.0, len(right.table) * right.table["p_value"])
    np.testing.assert_allclose(right.table["adjusted"], expected)


def test_simulations_are_counted_as_they_are_done(right):
    assert [state.done for state in SHOWN] == [0, 100, 200, 299]
    assert {(state.phase, state.total) for state in SHOWN} == {("simulations", 299)}


def test_examples_give_shapes_alone(right):
    found = qx.validate(linear, Gaussian(), {"X": X, "y": [0] * 20}, **FAST)
    np.testing.assert_array_equal(found.ranks, right.ranks)


@pytest.mark.parametrize(
    ("model", "example", "kind"),
    [
        (counts, [0] * 5, "i"),
        (counts, np.zeros(5), "f"),
        (spread, np.zeros(5, bool), "f"),
        (spread, np.zeros(5), "f"),
    ],
)
def test_data_keep_their_type_where_it_holds_them(model, example, kind):
    density = able_to_hold(compile(model, {"y": example}), {"y": "y"})
    assert density.leaves[0].dtype.kind == kind


def test_a_plate_that_is_left_out_shows_in_its_own_ranks():
    found = qx.validate(two, Gaussian(site="a"), {"a": np.zeros(10), "b": np.zeros(12)}, **FAST)
    own = [f"{LIKELIHOOD} of 'a'", f"{LIKELIHOOD} of 'b'"]
    assert list(found.table.index) == ["mean", LIKELIHOOD, JOINT, *own, COVERAGE]
    assert found.verdict.status == "failed", found
    p_values = found.table["p_value"]
    assert p_values[own[1]] < 1e-6
    assert p_values[own[1]] < 0.01 * p_values[LIKELIHOOD]
    assert p_values[own[0]] > 1e-3


def test_the_prior_passes_marginal_ranks_alone():
    found = validated(Gaussian(rows=0))
    assert found.verdict.status == "failed"
    assert (found.table["p_value"][["w[0]", "w[1]"]] > 1e-3).all()
    assert found.table["p_value"][LIKELIHOOD] < 1e-10
    assert found.table["p_value"][COVERAGE] < 1e-10


def test_half_the_data_pass_marginal_ranks_alone():
    found = validated(Gaussian(rows=10))
    assert found.verdict.status == "failed"
    assert (found.table["p_value"][["w[0]", "w[1]"]] > 1e-3).all()
    assert found.table["p_value"][[LIKELIHOOD, COVERAGE]].min() < 1e-3


def test_sds_a_fifth_too_wide_are_rejected():
    found = validated(Gaussian(factor=1.2), simulations=500, num_draws=99)
    assert found.verdict.status == "failed"
    assert LIKELIHOOD in str(found) or JOINT in str(found)


def test_ranks_are_plotted_against_bands(right):
    figure = right.plot(backend="matplotlib").viz["figure"].item()
    assert len(figure.axes) >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "data"),
    [(linear, LINEAR), (counts, {"y": np.zeros(10, int)}), (spread, {"y": np.zeros(12)})],
    ids=["linear", "counts", "spread"],
)
def test_nuts_passes(model, data):
    found = qx.validate(model, qx.NUTS(target_accept=0.9), data, simulations=500, thinning=5)
    print(found)
    assert found.verdict.status == "ok", found


def test_nuts_on_many_data_sets_at_once():
    settings: dict[str, Any] = {"simulations": 60, "num_draws": 19, "num_warmup": 150}
    found = qx.validate(spread, "nuts", {"y": np.zeros(12)}, **settings)
    assert found.verdict.status != "failed", found


def test_right_weights_pass_whatever_few_particles_are_worth():
    shown = []
    found = qx.validate(linear, Weigher(), FEW, progress=shown.append, **WEIGHTED)
    assert found.verdict.status == "ok", found
    assert [state.done for state in shown] == list(range(81))


def test_dropped_weights_are_rejected():
    found = qx.validate(linear, Weigher(dropped=True), FEW, **WEIGHTED)
    assert found.verdict.status == "failed", found
    assert (found.table["p_value"][["w[0]", "w[1]"]] > 1e-3).all()


def test_copies_are_no_draws_of_their_own():
    settings: dict[str, Any] = {**WEIGHTED, "simulations": 20}
    found = qx.validate(linear, Weigher(copies=100), FEW, **settings)
    assert found.verdict.status != "ok", found
    assert "worth fewer than the 9 that are ranked" in str(found.verdict)
    assert any("thinning" in advice for advice in found.verdict.advice)


def test_warmup_of_a_learned_sampler_is_refused():
    with pytest.raises(qx.MethodError, match="num_warmup"):
        qx.validate(linear, Weigher(), FEW, num_warmup=10)


def test_draws_are_looked_at_in_bounded_memory():
    rows = 1000
    density = compile(linear, {"X": np.zeros((rows, 2)), "y": np.zeros(rows)})
    leaves = [None, np.zeros((TOGETHER, rows), np.float32)]
    truth, draws = ({"w": np.zeros((TOGETHER, *n, 2), np.float32)} for n in ((), (99,)))
    found: Any = _told.lower(density, leaves, truth, draws).compile()
    size = found.compiled.memory_analysis().temp_size_in_bytes
    assert size < 8 * leaves[1].nbytes


def test_plotted_shares_are_within_their_ranks(right, monkeypatch):
    seen = []
    monkeypatch.setattr(arviz_plots, "plot_ecdf_pit", lambda tree, **_: seen.append(tree))
    right.plot()
    shares = seen[0]["prior_sbc"]["w[0]"].values.reshape(-1)
    np.testing.assert_allclose(shares, (right.ranks[:, 0] + 0.5) / 40)


@pytest.mark.parametrize(
    ("adjusted", "dependence", "finite", "status", "reason"),
    [
        (0.06, 0.1, True, "ok", ""),
        (0.04, 0.1, True, "suspect", "Ranks of 'b' are not uniform"),
        (9e-4, 0.1, True, "failed", "Ranks of 'b' are not uniform"),
        (0.06, 0.2, True, "suspect", "Successive draws of 'a' are correlated"),
        (0.06, 0.1, False, "failed", "not finite"),
    ],
)
def test_verdicts_on_ranks(adjusted, dependence, finite, status, reason):
    found = _judge(["a", "b"], np.array([1.0, adjusted]), np.array([dependence, 0.0]), finite)
    assert found.status == status
    assert reason in "".join(found.reasons)


def test_one_by_one_each_has_its_own_data_and_key(monkeypatch):
    seen = []

    def told(model, data, method, **settings):
        seen.append((data["y"], settings))
        draws = np.full((1, 9, 2), len(seen))
        return SimpleNamespace(posterior=xr.Dataset({"w": (("chain", "draw", "dim"), draws)}))

    monkeypatch.setattr(sys.modules["quincunx.inference.validate"], "infer", told)
    density, y = qx.compile(linear, LINEAR), np.arange(60.0).reshape(3, 20)
    leaves = [y if name == "y" else None for name in density.program.signature.array_names]
    key, length = jax.random.key(0), (50, 9, 2)
    method, report = qx.SGLD(batch_size=10), lambda state: None
    found, _ = _one_by_one(method, density, leaves, key, length, report)
    assert found["w"][:, 0, 0].tolist() == [1, 2, 3]
    np.testing.assert_array_equal([data for data, _ in seen], y)
    assert len({str(jax.random.key_data(settings["key"])) for _, settings in seen}) == 3
    wanted = {"num_warmup": 50, "num_samples": 9, "thinning": 2, "num_chains": 1}
    assert seen[0][1].items() >= wanted.items()


@pytest.mark.slow
def test_methods_that_prepare_run_one_by_one():
    settings: dict[str, Any] = {"simulations": 20, "num_draws": 9, "num_warmup": 50}
    found = qx.validate(linear, qx.SGLD(batch_size=10), LINEAR, **settings)
    assert found.ranks.shape == (20, 5)


def test_dependent_draws_are_told():
    settings: dict[str, Any] = {"simulations": 40, "num_draws": 19, "num_warmup": 20, "thinning": 1}
    found = qx.validate(spread, "hit_and_run_slice", {"y": np.zeros(12)}, **settings)
    assert any("thinning" in advice for advice in found.verdict.advice), found


def test_ranks_of_ties_are_broken_at_random(rng):
    found = ranks(np.zeros((4000, 1)), np.zeros((4000, 9, 1)), rng)
    assert stats.chisquare(np.bincount(found[:, 0], minlength=10)).pvalue > 1e-4


def test_correlations_are_of_successive_draws(rng):
    """Nine draws of each simulation, whose own means would lower it by a ninth."""
    assert autocorrelation(rng.normal(size=(4000, 9, 1))) == pytest.approx(0, abs=0.02)
    slow = rng.normal(size=(100, 500, 1))
    for t in range(1, 500):
        slow[:, t] = 0.5 * slow[:, t - 1] + np.sqrt(0.75) * slow[:, t]
    assert autocorrelation(slow) == pytest.approx(0.5, abs=0.02)


def test_uniformity_holds_its_level(rng):
    found = uniformity(rng.integers(0, 100, size=(300, 400)), 99)
    assert np.mean(found < 0.05) == pytest.approx(0.05, abs=0.035)
    assert uniformity(rng.integers(0, 80, size=(300, 1)), 99)[0] < 1e-6
    uneven = uniformity(rng.integers(0, 13, size=(300, 400)), 12)  # ten bins of one or two
    assert np.mean(uneven < 0.05) == pytest.approx(0.05, abs=0.035)


def test_points_follow_squares_of_the_data(rng):
    """As those of a scale do."""
    y = rng.normal(size=(200, 3))
    scale = np.sum(y**2, axis=1, keepdims=True)
    assert np.corrcoef(pointers(scale, y)[:, 0], scale[:, 0])[0, 1] > 0.9


def test_points_depend_on_the_data_and_on_no_value_of_their_own(rng):
    theta = rng.normal(size=(100, 2))
    y = theta @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(100, 5))
    found = pointers(theta, y)
    assert np.corrcoef(found[:, 0], theta[:, 0])[0, 1] > 0.95
    other = theta.copy()
    other[0] += 100.0
    np.testing.assert_array_equal(pointers(other, y)[0], found[0])


def test_errors_say_what_cannot_be_simulated():
    with pytest.raises(qx.ModelError, match="observes nothing"):
        qx.validate(linear, "nuts", {"X": X})
    with pytest.raises(qx.MethodError, match="at least 20"):
        qx.validate(linear, "nuts", LINEAR, simulations=3)

    @qx.model
    def shifted(y):
        m = qx.sample("m", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(m, 1).expand([3]).to_event(1), obs=y + 1)

    with pytest.raises(qx.ModelError, match="not an argument"):
        qx.validate(shifted, "nuts", {"y": np.zeros(3)})


def prior_of_data(y):
    m = qx.sample("m", dist.Normal(y.mean(), 1))
    qx.sample("y", dist.Normal(m, 1).expand([3]).to_event(1), obs=y)


def spread_of_data(y):
    m = qx.sample("m", dist.Normal(0, 1))
    qx.sample("y", dist.Normal(m, 1 + y.std()).expand([3]).to_event(1), obs=y)


def second_given_first(y, z):
    m = qx.sample("m", dist.Normal(0, 1))
    qx.sample("y", dist.Normal(m, 1).expand([3]).to_event(1), obs=y)
    qx.sample("z", dist.Normal(y, 1).to_event(1), obs=z)


def masked_by_data(y):
    m = qx.sample("m", dist.Normal(0, 1))
    with qx.plate("row", y) as t, handlers.mask(mask=t > -1):
        qx.sample("y", dist.Normal(m, 1), obs=t)


def observed_twice(y):
    m = qx.sample("m", dist.Normal(0, 1))
    qx.sample("y", dist.Normal(m, 1).expand([3]).to_event(1), obs=y)
    qx.sample("z", dist.Normal(-m, 1).expand([3]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (prior_of_data, "m"),
        (spread_of_data, "y"),
        (second_given_first, "z"),
        (masked_by_data, "y"),
        (observed_twice, "z"),
    ],
)
def test_data_are_used_as_the_observation_alone(model, site):
    arguments = inspect.signature(model).parameters
    with pytest.raises(qx.ModelError, match=f"(?s)site '{site}'.*argument 'y'"):
        qx.validate(qx.model(model), "nuts", {name: np.zeros(3) for name in arguments})
