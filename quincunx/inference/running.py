"""Figures of a stream of draws, kept up to date without the draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quincunx.inference.sinks import Draws

_SUMMED = ("gradients", "evaluations")
_ONE_THREAD = 2**18  # multiplications
_LEAST_ROWS = 16


class RunningMoments:
    """Mean and covariance of all draws, merged block by block.

    With n, m and S the number, mean and scatter of the draws so far, and n', m' and S' of a block,

        m <- m + n' / (n + n') (m' - m),    S <- S + S' + n n' / (n + n') (m' - m)(m' - m)^T

    (Chan, Golub and LeVeque, 1983, Algorithms for computing the sample variance, American
    Statistician 37:242); S is scatter about the mean, so no digits are lost to a large mean.

    Attributes:
        count: n.
        mean: m, `(parameter,)`.
        scatter: S, `(parameter, parameter)`, or its diagonal `(parameter,)`.
    """

    def __init__(self, parameters: int, *, covariance: bool) -> None:
        self.count = 0
        self.mean = np.zeros(parameters)
        self.scatter = np.zeros((parameters, parameters) if covariance else parameters)

    def add(self, values: np.ndarray) -> None:
        """Take a block of draws, `(draw, parameter)`."""
        full, size = self.scatter.ndim == 2, len(values)
        mean = values.mean(axis=0)
        rest = values - mean
        jump, total = mean - self.mean, self.count + size
        weight = self.count * size / total
        self.scatter += _products(rest) if full else np.einsum("np,np->p", rest, rest)
        self.scatter += weight * (np.outer(jump, jump) if full else jump**2)
        self.mean = self.mean + size / total * jump
        self.count = total

    @property
    def sd(self) -> np.ndarray:
        """Standard deviations; NaN for fewer than two draws."""
        diagonal = np.diagonal(self.scatter) if self.scatter.ndim == 2 else self.scatter
        return np.sqrt(self._divided(diagonal))

    @property
    def covariance(self) -> np.ndarray | None:
        """The covariance matrix, if it is kept."""
        return self._divided(self.scatter) if self.scatter.ndim == 2 else None

    def state(self) -> dict[str, np.ndarray]:
        """All there is, as arrays."""
        return {"count": np.asarray(self.count), "mean": self.mean, "scatter": self.scatter}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self.count = int(state["count"])
        self.mean, self.scatter = state["mean"], state["scatter"]

    def _divided(self, scatter: np.ndarray) -> np.ndarray:
        return scatter / (self.count - 1) if self.count > 1 else np.full_like(scatter, np.nan)


def _products(rest: np.ndarray) -> np.ndarray:
    """Rest^T rest.

    Where that costs little, in pieces too small for BLAS to share among threads: they would wait
    for the cores that the chains and other programs use, far longer than they compute.
    """
    size = _ONE_THREAD // max(rest.shape[1], 1) ** 2
    if size < _LEAST_ROWS:
        return rest.T @ rest
    total = np.zeros((rest.shape[1], rest.shape[1]))
    for start in range(0, len(rest), size):
        part = rest[start : start + size]
        total += part.T @ part
    return total


class BatchMeans:
    """The Monte Carlo error of the mean, from the means of batches of successive draws.

    Each chain has at most a fixed number of batches. When they are full, neighbours are merged and
    the batch length doubles. With b batches of a chain, each at least sqrt(n) long for n draws,
    and s^2 the variance of all C b batch means about their common mean,

        mcse = s / sqrt(C b)

    (Flegal and Jones, 2010, Batch means and spectral variance estimators in Markov chain Monte
    Carlo, Annals of Statistics 38:1034). Chains that disagree make it larger. Draws at the end
    that fill no batch are left out.

    Attributes:
        length: draws of a batch.
        filled: whole batches of each chain.
        means: their means, `(chain, batch, parameter)`.
        begun: sum of the draws of the batch that is not whole, `(chain, parameter)`.
        waiting: how many they are.
    """

    def __init__(self, chains: int, parameters: int, capacity: int = 512) -> None:
        self.length = 1
        self.filled = 0
        self.means = np.zeros((chains, capacity, parameters))
        self.begun = np.zeros((chains, parameters))
        self.waiting = 0

    def add(self, values: np.ndarray) -> None:
        """Take a block of draws, `(chain, draw, parameter)`."""
        chains, size, parameters = values.shape
        start = 0
        while start < size:
            if self.filled == self.means.shape[1]:
                self._merge()
            whole = min((size - start) // self.length, self.means.shape[1] - self.filled)
            if self.waiting or not whole:
                taken = min(self.length - self.waiting, size - start)
                self.begun += values[:, start : start + taken].sum(axis=1)
                self.waiting += taken
                if self.waiting == self.length:
                    self.means[:, self.filled] = self.begun / self.length
                    self.filled += 1
                    self.begun[:], self.waiting = 0.0, 0
            else:
                taken = whole * self.length
                batches = values[:, start : start + taken]
                batches = batches.reshape(chains, whole, self.length, parameters)
                self.means[:, self.filled : self.filled + whole] = batches.mean(axis=2)
                self.filled += whole
            start += taken

    def mcse(self) -> np.ndarray:
        """Standard error of the mean of all chains; NaN for fewer than two batches."""
        chains, _, parameters = self.means.shape
        draws = self.filled * self.length + self.waiting
        joined = int(np.ceil(np.sqrt(draws) / self.length)) or 1
        batches = self.filled // joined
        if chains * batches < 2:
            return np.full(parameters, np.nan)
        means = self.means[:, : batches * joined].reshape(chains, batches, joined, parameters)
        means = means.mean(axis=2).reshape(-1, parameters)
        return means.std(axis=0, ddof=1) / np.sqrt(len(means))

    def state(self) -> dict[str, np.ndarray]:
        """All there is, as arrays."""
        numbers = np.asarray([self.length, self.waiting])
        return {"numbers": numbers, "means": self.means[:, : self.filled], "begun": self.begun}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self.length, self.waiting = state["numbers"].tolist()
        self.filled = state["means"].shape[1]
        self.means[:, : self.filled] = state["means"]
        self.begun = state["begun"]

    def _merge(self) -> None:
        half = self.filled // 2
        self.means[:, :half] = (self.means[:, 0::2] + self.means[:, 1::2]) / 2
        self.length, self.filled = 2 * self.length, half


class Subsample:
    """Every stride-th draw of each chain, for a stride that doubles when there is no more room.

    A kept draw is the last of `stride` draws; its counts of gradients and evaluations are their
    sums, and it diverged if one of them did.

    Attributes:
        capacity: draws that there is room for, an even number.
        stride: one of how many draws is kept.
        seen: draws that were taken.
        draws: kept draws by site, `(chain, capacity, ...)`.
        stats: their statistics by name, `(chain, capacity)`.
        waiting: sums since the last kept draw by name, `(chain,)`.
    """

    def __init__(self, draws: Draws, stats: Draws, capacity: int) -> None:
        def room(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
            return np.zeros((values.shape[0], capacity, *values.shape[2:]), dtype)

        self.capacity = capacity
        self.stride = 1
        self.seen = 0
        self.draws = {name: room(values, values.dtype) for name, values in draws.items()}
        self.stats = {
            name: room(values, np.dtype(np.int64) if name in _SUMMED else values.dtype)
            for name, values in stats.items()
        }
        counted = [name for name in (*_SUMMED, "diverging") if name in stats]
        self.waiting = {name: np.zeros(len(stats[name]), np.int64) for name in counted}

    @property
    def filled(self) -> int:
        """Draws that are kept of each chain."""
        return self.seen // self.stride

    def add(self, draws: Draws, stats: Draws) -> None:
        """Take a block of draws and their statistics, `(chain, draw, ...)`."""
        size = next(iter(stats.values())).shape[1]
        start = 0
        while start < size:
            if self.seen == self.capacity * self.stride:
                self._halve()
            stop = min(size, start + self.capacity * self.stride - self.seen)
            self._take(draws, stats, slice(start, stop))
            start = stop

    def kept(self) -> tuple[Draws, Draws]:
        """The kept draws and their statistics, `(chain, draw, ...)`."""

        def cut(values: Draws) -> Draws:
            return {name: array[:, : self.filled].copy() for name, array in values.items()}

        return cut(self.draws), cut(self.stats)

    def state(self) -> dict[str, np.ndarray]:
        """All there is, as arrays."""
        draws, stats = self.kept()
        parts = {"draw": draws, "stat": stats, "waiting": self.waiting}
        arrays = {f"{kind}|{name}": a for kind, part in parts.items() for name, a in part.items()}
        return arrays | {"numbers": np.asarray([self.stride, self.seen])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self.stride, self.seen = state["numbers"].tolist()
        for kind, part in (("draw", self.draws), ("stat", self.stats)):
            for name, array in part.items():
                array[:, : self.filled] = state[f"{kind}|{name}"]
        self.waiting = {name: state[f"waiting|{name}"] for name in self.waiting}

    def _take(self, draws: Draws, stats: Draws, part: slice) -> None:
        ends = np.arange(
            self.stride - 1 - self.seen % self.stride, part.stop - part.start, self.stride
        )
        to = slice(self.filled, self.filled + len(ends))
        for name, array in self.draws.items():
            array[:, to] = draws[name][:, part][:, ends]
        for name, array in self.stats.items():
            values = stats[name][:, part]
            if name in self.waiting:
                array[:, to] = self._sums(name, values, ends)
            else:
                array[:, to] = values[:, ends]
        self.seen += part.stop - part.start

    def _sums(self, name: str, values: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Sums over the draws up to each kept one, from the one before it."""
        running = self.waiting[name][:, None] + np.cumsum(values, axis=1, dtype=np.int64)
        at_ends = running[:, ends]
        last = at_ends[:, -1] if len(ends) else 0
        self.waiting[name] = running[:, -1] - last
        return np.diff(at_ends, axis=1, prepend=0)

    def _halve(self) -> None:
        half = self.capacity // 2
        for array in self.draws.values():
            array[:, :half] = array[:, 1::2]
        for name, array in self.stats.items():
            if name in _SUMMED:
                array[:, :half] = array[:, 0::2] + array[:, 1::2]
            elif name == "diverging":
                array[:, :half] = array[:, 0::2] | array[:, 1::2]
            else:
                array[:, :half] = array[:, 1::2]
        self.stride *= 2
