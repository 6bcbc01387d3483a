"""What `infer` returns: draws, a verdict, costs, and what can be computed from them."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from quincunx.engine.density import Density, compile
from quincunx.engine.errors import ModelError, ModelWarning, QuincunxError
from quincunx.engine.explain import Explanation
from quincunx.inference.diagnostics.bias import (
    COLUMNS,
    bias_report,
    covariance_ratio,
    judge_bias,
)
from quincunx.inference.diagnostics.convergence import Convergence, convergence, flatten
from quincunx.inference.diagnostics.importance import Evidence, Importance, judge_weights
from quincunx.inference.diagnostics.verdict import Verdict, judge
from quincunx.inference.distributed.network import Networked
from quincunx.inference.method import Discretised, Kind, Method, as_key
from quincunx.inference.output import always_constant, build_tree, dataset, opened
from quincunx.inference.predictive import (
    check_latent_shapes,
    draws_shape,
    over_draws,
    pointwise_one,
    predict_one,
    simulate_one,
)
from quincunx.inference.session import AGENT, Progress, Session
from quincunx.inference.stopping import INTERRUPTED, interruptible
from quincunx.inference.store import plain_strings
from quincunx.inference.summary import summary_of
from quincunx.inference.weighted import (
    Draws,
    is_weighted,
    stored_draws,
    weighted_sizes,
    weighted_tree,
)

_MOMENTS, _BIAS = "posterior_moments", "bias"
_LEAST = 4  # draws without which nothing can be said


class Fit:
    """A posterior.

    Attributes:
        tree: the ArviZ tree: `posterior`, `sample_stats`, `observed_data`, `constant_data`, and
            further groups as they are asked for. Of weighted draws `posterior` has equal weights;
            `weighted_posterior` and `weighted_sample_stats` have them as they were made.
        method: the method that made the draws; `None` for a loaded fit.
        costs: `gradients`, `evaluations`, `data_passes` of all chains and both phases,
            `warmup_gradients`, `warmup_evaluations`, `compile_seconds`, `sample_seconds`.
        density: the compiled model; `None` for a fit loaded without its model.
        sampler: what was learned, for further draws; `None` for chains and loaded fits.
    """

    def __init__(
        self,
        tree: xr.DataTree | Callable[[], xr.DataTree],
        *,
        method: Method | None,
        costs: Mapping[str, int | float],
        density: Density | None,
        session: Session | None = None,
        draws: Draws | None = None,
        sampler: Any = None,
    ) -> None:
        self._tree = tree
        self.method = method
        self.costs = dict(costs)
        self.density = density
        self.sampler = sampler
        self._session = session
        self._draws = draws
        self._told = ("", 0)

    @property
    def tree(self) -> xr.DataTree:
        """The ArviZ tree; weighted draws are put into one when it is first asked for."""
        if not isinstance(self._tree, xr.DataTree):
            self._tree = self._tree()
        return self._tree

    @classmethod
    def weighted(
        cls,
        density: Density,
        z: Any,
        log_weight: Any,
        *,
        method: Method,
        costs: Mapping[str, int | float],
        key: int | jax.Array = 0,
        tempered: Any = None,
        origin: Any = None,
        sampler: Any = None,
        outcome: str = "",
        skipped: int = 0,
        made: tuple[Mapping[str, np.ndarray], np.ndarray] | None = None,
        notes: Mapping[str, str | int | float] | None = None,
    ) -> Fit:
        """The fit of weighted draws.

        Args:
            density: the target.
            z: its positions, `(n, dim)`, or `(batch, n, dim)` for several independent batches.
            log_weight: log weights, so that the mean weight estimates the evidence, `(n,)` or
                `(batch, n)`.
            method: what made them.
            costs: by name, as in the attribute `costs`.
            key: for resampling to equal weights.
            tempered: log weights before each resampling, with an axis over stages before the
                last, NaN where there was none.
            origin: of draws that were resampled, the particle of the start of its batch that each
                one descends from, of the shape of `log_weight`.
            sampler: what was learned, for further draws.
            outcome: why the work ended before its plan, empty where it did not.
            skipped: paths that were left out of training because they were not finite.
            made: constrained values by site and log densities, `(batch, n, ...)`, where they are
                known already.
            notes: further attributes of the tree.
        """
        z, log_weight = np.asarray(z), np.asarray(log_weight, float)
        if log_weight.ndim == 1:
            z, log_weight = z[None], log_weight[None]
            tempered = None if tempered is None else np.asarray(tempered)[None]
            origin = None if origin is None else np.asarray(origin)[None]
        if tempered is not None:
            tempered = np.asarray(tempered, float)
            tempered = tempered[:, ~np.isnan(tempered).all(axis=(0, 2))]
        origin = None if origin is None else np.asarray(origin)
        draws = Draws(z, log_weight, tempered, origin)
        settings = (density, draws, method, as_key(key), costs, outcome, skipped, made, notes)
        tree = functools.partial(weighted_tree, *settings)
        fit = cls(tree, method=method, costs=costs, density=density, draws=draws, sampler=sampler)
        fit._told = (outcome, skipped)
        return fit

    @classmethod
    def of(cls, session: Session, *, ended: bool = True) -> Fit:
        """The draws that a session has so far; it can be extended once the run has ended."""
        tree, costs = build_tree(session, ended=ended)
        return cls(
            tree,
            method=session.method,
            costs=costs,
            density=session.density,
            session=session if ended else None,
        )

    @property
    def posterior(self) -> xr.Dataset:
        """The draws: one variable for each latent and deterministic site."""
        return self.tree["posterior"].to_dataset()

    @property
    def agents(self) -> xr.Dataset:
        """The draws of each agent of a distributed sampler, `(chain, draw, agent, ...)` by site.

        Agents depend on each other: they are no further chains.

        Raises:
            QuincunxError: the method has no agents.
        """
        stats = self.tree["sample_stats"].to_dataset()
        names = {
            name: str(name).removeprefix(AGENT) for name in stats if str(name).startswith(AGENT)
        }
        if not names:
            raise QuincunxError("The method has no agents, so the fit has no draws of theirs.")
        return stats[list(names)].rename(names)

    @functools.cached_property
    def covariance_ratio(self) -> float:
        """Covariances of a distributed sampler against those of the Gaussian at the mode.

        One for a Gaussian posterior and an unbiased sampler; the mean over all directions.

        Raises:
            QuincunxError: the method has no agents, or the fit was loaded.
        """
        session = self._session
        if session is None or not isinstance(session.method, Networked):
            message = "Only the fit that a run of a distributed sampler returned has a covariance "
            raise QuincunxError(message + "ratio.")
        return covariance_ratio(session, {str(k): v.values for k, v in self.posterior.items()})

    @functools.cached_property
    def importance(self) -> Importance:
        """What the weights of weighted draws say: evidence, effective size, Pareto k, bounds.

        Raises:
            QuincunxError: the draws have no weights.
        """
        if self._draws is None:
            if not is_weighted(self.tree):
                message = "The draws have no weights: they are of chains. The evidence needs a "
                message += "method with weights, such as `qx.AnnealedSMC()`."
                raise QuincunxError(message)
            self._draws = stored_draws(self.tree)
        return self._draws.importance

    @property
    def log_evidence(self) -> Evidence:
        """Log evidence of the model, with `.value` and `.error`, from weighted draws.

        Raises:
            QuincunxError: the draws have no weights.
        """
        return self.importance.log_evidence

    @property
    def _is_weighted(self) -> bool:
        return self._draws is not None or is_weighted(self.tree)

    @property
    def kind(self) -> Kind:
        """What the method promises of its draws."""
        return Kind[self.tree["posterior"].attrs["kind"]]

    @functools.cached_property
    def convergence(self) -> Convergence:
        """Effective sample sizes and R-hat of every parameter; a stuck chain has ESS 0.

        Weighted draws have no R-hat (NaN), and the size of their weights for every parameter, or
        less where they were resampled.
        """
        draws = {str(name): array for name, array in self.posterior.items()}
        found = convergence(draws, of_chains=not self._is_weighted)
        if self._is_weighted:
            bulk, tail = weighted_sizes(self.tree, self.importance.ess)
            rest = {"r_hat": np.full(len(found.names), np.nan), "stuck": found.constant}
            return found._replace(ess_bulk=bulk, ess_tail=tail, **rest)
        if _MOMENTS in self.tree.children:
            found = found._replace(finite=found.finite & np.isfinite(self.moments["mean"].values))
        return found

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Whether the draws can be trusted, why not, and what to do."""
        if self._is_weighted:
            if self._draws is None or self._draws.z.shape[-1] == 0:
                attributes = self.tree["posterior"].attrs
                self._told = (attributes["outcome"], int(attributes["skipped"]))
            found = self.importance
            size = round(found.ess / max(found.share, 1e-300))
            return judge_weights(found, size, *self._told, self.worth())
        stats = _arrays(self.tree["sample_stats"].to_dataset())
        attributes = self.tree["posterior"].attrs
        outcome = attributes["outcome"]
        if attributes["thinning"] > 1:
            stats.pop("energy", None)  # E-BFMI is about successive transitions
        diverged = None
        if _MOMENTS in self.tree.children:  # of all draws, not of those that were kept
            counts = self.tree[_MOMENTS].attrs
            diverged = int(counts["diverging"]), int(counts["draws"]) * len(stats["lp"])
            stats["lp"] = np.where(counts["finite_log_density"], stats["lp"], np.nan)
        free, bias = self.free(), None
        report = self._report()
        if report is not None:
            bias = judge_bias(report, free)
        return judge(self.convergence, stats, free, self.kind, outcome, diverged, bias)

    @property
    def bias(self) -> pd.DataFrame:
        """How wrong the method is on this posterior, one row for each parameter.

        The columns are the bias of the mean, in posterior sds, and that of the sd, relative, each
        with its standard error. Single figures are in `attrs`: what gradient noise adds to
        variances, the acceptance of a Metropolis step on all rows, the kernel Stein discrepancy;
        for distributed samplers the covariance ratio.
        The report is made when it or the verdict is first asked for, and kept in the tree, and in
        the store where there is one.

        Raises:
            QuincunxError: the method is exact, or the fit has no report and cannot make one.
        """
        report = self._report()
        if report is None:
            if self.kind is not Kind.BIASED:
                message = f"The method is {self.kind.value}: there is no bias report. "
                raise QuincunxError(message + "What can be said of its draws is in `verdict`.")
            message = "The fit has no bias report, and no chains to make it with: it was loaded, "
            raise QuincunxError(message + "inspected while its run went on, or is of another kind.")
        table: Any = report.to_dataframe()[list(COLUMNS)]
        table.attrs = dict(report.attrs)
        return table

    def _report(self) -> xr.Dataset | None:
        """The bias report of a biased method; made where it is not there yet and can be."""
        if _BIAS not in self.tree.children:
            session = self._session
            drawn = self.posterior.sizes["draw"] >= _LEAST
            if session is None or not isinstance(session.method, Discretised) or not drawn:
                return None
            if session.method.promise is not Kind.BIASED:
                return None
            draws = {str(name): array.values for name, array in self.posterior.items()}
            report = bias_report(session, draws, self.convergence.ess_bulk)
            self.tree[_BIAS] = xr.DataTree(report)
            session.sink.add(_BIAS, report)
        return self.tree[_BIAS].to_dataset()

    @property
    def moments(self) -> pd.DataFrame:
        """Figures of all draws of a run with `store=Moments(...)`, one row for each parameter.

        The columns are mean, sd, mcse_mean, ess_mean and the quantiles.

        Raises:
            QuincunxError: the run had no `Moments`.
        """
        if _MOMENTS not in self.tree.children:
            message = "The run kept no running moments; its draws are whole, so `summary()` has "
            raise QuincunxError(
                message + "their figures. Use `infer(store=Moments())` to keep them."
            )
        group = self.tree[_MOMENTS].to_dataset()
        names = [str(name) for name in self.posterior if name in group]
        names, values = flatten({name: group[name].values[None] for name in names})
        columns = [str(label) for label in group["statistic"].values]
        return pd.DataFrame(values[0].T, index=pd.Index(names, name="parameter"), columns=columns)

    def summary(self, **options: Any) -> pd.DataFrame:
        """Means, sds, intervals, effective sample sizes and R-hat, by `arviz_stats.summary`.

        Args:
            **options: as in `arviz_stats.summary`, such as `var_names` or `ci_prob`.

        Raises:
            QuincunxError: there are no draws.
        """
        if not self.posterior.sizes["draw"]:
            raise QuincunxError("There are no draws to summarise: let the run go on for longer.")
        return summary_of(self, options)

    def log_likelihood(self) -> xr.Dataset:
        """Log likelihood of each observation at each draw, unscaled, as group `log_likelihood`.

        With it `arviz_stats.loo(fit.tree)` works.
        """
        density = self._model("log_likelihood")
        for site in density.program.role("observed"):
            batch = len(site.shape) - site.event_dim
            if batch > len(site.plates):
                message = f"{site} has {batch} batch dimensions but lies in {len(site.plates)} "
                message += "plates: LOO takes each element as one observation."
                warnings.warn(message, ModelWarning, stacklevel=2)
        if not density.program.role("observed"):
            raise ModelError("The model observes nothing, so there is no log likelihood.")
        values = over_draws(pointwise_one, density, (), self._latent_draws())
        for name, terms in values.items():
            if np.isnan(terms).all(axis=(0, 1)).any():
                message = f"Some entries of '{name}' were not observed; their log likelihood is "
                message += "NaN. Drop them before LOO, e.g. with `.dropna(dim)`."
                warnings.warn(message, ModelWarning, stacklevel=2)
        return self._add("log_likelihood", density, values)

    def predict(
        self, data: Mapping[str, Any] | None = None, key: int | jax.Array = 1
    ) -> xr.Dataset:
        """Draws of the observed sites given the posterior.

        Args:
            data: arguments of the model that replace those of the fit; observed arguments that
                it leaves out become `None`. Without it the fit's own data are used.
            key: an integer seed or a JAX key.

        Returns:
            One variable for each observed site, and for new data each deterministic one; also
            added to the tree, as `posterior_predictive`, or as `predictions` for new data.

        Raises:
            ModelError: a latent site has another shape under the new data.
        """
        density, group = self._model("predict"), "posterior_predictive"
        if data is not None:
            observed = {site.argument for site in density.program.role("observed")}
            arguments = {
                name: None if name in observed else value for name, value in density.data.items()
            }
            model = density.program.model
            coords = density.labels.coords
            density, group = compile(model, {**arguments, **data}), "predictions"
            density.labels.adopt(density.program.sites, coords)
        draws = self._latent_draws()
        check_latent_shapes(density, draws)
        keys = jax.random.split(as_key(key), draws_shape(draws))
        names = tuple(site.name for site in self._model("predict").program.role("observed"))
        if data is not None:
            names += tuple(site.name for site in density.program.role("deterministic"))
        return self._add(group, density, over_draws(predict_one, density, names, draws, keys))

    def prior_predictive(self, num_samples: int = 500, key: int | jax.Array = 2) -> xr.Dataset:
        """Draws of all sites from the prior, as groups `prior` and `prior_predictive`.

        Args:
            num_samples: number of draws.
            key: an integer seed or a JAX key.
        """
        density = self._model("prior_predictive")
        keys = jax.random.split(as_key(key), (1, num_samples))
        drawn = over_draws(simulate_one, density, (), keys)
        observed = {site.name for site in density.program.role("observed")}
        prior = {name: value for name, value in drawn.items() if name not in observed}
        self._add("prior", density, prior)
        predictive = {name: value for name, value in drawn.items() if name in observed}
        return self._add("prior_predictive", density, predictive)

    def extend(self, num_samples: int) -> Fit:
        """Go on where the chains stopped, until each has `num_samples` draws in all.

        The draws are those that one longer run would have made.

        Args:
            num_samples: draws of each chain, those of this fit included.

        Returns:
            The longer fit; this one stays as it is.

        Raises:
            QuincunxError: the fit was loaded or made while its run went on, or has as many draws
                already.
        """
        if self._is_weighted:
            message = "Weighted draws are not of chains that could go on; `fit.sampler.draw(n)` "
            raise QuincunxError(message + "makes new ones.")
        if self._session is None:
            message = "A fit that was loaded, or inspected while its run went on, has no running "
            raise QuincunxError(message + "chains; use `infer(checkpoint=..., resume=True)`.")
        session = self._session.copy()
        session.plan = session.plan._replace(num_samples=num_samples)
        if session.done >= session.plan.total:
            drawn = self.posterior.sizes["draw"]
            raise QuincunxError(f"The chains have {drawn} draws already; ask for more.")
        with interruptible() as interrupted:
            session.run(_silent, stop=lambda: INTERRUPTED if interrupted() else None)
        return Fit.of(session)

    def report(self, path: str | Path) -> Path:
        """Write one HTML page that needs nothing else, for reading, printing and sending.

        It has the model as compiled, the verdict, a table of the parameters, plots of how the
        chains mix, the bias report where there is one, costs, and what is needed to make the fit
        again.

        Args:
            path: ending in `.html`.

        Returns:
            The path.

        Raises:
            QuincunxError: another suffix.
        """
        from quincunx.inference.report.page import write_fit  # imports matplotlib

        return write_fit(self, path)

    def whole_tree(self) -> xr.DataTree:
        """The tree with all that is to be saved with it: bias report, and model as compiled."""
        self._report()
        if self.density is not None:
            told = Explanation(self.density.unconstrained).told()
            self.tree["posterior"].attrs["explanation"] = json.dumps(told)
        return self.tree

    def save(self, path: str | Path) -> None:
        """Write the tree to netCDF (`.nc`) or Zarr (`.zarr`).

        Raises:
            QuincunxError: another suffix.
        """
        path = Path(path)
        tree = self.whole_tree()
        if path.suffix == ".nc":
            tree.to_netcdf(path, engine="h5netcdf")
        elif path.suffix == ".zarr":
            with plain_strings():
                tree.to_zarr(path, mode="w", consolidated=False)
        else:
            raise QuincunxError(f"Cannot save to '{path}': the suffix must be .nc or .zarr.")

    def __repr__(self) -> str:
        posterior = self.posterior.sizes
        parts = "batches" if self._is_weighted else "chains"
        shape = f"{posterior['chain']} {parts} x {posterior['draw']} draws"
        name = self.tree["posterior"].attrs["method"]
        return f"<Fit by {name}: {shape}, {len(self.convergence.names)} parameters>\n{self.verdict}"

    def _model(self, wanted: str) -> Density:
        if self.density is None:
            message = f"`{wanted}` needs the model: load with `qx.load(path, model, data)`."
            raise QuincunxError(message)
        return self.density

    def _latent_draws(self) -> dict[str, np.ndarray]:
        density = self._model("latent draws")
        return {site.name: self.posterior[site.name].values for site in density.program.latents}

    def worth(self) -> tuple[float, str]:
        """The smallest effective sample size of centre and tails, and its parameter."""
        found = self.convergence
        sizes = np.where(self.free(), np.minimum(found.ess_bulk, found.ess_tail), np.inf)
        if not sizes.size:
            return np.inf, ""
        at = int(np.argmin(sizes))
        return float(sizes[at]), found.names[at]

    def free(self) -> np.ndarray:
        """Which scalar parameters must vary.

        Deterministic ones may rightly be constant, and elements such as those above the diagonal
        of a Cholesky factor always are.
        """
        fixed = set(json.loads(self.tree["posterior"].attrs["deterministic"]))
        random = [name.split("[")[0] not in fixed for name in self.convergence.names]
        return np.array(random, bool) & ~self.constant()

    def constant(self) -> np.ndarray:
        """Which scalar parameters are elements to which the support leaves no choice."""
        told = json.loads(self.tree["posterior"].attrs.get("constant", "{}"))
        return always_constant(self.posterior, told)

    def _add(self, group: str, density: Density, values: Mapping[str, Any]) -> xr.Dataset:
        added = dataset(density, values)
        self.tree[group] = xr.DataTree(added)
        return added


def load(
    path: str | Path,
    model: Any = None,
    data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Fit:
    """Read a fit written by `Fit.save`.

    Args:
        path: a `.nc` or `.zarr` path.
        model: the model, needed for `predict` and `log_likelihood`.
        data: the model's arguments.
        coords: labels by dimension.

    Raises:
        QuincunxError: no such file, one that is damaged, or not a fit of ours.
    """
    path = Path(path)
    with opened(path) as stored:
        tree = stored.load()
    attributes = tree["posterior"].attrs if "posterior" in tree.children else {}
    if attributes.get("inference_library") != "quincunx":
        raise QuincunxError(f"'{path}' was not written by `Fit.save`.")
    if model is None and (data is not None or coords is not None):
        raise QuincunxError("`data` and `coords` are of use with the `model` only; pass it too.")
    density = None if model is None else compile(model, data, coords)
    if density is not None:
        posterior = tree["posterior"]
        for site in density.program.latents:
            if site.name not in posterior or posterior[site.name].shape[2:] != site.shape:
                message = f"'{path}' does not hold {site} of shape {site.shape}: "
                raise QuincunxError(message + "it is a fit of another model, or of other data.")
    return Fit(tree, method=None, costs=json.loads(attributes["costs"]), density=density)


def _silent(progress: Progress) -> None:
    del progress


def _arrays(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    return {str(name): np.asarray(array) for name, array in dataset.items()}
