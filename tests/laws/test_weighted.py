"""Laws that every method with weighted draws must obey; new ones are added to `METHODS`."""

import numpy as np
import pytest

import quincunx as qx
from quincunx.inference.registry import _REGISTRY
from tests.inference.test_weighted import evidence
from tests.scenarios import conjugate, conjugate_posterior

SMALL = {"steps": 8, "width": 16, "iterations": 25, "batch": 32}
METHODS = {
    "annealed_smc": qx.AnnealedSMC(pilot=64),
    "diffusion": qx.DiffusionSampler(kernel="bridge", **SMALL),
    "pis": qx.PIS(**SMALL),
    "dds": qx.DDS(**SMALL),
    "dis": qx.DIS(**SMALL),
    "cmcd": qx.CMCD(**SMALL),
    "dgfs": qx.DGFS(**SMALL),
    "scld": qx.SCLD(**SMALL),
    "trajectory_balance": qx.TrajectoryBalance(**SMALL),
    "ensemble": qx.EnsembleSampler(particles=128, moves=2, inner=16, steps=8),
}
QUICK = ("annealed_smc", "dds", "ensemble")
Y = np.array([0.3, 1.9, -0.4, 2.2, 1.1])


@pytest.fixture(
    scope="module",
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS
    ],
)
def fit(request):
    options = {"num_samples": 400, "num_chains": 8, "progress": False}
    return qx.infer(conjugate, {"y": Y}, METHODS[request.param], **options)


def test_every_registered_method_is_under_these_laws():
    learned = [cls for cls in _REGISTRY.values() if issubclass(cls, qx.Approximation)]
    ours = {cls.name for cls in learned if cls.__module__.startswith("quincunx.inference.methods")}
    assert ours <= set(METHODS)
    assert all(type(method).name == name for name, method in METHODS.items())


def test_evidence_and_moments(fit):
    value, error = fit.log_evidence
    assert 0 <= error < 0.05  # none at all where the start is the posterior
    assert abs(value - evidence(Y)) < 5 * error + 1e-8
    mean, sd = conjugate_posterior(Y)
    draws = fit.posterior["mu"].values
    tolerance = 5 * sd / min(fit.importance.ess, 400) ** 0.5
    assert abs(draws.mean() - mean) < tolerance
    assert abs(draws.std() - sd) < tolerance


def test_draws_of_a_saved_sampler_are_the_same(fit, tmp_path):
    fit.sampler.save(tmp_path / "sampler.qx")
    again = qx.load_sampler(tmp_path / "sampler.qx", conjugate, {"y": Y})
    ours, theirs = fit.sampler.draw(50, key=3), again.draw(50, key=3)
    assert np.array_equal(ours.posterior["mu"], theirs.posterior["mu"])
    assert ours.log_evidence.value == theirs.log_evidence.value


def test_costs_are_counted(fit):
    costs = fit.costs
    assert costs["evaluations"] > costs["warmup_evaluations"] > 0
    assert costs["evaluations"] - costs["warmup_evaluations"] >= 8 * 400
    assert costs["compile_seconds"] > 0
    assert costs["sample_seconds"] > 0
