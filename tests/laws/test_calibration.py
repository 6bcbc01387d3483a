"""Every exact sampler is calibrated on a hierarchy, and calibration rejects broken ones.

Ranks are uniform if draws are independent, so slice samplers are thinned more.
"""

import numpy as np
import pytest

import quincunx as qx
import quincunx.distributions as dist
from tests.laws.kernels import ColdNUTS, NoJacobian


@qx.model
def hierarchy(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    tau = qx.sample("tau", dist.Gamma(3, 3))
    with qx.plate("group", y.shape[0]):
        theta = qx.sample("theta", dist.Normal(mu, tau))
        qx.sample("y", dist.Normal(theta, 0.7), obs=y)


def validated(kernel):
    num_warmup, thinning = (150, 10) if isinstance(kernel, qx.NUTS) else (1000, 100)
    return qx.validate(
        hierarchy, kernel, {"y": np.zeros(5)}, simulations=300, num_draws=15,
        num_warmup=num_warmup, thinning=thinning, key=3,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [
        qx.NUTS(target_accept=0.9),
        qx.PolarSlice(),
        qx.EllipticalSlice(),
        qx.HitAndRunSlice(),
    ],
    ids=lambda kernel: kernel.name,
)
def test_ranks_are_uniform(kernel):
    found = validated(kernel)
    assert found.table["adjusted"].min() > 1e-3, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken", [ColdNUTS(target_accept=0.9, power=2.0), NoJacobian(radial="linear")]
)
def test_the_ranks_of_a_broken_kernel_are_not(broken):
    found = validated(broken)
    assert found.verdict.status == "failed", found
    assert found.table["adjusted"].min() < 1e-4
