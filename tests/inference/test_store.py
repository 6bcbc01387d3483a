"""Draws that go to disk while they are made."""

import arviz_stats
import numpy as np
import pytest
import xarray as xr

import quincunx as qx
from quincunx.inference import store as module
from tests.scenarios import SCHOOLS, conjugate, eight_schools

Y = {"y": np.array([0.3, 1.9, -0.4, 2.2, 1.1])}
RUN = {"num_warmup": 60, "num_samples": 60, "num_chains": 2, "key": 7, "progress": False}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few draws, so that every run writes many."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1500)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("layout", ["vectorized", "sequential"])
def test_stored_draws_are_those_kept_in_memory(tmp_path, layout):
    names = list("ABCDEFGH")
    settings = {**RUN, "keep_warmup": True, "chain_method": layout, "coords": {"school": names}}
    stored = qx.infer(eight_schools, SCHOOLS, store=tmp_path / "draws.zarr", **settings)
    kept = qx.infer(eight_schools, SCHOOLS, **settings)
    for group in ("posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats"):
        xr.testing.assert_equal(stored.tree[group].to_dataset(), kept.tree[group].to_dataset())
    assert set(stored.tree.children) == set(kept.tree.children)
    assert stored.verdict == kept.verdict
    loaded = qx.load(tmp_path / "draws.zarr", eight_schools, SCHOOLS)
    xr.testing.assert_equal(loaded.posterior, kept.posterior)
    assert loaded.costs == stored.costs
    loaded.log_likelihood()
    assert np.isfinite(arviz_stats.loo(loaded.tree).elpd)
    assert arviz_stats.summary(loaded.tree).shape[0] == 18


@pytest.mark.usefixtures("small_chunks")
def test_a_resumed_run_goes_on_in_its_store(tmp_path):
    class Killed(BaseException):
        pass

    def report(progress):
        if progress.done > 95:
            raise Killed

    path, folder = tmp_path / "draws.zarr", tmp_path / "run"
    saver = qx.Checkpoint(folder, every=0.0)
    with pytest.raises(Killed):
        qx.infer(conjugate, Y, store=path, checkpoint=saver, **{**RUN, "progress": report})
    before = xr.open_datatree(path, engine="zarr", consolidated=False)["posterior"]["mu"].values
    fit = qx.infer(conjugate, Y, store=path, checkpoint=folder, resume=True, **RUN)
    whole = qx.infer(conjugate, Y, **RUN)
    xr.testing.assert_equal(fit.posterior, whole.posterior)
    length = before.shape[1]
    assert length > 0
    np.testing.assert_array_equal(before, whole.posterior["mu"].values[:, :length])
    with pytest.raises(qx.CheckpointError, match="store"):
        qx.infer(conjugate, Y, checkpoint=folder, resume=True, **RUN)


def test_a_run_killed_at_its_start_goes_on_in_its_store(tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    path, folder = tmp_path / "draws.zarr", tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module.ZarrStore, "create", killed)
        with pytest.raises(KeyboardInterrupt):
            qx.infer(conjugate, Y, store=path, checkpoint=folder, **RUN)
    fit = qx.infer(conjugate, Y, store=path, checkpoint=folder, resume=True, **RUN)
    xr.testing.assert_equal(fit.posterior, qx.infer(conjugate, Y, **RUN).posterior)


def test_a_store_is_never_overwritten(tmp_path):
    (tmp_path / "draws.zarr").mkdir()
    with pytest.raises(qx.StoreError, match="something at .* already"):
        qx.infer(conjugate, Y, store=tmp_path / "draws.zarr", **RUN)
    (tmp_path / "file").write_text("")
    with pytest.raises(qx.StoreError, match="cannot be made"):
        qx.infer(conjugate, Y, store=tmp_path / "file" / "draws.zarr", **RUN)


def test_a_store_has_one_writer(tmp_path):
    refused = []

    def report(progress):
        with pytest.raises(qx.StoreError, match="Another run is writing to .*draws.zarr'"):
            qx.infer(conjugate, Y, store=tmp_path / "draws.zarr", **RUN)
        refused.append(progress)

    path = tmp_path / "draws.zarr"
    fit = qx.infer(conjugate, Y, store=path, **{**RUN, "progress": report})
    assert refused
    xr.testing.assert_equal(fit.posterior, qx.infer(conjugate, Y, **RUN).posterior)
    with pytest.raises(qx.StoreError, match="something at .* already"):
        qx.infer(conjugate, Y, store=path, **RUN)


@pytest.mark.usefixtures("small_chunks")
def test_a_full_disk_loses_no_draw(tmp_path, monkeypatch):
    import errno

    calls = []
    original = module.ZarrStore._write

    def write(self, phase, group):
        calls.append(phase)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, phase, group)

    monkeypatch.setattr(module.ZarrStore, "_write", write)
    settings = {**RUN, "num_samples": 5000}
    fit = qx.infer(conjugate, Y, store=tmp_path / "draws.zarr", **settings)
    assert "No space left on device" in fit.verdict.outcome
    drawn = fit.posterior.sizes["draw"]
    assert 0 < drawn < 5000
    whole = qx.infer(conjugate, Y, **{**RUN, "num_samples": drawn})
    np.testing.assert_array_equal(fit.posterior["mu"], whole.posterior["mu"])


def test_until_reads_the_store(tmp_path):
    fit = qx.infer(
        conjugate, Y, store=tmp_path / "draws.zarr", until=qx.Until(ess=300), num_samples=50_000,
        progress=False,
    )  # fmt: skip
    assert "the target is reached" in fit.verdict.outcome
    assert fit.summary(round_to="none")["ess_bulk"].min() >= 300
