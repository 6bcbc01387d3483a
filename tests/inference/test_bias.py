"""The bias report: what it finds, what the verdict makes of it, and that it is kept."""

import numpy as np
import pytest

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine import QuincunxError
from quincunx.inference.diagnostics.bias import judge_bias
from quincunx.inference.diagnostics.discrepancy import kernel_stein_discrepancy
from tests.scenarios import conjugate, conjugate_posterior, logistic, logistic_data

LONG = {"num_warmup": 300, "num_samples": 1000, "progress": False}


@qx.model
def uneven(x, y=None):
    """Rows that tell very different things."""
    slope = qx.sample("slope", dist.Normal(0, 1))
    with qx.plate("row", x, y) as (u, t):
        qx.sample("y", dist.Normal(slope * u, 1.0), obs=t)


@pytest.fixture(scope="module")
def default():
    data = logistic_data(np.random.default_rng(0), rows=1000, features=4)
    return qx.infer(logistic, data, qx.SGLD(control_variates="mode"), **LONG)


def test_the_default_is_ok_and_right(default, tmp_path):
    assert default.verdict.status == "ok", default.verdict
    exact = qx.infer(logistic, default.density.data, **LONG)
    ours, theirs = default.posterior["beta"], exact.posterior["beta"]
    mean, sd = theirs.mean(("chain", "draw")), theirs.std(("chain", "draw"))
    assert np.abs((ours.mean(("chain", "draw")) - mean) / sd).max() < 0.15
    assert np.abs(ours.std(("chain", "draw")) / sd - 1).max() < 0.12
    table = default.bias
    assert list(table.columns) == ["mean_bias", "mean_error", "sd_bias", "sd_error"]
    assert list(table.index) == [f"beta[{index}]" for index in range(4)]
    assert table.attrs["acceptance"] > 0.95
    assert table.attrs["noise_bias"] < 0.1
    assert table.attrs["ksd"] < 2 * table.attrs["ksd_of_exact_draws"]
    for suffix in (".nc", ".zarr"):
        default.save(tmp_path / f"fit{suffix}")
        loaded = qx.load(tmp_path / f"fit{suffix}")
        np.testing.assert_allclose(loaded.bias, table)
        assert loaded.bias.attrs["acceptance"] == pytest.approx(table.attrs["acceptance"])
        assert str(loaded.verdict) == str(default.verdict)


def test_costs_count_passes_over_the_data(default):
    costs, method = default.costs, default.method
    batches = method.batches(default.density)
    steps = int(default.tree["sample_stats"]["n_steps"][0, 0])
    drawn = 4 * 1300 * steps * 2
    sampling = costs["gradients"] - costs["warmup_gradients"]
    assert sampling == 4 * 1000 * steps * 2
    pilot = costs["data_passes"] - drawn / batches.number
    assert 0 < pilot < costs["gradients"]
    stats = default.tree["sample_stats"]
    assert np.all(stats["gradients"].values == 2 * steps)


def test_a_step_size_ten_times_too_large_is_seen(default):
    step = 10 * float(default.bias.attrs["step_size"])
    method = qx.SGLD(control_variates="mode", step_size=step)
    fit = qx.infer(logistic, default.density.data, method, **LONG)
    assert fit.verdict.status in ("suspect", "failed")
    assert any("step size" in reason for reason in fit.verdict.reasons), fit.verdict
    assert "step_size" in " ".join(fit.verdict.advice)


@pytest.mark.slow
def test_one_uneven_row_at_a_time_without_control_variates_is_seen():
    rng = np.random.default_rng(1)
    x = rng.standard_t(3, size=400)
    data = {"x": x, "y": 0.5 * x + rng.normal(size=400)}
    tuned = qx.infer(uneven, data, qx.SGLD(), **LONG)
    assert tuned.verdict.status == "ok", tuned.verdict
    method = qx.SGLD(batch_size=1, step_size=tuned.bias.attrs["step_size"])
    fit = qx.infer(uneven, data, method, **LONG)
    assert fit.verdict.status in ("suspect", "failed")
    assert "Gradient noise" in " ".join(fit.verdict.reasons), fit.verdict
    assert fit.bias.attrs["noise_bias"] > 0.2 > tuned.bias.attrs["noise_bias"]


def test_step_halving_finds_a_bias_that_is_known():
    y = np.random.default_rng(2).normal(size=8)
    precision = conjugate_posterior(y)[1] ** -2
    step = 0.6 / precision  # variance too large by 1 / (1 - 0.3)
    plain = {"preconditioner": None, "control_variates": "none", "steps": 4}
    fit = qx.infer(conjugate, {"y": y}, qx.SGLD(step_size=step, **plain), num_chains=16, **LONG)
    sd, half = (1 - 0.3) ** -0.5, (1 - 0.15) ** -0.5
    row = fit.bias.loc["mu"]
    assert abs(row["sd_bias"] - 2 * (sd - half) / sd) < 4 * row["sd_error"]
    assert row["sd_error"] < 0.05
    assert abs(row["mean_bias"]) < 4 * row["mean_error"]
    assert "Step halving" in fit.verdict.reasons[0]


def test_exact_and_loaded_fits_say_why_they_have_no_report(tmp_path):
    fit = qx.infer(conjugate, {"y": np.zeros(4)}, num_warmup=50, num_samples=20, progress=False)
    with pytest.raises(QuincunxError, match="The method is exact: there is no bias report"):
        _ = fit.bias
    method = qx.StructuredSGLD(history=20)
    rough = qx.infer(conjugate, {"y": np.zeros(4)}, method, num_samples=20, progress=False)
    with pytest.raises(QuincunxError, match="approximate"):
        _ = rough.bias
    assert rough.verdict.status != "ok"


def test_the_report_goes_to_the_store(tmp_path):
    method = qx.SGLD(step_size=0.05, steps=5, preconditioner=None, control_variates="none")
    settings = {"num_warmup": 20, "num_samples": 50, "progress": False}
    data = {"y": np.array([0.3, 1.9, -0.4, 2.2, 1.1])}
    fit = qx.infer(conjugate, data, method, store=tmp_path / "draws.zarr", **settings)
    table = fit.bias
    loaded = qx.load(tmp_path / "draws.zarr")
    np.testing.assert_array_equal(loaded.bias, table)
    assert loaded.bias.attrs["acceptance"] == table.attrs["acceptance"]
    assert str(loaded.verdict) == str(fit.verdict)


def test_too_few_draws_to_tell_the_bias(default):
    fit = qx.infer(
        logistic, default.density.data, default.method, num_samples=60, progress=False
    )  # fmt: skip
    reasons = " ".join(fit.verdict.reasons)
    assert fit.verdict.status == "suspect" or "ESS" in reasons
    assert "Step halving can tell" in reasons


def test_kernel_stein_discrepancy_sees_a_wrong_width(rng):
    exact = rng.normal(size=(500, 3))
    right, level = kernel_stein_discrepancy(exact, -exact)
    assert right < 1.5 * level
    wide, level = kernel_stein_discrepancy(1.5 * exact, -1.5 * exact)
    assert wide > 2 * level
    shifted, level = kernel_stein_discrepancy(exact + 1.0, -exact - 1.0)
    assert shifted > 2 * level


def test_judging_leaves_out_what_is_not_random(default):
    report = default.tree["bias"].to_dataset().copy(deep=True)
    report["mean_bias"][0] = 2.0
    free = np.array([False, True, True, True])
    assert judge_bias(report, free) == []
    assert judge_bias(report, ~free)[0].status == "failed"
