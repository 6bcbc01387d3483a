"""Runs that survive: resuming, extending, stopping early, damaged files, full disks."""

import errno
import json
import os
import signal
import threading

import numpy as np
import pytest

import quincunx as qx
from quincunx.inference import archive as module
from quincunx.inference.diagnostics.convergence import convergence
from tests.laws.kernels import RandomWalk
from tests.scenarios import SCHOOLS, conjugate, eight_schools

Y = {"y": np.array([0.3, 1.9, -0.4, 2.2, 1.1])}
RUN = {"num_warmup": 60, "num_samples": 60, "num_chains": 2, "key": 7, "progress": False}
KERNELS = {"nuts": qx.NUTS(), "random_walk": RandomWalk()}


class Killed(BaseException):
    """What a test raises in a run's middle."""


def stop_after(transitions):
    def report(progress):
        if progress.done >= transitions:
            raise Killed

    return report


def broken_off(folder, method, transitions, **changes):
    """Start a run with a checkpoint after every chunk, and kill it."""
    settings = {**RUN, **changes, "progress": stop_after(transitions)}
    with pytest.raises(Killed):
        qx.infer(conjugate, Y, method, checkpoint=qx.Checkpoint(folder, every=0.0), **settings)


@pytest.fixture(scope="module")
def whole():
    return {name: qx.infer(conjugate, Y, method, **RUN) for name, method in KERNELS.items()}


def same(fit, other):
    assert fit.posterior.identical(other.posterior) or np.array_equal(
        fit.posterior["mu"], other.posterior["mu"]
    )
    for name, values in other.tree["sample_stats"].items():
        np.testing.assert_array_equal(fit.tree["sample_stats"][name], values, err_msg=name)
    for name in ("gradients", "evaluations", "warmup_evaluations", "data_passes"):
        assert fit.costs[name] == other.costs[name]


@pytest.mark.parametrize("layout", ["vectorized", "sequential"])
@pytest.mark.parametrize("transitions", [9, 59, 61, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, whole, name, transitions, layout):
    changes = {"chain_method": layout}
    broken_off(tmp_path, KERNELS[name], transitions, **changes)
    done = json.loads(json.loads((tmp_path / "manifest.json").read_text())["body"])["told"]["done"]
    assert 0 < min(done) < 120
    again = qx.infer(
        conjugate, Y, KERNELS[name], checkpoint=tmp_path, resume=True, **{**RUN, **changes}
    )
    reference = whole[name]
    if layout == "sequential":
        reference = qx.infer(conjugate, Y, KERNELS[name], **{**RUN, **changes})
    same(again, reference)


def test_more_draws_from_a_checkpoint_and_in_memory(tmp_path, whole):
    short = {**RUN, "num_samples": 25}
    first = qx.infer(conjugate, Y, checkpoint=tmp_path, **short)
    longer = first.extend(60)
    same(longer, whole["nuts"])
    assert first.posterior.sizes["draw"] == 25
    resumed = qx.infer(conjugate, Y, checkpoint=tmp_path, resume=True, **RUN)
    same(resumed, whole["nuts"])
    with pytest.raises(qx.QuincunxError, match="60 draws already"):
        longer.extend(60)
    with pytest.raises(qx.CheckpointError, match="beyond `num_samples`"):
        qx.infer(conjugate, Y, checkpoint=tmp_path, resume=True, **short)


def test_resume_without_a_checkpoint_starts(tmp_path, whole):
    same(qx.infer(conjugate, Y, checkpoint=tmp_path / "new", resume=True, **RUN), whole["nuts"])
    with pytest.raises(qx.MethodError, match="`resume=True` needs `checkpoint=`"):
        qx.infer(conjugate, Y, resume=True, **RUN)


def test_a_checkpoint_is_never_overwritten(tmp_path):
    broken_off(tmp_path, qx.NUTS(), 9)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(qx.CheckpointError, match="holds a checkpoint already.*resume=True"):
        qx.infer(conjugate, Y, checkpoint=tmp_path, **RUN)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def other_model(y=None):
    import quincunx.distributions as dist

    mu = qx.sample("mu", dist.Normal(1.0, 2.5))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mu, 1.5), obs=t)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("data", {"data": {"y": Y["y"] + 0.1}}),
        ("model", {"model": other_model}),
        ("settings", {"method": qx.NUTS(target_accept=0.9)}),
        ("method", {"method": RandomWalk()}),
        ("key", {"key": 8}),
        ("num_chains", {"num_chains": 4}),
        ("num_warmup", {"num_warmup": 61}),
        ("thinning", {"thinning": 2}),
        ("chain_method", {"chain_method": "sequential"}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, what, changes):
    broken_off(tmp_path, qx.NUTS(), 9)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    asked = {"model": conjugate, "data": Y, "method": qx.NUTS(), **RUN} | changes
    with pytest.raises(qx.CheckpointError, match=f"another run; different are: .*{what} "):
        qx.infer(**asked, checkpoint=tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def damage(rng, data):
    """Truncate the data, flip one of its bits, or put other bytes in its place."""
    kind = rng.integers(3)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind == 1:
        place = rng.integers(len(data))
        flipped = data[place] ^ (1 << rng.integers(8))
        return data[:place] + bytes([flipped]) + data[place + 1 :]
    return rng.bytes(len(data))


def test_damaged_files_are_refused_or_the_previous_checkpoint_serves(tmp_path):
    """Fuzz every file: reading gives the newest whole state, the one before, or an error."""
    from quincunx.inference.archive import CheckpointError
    from quincunx.inference.checkpoint import Checkpoint, identity

    sessions = []
    original = Checkpoint.write

    def write(self, session, name):
        original(self, session, name)
        sessions.append((session.done, [np.asarray(g.carry.count) for g in session.groups]))
        self.session, self.identity = session, name

    folder = tmp_path / "run"
    saver = Checkpoint(folder, every=0.0)
    saver.write = write.__get__(saver)
    qx.infer(conjugate, Y, checkpoint=saver, **{**RUN, "num_samples": 40})
    session, name = saver.session, saver.identity
    assert name == identity(session)
    newest, before = sessions[-1][0], sessions[-2][0]
    files = sorted(path for path in folder.iterdir() if path.name != "lock")
    rng = np.random.default_rng(5)
    outcomes = []
    for case in range(240):
        path = files[case % len(files)]
        data = path.read_bytes()
        swapped = files[rng.integers(len(files))].read_bytes()
        broken = swapped if rng.uniform() < 0.2 else damage(rng, data)
        path.write_bytes(broken)
        fresh = session.copy()
        try:
            Checkpoint(folder).read(fresh, name)
            outcomes.append(fresh.done)
            counts = [np.asarray(group.carry.count).tolist() for group in fresh.groups]
            assert counts == [[fresh.done] * 2]
            kept = fresh.sink.gather("posterior")[0]["mu"]
            expected = session.sink.gather("posterior")[0]["mu"][:, : kept.shape[1]]
            np.testing.assert_array_equal(kept, expected)
            assert kept.shape[1] == max(fresh.done - 60, 0)
        except CheckpointError:
            outcomes.append(None)
        finally:
            path.write_bytes(data)
    assert set(outcomes) <= {newest, before, None}
    assert outcomes.count(before) > 20
    assert outcomes.count(None) > 5


def test_damage_and_then_a_kill_leave_the_older_checkpoint(tmp_path, monkeypatch, whole):
    """After falling back, the checkpoint that served is not replaced by the damaged one."""
    broken_off(tmp_path, qx.NUTS(), 90)
    newest = max(tmp_path.glob("state-*.npz"))
    newest.write_bytes(b"")
    original = module._write

    def killed_before_the_manifest(path, data):
        if path.name == "manifest.json":
            raise Killed
        original(path, data)

    monkeypatch.setattr(module, "_write", killed_before_the_manifest)
    again = {"checkpoint": qx.Checkpoint(tmp_path, every=0.0), "resume": True}
    with pytest.raises(Killed):
        qx.infer(conjugate, Y, qx.NUTS(), **again, **RUN)
    monkeypatch.setattr(module, "_write", original)
    (tmp_path / ".state-000099.npz.1").write_bytes(b"left by a killed process")
    same(qx.infer(conjugate, Y, checkpoint=tmp_path, resume=True, **RUN), whole["nuts"])
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(qx.CheckpointError, match="cannot be written to .*Name a folder"):
        qx.infer(conjugate, Y, checkpoint=blocked, **RUN)


def test_a_first_checkpoint_that_cannot_be_written_is_told_at_once(tmp_path, monkeypatch):
    def full(path, data):
        if path.name != "probe":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, data)

    original = module._write
    monkeypatch.setattr(module, "_write", full)
    chunks = []
    store = tmp_path / "draws.zarr"
    for more in ({}, {"store": store}):
        settings = {**RUN, **more, "progress": chunks.append}
        with pytest.raises(qx.CheckpointError, match="No space left .*Name a folder"):
            qx.infer(conjugate, Y, checkpoint=tmp_path / "run", **settings)
    assert not chunks
    assert not store.exists()
    monkeypatch.setattr(module, "_write", original)
    fit = qx.infer(conjugate, Y, checkpoint=tmp_path / "run", store=store, **RUN)
    assert fit.posterior.sizes["draw"] == 60


def test_a_folder_has_one_writer(tmp_path, whole):
    refused = []

    def report(progress):
        with pytest.raises(qx.CheckpointError, match="Another run is writing to .*run'") as error:
            qx.infer(conjugate, Y, checkpoint=tmp_path / "run", resume=True, **RUN)
        refused.append(error)

    same(
        qx.infer(conjugate, Y, checkpoint=tmp_path / "run", **{**RUN, "progress": report}),
        whole["nuts"],
    )
    assert refused
    again = qx.infer(conjugate, Y, checkpoint=tmp_path / "run", resume=True, **RUN)
    same(again, whole["nuts"])


def test_a_disk_that_fills_up_ends_the_run_with_its_draws(tmp_path, monkeypatch):
    writes = []

    def full(path, data):
        writes.append(path)
        if len(writes) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, data)

    original = module._write
    monkeypatch.setattr(module, "_write", full)
    saver = qx.Checkpoint(tmp_path, every=0.0)
    fit = qx.infer(conjugate, Y, checkpoint=saver, **{**RUN, "num_samples": 4000})
    assert "No space left on device" in fit.verdict.outcome
    assert fit.posterior.sizes["draw"] < 4000
    monkeypatch.setattr(module, "_write", original)
    again = qx.infer(conjugate, Y, checkpoint=tmp_path, resume=True, **RUN)
    assert again.posterior.sizes["draw"] == 60


def test_until_stops_at_the_effective_sample_size_asked_for():
    rule = qx.Until(ess=400, r_hat=1.01)
    fit = qx.infer(
        eight_schools, SCHOOLS, until=rule, num_samples=20_000, num_warmup=300, progress=False
    )
    assert "the target is reached" in fit.verdict.outcome
    assert fit.posterior.sizes["draw"] < 20_000
    table = fit.summary(round_to="none")
    assert table["ess_bulk"].min() >= 400
    assert table["ess_tail"].min() >= 400
    assert table["r_hat"].max() <= 1.01
    assert "The run stopped early" in str(fit.verdict)


def test_until_spends_no_more_than_its_budget():
    fit = qx.infer(
        conjugate, Y, until=qx.Until(seconds=0.3), num_samples=10_000_000, progress=False
    )
    assert "0.3 seconds" in fit.verdict.outcome
    assert fit.costs["sample_seconds"] < 5
    with pytest.raises(qx.MethodError, match="needs a target"):
        qx.Until()
    with pytest.raises(qx.MethodError, match="r_hat"):
        qx.Until(r_hat=0.9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_chunk_and_returns_the_draws(tmp_path, number, whole):
    sent = []

    def report(progress):
        if progress.done > 70 and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    settings = {**RUN, "num_samples": 100_000, "progress": report}
    fit = qx.infer(conjugate, Y, checkpoint=tmp_path, **settings)
    assert fit.verdict.outcome == "it was interrupted"
    assert 0 < fit.posterior.sizes["draw"] < 100_000
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    drawn = fit.posterior.sizes["draw"]
    longer = qx.infer(
        conjugate, Y, checkpoint=tmp_path, resume=True, **{**RUN, "num_samples": drawn + 10}
    )
    np.testing.assert_array_equal(longer.posterior["mu"][:, :60], whole["nuts"].posterior["mu"])
    assert longer.verdict.outcome == ""


def test_an_interruption_in_warm_up_gives_a_fit_without_draws():
    def report(progress):
        os.kill(os.getpid(), signal.SIGINT)

    fit = qx.infer(conjugate, Y, **{**RUN, "num_warmup": 5000, "progress": report})
    assert fit.posterior.sizes["draw"] == 0
    assert fit.verdict.status == "failed"
    assert fit.verdict.reasons == ("There are no draws yet.",)
    assert fit.extend(5).posterior.sizes["draw"] == 5


def test_runs_in_other_threads_leave_signals_alone():
    fits = []
    thread = threading.Thread(target=lambda: fits.append(qx.infer(conjugate, Y, **RUN)))
    thread.start()
    thread.join()
    assert convergence({"mu": fits[0].posterior["mu"].values}).finite.all()
