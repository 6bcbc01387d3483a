"""Runs on rows that stay on disk."""

import numpy as np
import pytest

import quincunx as qx
from tests.scenarios import logistic, logistic_data

RUN = {"num_warmup": 10, "num_samples": 30, "num_chains": 2, "progress": False}
METHODS = {
    "minibatch": qx.SGLD(
        batch_size=30, step_size=0.02, steps=3, preconditioner=None, control_variates="none"
    ),
    "tuned": qx.SGHMC(batch_size=30, control_variates="mode"),
}


@pytest.fixture(scope="module")
def arrays():
    return logistic_data(np.random.default_rng(4), 203)


@pytest.fixture(scope="module")
def disk(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("rows")
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


@pytest.mark.parametrize("name", ["minibatch", pytest.param("tuned", marks=pytest.mark.slow)])
def test_draws_are_those_of_rows_in_memory(arrays, disk, name):
    here, there = (qx.infer(logistic, data, METHODS[name], **RUN) for data in (arrays, disk))
    np.testing.assert_allclose(there.posterior["beta"], here.posterior["beta"], rtol=1e-6)
    np.testing.assert_allclose(there.bias["sd_bias"], here.bias["sd_bias"], atol=1e-4)
    assert "observed_data" in here.tree
    assert "observed_data" not in there.tree
    with pytest.raises(qx.ModelError, match="are on disk, and their log likelihoods"):
        there.log_likelihood()


def test_a_run_is_resumed_on_the_same_rows_only(tmp_path, disk, arrays):
    settings = RUN | {"checkpoint": tmp_path / "run"}
    method = METHODS["minibatch"]
    half = qx.infer(logistic, disk, method, **settings | {"num_samples": 15})
    whole = qx.infer(logistic, disk, method, **settings, resume=True)
    np.testing.assert_array_equal(whole.posterior["beta"][:, :15], half.posterior["beta"])
    np.save(tmp_path / "y.npy", 1 - arrays["y"])
    other = {"X": disk["X"], "y": np.load(tmp_path / "y.npy", mmap_mode="r")}
    with pytest.raises(qx.CheckpointError, match="different are: data"):
        qx.infer(logistic, other, method, **settings, resume=True)


def test_exact_methods_go_through_the_rows_too(arrays, disk):
    here, there = (qx.infer(logistic, data, "nuts", **RUN) for data in (arrays, disk))
    np.testing.assert_allclose(there.posterior["beta"], here.posterior["beta"], rtol=1e-4)
