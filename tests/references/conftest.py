"""The posteriors are written as users write them, with NumPy's broadcasting."""

import jax
import pytest


@pytest.fixture(autouse=True)
def broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield
