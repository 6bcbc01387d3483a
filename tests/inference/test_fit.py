"""What comes back from `infer`: the tree, the summary, predictions, files."""

import arviz_stats
import jax
import numpy as np
import pytest
import xarray as xr

import quincunx as qx
import quincunx.distributions as dist
from tests.scenarios import SCHOOLS, conjugate, conjugate_posterior, eight_schools, logistic


def test_tree_has_arviz_groups_dims_and_coords(schools):
    assert isinstance(schools.tree, xr.DataTree)
    groups = set(schools.tree.children)
    assert {"posterior", "sample_stats", "observed_data", "constant_data"} <= groups
    assert {"warmup_posterior", "warmup_sample_stats"} <= groups
    assert schools.posterior["theta"].dims == ("chain", "draw", "school")
    assert list(schools.posterior["school"].values) == list("ABCDEFGH")
    assert schools.posterior["theta"].shape == (4, 500, 8)
    assert schools.tree["warmup_posterior"]["mu"].shape == (4, 500)
    assert schools.tree["observed_data"]["y"].dims == ("school",)
    np.testing.assert_array_equal(schools.tree["constant_data"]["sigma"], SCHOOLS["sigma"])


def test_sample_stats_have_arvizs_names_and_costs(schools):
    stats = schools.tree["sample_stats"]
    names = {"lp", "acceptance_rate", "step_size", "tree_depth", "n_steps", "diverging", "energy"}
    assert names | {"gradients", "evaluations", "reached_max_tree_depth"} <= set(stats.data_vars)
    assert stats["diverging"].dtype == bool
    sampling = schools.costs["gradients"] - schools.costs["warmup_gradients"]
    assert sampling == int(stats["gradients"].sum())
    warmup = schools.tree["warmup_sample_stats"]
    assert schools.costs["warmup_gradients"] == int(warmup["gradients"].sum())
    assert schools.costs["data_passes"] == schools.costs["evaluations"]
    assert schools.costs["sample_seconds"] > 0
    assert float(warmup["step_size"][0, 0]) == 0.5
    assert np.ptp(stats["step_size"].values, axis=1).max() == 0


def test_lp_and_energy_are_those_of_the_density(schools):
    density = qx.compile(eight_schools, SCHOOLS)
    draw = {name: schools.posterior[name].values[1, 7] for name in ("mu", "tau", "z")}
    lp = density.log_density(density.unconstrain(draw))
    np.testing.assert_allclose(schools.tree["sample_stats"]["lp"].values[1, 7], lp, rtol=1e-9)


def test_attributes_say_how_to_make_the_draws_again(schools):
    attributes = schools.posterior.attrs
    assert attributes["method"] == "nuts"
    assert '"target_accept": 0.8' in attributes["settings"]
    assert attributes["precision"] == "float64"
    assert '"jax":' in attributes["versions"]
    assert attributes["inference_library"] == "quincunx"
    plan = {"num_warmup": 500, "num_samples": 500, "num_chains": 4, "init": "left to the method"}
    assert {name: attributes[name] for name in plan} == plan


def test_summary_is_arvizs(schools):
    table = schools.summary(var_names=["mu", "tau"], round_to="none")
    assert list(table.index) == ["mu", "tau"]
    np.testing.assert_allclose(table.loc["mu", "mean"], schools.posterior["mu"].mean())
    np.testing.assert_allclose(table.loc["mu", "ess_bulk"], schools.convergence.ess_bulk[0])
    np.testing.assert_allclose(table.loc["mu", "r_hat"], schools.convergence.r_hat[0])


def test_log_likelihood_is_unscaled_and_loo_works(schools):
    found = schools.log_likelihood()
    assert found["y"].dims == ("chain", "draw", "school")
    theta = schools.posterior["theta"].values
    y, sigma = SCHOOLS["y"], SCHOOLS["sigma"]
    expected = -0.5 * ((y - theta) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-9)
    loo = arviz_stats.loo(schools.tree)
    assert -32.5 < loo.elpd < -29.0


def test_posterior_predictive_follows_the_draws(schools):
    drawn = schools.predict()["y"].values
    theta = schools.posterior["theta"].values
    standard = (drawn - theta) / SCHOOLS["sigma"]
    assert abs(standard.mean()) < 4.5 / np.sqrt(standard.size)
    assert abs(standard.std() - 1) < 4.5 / np.sqrt(2 * standard.size)
    assert "posterior_predictive" in schools.tree.children


def test_prior_predictive_groups(schools):
    drawn = schools.prior_predictive(num_samples=300)
    assert drawn["y"].shape == (1, 300, 8)
    assert schools.tree["prior"]["tau"].shape == (1, 300)


def test_prediction_for_new_rows(rng):
    X = rng.normal(size=(30, 2))
    y = (X[:, 0] > 0).astype(int)
    fit = qx.infer(logistic, {"X": X, "y": y}, num_warmup=100, num_samples=100, progress=False)
    new = np.array([[8.0, 0.0], [-8.0, 0.0], [0.0, 0.0]])
    drawn = fit.predict({"X": new})["y"]
    assert drawn.shape == (4, 100, 3)
    assert drawn.dims[-1] == "row"
    assert drawn.values[..., 0].mean() > 0.9
    assert drawn.values[..., 1].mean() < 0.1
    assert fit.tree["constant_data"]["X"].dims == ("row", "X_dim_1")
    with pytest.raises(qx.ModelError, match="shape"):
        fit.predict({"X": np.zeros((3, 5))})


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_saved_fits_come_back_whole(schools, tmp_path, suffix):
    path = tmp_path / f"fit{suffix}"
    schools.save(path)
    loaded = qx.load(path, eight_schools, SCHOOLS)
    assert set(loaded.tree.children) == set(schools.tree.children)
    xr.testing.assert_identical(loaded.posterior, schools.posterior)
    stats = schools.tree["sample_stats"].to_dataset()
    xr.testing.assert_identical(loaded.tree["sample_stats"].to_dataset(), stats)
    assert loaded.costs == schools.costs
    assert loaded.verdict == schools.verdict
    np.testing.assert_allclose(loaded.log_likelihood()["y"], schools.log_likelihood()["y"])
    with pytest.raises(qx.QuincunxError, match="needs the model"):
        qx.load(path).predict()


def test_damaged_files_are_told(schools, tmp_path):
    schools.save(tmp_path / "fit.nc")
    whole = (tmp_path / "fit.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nc").write_text("no fit")
    (tmp_path / "empty.nc").write_bytes(b"")
    (tmp_path / "folder.zarr").mkdir()
    for name in ("cut.nc", "text.nc", "empty.nc", "folder.zarr"):
        with pytest.raises(qx.QuincunxError, match=f"{name}' (cannot be read|was not written)"):
            qx.load(tmp_path / name)
    for name in ("cut.nc", "text.nc"):
        with pytest.raises(qx.QuincunxError, match=f"{name}' cannot be read: it is damaged"):
            qx.Comparison.load(tmp_path / name)


def test_files_that_are_not_fits_are_refused(schools, tmp_path):
    with pytest.raises(qx.QuincunxError, match="suffix must be"):
        schools.save(tmp_path / "fit.csv")
    with pytest.raises(qx.QuincunxError, match="There is no"):
        qx.load(tmp_path / "none.nc")
    path = tmp_path / "other.nc"
    xr.Dataset({"a": ("x", np.zeros(3))}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(qx.QuincunxError, match="not written by"):
        qx.load(path)


def test_loo_without_plates_warns():
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(mu, 1).expand([4]), obs=y)

    fit = qx.infer(model, {"y": np.zeros(4)}, num_warmup=50, num_samples=50, progress=False)
    with pytest.warns(qx.ModelWarning, match="site 'y'.*LOO takes each element"):
        fit.log_likelihood()


def test_missing_observations_are_imputed():
    y = np.array([1.0, np.nan, 3.0, np.nan])

    def model(y, seen):
        mu = qx.sample("mu", dist.Normal(0, 2))
        with qx.plate("row", y, seen) as (t, mask):
            qx.sample("y", dist.Normal(mu, 1.0), obs=t, obs_mask=mask)

    fit = qx.infer(model, {"y": y, "seen": ~np.isnan(y)}, num_samples=2000, progress=False)
    assert fit.verdict.status == "ok", fit.verdict
    mean, sd = 4.0 / 2.25, 2.25**-0.5
    table = fit.summary(round_to="none")
    assert abs(table.loc["mu", "mean"] - mean) < 4.5 * table.loc["mu", "mcse_mean"]
    assert abs(table.loc["mu", "sd"] - sd) < 4.5 * table.loc["mu", "mcse_sd"]
    imputed = fit.posterior["y"].values
    np.testing.assert_array_equal(imputed[..., 0], 1.0)
    assert abs(imputed[..., 1].std() - np.hypot(sd, 1.0)) < 0.1
    assert fit.posterior["y"].dims[-1] == "row"


def test_one_chain_is_suspect_for_being_one():
    fit = qx.infer(conjugate, {"y": np.zeros(3)}, num_chains=1, progress=False)
    assert fit.verdict.status == "suspect"
    assert fit.verdict.reasons == ("One chain cannot show whether chains agree.",)


def test_log_likelihood_of_vector_observations(rng):
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
        with qx.plate("row", y) as t:
            qx.sample("y", dist.MultivariateNormal(mu, np.eye(2)), obs=t, dims=["axis"])

    y = rng.normal(size=(12, 2))
    with jax.numpy_rank_promotion("allow"):
        fit = qx.infer(model, {"y": y}, num_warmup=100, num_samples=200, progress=False)
        assert fit.log_likelihood()["y"].dims == ("chain", "draw", "row")
    assert np.isfinite(arviz_stats.loo(fit.tree).elpd)
    assert fit.tree["observed_data"]["y"].dims == ("row", "axis")


def test_constants_named_like_a_plate_are_kept():
    def model(county, y):
        with qx.plate("county", 2):
            level = qx.sample("level", dist.Normal(0, 1))
        with qx.plate("row", county, y) as (c, t):
            qx.sample("y", dist.Normal(level[c], 1), obs=t)

    data = {"county": np.array([0, 1, 1]), "y": np.zeros(3)}
    fit = qx.infer(model, data, num_warmup=50, num_samples=50, progress=False)
    np.testing.assert_array_equal(fit.tree["constant_data"]["county_data"], data["county"])
    assert fit.tree["constant_data"]["county_data"].dims == ("row",)
    assert fit.posterior["level"].dims[-1] == "county"


def test_a_fit_of_another_model_is_not_loaded(schools, tmp_path):
    schools.save(tmp_path / "fit.nc")
    with pytest.raises(qx.QuincunxError, match="does not hold site 'mu'|another model"):
        qx.load(tmp_path / "fit.nc", logistic, {"X": np.zeros((3, 2)), "y": np.zeros(3, int)})
    with pytest.raises(qx.QuincunxError, match="pass it too"):
        qx.load(tmp_path / "fit.nc", data=SCHOOLS)


def test_derived_observations_are_in_the_tree():
    def model(y):
        mu = qx.sample("mu", dist.Normal(0, 1))
        with qx.plate("row", y) as t:
            qx.sample("log_y", dist.Normal(mu, 1), obs=jax.numpy.log(t))

    y = np.array([1.0, 2.0, 4.0])
    fit = qx.infer(model, {"y": y}, num_warmup=50, num_samples=50, progress=False)
    np.testing.assert_allclose(fit.tree["observed_data"]["log_y"], np.log(y))
    assert "y" in fit.tree["constant_data"]


@pytest.mark.slow
def test_numpyro_model_runs_unchanged_and_matches_numpyro():
    import numpyro
    from numpyro.infer import MCMC, NUTS

    def radon_like(group, x, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("group", 4):
            alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
        slope = numpyro.sample("slope", dist.Normal(0, 2))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(alpha[group] + slope * x, 0.7), obs=y)

    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(4), 12)
    x = rng.normal(size=48)
    y = np.array([-1.0, 0.0, 0.5, 2.0])[group] + 0.8 * x + 0.7 * rng.normal(size=48)
    data = {"group": group, "x": x, "y": y}
    fit = qx.infer(radon_like, data, num_samples=2000, progress=False)
    theirs = MCMC(NUTS(radon_like), num_warmup=1000, num_samples=2000, num_chains=4,
                  chain_method="vectorized", progress_bar=False)  # fmt: skip
    theirs.run(jax.random.key(9), **data)
    draws = theirs.get_samples(group_by_chain=True)
    from quincunx.inference.diagnostics.convergence import convergence, flatten

    names, ours = flatten({name: fit.posterior[name].values for name in draws})
    _, other = flatten({name: np.asarray(value) for name, value in draws.items()})
    ess = convergence({name: fit.posterior[name].values for name in draws}).ess_bulk
    other_ess = convergence({name: np.asarray(value) for name, value in draws.items()}).ess_bulk
    error = np.hypot(ours.std((0, 1)) / np.sqrt(ess), other.std((0, 1)) / np.sqrt(other_ess))
    scores = (ours.mean((0, 1)) - other.mean((0, 1))) / error
    assert np.abs(scores).max() < 4.5, dict(zip(names, scores, strict=True))
    assert fit.posterior["alpha"].dims[-1] == "group"


def test_init_values_and_strategies():
    y = np.array([0.2, 0.4])
    options = {"num_warmup": 30, "num_samples": 30, "num_chains": 2, "progress": False}
    for init in ("prior", "uniform", {"mu": 0.5}, {"mu": np.array([0.5, -3.0])}):
        fit = qx.infer(conjugate, {"y": y}, init=init, **options)
        assert np.isfinite(fit.posterior["mu"].values).all()
    started = qx.infer(
        conjugate,
        {"y": y},
        qx.NUTS(step_size=1e-6, max_tree_depth=1),
        init={"mu": np.array([0.5, -3.0])},
        **{**options, "num_warmup": 0, "num_samples": 1},
    )
    np.testing.assert_allclose(started.posterior["mu"].values[:, 0], [0.5, -3.0], atol=1e-3)
    assert started.posterior.attrs["init"] == "given values of 'mu'"
    with pytest.raises(qx.MethodError, match=r"Unknown strategy 'priro'.*'prior'"):
        qx.infer(conjugate, {"y": y}, init="priro", **options)


def test_wrong_run_settings_are_refused():
    y = {"y": np.zeros(2)}
    for setting in ({"num_samples": 0}, {"num_chains": 0}, {"thinning": -1}, {"num_warmup": -5}):
        with pytest.raises(qx.MethodError, match=next(iter(setting))):
            qx.infer(conjugate, y, **setting)
    with pytest.raises(qx.MethodError, match=r"chain_method.*Did you mean 'vectorized'"):
        qx.infer(conjugate, y, chain_method="vectorised")
    with pytest.raises(qx.StoreError, match="must end in `.zarr`"):
        qx.infer(conjugate, y, store="draws.nc")
    for settings in ({"target_accept": 1.2}, {"mass_matrix": "full"}, {"step_size": -1.0}):
        with pytest.raises(qx.MethodError, match=next(iter(settings))):
            qx.NUTS(**settings)


def test_progress_is_reported_to_a_function():
    seen = []
    qx.infer(conjugate, {"y": np.zeros(2)}, num_warmup=50, num_samples=50, progress=seen.append)
    assert seen[-1].done == seen[-1].total == 100
    assert {state.phase for state in seen} == {"warm-up", "sampling"}
    assert all(a.done < b.done for a, b in zip(seen, seen[1:], strict=False))
    assert seen[-1].step_size > 0


def test_tables_of_methods():
    assert "nuts" in qx.methods().index
    table = qx.applicable(conjugate, {"y": np.zeros(2)})
    assert bool(table.loc["nuts", "applies"])


def test_conjugate_mean_in_the_summary():
    y = np.array([1.0, 2.0, 3.0])
    fit = qx.infer(conjugate, {"y": y}, num_samples=2000, progress=False)
    mean, sd = conjugate_posterior(y)
    row = fit.summary(round_to="none").loc["mu"]
    assert abs(row["mean"] - mean) < 4.5 * row["mcse_mean"]
    assert abs(row["sd"] - sd) < 4.5 * row["mcse_sd"]
