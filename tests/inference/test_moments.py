"""Running figures of draws that are not kept, against numpy on the same draws kept in memory."""

import arviz_stats
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference import moments as module
from quincunx.inference.running import BatchMeans, RunningMoments, Subsample
from quincunx.inference.sketch import QuantileSketch
from tests.inference.test_checkpoint import Killed, stop_after
from tests.laws.kernels import RandomWalk
from tests.scenarios import SCHOOLS, conjugate, eight_schools

Y = {"y": np.array([0.3, 1.9, -0.4, 2.2, 1.1])}
RUN = {"num_warmup": 60, "num_samples": 150, "num_chains": 2, "key": 7, "progress": False}
FEW = qx.Moments(keep=20)
FIGURES = ["mean", "sd", "mcse_mean", "ess_mean", "5%", "25%", "50%", "75%", "95%"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of few draws, so that short runs have many."""
    monkeypatch.setattr(module, "_BLOCK", 16)


@pytest.fixture(scope="module")
def kept():
    return qx.infer(eight_schools, SCHOOLS, coords={"school": list("ABCDEFGH")}, **RUN)


def columns(fit):
    """All draws of all chains, one column for each parameter."""
    parts = [array.values.reshape(-1, array[0, 0].size) for array in fit.posterior.values()]
    return np.concatenate(parts, axis=1)


# ---------------------------------------------------------------- the accumulators


def cut(rng, values, axis=0):
    """The values in pieces of random lengths."""
    places = np.sort(rng.integers(0, values.shape[axis], 30))
    return np.split(values, places, axis=axis)


LAWS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "ascending": lambda rng, n: np.sort(rng.normal(size=n)),
    "descending": lambda rng, n: -np.sort(rng.normal(size=n)),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "few values": lambda rng, n: rng.integers(0, 5, n).astype(float),
    "zigzag": lambda rng, n: np.where(np.arange(n) % 2, 1.0, -1.0) * np.arange(n),
}


def test_quantiles_have_the_rank_that_was_promised(rng):
    size, k = 1_000_000, 2048
    values = np.stack([law(rng, size) for law in LAWS.values()], axis=1)
    sketch = QuantileSketch(len(LAWS), k)
    for part in cut(rng, values):
        sketch.add(part)
    assert sketch.count == size
    assert sum(level.nbytes for level in sketch.levels) < 10 * k * len(LAWS) * 8 + 1
    wanted = np.array([0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999])
    found = sketch.quantiles(wanted.tolist())
    bound = np.ceil(np.log2(size / k)) / k
    assert bound == pytest.approx(0.0044, abs=1e-4)
    for column, name in enumerate(LAWS):
        ordered = np.sort(values[:, column])
        low = np.searchsorted(ordered, found[:, column], "left") / size
        high = np.searchsorted(ordered, found[:, column], "right") / size
        error = np.maximum(low - wanted, wanted - high).max()
        assert error <= bound, name
        assert error <= bound / 5, f"{name}: usual errors are far smaller"


def test_the_half_that_goes_up_alternates():
    sketch = QuantileSketch(1, 4)
    sketch.add(np.arange(8.0)[:, None])
    assert sketch.filled == [0, 0, 2]
    np.testing.assert_array_equal(sketch.levels[1][0], [0, 2, 5, 7])
    np.testing.assert_array_equal(sketch.levels[2][0, :2], [2, 7])


def test_few_draws_have_the_quantiles_of_numpy(rng):
    values = rng.normal(size=(1000, 3))
    sketch = QuantileSketch(3)
    sketch.add(values)
    wanted = [0.01, 0.3, 0.5, 0.99]
    np.testing.assert_allclose(sketch.quantiles(wanted), np.quantile(values, wanted, axis=0))
    assert np.isnan(QuantileSketch(3).quantiles(wanted)).all()


def test_moments_are_those_of_numpy_however_far_the_mean_is(rng):
    values = rng.normal(size=(5000, 3)) @ rng.normal(size=(3, 3)) + [0.0, 1e3, 1e7]
    full, diagonal = RunningMoments(3, covariance=True), RunningMoments(3, covariance=False)
    for part in cut(rng, values):
        if len(part):
            full.add(part)
            diagonal.add(part)
    np.testing.assert_allclose(full.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(full.covariance, np.cov(values.T), rtol=1e-6)
    np.testing.assert_allclose(full.sd, values.std(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(diagonal.sd, full.sd, rtol=1e-9)
    assert diagonal.covariance is None


def autoregression(rng, chains, size, memory):
    values = rng.normal(size=(chains, size))
    for draw in range(1, size):
        values[:, draw] = memory * values[:, draw - 1] + np.sqrt(1 - memory**2) * values[:, draw]
    return values


def test_batch_means_know_autocorrelation(rng):
    memory = 0.8
    values = autoregression(rng, 4, 50_000, memory)[..., None]
    batches = BatchMeans(4, 1)
    for part in cut(rng, values, axis=1):
        batches.add(part)
    expected = np.sqrt((1 + memory) / (1 - memory) / values.size)
    assert batches.mcse()[0] == pytest.approx(expected, rel=0.1)
    assert batches.length == 128
    whole = values[:, : batches.filled * 128, 0].reshape(4, -1, 128).mean(axis=2)
    np.testing.assert_allclose(batches.means[:, : batches.filled, 0], whole)
    joined = whole[:, : whole.shape[1] // 2 * 2].reshape(4, -1, 2).mean(axis=2)
    error = joined.std(ddof=1) / np.sqrt(joined.size)
    np.testing.assert_allclose(batches.mcse()[0], error)


def test_chains_that_disagree_have_a_large_error(rng):
    batches = BatchMeans(2, 1)
    batches.add(rng.normal(size=(2, 1000, 1)) + np.array([[[0.0]], [[5.0]]]))
    assert batches.mcse()[0] > 0.2


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 100, 1000])
def test_the_subsample_is_even_and_adds_costs_up(rng, size):
    draws = {"x": rng.normal(size=(2, size, 3))}
    stats = {
        "lp": rng.normal(size=(2, size)),
        "gradients": rng.integers(1, 9, (2, size)).astype(np.int32),
        "diverging": rng.uniform(size=(2, size)) < 0.05,
    }
    subsample = Subsample(draws, stats, 8)
    for start in np.arange(0, size, 5):
        part = slice(start, min(start + 5, size))
        subsample.add(*({n: a[:, part] for n, a in values.items()} for values in (draws, stats)))
    stride = subsample.stride
    whole = size // stride * stride
    assert subsample.filled <= 8
    assert subsample.filled >= 4 or stride == 1
    kept, figures = subsample.kept()
    np.testing.assert_array_equal(kept["x"], draws["x"][:, stride - 1 :: stride])
    np.testing.assert_array_equal(figures["lp"], stats["lp"][:, stride - 1 :: stride])
    windows = stats["gradients"][:, :whole].reshape(2, -1, stride)
    np.testing.assert_array_equal(figures["gradients"], windows.sum(axis=2))
    windows = stats["diverging"][:, :whole].reshape(2, -1, stride)
    np.testing.assert_array_equal(figures["diverging"], windows.any(axis=2))


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("layout", ["vectorized", "sequential"])
def test_figures_are_those_of_all_draws(tmp_path, kept, layout):
    coords = {"school": list("ABCDEFGH")}
    run = {**RUN, "chain_method": layout, "coords": coords}
    if layout == "sequential":
        kept = qx.infer(eight_schools, SCHOOLS, **run)
    fit = qx.infer(eight_schools, SCHOOLS, store=FEW, **run)
    table, values = fit.moments, columns(kept)
    assert list(table.columns) == FIGURES
    assert list(table.index) == kept.convergence.names
    np.testing.assert_allclose(table["mean"], values.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(table["sd"], values.std(axis=0, ddof=1), rtol=1e-10)
    quantiles = np.quantile(values, FEW.quantiles, axis=0).T
    np.testing.assert_allclose(table[FIGURES[4:]], quantiles, rtol=1e-9)
    np.testing.assert_allclose(table["ess_mean"], (table["sd"] / table["mcse_mean"]) ** 2)
    covariance = fit.tree["posterior_covariance"]["covariance"]
    np.testing.assert_allclose(covariance, np.cov(values.T), rtol=1e-9, atol=1e-9)
    figures = fit.tree["posterior_moments"]["theta"].sel(statistic="mean", school="C")
    assert figures.item() == pytest.approx(kept.posterior["theta"].sel(school="C").mean().item())
    # the subsample: 150 draws, room for 40
    assert fit.tree["posterior"].attrs["thinning"] == 4
    every = kept.posterior.isel(draw=slice(3, None, 4)).assign_coords(draw=np.arange(37))
    xr.testing.assert_equal(fit.posterior, every)
    gradients = kept.tree["sample_stats"]["gradients"].values[:, :148].reshape(2, 37, 4)
    found = fit.tree["sample_stats"]["gradients"]
    np.testing.assert_array_equal(found, gradients.sum(axis=2))
    assert fit.costs["gradients"] == kept.costs["gradients"]
    assert fit.predict()["y"].shape == (2, 37, 8)
    assert arviz_stats.summary(fit.tree).shape[0] == 18
    for name in ("fit.nc", "fit.zarr"):
        fit.save(tmp_path / name)
        loaded = qx.load(tmp_path / name, eight_schools, SCHOOLS)
        assert loaded.moments.loc[table.index].equals(table)
        assert loaded.verdict.status == fit.verdict.status
        assert sorted(loaded.verdict.reasons) == sorted(fit.verdict.reasons)


def test_a_run_that_keeps_all_draws_has_no_moments(kept):
    with pytest.raises(qx.QuincunxError, match=r"store=Moments"):
        kept.moments  # noqa: B018


def identical(fit, other):
    for group in ("posterior", "sample_stats", "posterior_moments", "posterior_covariance"):
        xr.testing.assert_equal(fit.tree[group].to_dataset(), other.tree[group].to_dataset())
    assert fit.moments.equals(other.moments)
    assert fit.verdict == other.verdict


@pytest.mark.parametrize("method", [qx.NUTS(), RandomWalk()], ids=["nuts", "random_walk"])
@pytest.mark.parametrize("layout", ["vectorized", "sequential"])
def test_a_resumed_run_has_the_figures_of_the_uninterrupted_one(tmp_path, method, layout):
    run = {**RUN, "store": FEW, "chain_method": layout}
    whole = qx.infer(conjugate, Y, method, **run)
    for transitions in (9, 75, 160):
        folder = tmp_path / str(transitions)
        saver = qx.Checkpoint(folder, every=0.0)
        settings = {**run, "progress": stop_after(transitions)}
        with pytest.raises(Killed):
            qx.infer(conjugate, Y, method, checkpoint=saver, **settings)
        again = qx.infer(conjugate, Y, method, checkpoint=folder, resume=True, **run)
        identical(again, whole)
        assert again.costs["evaluations"] == whole.costs["evaluations"]
    other = {**run, "store": qx.Moments(keep=21)}
    with pytest.raises(qx.CheckpointError, match="different are: store"):
        qx.infer(conjugate, Y, method, checkpoint=folder, resume=True, **other)


def test_more_draws_leave_the_first_fit_alone():
    run = {**RUN, "store": FEW}
    short = qx.infer(conjugate, Y, **{**run, "num_samples": 35})
    before = short.tree.copy(deep=True)
    longer = short.extend(150)
    identical(longer, qx.infer(conjugate, Y, **run))
    identical(short.extend(150), longer)
    for group in ("posterior", "posterior_moments"):
        xr.testing.assert_equal(short.tree[group].to_dataset(), before[group].to_dataset())


def test_until_sees_the_subsample():
    run = {**RUN, "num_samples": 50_000, "num_chains": 4, "store": qx.Moments(keep=500)}
    fit = qx.infer(conjugate, Y, until=qx.Until(ess=300), **run)
    assert "the target is reached" in fit.verdict.outcome
    draws = fit.tree["posterior_moments"].attrs["draws"]
    assert draws < 50_000
    assert f"after {draws} draws a chain" in fit.verdict.outcome
    assert fit.convergence.ess_bulk.min() >= 300


@qx.model
def funnel():
    scale = qx.sample("scale", dist.Normal(0.0, 3.0))
    qx.sample("x", dist.Normal(0.0, jnp.exp(scale)).expand([9]).to_event(1))


def test_the_verdict_counts_the_divergences_of_all_draws():
    run = {**RUN, "num_samples": 300, "thinning": 2}
    method = qx.NUTS(step_size=1.0, target_accept=0.5)
    kept = qx.infer(funnel, {}, method, **run)
    fit = qx.infer(funnel, {}, method, store=qx.Moments(keep=10), **run)
    diverged = int(kept.tree["sample_stats"]["diverging"].sum())
    assert diverged > int(fit.tree["sample_stats"]["diverging"].sum()) > 0
    assert f"{diverged} of 600 transitions diverged" in str(fit.verdict)
    assert fit.tree["posterior"].attrs["thinning"] == 2 * 16


@qx.model
def rarely_nan():
    mu = qx.sample("mu", dist.Normal(0.0, 1.0))
    qx.deterministic("root", jnp.where(mu > 2.4, jnp.nan, mu))


def test_draws_that_are_not_finite_show_though_none_is_kept():
    run = {**RUN, "num_samples": 400}
    kept = qx.infer(rarely_nan, {}, **run)
    fit = qx.infer(rarely_nan, {}, store=qx.Moments(keep=4), **run)
    bad = np.isnan(kept.posterior["root"].values)
    assert bad.any()
    assert np.isfinite(fit.posterior["root"]).all()
    assert np.isnan(fit.moments.loc["root"]).all()
    assert np.isfinite(fit.moments.loc["mu"]).all()
    covariance = fit.tree["posterior_covariance"]["covariance"]
    assert covariance.sel(parameter="mu", other="mu").item() == pytest.approx(
        kept.posterior["mu"].values.var(ddof=1)
    )
    assert fit.verdict.status == "failed"
    assert "'root' has draws that are NaN or infinite" in str(fit.verdict)


def test_a_run_without_draws_has_no_figures():
    def report(progress):
        raise OSError(28, "No space left on device")

    fit = qx.infer(conjugate, Y, store=FEW, **{**RUN, "num_warmup": 500, "progress": report})
    assert fit.posterior.sizes["draw"] == 0
    assert fit.moments.isna().all(axis=None)
    assert fit.verdict.reasons == ("There are no draws yet.",)
    assert fit.extend(5).moments["mean"].notna().all()


def test_what_cannot_be_is_refused():
    for wrong, message in (
        ({"keep": 0}, "`Moments.keep=0.`: keep must be an integer of at least 4"),
        ({"quantiles": (0.5, 0.1)}, "quantiles must be ascending"),
        ({"quantiles": (0.5, 1.0)}, "between 0 and 1"),
    ):
        with pytest.raises(qx.MethodError, match=message):
            qx.Moments(**wrong)
    with pytest.raises(qx.MethodError, match="leave out `keep_warmup`"):
        qx.infer(conjugate, Y, store=FEW, keep_warmup=True, **RUN)

    @qx.model
    def large():
        qx.sample("x", dist.Normal(0.0, 1.0).expand([20_000]).to_event(1))

    with pytest.raises(qx.MethodError, match=r"20000 parameters .* 9.6 GB.*covariance=False"):
        qx.infer(large, {}, store=FEW, **RUN)

    @qx.model
    def named():
        qx.sample("statistic", dist.Normal(0.0, 1.0))

    with pytest.raises(qx.MethodError, match="rename"):
        qx.infer(named, {}, store=FEW, **RUN)


def test_figures_that_were_not_asked_for_are_not_kept():
    fit = qx.infer(conjugate, Y, store=qx.Moments(quantiles=(), covariance=False), **RUN)
    assert list(fit.moments.columns) == FIGURES[:4]
    assert "posterior_covariance" not in fit.tree.children
