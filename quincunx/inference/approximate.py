"""Samplers that outlive the run that learned them: more draws, other data, another day."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import MethodError, ModelError, QuincunxError, listing
from quincunx.inference import learned, registry
from quincunx.inference.compilation import compiling
from quincunx.inference.diagnostics.importance import Bounds, bounds
from quincunx.inference.fit import Fit
from quincunx.inference.method import Approximation, Sampler, Weighted, as_key
from quincunx.inference.progress import Report, reporting
from quincunx.inference.stopping import INTERRUPTED, Until, interruptible
from quincunx.inference.training import Budget

_FORMAT = "quincunx sampler 1"


def check_settings(
    method: Approximation, given: Mapping[str, tuple[Any, Any]], until: Until | None
) -> None:
    """Refuse settings of `infer` that are about chains.

    Args:
        method: what is to run.
        given: value and default by name.
        until: a budget of seconds only.

    Raises:
        MethodError: one is given.
    """
    for name, (value, default) in given.items():
        if value is not default and value != default:
            message = f"`{type(method).__name__}` learns a sampler and runs no chains, so `{name}` "
            message += "means nothing to it. Leave it out; `num_chains` batches of `num_samples` "
            raise MethodError(message + "draws are made.")
    if until is not None and (until.ess is not None or until.r_hat is not None):
        message = f"`{type(method).__name__}` has no chains whose R-hat or ESS could grow: give "
        raise MethodError(message + "`until=Until(seconds=...)`.")


@eqx.filter_jit
def draw(sampler: Sampler, density: Density, keys: Array, n: int) -> Weighted:
    """`n` weighted draws for each key."""
    return jax.lax.map(lambda key: sampler.draw(density, key, n), keys)


@eqx.filter_jit
def _both_ways(
    sampler: Any, density: Density, values: Mapping[str, Any], key: Array, n: int
) -> tuple[Array, Array]:
    """Log weights of the sampler's paths, and of paths back from given values."""
    there, back = jax.random.split(key)
    z = jax.vmap(density.unconstrain)(values)
    return sampler.forwards(density, there, n), sampler.backwards(density, back, z)


class Trained:
    """A sampler that has been learned, for more draws, for another day, or for other data.

    Attributes:
        method: what learned it.
        sampler: its arrays and its `draw`.
        density: the target that draws are weighed against.
    """

    def __init__(self, method: Approximation, sampler: Sampler, density: Density) -> None:
        self.method = method
        self.sampler = sampler
        self.density = density

    def draw(self, n: int = 1000, key: int | Array = 1, *, batches: int = 1) -> Fit:
        """New weighted draws.

        The first call for a number of draws compiles.

        Args:
            n: draws of each batch.
            key: an integer seed or a JAX key.
            batches: independent batches.
        """
        with compiling() as compilation:
            return self._fit(as_key(key), (batches, n), Budget(compilation=compilation))

    def first(self, key: Array, shape: tuple[int, int], budget: Budget) -> Fit:
        """The draws of the run that learned the sampler, whose costs count with theirs."""
        return self._fit(key, shape, budget)

    def tempered(self, power: float) -> Trained:
        """The same sampler for the likelihood raised to a power: its draws are weighed anew.

        Args:
            power: 0 for the prior, 1 for the posterior.
        """
        if not power >= 0:
            raise MethodError(f"`tempered({power!r})` needs a power of at least 0.")
        return Trained(self.method, self.sampler, self.density.tempered(float(power)))

    def bounds(self, reference: Fit, n: int = 1000, key: int | Array = 1) -> Bounds:
        r"""Both bounds of the log evidence, from draws that another method made.

        With w the weight of a path, whatever is resampled in `draw` left out,

            ELBO = E_F[log w] <= log Z <= EUBO = E_B[log w],    1 / (E_B[w] E_B[1/w]),

        F the law of the sampler's own paths and B that of paths back from the posterior. The upper
        bound and the share see parts of the posterior that the sampler misses, as far as the
        reference has them; the sampler's own weights cannot.

        Args:
            reference: a fit of the same model, such as by NUTS; `n` of its draws are used, or all.
            n: paths each way.
            key: an integer seed or a JAX key.

        Raises:
            MethodError: the sampler has no paths that could be run backwards.
        """
        if not hasattr(self.sampler, "backwards"):
            message = f"`{type(self.method).__name__}` has no paths that go backwards from given "
            raise MethodError(message + "draws: compare its evidence with that of another method.")
        posterior = reference.posterior
        names = [site.name for site in self.density.program.latents]
        missing = [name for name in names if name not in posterior]
        if missing:
            message = f"The reference has no {listing(missing)}: give a fit of the same model."
            raise ModelError(message)
        values = {name: np.asarray(posterior[name]) for name in names}
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in values.items()}
        size = len(flat[names[0]])
        rows = np.linspace(0, size - 1, min(n, size)).astype(int)
        chosen = {name: array[rows] for name, array in flat.items()}
        found = jax.device_get(_both_ways(self.sampler, self.density, chosen, as_key(key), n))
        return bounds(*found)

    def adapted(
        self,
        data: Mapping[str, Any],
        key: int | Array = 2,
        *,
        progress: bool | Report = False,
    ) -> Trained:
        """A sampler for other data of the same shapes, which starts from what this one learned.

        Args:
            data: arguments of the model that replace those of this one.
            key: an integer seed or a JAX key.
            progress: as in `infer`.

        Raises:
            ModelError: the latent sites have other shapes under these data.
        """
        model, coords = self.density.program.model, self.density.labels.coords
        density = compile(model, {**self.density.data, **data}, coords)
        sites = [(site.name, site.shape) for site in density.program.latents]
        if sites != [(site.name, site.shape) for site in self.density.program.latents]:
            message = f"The latent sites are {sites} under these data: the sampler has others. "
            raise ModelError(message + "Learn one anew with `infer`.")
        shown = progress if callable(progress) else bool(progress)
        title = f"{self.method.name} on {density.program.name}"
        with reporting(title, progress=shown) as report, interruptible() as interrupted:
            budget = Budget(report=report, stop=lambda: INTERRUPTED if interrupted() else None)
            sampler = self.method.resume(self.sampler, density, as_key(key), budget)
        return Trained(self.method, sampler, density)

    def save(self, path: str | Path) -> None:
        """Write the sampler to a file, to be read with `quincunx.load_sampler`.

        The density is not written: draws are weighed anew against the one it is loaded with.
        """
        told = {"method": self.method.name, "settings": self.method.settings()}
        learned.write(path, _FORMAT, self.density.program, told, self.sampler)

    def __repr__(self) -> str:
        return f"<Sampler learned by {self.method.name} on {self.density.program.name}>"

    def _fit(self, key: Array, shape: tuple[int, int], budget: Budget) -> Fit:
        batches, n = shape
        keys = jax.random.split(key, batches)
        found = jax.device_get(draw(self.sampler, self.density, keys, n))
        gradients, evaluations = (batches * count for count in self.sampler.cost(n))
        costs = {
            "gradients": budget.gradients + gradients,
            "evaluations": budget.spent + evaluations,
            "warmup_gradients": budget.gradients,
            "warmup_evaluations": budget.spent,
            "data_passes": float(budget.spent + evaluations),
            "compile_seconds": budget.compile_seconds,
            "sample_seconds": budget.elapsed,
        }
        return Fit.weighted(
            self.density,
            found.z,
            found.log_weight,
            method=self.method,
            costs=costs,
            key=key,
            tempered=found.tempered,
            origin=found.origin,
            sampler=self,
            outcome=budget.outcome or "",
            skipped=budget.skipped,
        )


def load_sampler(
    path: str | Path,
    model: Callable[..., Any],
    data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Trained:
    """Read a sampler that `Trained.save` wrote.

    Its draws are weighed against the model and data given here. Where these are not those that it
    was learned on, that shows in the effective sample size and in Pareto k.

    Args:
        path: the file.
        model: as in `infer`.
        data: the model's arguments.
        coords: labels by dimension name.

    Raises:
        QuincunxError: no such file, or not a sampler of ours.
        ModelError: the model has other latent sites than the one it was learned on.
    """
    with learned.opened(path, _FORMAT, "fit.sampler.save") as (file, header):
        density = compile(model, data, coords)
        learned.check_sites(header, density.program, path)
        method = type(registry.resolve(header["method"]))(**header["settings"])
        if not isinstance(method, Approximation):
            raise QuincunxError(f"'{path}' names '{header['method']}', which learns no sampler.")
        like = eqx.filter_eval_shape(method.skeleton, density)
        sampler = eqx.tree_deserialise_leaves(file, like)
    return Trained(method, sampler, density)
