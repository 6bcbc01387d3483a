"""Chains spread over several devices, in a process of its own."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax, numpy as np, pytest
jax.config.update("jax_enable_x64", True)
import quincunx as qx
from jax.sharding import AxisType
from tests.scenarios import SCHOOLS, eight_schools

# Short, because trajectories are chaotic: rounding grows tenfold every few transitions.
options = dict(num_warmup=8, num_samples=8, progress=False)
together = qx.infer(eight_schools, SCHOOLS, **options)
spread = qx.infer(eight_schools, SCHOOLS, chain_method="parallel", **options)
np.testing.assert_allclose(together.posterior["mu"], spread.posterior["mu"], rtol=1e-6)
assert together.costs["gradients"] == spread.costs["gradients"]
mesh = jax.make_mesh((2,), ("chains",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
pairs = qx.infer(eight_schools, SCHOOLS, chain_method="parallel", mesh=mesh, **options)
np.testing.assert_allclose(together.posterior["mu"], pairs.posterior["mu"], rtol=1e-6)
for execution, warmup, tolerance in (
    ("lockstep", 0, 0.0), ("free", 0, 0.0), ("lockstep", 30, 1e-6)  # pooled sums round by order
):
    slices = qx.PolarSlice(execution=execution)
    options = dict(num_warmup=warmup, num_samples=8, progress=False)
    together = qx.infer(eight_schools, SCHOOLS, slices, **options)
    spread = qx.infer(eight_schools, SCHOOLS, slices, chain_method="parallel", **options)
    np.testing.assert_allclose(together.posterior["mu"], spread.posterior["mu"], rtol=tolerance)
    assert together.costs["evaluations"] == spread.costs["evaluations"]
    factor = spread._session.groups[0].carry.state.tuning.affine.factor
    for shard in factor.addressable_shards:  # every device has learnt the same
        np.testing.assert_array_equal(shard.data, factor)
options = dict(num_warmup=8, num_samples=8, progress=False)
from tests.scenarios import conjugate, conjugate_posterior
y = np.array([0.2, 1.4, 0.9])
fit = qx.infer(conjugate, {"y": y}, chain_method="parallel", num_samples=2000, progress=False)
mean, sd = conjugate_posterior(y)
error = sd / np.sqrt(fit.convergence.ess_bulk[0])
assert abs(fit.posterior["mu"].values.mean() - mean) < 4.5 * error
with pytest.raises(qx.MethodError, match="6 chains cannot be shared evenly by 4 devices"):
    qx.infer(eight_schools, SCHOOLS, chain_method="parallel", num_chains=6, **options)
with pytest.raises(qx.MethodError, match="leave out `mesh`, or `chain_method`"):
    qx.infer(eight_schools, SCHOOLS, mesh=mesh, chain_method="sequential", **options)
"""

ROWS = """
import jax, numpy as np, pytest
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
import quincunx as qx
from tests.scenarios import conjugate, logistic, logistic_data

data = logistic_data(np.random.default_rng(3), 399)
short = dict(num_warmup=6, num_samples=6, progress=False)
alone = qx.infer(logistic, data, **short).posterior["beta"]
spread = qx.infer(logistic, data, mesh=qx.mesh(chains=2, data=2), **short).posterior["beta"]
np.testing.assert_allclose(alone, spread, rtol=1e-6)

from quincunx.engine.sharding import cut
from quincunx.inference.driver import on_devices
from quincunx.inference.noise import row_errors
density, z = qx.compile(logistic, data), np.array([0.3, -0.2, 0.1])
parts, mesh = cut(density, 4, axis="data"), qx.mesh(data=4)
found = jax.jit(lambda parts: on_devices(mesh, lambda own: row_errors(own, z), parts))(parts)
expected = row_errors(density, z)
np.testing.assert_allclose(found.diagonal, expected.diagonal, rtol=1e-10)
covariances = [errors.factor.T @ errors.factor for errors in (found, expected)]
np.testing.assert_allclose(*covariances, atol=1e-8)

with pytest.raises(qx.MethodError, match="takes 6 devices, and there are 4"):
    qx.mesh(chains=3, data=2)
with pytest.raises(qx.MethodError, match="Unknown axis 'rows'"):
    mesh = jax.make_mesh((4,), ("rows",))
    qx.infer(conjugate, {"y": np.zeros(7)}, mesh=mesh, **short)
"""

ROWS_OF_OTHER_METHODS = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
import quincunx as qx
from tests.scenarios import conjugate, conjugate_posterior

rng = np.random.default_rng(3)
y = rng.normal(size=7)
mean, sd = conjugate_posterior(y)
slices = qx.PolarSlice(execution="lockstep")
for method, mesh in (("nuts", qx.mesh(chains=2, data=2)), (slices, qx.mesh(data=4))):
    fit = qx.infer(conjugate, {"y": y}, method, mesh=mesh, num_samples=2000, progress=False)
    size = fit.convergence.ess_bulk[0]
    assert abs(fit.posterior["mu"].values.mean() - mean) < 4 * sd / np.sqrt(size)
    assert abs(fit.posterior["mu"].values.std() / sd - 1) < 4 / np.sqrt(size)
    np.testing.assert_array_equal(fit.tree["observed_data"]["y"], y)

mesh, short = qx.mesh(data=4), dict(num_warmup=6, num_samples=6, progress=False)
sparse = qx.models.load("diabetes_lasso")[:2]
for method in (qx.BregmanLangevin(steps=4), qx.ProximalMALA()):
    alone, spread = (
        qx.infer(*sparse, method, mesh=on, **short).posterior["beta"] for on in (None, mesh)
    )
    np.testing.assert_allclose(alone, spread, rtol=1e-6)
"""


MINIBATCHES = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
import quincunx as qx
from tests.scenarios import logistic, logistic_data

data = logistic_data(np.random.default_rng(3), 399)
short = dict(num_warmup=6, num_samples=30, progress=False)
whole = qx.SGLD(batch_size=399, steps=2)
alone = qx.infer(logistic, data, whole, **short)
spread = qx.infer(logistic, data, whole, mesh=qx.mesh(chains=2, data=2), **short)
np.testing.assert_allclose(alone.posterior["beta"], spread.posterior["beta"], rtol=1e-6)
np.testing.assert_allclose(alone.bias, spread.bias, atol=1e-6)
for name, figure in alone.bias.attrs.items():
    if name not in ("seconds", "noise_bias"):
        np.testing.assert_allclose(figure, spread.bias.attrs[name], rtol=1e-6)
method, mesh = qx.SGHMC(batch_size=80), qx.mesh(data=4)
long = dict(num_warmup=50, num_samples=800, progress=False)
alone, spread = (qx.infer(logistic, data, method, mesh=on, **long) for on in (None, mesh))
np.testing.assert_allclose(*(fit.bias.attrs["step_size"] for fit in (alone, spread)), rtol=1e-6)
draws = [fit.posterior["beta"].values.reshape(-1, 3) for fit in (alone, spread)]
size = min(fit.convergence.ess_bulk.min() for fit in (alone, spread))
apart = (draws[0].mean(0) - draws[1].mean(0)) / draws[0].std(0)
assert np.all(np.abs(apart) < 4 * np.sqrt(2 / size)), (apart, size)
ratio = draws[0].std(0) / draws[1].std(0)
assert np.all(np.abs(ratio - 1) < 4 / np.sqrt(size)), (ratio, size)
"""

AGENTS = """
import jax, numpy as np, pytest
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
import quincunx as qx
from tests.laws.networks import data_of, regression

short = dict(num_warmup=12, num_samples=12, progress=False, num_chains=2)
for method in methods:
    alone = qx.infer(regression, data_of(4), method, **short)
    spread = qx.infer(regression, data_of(4), method, mesh=qx.mesh(agents=4), **short)
    np.testing.assert_array_equal(alone.posterior["theta"], spread.posterior["theta"])
    np.testing.assert_array_equal(alone.agents["theta"], spread.agents["theta"])
    agents = spread._session.groups[0].carry.state.agents
    for leaf in jax.tree.leaves(agents):  # each device has its agent alone
        assert leaf.sharding.shard_shape(leaf.shape)[:2] == (2, 1)
    assert alone.costs["bytes"] == spread.costs["bytes"]
with pytest.raises(qx.MethodError, match="`mesh` has 2 devices for agents and `ADMM` has 4"):
    qx.infer(regression, data_of(4), qx.ADMM(agents=4), mesh=qx.mesh(agents=2), **short)
with pytest.raises(qx.MethodError, match="has its rows with its agents"):
    qx.infer(regression, data_of(4), qx.ADMM(agents=4), mesh=qx.mesh(data=2), **short)
with pytest.raises(qx.MethodError, match="`NUTS` has no agents"):
    qx.infer(regression, data_of(4), mesh=qx.mesh(agents=2), **short)
"""


def in_four_devices(code):
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_parallel_chains_are_the_vectorized_ones():
    in_four_devices(CODE)


def test_rows_on_several_devices_are_those_on_one():
    in_four_devices(ROWS)


@pytest.mark.slow
def test_rows_of_other_methods_on_several_devices():
    in_four_devices(ROWS_OF_OTHER_METHODS)


@pytest.mark.slow
def test_minibatches_of_rows_on_several_devices():
    in_four_devices(MINIBATCHES)


@pytest.mark.parametrize(
    "methods",
    [
        'qx.ADMM(agents=(90, 30, 50, 30), graph="ring", steps=4),',
        pytest.param(
            "qx.DecentralizedSGLD(agents=4, steps=4), qx.FederatedSGLD(agents=4, steps=2), "
            "qx.Consensus(agents=4)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_agents_on_their_own_devices_are_those_on_one(methods):
    in_four_devices(AGENTS.replace("in methods:", f"in ({methods}):"))
