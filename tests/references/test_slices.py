"""Polar slice sampling, without gradients and by its defaults, against trusted moments."""

import warnings

import pytest

import quincunx as qx
from tests.references.catalogue import (
    POSTERIORS,
    folder,
    load_data,
    load_reference,
    reference_values,
)
from tests.references.test_nuts import discrepancies

LARGEST, AT_LEAST = 50, 18


@pytest.mark.slow
@pytest.mark.skipif(folder() is None, reason="the reference posteriors are not on this machine")
def test_polar_slice_agrees_with_the_references_or_says_that_it_does_not():
    agreed = []
    for posterior in POSTERIORS:
        raw = load_data(posterior.name)
        data = posterior.data(raw)
        if qx.compile(posterior.model, data).dim > LARGEST:
            continue
        start = None if posterior.start is None else posterior.start(raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # overflow of a stuck chain's squares
            fit = qx.infer(
                posterior.model, data, qx.PolarSlice(), init=start, key=1, progress=False
            )
        draws = {str(name): array.values for name, array in fit.posterior.items()}
        scores = discrepancies(
            reference_values(posterior, draws), load_reference(posterior.name), "mean", 1
        )
        worst = max(scores, key=lambda name: abs(scores[name]))
        print(f"\n{posterior.name}: max |z| {abs(scores[worst]):.2f} ({worst}), {fit.verdict}")
        if abs(scores[worst]) < 4.5:
            agreed.append(posterior.name)
        else:
            assert fit.verdict.status != "ok", (posterior.name, scores[worst])
    assert len(agreed) >= AT_LEAST, agreed
