"""Rows on disk: the same density as in memory, read in blocks and ahead of time."""

import gc
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr

import quincunx as qx
import quincunx.distributions as dist
from quincunx.engine import Block, density, preflight, storage
from tests.scenarios import logistic, logistic_data

ROWS = 203


@qx.model
def shifted(X, y=None, z=None):
    """Also observes something that is not in the plate."""
    prior = dist.Normal(0, 1).expand([X.shape[1]]).to_event(1)
    beta = qx.sample("beta", prior)
    qx.sample("z", dist.Normal(beta[0], 1.0), obs=z)
    with qx.plate("row", X, y) as (x, t):
        qx.sample("y", dist.Bernoulli(logits=x @ beta), obs=t)


@pytest.fixture
def memory(rng):
    return logistic_data(rng, ROWS) | {"z": 0.3}


@pytest.fixture
def disk(tmp_path, memory):
    return memory | stored(tmp_path, X=memory["X"], y=memory["y"])


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(density, "_STREAMED", 50)
    monkeypatch.setattr(preflight, "_READ", 50)


def stored(folder, **arrays):
    """Memory-mapped copies."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


@pytest.fixture
def reads(monkeypatch):
    """Every read: the number of rows and the thread."""
    seen = []
    gather = storage._Reader.gather

    def spy(self, rows):
        seen.append((len(rows), threading.current_thread().name))
        return gather(self, rows)

    monkeypatch.setattr(storage._Reader, "gather", spy)
    return seen


def test_the_density_is_that_in_memory_and_never_reads_all_rows_at_once(memory, disk, reads):
    z = jnp.array([0.5, -0.2, 0.1])
    here, there = qx.compile(shifted, memory), qx.compile(shifted, disk)
    assert there.is_on_disk
    assert not here.is_on_disk
    values = eqx.filter_jit(lambda d: jax.value_and_grad(d.log_density)(z))
    jax.tree.map(np.testing.assert_allclose, values(there), values(here))
    assert {count for count, _ in reads} == {41}
    assert sum(count for count, _ in reads) >= 2 * ROWS
    parts = eqx.filter_jit(lambda d: [jnp.sum(x) for x in d.log_density_elements(z)])
    np.testing.assert_allclose(sum(parts(there)), values(here)[0])
    tempered = eqx.filter_jit(lambda d: d.tempered(0.5).log_density(z))
    np.testing.assert_allclose(tempered(there), tempered(here))


@pytest.mark.parametrize("rows", [np.array([3, 200, 41]), Block(17, 6), Block(17, 6, 5)])
def test_chosen_rows_are_those_in_memory_also_shuffled(memory, disk, rows):
    z, order = jnp.array([0.5, -0.2, 0.1]), np.random.default_rng(0).permutation(ROWS)
    chosen = eqx.filter_jit(lambda d: jax.value_and_grad(d.log_likelihood)(z, rows))
    for change in (lambda d: d, lambda d: d.permuted(order)):
        here, there = change(qx.compile(shifted, memory)), change(qx.compile(shifted, disk))
        jax.tree.map(np.testing.assert_allclose, chosen(there), chosen(here))


def test_the_log_prior_reads_no_more_than_a_row(disk, reads):
    found = qx.compile(shifted, disk)
    eqx.filter_jit(lambda d: d.log_prior(jnp.zeros(3)))(found)
    assert all(count <= 1 for count, _ in reads)


def test_new_data_of_the_same_shape_compile_nothing_again(tmp_path, memory, disk):
    traced = []

    @eqx.filter_jit
    def value(d):
        traced.append(d)
        return d.log_density(jnp.ones(3))

    first = value(qx.compile(shifted, disk))
    (tmp_path / "other").mkdir()
    other = memory | stored(tmp_path / "other", X=2 * memory["X"], y=memory["y"])
    second = value(qx.compile(shifted, other))
    assert len(traced) == 1
    assert first != second
    np.testing.assert_allclose(
        second, qx.compile(shifted, memory | {"X": 2 * memory["X"]}).log_density(jnp.ones(3))
    )


def test_the_next_block_is_read_in_a_thread_where_reads_are_slow(disk, reads, monkeypatch):
    monkeypatch.setattr(storage, "_SLOW", 0.0)
    found = qx.compile(logistic, {name: disk[name] for name in ("X", "y")})

    @eqx.filter_jit
    def walk(d):
        def step(total, index):
            block = Block(20 * index, 20, ahead=jnp.minimum(20 * index + 20, 180))
            return total + d.log_likelihood(jnp.ones(3), block), None

        return jax.lax.scan(step, 0.0, jnp.arange(10))[0]

    walk(found).block_until_ready()
    here = [name for count, name in reads if not name.startswith("rows")]
    assert len(here) == 2  # the first block of each array
    assert len(reads) == 20


def test_a_zarr_array_is_unpacked_once_and_removed(tmp_path, memory):
    array = zarr.create_array(tmp_path / "X.zarr", data=memory["X"], chunks=(30, 2))
    rows = qx.on_disk(array)
    assert qx.on_disk(rows) is rows
    path = rows.reader.folder.name
    found = qx.compile(shifted, memory | {"X": rows}).log_density(jnp.ones(3))
    np.testing.assert_allclose(found, qx.compile(shifted, memory).log_density(jnp.ones(3)))
    np.testing.assert_array_equal(np.load(f"{path}/rows.npy"), memory["X"])


def test_the_unpacked_file_goes_with_the_array(tmp_path, memory):
    from pathlib import Path

    rows = qx.on_disk(zarr.create_array(tmp_path / "X.zarr", data=memory["X"]))
    path = Path(rows.reader.folder.name)
    assert path.exists()
    del rows
    gc.collect()
    assert not path.exists()


def test_what_cannot_stay_on_disk_is_refused(tmp_path):
    with pytest.raises(qx.ModelError, match=r"not a ndarray.*mmap_mode='r'"):
        qx.on_disk(np.zeros(3))
    texts = stored(tmp_path, texts=np.array(["a", "b"]))["texts"]
    with pytest.raises(qx.ModelError, match="holds <U1 values"):
        qx.on_disk(texts)
    empty = zarr.create_array(tmp_path / "empty.zarr", shape=(0, 2), dtype="f8")
    with pytest.raises(qx.ModelError, match=r"shape \(0, 2\): it needs rows"):
        qx.on_disk(empty)


def test_whole_arrays_on_disk_are_refused_in_a_model(disk):
    @qx.model
    def outside(X, y):
        beta = qx.sample("beta", dist.Normal(0, 1).expand([3]).to_event(1))
        qx.sample("y", dist.Bernoulli(logits=X @ beta), obs=np.zeros(ROWS))

    with pytest.raises(qx.ModelError, match="on disk, and is read row by row. Enter its plate"):
        qx.compile(outside, {"X": disk["X"], "y": disk["y"]})


def test_observations_on_disk_are_not_read_as_a_whole(disk):
    found = qx.compile(shifted, disk)
    with pytest.raises(qx.ModelError, match="203 rows of plate 'row' are on disk"):
        found.pointwise_log_likelihood(jnp.zeros(3))
    with pytest.raises(qx.ModelError, match="are on disk, and they are not read"):
        found.observations(jnp.zeros(3))


@qx.model
def normal(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.Normal(mu, 1.0), obs=t)


@qx.model
def positive(y):
    scale = qx.sample("scale", dist.HalfNormal(1))
    with qx.plate("row", y) as t:
        qx.sample("y", dist.HalfNormal(scale), obs=t)


@pytest.mark.parametrize(
    ("model", "value", "message"),
    [(normal, np.nan, "has 1 NaN, first at index 171"), (positive, -3.0, r"y\[171\] = -3")],
)
def test_observations_in_any_block_are_looked_at(tmp_path, model, value, message):
    y = np.ones(ROWS)
    y[171] = value
    with pytest.raises(qx.ModelError, match=message):
        preflight.preflight(qx.compile(model, stored(tmp_path, y=y)))
