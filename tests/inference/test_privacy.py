"""Nothing leaves an agent but what its method names: every collective's operands are looked at."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

import quincunx as qx
from quincunx.engine import sharding
from quincunx.inference.distributed.network import Prepared, Tuning
from quincunx.inference.distributed.survey import TICKS, Survey, _search, total
from tests.laws.networks import DIM, data_of, regression

STEPS, AGENTS = 3, 5
EXCHANGES = ("psum", "pmax", "ppermute", "all_gather", "all_to_all", "pmin", "reduce_scatter")
METHODS = {
    "admm": qx.ADMM(agents=AGENTS, graph="ring", steps=STEPS),
    "admm_complete": qx.ADMM(agents=AGENTS, noise="shared", steps=STEPS),
    "gossip": qx.DecentralizedSGLD(agents=AGENTS, graph="star", steps=STEPS),
    "gossip_without_tracking": qx.DecentralizedSGLD(agents=AGENTS, tracking=False, steps=STEPS),
    "federated": qx.FederatedSGLD(agents=AGENTS, steps=STEPS, local_steps=2),
    "consensus": qx.Consensus(agents=AGENTS),
}


def inside(parameters):
    for value in parameters.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def exchanges(jaxpr, times=1):
    """Each exchange: its primitive, the shape and size of an operand, who sends, how often."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name.startswith(EXCHANGES):
            moves = equation.params.get("perm")
            senders = AGENTS if moves is None else sum(a != b for a, b in moves)
            for operand in equation.invars:
                yield name, operand.aval.shape, operand.aval.dtype.itemsize, senders, times
        elif name == "while":
            found = list(exchanges(equation.params["body_jaxpr"].jaxpr, times * STEPS))
            assert not list(exchanges(equation.params["cond_jaxpr"].jaxpr))
            yield from found
        else:
            length = equation.params["length"] if name == "scan" else 1
            for part in inside(equation.params):
                yield from exchanges(part, times * length)


def local_part(method):
    return sharding.local(method.share_out(qx.compile(regression, data_of(AGENTS))))


def traced(fn, *arguments):
    return jax.make_jaxpr(fn, axis_env=[("agents", AGENTS)])(*arguments).jaxpr


@pytest.mark.parametrize("name", METHODS)
def test_a_transition_sends_what_its_method_says(name):
    method = METHODS[name]
    own, z = local_part(method), jnp.ones(DIM)
    tuning = Tuning(jnp.asarray(STEPS, jnp.int32), jnp.ones(()), z, jnp.eye(DIM))

    def transit(own, z, key):
        return method.transition(own, method.start(own, z), tuning, key)

    sent = list(exchanges(traced(transit, own, z, jax.random.key(0))))
    assert {shape for _, shape, *_ in sent} <= {(DIM,), (2,), ()}
    density = qx.compile(regression, data_of(AGENTS))
    said = method.traffic(density, Prepared(tuning, ()))
    size = lambda shape: DIM if shape == (DIM,) else 2 if shape else 1  # noqa: E731
    assert said.rounds == sum(times for *_, times in sent)
    assert said.sent == sum(
        size(shape) * item * senders * times for _, shape, item, senders, times in sent
    )


@pytest.mark.parametrize("name", METHODS)
def test_at_the_start_sums_of_derivatives_leave(name):
    method = METHODS[name]
    own, z = local_part(method), jnp.ones(DIM)
    found = Survey(z, jnp.eye(DIM), *jnp.ones((3,)))
    sent = list(exchanges(traced(lambda own: _search(own, z, total), own)))
    assert {(kind.startswith("psum"), shape) for kind, shape, *_ in sent} == {
        (True, ()),
        (True, (DIM,)),
        (True, (DIM, DIM)),
    }
    assert sum(times for *_, times in sent) == 3 * TICKS
    kept = list(exchanges(traced(lambda own: method.surveyed(own, found), own)))
    assert {shape for _, shape, *_ in kept} <= {(DIM,), (DIM, DIM)}
    assert len(kept) <= 2


class Leaky(qx.DecentralizedSGLD):
    """Broken: the agents' rows go round."""

    def transition(self, density, agent, tuning, key):
        agent, report = super().transition(density, agent, tuning, key)
        rows = jax.lax.psum(density.leaves[0], "agents")
        return agent, report._replace(draw=report.draw + 0.0 * rows[0])


def test_a_leak_is_found_out():
    method = Leaky(agents=AGENTS, steps=STEPS)
    own, z = local_part(method), jnp.ones(DIM)
    tuning = Tuning(jnp.asarray(STEPS, jnp.int32), jnp.ones(()), z, jnp.eye(DIM))
    run = lambda own, key: method.transition(own, method.start(own, z), tuning, key)  # noqa: E731
    sent = exchanges(traced(run, own, jax.random.key(0)))
    assert not {shape for _, shape, *_ in sent} <= {(DIM,), (2,), ()}
