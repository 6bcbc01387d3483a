"""Draws that cannot be trusted are called so, for the right reason."""

import jax.numpy as jnp
import numpy as np
import pytest

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.diagnostics.convergence import Convergence, convergence
from quincunx.inference.diagnostics.verdict import judge
from quincunx.inference.method import Kind


def stats(chains=4, draws=1000, **changes):
    base = {"lp": np.zeros((chains, draws)), "diverging": np.zeros((chains, draws), bool)}
    return base | changes


def verdict(draws, kind=Kind.EXACT, **changes):
    found = convergence(draws)
    shape = next(iter(draws.values())).shape
    free = np.ones(len(found.names), bool)
    return judge(found, stats(shape[0], shape[1], **changes), free, kind)


def good(rng, chains=4, draws=1000):
    return rng.normal(size=(chains, draws))


def test_independent_draws_are_ok(rng):
    result = verdict({"a": good(rng), "b": rng.normal(size=(4, 1000, 3))})
    assert result.status == "ok"
    assert result.reasons == ()


def test_constant_draws_have_no_effective_sample(rng):
    draws = {"a": good(rng), "b": np.full((4, 1000), 0.3)}
    found = convergence(draws)
    assert found.ess_bulk[1] == found.ess_tail[1] == 0
    assert found.constant.tolist() == [False, True]
    apart = convergence({"b": np.arange(4.0)[:, None] + np.zeros(1000)})
    assert apart.stuck.all()
    assert not apart.constant.any()  # each chain is somewhere else
    result = verdict(draws)
    assert result.status == "failed"
    assert "'b' is constant" in result.reasons[0]


def test_one_stuck_chain_fails(rng):
    draws = good(rng)
    draws[2] = 0.1
    found = convergence({"a": draws})
    assert found.ess_bulk[0] == 0
    assert np.isinf(found.r_hat[0])
    assert verdict({"a": draws}).status == "failed"


def test_non_finite_draws_fail(rng):
    draws = good(rng)
    draws[0, 5] = np.nan
    result = verdict({"a": draws})
    assert result.status == "failed"
    assert "NaN or infinite" in result.reasons[0]


def test_one_density_that_is_not_finite_fails(rng):
    lp = np.zeros((4, 1000))
    lp[1, 7] = np.nan
    assert verdict({"a": good(rng)}, lp=lp).status == "failed"


def test_chains_in_two_modes_fail(rng):
    draws = good(rng) + np.array([0, 0, 0, 8.0])[:, None]
    result = verdict({"a": draws})
    assert result.status == "failed"
    assert "chains disagree" in result.reasons[0]
    assert "'a'" in result.reasons[0]


def test_few_effective_draws_are_suspect(rng):
    walk = np.cumsum(rng.normal(size=(4, 20_000)) * 0.05, axis=1)
    slow = np.sin(walk)[:, ::40]
    result = verdict({"fine": good(rng, draws=500), "slow": slow})
    assert result.status in ("suspect", "failed")
    assert any("'slow'" in reason for reason in result.reasons)


def test_divergences_depth_and_energy(rng):
    draws = {"a": good(rng)}
    diverging = np.zeros((4, 1000), bool)
    diverging[0, :5] = True
    result = verdict(draws, diverging=diverging)
    assert result.status == "suspect"
    assert "5 of 4000 transitions diverged" in result.reasons[0]
    assert "target_accept" in result.advice[0]
    diverging[:, :500] = True
    assert verdict(draws, diverging=diverging).status == "failed"
    deep = rng.uniform(size=(4, 1000)) < 0.3
    assert "tree depth" in verdict(draws, reached_max_tree_depth=deep).reasons[0]
    energy = np.cumsum(rng.normal(size=(4, 1000)), axis=1)
    assert "E-BFMI" in verdict(draws, energy=energy).reasons[0]


def test_one_slow_chain_shows_in_the_energy_and_fast_ones_do_not(rng):
    energy = rng.normal(size=(4, 1000))
    assert verdict({"a": good(rng)}, energy=energy).status == "ok"
    energy[2] = np.cumsum(energy[2])
    assert "E-BFMI" in verdict({"a": good(rng)}, energy=energy).reasons[0]


@pytest.mark.parametrize(
    ("bulk", "tail", "r_hat", "chains", "words"),
    [
        (401, 401, 1.009, 4, []),
        (399, 401, 1.0, 4, ["suspect", "Bulk ESS is 399 for 'b' (below 400"]),
        (401, 399, 1.0, 4, ["suspect", "Tail ESS is 399 for 'b'"]),
        (401, 39, 1.0, 4, ["failed", "Tail ESS is 39 for 'b'"]),
        (401, 401, 1.02, 4, ["suspect", "R-hat is 1.020 for 'b' (above 1.01)"]),
        (401, 401, 1.06, 4, ["failed", "R-hat is 1.06 for 'b' (above 1.05)"]),
        (399, 39, 1.02, 4, ["failed", "Tail ESS is 39"]),
        (401, 401, 1.02, 1, ["suspect", "One chain"]),
    ],
)
def test_thresholds_are_those_that_are_told(bulk, tail, r_hat, chains, words):
    """The worst of three parameters is judged, and a deterministic one is not."""
    yes, no = np.ones(3, bool), np.zeros(3, bool)
    found = Convergence(
        ["a", "b", "c"],
        np.array([900.0, bulk, 0.0]),
        np.array([900.0, tail, 0.0]),
        np.array([1.0, r_hat, np.inf]),
        yes,
        no,
        no,
    )
    result = judge(found, stats(chains), np.array([True, True, False]), Kind.EXACT)
    assert result.status == (words[0] if words else "ok")
    assert len(result.reasons) == (0 if not words else 3 if bulk < 400 and tail < 40 else 1)
    assert all(word in result.reasons[0] for word in words[1:])


def test_chains_of_different_widths_and_slow_tails_are_seen(rng):
    """Means alone agree in both cases."""
    wide = convergence({"a": good(rng) * np.array([1, 1, 1, 3])[:, None]})
    assert wide.r_hat[0] > 1.05
    size = np.repeat(rng.choice((1.0, 5.0), size=(4, 20)), 200, axis=1)
    slow = convergence({"a": rng.normal(size=(4, 4000)) * size})
    assert slow.ess_tail[0] < 0.3 * slow.ess_bulk[0]


def test_agreement_never_makes_a_biased_method_ok(rng):
    result = verdict({"a": good(rng)}, kind=Kind.BIASED)
    assert result.status == "suspect"
    assert "asymptotically biased" in result.reasons[0]


def test_a_density_that_turns_nan_never_yields_an_ok():
    def log_density(x):
        return jnp.where(jnp.abs(x).max() < 2.5, -0.5 * (x**2).sum(), jnp.nan)

    bare = qx.from_log_density(log_density, np.zeros(2))
    fit = qx.infer(bare, num_warmup=100, num_samples=100, progress=False)
    assert fit.verdict.status != "ok"
    assert np.isfinite(fit.tree["sample_stats"]["lp"].values).all()


def test_chains_that_cannot_move_fail_with_no_effective_sample():
    fit = qx.infer(
        lambda: qx.sample("a", dist.Normal(0, 1)),
        method=qx.NUTS(step_size=1e8),
        num_warmup=0,
        num_samples=100,
        progress=False,
    )
    assert fit.verdict.status == "failed"
    assert "never moved" in fit.verdict.reasons[0]
    assert fit.summary().loc["a", "ess_bulk"] == 0


def test_funnel_in_its_centred_form_is_not_ok():
    def funnel():
        v = qx.sample("v", dist.Normal(0, 3))
        qx.sample("x", dist.Normal(0, jnp.exp(v / 2)).expand([9]).to_event(1))

    fit = qx.infer(funnel, num_warmup=300, num_samples=300, progress=False)
    assert fit.verdict.status != "ok"


def test_a_loaded_stuck_fit_is_still_failed(tmp_path):
    fit = qx.infer(
        lambda: qx.sample("a", dist.Normal(0, 1)),
        method=qx.NUTS(step_size=1e8),
        num_warmup=0,
        num_samples=50,
        progress=False,
    )
    fit.tree["sample_stats"]["diverging"][:] = False
    fit.save(tmp_path / "fit.nc")
    loaded = qx.load(tmp_path / "fit.nc").verdict
    assert loaded.status == "failed"
    assert "never moved" in loaded.reasons[0]


def test_a_rare_event_is_no_fault():
    def model():
        a = qx.sample("a", dist.Normal(0, 1))
        qx.deterministic("big", a > 3.5)

    fit = qx.infer(model, num_samples=1000, progress=False)
    assert fit.verdict.status == "ok", fit.verdict


def test_thinning_hides_no_divergence():
    def funnel():
        v = qx.sample("v", dist.Normal(0, 3))
        qx.sample("x", dist.Normal(0, jnp.exp(v / 2)).expand([9]).to_event(1))

    fit = qx.infer(funnel, num_warmup=200, num_samples=50, thinning=10, progress=False)
    happened = sum(g.totals["posterior"]["diverging"].sum() for g in fit._session.groups)
    seen = int(fit.tree["sample_stats"]["diverging"].sum())
    assert 0 < happened / 10 <= seen <= happened


def test_a_constant_deterministic_is_no_fault():
    def model():
        a = qx.sample("a", dist.Normal(0, 1))
        qx.deterministic("one", a / a)

    fit = qx.infer(model, num_warmup=300, num_samples=1000, progress=False)
    assert fit.verdict.status == "ok", fit.verdict
