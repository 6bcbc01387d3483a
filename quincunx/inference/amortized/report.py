r"""How good a trained sampler is: its answers for simulated data sets, whose parameters are known.

The rank of the true parameters' log likelihood log p(y | z) among those of posterior draws is
uniform if the draws are of the posterior. Unlike ranks of single parameters it sees an answer that
ignores the data or part of them. With weights w_i, the rank is

    r = sum_i w_i 1{ log p(y | z_i) < log p(y | z) } / sum_i w_i,

ties counting at random. Ten equal bins of r are compared with the uniform law by a chi-square test.

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv:1804.06788; Modrak, Moon, Kim,
Buerkner, Huurre, Faltejskova, Gelman and Vehtari (2023), Simulation-based calibration checking for
Bayesian computation: the choice of test quantities shapes sensitivity, Bayesian Analysis.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array
from rich.console import Console
from scipy import stats

from quincunx.inference.amortized import novelty as novelties
from quincunx.inference.amortized.network import Network
from quincunx.inference.amortized.novelty import Novelty
from quincunx.inference.amortized.sources import Source
from quincunx.inference.diagnostics.importance import effective_size, pareto_smoothed
from quincunx.inference.diagnostics.verdict import Finding, Verdict

_DRAWS, _BINS = 512, 10
_POOR = 0.7  # Pareto k beyond which an answer is replaced
_OFTEN, _ALMOST_ALWAYS = 0.05, 0.5  # shares of such answers
_WRONG = 1e-3  # p-value


class Report(NamedTuple):
    """A sampler on simulated data sets.

    Attributes:
        steps: of the training.
        loss: the held-out loss, E[-log q(z | data)] in nats; for paths its bound from above.
        simulations: data sets looked at.
        rank_p: p-value of the log likelihood's ranks, with weights.
        raw_rank_p: the same without weights: of the network's own draws.
        pareto_k: median and 95 % quantile of Pareto k.
        poor: share of data sets whose k is not below 0.7, which NUTS answers.
        share: median and 5 % quantile of the effective sample size, as a share of the draws.
        unlike: share of data sets taken as unlike simulated ones.
        skipped: steps of the training that were left out because they were not finite.
        dropped: simulated data sets that were left out for the same reason.
        seconds: time of the training, NaN where it is not known.
        compile_seconds: time that compiling it took.
        outcome: why training ended before its plan, empty where it did not.
    """

    steps: int
    loss: float
    simulations: int
    rank_p: float
    raw_rank_p: float
    pareto_k: tuple[float, float]
    poor: float
    share: tuple[float, float]
    unlike: float
    skipped: int
    dropped: int
    seconds: float = float("nan")
    compile_seconds: float = float("nan")
    outcome: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the sampler is of use, why not, and what to do."""
        longer = "Train longer (`amortized.train(budget)`), or with a larger `width`."
        findings = []
        if not self.rank_p > _WRONG and self.poor < _OFTEN:
            reason = f"Ranks of the log likelihood are not uniform (p = {self.rank_p:.1g}) though "
            advice = "Check that the model run forward draws what its density says."
            findings.append(Finding("failed", reason + "the weights look good.", advice))
        if self.poor >= _OFTEN:
            reason = (
                f"For {100 * self.poor:.0f} % of the data sets Pareto k is not below 0.7: they "
            )
            reason += "take NUTS, seconds in place of milliseconds."
            status = "failed" if self.poor >= _ALMOST_ALWAYS else "suspect"
            findings.append(Finding(status, reason, longer))
        if self.skipped:
            reason = f"{self.skipped} steps of the training were not finite and left out."
            advice = "Look for NaN in the model, run forward from its priors."
            findings.append(Finding("suspect", reason, advice))
        if self.dropped:
            reason = f"{self.dropped} simulated data sets were not finite and left out."
            advice = "Use priors with less mass at the ends of their supports."
            findings.append(Finding("suspect", reason, advice))
        return Verdict.of(findings, self.outcome)

    def __str__(self) -> str:
        k, share = self.pareto_k, self.share
        lines = [
            f"amortized sampler after {self.steps} steps: held-out loss {self.loss:.3f} nats",
            f"on {self.simulations} simulated data sets:",
            f"  log-likelihood ranks    p = {self.rank_p:.2g} with weights, "
            f"{self.raw_rank_p:.2g} without",
            f"  Pareto k                median {k[0]:.2f}, 95 % {k[1]:.2f}, "
            f"not below 0.7: {100 * self.poor:.1f} %",
            f"  effective share         median {share[0]:.2f}, 5 % {share[1]:.2f}",
            f"  unlike simulated ones   {100 * self.unlike:.1f} %",
        ]
        return "\n".join(lines) + "\n" + str(self.verdict)

    def show(self) -> None:
        """Print it to the terminal."""
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(str(self))


class Seen(NamedTuple):
    """What is looked at for each data set.

    Attributes:
        log_weight: of the draws.
        levels: log likelihoods of the draws.
        truth: log likelihood of the parameters that the data were drawn with.
        distance: of the data from simulated ones.
    """

    log_weight: np.ndarray
    levels: np.ndarray
    truth: np.ndarray
    distance: np.ndarray


def weighted_ranks(
    log_weight: np.ndarray, levels: np.ndarray, truth: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Ranks in (0, 1) of true values among weighted draws.

    Args:
        log_weight: `(simulation, draw)`.
        levels: the draws' values, `(simulation, draw)`.
        truth: the true values, `(simulation,)`.
        rng: for ties.
    """
    weight = np.exp(log_weight - np.max(log_weight, axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    below = np.sum(weight * (levels < truth[:, None]), axis=1)
    same = np.sum(weight * (levels == truth[:, None]), axis=1)
    return below + same * rng.uniform(size=len(truth))


def uniformity(ranks: np.ndarray) -> float:
    """P-value of the hypothesis that ranks in (0, 1) are uniform."""
    bins = np.clip((ranks * _BINS).astype(int), 0, _BINS - 1)
    return float(stats.chisquare(np.bincount(bins, minlength=_BINS)).pvalue)


@eqx.filter_jit
def _look(source: Source, network: Network, novelty: Novelty, keys: Array, n: int) -> Seen:
    def one(key: Array) -> Seen:
        simulating, drawing = jax.random.split(key)
        data = source(simulating)
        density, inputs = source.posterior(data), source.inputs(data)
        context = network.encoder(inputs)
        z, log_q = network.draw(drawing, context, n)
        prior, levels = jax.vmap(density.log_terms)(z)
        distance = novelties.unlike(novelty, network, context, inputs)
        truth = density.log_likelihood(data.z)
        return Seen(prior + levels - log_q, levels, truth, distance)  # pyright: ignore

    return jax.lax.map(one, keys)


def examine(
    source: Source,
    network: Network,
    novelty: Novelty,
    key: Array,
    simulations: int,
    steps: int,
    loss: float,
    left_out: tuple[int, int],
) -> Report:
    """Look at the answers for simulated data sets.

    Args:
        source: where they come from.
        network: the trained network.
        novelty: of the network.
        key: of the simulations and of ties.
        simulations: how many.
        steps: of the training.
        loss: the held-out loss.
        left_out: steps and data sets that the training left out.
    """
    seen = jax.device_get(
        _look(source, network, novelty, jax.random.split(key, simulations), _DRAWS)
    )
    smoothed, ks = zip(*map(pareto_smoothed, seen.log_weight), strict=True)
    ks = np.nan_to_num(np.array(ks), nan=np.inf, neginf=-1.0)
    share = np.array([effective_size(row) for row in seen.log_weight]) / _DRAWS
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    whole = np.stack(smoothed)
    whole[~np.isfinite(whole).any(axis=1)] = 0.0  # no draw has a weight: all count alike
    ranks = weighted_ranks(whole, seen.levels, seen.truth, rng)
    raw = weighted_ranks(np.zeros_like(whole), seen.levels, seen.truth, rng)
    return Report(
        steps=steps,
        loss=loss,
        simulations=simulations,
        rank_p=uniformity(ranks),
        raw_rank_p=uniformity(raw),
        pareto_k=(float(np.median(ks)), float(np.quantile(ks, 0.95))),
        poor=float(np.mean(~(ks < _POOR))),
        share=(float(np.median(share)), float(np.quantile(share, 0.05))),
        unlike=float(np.mean(seen.distance > 1)),
        skipped=left_out[0],
        dropped=left_out[1],
    )
