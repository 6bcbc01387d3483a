"""Amortised samplers: exact evidence, invariances, the repair ladder, saving, and refusals."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import kstest, multivariate_normal

import quincunx as qx
import quincunx.distributions as dist
from quincunx.inference.amortized import novelty as novelties
from quincunx.inference.amortized.answers import Draws, draw
from quincunx.inference.amortized.encoder import Encoder, Scale
from quincunx.inference.amortized.given import given
from quincunx.inference.amortized.heads import Flow, Mixture
from quincunx.inference.amortized.inputs import Inputs, Layout, Rows
from quincunx.inference.amortized.network import build, skeleton
from quincunx.inference.amortized.repair import by_chains
from quincunx.inference.amortized.report import uniformity, weighted_ranks
from quincunx.inference.amortized.sources import source_of
from quincunx.inference.amortized.training import as_training, loss_of
from tests.scenarios import SCHOOLS, eight_schools

SHAPE, RATE, SPREAD = 3.0, 3.0, 2.0
LEAST, MOST = 4, 12


@qx.model
def regression(x, y):
    variance = qx.sample("variance", dist.InverseGamma(SHAPE, RATE))
    scale = jnp.sqrt(SPREAD * variance)
    w = qx.sample("w", dist.Normal(0, scale).expand([2]).to_event(1), dims=["term"])
    with qx.plate("row", x, y) as (x, y):
        qx.sample("y", dist.Normal(w[0] + w[1] * x, jnp.sqrt(variance)), obs=y)


def designs(key):
    return {"x": jax.random.normal(key, (MOST,)), "y": jnp.zeros(MOST)}


def evidence(x, y):
    """Exact log evidence of `regression`."""
    X = np.column_stack([np.ones_like(x), x])
    precision = np.eye(2) / SPREAD + X.T @ X
    mean = np.linalg.solve(precision, X.T @ y)
    shape, rate = SHAPE + len(y) / 2, RATE + 0.5 * (y @ y - mean @ precision @ mean)
    _, volume = np.linalg.slogdet(precision * SPREAD)
    gammas = gammaln(shape) - gammaln(SHAPE) - 0.5 * len(y) * np.log(2 * np.pi)
    return SHAPE * np.log(RATE) - shape * np.log(rate) + gammas - 0.5 * volume


def simulated(seed, rows):
    rng = np.random.default_rng(seed)
    variance = RATE / rng.gamma(SHAPE)
    w = rng.normal(size=2) * np.sqrt(SPREAD * variance)
    x = rng.normal(size=rows)
    return {"x": x, "y": w[0] + w[1] * x + np.sqrt(variance) * rng.normal(size=rows)}


DATA = [simulated(seed, rows) for seed, rows in enumerate((4, 5, 7, 9, 12, 12))]


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def amortized(told):
    training = qx.Training(steps=700, batch_size=64)
    options = {"rows": (LEAST, MOST), "width": 32, "progress": told.append}
    return qx.amortize(regression, designs, budget=training, **options)


@pytest.fixture(scope="module")
def pathwise():
    training = qx.Training(steps=700, batch_size=64)
    options = {"rows": (LEAST, MOST), "width": 32, "head": "paths", "progress": False}
    return qx.amortize(regression, designs, budget=training, **options)


@pytest.fixture(scope="module")
def fits(amortized):
    return [amortized(data, num_samples=4000, repair="weights") for data in DATA]


def test_evidence_is_that_of_the_model_for_every_number_of_rows(fits):
    for fit, data in zip(fits, DATA, strict=True):
        found = fit.log_evidence
        assert 0 < found.error < 0.1
        assert abs(found.value - evidence(**data)) < 5 * found.error


def test_weighted_draws_have_the_exact_posterior_mean(fits):
    data = DATA[4]
    X = np.column_stack([np.ones_like(data["x"]), data["x"]])
    mean = np.linalg.solve(np.eye(2) / SPREAD + X.T @ X, X.T @ data["y"])
    draws = fits[4].posterior["w"]
    error = draws.std(("chain", "draw")) / fits[4].importance.ess ** 0.5
    assert np.all(np.abs(draws.mean(("chain", "draw")) - mean) < 5 * error)


def moments(x, y):
    """Exact posterior means and standard deviations of `regression`'s weights."""
    X = np.column_stack([np.ones_like(x), x])
    precision = np.eye(2) / SPREAD + X.T @ X
    mean = np.linalg.solve(precision, X.T @ y)
    shape, rate = SHAPE + len(y) / 2, RATE + 0.5 * (y @ y - mean @ precision @ mean)
    return mean, np.sqrt(rate / (shape - 1) * np.diag(np.linalg.inv(precision)))


def test_fifty_posteriors_have_the_exact_means_and_standard_deviations(amortized):
    errors, shares = [], []
    for seed in range(100, 150):
        data = simulated(seed, LEAST + seed % (MOST - LEAST + 1))
        fit = amortized(data, num_samples=4000, repair="weights", key=seed)
        weight = np.exp(fit._draws.log_weight[0] - fit._draws.log_weight.max())
        w, weight = fit.tree["weighted_posterior"]["w"].values[0], weight / weight.sum()
        mean, sd = moments(**data)
        found = weight @ w
        spread = np.sqrt(weight @ (w - found) ** 2)
        errors.append(np.concatenate([(found - mean) / sd, spread / sd - 1]))
        shares.append(fit.importance.share)
    assert np.sqrt(np.mean(np.square(errors), axis=0)).max() < 0.05
    assert np.mean(shares) > 0.5


def test_the_fit_is_of_the_data_as_given(fits):
    fit = fits[1]
    assert fit.kind is qx.Kind.WEIGHTED
    assert fit.tree["observed_data"]["y"].shape == (5,)
    assert fit.log_likelihood()["y"].sizes["row"] == 5
    assert fit.predict()["y"].sizes["row"] == 5
    assert fit.posterior["w"].dims == ("chain", "draw", "term")
    attributes = fit.tree["posterior"].attrs
    assert attributes["answered_by"] == "weights"
    assert attributes["amortized_distance"] < 1
    stats = fit.tree["weighted_sample_stats"]
    z = fit._draws.z[0, 7]
    assert stats["lp"].values[0, 7] == pytest.approx(float(fit.density.log_density(jnp.asarray(z))))


def test_order_of_rows_and_padding_change_nothing(amortized):
    data = DATA[2]
    turned = {name: value[::-1].copy() for name, value in data.items()}
    one, other = (amortized(each, repair="weights") for each in (data, turned))
    np.testing.assert_allclose(one._draws.log_weight, other._draws.log_weight, atol=1e-3)
    np.testing.assert_allclose(one._draws.z, other._draws.z, atol=1e-3)


def test_the_encoder_does_not_see_beyond_the_mask():
    layout = Layout((Rows("row", (0,), 1, 6),), ())
    scales = ((Scale(jnp.zeros(2), jnp.ones(2)),), Scale(jnp.zeros(0), jnp.ones(0)))
    encoder = Encoder(layout, scales, 8, jax.random.key(0))
    rows = jax.random.normal(jax.random.key(1), (6, 2))
    fixed = jnp.zeros(0)

    def context(rows, count):
        return encoder(Inputs((rows,), (jnp.asarray(count),), fixed))

    changed = rows.at[4:].set(100.0)
    np.testing.assert_allclose(context(rows, 4), context(changed, 4))
    np.testing.assert_allclose(
        context(rows, 4), context(rows[jnp.array([2, 0, 3, 1, 5, 4])], 4), atol=1e-6
    )
    assert np.abs(context(rows, 6) - context(changed, 6)).max() > 1e-4
    assert np.abs(context(rows, 4) - context(rows, 5)).max() > 1e-4


@pytest.mark.parametrize(("head", "dim"), [(Mixture, 1), (Mixture, 3), (Flow, 3)])
def test_heads_draw_from_their_density(head, dim):
    """Log densities agree, the density integrates to one, and its scale is that of the draws."""
    density = head(dim, 6, jax.random.key(3))
    context = 0.5 * jax.random.normal(jax.random.key(4), (6,), jnp.float32)

    @eqx.filter_jit
    def run(density, key):
        z, log_q = density.draw(key, context, 4000)
        wide = 2.0 * jax.random.normal(jax.random.key(6), (20000, dim), jnp.float32)
        log_wide = jnp.sum(-0.5 * (wide / 2) ** 2 - jnp.log(2 * jnp.sqrt(2 * jnp.pi)), axis=1)
        at = jax.vmap(lambda z: density.log_prob(z, context, key))
        return z, log_q, at(z), jnp.exp(at(wide) - log_wide), wide

    z, log_q, again, weights, wide = map(np.asarray, run(density, jax.random.key(5)))
    np.testing.assert_allclose(log_q, again, rtol=1e-3, atol=1e-3)
    weights = weights.astype(float)
    error = weights.std() / len(weights) ** 0.5
    assert abs(weights.mean() - 1) < 5 * error < 0.5
    for column, drawn in zip(wide.T, z.T, strict=True):
        moment = weights * column
        error = np.hypot(moment.std() / len(moment) ** 0.5, drawn.std() / len(drawn) ** 0.5)
        assert abs(moment.mean() - drawn.mean()) < 5 * error


@eqx.filter_jit
def look_at_paths(head, context, key):
    """Ends of paths with log r, and points of a wide law with log r of paths back from them."""
    forwards, points, backwards = jax.random.split(key, 3)
    z, log_r = head.draw(forwards, context, 40000)
    wide = 3.0 * jax.random.normal(points, z.shape, z.dtype)
    log_wide = jnp.sum(-0.5 * (wide / 3) ** 2 - jnp.log(3 * jnp.sqrt(2 * jnp.pi)), axis=1)
    keys = jax.random.split(backwards, len(wide))
    back = jax.vmap(lambda z, key: head.log_prob(z, context, key))(wide, keys)
    return (
        z,
        log_r,
        wide,
        back - log_wide,
        jax.vmap(lambda z: head.base.log_prob(z, context, key))(z),
    )


@qx.model
def two_means(x, y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    nu = qx.sample("nu", dist.Normal(mu, 1))
    with qx.plate("row", x, y) as (x, y):
        qx.sample("x", dist.Normal(mu, 1), obs=x)
        qx.sample("y", dist.Normal(nu, 1), obs=y)


@pytest.fixture(scope="module")
def untrained():
    """Where data sets of `two_means` come from, and a path sampler with random networks."""
    example = {"x": np.zeros(3), "y": np.zeros(3)}
    source = source_of(two_means, example, (1, 3), jax.random.key(0), checked=False)
    rng = np.random.default_rng(0)

    def drawn(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype))

    def known(network):
        scales, process = network.encoder.row_scales[0], network.head.process
        zeros = (network.location, scales.centre, process.mean, process.log_sd)
        return *zeros, network.scale, scales.spread, process.log_size

    network = jax.tree.map(drawn, skeleton(source, "paths", 6))
    values = [
        jnp.asarray(value, leaf.dtype) + 0 * leaf
        for leaf, value in zip(known(network), (0, 0, 0, 0, 1, 1, -1.5), strict=True)
    ]
    ramp = jnp.linspace(0, -1.5, len(values[-1]), dtype=values[-1].dtype)
    values[-1] = values[-1] + ramp[:, None]
    return source, eqx.tree_at(known, network, values)


CONTEXT = jnp.asarray([0.4, -0.9, 0.2, 0.6, -0.3, 0.1], jnp.float32)


def test_paths_without_control_have_the_density_of_their_base(untrained):
    def last(head):
        control = head.process.control
        layers = (control.last, control.gates.layers[-1])
        return [part for layer in layers for part in (layer.weight, layer.bias)]

    head = eqx.tree_at(last, untrained[1].head, replace_fn=jnp.zeros_like)
    _, log_r, _, _, log_base = look_at_paths(head, CONTEXT, jax.random.key(5))
    np.testing.assert_allclose(log_r, log_base, atol=1e-3)


def test_paths_of_random_networks_weigh_exactly_forwards_and_backwards(untrained):
    """For paths drawn forwards, p / r has the mean one; drawn backwards, r integrates to one."""
    found = look_at_paths(untrained[1].head, CONTEXT, jax.random.key(5))
    z, log_r, wide, log_ratio, log_base = (np.asarray(part, float) for part in found)
    assert np.std(log_r - log_base) > 0.15
    centre, scale = z.mean(0), 0.7 * z.std(0)
    log_p = np.sum(-0.5 * ((z - centre) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi)), axis=1)
    for weight in (np.exp(log_p - log_r), np.exp(log_ratio)):
        error = weight.std() / len(weight) ** 0.5
        assert abs(weight.mean() - 1) < 4 * error < 0.1
    for power in (1, 2):
        moment = np.exp(log_ratio)[:, None] * wide**power
        spread = np.hypot(moment.std(0), (z**power).std(0)) / len(z) ** 0.5
        assert np.all(np.abs(moment.mean(0) - (z**power).mean(0)) < 5 * spread)


def test_the_mean_weight_of_an_untrained_path_sampler_is_the_evidence(untrained):
    source, network = untrained
    rng = np.random.default_rng(3)
    for rows in (1, 3):
        x, y = 0.5 * rng.normal(size=(2, rows))
        data = given(two_means, source, {"x": x, "y": y}, None)
        settings = (novelties.blank(6), data.held, data.counts, jax.random.key(rows), 40000)
        found = jax.device_get(draw(network, *settings))
        prior = np.array([[1.0, 1.0], [1.0, 2.0]])
        covariance = np.kron(prior, np.ones((rows, rows))) + np.eye(2 * rows)
        log_z = multivariate_normal(cov=covariance).logpdf(np.concatenate([x, y]))
        weight = np.exp(found.log_weight - log_z)
        error = weight.std() / len(weight) ** 0.5
        assert abs(weight.mean() - 1) < 4 * error < 0.1
        precision = np.linalg.inv(prior) + rows * np.eye(2)
        for name, exact in zip(
            ("mu", "nu"), np.linalg.solve(precision, [x.sum(), y.sum()]), strict=True
        ):
            off = weight * (found.values[name] - exact)
            assert abs(off.mean()) < 4 * off.std() / len(off) ** 0.5


@pytest.mark.slow
def test_trained_paths_answer_exactly_and_better_than_a_gaussian(pathwise):
    errors, shares, plain = [], [], []
    base = eqx.tree_at(lambda network: network.head, pathwise.network, pathwise.network.head.base)
    for seed in range(100, 120):
        data = simulated(seed, LEAST + seed % (MOST - LEAST + 1))
        fit = pathwise(data, num_samples=4000, repair="weights", key=seed)
        mean, sd = moments(**data)
        draws = fit.posterior["w"]
        error = draws.std(("chain", "draw")).values / fit.importance.ess**0.5
        assert np.all(np.abs(draws.mean(("chain", "draw")) - mean) < 5 * error)
        found = fit.log_evidence
        assert abs(found.value - evidence(**data)) < 5 * found.error < 0.5
        errors.append(draws.std(("chain", "draw")).values / sd - 1)
        shares.append(fit.importance.share)
        held = given(regression, pathwise._source, data, None)
        settings = (pathwise._novelty, held.held, held.counts, jax.random.key(seed), 4000)
        log_weight = jax.device_get(draw(base, *settings)).log_weight
        weight = np.exp(log_weight - log_weight.max())
        plain.append(weight.sum() ** 2 / np.sum(weight**2) / len(weight))
    assert np.sqrt(np.mean(np.square(errors))) < 0.05
    assert np.mean(shares) > 0.5
    assert np.mean(shares) > np.mean(plain)


@pytest.mark.slow
def test_trained_paths_are_saved_and_trained_further(pathwise, tmp_path):
    path = tmp_path / "paths.qx"
    pathwise.save(path)
    again = qx.load_amortized(path, regression, designs)
    one, two = (each(DATA[1], key=3, repair="weights")._draws for each in (pathwise, again))
    np.testing.assert_array_equal(one.z, two.z)
    np.testing.assert_array_equal(one.log_weight, two.log_weight)
    assert again._settings["head"] == "paths"
    further = again.train(qx.Training(steps=10, batch_size=64), progress=False)
    assert further.report.steps == 710
    assert further.report.rank_p > 1e-3


def test_training_lowers_the_held_out_loss_and_reports(amortized, told):
    assert amortized.losses[-1][0] == told[-1].done == told[-1].total == 700
    assert amortized.losses[-1][1] < amortized.losses[0][1] - 0.5
    assert told[-1].phase == "training"
    report = amortized.report
    assert report.steps == 700
    assert report.rank_p > 1e-3
    assert 0.2 < report.share[0] <= 1
    assert report.skipped == report.dropped == 0
    assert "log-likelihood ranks" in str(report)


def test_ranks_see_the_prior_in_place_of_the_posterior():
    rng = np.random.default_rng(1)
    ranks = {"posterior": [], "prior": []}
    for _ in range(300):
        mean = rng.normal()
        y = mean + rng.normal(size=8)
        center, sd = y.sum() / 9, 1 / 3
        level = lambda m, y=y: -0.5 * np.sum((y - np.asarray(m)[..., None]) ** 2, axis=-1)  # noqa: E731
        for name, draws in (
            ("posterior", center + sd * rng.normal(size=200)),
            ("prior", rng.normal(size=200)),
        ):
            levels = level(draws)[None]
            ranks[name].append(weighted_ranks(np.zeros_like(levels), levels, level([mean]), rng)[0])
    assert uniformity(np.array(ranks["posterior"])) > 1e-3
    assert uniformity(np.array(ranks["prior"])) < 1e-6


def test_weighted_ranks_are_uniform_for_draws_of_another_law():
    rng = np.random.default_rng(2)
    truth, draws = rng.normal(size=400), 1.5 * rng.normal(size=(400, 2000))
    log_weight = -0.5 * draws**2 + 0.5 * (draws / 1.5) ** 2
    assert kstest(weighted_ranks(log_weight, draws, truth, rng), "uniform").pvalue > 1e-3
    flat = weighted_ranks(np.zeros_like(draws), draws, truth, rng)
    assert kstest(flat, "uniform").pvalue < 1e-3


def test_data_unlike_the_simulated_ones_go_to_chains(amortized):
    data = {"x": DATA[3]["x"], "y": DATA[3]["y"] + 200.0}
    with pytest.warns(qx.ModelWarning, match="unlike those that the model simulates"):
        fit = amortized(data, num_samples=1000)
    attributes = fit.tree["posterior"].attrs
    assert attributes["answered_by"] == "nuts"
    assert attributes["amortized_distance"] > 1
    assert fit.kind is qx.Kind.EXACT
    X = np.column_stack([np.ones_like(data["x"]), data["x"]])
    mean = np.linalg.solve(np.eye(2) / SPREAD + X.T @ X, X.T @ data["y"])
    table = fit.summary(var_names=["w"], round_to="none")
    assert np.all(np.abs(table["mean"] - mean) < 5 * table["mcse_mean"])


LONG, NARROW = 30.0, 0.03
ROTATION = np.array([[0.8, -0.6], [0.6, 0.8]])


@qx.model
def valley(y):
    """A Gaussian whose principal axes are a thousand to one."""
    u = qx.sample("u", dist.Normal(0, LONG).expand([2]).to_event(1))
    along, across = jnp.asarray(ROTATION.T) @ u
    qx.sample("y", dist.Normal(jnp.stack([along, across]), jnp.array([LONG, NARROW])), obs=y)


def test_chains_take_their_mass_matrix_from_the_draws():
    rng = np.random.default_rng(0)
    scales = np.array([LONG / 2**0.5, NARROW])
    z = 1.5 * (rng.normal(size=(1000, 2)) * scales) @ ROTATION.T
    density = source_of(valley, {"y": np.zeros(2)}, None, jax.random.key(0), checked=False).density
    found = Draws(z, np.zeros(1000), np.zeros(1000), {"u": z}, np.asarray(0.5))
    data = {"y": np.zeros(2)}
    settings = (0.9, 1000, jax.random.key(1), 1000, None)
    with pytest.warns(qx.ModelWarning, match="Pareto k of the weights is 0.90"):
        fit = by_chains(valley, data, density, found, *settings)
    stats = fit.tree["sample_stats"]
    assert stats["n_steps"].mean() < 8
    assert fit.costs["warmup_gradients"] < 4 * 300 * 12
    axes = fit.posterior["u"].values.reshape(-1, 2) @ ROTATION
    np.testing.assert_allclose(axes.std(0), scales, rtol=0.15)
    assert np.all(np.abs(axes.mean(0)) < 5 * scales / 300**0.5)
    assert fit.posterior.sizes["draw"] == 250
    assert (
        json.loads(fit.tree["posterior"].attrs["settings"])
        == qx.NUTS(mass_matrix="dense").settings()
    )


@pytest.mark.slow
def test_middling_weights_make_more_draws_and_poor_ones_chains(amortized, monkeypatch):
    from quincunx.inference.amortized import repair, sampler

    ks = iter([0.6, 0.4, 0.6, 0.8])
    smoothed = sampler.pareto_smoothed

    def staged(log_weight):
        return smoothed(log_weight)[0], next(ks, 0.0)

    monkeypatch.setattr(sampler, "pareto_smoothed", staged)
    fit = amortized(DATA[0], num_samples=500)
    assert fit.posterior.sizes["draw"] == 4000
    assert fit.costs["evaluations"] == 4500
    starts = []

    def chains(*_, init, **__):
        starts.append(init)
        return fit

    monkeypatch.setattr(repair, "infer", chains)
    with pytest.warns(qx.ModelWarning, match="Pareto k of the weights is 0.80"):
        replaced = amortized(DATA[0], num_samples=500)
    assert replaced.tree["posterior"].attrs["answered_by"] == "nuts"
    assert starts[0]["w"].shape == (4, 2)
    assert len(np.unique(starts[0]["variance"])) == 4


def test_the_same_key_gives_the_same_draws_before_and_after_saving(amortized, tmp_path):
    path = tmp_path / "regression.qx"
    amortized.save(path)
    again = qx.load_amortized(path, regression, designs)
    one, two, other = (
        each(DATA[1], key=key, repair="weights")._draws
        for each, key in ((amortized, 3), (again, 3), (amortized, 4))
    )
    np.testing.assert_array_equal(one.z, two.z)
    np.testing.assert_array_equal(one.log_weight, two.log_weight)
    assert np.abs(one.z - other.z).max() > 0.1
    with pytest.raises(qx.QuincunxError, match="There is no"):
        qx.load_amortized(tmp_path / "nothing", regression, designs)
    path.write_bytes(b"something else\n")
    with pytest.raises(qx.QuincunxError, match="not written by"):
        qx.load_amortized(path, regression, designs)


def test_training_goes_on(amortized):
    further = amortized.train(qx.Training(simulations=640, batch_size=64), progress=False)
    assert further.report.steps == 710
    assert len(further.losses) > len(amortized.losses)
    assert amortized.report.steps == 700


def test_steps_that_are_not_finite_and_data_sets_that_are_not_are_left_out(amortized):
    source = amortized._source
    drawn = jax.jit(jax.vmap(source))(jax.random.split(jax.random.key(0), 4))
    inputs = jax.vmap(source.inputs)(drawn)
    z = drawn.z.at[1].set(jnp.inf)
    keys = jax.random.split(jax.random.key(1), 4)
    whole, out = eqx.filter_jit(loss_of)(amortized.network, z, inputs, keys)
    kept = jnp.array([0, 2, 3])
    parts = jax.tree.map(lambda leaf: leaf[kept], (drawn.z, inputs, keys))
    assert int(out) == 1
    assert float(whole) == pytest.approx(
        float(eqx.filter_jit(loss_of)(amortized.network, *parts)[0]), rel=1e-5
    )


def test_rows_of_an_example_are_drawn_anew_where_their_number_varies():
    example = {"x": np.array([1.0, 2.0, 3.0]), "y": np.zeros(3)}
    source = source_of(regression, example, (2, 8), jax.random.key(0), checked=False)
    drawn = jax.device_get(jax.jit(jax.vmap(source))(jax.random.split(jax.random.key(1), 64)))
    x, y = drawn.leaves
    assert x.shape == y.shape == (64, 8)
    assert set(np.unique(x)) == {1.0, 2.0, 3.0}
    assert set(np.unique(drawn.counts[0])) == set(range(2, 9))
    kept = source_of(regression, example, None, jax.random.key(0), checked=False)
    drawn = jax.device_get(jax.jit(lambda key: kept(key))(jax.random.key(1)))
    np.testing.assert_array_equal(drawn.leaves[0], example["x"])


@pytest.mark.slow
def test_rows_with_parameters_of_their_own_are_read_in_their_order():
    source = source_of(eight_schools, SCHOOLS, None, jax.random.key(0), checked=False)
    assert source.layout == Layout((), (0, 1))
    drawn = jax.device_get(jax.jit(lambda key: source(key))(jax.random.key(1)))
    inputs = source.inputs(drawn)
    np.testing.assert_allclose(inputs.fixed[:8], SCHOOLS["sigma"])
    np.testing.assert_allclose(inputs.fixed[8:], drawn.leaves[1])
    assert np.abs(drawn.leaves[1] - SCHOOLS["y"]).min() > 1e-3


@qx.model
def direction(y):
    u = qx.sample("u", dist.ProjectedNormal(jnp.zeros(3)))
    qx.sample("y", dist.Normal(u, 1.0).to_event(1), obs=y)


@pytest.mark.slow
def test_unit_vectors_have_the_lengths_that_their_density_has():
    source = source_of(direction, {"y": np.zeros(3)}, None, jax.random.key(0), checked=False)
    drawn = jax.jit(jax.vmap(source))(jax.random.split(jax.random.key(1), 2000))
    square = np.sum(np.asarray(drawn.z) ** 2, axis=1)
    assert abs(square.mean() - 3) < 5 * (6 / 2000) ** 0.5


def test_data_of_another_form_are_refused(amortized):
    x = np.zeros(13)
    with pytest.raises(
        qx.ModelError, match="has 13 rows, but the sampler was trained on .* 4 to 12"
    ):
        amortized({"x": x, "y": x})
    with pytest.raises(qx.MethodError, match="Unknown repair 'never'"):
        amortized(DATA[0], repair="never")
    with pytest.raises(qx.MethodError, match="at least 5"):
        amortized(DATA[0], num_samples=2)
    with pytest.raises(
        qx.MethodError, match="num_simulations=0` must be an integer of at least 10"
    ):
        amortized.validate(0)
    hole = {"x": np.zeros(5), "y": np.array([0.0, np.nan, 1.0, np.inf, 0.0])}
    with pytest.raises(qx.ModelError, match="'y' has 2 entries that are NaN or infinite"):
        amortized(hole, repair="weights")


def test_simulators_that_do_not_follow_their_key_are_refused():
    rng = np.random.default_rng(0)

    def simulate(key):
        return {"x": rng.normal(size=5), "y": np.zeros(5)}

    with pytest.raises(qx.MethodError, match="different data for the same key"):
        qx.amortize(regression, simulate, budget=1, progress=False)


@pytest.mark.slow
def test_data_sets_that_are_mostly_not_finite_are_refused():
    example = {"x": np.array([0.0, 1.0, np.inf]), "y": np.zeros(3)}
    source = source_of(regression, example, None, jax.random.key(0), checked=False)
    with pytest.raises(qx.ModelError, match="512 data sets .* only 0 are finite"):
        build(source, "mixture", 8, jax.random.key(0))


@qx.model
def improper(y):
    mu = qx.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with qx.plate("row", y) as y:
        qx.sample("y", dist.Normal(mu, 1), obs=y)


@qx.model
def tilted(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    qx.factor("tilt", -jnp.abs(mu))
    with qx.plate("row", y) as y:
        qx.sample("y", dist.Normal(mu, 1), obs=y)


@qx.model
def logged(y):
    mu = qx.sample("mu", dist.Normal(0, 1))
    qx.sample("y", dist.Normal(mu, 1), obs=jnp.log(y))


@qx.model
def each_its_own(y):
    with qx.plate("row", y) as y:
        mu = qx.sample("mu", dist.Normal(0, 1))
        qx.sample("y", dist.Normal(mu, 1), obs=y)


@qx.model
def counted(y):
    mu = qx.sample("mu", dist.Normal(0, 1 / len(y)))
    with qx.plate("row", y) as y:
        qx.sample("y", dist.Normal(mu, 1), obs=y)


@pytest.mark.parametrize(
    ("model", "rows", "message"),
    [
        (improper, None, "improper prior"),
        (tilted, None, "has a factor"),
        (logged, None, "not an argument as it stands"),
        (each_its_own, (2, 5), "lies in plate 'row'"),
        (counted, (2, 5), "prior of model `counted` depends on the rows"),
    ],
)
def test_models_that_cannot_be_amortised_are_refused(model, rows, message):
    with pytest.raises(qx.ModelError, match=message):
        qx.amortize(model, {"y": np.ones(5)}, rows=rows, budget=1, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": (5, 2)}, "least and the most rows"),
        ({"rows": {"raw": 3}}, "Unknown data plate 'raw'"),
        ({"budget": True}, "number of steps"),
        ({"width": 1}, "width"),
        ({"head": "spline"}, "Unknown head 'spline'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    settings = {"budget": 1, **settings}
    with pytest.raises(qx.MethodError, match=message):
        qx.amortize(regression, {"x": np.ones(5), "y": np.ones(5)}, progress=False, **settings)


def test_a_training_needs_a_limit_and_ends_with_the_first():
    with pytest.raises(qx.MethodError, match="needs a limit"):
        qx.Training()
    with pytest.raises(qx.MethodError, match="positive"):
        qx.Training(seconds=-1.0)
    with pytest.raises(qx.MethodError, match="number of steps"):
        as_training(2.5)
    training = qx.Training(steps=100, simulations=640, batch_size=64)
    assert training.remaining(0) == 10
    assert training.share(5, 3.0) == 0.5
    assert qx.Training(seconds=10).share(5, 3.0) == 0.3
    assert as_training(40) == qx.Training(steps=40)
