r"""Posteriors of many data sets from one trained network, each weighed against the true density.

For data y, draws z_i from the network's q(z | y) have the weights

    w_i = p(z_i, y) / q(z_i | y),    evidence ~ mean w,

with p the model's density, Jacobians of the unconstrained space included. Their Pareto k says what
is to be done:

    below 0.5    the weighted draws are the answer;
    0.5 to 0.7   more of them are made;
    above        four short chains of NUTS, started at draws resampled by their weights, with
                 the draws' covariance as first inverse mass matrix.

NUTS also runs for data that are unlike those that the network was trained on. Where q is of paths
to z, the weights are those of whole paths.

Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25:72;
Dax, Green, Gair, Purrer, Wildberger, Macke, Buonanno and Schoelkopf (2023), Neural importance
sampling for rapid and reliable gravitational-wave inference, Physical Review Letters 130:171403.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from quincunx.engine.errors import ModelError
from quincunx.inference import learned
from quincunx.inference.amortized import novelty as novelties
from quincunx.inference.amortized.answers import GOOD, POOR, Conditional, Draws, draw, notes
from quincunx.inference.amortized.given import Given, given
from quincunx.inference.amortized.network import HEADS, Network, build, skeleton
from quincunx.inference.amortized.novelty import Novelty
from quincunx.inference.amortized.repair import by_chains
from quincunx.inference.amortized.report import Report, examine
from quincunx.inference.amortized.sources import Simulate, Source, source_of
from quincunx.inference.amortized.training import (
    Learner,
    Outcome,
    Training,
    as_training,
    begin,
    train,
)
from quincunx.inference.diagnostics.importance import pareto_smoothed
from quincunx.inference.fit import Fit
from quincunx.inference.method import as_integer, as_key, one_of
from quincunx.inference.progress import Report as Show
from quincunx.inference.progress import reporting
from quincunx.inference.stopping import interruptible

_MORE = 4000  # draws where weights are middling
_FORMAT = "quincunx amortized 1"
REPAIRS = ("auto", "weights")


class Amortized:
    """A sampler for a model, whatever its data: call it with a data set.

    Attributes:
        model: the model.
        network: the trained network.
        losses: held-out losses, `(steps, E[-log q(z | data)])`, in nats; bounds of it from above
            where the head is of paths.
        report: how good it is on simulated data sets.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        source: Source,
        network: Network,
        novelty: Novelty,
        learner: Learner,
        settings: Mapping[str, Any],
        report: Report | None,
        losses: tuple[tuple[int, float], ...] = (),
    ) -> None:
        self.model = model
        self.network = network
        self.losses = losses
        self._source = source
        self._novelty = novelty
        self._learner = learner
        self._settings = dict(settings)
        self._report = report

    @property
    def report(self) -> Report:
        """How good it is on simulated data sets; made when the training ended."""
        if self._report is None:
            self._report = self.validate()
        return self._report

    def __call__(
        self,
        data: Mapping[str, Any],
        *,
        num_samples: int = 1000,
        key: int | Array = 0,
        repair: str = "auto",
        coords: Mapping[str, Any] | None = None,
    ) -> Fit:
        """The posterior given a data set.

        Args:
            data: the model's arguments, of the shapes that the sampler was trained on; the number
                of rows may lie anywhere in the range that it was given.
            num_samples: draws.
            key: an integer seed or a JAX key.
            repair: 'auto' to make more draws, or to run NUTS, where the weights are poor or the
                data unlike the simulated ones; 'weights' to weigh and no more.
            coords: labels by dimension name.

        Returns:
            The fit: weighted draws with evidence, effective size and Pareto k, or where NUTS ran,
            chains. Attributes of its posterior say which (`answered_by`) and why
            (`amortized_pareto_k`, `amortized_distance`).

        Raises:
            ModelError: the data do not have the form that the sampler was trained on.
        """
        one_of("repair", repair, REPAIRS, "Amortized")
        num_samples = as_integer("num_samples", num_samples, 5, ": fewer weights say nothing")
        began = time.perf_counter()
        key = as_key(key)
        given_data = given(self.model, self._source, data, coords)
        found = self._draw(given_data, key, num_samples)
        k = pareto_smoothed(found.log_weight)[1]
        spent = num_samples
        if repair == "auto":
            beyond = not found.distance <= 1
            if GOOD <= k < POOR and not beyond:
                found = self._draw(given_data, key, max(_MORE, num_samples))
                k = pareto_smoothed(found.log_weight)[1]
                spent += len(found.log_q)
            if beyond or not k < POOR:
                settings = (found, float(k), num_samples, key, spent, coords)
                return by_chains(self.model, data, self._source.density, *settings)
        costs = {
            "gradients": 0,
            "evaluations": spent,
            "warmup_gradients": 0,
            "warmup_evaluations": 0,
            "data_passes": float(spent),
            "compile_seconds": 0.0,
            "sample_seconds": time.perf_counter() - began,
        }
        values = {name: value[None] for name, value in found.values.items()}
        return Fit.weighted(
            given_data.density,
            found.z,
            found.log_weight,
            method=Conditional(**self._settings),
            costs=costs,
            key=key,
            made=(values, found.log_density[None]),
            notes=notes("weights", float(k), float(found.distance)),
        )

    def train(
        self,
        budget: int | Training,
        *,
        key: int | Array = 1,
        progress: bool | Show = True,
    ) -> Amortized:
        """A sampler that was trained further; this one stays as it is.

        Args:
            budget: a number of steps, or a `Training`.
            key: of the further simulations.
            progress: show progress on a terminal and print the report; or a function that is
                called with a `Progress` after each chunk of steps.
        """
        settings = {name: self._settings[name] for name in ("head", "width")}
        parts = (self.model, self._source, self.network, self._learner, settings)
        return _trained(*parts, as_training(budget), as_key(key), progress, self.losses)

    def validate(self, num_simulations: int = 300, key: int | Array = 2) -> Report:
        """Look at the answers for simulated data sets, whose parameters are known.

        Args:
            num_simulations: data sets, at least 10.
            key: an integer seed or a JAX key.

        Raises:
            MethodError: a wrong `num_simulations`.
        """
        why = ", the number of bins of the ranks"
        num_simulations = as_integer("num_simulations", num_simulations, 10, why)
        steps = int(self._learner.steps)
        loss = self.losses[-1][1] if self.losses else float("nan")
        counted = (int(self._learner.skipped), int(self._learner.dropped))
        return examine(
            self._source, self.network, self._novelty, as_key(key), num_simulations, steps, loss,
            counted,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the sampler to a file, to be read with `quincunx.load_amortized`.

        The model is not written: draws are weighed anew against the one it is loaded with.
        """
        program = self._source.density.program
        rows = {rows.plate: [rows.least, rows.most] for rows in self._source.layout.sets}
        told = {"settings": self._settings, "rows": rows, "losses": self.losses}
        arrays = (self.network, self._novelty, self._learner)
        learned.write(path, _FORMAT, program, told, arrays)

    def __repr__(self) -> str:
        sets = ", ".join(
            f"{rows.least} to {rows.most} rows of '{rows.plate}'" if rows.least < rows.most
            else f"{rows.most} rows of '{rows.plate}'" for rows in self._source.layout.sets
        )  # fmt: skip
        name, steps = self._source.density.program.name, self._settings["steps"]
        return f"<Amortized sampler of {name}: {steps} steps{', ' + sets if sets else ''}>"

    def _draw(self, data: Given, key: Array, n: int) -> Draws:
        """Draws on the host."""
        settings = (data.held, data.counts, key, n)
        return jax.device_get(draw(self.network, self._novelty, *settings))


def amortize(
    model: Callable[..., Any],
    simulate: Mapping[str, Any] | Simulate,
    *,
    rows: Any = None,
    budget: int | Training = 8000,
    head: str = "auto",
    width: int = 64,
    key: int | Array = 0,
    progress: bool | Show = True,
) -> Amortized:
    """Train a sampler that answers for any data of a model, on data simulated from the model.

    Args:
        model: a Quincunx or NumPyro model with proper priors.
        simulate: what simulated data sets are made of: an example of the data, as a dict of the
            model's arguments; or a traceable function of a JAX key that returns such a dict anew
            for each data set. The model overwrites what is observed, so that only its shape
            matters. With an example, other arrays stay as they are, or where the number of rows
            varies, rows are drawn from it with replacement.
        rows: least and most rows of a data set, such as `(5, 40)`; by plate name where the model
            has several data plates. `None` for as many as `simulate` has.
        budget: steps of training, or a `Training`.
        head: the conditional density: 'mixture' of Gaussians, coupling 'flow', diffusion 'paths',
            or 'auto': a mixture for up to 12 parameters, a flow beyond.
        width: of the networks' layers.
        key: an integer seed or a JAX key.
        progress: show progress on a terminal and print the report; or a function that is called
            with a `Progress` after each chunk of steps.

    Returns:
        The sampler. On Ctrl-C or SIGTERM training ends there.

    Raises:
        ModelError: the model cannot be simulated from, or its rows cannot vary.
        MethodError: a setting is wrong.
    """
    training = as_training(budget)
    width = as_integer("width", width, 4)
    one_of("head", head, HEADS, "amortize")
    checking, building, learning = jax.random.split(as_key(key), 3)
    source = source_of(model, simulate, rows, checking)
    network = build(source, head, width, building)
    settings = {"head": head, "width": width}
    parts = (model, source, network, begin(network), settings)
    return _trained(*parts, training, learning, progress, ())


def _trained(
    model: Callable[..., Any],
    source: Source,
    network: Network,
    learner: Learner,
    settings: Mapping[str, Any],
    training: Training,
    key: Array,
    progress: bool | Show,  # noqa: FBT001
    losses: tuple[tuple[int, float], ...],
) -> Amortized:
    learning, meeting = jax.random.split(key)
    title = f"amortized on {source.density.program.name}"
    with reporting(title, progress=progress) as show, interruptible() as interrupted:
        parts = (source, network, learner, training, learning)
        outcome: Outcome = train(*parts, report=show, interrupted=interrupted)
    novelty = novelties.learn(source, outcome.network, meeting)
    settings = {**settings, "steps": int(outcome.learner.steps)}
    made = Amortized(
        model, source, outcome.network, novelty, outcome.learner, settings, None,
        (*losses, *outcome.losses),
    )  # fmt: skip
    made._report = made.validate()._replace(
        seconds=outcome.seconds, compile_seconds=outcome.compile_seconds, outcome=outcome.stopped
    )
    if progress is True:
        made._report.show()
    return made


def load_amortized(
    path: str | Path, model: Callable[..., Any], simulate: Mapping[str, Any] | Simulate
) -> Amortized:
    """Read a sampler that `Amortized.save` wrote.

    Args:
        path: the file.
        model: the model, which may differ from the one it was trained on in all but its latent
            sites and arguments: weights are of the model given here.
        simulate: as in `amortize`.

    Raises:
        QuincunxError: no such file, or not a sampler of ours.
        ModelError: the model has other latent sites, or the data another form.
    """
    with learned.opened(path, _FORMAT, "Amortized.save") as (file, header):
        rows = header["rows"] or None
        source = source_of(model, simulate, rows, jax.random.key(0), checked=False)
        learned.check_sites(header, source.density.program, path)
        settings = header["settings"]
        network = skeleton(source, settings["head"], settings["width"])
        like = (network, novelties.blank(settings["width"]), eqx.filter_eval_shape(begin, network))
        try:
            network, novelty, learner = eqx.tree_deserialise_leaves(file, like)
        except (RuntimeError, ValueError) as error:
            message = f"The sampler in '{path}' was trained on data of another form: "
            raise ModelError(
                message + f"`simulate` must have the same shapes. ({error})"
            ) from error
    losses = tuple((int(steps), float(loss)) for steps, loss in header["losses"])
    return Amortized(model, source, network, novelty, learner, settings, None, losses)
