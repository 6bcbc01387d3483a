"""What the compared methods are judged by: another fit, or trusted answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from quincunx.engine.density import Density
from quincunx.inference.diagnostics.agreement import Moments
from quincunx.inference.diagnostics.convergence import flatten
from quincunx.inference.diagnostics.discrepancy import Whitening
from quincunx.inference.diagnostics.independence import shortened, slowest, thinned
from quincunx.inference.diagnostics.lineages import descents
from quincunx.inference.diagnostics.scores import positions
from quincunx.inference.fit import Fit
from quincunx.inference.weighted import WEIGHTED, WEIGHTS, is_weighted

_MOST = 16_000  # draws that are looked at
_EXACT_DRAWS = 4000
_SPARSE = 5.0  # weighted draws are as noisy as their weights, however few are looked at
_LEAST = 4  # draws of a chain without which nothing can be said


@runtime_checkable
class Answers(Protocol):
    """Trusted answers, as worked models have them: `quincunx.models.Reference`."""

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def mean(self) -> Mapping[str, np.ndarray]: ...  # noqa: D102
    @property
    def sd(self) -> Mapping[str, np.ndarray]: ...  # noqa: D102
    @property
    def log_evidence(self) -> float | None: ...  # noqa: D102
    @property
    def effective_size(self) -> float: ...  # noqa: D102
    @property
    def draws(self) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Particles:
    """Weighted draws as they were made.

    Attributes:
        z: flat unconstrained positions, `(n, dim)`.
        weight: normalised, `(n,)`.
        descent: the particle of the start that each one descends from, `(n,)`.
    """

    z: np.ndarray
    weight: np.ndarray
    descent: np.ndarray

    @classmethod
    def of_fit(cls, fit: Fit, density: Density) -> Particles | None:
        """Those of a fit that count; `None` where there are none, or they have no positions."""
        stats = fit.tree[WEIGHTS].to_dataset()
        weight = np.exp(stats["log_weight_smoothed"].values).reshape(-1)
        every = fit.tree[WEIGHTED].to_dataset()
        draws = {str(name): array.values for name, array in every.items()}
        z = _flat(draws, density)
        if z is None or not weight.any():
            return None
        descent = np.arange(weight.size)
        if "origin" in stats:
            descent = descents(stats["origin"].values)
        z, used = z.reshape(weight.size, -1), weight > 0
        return cls(z[used], weight[used], descent[used])

    def some(self, most: int, rng: np.random.Generator) -> Particles:
        """Whole families, drawn at random, of so many particles."""
        order = rng.permutation(self.descent.max() + 1)[self.descent]
        sizes = np.bincount(order)
        chosen = order < np.searchsorted(np.cumsum(sizes), most, side="right")
        return Particles(self.z[chosen], self.weight[chosen], self.descent[chosen])


@dataclass(frozen=True)
class Sample:
    """Draws in the two forms that tests take.

    Attributes:
        names: scalar parameters.
        values: their draws, `(chain, draw, parameter)`; `None` where there are too few.
        ess: effective sample size of draws that are of no chain; `None` for chains.
        z: flat unconstrained positions, `(chain, draw, dim)`; `None` where they cannot be had.
        kept: indices into all positions, near enough to independent, in blocks of `BLOCK`.
        particles: of weighted draws, as they were made; `None` for others.
    """

    names: list[str]
    values: np.ndarray | None
    ess: float | None
    z: np.ndarray | None
    kept: np.ndarray
    particles: Particles | None = None

    @classmethod
    def of_fit(cls, fit: Fit, density: Density | None) -> Sample:
        """The draws of a fit.

        Args:
            fit: the fit.
            density: the model; without it positions are the draws themselves.
        """
        draws = {str(name): array.values for name, array in fit.posterior.items()}
        fewer = {name: shortened(array, _MOST) for name, array in draws.items()}
        if not is_weighted(fit.tree):
            return cls._of(fewer, density, None)
        count, kept = (np.prod(next(iter(d.values())).shape[:2]) for d in (draws, fewer))
        size = min(fit.worth()[0], float(count))
        ess = float(size / (1 + size * (1 / kept - 1 / count)))  # draws left out add error
        particles = None if density is None else Particles.of_fit(fit, density)
        return dataclasses.replace(cls._of(fewer, density, ess, _SPARSE), particles=particles)

    @classmethod
    def of_exact_draws(cls, draws: Mapping[str, Any], density: Density | None) -> Sample:
        """Independent draws by site, `(n, ...)`."""
        one = {name: np.asarray(values)[None] for name, values in draws.items()}
        count = len(next(iter(draws.values())))
        return cls._of(one, density, float(count))

    @classmethod
    def _of(
        cls,
        draws: dict[str, np.ndarray],
        density: Density | None,
        ess: float | None,
        sparse: float = 1.0,
    ) -> Sample:
        """Of draws `(chain, draw, ...)`, of which one in `sparse` may be kept."""
        names, values = flatten(draws)
        if values.shape[1] < _LEAST:
            return cls(names, None, ess, None, np.zeros(0, int))
        z = values if density is None else _flat(draws, density)
        if z is None:
            return cls(names, values, ess, None, np.zeros(0, int))
        chains, number = z.shape[:2]
        if not np.isfinite(z).all():
            return cls(names, values, ess, None, np.zeros(0, int))
        if ess is None:
            kept = thinned(number, chains, slowest(z))
        else:
            kept = thinned(number * chains, 1, min(ess, number * chains) / sparse)
        return cls(names, values, ess, z, kept)

    @property
    def independent(self) -> np.ndarray:
        """Thinned positions, `(n, dim)`."""
        assert self.z is not None
        return self.z.reshape(-1, self.z.shape[-1])[self.kept]


def _flat(draws: Mapping[str, np.ndarray], density: Density) -> np.ndarray | None:
    if any(site.name not in draws for site in density.program.latents):
        return None
    shape = next(iter(draws.values())).shape[:2]
    with np.errstate(all="ignore"):
        z = np.asarray(positions(density.unconstrained, draws))
    return z.reshape(*shape, -1)


@dataclass(frozen=True)
class Standard:
    """What methods are judged by.

    Attributes:
        label: what it is, in a few words.
        name: of the compared fit that it is; empty where it is none of them.
        status: its verdict's status; `ok` for trusted answers.
        sample: its draws; `None` where only moments are known.
        means: trusted means by parameter, with `sds`; empty where there are draws.
        sds: trusted standard deviations.
        size: how many independent draws they are worth.
        fit: the fit, for predictive accuracy.
        others: of the compared fits, those that could be asked if this one has failed.
    """

    label: str
    name: str = ""
    status: str = "ok"
    sample: Sample | None = None
    means: Mapping[str, float] | None = None
    sds: Mapping[str, float] | None = None
    size: float = math.inf
    fit: Fit | None = None
    others: tuple[str, ...] = ()

    @classmethod
    def of_fit(cls, fit: Fit, label: str, density: Density | None, name: str = "") -> Standard:
        """Another fit of the same model."""
        sample = Sample.of_fit(fit, density)
        return cls(label, name, fit.verdict.status, sample, fit=fit)

    @classmethod
    def of_answers(cls, answers: Answers, density: Density | None) -> Standard:
        """Trusted answers: exact draws where there are some, moments otherwise."""
        sample, means, sds = None, {}, {}
        if answers.draws is not None:
            draws = jax.device_get(answers.draws(jax.random.key(20), _EXACT_DRAWS))
            sample = Sample.of_exact_draws(draws, density)
        for name, mean in answers.mean.items():
            names, values = flatten({name: np.asarray(mean, float)[None, None]})
            spread = flatten({name: np.asarray(answers.sd[name], float)[None, None]})[1]
            means |= dict(zip(names, values[0, 0], strict=True))
            sds |= dict(zip(names, spread[0, 0], strict=True))
        known = answers.log_evidence
        evidence = "" if known is None else f"; log evidence {known:.2f}"
        return cls(
            f"trusted answers ({answers.source}{evidence})",
            sample=sample,
            means=means,
            sds=sds,
            size=answers.effective_size,
        )

    @property
    def names(self) -> list[str]:
        """Parameters that it has something to say of."""
        return self.sample.names if self.sample is not None else list(self.means or {})

    def whitening(self) -> Whitening | None:
        """Coordinates in which distances are measured, the same for all methods."""
        if self.sample is None or self.sample.z is None:
            return None
        return Whitening.of(self.sample.z.reshape(-1, self.sample.z.shape[-1]))

    def moments(self, names: list[str]) -> Moments:
        """Trusted moments of some parameters, where there are no draws."""
        assert self.means is not None
        assert self.sds is not None
        mean = np.array([self.means[name] for name in names])
        sd = np.array([self.sds[name] for name in names])
        return Moments.trusted(mean, sd, self.size)
