"""Comparisons name planted faults, and leave exact methods alone."""

import html
import io
import json
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console
from scipy.stats import norm

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.comparison import compare as compare_module
from quincunx.inference.comparison.measure import Measures, Predictive, against, decide, predictive
from quincunx.inference.comparison.result import JUDGED, NUMBERS, SPENT, cell
from quincunx.inference.comparison.standard import Sample, Standard
from quincunx.inference.diagnostics.agreement import Moments, agreement
from quincunx.inference.diagnostics.discrepancy import SteinTest
from quincunx.inference.diagnostics.transport import TransportTest
from quincunx.inference.diagnostics.verdict import Verdict
from quincunx.inference.method import as_key
from quincunx.inference.report import page
from quincunx.inference.stopping import INTERRUPTED
from tests.inference.approximate import Gaussian
from tests.scenarios import SCHOOLS, eight_schools

SCALES = np.array([1.0, 30.0, 0.03])
X = np.random.default_rng(1).normal(size=(60, 3)) * SCALES
Y = 20 + (X / SCALES) @ [1.0, -1.0, 0.5] + np.random.default_rng(2).normal(size=60)
DATA = {"X": X, "y": Y}
QUIET = {"progress": False, "num_samples": 400}


@qx.model
def regression(X, y=None):
    """Badly scaled, with a posterior that is Gaussian."""
    intercept = qx.sample("intercept", dist.Normal(0, 100))
    beta = qx.sample("beta", dist.Normal(0, 100).expand([3]).to_event(1))
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Normal(intercept + x @ beta, 1.0), obs=t)


def stuck(fit):
    """The fit with a first chain that never moves."""
    posterior = fit.posterior.copy(deep=True)
    for values in posterior.values():
        values.values[0] = values.values[0, :1]
    return with_posterior(fit, posterior)


def with_posterior(fit, posterior):
    """A fit with other draws."""
    tree = fit.tree.copy(deep=True)
    tree["posterior"] = xr.DataTree(posterior)
    return qx.Fit(tree, method=fit.method, costs=fit.costs, density=fit.density)


@pytest.fixture(scope="module")
def fits():
    def infer(method="nuts", key=0, **settings):
        return qx.infer(
            regression, DATA, method, key=key, **{"num_warmup": 400, **QUIET, **settings}
        )

    right = infer(key=1)
    return {
        "right": right,
        "gaussian": infer(Gaussian(newton=2), num_warmup=0),
        "short": infer(key=2, num_warmup=20),
        "coarse": infer(qx.BregmanLangevin(adjust=False, step_size=0.5)),
        "halved": infer(Gaussian(newton=2, factor=0.5), num_warmup=0),
        "stuck": stuck(right),
    }


@pytest.fixture(scope="module")
def compared(fits):
    reference = qx.infer(regression, DATA, num_warmup=400, num_samples=1000, key=7, progress=False)
    return qx.compare(fits, reference=reference)


def test_right_methods_agree(compared):
    assert compared.table["result"][["right", "gaussian"]].tolist() == ["agrees", "agrees"]
    assert compared.reasons["right"] == ()


def test_twenty_warm_up_steps_are_too_few(compared):
    row = compared.table.loc["short"]
    assert row["result"] == "differs" or row["verdict"] == "failed"
    assert row["r_hat"] > 1.05
    name = compared.fits["short"].verdict.reasons[0]
    assert "'beta[" in name
    assert any("beta[" in reason for reason in compared.reasons["short"])


def test_a_coarse_step_differs_in_the_width_of_a_parameter(compared):
    row = compared.table.loc["coarse"]
    assert row["kind"] == "asymptotically biased"
    assert row["result"] == "differs"
    errors = compared.errors["coarse"]["log_sd_z"]
    assert row["log_sd_parameter"] == errors.abs().idxmax()
    assert row["log_sd_error"] > 5
    assert any(f"log sd of '{row['log_sd_parameter']}'" in r for r in compared.reasons["coarse"])


def test_halved_scales_differ_by_a_log_sd_of_log_two(compared):
    row = compared.table.loc["halved"]
    assert row["result"] == "differs"
    np.testing.assert_allclose(compared.errors["halved"]["log_sd_difference"], -np.log(2), atol=0.2)
    assert row["wasserstein_ratio"] > 5
    assert row["ksd_p"] < 0.0025
    assert "log sd of" in compared.reasons["halved"][0]


def test_a_stuck_chain_has_failed(compared):
    row = compared.table.loc["stuck"]
    assert row["verdict"] == "failed"
    assert row["result"] == "cannot tell"
    assert row["ess_bulk"] == 0
    assert "never moved: 'beta[0]'" in compared.reasons["stuck"][0]
    assert row[["wasserstein_ratio", "ksd"]].isna().all()


def test_costs_are_per_effective_draw(compared, fits):
    row, fit = compared.table.loc["right"], fits["right"]
    ess = fit.convergence.ess_bulk.min()
    assert row["ess_per_gradient"] == pytest.approx(ess / fit.costs["gradients"])
    assert row["ess_per_second"] == pytest.approx(ess / fit.costs["sample_seconds"])
    assert np.isnan(compared.table["ess_per_gradient"]["gaussian"])
    assert compared.table["peak_mib"].isna().all()


FAULTS = {
    "short": "beta[",
    "coarse": "log sd of '",
    "halved": "log sd of '",
    "stuck": "never moved",
}


@pytest.mark.parametrize(("name", "words"), FAULTS.items())
def test_table_and_page_tell_of_planted_faults(compared, name, words):
    row = compared.table.loc[name]
    assert row["result"] == "differs" or row["verdict"] == "failed"
    told = html.unescape("".join(page._reasons(compared)))
    lines = [line for line in told.split("<li>") if line.startswith(f"{name}: ")]
    assert words in "".join(lines)
    cells = page._judgement(compared).split("<tr>")
    mine = next(line for line in cells if f'scope="row" class="text">{name}<' in line)
    assert f">{row['result']}</td>" in mine
    assert f">{row['verdict']}</td>" in mine


def test_what_it_prints(compared):
    text = str(compared)
    for word in ("differs", "agrees", "cannot tell", "n/a", "blind to the weights", "halved"):
        assert word in text


def left_out():
    """Log predictive density of each row given all others: that of a Gaussian."""
    design, found = np.column_stack([np.ones(60), X / SCALES]), []
    prior = np.diag(1 / (100 * np.array([1.0, *SCALES])) ** 2)
    for row in range(60):
        rest = np.delete(np.arange(60), row)
        covariance = np.linalg.inv(prior + design[rest].T @ design[rest])
        mean = design[row] @ covariance @ design[rest].T @ Y[rest]
        sd = np.sqrt(1 + design[row] @ covariance @ design[row])
        found.append(norm.logpdf(Y[row], mean, sd))
    return np.array(found)


def test_without_a_reference_the_best_exact_fit_is_taken(fits):
    found = qx.compare({name: fits[name] for name in ("right", "halved")})
    assert found.reference.startswith("right")
    assert found.table["result"].tolist() == ["reference", "differs"]
    row, density = found.table.loc["halved"], fits["right"].density.unconstrained
    narrow, right = (predictive(fits[name], density) for name in ("halved", "right"))
    np.testing.assert_allclose(right.values, left_out(), atol=0.1)
    assert (row["elpd_difference"], row["elpd_error"]) == narrow.minus(right)
    alone = qx.compare({"halved": fits["halved"], "gaussian": fits["gaussian"]})
    assert alone.reference == ""
    assert alone.table["result"]["gaussian"] == "cannot tell"
    assert alone.table["result"]["halved"] == "cannot tell" or "Stein" in alone.reasons["halved"][0]


def test_it_is_saved_and_read_again(compared, tmp_path):
    compared.save(tmp_path / "compared.nc")
    again = qx.Comparison.load(tmp_path / "compared.nc")
    pd.testing.assert_frame_equal(again.table, compared.table)
    assert again.reasons == compared.reasons
    pd.testing.assert_frame_equal(again.errors["coarse"], compared.errors["coarse"])
    assert again.fits["right"].posterior.equals(compared.fits["right"].posterior)
    assert str(again) == str(compared)


def test_another_reference_is_named_where_one_has_failed(fits):
    found = qx.compare(
        {name: fits[name] for name in ("right", "gaussian", "stuck")}, reference="stuck"
    )
    reason = found.reasons["right"][0]
    assert "qx.compare(compared.fits, reference='right')" in reason
    assert found.told()[0].startswith("right, gaussian: The reference itself")
    assert qx.compare(found.fits, reference="right").table["result"]["gaussian"] == "agrees"
    alone = qx.compare({name: fits[name] for name in ("stuck", "gaussian")}, reference="stuck")
    assert alone.reasons["gaussian"] == ("The reference itself has failed.",)


def test_what_users_write_is_no_markup(fits):
    told = qx.compare({"nuts[dense]": fits["right"], "[/x]": fits["stuck"]}, reference="[/x]")
    told.left_out["off"] = "off [tf-allocator=''] x, see [/path]"
    text = str(told)
    for words in ("nuts[dense]: The reference itself", told.left_out["off"], "judged by [/x]"):
        assert words in text
    console = Console(width=200, file=io.StringIO())
    console.print(Verdict("suspect", ("See [/path] of 'beta[0]'.",), ("Raise [x].",)))
    console.print(qx.explain(regression, DATA))
    assert "See [/path] of 'beta[0]'." in console.file.getvalue()
    assert "Raise [x]." in console.file.getvalue()


def test_text_has_the_width_of_the_terminal(compared, monkeypatch):
    assert max(map(len, str(compared).splitlines())) > 120
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, str(compared).splitlines())) > 120
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert max(map(len, str(compared).splitlines())) <= 80
    assert "…" not in str(compared)


def test_a_reference_that_is_rejected_itself_judges_nothing(fits):
    chains = {name: fits[name] for name in ("right", "coarse")}
    found = qx.compare(chains, reference="coarse").table
    assert found["result"]["coarse"] == "differs"
    assert found["ksd_p"]["coarse"] < 0.001
    assert found["result"]["right"] == "cannot tell"


@pytest.mark.parametrize("width", [80, 200])
def test_no_cell_is_cut_on_a_narrow_terminal(compared, width):
    console = Console(width=width, file=io.StringIO())
    console.print(compared)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    row = compared.rows()["coarse"]
    for column in (*JUDGED, *SPENT):
        if compared.table[column].notna().any():
            assert f" {NUMBERS[column].strip()} " in text
            assert f" {cell(row, column)} " in text


def test_the_plot_has_all_methods(compared):
    collection = compared.plot(var_names=["intercept"], backend="matplotlib")
    assert set(collection.data["model"].values) == set(compared.fits)


@pytest.fixture(scope="module")
def modes():
    """A sampler in one mode of two, and one that visits both."""
    worked = qx.models.load("gaussian_mixture", modes=2)
    start = {"x": np.array([5.0, 0.0])}
    settings = {"num_warmup": 300, **QUIET}
    one = qx.infer(worked.model, worked.data, init=start, **settings)
    both = qx.infer(worked.model, worked.data, "polar_slice", **settings)
    return worked, qx.compare({"one": one, "both": both}, reference=worked.reference)


def test_one_mode_of_two_differs_where_the_verdict_cannot_know(modes):
    _, compared = modes
    assert compared.reference.endswith("; log evidence 0.00)")
    row = compared.table.loc["one"]
    assert row["verdict"] == "ok"
    assert row["result"] == "differs"
    assert row["mean_parameter"] == "x[0]"
    assert row["ksd_p"] > 0.01  # the blind spot that the caveat is about
    assert compared.table["result"]["both"] != "differs"


def test_methods_are_run_and_named():
    found = qx.compare(
        eight_schools,
        SCHOOLS,
        ["nuts", qx.NUTS, qx.PolarSlice()],
        reference="eight_schools",
        budget=qx.Until(seconds=60),
        num_warmup=400,
        **QUIET,
    )
    assert list(found.table.index) == ["nuts", "nuts (2)", "polar_slice"]
    first, second = (found.fits[name].posterior["mu"].values for name in ("nuts", "nuts (2)"))
    assert np.ptp(first - second) > 1
    assert (found.table["result"] != "differs").all()
    assert "Stan" in found.reference or "trusted" in found.reference
    assert list(found.table.columns[3:-2]) == list(NUMBERS)
    assert found.table["compile_seconds"].gt(0).all()
    assert found.table["peak_mib"].ge(0).all()


def test_weighted_draws_have_evidence_and_no_r_hat():
    worked = qx.models.load("gaussian_mixture", modes=1)
    density = qx.compile(worked.model, worked.data)
    exact = jax.device_get(worked.reference.draws(jax.random.key(3), 4000))
    z = np.asarray(jax.vmap(density.unconstrain)(exact))
    wide = z.mean(axis=0) + 3 * (z - z.mean(axis=0))
    target = jax.vmap(density.log_density)(wide)
    proposal = jax.vmap(density.log_density)(z) - 2 * np.log(3)
    fit = qx.Fit.weighted(
        density, wide, np.asarray(target - proposal), method=Gaussian(), costs={"evaluations": 4000}
    )
    row = qx.compare({"weighted": fit}, reference=worked.reference).table.loc["weighted"]
    assert row["result"] == "agrees"
    assert row["log_evidence"] == pytest.approx(worked.reference.log_evidence, abs=0.1)
    assert row["pareto_k"] < 0.7
    assert np.isnan(row["r_hat"])
    assert np.isnan(row["ess_per_gradient"])
    assert row["ess_per_evaluation"] == pytest.approx(row["ess_bulk"] / 4000)
    assert np.isnan(row["ess_per_pass"])
    assert cell(dict(row), "log_evidence").endswith(f"± {fit.log_evidence.error:.1g}")
    sample = Sample.of_fit(fit, density)
    assert sample.ess == fit.importance.ess
    assert len(sample.kept) == pytest.approx(fit.importance.ess / 10, abs=4)


def test_weighted_draws_that_are_left_out_add_to_errors():
    """Of 20,000 draws, each worth one, every other is looked at."""
    density = qx.compile(flat)
    z = np.random.default_rng(1).normal(size=(20_000, 1))
    fit = qx.Fit.weighted(density, z, np.zeros(20_000), method=Gaussian(), costs={})
    assert fit.importance.ess == pytest.approx(20_000)
    assert Sample.of_fit(fit, None).ess == pytest.approx(10_000)
    fit = qx.Fit.weighted(
        density, z, np.where(np.arange(20_000) < 100, 0, -np.inf), method=Gaussian(), costs={}
    )
    assert Sample.of_fit(fit, None).ess == pytest.approx(100, rel=0.01)


def test_weighted_draws_have_the_predictive_accuracy_of_exact_ones():
    """Leaving one out is known in closed form where the posterior is Gaussian."""
    density = qx.compile(regression, DATA)
    columns = np.column_stack([np.ones(len(Y)), X])
    precision = columns.T @ columns + 1e-4 * np.eye(4)
    mean, covariance = np.linalg.solve(precision, columns.T @ Y), np.linalg.inv(precision)
    noise = np.random.default_rng(8).normal(size=(4000, 4))
    z = mean + 1.4 * noise @ np.linalg.cholesky(covariance).T
    log_weight = np.asarray(jax.vmap(density.log_density)(z)) + 0.5 * np.sum(noise**2, axis=1)
    fit = qx.Fit.weighted(density, z, log_weight, method=Gaussian(), costs={})
    leverage = np.sum(columns @ covariance * columns, axis=1)
    apart, variance = (Y - columns @ mean) / (1 - leverage), 1 / (1 - leverage)
    exact = -0.5 * (apart**2 / variance + np.log(2 * np.pi * variance))
    found = predictive(fit, density)
    np.testing.assert_allclose(found.values, exact, atol=0.1)
    assert abs(found.values.sum() - exact.sum()) < 0.6
    poor = qx.Fit.weighted(density, z, 30 * log_weight, method=Gaussian(), costs={})
    assert poor.importance.ess < 64
    assert predictive(poor, density) is None


class Broken(Gaussian):
    """A method that breaks down."""

    name = "broken"

    def init(self, density, position, key):
        raise qx.MethodError("No luck.")


def test_a_method_that_breaks_down_leaves_the_others():
    found = qx.compare(regression, DATA, [Broken(), Gaussian(newton=2)], num_warmup=0, **QUIET)
    assert list(found.table.index) == ["test_gaussian"]
    assert found.left_out["broken"] == "It broke down. No luck."
    assert "broken did not run: It broke down." in str(found)
    with pytest.raises(qx.QuincunxError, match="No method made a fit. broken: It broke down"):
        qx.compare(regression, DATA, [Broken()], num_warmup=0, **QUIET)


class Calls(list):
    """Methods and settings; `made` is what a call returns."""

    made: qx.Fit


@pytest.fixture
def ran(fits, monkeypatch):
    """The calls of `infer` in a comparison that runs nothing; all but `Broken` return `made`."""
    calls = Calls()
    calls.made = fits["right"]

    def infer(model, data, method, **settings):
        calls.append((method, settings))
        if isinstance(method, Broken):
            raise qx.MethodError("No luck.")
        return calls.made

    monkeypatch.setattr(compare_module, "infer", infer)
    return calls


def cut_off(fit):
    """The fit, as if Ctrl-C had ended it."""
    posterior = fit.posterior.copy(deep=True)
    posterior.attrs["outcome"] = INTERRUPTED
    return with_posterior(fit, posterior)


@pytest.mark.parametrize("reference", [None, "elliptical_slice", "polar_slice (2)"])
def test_an_interruption_ends_the_comparison(fits, ran, reference):
    ran.made = cut_off(fits["right"])
    methods = ["nuts", qx.PolarSlice(), qx.PolarSlice(width=2.0)]
    found = qx.compare(regression, DATA, methods, reference=reference, progress=False)
    assert len(ran) == 1
    assert list(found.table.index) == ["nuts"]
    assert "interrupted" in found.left_out["polar_slice"]
    assert found.interrupted
    assert found.reference == "nuts, one of them"
    if reference == "elliptical_slice":
        assert "interrupted" in found.left_out["the reference (elliptical_slice)"]
        assert "the reference (elliptical_slice) did not run: The comparison" in str(found)


def test_a_reference_that_breaks_down_leaves_the_fits(fits, ran):
    methods = [qx.NUTS(), Gaussian()]
    found = qx.compare(regression, DATA, methods, reference=Broken(), progress=False)
    assert found.reference == "nuts, one of them"
    assert found.left_out == {"the reference (broken)": "It broke down. No luck."}
    assert not found.interrupted
    again = qx.compare(regression, DATA, ["nuts", Broken()], reference="broken", progress=False)
    assert again.reference == "nuts, one of them"
    assert set(again.left_out) == {"broken"}


def test_an_interrupted_reference_says_so(fits):
    found = qx.compare({"right": fits["right"]}, reference=cut_off(fits["gaussian"]))
    assert found.reference == f"a fit by test_gaussian, which ended early: {INTERRUPTED}"
    assert found.interrupted


def test_methods_have_keys_of_their_own(ran):
    qx.compare(regression, DATA, ["nuts", "nuts", Broken(), "polar_slice"], key=5, progress=False)
    keys = [settings["key"] for _, settings in ran]
    first = jax.random.key(5)
    expected = [first, *(jax.random.fold_in(first, place) for place in (1, 2, 3))]
    assert keys == expected
    ran.clear()
    qx.compare(regression, DATA, ["nuts"], progress=False)
    assert ran[0][1]["key"] == jax.random.key(0)


def test_a_reference_must_be_of_the_same_model(fits, monkeypatch):
    def never(*args, **settings):
        raise AssertionError("it ran")

    monkeypatch.setattr(compare_module, "infer", never)
    posterior = fits["right"].posterior
    wide = with_posterior(fits["right"], xr.concat([posterior, posterior], "beta_dim_0", "minimal"))
    short = qx.models.Reference("a table", {"beta": np.zeros(2)}, {"beta": np.ones(2)})
    drawn = qx.models.Reference("a law", draws=lambda key, n: {"beta": np.zeros((n, 2))})
    elsewhere = qx.models.Reference("a table", {"m": np.zeros(2)}, {"m": np.ones(2)})
    nothing = qx.models.Reference("nobody")
    other = qx.Fit(
        fits["right"].tree,
        method=None,
        costs={},
        density=qx.compile(regression, {**DATA, "y": Y + 1}),
    )
    for reference, words in (
        (wide, r"'beta' of shape \(6,\), the compared model of \(3,\)"),
        (short, r"'beta' of shape \(2,\)"),
        (drawn, r"'beta' of shape \(2,\)"),
        (elsewhere, "another model: it has 'm'"),
        (nothing, "no answers: nobody"),
        (other, "of different data: 'y' differs"),
    ):
        with pytest.raises(qx.QuincunxError, match=words):
            qx.compare(regression, DATA, ["nuts"], reference=reference)
        with pytest.raises(qx.QuincunxError, match=words):
            qx.compare(fits, reference=reference)


def test_a_reference_may_lack_some_of_the_sites(fits):
    """As that of another parametrisation does."""
    part = with_posterior(fits["right"], fits["right"].posterior.drop_vars("intercept"))
    found = qx.compare({"gaussian": fits["gaussian"]}, reference=part)
    assert found.table["result"]["gaussian"] == "agrees"
    assert list(found.errors["gaussian"].index) == ["beta[0]", "beta[1]", "beta[2]"]
    assert found.table[["wasserstein_ratio", "elpd_difference"]].isna().all(axis=None)


def test_settings_are_looked_at_before_anything_runs(ran):
    for method in (["nuts"], [qx.PIS()]):
        with pytest.raises(
            TypeError, match="'num_sample' of `compare`. Did you mean 'num_samples'"
        ):
            qx.compare(regression, DATA, method, num_sample=3)
    with pytest.raises(TypeError, match="Did you mean 'methods'"):
        qx.compare(regression, DATA, method="nuts")
    for name, value in (("store", "x.zarr"), ("resume", True), ("blocking", False)):
        with pytest.raises(qx.MethodError, match=f"so `{name}` cannot be given to several"):
            qx.compare(regression, DATA, ["nuts"], **{name: value})
    with pytest.raises(qx.MethodError, match="`budget`"):
        qx.compare(regression, DATA, ["nuts"], until=qx.Until(seconds=3))
    assert not ran


def test_nothing_runs_before_all_is_looked_at(monkeypatch):
    def never(*args, **settings):
        raise AssertionError("it ran")

    monkeypatch.setattr(compare_module, "infer", never)
    with pytest.raises(qx.QuincunxError, match="Unknown reference 'nots'"):
        qx.compare(regression, DATA, ["nuts"], reference="nots")
    with pytest.raises(qx.MethodError, match="sgld"):
        qx.compare(eight_schools, SCHOOLS, ["nuts", "sgld"])
    with pytest.raises(qx.MethodError, match="sgld"):
        qx.compare(eight_schools, SCHOOLS, ["nuts"], reference="sgld")


def test_mistakes_are_told(fits):
    with pytest.raises(qx.QuincunxError, match="leave out 'num_samples'"):
        qx.compare(fits, num_samples=3)
    with pytest.raises(qx.QuincunxError, match="leave out 'key', 'progress'"):
        qx.compare(fits, key=0, progress=True)
    with pytest.raises(qx.QuincunxError, match="a key of the dict is 3: write '3'"):
        qx.compare({"right": fits["right"], 3: fits["gaussian"]})
    with pytest.raises(qx.QuincunxError, match="different models"):
        qx.compare({"a": fits["right"], "b": qx.infer(flat, num_warmup=50, **QUIET)})
    with pytest.raises(qx.QuincunxError, match="Unknown reference 'nots'"):
        qx.compare(fits, reference="nots")
    with pytest.raises(qx.MethodError, match="must be a list"):
        qx.compare(regression, DATA, "nuts")
    with pytest.raises(qx.MethodError, match="Did you mean"):
        qx.compare(regression, DATA, ["nutz"])
    with pytest.raises(qx.QuincunxError, match=r"\.nc"):
        qx.compare({"right": fits["right"]}).save("x.html")


def test_fits_of_other_data_are_refused(fits):
    def of(data):
        tree, costs = fits["right"].tree, fits["right"].costs
        return qx.Fit(tree, method=None, costs=costs, density=qx.compile(regression, data))

    single = {name: np.asarray(value, np.float32) for name, value in DATA.items()}
    bare = qx.Fit(fits["right"].tree, method=None, costs=fits["right"].costs, density=None)
    qx.compare({"bare": bare, "right": fits["right"], "single": of(single)}, reference="right")
    with pytest.raises(
        qx.QuincunxError, match="'b' and 'right' are of different data: 'y' differs"
    ):
        qx.compare({"bare": bare, "right": fits["right"], "b": of({**DATA, "y": Y[::-1]})})
    with pytest.raises(qx.QuincunxError, match="'X', 'y' differ"):
        qx.compare({"right": fits["right"], "b": of({"X": X[:50], "y": Y[:50]})})


def test_differences_of_predictive_accuracy_are_of_pairs():
    found = Predictive(np.array([1.0, 4.0, 1.0])).minus(Predictive(np.array([0.0, 1.0, 2.0])))
    assert found == (3.0, pytest.approx(np.sqrt(8 / 3 * 3)))


def sampled(values, ess=None):
    """Draws by parameter, `(chain, draw)`, without positions."""
    return Sample(list(values), np.stack(list(values.values()), -1), ess, None, np.zeros(0, int))


def test_parameters_are_matched_by_name_and_sizes_are_their_own(rng):
    """One set is of four chains, the other is worth fifty draws; one tail is heavy."""
    count = (4, 500)
    mine = sampled(
        {
            "own": np.zeros(count),
            "heavy": rng.standard_cauchy(size=count),
            "m": rng.normal(size=count),
            "rare": (rng.uniform(size=count) < 0.01).astype(float),
        }
    )
    theirs = {
        "m": rng.normal(size=(1, 2000)),
        "rare": (rng.uniform(size=(1, 2000)) < 0.01).astype(float),
        "heavy": 3 + rng.standard_cauchy(size=(1, 2000)),
    }
    table = against(mine, Standard("another", sample=sampled(theirs, 50.0))).table
    assert list(table.index) == ["heavy", "m", "rare"]
    assert table["ranks"].tolist() == [True, False, False]
    expected = np.sqrt(1 / 2000 + 1 / 50)
    assert table["mean_error"]["m"] == pytest.approx(expected, rel=0.1)
    assert -8 < table["mean_z"]["heavy"] < -4
    assert abs(table["mean_z"]["rare"]) < 4
    mine.values[..., 1] *= 100  # heavy in one set alone
    alone = against(mine, Standard("another", sample=sampled({"heavy": theirs["m"]}, 50.0)))
    assert alone.table["ranks"].all()


def test_trusted_moments_are_worth_their_size():
    """An sd of 2 from 100 draws: errors of the mean and of the log sd by hand."""
    standard = Standard("trusted", means={"a": 1.0, "b": 0.0}, sds={"a": 2.0, "b": 1.0}, size=100.0)
    found = standard.moments(["a"])
    assert found.mean == 1
    assert found.sd == 2
    assert found.mean_error == pytest.approx(0.2)
    assert found.log_sd_error == pytest.approx(1 / np.sqrt(200))


def test_a_method_as_reference_runs_longer_on_its_own(fits, monkeypatch):
    seen = []

    def told(model, data, method, **settings):
        seen.append(settings)
        return fits["right"]

    monkeypatch.setattr(compare_module, "infer", told)
    budget = qx.Until(seconds=60, ess=300, r_hat=1.02)
    qx.compare(
        regression, DATA, ["nuts"], reference="nuts", budget=budget, num_samples=300, progress=False
    )
    longer = qx.Until(seconds=240, ess=1200, r_hat=1.02)
    (own, reference), keys = seen, [jax.random.key_data(as_key(s["key"])) for s in seen]
    assert (own["num_samples"], own["until"]) == (300, budget)
    assert (reference["num_samples"], reference["until"]) == (1200, longer)
    assert (keys[0] != keys[1]).any()


@qx.model
def flat():
    qx.sample("m", dist.Normal(0, 1))


@pytest.fixture(scope="module")
def autoregressive():
    """Makes fits whose chains are slow and right, or with another mean."""
    fit = qx.infer(flat, num_warmup=50, **QUIET)

    def made(seed, length=3000, rho=0.95, mean=0.0):
        m = np.random.default_rng(seed).normal(size=(4, length))
        m[:, 1:] *= np.sqrt(1 - rho**2)
        for t in range(1, length):
            m[:, t] += rho * m[:, t - 1]
        variables = {"m": (("chain", "draw"), m + mean)}
        return with_posterior(fit, xr.Dataset(variables, attrs=fit.posterior.attrs))

    return made


def test_the_reference_is_the_good_fit_that_is_worth_most(autoregressive):
    suspect = autoregressive(1, rho=0.0)
    suspect.posterior["m"].values[0] += 0.4
    fits = {
        "suspect": suspect,
        "slow": autoregressive(2, rho=0.6),
        "fast": autoregressive(3, rho=0),
    }
    assert [fit.verdict.status for fit in fits.values()] == ["suspect", "ok", "ok"]
    assert compare_module._best(fits, None).name == "fast"
    assert compare_module._sound(fits) == ("slow", "fast")
    weighted = SimpleNamespace(kind=qx.Kind.WEIGHTED, verdict=fits["fast"].verdict)
    assert compare_module._sound({**fits, "weights": weighted}) == ("weights", "slow", "fast")


def test_long_chains_are_thinned_along_the_chain(autoregressive):
    assert Sample.of_fit(autoregressive(1, length=9000), None).values.shape == (4, 3000, 1)


def test_slow_chains_are_not_taken_for_wrong_ones(autoregressive):
    tables = []
    for seed in range(6):
        fits = {"slow": autoregressive(seed), "other": autoregressive(100 + seed)}
        tables.append(qx.compare(fits, reference="other").table.loc["slow"])
    assert [row["result"] for row in tables].count("differs") == 0
    assert np.median([row["wasserstein_p"] for row in tables]) > 0.05
    assert np.median([row["ksd_p"] for row in tables]) > 0.05
    sample = Sample.of_fit(autoregressive(1), None)
    assert len(sample.kept) == pytest.approx(12_000 / 39 / 2, rel=0.5)
    wrong = qx.compare(
        {"off": autoregressive(3, mean=0.8), "other": autoregressive(103)}, reference="other"
    )
    assert wrong.table["result"]["off"] == "differs"


@pytest.mark.parametrize(("error", "word"), [(0.1, "agrees"), (0.2, "cannot tell")])
def test_few_effective_draws_cannot_tell(autoregressive, error, word):
    """Half a posterior sd must be beyond some three standard errors."""
    moments = Moments.trusted(np.zeros(1), np.ones(1), 5000)._replace(mean_error=np.full(1, error))
    agreed = agreement(["m"], moments, moments._replace(mean_error=np.zeros(1)), np.zeros(1, bool))
    standard = Standard("trusted answers", means={"m": 0.0}, sds={"m": 1.0})
    fit = autoregressive(1)
    found, reasons = decide(fit, standard, Measures({}, agreed, None, None, False), 4)
    assert found == word
    if word == "cannot tell":
        assert (
            "the mean of 'm' could be off by 0.64 posterior sds and it would not show" in reasons[0]
        )


@pytest.mark.parametrize(("freedom", "word"), [(50.0, "agrees"), (4.0, "cannot tell")])
def test_few_degrees_of_freedom_cannot_tell(autoregressive, freedom, word):
    one = np.ones(1)
    moments = Moments.trusted(0 * one, one, 1000)._replace(freedom=freedom * one)
    agreed = agreement(["m"], moments._replace(mean_error=0.1 * one), moments, one < 0)
    standard = Standard("trusted answers", means={"m": 0.0}, sds={"m": 1.0})
    found, _ = decide(autoregressive(1), standard, Measures({}, agreed, None, None, False), 4)
    assert found == word


def test_sds_of_heavy_tails_are_not_judged_by_trusted_ones():
    """Their errors would mean nothing; those of means stay."""
    rng = np.random.default_rng(5)
    values = np.stack([rng.normal(size=(4, 500)), rng.standard_t(2.2, size=(4, 500))], axis=-1)
    sample = Sample(["light", "heavy"], values, None, None, np.zeros(0, int))
    zero, one = dict.fromkeys(sample.names, 0.0), dict.fromkeys(sample.names, 1.0)
    found = against(sample, Standard("trusted answers", means=zero, sds=one, size=1e4))
    assert found is not None
    assert np.isnan(found.table["log_sd_z"]).tolist() == [False, True]
    assert np.isfinite(found.table["mean_z"]).all()
    assert found.log_sd_p > 0.01
    assert found.worst("log_sd")[1] == "light"
    assert not found.table["ranks"].any()


def test_shifts_of_normal_scores_are_told_as_such(autoregressive):
    one = np.ones(1)
    moments = Moments.trusted(0 * one, one, 5000)
    agreed = agreement(["m"], moments._replace(mean=one, sd=2 * one), moments, one > 0)
    standard = Standard("other", means={"m": 0.0}, sds={"m": 1.0})
    found, reasons = decide(autoregressive(1), standard, Measures({}, agreed, None, None, False), 4)
    assert found == "differs"
    assert reasons[0].startswith("The mean of the normal scores of 'm' is off by +1 (+")
    assert reasons[1].startswith("The log sd of the normal scores of 'm' is off by +0.69 (")
    assert "posterior sds" not in "".join(reasons)
    assert "m (normal scores)" in page._errors(agreed.table)


def test_runs_that_ended_in_their_warm_up_have_no_figures(autoregressive, tmp_path):
    """A budget may end a slow method before its first draw."""
    cut = qx.infer(flat, num_warmup=50_000, until=qx.Until(seconds=1e-6), progress=False)
    found = qx.compare({"cut": cut, "other": autoregressive(1)})
    row = found.table.loc["cut"]
    assert row["verdict"] == "failed"
    assert row["result"] == "cannot tell"
    assert row["ess_bulk"] == 0
    assert row[["r_hat", "mean_error", "wasserstein_ratio", "ksd"]].isna().all()
    assert found.reasons["cut"][0].startswith(
        "The fit has failed: There are no draws yet. It ended"
    )
    assert "no draws yet" in found.report(tmp_path / "page.html").read_text()
    assert "too few draws" in cut.report(tmp_path / "fit.html").read_text()
    judged = qx.compare({"other": autoregressive(1), "cut": cut}, reference="cut")
    assert judged.table["result"]["other"] == "cannot tell"
    with pytest.raises(qx.QuincunxError, match="no draws"):
        cut.summary()


@pytest.mark.parametrize(
    ("p_value", "tests", "word"),
    [(0.004, 4, "agrees"), (0.002, 4, "differs"), (0.002, 8, "agrees"), (0.001, 8, "differs")],
)
def test_the_level_is_of_all_tests_together(autoregressive, p_value, tests, word):
    """Four tests at 1 % together: one of them rejects below a quarter of that."""
    moments = Moments.trusted(np.zeros(1), np.ones(1), 10_000)
    agreed = agreement(["m"], moments, moments, np.zeros(1, bool))
    moved = TransportTest(1.0, 0.5, 0.9, p_value, 400)
    fit = autoregressive(1)
    standard = Standard("trusted answers", means={"m": 0.0}, sds={"m": 1.0})
    found = decide(fit, standard, Measures({}, agreed, moved, SteinTest(0.0, 0.5), False), tests)
    assert found[0] == word


def test_all_methods_share_the_level(autoregressive, monkeypatch):
    """What differs beside one other may not do so beside seven more."""
    seen = []

    def told(fit, standard, measures, tests):
        seen.append((tests, len(measures.p_values)))
        return decide(fit, standard, measures, tests)

    monkeypatch.setattr(compare_module, "decide", told)
    fits = {str(seed): autoregressive(seed, rho=0.5) for seed in range(3)}
    table = qx.compare(fits, reference="0").table
    assert seen == [(seen[0][0], number) for number in (1, 4, 4)]
    assert seen[0][0] == 9
    wrong = autoregressive(4, rho=0.5, mean=0.3)
    found = qx.compare({**fits, "wrong": wrong}, reference="0").table
    assert found["wasserstein_p"]["wrong"] < 0.01 / 13
    assert found["ksd_p"]["wrong"] < 0.01 / 13
    assert (found["result"][list(fits)] == table["result"]).all()
    assert found["result"]["wrong"] == "differs"


def test_a_choice_follows_the_structure():
    kinked = qx.models.load("diabetes_lasso")
    first = qx.choose(kinked.model, kinked.data).table.index[0]
    assert first == "bregman_langevin"
    schools = qx.choose(eight_schools, SCHOOLS)
    assert schools.table.index[0] == "nuts"
    assert not schools.table["applies"]["sgld"]
    assert set(schools.table.index) == set(qx.methods().index)
    many = {"X": np.zeros((60_000, 3)), "y": np.zeros(60_000)}
    assert qx.choose(regression, many).table.index[0] == "sgld"
    assert "several modes" in str(schools)
    assert "qx.amortize" in str(schools)
    order = list(schools.table.index)
    assert order.index("nuts") < order.index("annealed_smc") < order.index("cmcd")
    assert "annealed_smc" in schools.table["why"]["scld"]
    blind = qx.from_log_density(lambda x: -0.5 * np.sum(x**2), np.zeros(2), black_box=True)
    assert list(qx.choose(blind).table.query("applies").index) == [
        "polar_slice", "elliptical_slice", "ensemble", "hit_and_run_slice"
    ]  # fmt: skip
    assert schools.table["why"].str.len().gt(0).all()
    assert "qx.amortize" not in str(qx.choose(blind))


@pytest.mark.slow
def test_exact_methods_without_fault_are_not_called_different():
    """Twenty repeated runs at the 1 % level, two exact methods each."""
    words = []
    for key in range(20):
        found = qx.compare(
            regression, DATA, ["nuts", Gaussian(newton=2)],
            reference="nuts", num_warmup=300, num_samples=400, key=key, progress=False,
        )  # fmt: skip
        words += found.table["result"].tolist()
    print(json.dumps(words))
    assert "differs" not in words
    assert words.count("agrees") > 30


@pytest.mark.slow
def test_exact_methods_on_eight_schools_are_not_called_different():
    """Twenty repeated runs at the 1 % level, three exact methods each."""
    words = []
    for key in range(20):
        found = qx.compare(
            eight_schools, SCHOOLS, [qx.NUTS(target_accept=0.9), "elliptical_slice", "polar_slice"],
            reference="eight_schools", num_warmup=400, num_samples=500, key=key, progress=False,
        )  # fmt: skip
        words += found.table["result"].tolist()
        print(found.reasons)
    print(json.dumps(words))
    assert "differs" not in words


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight_schools", "diabetes_lasso", "gaussian_mixture"])
def test_all_methods_in_one_command(name, tmp_path):
    worked = qx.models.load(name)
    found = qx.compare(
        worked.model, worked.data, reference=name, num_warmup=500, num_samples=500, progress=False
    )
    print(found)
    found.report(tmp_path / "page.html")
    right = found.table[(found.table["kind"] == "exact") & (found.table["verdict"] == "ok")]
    assert len(right) > 0
    assert set(found.table.index) | set(found.left_out) == set(qx.methods().index)
