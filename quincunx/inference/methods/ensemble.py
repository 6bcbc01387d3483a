r"""A sampler without gradients and without training: Foellmer's drift from ensembles.

Among all diffusions dX = u dt + dW from X_0 = 0 with the law of X_1 given, the one nearest to
Brownian motion has, with f = gamma / N(0, I) and Z standard normal, either of

    u(x, t) = E[Z f(x + sqrt(1 - t) Z)] / ( sqrt(1 - t) E f(x + sqrt(1 - t) Z) ),
    u(x, t) = ( E[X_1 | X_t = x] - x ) / (1 - t).

`monte_carlo` estimates the first from normal draws, the same for all paths of a step;
`ensemble` the second from particles y_i with weights w_i, as

    E[X_1 | X_t = x] ~ sum_i p_i y_i,    p_i in proportion to w_i N(x; t y_i, t (1 - t) I),

which evaluates no density on the way. Given the ensemble each step is Gaussian, so that weights
are exact whatever the drift is worth:

    log w = log gamma(x_K) - log N(x_K; 0, I) - sum_k ( |u_k|^2 / (2 K) + u_k . e_k / sqrt(K) ).

Coordinates are whitened by mean and covariance of annealed particles that random walks move.

Foellmer (1985), An entropy approach to the time reversal of diffusion processes; Huang, Jiao, Kang,
Liao, Liu and Liu (2021), Schroedinger-Foellmer sampler, arXiv:2106.10880.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from quincunx.engine.density import Density
from quincunx.engine.errors import MethodError
from quincunx.inference.method import Approximation, Sampler, Weighted, integer, one_of, positive
from quincunx.inference.paths.annealing import anneal
from quincunx.inference.paths.target import Target, Whitening, log_normal
from quincunx.inference.paths.tuning import tune
from quincunx.inference.registry import register
from quincunx.inference.training import Budget

DRIFTS = ("monte_carlo", "ensemble")


class FoellmerSampler(Sampler):
    """Paths from the origin by an estimated drift.

    Attributes:
        whitening: the coordinates.
        ensemble: weighted particles, `(size, dim)`.
        log_weight: theirs, `(size,)`.
        steps: K.
        inner: normal draws for the drift at each step.
        drift: `monte_carlo` or `ensemble`.
    """

    whitening: Whitening
    ensemble: Float[Array, "size dim"]
    log_weight: Float[Array, " size"]
    steps: int = eqx.field(static=True)
    inner: int = eqx.field(static=True)
    drift: str = eqx.field(static=True)

    def draw(self, density: Density, key: Array, n: int) -> Weighted:
        """Run n paths."""
        target = Target(density, self.whitening)
        dim = self.whitening.mean.shape[0]
        dt = 1.0 / self.steps

        def step(carry: tuple, k: Array) -> tuple[tuple, None]:
            x, cost = carry
            noise_key, inner_key = jax.random.split(jax.random.fold_in(key, k))
            t = (k * dt).astype(x.dtype)
            if self.drift == "ensemble":
                u = self._from_ensemble(x, t)
            else:
                z = jax.random.normal(inner_key, (self.inner, dim), x.dtype)
                u = self._by_monte_carlo(target, x, t, z)
            noise = jax.random.normal(noise_key, x.shape, x.dtype)
            cost += jnp.sum(0.5 * dt * u**2 + dt**0.5 * u * noise, axis=-1)
            return (x + dt * u + dt**0.5 * noise, cost), None

        zero = jnp.zeros((n, dim), self.whitening.mean.dtype)
        (x, cost), _ = jax.lax.scan(step, (zero, zero[:, 0]), jnp.arange(self.steps))
        log_weight = target.log_gamma(x) - log_normal(x) - cost
        log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
        return Weighted(self.whitening.position(x), log_weight)

    def cost(self, n: int) -> tuple[int, int]:
        """No gradients."""
        inner = self.steps * self.inner if self.drift == "monte_carlo" else 0
        return 0, n * (1 + inner)

    def _by_monte_carlo(self, target: Target, x: Array, t: Array, z: Array) -> Array:
        wide = jnp.sqrt(1 - t)

        def one(x: Array) -> Array:
            places = x[None, :] + wide * z
            level = target.log_gamma(places) - log_normal(places)
            share = jax.nn.softmax(jnp.where(jnp.any(jnp.isfinite(level)), level, 0.0))
            return share @ z / wide

        return jax.lax.map(one, x, batch_size=256)

    def _from_ensemble(self, x: Array, t: Array) -> Array:
        wide = jnp.where(t > 0, t * (1 - t), 1.0)
        square = (
            jnp.sum(x**2, axis=1)[:, None]
            - 2 * t * x @ self.ensemble.T
            + t**2 * jnp.sum(self.ensemble**2, axis=1)[None, :]
        )
        near = jnp.where(t > 0, -0.5 * square / wide, 0.0)
        share = jax.nn.softmax(self.log_weight[None, :] + near, axis=1)
        return (share @ self.ensemble - x) / (1 - t)


@register
class EnsembleSampler(Approximation):
    """Foellmer's diffusion by ensembles, for densities of few dimensions without gradients.

    Attributes:
        drift: `monte_carlo`, from densities at normal draws about each place, or `ensemble`, from
            annealed particles.
        steps: of a path.
        inner: normal draws for the drift of a step.
        particles: of the annealing that whitens, and of the ensemble.
        moves: random-walk steps at each of its temperatures.
        scale: standard deviation, in unconstrained coordinates, of where annealing starts.
        inflation: of the standard deviations that whiten.
    """

    name: ClassVar[str] = "ensemble"
    summary: ClassVar[str] = "Gradient-free diffusion by ensembles, in few dimensions."
    citation: ClassVar[str] = "Huang et al. (2021), Schroedinger-Foellmer sampler, arXiv:2106.10880"

    drift: str = "monte_carlo"
    steps: int = 32
    inner: int = 64
    particles: int = 1024
    moves: int = 4
    scale: float = 3.0
    inflation: float = 1.2

    def __check_init__(self) -> None:
        """Refuse impossible settings."""
        cls = "EnsembleSampler"
        one_of("drift", self.drift, DRIFTS, cls)
        for name in ("steps", "inner", "particles", "moves"):
            integer(name, getattr(self, name), cls)
        positive("scale", self.scale, cls)
        positive("inflation", self.inflation, cls)

    def fit(self, density: Density, key: Array, budget: Budget) -> FoellmerSampler:
        """Whiten by annealed particles."""
        tune_key, run_key = jax.random.split(key)
        dtype = jax.dtypes.canonicalize_dtype(float)
        first = Whitening(
            jnp.zeros(density.dim, dtype), jnp.asarray(self.scale * np.eye(density.dim), dtype)
        )
        found = tune(
            Target(density, first),
            tune_key,
            budget,
            particles=self.particles,
            moves=self.moves,
            steps=None,
            gradient=False,
        )
        options = {"moves": self.moves, "threshold": 0.5, "gradient": False}
        run = jax.device_get(
            eqx.filter_jit(anneal)(found.target, found.schedule, run_key, self.particles, **options)
        )
        budget.count(evaluations=self.particles * (1 + int(found.schedule.count) * self.moves))
        z = np.asarray(jax.jit(Whitening.position)(first, run.particles.y), float)
        log_weight = np.where(np.isfinite(run.log_weight), run.log_weight, -np.inf)
        if not np.isfinite(log_weight).any():
            message = "`EnsembleSampler` found no place with a finite log density from starts of "
            raise MethodError(message + f"standard deviation {self.scale}: change `scale`.")
        share = np.exp(log_weight - log_weight.max())
        share /= share.sum()
        mean = share @ z
        covariance = (share * (z - mean).T) @ (z - mean)
        ridge = 1e-9 * np.trace(covariance) / density.dim + 1e-12
        factor = self.inflation * np.linalg.cholesky(covariance + ridge * np.eye(density.dim))
        ensemble = np.linalg.solve(factor, (z - mean).T).T
        whitening = Whitening(jnp.asarray(mean, dtype), jnp.asarray(factor, dtype))
        parts = (jnp.asarray(ensemble, dtype), jnp.asarray(np.log(share + 1e-300), dtype))
        return FoellmerSampler(whitening, *parts, self.steps, self.inner, self.drift)

    def skeleton(self, density: Density) -> FoellmerSampler:
        """The shapes."""
        whitening = Whitening(jnp.zeros(density.dim), jnp.eye(density.dim))
        ensemble = jnp.zeros((self.particles, density.dim))
        parts = (ensemble, jnp.zeros(self.particles))
        return FoellmerSampler(whitening, *parts, self.steps, self.inner, self.drift)
