r"""Learned samplers on path space, all from one family of settings.

A path x_0 ... x_K starts from an easy law p_0 and ends near the posterior; forward kernels F_k
make it, backward kernels B_k say how likely it is the other way round. Any two give exact weights,

    log w = log p(x_K) - log p_0(x_0) + sum_k [ log B_k(x_k | x_{k+1}) - log F_k(x_{k+1} | x_k) ],

whose mean is the evidence; training makes them more even. Which kernels and losses there are, with
their papers, is in `quincunx.inference.paths.process` and `quincunx.inference.paths.losses`.

Paths run in coordinates in which a Gaussian start is standard normal: the Laplace approximation,
or mean and spread of short chains from far apart, as for `AnnealedSMC`, whose pilot runs also
give annealed kernels their temperatures and step sizes. An annealed kernel that is not trained is
annealed importance sampling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.method import Approximation, integer, lacks_gradient, one_of, positive
from quincunx.inference.methods.annealed_smc import STARTS
from quincunx.inference.paths.control import Control
from quincunx.inference.paths.losses import LOSSES, ON_ANY_PATHS, ON_PATHS_BACK, Learned
from quincunx.inference.paths.process import ANNEALED, KERNELS, Process, make, simulate
from quincunx.inference.paths.sampler import PathSampler
from quincunx.inference.paths.target import Target, Whitening, log_normal
from quincunx.inference.paths.training import Recipe, train
from quincunx.inference.paths.tuning import LENGTH, Tuned, choose_start
from quincunx.inference.registry import register
from quincunx.inference.training import Budget

_MOST_SEGMENTS, _ENDS = 8, 256
_UNADJUSTED = (0.1, 0.2, 0.4, 0.8)  # sizes of steps that are not corrected, as a share of those
_WIDEST = 0.25  # that are, up to this size
_COUNTS = ("steps", "width", "iterations", "batch", "moves", "buffer")


@register
class DiffusionSampler(Approximation):
    """A learned sampler on path space.

    Attributes:
        kernel: `pis`, `dds`, `dis`, `ula`, `mcd`, `cmcd` or `bridge`.
        loss: what is minimised; see `quincunx.inference.paths.losses`.
        steps: K, the steps of a path.
        width: of the networks' two hidden layers.
        iterations: of training; none leaves the kernels as they start.
        batch: paths in each.
        learning_rate: of the networks.
        schedule_rate: of step sizes, temperatures and the start, as a share of it.
        off_policy: whether every second iteration is on paths back from a buffer of good places.
        local_search: whether Langevin steps improve the places in the buffer.
        explore: noise added to each step of the paths trained on, falling to none.
        smc: `True` to resample and move particles along the way, `False` for plain paths; `auto`
            resamples with annealed kernels.
        moves: Metropolis steps after each segment, where particles are resampled.
        threshold: share of effective particles below which they are resampled.
        start: `laplace`, `cloud`, or `auto` for the better.
        spread: standard deviation of p_0 in the coordinates of the start.
        gate: where the weight of the score in the control starts; `None` for the kernel's own.
        buffer: places that the buffer has.
        seconds: that training may take; `None` for no limit.
        evaluations: log-density evaluations that training may take; `None` for no limit.
    """

    name: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "A learned sampler on path space: weighted draws, evidence, reuse."
    citation: ClassVar[str] = (
        "Vargas, Padhy, Blessing and Nuesken (2024), Transport meets variational inference, ICLR"
    )

    kernel: str = "cmcd"
    loss: str = "log_variance"
    steps: int = 64
    width: int = 64
    iterations: int = 600
    batch: int = 128
    learning_rate: float = 2e-3
    schedule_rate: float = 1.0
    off_policy: bool = False
    local_search: bool = False
    explore: float = 0.0
    smc: bool | str = "auto"
    moves: int = 1
    threshold: float = 0.3
    start: str = "auto"
    spread: float = 1.0
    gate: float | None = None
    buffer: int = 10_000
    seconds: float | None = None
    evaluations: int | None = None

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        cls = type(self).__name__
        one_of("kernel", self.kernel, KERNELS, cls)
        one_of("loss", self.loss, LOSSES, cls)
        one_of("start", self.start, STARTS, cls)
        for name in _COUNTS:
            integer(name, getattr(self, name), cls, 0 if name == "iterations" else 1)
        for name in ("learning_rate", "threshold", "spread"):
            positive(name, getattr(self, name), cls)
        if self.steps > LENGTH:
            raise MethodError(f"`{cls}(steps={self.steps})` must be at most {LENGTH}.")
        if self.smc not in (True, False, "auto"):
            raise MethodError(f"`{cls}(smc={self.smc!r})` must be True, False or 'auto'.")
        if self.smc is True and self.kernel not in ANNEALED:
            message = f"`{cls}(smc=True)` needs densities on the way, which kernel '{self.kernel}' "
            raise MethodError(message + f"has not. Kernels that do: {', '.join(ANNEALED)}.")
        if self.off_policy and self.loss in ON_PATHS_BACK:
            message = f"`{cls}(loss='{self.loss}')` is on paths back from the buffer alone: leave "
            raise MethodError(message + "out `off_policy`.")
        searched = self.local_search and self.loss not in ON_PATHS_BACK
        if (self.off_policy or searched) and self.loss not in ON_ANY_PATHS:
            message = f"`{cls}(loss='{self.loss}')` is for the sampler's own paths: leave out "
            message += "`off_policy` and `local_search`, or take one of "
            raise MethodError(message + f"{', '.join(ON_ANY_PATHS)}.")
        if searched and not self.off_policy:
            raise MethodError(f"`{cls}(local_search=True)` needs `off_policy=True`.")
        if self.loss == "adjoint_matching" and self.kernel != "pis":
            raise MethodError(f"`{cls}(loss='adjoint_matching')` needs `kernel='pis'`.")
        if self.loss in ON_PATHS_BACK and self.kernel in ("ula", "mcd"):
            message = f"`{cls}(loss='{self.loss}')` trains forward kernels, and those of kernel "
            raise MethodError(message + f"'{self.kernel}' have nothing to train: take 'cmcd'.")
        for name in ("seconds", "evaluations"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name), cls)

    def missing(self, density: Density) -> str | None:
        """A gradient."""
        return lacks_gradient(density)

    @property
    def resamples(self) -> bool:
        """Whether particles are resampled along the way."""
        return self.kernel in ANNEALED if self.smc == "auto" else bool(self.smc)

    @property
    def segments(self) -> int:
        """Parts of a path: the most that `steps` can be cut into evenly, up to eight."""
        return max(part for part in range(1, _MOST_SEGMENTS + 1) if self.steps % part == 0)

    def fit(self, density: Density, key: Array, budget: Budget) -> PathSampler:
        """Find a start, and train."""
        start_key, net_key, train_key = jax.random.split(key, 3)
        found = choose_start(
            density,
            start_key,
            budget,
            start=self.start,
            particles=256,
            moves=2,
            steps=self.steps,
        )
        sizes = np.asarray(found.schedule.step_sizes)[: self.steps]
        b = np.asarray(found.schedule.inverse_temperatures)[: self.steps + 1]
        process = self._begun(found, net_key, b, sizes, budget)
        ends = sizes[self.steps // self.segments - 1 :: self.steps // self.segments]
        whitening, ends = found.target.whitening, jnp.asarray(0.7 * ends)
        sampler = functools.partial(self._sampler, whitening=whitening, sizes=ends)
        if self.iterations:
            places = _cloud(found)
            settings = (found.log_evidence, *places, float(sizes[-1]))
            process = self._train(found.target, process, train_key, budget, *settings, sampler)
        return sampler(process)

    def resume(
        self, sampler: PathSampler, density: Density, key: Array, budget: Budget
    ) -> PathSampler:
        """Train further what was learned on another density."""
        if not self.iterations:
            return sampler
        target, process = Target(density, sampler.whitening), sampler.process
        assert isinstance(process, Process)
        path_key, train_key = jax.random.split(key)
        x, log_gamma, log_weight = _ends(process, target, path_key)
        budget.count(gradients=_ENDS * self.steps, evaluations=_ENDS * self.steps)
        finite = log_weight[np.isfinite(log_weight)]
        log_z = float(np.median(finite)) if finite.size else 0.0
        settings = (log_z, x, log_gamma, float(sampler.sizes[-1]))
        renewed = functools.partial(self._sampler, whitening=sampler.whitening, sizes=sampler.sizes)
        process = self._train(target, process, train_key, budget, *settings, renewed)
        return renewed(process)

    def skeleton(self, density: Density) -> PathSampler:
        """The shapes."""
        process = self._process(density.dim, jax.random.key(0), None, None)
        whitening = Whitening(jnp.zeros(density.dim), jnp.eye(density.dim))
        return self._sampler(process, whitening, jnp.ones(self.segments))

    def _process(self, dim: int, key: Array, b: Any, sizes: Any) -> Process:
        gate = 0.0 if self.loss == "adjoint_matching" else self.gate
        return make(
            self.kernel,
            dim,
            self.steps,
            self.width,
            key,
            gate=gate,
            spread=self.spread,
            inverse_temperatures=b if self.kernel in ANNEALED else None,
            sizes=sizes,
        )

    def _begun(
        self, found: Tuned, key: Array, b: np.ndarray, sizes: np.ndarray, budget: Budget
    ) -> Process:
        """Kernels before training: of annealed ones, with the steps of the most even weights."""
        dim = found.target.whitening.mean.shape[0]
        if self.kernel not in ANNEALED:
            return self._process(dim, key, b, sizes)
        tried = [
            self._process(dim, key, b, np.minimum(share * sizes, _WIDEST)) for share in _UNADJUSTED
        ]
        spreads = []
        for process in tried:
            log_weight = _ends(process, found.target, key)[2]
            spreads.append(log_weight.std() if np.isfinite(log_weight).all() else np.inf)
            budget.count(gradients=_ENDS * (self.steps + 1), evaluations=_ENDS * (self.steps + 1))
        return tried[int(np.argmin(spreads))]

    def _train(
        self,
        target: Target,
        process: Process,
        key: Array,
        budget: Budget,
        log_z: float,
        places: np.ndarray,
        log_gamma: np.ndarray,
        step: float,
        sampler: Callable[[Process], PathSampler],
    ) -> Process:
        budget.seconds = budget.seconds if self.seconds is None else self.seconds
        budget.evaluations = self.evaluations
        flow_key, key = jax.random.split(key)
        flow = Control(process.mean.shape[0], self.width, flow_key, gate=0.0, limit=1.0, out=1)
        dtype = process.mean.dtype
        learned = Learned(process, flow, jnp.asarray(log_z, dtype))
        recipe = Recipe(
            loss=self.loss,
            off_policy=self.off_policy,
            local_search=self.local_search,
            iterations=self.iterations,
            batch=self.batch,
            learning_rate=float(self.learning_rate),
            schedule_rate=float(self.schedule_rate),
            explore=float(self.explore),
            segments=self.segments,
            decay=0.99,
            buffer=self.buffer,
        )
        settings = (budget, places, log_gamma, step, sampler)
        return train(recipe, target, learned, key, *settings).process

    def _sampler(self, process: Process, whitening: Whitening, sizes: Array) -> PathSampler:
        settings = (self.resamples, float(self.threshold), self.moves)
        return PathSampler(process, whitening, sizes, *settings)


def _cloud(found: Tuned) -> tuple[np.ndarray, np.ndarray]:
    """Places of the last pilot with their log gamma, none that it gives no weight."""
    y = jnp.asarray(found.y)
    values = np.asarray(_log_gamma(found.target, y))
    kept = np.isfinite(values) & np.isfinite(found.log_weight)
    if not kept.any():
        return np.asarray(y), np.asarray(log_normal(y))
    chosen = np.flatnonzero(kept)
    chosen = np.resize(chosen, len(kept))
    return np.asarray(y)[chosen], values[chosen]


def _ends(process: Process, target: Target, key: Array) -> tuple[np.ndarray, ...]:
    """Ends of some paths, log gamma there, and the log weights of the paths."""
    return jax.device_get(_run(process, target, key))


@eqx.filter_jit
def _run(process: Process, target: Target, key: Array) -> tuple[Array, Array, Array]:
    paths = simulate(process, target, key, _ENDS)
    return paths.x[-1], paths.log_gamma[-1], process.log_weights(paths)


@jax.jit
def _log_gamma(target: Target, y: Array) -> Array:
    return target.log_gamma(y)


@register
class PIS(DiffusionSampler):
    """Path integral sampler: from a point, by a controlled Brownian motion."""

    name: ClassVar[str] = "pis"
    summary: ClassVar[str] = "Controlled Brownian motion from a point, by the reverse KL."
    citation: ClassVar[str] = "Zhang and Chen (2022), Path integral sampler, ICLR"

    kernel: str = "pis"
    loss: str = "reverse_kl"
    spread: float = 1.2


@register
class DDS(DiffusionSampler):
    """Denoising diffusion sampler: the time reversal of an Ornstein-Uhlenbeck process."""

    name: ClassVar[str] = "dds"
    summary: ClassVar[str] = "Learned time reversal of exact Ornstein-Uhlenbeck steps."
    citation: ClassVar[str] = (
        "Vargas, Grathwohl and Doucet (2023), Denoising diffusion samplers, ICLR"
    )

    kernel: str = "dds"
    loss: str = "reverse_kl"


@register
class DIS(DiffusionSampler):
    """Time-reversed diffusion sampler, by the log variance."""

    name: ClassVar[str] = "dis"
    summary: ClassVar[str] = "Learned time reversal of a diffusion, by the log variance."
    citation: ClassVar[str] = (
        "Richter and Berner (2024), Improved sampling via learned diffusions, ICLR"
    )

    kernel: str = "dis"
    loss: str = "log_variance"


@register
class CMCD(DiffusionSampler):
    """Controlled Monte Carlo diffusion: annealed Langevin steps with a learned control."""

    name: ClassVar[str] = "cmcd"
    summary: ClassVar[str] = "Annealed Langevin steps with a learned control."

    loss: str = "log_derivative"
    steps: int = 32


@register
class DGFS(DiffusionSampler):
    """Diffusion generative flow sampler: subtrajectory balance with forward-looking flows."""

    name: ClassVar[str] = "dgfs"
    summary: ClassVar[str] = "Controlled Brownian motion by subtrajectory balance."
    citation: ClassVar[str] = (
        "Zhang, Chen, Liu, Courville and Bengio (2024), Diffusion generative flow samplers, ICLR"
    )

    kernel: str = "pis"
    loss: str = "subtrajectory_balance"
    spread: float = 1.2


@register
class SCLD(DiffusionSampler):
    """Sequential controlled Langevin diffusion: trained segment by segment, with resampling."""

    name: ClassVar[str] = "scld"
    summary: ClassVar[str] = "Controlled Langevin segments with resampling, trained off policy."
    citation: ClassVar[str] = "Chen et al. (2025), Sequential controlled Langevin diffusions, ICLR"

    loss: str = "segment_log_variance"
    off_policy: bool = True
    moves: int = 4
    threshold: float = 0.5


@register
class TrajectoryBalance(DiffusionSampler):
    """Trajectory balance on and off policy, with exploration and a local search."""

    name: ClassVar[str] = "trajectory_balance"
    summary: ClassVar[str] = "Trajectory balance with a buffer, exploration and local search."
    citation: ClassVar[str] = (
        "Sendera et al. (2024), On diffusion models for amortized inference, NeurIPS"
    )

    loss: str = "trajectory_balance"
    steps: int = 32
    iterations: int = 1000
    batch: int = 256
    off_policy: bool = True
    local_search: bool = True
    explore: float = 0.05
    moves: int = 2
