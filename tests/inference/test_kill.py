"""Runs that are killed, for real, and resumed in another process: nothing changes, nothing is lost.

Moments of kills are random: a time after a random transition, or one of the moments while files are
written, at which the victim stays until the signal comes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RUN = {"num_warmup": 200, "num_samples": 400, "num_chains": 4, "key": 11, "keep_warmup": True}
TOTAL = 600
DEVICES = {"vectorized": 1, "sequential": 1, "parallel": 4}
KERNELS = ("nuts", "random_walk", "polar_slice")
POINTS = 12  # half, whole, renamed; of draws, state, previous manifest, manifest
LIMIT = 300


class Kill(NamedTuple):
    """When a victim dies.

    Attributes:
        after: the transitions that it has done at least.
        point: the moment of the first checkpoint from then on; `None` for no particular one.
        delay: seconds after that.
    """

    after: int
    point: int | None
    delay: float


class Life(NamedTuple):
    """What a victim said: transitions at its start, and after each chunk and checkpoint."""

    start: int
    chunks: list[int]
    saved: list[int]
    stalled: bool
    code: int


@contextlib.contextmanager
def victim(order, errors):
    """A process that runs `victim.py`, ended with the block whatever happens."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    devices = DEVICES[order["layout"]]
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "tests.inference.victim", json.dumps(order)]
    with (
        open(errors, "w") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        watchdog = threading.Timer(LIMIT, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def live(order, errors, kill=None):
    """Run a victim to its end, or to the moment at which it is to be killed."""
    start, said, killer = 0, {"chunk": [], "saved": [], "stalled": []}, None
    if kill is not None and kill.point is not None:
        order = {**order, "after": kill.after, "point": kill.point}
    with victim(order, errors) as process:
        for line in process.stdout:
            word, number = line.split()
            if word == "resumed":
                start = int(number)
                continue
            said[word].append(int(number))
            if kill is None or killer is not None:
                continue
            if word == ("chunk" if kill.point is None else "stalled") and int(number) >= kill.after:
                killer = threading.Timer(kill.delay, process.kill)
                killer.start()
        process.wait()
    if killer is not None:
        killer.cancel()
    return Life(start, said["chunk"], said["saved"], bool(said["stalled"]), process.returncode)


def order_of(kernel, layout, out, *, moments=False):
    """What a victim is told."""
    return {"kernel": kernel, "layout": layout, "run": RUN, "out": str(out), "moments": moments}


def reference(kernel, layout, folder, *, moments=False):
    """What an uninterrupted run gives, without checkpoints."""
    out, errors = folder / "whole.npz", folder / "whole.log"
    with victim(order_of(kernel, layout, out, moments=moments), errors) as run:
        run.communicate()
    assert run.returncode == 0, errors.read_text()
    return dict(np.load(out))


def killed(kernel, layout, kills, folder, *, moments=False):
    """Kill a run again and again, then let it end; what was saved is never lost."""
    out = folder / "out.npz"
    order = order_of(kernel, layout, out, moments=moments)
    order["folder"] = str(folder / "checkpoint")
    saved = 0
    for number, kill in enumerate([*kills, None]):
        errors = folder / f"life{number}.log"
        life = live(order, errors, kill)
        assert life.code == (0 if kill is None else -signal.SIGKILL), errors.read_text()
        assert life.start >= saved, f"{kill}: resumed at {life.start}, {saved} were saved"
        assert all(chunk >= life.start for chunk in life.chunks)
        if kill is not None:
            assert life.stalled == (kill.point is not None)
            assert not out.exists()
            assert max(life.chunks) >= kill.after
        saved = max([saved, *life.saved])
    assert saved == TOTAL
    return dict(np.load(out))


def same(one, other):
    """Equal bit for bit."""
    assert one.keys() == other.keys()
    assert {"posterior|mu", "sample_stats|lp", "costs|gradients", "costs|evaluations"} <= set(one)
    for name, values in other.items():
        assert one[name].dtype == values.dtype, name
        np.testing.assert_array_equal(one[name], values, err_msg=name)
        assert one[name].tobytes() == values.tobytes(), name
    if "posterior_moments|mu" in one:
        assert one["posterior|mu"].shape == (4, 100)
    else:
        assert one["posterior|mu"].shape == (4, 400)
        assert one["warmup_posterior|mu"].shape == (4, 200)


def test_a_killed_run_is_the_uninterrupted_one(tmp_path, rng):
    """In warm-up; then between the two manifests, and again in the first checkpoint after it."""
    cases = [
        ("nuts", "vectorized", [Kill(int(rng.integers(20, 150)), None, rng.uniform(0, 0.03))]),
        (
            "random_walk",
            "parallel",
            [Kill(int(rng.integers(210, 500)), 8, 0.0), Kill(0, 9, rng.uniform(0, 0.03))],
        ),
    ]
    with ThreadPoolExecutor() as pool:  # the uninterrupted run meanwhile
        for kernel, layout, kills in cases:
            folder = tmp_path / kernel
            folder.mkdir()
            whole = pool.submit(reference, kernel, layout, folder)
            same(killed(kernel, layout, kills, folder), whole.result())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by kernel and layout, each made once."""
    runs = {}

    def run(kernel, layout):
        if (kernel, layout) not in runs:
            folder = tmp_path_factory.mktemp("whole")
            runs[kernel, layout] = reference(kernel, layout, folder)
        return runs[kernel, layout]

    return run


def moments(phase, rng, case):
    """Kills of one run, in order."""
    if phase == "writing":  # over all cases, every moment of a checkpoint is met
        points = (4 * case + np.arange(4)) % POINTS
        starts = (int(rng.integers(1, 180)), 0, int(rng.integers(210, 500)), 0)
        delays = rng.uniform(0, 0.02, 4)
        return [Kill(*kill) for kill in zip(starts, points.tolist(), delays, strict=True)]
    low, middle, high = {"warm-up": (1, 80, 150), "sampling": (201, 330, 480)}[phase]
    starts = (int(rng.integers(low, middle)), int(rng.integers(middle, high)))
    return [Kill(start, None, rng.uniform(0, 0.05)) for start in starts]


CASES = [(kernel, layout) for layout in DEVICES for kernel in KERNELS]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["warm-up", "sampling", "writing"])
@pytest.mark.parametrize(("kernel", "layout"), CASES)
def test_runs_survive_kills_in_every_phase(tmp_path, rng, whole, kernel, layout, phase):
    case = CASES.index((kernel, layout))
    kills = moments(phase, rng.spawn(case + 1)[-1], case)
    same(killed(kernel, layout, kills, tmp_path), whole(kernel, layout))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "layout"), [("nuts", "sequential"), ("random_walk", "parallel")]
)
def test_running_figures_survive_kills(tmp_path, rng, kernel, layout):
    """In sampling, twice, and while a checkpoint with the figures is written."""
    kills = [
        Kill(int(rng.integers(201, 300)), None, rng.uniform(0, 0.05)),
        Kill(int(rng.integers(300, 480)), 1, 0.0),
        Kill(0, None, rng.uniform(0, 0.05)),
    ]
    whole = reference(kernel, layout, tmp_path, moments=True)
    found = killed(kernel, layout, kills, tmp_path, moments=True)
    assert {"posterior_moments|mu", "posterior_covariance|covariance"} <= set(whole)
    same(found, whole)
