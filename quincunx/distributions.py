"""NumPyro's distributions, constraints and transforms, re-exported whole, and `GroupLaplace`."""

from numpyro.distributions import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]
from numpyro.distributions import __all__ as _numpyro
from numpyro.distributions import constraints as constraints
from numpyro.distributions import transforms as transforms

from quincunx.engine.group_laplace import GroupLaplace as GroupLaplace

__all__ = [*_numpyro, "GroupLaplace"]  # pyright: ignore[reportUnsupportedDunderAll]
