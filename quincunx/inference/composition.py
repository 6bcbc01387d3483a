"""Samplers that were learned apart, drawn from together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import jax.numpy as jnp
from jaxtyping import Array

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import MethodError, ModelError, QuincunxError
from quincunx.inference.approximate import Trained
from quincunx.inference.method import Approximation, Sampler, positive
from quincunx.inference.paths.process import ANNEALED, Process
from quincunx.inference.paths.product import product
from quincunx.inference.paths.sampler import PathSampler
from quincunx.inference.paths.target import Target
from quincunx.inference.training import Budget

_THRESHOLD = 0.5


class Composition(Approximation):
    """Feynman-Kac weights of a product of learned samplers, as the method of its fits.

    Attributes:
        powers: of the densities.
        moves: Metropolis steps after each segment.
    """

    name: ClassVar[str] = "composition"
    summary: ClassVar[str] = "Learned samplers drawn from together, weighed against one density."
    citation: ClassVar[str] = "Skreta et al. (2025), Feynman-Kac correctors in diffusion, ICML"

    powers: tuple[float, ...] = ()
    moves: int = 2

    def fit(self, density: Density, key: Array, budget: Budget) -> NoReturn:
        """Refused: its parts are fitted, and it is not."""
        raise MethodError("A composition is made by `compose` from samplers that were learned.")

    def skeleton(self, density: Density) -> Sampler:
        """Refused, as `fit` is."""
        raise MethodError("A composition is made by `compose` from samplers that were learned.")


class Composed(Trained):
    """Learned samplers that are drawn from together."""

    def adapted(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: adapt the samplers, and compose them anew."""
        raise QuincunxError("A composition is not trained: adapt its samplers, and compose anew.")

    def save(self, path: str | Path) -> NoReturn:
        """Refused: save the samplers, and compose them anew."""
        message = f"A composition is not written to '{path}': save the samplers that it is made "
        raise QuincunxError(message + "of, and compose them anew.")


def compose(
    samplers: Sequence[Trained],
    model: Callable[..., Any],
    data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    *,
    powers: Sequence[float] | None = None,
    moves: int = 2,
) -> Composed:
    r"""Draw from a posterior by way of the product of others that samplers were learned for.

    Particles go from the product of the samplers' starts to the posterior gamma of the given model
    and data through

        log pi_k = (1 - k / K) sum_i c_i log p_{i,k} + (k / K) log gamma,

    p_{i,k} the annealed densities of sampler i and c_i its power, by steps that add up the
    samplers' scores and controls. They are weighed, resampled and moved on the way; the weights are
    those of gamma itself, so that nothing has to be true of the samplers or the powers. It pays
    where gamma is near the product: samplers learned on parts of the rows, then all the rows; or
    one sampler, and a likelihood to a power.

    Args:
        samplers: `fit.sampler` of fits by annealed kernels with the same number of steps.
        model: of the posterior, with the same latent sites.
        data: its arguments.
        coords: labels by dimension name.
        powers: of the samplers' densities; one each by default.
        moves: Metropolis steps after each segment.

    Returns:
        What draws: `compose(...).draw(1000)` is a fit with evidence, weights and a verdict.

    Raises:
        MethodError: a sampler cannot be composed, or a setting is wrong.
        ModelError: the latent sites differ.

    Source: Skreta et al. (2025), Feynman-Kac correctors in diffusion, ICML; weights are those of
    the kernels that are sampled, in place of the paper's in continuous time.
    """
    if not samplers:
        raise MethodError("`compose` needs one sampler or more: `fit.sampler` of fits.")
    chosen = tuple(1.0 for _ in samplers) if powers is None else tuple(map(float, powers))
    if len(chosen) != len(samplers):
        message = f"`compose` has {len(samplers)} samplers and {len(chosen)} powers: "
        raise MethodError(message + "give one for each.")
    for power in chosen:
        positive("powers", power, "compose")
    positive("moves", moves, "compose")
    density = compile(model, data, coords)
    sites = [(site.name, site.shape) for site in density.program.latents]
    parts = [_part(trained, index, sites) for index, trained in enumerate(samplers)]
    steps = {process.steps for process, _ in parts}
    if len(steps) > 1:
        message = f"The samplers have {sorted(steps)} steps. Learn them with the same `steps`."
        raise MethodError(message)
    targets = tuple(
        Target(trained.density, sampler.whitening)
        for trained, (_, sampler) in zip(samplers, parts, strict=True)
    )
    kernels = product(tuple(process for process, _ in parts), targets, chosen)
    sizes = jnp.min(jnp.stack([sampler.sizes for _, sampler in parts]), axis=0)
    settings = {"resample": True, "threshold": _THRESHOLD, "moves": moves}
    sampler = PathSampler(kernels, kernels.whitening, sizes, **settings)
    return Composed(Composition(chosen, moves), sampler, density)


def _part(trained: Trained, index: int, sites: list[tuple]) -> tuple[Process, PathSampler]:
    """A sampler that can be composed, and its kernels."""
    own = [(site.name, site.shape) for site in trained.density.program.latents]
    if own != sites:
        message = f"Sampler {index} has latent sites {own}, and the model has {sites}. "
        raise ModelError(message + "Compose samplers of the same sites in the same order.")
    if isinstance(trained.sampler, PathSampler):
        process = trained.sampler.process
        if isinstance(process, Process) and process.kernel in ANNEALED:
            return process, trained.sampler
    message = f"Sampler {index} was learned by `{trained.method.name}`, which has no annealed "
    message += "densities on the way. Learn it with `DiffusionSampler`, kernel one of "
    raise MethodError(message + f"{', '.join(ANNEALED)}.")
