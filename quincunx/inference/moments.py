"""Draws too many to keep: running figures of all of them, and an even subsample."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import xarray as xr

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.diagnostics.convergence import flatten
from quincunx.inference.method import integer
from quincunx.inference.running import BatchMeans, RunningMoments, Subsample
from quincunx.inference.sinks import Block, Draws, Sink, along_chains, along_draws, draws_length
from quincunx.inference.sketch import QuantileSketch

_GIGABYTE = 1e9
_BLOCK_VALUES = 2**21
_BLOCK = 512
_LEVELS = 16  # of the sketch, for a hundred million draws


@dataclass(frozen=True)
class Moments:
    """Keep figures of all draws, and of the draws themselves an even subsample.

    Given to `infer` as `store=`, for runs whose draws fit neither in memory nor on disk. Memory
    does not grow with their number. `Fit.moments` has the figures, of all draws of all chains:

    - mean, sd and, in the group `posterior_covariance`, the covariance of all scalar parameters;
    - `mcse_mean`, the standard error of the mean, from the means of batches of at least sqrt(n)
      of the n draws of a chain, and `ess_mean` = (sd / mcse_mean)^2;
    - quantiles whose rank among N draws is wrong by at most (log2(N / 2048) + 1) / 2048, a share
      of 0.44 % for a million draws, and usually by a tenth of that.

    The posterior of the fit is every 2^k-th draw, between `keep` and 2 `keep` of each chain once
    there are so many; summaries, the verdict, plots and predictions use it. Effective sample
    sizes there count only what the subsample tells: a lower bound on what all draws tell.

    Attributes:
        keep: draws kept of each chain, at least; at most twice as many.
        quantiles: probabilities of the quantiles to estimate, ascending; `()` for none.
        covariance: whether the covariance is kept too: three matrices of doubles in memory.
    """

    keep: int = 1000
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
    covariance: bool = True

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        integer("keep", self.keep, "Moments", 4)
        try:
            chosen = tuple(float(entry) for entry in self.quantiles)
        except (TypeError, ValueError):
            chosen = (np.nan,)
        inside = all(0 < entry < 1 for entry in chosen)
        if not inside or sorted(set(chosen)) != list(chosen):
            message = f"`Moments(quantiles={self.quantiles!r})`: quantiles must be ascending "
            raise MethodError(message + "probabilities between 0 and 1, such as (0.05, 0.5, 0.95).")
        if not isinstance(self.covariance, bool):
            message = (
                f"`Moments(covariance={self.covariance!r})`: covariance must be True or False."
            )
            raise MethodError(message)
        object.__setattr__(self, "quantiles", chosen)

    @property
    def statistics(self) -> list[str]:
        """Names of the figures of each parameter."""
        quantiles = [f"{100 * entry:g}%" for entry in self.quantiles]
        return ["mean", "sd", "mcse_mean", "ess_mean", *quantiles]


class Running:
    """All that is kept of the draws; it sees them in blocks of a length that is always the same.

    So sums are rounded alike however a run was cut into chunks, and a resumed run ends with the
    figures of the uninterrupted one, bit for bit.

    Attributes:
        block: draws of each chain to give at a time.
        diverging: draws of all chains that diverged.
        finite: whether the log density of every draw was finite.
    """

    def __init__(self, settings: Moments, draws: Draws, stats: Draws) -> None:
        chains, _, parameters = flat(draws).shape
        self.settings = settings
        self.shapes = {name: array[:, :0] for name, array in draws.items()}
        self.block = int(np.clip(_BLOCK_VALUES // max(chains * parameters, 1), 1, _BLOCK))
        self.diverging = 0
        self.finite = True
        self.moments = RunningMoments(parameters, covariance=settings.covariance)
        self.batches = BatchMeans(chains, parameters)
        self.sketch = QuantileSketch(parameters if settings.quantiles else 0)
        self.subsample = Subsample(draws, stats, 2 * settings.keep)

    def add(self, draws: Draws, stats: Draws) -> None:
        """Take a block, `(chain, draw, ...)`."""
        values = flat(draws)
        rows = values.reshape(-1, values.shape[-1])
        with np.errstate(invalid="ignore", over="ignore"):  # draws that are not finite show
            self.moments.add(rows)
            self.batches.add(values)
        if self.settings.quantiles:
            self.sketch.add(rows)
        self.subsample.add(draws, stats)
        self.diverging += int(stats["diverging"].sum())
        self.finite &= bool(np.isfinite(stats["lp"]).all())

    def table(self) -> np.ndarray:
        """The figures, `(statistic, parameter)`."""
        mean, sd, mcse = self.moments.mean, self.moments.sd, self.batches.mcse()
        if not self.moments.count:
            mean = np.full_like(mean, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            ess = np.where(mcse > 0, (sd / mcse) ** 2, np.nan)
        rows = np.stack([mean, sd, mcse, ess])
        if not self.settings.quantiles:
            return rows
        quantiles = self.sketch.quantiles(self.settings.quantiles)
        return np.concatenate([rows, np.where(np.isfinite(mean), quantiles, np.nan)])

    def state(self) -> Draws:
        """All there is, as arrays."""
        parts = {name: getattr(self, name).state() for name in _PARTS}
        arrays = {f"{part}|{name}": a for part, state in parts.items() for name, a in state.items()}
        return arrays | {"counts": np.asarray([self.diverging, self.finite])}

    def restore(self, arrays: Draws) -> None:
        """Go on from what `state` gave."""
        for part in _PARTS:
            getattr(self, part).restore(_under(arrays, f"{part}|"))
        self.diverging, self.finite = int(arrays["counts"][0]), bool(arrays["counts"][1])


_PARTS = ("moments", "batches", "sketch", "subsample")


class MomentsSink(Sink):
    """Fold draws into running figures, a block of all chains at a time.

    Attributes:
        settings: what is kept.
        waiting: draws and statistics of each group of chains that fill no block yet.
        running: what the blocks were folded into; `None` before the first chunk.
    """

    def __init__(self, settings: Moments, groups: int, density: Density) -> None:
        taken = [site.name for site in density.program.sites if site.name == "statistic"]
        taken += [dim for site in density.program.sites for dim in site.dims if dim == "statistic"]
        if taken:
            message = "`store=Moments()` names a dimension 'statistic', but the model has a site "
            raise MethodError(message + "or dimension of that name; rename it.")
        position = jax.ShapeDtypeStruct((density.dim,), jax.dtypes.canonicalize_dtype(float))
        shapes = jax.eval_shape(Density.constrain, density, position)
        _check_size(settings, sum(leaf.size for leaf in shapes.values() if is_numeric(leaf)))
        self.settings = settings
        self.waiting: list[tuple[Draws, Draws] | None] = [None] * groups
        self.running: Running | None = None

    @property
    def label(self) -> str:
        """The settings."""
        return repr(self.settings)

    @property
    def stride(self) -> int:
        """One of how many draws is in the subsample."""
        stride = 1
        while self.length("posterior") > 2 * self.settings.keep * stride:
            stride *= 2
        return stride

    def append(self, phase: str, group: int, draws: Draws, stats: Draws) -> None:
        """Fold what fills blocks for all chains; warm-up draws are let go."""
        if phase != "posterior":
            return
        before = self.waiting[group]
        if before is not None:
            draws = along_draws([before[0], draws])
            stats = along_draws([before[1], stats])
        self.waiting[group] = draws, stats
        if any(entry is None for entry in self.waiting):
            return
        if self.running is None:
            self.running = self._begin()
        self._fold(self.running)

    def length(self, phase: str) -> int:
        """Draws that every chain has made."""
        if phase != "posterior" or self.running is None:
            return 0
        return self.running.subsample.seen + self._ready()

    def draws(self, phase: str) -> dict[str, Any]:
        """The subsample by site."""
        return self._kept()[0] if phase == "posterior" else {}

    def position(self) -> dict[str, list[int]]:
        """Nothing: the arrays say it."""
        return {}

    def arrays(self) -> Draws:
        """The running figures, and the draws that wait."""
        arrays = {}
        for group, entry in enumerate(self.waiting):
            for kind, values in zip(("draw", "stat"), entry or ({}, {}), strict=True):
                arrays |= {f"{group}|{kind}|{name}": array for name, array in values.items()}
        if self.running is not None:
            arrays |= {f"running|{name}": array for name, array in self.running.state().items()}
        return arrays

    def restore(
        self, position: Mapping[str, list[int]], arrays: Draws, blocks: Sequence[Block]
    ) -> None:
        """Go on from what `arrays` gave."""
        del position, blocks
        for group in range(len(self.waiting)):
            draws, stats = _under(arrays, f"{group}|draw|"), _under(arrays, f"{group}|stat|")
            self.waiting[group] = (draws, stats) if draws else None
        state = _under(arrays, "running|")
        if state:
            self.running = self._begin()
            self.running.restore(state)

    def copy(self) -> MomentsSink:
        """A copy of all of it."""
        return copy.deepcopy(self)

    def groups(self) -> dict[str, Draws]:
        """The subsample and its statistics."""
        return dict(zip(("posterior", "sample_stats"), self._kept(), strict=True))

    def complete(self, tree: xr.DataTree, attributes: Mapping[str, Any], *, ended: bool) -> None:
        """Give the tree the figures of all draws."""
        del attributes, ended
        final = self._final()
        posterior = tree["posterior"].to_dataset()
        figures, table, start = {}, final.table(), 0
        for name, template in final.shapes.items():
            if not is_numeric(template):
                continue
            shape = template.shape[2:]
            size = int(np.prod(shape, dtype=int))
            values = table[:, start : start + size].reshape(-1, *shape)
            figures[name] = (("statistic", *posterior[name].dims[2:]), values)
            start += size
        coords = {
            str(dim): labels
            for dim, labels in posterior.coords.items()
            if dim not in ("chain", "draw")
        }
        coords["statistic"] = self.settings.statistics
        dataset = xr.Dataset(figures, coords)
        dataset.attrs["draws"] = final.subsample.seen
        dataset.attrs["diverging"] = final.diverging
        dataset.attrs["finite_log_density"] = int(final.finite)
        tree["posterior_moments"] = xr.DataTree(dataset)
        if final.moments.covariance is not None:
            names = flatten(final.shapes)[0]
            labels = {"parameter": names, "other": names}
            matrix = (("parameter", "other"), final.moments.covariance)
            tree["posterior_covariance"] = xr.DataTree(xr.Dataset({"covariance": matrix}, labels))

    def _ready(self) -> int:
        """Draws that all groups have waiting."""
        return min(draws_length(entry[0]) for entry in self.waiting if entry is not None)

    def _rest(self) -> tuple[Draws, Draws]:
        """Draws of all chains that wait, as far as all have them."""
        draws, stats = zip(*[entry for entry in self.waiting if entry is not None], strict=True)
        return along_chains(draws), along_chains(stats)

    def _fold(self, running: Running) -> None:
        whole = self._ready() // running.block
        if not whole:
            return
        draws, stats = self._rest()
        for start in range(0, whole * running.block, running.block):
            part = slice(start, start + running.block)
            running.add(_cut(draws, part), _cut(stats, part))
        rest = slice(whole * running.block, None)
        self.waiting = [
            None if entry is None else (_cut(entry[0], rest), _cut(entry[1], rest))
            for entry in self.waiting
        ]

    def _final(self) -> Running:
        """The running figures with the draws that wait."""
        final = copy.deepcopy(self.running) or self._begin()
        if self.length("posterior") > final.subsample.seen:
            final.add(*self._rest())
        return final

    def _kept(self) -> tuple[Draws, Draws]:
        """The subsample with the draws that wait."""
        subsample = copy.deepcopy((self.running or self._begin()).subsample)
        if self.length("posterior") > subsample.seen:
            subsample.add(*self._rest())
        return subsample.kept()

    def _begin(self) -> Running:
        return Running(self.settings, *(_cut(values, slice(0)) for values in self._rest()))


def flat(draws: Draws) -> np.ndarray:
    """Scalar parameters as columns in double precision, `(chain, draw, parameter)`."""
    columns = [
        np.asarray(array, float).reshape(*array.shape[:2], int(np.prod(array.shape[2:], dtype=int)))
        for array in draws.values()
        if is_numeric(array)
    ]
    return np.concatenate(columns, axis=-1)


def is_numeric(array: Any) -> bool:
    """Whether figures of an array's entries make sense."""
    return array.dtype.kind in "biuf"


def _under(arrays: Draws, prefix: str) -> Draws:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _cut(draws: Draws, part: slice) -> Draws:
    return {name: array[:, part] for name, array in draws.items()}


def _check_size(settings: Moments, parameters: int) -> None:
    """Refuse what would not fit in memory.

    Raises:
        MethodError: it says which setting to change.
    """
    needed = 3 * 8.0 * parameters**2
    if settings.covariance and needed > _GIGABYTE:
        message = f"The covariance of {parameters} parameters would take {needed / 1e9:.1f} GB. "
        raise MethodError(message + "Use `Moments(covariance=False)`.")
    needed = 8.0 * 2048 * _LEVELS * parameters
    if settings.quantiles and needed > 2 * _GIGABYTE:
        message = f"Quantiles of {parameters} parameters would take {needed / 1e9:.1f} GB. "
        raise MethodError(message + "Use `Moments(quantiles=())`, or store the draws in a path.")
