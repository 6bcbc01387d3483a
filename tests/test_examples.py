"""Every example runs and finds what it should; so does every code block of the documentation."""

import re
import runpy
from pathlib import Path

import arviz_stats
import jax
import numpy as np
import pytest

import quincunx as qx
from quincunx.inference import registry

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHORT = ["--num-warmup", "300", "--num-samples", "300"]


@pytest.fixture(autouse=True)
def as_before():
    """As a user runs them, leaving precision and the table of methods as they were."""
    precision, methods = jax.config.jax_enable_x64, dict(registry._REGISTRY)
    with jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_enable_x64", precision)
    registry._REGISTRY.clear()
    registry._REGISTRY.update(methods)


def run(name, *arguments):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([*(arguments or SHORT)])


def mean(fit, name):
    return fit.posterior[name].mean(("chain", "draw")).values


def test_each_example_has_a_test():
    tested = set(re.findall(r'run\("(\w+)"', Path(__file__).read_text()))
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")}


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path.name


def test_eight_schools():
    fit = run("eight_schools")
    reference = qx.models.load("eight_schools").reference
    assert np.max(np.abs(mean(fit, "theta") - reference.mean["theta"])) < 1.0
    assert list(fit.posterior["theta"].coords["school"].values) == list("ABCDEFGH")
    assert arviz_stats.loo(fit.tree).elpd == pytest.approx(-30.7, abs=0.5)
    assert "posterior_predictive" in fit.tree.children


@pytest.mark.slow
def test_amortized():
    amortized, fits, scores = run("amortized", "--steps", "600")
    assert len(fits) == len(scores) == 40
    assert 0.7 < np.sqrt(np.mean(scores**2)) < 1.35
    assert amortized.report.share[0] > 0.3


def test_logistic_regression(capsys):
    fit = run("logistic_regression")
    np.testing.assert_allclose(mean(fit, "beta"), [-0.5, 1.0, -1.0, 0.5], atol=0.45)
    assert fit.tree["predictions"]["y"].shape == (4, 300, 200)
    estimate, whole = re.findall(r"-\d+\.\d+", capsys.readouterr().out)[:2]
    assert estimate == whole


def test_bare_density():
    fit = run("bare_density")
    assert fit.verdict.status != "failed"
    assert mean(fit, "shape") == pytest.approx(1.43, abs=0.15)
    assert mean(fit, "scale") == pytest.approx(101, abs=10)


@pytest.mark.slow
def test_numpyro_model():
    fit, theirs = run("numpyro_model")
    for name in ("mean", "spread", "slope", "noise"):
        assert abs(mean(fit, name) - theirs[name].mean()) < 0.2 * theirs[name].std()


@pytest.mark.slow
def test_hmm():
    fit = run("hmm")
    np.testing.assert_allclose(mean(fit, "level"), [-1, 2], atol=0.3)
    np.testing.assert_allclose(np.diag(mean(fit, "transition")), [0.9, 0.9], atol=0.08)


@pytest.mark.slow
def test_gaussian_process(capsys):
    fit = run("gaussian_process")
    assert mean(fit, "noise") == pytest.approx(0.2, abs=0.05)
    curve = re.findall(r"=\s+(\S+) \+- \S+\s+\(sin:\s+(\S+)\)", capsys.readouterr().out)
    assert np.max(np.abs(np.diff(np.array(curve, float), axis=1))) < 0.2


def test_own_method():
    fit = run("own_method", "--num-warmup", "1000", "--num-samples", "500", "--thinning", "20")
    reference = qx.models.load("stackloss").reference
    assert fit.tree["posterior"].attrs["method"] == "random_walk"
    off = np.abs(mean(fit, "beta") - reference.mean["beta"]) / reference.sd["beta"]
    assert off.max() < 0.4
    acceptance = float(fit.tree["sample_stats"]["acceptance_rate"].mean())
    assert acceptance == pytest.approx(0.25, abs=0.1)


@pytest.mark.slow
def test_black_box():
    fit = run("black_box")
    assert fit.verdict.status != "failed"
    assert mean(fit, "contact") == pytest.approx(0.6, abs=0.05)
    assert mean(fit, "recovery") == pytest.approx(0.15, abs=0.02)


def test_directions(capsys):
    fit = run("directions")
    assert fit.verdict.status != "failed"
    resultant = re.findall(r"-?\d\.\d*", capsys.readouterr().out.splitlines()[-1])
    np.testing.assert_allclose(mean(fit, "mean"), np.array(resultant, float), atol=0.05)


@pytest.mark.slow
def test_evidence():
    results = run("evidence", "--num-samples", "300")
    for fit, exact in results.values():
        assert fit.log_evidence.error < 0.1
        assert abs(fit.log_evidence.value - exact) < 5 * fit.log_evidence.error + 1e-8
    assert max(results, key=lambda degree: results[degree][0].log_evidence.value) == 2


@pytest.mark.slow
def test_bayesian_lasso(capsys):
    ours, theirs = run("bayesian_lasso")
    reference = qx.models.load("diabetes_lasso").reference
    for fit in (ours, theirs):
        off = np.abs(mean(fit, "beta") - reference.mean["beta"]) / reference.sd["beta"]
        assert off.max() < 0.2
    assert ours.verdict.status == "ok", ours.verdict
    assert "nonsmooth l1 term" in capsys.readouterr().out


@pytest.mark.slow
def test_deconvolution():
    ours, theirs = run("deconvolution")
    sd = theirs.posterior["source"].std(("chain", "draw")).values
    assert np.max(np.abs(mean(ours, "source") - mean(theirs, "source")) / sd) < 0.3
    assert ours.posterior["source"].values.min() > 0
    assert ours.verdict.status == "ok", ours.verdict


@pytest.mark.slow
def test_hospitals(capsys):
    fit = run("hospitals")
    assert fit.verdict.status != "failed", fit.verdict
    exact = run("hospitals", "--method", "nuts", *SHORT)
    sd = exact.posterior["beta"].std(("chain", "draw")).values
    assert np.max(np.abs(mean(fit, "beta") - mean(exact, "beta")) / sd) < 0.25
    assert np.max(np.abs(fit.posterior["beta"].std(("chain", "draw")).values / sd - 1)) < 0.15
    assert "bytes" in capsys.readouterr().out


@pytest.mark.slow
def test_side_by_side(tmp_path):
    compared = run("side_by_side", *SHORT, "--html", str(tmp_path / "page.html"))
    row = compared.table.loc["nuts from one mode"]
    assert (row["verdict"], row["result"]) != ("ok", "agrees")
    assert row["mean_parameter"] == "x[0]"
    assert compared.table["result"]["polar slice"] != "differs"
    assert (tmp_path / "page.html").stat().st_size > 100_000


@pytest.mark.slow
def test_flights():
    fit = run("flights", "--num-warmup", "100", "--num-samples", "400")
    X, y = (np.asarray(fit.density.data[name]) for name in ("X", "y"))
    assert len(y) > 200_000
    beta = np.zeros(X.shape[1])
    for _ in range(8):  # Newton's method for the mode; so many rows make the posterior Gaussian
        chance = 1 / (1 + np.exp(-X @ beta))
        precision = (X * (chance * (1 - chance))[:, None]).T @ X + np.eye(len(beta))
        beta = beta + np.linalg.solve(precision, X.T @ (y - chance) - beta)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert np.max(np.abs(mean(fit, "beta") - beta) / sd) < 0.2
    spread = fit.posterior["beta"].std(("chain", "draw")).values / sd
    assert np.max(np.abs(spread - 1)) < 0.15
    assert fit.bias.attrs["acceptance"] > 0.9
    assert not any("step size" in reason for reason in fit.verdict.reasons), fit.verdict
    assert fit.costs["data_passes"] < 1500


@pytest.mark.slow
def test_neural_network():
    fit, right, sure, gap = run("neural_network", "--num-samples", "500")
    assert fit.posterior["weight"].shape == (4, 500, 16, 10)
    assert fit.verdict.status == "ok", fit.verdict
    assert right > 0.96
    assert abs(sure - right) < 0.04
    assert gap < 0.04


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_in_the_documentation_runs(page, tmp_path, monkeypatch):
    """The Python blocks of a page, one after the other in one namespace."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    if not blocks:
        pytest.skip("no Python on this page")
    source = tmp_path / "page.py"
    source.write_text("\n".join(blocks))
    runpy.run_path(str(source))
