"""The list of reference posteriors, and access to their data and trusted moments."""

import gzip
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import diamonds, gaussian_process, glm, hierarchical, mixtures, ode, regression, timeseries

VARIABLE = "QUINCUNX_REFERENCES"


@dataclass(frozen=True)
class Posterior:
    """A model, the way from its raw data to its arguments, and its name in the references.

    Attributes:
        name: the stem of its files.
        model: the Quincunx model.
        data: from the raw data to the model's arguments.
        target_accept: the acceptance rate to ask of NUTS; above 0.8 where there is a funnel.
        start: from the raw data to values of the latent sites near which to start the chains,
            where a random start may end in a minor mode.
    """

    name: str
    model: Callable[..., Any]
    data: Callable[[Mapping[str, Any]], dict[str, Any]]
    target_accept: float = 0.8
    start: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


POSTERIORS: tuple[Posterior, ...] = (
    Posterior("kidiq-kidscore_interaction", regression.kid_score, regression.kid_score_data),
    Posterior(
        "earnings-logearn_interaction", regression.flat_regression, regression.log_earnings_data
    ),
    Posterior("earnings-earn_height", regression.flat_regression, regression.earnings_data),
    Posterior("nes2000-nes", regression.flat_regression, regression.party_data),
    Posterior("mesquite-logmesquite_logvash", regression.flat_regression, regression.mesquite_data),
    Posterior("sblri-blr", regression.gaussian_priors, regression.blr_data),
    Posterior("diamonds-diamonds", diamonds.diamonds, diamonds.diamonds_data),
    Posterior("diabetes-bayes_lasso", regression.bayes_lasso, regression.standardised_data),
    Posterior(
        "stackloss-student_t_regression", regression.student_t, regression.standardised_data, 0.9
    ),
    Posterior("wells_data-wells_interaction_c_model", glm.wells, glm.wells_data),
    Posterior("german_credit-logistic_regression", glm.german_credit, glm.german_credit_data),
    Posterior("GLMM_Poisson_data-GLMM_Poisson_model", glm.poisson_glmm, glm.poisson_glmm_data),
    Posterior(
        "eight_schools-eight_schools_noncentered",
        hierarchical.eight_schools,
        hierarchical.eight_schools_data,
        0.9,
    ),
    Posterior(
        "radon_mn-radon_hierarchical_intercept_noncentered",
        hierarchical.radon,
        hierarchical.radon_data,
    ),
    Posterior("irt_2pl-irt_2pl", hierarchical.item_response, hierarchical.item_response_data, 0.9),
    Posterior("arK-arK", timeseries.autoregression, timeseries.autoregression_data),
    Posterior("garch-garch11", timeseries.garch, timeseries.garch_data),
    Posterior(
        "brownian_motion-unknown_scales",
        timeseries.brownian_motion,
        timeseries.brownian_motion_data,
    ),
    Posterior(
        "gp_pois_regr-gp_regr", gaussian_process.gp_regression, gaussian_process.gp_regression_data
    ),
    Posterior(
        "gp_pois_regr-gp_pois_regr",
        gaussian_process.gp_poisson,
        gaussian_process.gp_poisson_data,
        0.9,
    ),
    Posterior(
        "synthetic-log_gaussian_cox_process",
        gaussian_process.log_gaussian_cox,
        gaussian_process.log_gaussian_cox_data,
    ),
    Posterior(
        "low_dim_gauss_mix-low_dim_gauss_mix", mixtures.gaussian_mixture, mixtures.series_data
    ),
    Posterior("hmm_example-hmm_example", mixtures.hidden_markov, mixtures.series_data),
    Posterior("Mt_data-Mt_model", mixtures.capture_recapture, mixtures.capture_recapture_data),
    Posterior(
        "hudson_lynx_hare-lotka_volterra",
        ode.lotka_volterra,
        ode.lotka_volterra_data,
        start=ode.lotka_volterra_start,
    ),
)


def folder() -> Path | None:
    """The folder of data and moments, if there is one; it is no part of the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "references"
    path = Path(os.environ.get(VARIABLE, beside))
    return path if path.is_dir() else None


def _read(relative: str) -> dict[str, Any]:
    root = folder()
    if root is None:
        raise FileNotFoundError(f"no folder of references; {VARIABLE} may name it")
    plain, packed = root / f"{relative}.json", root / f"{relative}.json.gz"
    text = plain.read_text() if plain.exists() else gzip.decompress(packed.read_bytes())
    return json.loads(text)


def load_data(name: str) -> dict[str, Any]:
    """The raw data of a posterior, as published."""
    return _read(f"data/{name}")


def load_reference(name: str) -> dict[str, dict[str, float | None]]:
    """Statistics by parameter; a heavy-tailed parameter is replaced by its "log(parameter)"."""
    raw = _read(name)
    logs = raw.get("log_params", {})
    return {
        f"log({key})" if key in logs else key: logs.get(key, stats)
        for key, stats in raw["params"].items()
    }


def reference_values(
    posterior: Posterior, draws: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The draws (chain, draw, *shape) by site, as (chain, draw) by reference parameter."""
    return {name: _pick(name, draws) for name in load_reference(posterior.name)}


def _pick(name: str, draws: Mapping[str, np.ndarray]) -> np.ndarray:
    if logged := re.fullmatch(r"log\((.+)\)", name):
        return np.log(_pick(logged[1], draws))
    site, _, index = name.removesuffix("]").partition("[")
    place = tuple(int(i) - 1 for i in index.split(",")) if index else ()
    return np.asarray(draws[site])[(..., *place)]
