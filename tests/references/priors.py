"""Improper flat priors shared by the reference models."""

import quincunx.distributions as dist

FLAT = dist.ImproperUniform(dist.constraints.real, (), ())
FLAT_POSITIVE = dist.ImproperUniform(dist.constraints.positive, (), ())


def flat_vector(size: int) -> dist.Distribution:
    """Constant density on R^size."""
    return dist.ImproperUniform(dist.constraints.real_vector, (), (size,))


def normal_vector(size: int, scale: float = 1.0) -> dist.Distribution:
    """`size` independent N(0, scale) in one event."""
    return dist.Normal(0.0, scale).expand([size]).to_event(1)
