"""Runs in the background: status, draws so far, cancelling, waiting, and the end of the process."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference import session as session_module
from quincunx.inference import store as store_module
from tests.scenarios import SCHOOLS, conjugate, eight_schools

ROOT = Path(__file__).parents[2]
Y = {"y": np.array([0.3, 1.9, -0.4, 2.2, 1.1])}
RUN = {"num_warmup": 60, "num_samples": 60, "num_chains": 2, "key": 7, "progress": False}
LONG = {**RUN, "num_samples": 1_000_000, "blocking": False}


class Gate:
    """Holds a run at the end of each chunk that reaches its limit of transitions."""

    def __init__(self):
        self.chunks = []
        self._limit = 0
        self._changed = threading.Condition()

    def __call__(self, progress):
        with self._changed:
            self.chunks.append(progress)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: progress.done < self._limit, timeout=60)

    def until(self, transitions):
        """Let chunks pass until so many transitions are done, and hold the run there."""
        self._move(transitions)
        with self._changed:
            assert self._changed.wait_for(lambda: self._done() >= transitions, timeout=60)

    def step(self):
        """Let the chunk pass that is held."""
        self._move(self._done() + 1)

    def open(self):
        """Let all chunks pass."""
        self._move(math.inf)

    def _done(self):
        return self.chunks[-1].done if self.chunks else -1

    def _move(self, limit):
        with self._changed:
            self._limit = limit
            self._changed.notify_all()


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of eight transitions."""
    monkeypatch.setattr(session_module.Pace, "update", lambda *_: None)


@pytest.fixture(scope="module")
def whole():
    return qx.infer(conjugate, Y, **RUN)


@pytest.mark.usefixtures("short_chunks")
def test_a_run_in_the_background_is_the_run(whole):
    gate = Gate()
    run = qx.infer(conjugate, Y, blocking=False, **{**RUN, "progress": gate})
    assert isinstance(run, qx.Run)
    assert run.status() == ("compiling", None, pytest.approx(0, abs=10))
    with pytest.raises(TimeoutError, match=r"not ended within 0.01 seconds .*`cancel\(\)`"):
        run.wait(0.01)
    gate.until(8)
    assert run.status()[:2] == ("warm-up", gate.chunks[-1])
    gate.until(70)
    state, progress, seconds = run.status()
    assert (state, progress.total) == ("sampling", 120)
    assert seconds > 0
    assert f"sampling, {progress.done} of 120" in repr(run)
    gate.open()
    fit = run.wait()
    assert run.wait(0) is fit
    assert run.inspect() is fit
    assert run.status().state == "finished"
    assert run.status().seconds == run.status().seconds
    assert fit.verdict.outcome == ""
    xr.testing.assert_equal(fit.posterior, whole.posterior)
    assert fit.extend(70).posterior.sizes["draw"] == 70


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("kind", ["memory", "moments", "zarr"])
def test_draws_so_far_can_be_looked_at(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(store_module, "_CHUNK_BYTES", 700)
    stores = {"memory": None, "moments": qx.Moments(keep=50), "zarr": tmp_path / "draws.zarr"}
    gate = Gate()
    settings = {**RUN, "store": stores[kind], "num_samples": 90}
    run = qx.infer(conjugate, Y, blocking=False, **{**settings, "progress": gate})
    looks = []
    for transitions in (75, 100):
        gate.until(transitions)
        asking = threading.Thread(target=lambda: looks.append(run.inspect()))
        asking.start()
        while not run._requests:
            time.sleep(0.001)
        gate.step()
        asking.join(60)
    gate.open()
    fit = run.wait()
    reference = qx.infer(conjugate, Y, **{**settings, "store": None})
    xr.testing.assert_equal(fit.posterior, reference.posterior)
    first, second = (look.posterior.sizes["draw"] for look in looks)
    assert 0 < first < second < 90
    for look in looks:
        drawn = look.posterior.sizes["draw"]
        xr.testing.assert_equal(look.posterior, reference.posterior.isel(draw=slice(drawn)))
        assert look.tree["sample_stats"].sizes["draw"] == drawn
        assert look.convergence.finite.all()
        with pytest.raises(qx.QuincunxError, match="inspected while its run went on"):
            look.extend(95)
    if kind == "zarr":
        loaded = qx.load(tmp_path / "draws.zarr", conjugate, Y)
        xr.testing.assert_equal(loaded.posterior, reference.posterior)


def test_a_look_before_the_first_chunk_waits_for_it():
    run = qx.infer(conjugate, Y, **{**LONG, "num_warmup": 20_000})
    fit = run.inspect()
    assert fit.posterior.sizes["draw"] == 0
    run.cancel()
    assert run.wait().verdict.reasons == ("There are no draws yet.",)


@pytest.mark.usefixtures("short_chunks")
def test_a_cancelled_run_is_saved_and_goes_on_later(tmp_path, whole):
    gate = Gate()
    settings = {"checkpoint": tmp_path, **LONG, "progress": gate}
    run = qx.infer(conjugate, Y, **settings)
    gate.until(90)
    with pytest.raises(qx.CheckpointError, match="Another run is writing"):
        qx.infer(conjugate, Y, checkpoint=tmp_path, resume=True, **RUN)
    done = gate.chunks[-1].done
    run.cancel()
    gate.step()
    fit = run.wait()
    assert fit.verdict.outcome == "it was cancelled"
    assert run.status().state == "interrupted"
    assert fit.posterior.sizes["draw"] == done - 60
    run.cancel()
    more = {**RUN, "num_samples": done}
    again = qx.infer(conjugate, Y, checkpoint=tmp_path, resume=True, **more)
    np.testing.assert_array_equal(again.posterior["mu"][:, : done - 60], fit.posterior["mu"])
    np.testing.assert_array_equal(again.posterior["mu"][:, :60], whole.posterior["mu"])


def test_errors_of_arguments_come_at_once_and_others_with_the_wait(tmp_path):
    with pytest.raises(qx.ModelError, match="unknown|Unknown"):
        qx.infer(conjugate, {"z": 1.0}, **LONG)
    with pytest.raises(qx.MethodError, match="num_chains"):
        qx.infer(conjugate, Y, **{**LONG, "num_chains": 0})
    (tmp_path / "draws.zarr").mkdir()
    with pytest.raises(qx.StoreError, match="something at"):
        qx.infer(conjugate, Y, store=tmp_path / "draws.zarr", **LONG)

    def report(progress):
        raise ValueError("mine")

    run = qx.infer(conjugate, Y, checkpoint=tmp_path / "run", **{**LONG, "progress": report})
    for ask in (run.wait, run.inspect):
        with pytest.raises(ValueError, match="mine"):
            ask()
    assert run.status().state == "failed"
    qx.infer(conjugate, Y, checkpoint=tmp_path / "run", resume=True, **RUN)  # was unlocked


def test_until_ends_it_finished():
    run = qx.infer(conjugate, Y, until=qx.Until(seconds=0.2), **LONG)
    assert "0.2 seconds" in run.wait().verdict.outcome
    assert run.status().state == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_waiting_ends_the_chunk(number):
    before = signal.getsignal(number)
    run = qx.infer(conjugate, Y, **LONG)
    run.inspect()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    fit = run.wait()
    assert fit.verdict.outcome == "it was interrupted"
    assert run.status().state == "interrupted"
    assert fit.posterior.sizes["draw"] > 0
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("short_chunks")
def test_a_run_can_look_at_itself_but_not_wait_for_itself():
    found, ready = [], threading.Event()

    def report(progress):
        assert ready.wait(60)
        if progress.done > 70 and not found:
            found.append(run.inspect().posterior.sizes["draw"])
            with pytest.raises(qx.QuincunxError, match="cannot wait for itself"):
                run.wait()

    run = qx.infer(conjugate, Y, blocking=False, **{**RUN, "progress": report})
    ready.set()
    run.wait(60)
    assert found[0] > 10


def test_two_runs_at_once():
    runs = [
        qx.infer(model, data, blocking=False, **RUN)
        for model, data in ((conjugate, Y), (eight_schools, SCHOOLS))
    ]
    fits = [run.wait() for run in runs]
    xr.testing.assert_equal(fits[0].posterior, qx.infer(conjugate, Y, **RUN).posterior)
    schools = qx.infer(eight_schools, SCHOOLS, **RUN)
    xr.testing.assert_equal(fits[1].posterior, schools.posterior)


@qx.model
def slow(y=None):
    mu = qx.sample("mu", dist.Normal(0.0, 1.0))
    time.sleep(0.02)
    with qx.plate("row", y) as t:
        time.sleep(0.02)
        qx.sample("y", dist.Normal(mu, 1.0), obs=t)


def test_threads_trace_models_one_at_a_time():
    """NumPyro has one stack of handlers for all threads."""
    sizes = range(2, 8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda size: qx.compile(slow, {"y": np.ones(size)}), sizes))
    assert [density.program.data_plates[0].size for density in found] == list(sizes)
    assert all(density.dim == 1 for density in found)


def test_the_precision_is_that_of_the_calling_thread():
    with jax.enable_x64(False):
        run = qx.infer(conjugate, {"y": Y["y"].astype(np.float32)}, blocking=False, **RUN)
        fit = run.wait()
    assert fit.posterior["mu"].dtype == np.float32
    assert fit.tree["posterior"].attrs["precision"] == "float32"


SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import quincunx as qx
from tests.scenarios import conjugate
from tests.inference.test_handle import LONG, Y
run = qx.infer(conjugate, Y, checkpoint=sys.argv[1], store=sys.argv[2], **LONG)
while run.status().state != "sampling":
    pass
print("left")
"""


def test_a_run_that_nobody_waits_for_is_saved_when_the_process_ends(tmp_path, whole):
    folder, store = tmp_path / "run", tmp_path / "draws.zarr"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, store], cwd=ROOT, capture_output=True, text=True,
        timeout=120, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "left\n"
    assert done.stderr == ""
    stored = qx.load(store)
    assert "it was cancelled" in stored.verdict.outcome
    drawn = stored.posterior.sizes["draw"]
    assert drawn > 0
    more = {**RUN, "num_samples": drawn + 60}
    again = qx.infer(conjugate, Y, checkpoint=folder, store=store, resume=True, **more)
    np.testing.assert_array_equal(again.posterior["mu"][:, :drawn], stored.posterior["mu"])
    first = min(drawn, 60)
    np.testing.assert_array_equal(
        stored.posterior["mu"][:, :first], whole.posterior["mu"][:, :first]
    )
