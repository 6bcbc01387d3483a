"""NumPyro's distributions, constraints and transforms, re-exported whole."""

from numpyro.distributions import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]
from numpyro.distributions import __all__ as __all__
from numpyro.distributions import constraints as constraints
from numpyro.distributions import transforms as transforms
