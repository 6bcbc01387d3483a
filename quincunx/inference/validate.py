"""Whether a method is right on a model: calibration over data sets from the model itself."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import arviz_base
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import MethodError, ModelError, listing
from quincunx.inference import registry
from quincunx.inference.diagnostics.calibration import (
    autocorrelation,
    pointers,
    ranks,
    uniformity,
)
from quincunx.inference.diagnostics.convergence import flatten
from quincunx.inference.diagnostics.verdict import Finding, Verdict
from quincunx.inference.distributed.processes import is_first
from quincunx.inference.driver import Limits, advance_here
from quincunx.inference.method import Approximation, Kernel, Method, as_integer, as_key
from quincunx.inference.progress import Report, reporting
from quincunx.inference.run import infer
from quincunx.inference.session import Progress, window
from quincunx.inference.simulations import (
    TOGETHER,
    able_to_hold,
    observed_arguments,
    one_of,
    simulated,
    with_data,
)
from quincunx.inference.start import AT_WILL, begin_here
from quincunx.inference.weighted import weighted_sizes

LIKELIHOOD, JOINT, COVERAGE = "log likelihood", "log joint density", "distance to a point (TARP)"
_FAILED, _SUSPECT = 1e-3, 0.05
_DEPENDENT = 0.15
_PARTICLES = 500  # weighted draws of a simulation, at least
_FEW = 0.05  # share of simulations that may have too few effective draws
_NUM_WARMUP = 500


class Validation:
    """Ranks of true values among a method's draws, and what they say of it.

    Attributes:
        table: by quantity `p_value` and `adjusted`, which is for all quantities together.
        ranks: `(simulation, quantity)`, each in 0 ... `num_draws`.
        num_draws: draws of each simulation.
        method: the method's name.
        verdict: `ok` where nothing speaks against the method, `failed` where it is wrong.
    """

    def __init__(
        self, table: pd.DataFrame, ranks: np.ndarray, num_draws: int, method: str, verdict: Verdict
    ) -> None:
        self.table = table
        self.ranks = ranks
        self.num_draws = num_draws
        self.method = method
        self.verdict = verdict

    def plot(self, **options: Any) -> Any:
        """Distributions of ranks against a uniform one, by `arviz_plots.plot_ecdf_pit`.

        Lines that leave their band show what is wrong: below it the method's draws are too low, and
        so on.

        Args:
            **options: as in `arviz_plots.plot_ecdf_pit`, such as `var_names` or `backend`.

        Returns:
            ArviZ's `PlotCollection`.
        """
        from arviz_plots import plot_ecdf_pit  # slow to import

        shares = (self.ranks + 0.5) / (self.num_draws + 1)
        columns = zip(self.table.index, shares.T, strict=True)
        tree = arviz_base.from_dict(
            {"prior_sbc": {str(name): column[None] for name, column in columns}}
        )
        return plot_ecdf_pit(tree, **{"group": "prior_sbc", **options})

    def __str__(self) -> str:
        title = f"{self.method}: {len(self.ranks)} simulations of {self.num_draws} draws"
        return f"{title}\n{self.table.to_string()}\n{self.verdict}"

    def __repr__(self) -> str:
        return str(self)


def validate(
    model: Callable[..., Any],
    method: str | Method | type[Method] = "nuts",
    data_like: Mapping[str, Any] | None = None,
    *,
    simulations: int = 200,
    num_draws: int = 99,
    num_warmup: int = _NUM_WARMUP,
    thinning: int = 5,
    key: int | Array = 0,
    progress: bool | Report = True,
) -> Validation:
    """Check a method by simulation-based calibration and TARP.

    Parameters are drawn from the prior and data from the model; the method is run on each data set
    by one chain, from a start of its own. Simulations run together where the method allows it.

    Of methods that learn a sampler, `num_draws` of the equal-weight draws are taken from
    `num_draws * thinning` weighted ones, or from 500 where that is more: few particles would be
    wrong where the method is not.

    Args:
        model: as in `infer`; its priors must be proper.
        method: as in `infer`.
        data_like: the model's arguments, of which those that are observed give shapes alone:
            nothing else in the model may depend on them, save deterministic sites.
        simulations: number of data sets.
        num_draws: draws for each.
        num_warmup: as in `infer`; methods that learn a sampler have none.
        thinning: as in `infer`; draws should be next to independent, and the verdict says where
            they are not. For methods that learn a sampler, weighted draws for each one that is
            ranked; the verdict says where they are worth too few.
        key: an integer seed or a JAX key.
        progress: show on a terminal how many simulations are done; or a function that is called
            with a `Progress`.

    Returns:
        p-values for every parameter, the log likelihood (that of each plate as well, where
        observations lie in several), the joint density and the distance to a point that the data
        lead to; ranks and a verdict.

    Raises:
        ModelError: the model cannot be simulated from, observations are no arguments as they
            stand, or a distribution depends on an observed argument.
        MethodError: the method cannot run on the model, too few simulations or draws, or a warm-up
            of a method that has none.
    """
    simulations = as_integer("simulations", simulations, 20)
    length = (
        as_integer("num_warmup", num_warmup, 0),
        as_integer("num_draws", num_draws, 9),
        as_integer("thinning", thinning, 1),
    )
    chosen = registry.resolve(method)
    if isinstance(chosen, Approximation) and length[0] != _NUM_WARMUP:
        message = f"`{type(chosen).__name__}` learns a sampler and runs no chains, so `num_warmup` "
        raise MethodError(message + "means nothing to it. Leave it out.")
    density = compile(model, data_like)
    registry.require(chosen, density.program.name, density)
    arguments = observed_arguments(density)
    density = able_to_hold(density, arguments)
    base, run_key, tie_key = jax.random.split(as_key(key), 3)
    drawn = jax.device_get(simulated(density, jax.random.split(base, simulations)))
    leaves = with_data(density, arguments, drawn)
    shown = progress if callable(progress) or is_first() else False
    with reporting(f"{chosen.name} on {density.program.name}", progress=shown) as report:
        run = _together if _runs_together(chosen) else _one_by_one
        found, sizes = run(chosen, density, leaves, run_key, length, report)
    truth = density.latent(drawn)
    told = jax.device_get(_told(density, leaves, truth, found))
    names, at_truth, at_draws = _quantities(density, truth, found, told)
    y = np.concatenate([_flat(drawn[site]) for site in arguments], axis=1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(tie_key)).tolist())
    distances = _distances(told[0], told[2], pointers(told[0], np.asarray(y, float)))
    at_truth = np.concatenate([at_truth, distances[0]], axis=1)
    at_draws = np.concatenate([at_draws, distances[1]], axis=2)
    names.append(COVERAGE)
    ranked = ranks(at_truth, at_draws, rng)
    p_values = uniformity(ranked, num_draws)
    adjusted = np.minimum(p_values * len(p_values), 1.0)
    table = pd.DataFrame(
        {"p_value": p_values, "adjusted": adjusted}, index=pd.Index(names, name="quantity")
    )
    dependence, few = autocorrelation(at_draws), None
    if sizes is not None:  # draws in random order
        dependence, few = np.zeros(len(names)), _too_few(sizes, num_draws)
    verdict = _judge(names, adjusted, dependence, np.isfinite(at_draws).all(), few)
    return Validation(table, ranked, num_draws, chosen.name, verdict)


def _count(leaves: list[Any]) -> int:
    return len(jax.tree.leaves(leaves)[0])


def _runs_together(method: Method) -> bool:
    """Whether chains on different data may run in one compiled program."""
    kind = type(method)
    parts = ("prepare", "period", "share_out", "settle")
    return isinstance(method, Kernel) and all(
        getattr(kind, part) is getattr(Kernel, part) for part in parts
    )


def _together(
    method: Method,
    density: Density,
    leaves: list[Any],
    key: Array,
    length: tuple[int, int, int],
    report: Report,
) -> tuple[dict[str, np.ndarray], None]:
    """Draws by site, `(simulation, draw, ...)`, of many simulations at once."""
    assert isinstance(method, Kernel)
    count = _count(leaves)
    num_warmup, num_draws, thinning = length
    schedule = window(jax.tree.map(np.asarray, method.stages(num_warmup)), 0, max(num_warmup, 1))
    limits = Limits(0, num_warmup + num_draws * thinning, num_warmup, num_warmup, thinning)
    keys = jax.random.split(key, count)
    target = method.target(density)
    size = -(-count // -(-count // TOGETHER))
    found, lost = [], 0
    for start in range(0, count, size):
        report(_done(start, count))
        rows = np.minimum(np.arange(start, start + size), count - 1)
        data, own = jax.tree.map(operator.itemgetter(rows), (leaves, keys))
        draws, started = _compiled(method, target, data, own, schedule, limits, num_draws)
        left = min(size, count - start)
        found.append({name: np.asarray(value)[:left, 0] for name, value in draws.items()})
        lost += int(np.sum(~np.asarray(started)[:left]))
    if lost:
        message = f"No finite start was found in {lost} of {count} simulations. "
        raise ModelError(message + "Check that the prior fits the model's supports.")
    report(_done(count, count))
    return {name: np.concatenate([draws[name] for draws in found]) for name in found[0]}, None


@eqx.filter_jit
def _compiled(
    method: Kernel,
    density: Density,
    leaves: list[Any],
    keys: Array,
    schedule: Any,
    limits: Limits,
    capacity: int,
) -> tuple[dict[str, Array], Array]:
    def one(leaves: list[Any], key: Array) -> tuple[dict[str, Array], Array]:
        target = one_of(density, leaves)
        chains = jnp.zeros(1, jnp.int32)
        begun = begin_here(method, AT_WILL, target, key, chains, {}, ())
        carry, block = advance_here(
            method,
            capacity,
            False,  # noqa: FBT003
            lambda array: array,
            target,
            begun[1],
            begun[0],
            schedule,
            jax.tree.map(jnp.int32, limits),
            key,
        )
        del carry
        return density.latent(block.draws), begun[2][0]

    return jax.vmap(one)(leaves, keys)


def _one_by_one(
    method: Method,
    density: Density,
    leaves: list[Any],
    key: Array,
    length: tuple[int, int, int],
    report: Report,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The same for methods that prepare, or learn, on the data before they draw.

    Of methods that learn a sampler, the numbers of effective draws as well.
    """
    num_warmup, num_draws, thinning = length
    settings: dict[str, Any] = {"num_samples": num_draws, "num_chains": 1, "progress": False}
    if isinstance(method, Kernel):
        settings |= {"num_warmup": num_warmup, "thinning": thinning}
    else:
        settings["num_samples"] = max(num_draws * thinning, _PARTICLES)
    count, found, sizes = _count(leaves), [], []
    for index in range(count):
        report(_done(index, count))
        data = one_of(density, jax.tree.map(operator.itemgetter(index), leaves)).data
        own = jax.random.fold_in(key, index)
        fit = infer(density.program.model, data, method, key=own, **settings)
        draws = density.latent(fit.posterior)  # equal-weight draws are in random order
        found.append({name: value.values[0, :num_draws] for name, value in draws.items()})
        if isinstance(method, Approximation):
            sizes.append(weighted_sizes(fit.tree, fit.importance.ess)[0].min())
    report(_done(count, count))
    draws = {name: np.stack([draws[name] for draws in found]) for name in found[0]}
    return draws, np.array(sizes) if sizes else None


def _done(done: int, total: int) -> Progress:
    return Progress("simulations", done, total, 0, np.nan)


@eqx.filter_jit
def _told(density: Density, leaves: list[Any], truth: Any, draws: Any) -> tuple[Array, ...]:
    """Positions and functions of position and data: of true values, then of draws.

    Draws are gone through one after the other, so that it takes no more memory than sampling did.
    """
    free = density.unconstrained

    def at(target: Density, values: Any) -> tuple[Array, Array]:
        z = target.unconstrain(values)
        prior, likelihood = target.log_terms(z)
        return z, jnp.stack([likelihood, prior + likelihood, *_by_plate(target, values)])

    def one(entry: tuple) -> tuple[Array, ...]:
        target = one_of(free, entry[0])
        return *at(target, entry[1]), *jax.lax.map(functools.partial(at, target), entry[2])

    return jax.lax.map(one, (leaves, truth, draws), batch_size=TOGETHER)


def _plates(density: Density) -> dict[str, list[str]]:
    """Names of observed sites by the plates that they lie in; none if all lie in the same."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for site in density.program.role("observed"):
        groups.setdefault(site.plates, []).append(site.name)
    several = list(groups.values()) if len(groups) > 1 else []
    return {f"{LIKELIHOOD} of {listing(sites)}": sites for sites in several}


def _by_plate(density: Density, values: Any) -> list[Array]:
    """Log likelihoods of the observations in each plate, where they lie in several."""
    plates = _plates(density).values()
    terms = density.pointwise_at(values) if plates else {}
    return [sum((jnp.nansum(terms[site]) for site in own), jnp.zeros(())) for own in plates]


def _quantities(
    density: Density, truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], told: tuple
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, true values `(simulation, quantity)`, draws `(simulation, draw, quantity)`."""
    names, draws = flatten(found)
    _, true = flatten({name: value[:, None] for name, value in truth.items()})
    names += [LIKELIHOOD, JOINT, *_plates(density)]
    true = np.concatenate([true[:, 0], told[1]], axis=1)
    return names, true, np.concatenate([draws, told[3]], axis=2)


def _flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).reshape(len(values), -1)


def _distances(
    truth: np.ndarray, draws: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the points that data lead to, in prior sds of each coordinate."""
    scale = truth.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    mine = np.linalg.norm((truth - points) / scale, axis=-1)
    theirs = np.linalg.norm((draws - points[:, None]) / scale, axis=-1)
    return mine[:, None], theirs[..., None]


def _judge(
    names: list[str],
    adjusted: np.ndarray,
    dependence: np.ndarray,
    finite: Any,
    few: Finding | None = None,
) -> Verdict:
    findings = [] if few is None else [few]
    order = np.argsort(adjusted, kind="stable")
    wrong = [index for index in order if adjusted[index] < _SUSPECT]
    look = "Look at `plot()`, and compare with another method on data from the model."
    for index in wrong[:5]:
        status = "failed" if adjusted[index] < _FAILED else "suspect"
        reason = f"Ranks of '{names[index]}' are not uniform (p = {adjusted[index]:.2g}, adjusted)."
        findings.append(Finding(status, reason, look))
    if len(wrong) > 5:
        rest = listing([names[index] for index in wrong[5:]])
        findings.append(Finding("suspect", f"Nor are those of {rest}.", look))
    if not finite:
        overflow = "Look for overflow in the model's terms."
        findings.append(Finding("failed", "Some draws are not finite.", overflow))
    if dependence.max() > _DEPENDENT:
        name = names[int(np.argmax(dependence))]
        reason = f"Successive draws of '{name}' are correlated ({dependence.max():.2f}): ranks are "
        reason += "not uniform even for an exact method."
        findings.append(Finding("suspect", reason, "Raise `thinning`."))
    return Verdict.of(findings)


def _too_few(sizes: np.ndarray, num_draws: int) -> Finding | None:
    """What effective sizes of weighted draws say, one for each simulation."""
    few = int(np.sum(sizes < num_draws))
    if few <= _FEW * len(sizes):
        return None
    reason = f"Weighted draws are worth fewer than the {num_draws} that are ranked in {few} of "
    reason += f"{len(sizes)} simulations ({np.median(sizes):.0f} in the middle): ranks are not "
    reason += "uniform even if the weights are right."
    advice = "Raise `thinning`, the number of weighted draws for each that is ranked, or let the "
    return Finding("suspect", reason, advice + "sampler learn longer.")
