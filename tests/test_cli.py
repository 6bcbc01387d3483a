"""The command line: what it prints, what it writes, and how it fails."""

import json
import os
import signal
from contextlib import contextmanager

import jax
import numpy as np
import pytest

import quincunx as qx
from quincunx.cli import inputs, main
from quincunx.cli.demo import run as run_demo

MODEL = """
import numpy as np

import quincunx as qx
import quincunx.distributions as dist

NOT_A_MODEL = 3


@qx.model
def line(x, y=None):
    slope = qx.sample("slope", dist.Normal(0.0, 10.0))
    with qx.plate("row", x, y) as (a, b):
        qx.sample("y", dist.Normal(slope * a, 1.0), obs=b)


def bare(z):
    return -0.5 * (z**2).sum()


density = qx.from_log_density(bare, np.zeros(2))
"""
SHORT = ["--num-warmup", "200", "--num-samples", "200", "--num-chains", "2"]
SCHOOLS = ["infer", "eight_schools", "--num-warmup", "200", "--num-chains", "2"]


@pytest.fixture(autouse=True)
def same_precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.py").write_text(MODEL)
    x = np.arange(10.0)
    (tmp_path / "data.json").write_text(json.dumps({"x": list(x), "y": list(2 * x)}))
    rows = "\n".join(f"{a},{2 * a}" for a in x)
    (tmp_path / "data.csv").write_text("x,y\n" + rows)
    np.savez(tmp_path / "data.npz", x=x, y=2 * x)
    return tmp_path


def error(capsys, *words):
    """The one line on stderr of a command that a user got wrong."""
    assert main(list(words)) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.startswith("quincunx: error: ")
    assert "Traceback" not in text
    return text


def test_help_and_tables(capsys):
    assert main(["--help"]) == 0
    assert "explain" in capsys.readouterr().out
    assert main([]) == 0
    assert "explain" in capsys.readouterr().out
    assert main(["methods"]) == 0
    assert "nuts (NUTS, exact)" in capsys.readouterr().out
    assert main(["models"]) == 0
    assert "eight_schools" in capsys.readouterr().out
    assert main(["models", "eight_schools"]) == 0
    text = capsys.readouterr().out
    assert "array of shape (8,)" in text
    assert "posteriordb" in text


@pytest.mark.parametrize("data", ["data.json", "data.csv", "data.npz"])
@pytest.mark.parametrize("target", ["lines.py:line", "lines:line"])
def test_models_and_data_are_found(folder, data, target):
    model, arguments = inputs.read_model(target, folder / data)
    density = qx.compile(model, arguments)
    assert density.program.data_plates[0].size == 10
    np.testing.assert_allclose(density.data["y"], 2 * np.arange(10.0))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_infer_prints_and_writes(folder, capsys, suffix):
    out = folder / "new" / f"fit{suffix}"
    words = ["infer", "lines.py:line", "--data", "data.csv", "--out", str(out), *SHORT]
    assert main([*words, "--key", "3", "--thinning", "2", "--set", "target_accept=0.9"]) == 0
    text = capsys.readouterr().out
    for expected in ("ess_bulk", "slope", "verdict: ", "costs: ", "written: "):
        assert expected in text
    fit = qx.load(out)
    assert fit.posterior["slope"].shape == (2, 200)
    assert fit.tree["posterior"].attrs["precision"] == "float64"
    assert json.loads(fit.tree["posterior"].attrs["settings"])["target_accept"] == 0.9
    assert abs(float(fit.posterior["slope"].mean()) - 2) < 0.1


def test_infer_on_a_worked_model_quietly(folder, capsys):
    assert main(["infer", "eight_schools", "--quiet", "--no-x64", *SHORT]) == 0
    streams = capsys.readouterr()
    assert streams.out.startswith("verdict: ")
    assert "costs" not in streams.out
    assert not streams.err


def test_infer_tells_the_evidence_of_weighted_draws(folder, capsys):
    words = ["infer", "lines.py:line", "--data", "data.csv", "--method", "annealed_smc"]
    assert main([*words, "--num-samples", "100", "--set", "pilot=64"]) == 0
    text = capsys.readouterr().out
    assert "log evidence: " in text
    assert "Modes may be missing" in text


def test_infer_on_a_bare_density(folder, capsys):
    assert main(["infer", "lines.py:density", *SHORT]) == 0
    assert "x[1]" in capsys.readouterr().out


def sent(monkeypatch, number, *, after):
    """Send a signal once so many transitions are done."""

    @contextmanager
    def reporting(label, *, progress):
        yield lambda state: state.done > after and os.kill(os.getpid(), number)

    monkeypatch.setattr("quincunx.inference.progress.reporting", reporting)


def test_a_run_is_resumed(folder, capsys):
    first, second, whole = (str(folder / f"{name}.nc") for name in ("first", "second", "whole"))
    saved = [*SCHOOLS, "--checkpoint", "saved"]
    assert main([*saved, "--num-samples", "100", "--resume", "--out", first]) == 0
    assert (folder / "saved" / "manifest.json").exists()
    capsys.readouterr()
    message = error(capsys, *saved, "--num-samples", "200", "--out", second)
    assert "holds a checkpoint already. Continue it with `--resume`" in message
    assert main([*saved, "--num-samples", "200", "--resume", "--out", second]) == 0
    assert main([*SCHOOLS, "--num-samples", "200", "--out", whole]) == 0
    draws = [qx.load(path).posterior["mu"].values for path in (first, second, whole)]
    assert draws[0].shape == (2, 100)
    np.testing.assert_array_equal(draws[0], draws[1][:, :100])
    np.testing.assert_array_equal(draws[1], draws[2])
    capsys.readouterr()
    resumed = (*saved, "--resume", "--num-samples", "200")
    assert "are: key (" in error(capsys, *resumed, "--key", "1")
    assert "beyond `num_samples`" in error(capsys, *resumed[:-1], "100")
    for path in (folder / "saved").glob("state*"):
        path.write_text("")
    assert "No whole checkpoint is left in 'saved'" in error(capsys, *resumed)


@pytest.mark.parametrize(("after", "number"), [(200, signal.SIGINT), (0, signal.SIGTERM)])
def test_an_interrupted_run_is_written(folder, capsys, monkeypatch, after, number):
    words = [*SCHOOLS, "--num-samples", "200", "--thinning", "500"]
    with monkeypatch.context() as patch:
        sent(patch, number, after=after)
        assert main([*words, "--checkpoint", "saved", "--out", "fit.nc"]) == 130
    streams = capsys.readouterr()
    assert "The run stopped early: it was interrupted." in streams.out
    assert "written: fit.nc" in streams.out
    assert not streams.err
    fit = qx.load("fit.nc")
    assert (fit.posterior.sizes["draw"] > 0) == (after > 0)
    assert fit.posterior.sizes["draw"] < 200
    assert fit.verdict.outcome == "it was interrupted"
    assert (folder / "saved" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        (["--until-ess", "20"], "the target is reached after"),
        (["--seconds", "0.001"], "the budget of 0.001 seconds is spent"),
        (["--until-ess", "1e9", "--seconds", "0.001"], "the budget of 0.001 seconds is spent"),
    ],
)
def test_a_run_stops_early(folder, capsys, words, outcome):
    run = [*SCHOOLS, "--num-samples", "200", "--thinning", "200", "--quiet"]
    assert main([*run, *words]) == 0
    assert f"The run stopped early: {outcome}" in capsys.readouterr().out


def test_draws_are_stored_while_sampling(folder, capsys):
    words = ["infer", "eight_schools", *SHORT, "--store"]
    assert main([*words, "draws.zarr"]) == 0
    assert qx.load(folder / "draws.zarr").posterior.sizes["draw"] == 200
    assert "something at 'draws.zarr' already" in error(capsys, *words, "draws.zarr")
    assert "must end in `.zarr`" in error(capsys, *words, "draws.nc")


def test_figures_of_draws_that_are_not_kept(folder, capsys):
    words = ["infer", "lines.py:line", "--data", "data.json", *SHORT, "--moments"]
    long = [*words, "--num-samples", "2500"]
    assert main([*long, "--out", "fit.nc"]) == 0
    text = capsys.readouterr().out
    assert "of all draws:" in text
    fit = qx.load("fit.nc")
    assert fit.posterior.sizes["draw"] == 1250
    assert fit.tree["posterior_moments"].attrs["draws"] == 2500
    assert f"{fit.moments.loc['slope', 'ess_mean']:.3f}" in text
    message = error(capsys, *words, "--store", "draws.zarr")
    assert "leave out one of it and `--store`" in message
    assert not (folder / "draws.zarr").exists()


def test_explain(folder, capsys):
    assert main(["explain", "lines.py:line", "--data", "data.json"]) == 0
    text = capsys.readouterr().out
    assert "data plate 'row' of size 10 over x, y." in text
    assert "Method 'nuts' can run." in text


def test_wrong_models(folder, capsys):
    assert "Did you mean" in error(capsys, "explain", "line.py:line")
    assert "Did you mean 'line'" in error(capsys, "explain", "lines.py:lime")
    assert "no module 'nowhere'" in error(capsys, "explain", "nowhere.at_all:line")
    assert "not a model but of type int" in error(capsys, "explain", "lines.py:NOT_A_MODEL")
    assert "`lines.py:NAME`" in error(capsys, "explain", "lines.py")
    assert "Did you mean 'eight_schools'" in error(capsys, "infer", "eight_school")
    assert "Unknown worked model" in error(capsys, "models", "eight_school")
    (folder / "broken.py").write_text("import numpy\nx = undefined\n")
    assert "NameError" in error(capsys, "explain", "broken.py:model")
    assert "(broken.py, line 2)" in error(capsys, "explain", "broken:model")
    (folder / "unparsable.py").write_text("def f(:\n")
    assert "SyntaxError" in error(capsys, "explain", "unparsable.py:f")


def test_wrong_data(folder, capsys):
    def complaint(name, contents=None):
        if contents is not None:
            (folder / name).write_text(contents)
        return error(capsys, "explain", "lines.py:line", "--data", name)

    assert "Did you mean 'data.json'" in complaint("dat.json")
    assert "one of .json, .csv, .npz" in complaint("data.xlsx")
    assert "cannot be read" in complaint("bad.json", "{")
    assert "holds a list" in complaint("list.json", "[1, 2]")
    assert "cannot be read" in complaint("bad.npz", "no archive")
    assert "cannot be read" in complaint("empty.csv", "")
    assert "Unknown argument 'z'" in complaint("more.csv", "x,y,z\n1,2,3\n")
    assert "needs the argument 'x'" in complaint("less.csv", "y\n2\n")
    assert "not numbers" in complaint("text.csv", "x,y\na,1\nb,2\n")
    (folder / "gap.json").write_text('{"x": [1, 2], "y": [null, 3]}')
    words = ("infer", "lines.py:line", "--data", "gap.json", *SHORT)
    assert "has 1 NaN, first at index 0" in error(capsys, *words)


def test_wrong_options(folder, capsys):
    words = ("infer", "lines.py:line", "--data", "data.json")
    assert "Did you mean 'nuts'" in error(capsys, *words, "--method", "nut")
    assert "Did you mean 'target_accept'" in error(capsys, *words, "--set", "target_acept=0.9")
    assert "must be a number" in error(capsys, *words, "--set", "target_accept=high")
    assert "must be an integer" in error(capsys, *words, "--set", "max_tree_depth=2.5")
    assert "between 0 and 1" in error(capsys, *words, "--set", "target_accept=2")
    assert "write NAME=VALUE" in error(capsys, *words, "--set", "target_accept")
    assert "suffix must be .nc or .zarr" in error(capsys, *words, "--out", "fit.txt")
    assert "Cannot make the folder" in error(capsys, *words, "--out", "data.json/fit.nc")
    assert "at least 1" in error(capsys, *words, "--num-samples", "0")
    assert "--chain-method" in error(capsys, *words, "--chain-method", "vectorised")
    assert "--num-chains" in error(capsys, *words, "--num-chains", "four")
    assert "No such option" in error(capsys, *words, "--num-chain", "4")
    assert "`--resume` needs `--checkpoint`" in error(capsys, *words, "--resume")
    assert "cannot be written to 'data.csv'" in error(capsys, *words, "--checkpoint", "data.csv")
    assert "`--until-ess 0` must be positive" in error(capsys, *words, "--until-ess", "0")
    assert "`--seconds -1` must be positive" in error(capsys, *words, "--seconds", "-1")
    assert "--seconds" in error(capsys, *words, "--seconds", "soon")
    assert "No such command" in error(capsys, "sample")


def test_warnings_take_one_line(folder, capsys):
    (folder / "unused.py").write_text(
        MODEL.replace("def line(x, y=None)", "def line(x, y=None, z=0)")
    )
    (folder / "z.json").write_text('{"x": [1, 2], "y": [2, 4], "z": [1, 2]}')
    assert main(["infer", "unused.py:line", "--data", "z.json", "--quiet", *SHORT]) == 0
    assert capsys.readouterr().err.startswith("quincunx: warning: Argument 'z'")


def test_demo(folder, capsys):
    pytest.importorskip("sklearn")
    fits = run_demo(folder / "out", num_warmup=200, num_samples=200)
    assert set(fits) == {"breast_cancer", "eight_schools"}
    text = capsys.readouterr().out
    assert "(the first 6 of 31 rows)" in text
    assert text.count("verdict: ") == 2
    for name in fits:
        assert qx.load(folder / "out" / f"{name}.nc").posterior.sizes["draw"] == 200
        assert (folder / "out" / f"{name}_forest.png").read_bytes().startswith(b"\x89PNG")
