"""Chains spread over several devices, in a process of its own."""

import os
import subprocess
import sys

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
with pytest.raises(qx.MethodError, match="add `chain_method='parallel'`"):
    qx.infer(eight_schools, SCHOOLS, mesh=mesh, **options)
"""


def test_parallel_chains_are_the_vectorized_ones():
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
