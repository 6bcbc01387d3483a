"""Settings of every test: double precision and no silent rank promotion."""

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error::quincunx.ModelWarning")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Compiled programs hold memory maps, of which a process may have some ten thousand."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def schools():
    """A fit of eight schools with labels, warm-up kept."""
    import quincunx as qx
    from tests.scenarios import SCHOOLS, eight_schools

    names = ["A", "B", "C", "D", "E", "F", "G", "H"]
    options = {"coords": {"school": names}, "keep_warmup": True, "progress": False}
    return qx.infer(eight_schools, SCHOOLS, num_warmup=500, num_samples=500, **options)
