"""NUTS against the trusted moments of 25 posteriors."""

import numpy as np
import pytest

import quincunx as qx
from quincunx.inference.diagnostics.convergence import convergence
from tests.references.catalogue import (
    POSTERIORS,
    folder,
    load_data,
    load_reference,
    reference_values,
)

needs_references = pytest.mark.skipif(
    folder() is None, reason="the reference posteriors are not on this machine"
)
# A few divergences where an ill-conditioned factor bends the Gaussian process, and two scales that
# the data hardly tell apart, whose effective sample size stays below 100 a chain.
MAY_BE_SUSPECT = {"gp_pois_regr-gp_pois_regr", "irt_2pl-irt_2pl"}


def standard_errors(draws):
    """Means and Monte Carlo standard errors by name, from `(chain, draw)` arrays."""
    found = convergence(draws)
    return {
        name: (values.mean(), values.std() / np.sqrt(found.ess_bulk[index]))
        for index, (name, values) in enumerate(draws.items())
    }


def discrepancies(draws, reference, moment, power):
    """(mean - reference) in combined standard errors, where the reference gives its error."""
    powers = {name: values**power for name, values in draws.items()}
    scores = {}
    for name, (mean, error) in standard_errors(powers).items():
        expected, expected_error = (reference[name].get(key) for key in (moment, f"mcse_{moment}"))
        if expected is not None and expected_error is not None:
            scores[name] = (mean - expected) / np.hypot(error, expected_error)
    return scores


@needs_references
@pytest.mark.parametrize("posterior", POSTERIORS, ids=lambda posterior: posterior.name)
def test_every_reference_compiles_and_names_its_parameters(posterior):
    data = posterior.data(load_data(posterior.name))
    density = qx.compile(posterior.model, data)
    draws = {
        site.name: np.ones((1, 1, *site.shape))
        for site in density.program.role("latent", "deterministic")
    }
    assert set(reference_values(posterior, draws)) == set(load_reference(posterior.name))


@pytest.mark.slow
@needs_references
@pytest.mark.parametrize("posterior", POSTERIORS, ids=lambda posterior: posterior.name)
def test_nuts_agrees_with_the_reference(posterior):
    raw = load_data(posterior.name)
    start = None if posterior.start is None else posterior.start(raw)
    method = qx.NUTS(target_accept=posterior.target_accept)
    fit = qx.infer(posterior.model, posterior.data(raw), method, init=start, key=1, progress=False)
    draws = {str(name): array.values for name, array in fit.posterior.items()}
    values = reference_values(posterior, draws)
    reference = load_reference(posterior.name)
    means = discrepancies(values, reference, "mean", 1)
    squares = discrepancies(values, reference, "mean_sq", 2)
    worst = max(means, key=lambda name: abs(means[name]))
    report = f"max |z| {abs(means[worst]):.2f} ({worst})"
    if squares:
        report += f", of squares {max(map(abs, squares.values())):.2f}"
    report += f", min ESS {fit.convergence.ess_bulk.min():.0f}"
    report += f", seconds {fit.costs['compile_seconds']:.1f} + {fit.costs['sample_seconds']:.1f}"
    print(f"\n{posterior.name}: {report}, gradients {fit.costs['gradients']}, {fit.verdict}")
    assert means
    assert all(abs(score) < 4.5 for score in means.values()), report
    assert all(abs(score) < 4.5 for score in squares.values()), report
    allowed = {"ok", "suspect"} if posterior.name in MAY_BE_SUSPECT else {"ok"}
    assert fit.verdict.status in allowed, fit.verdict
