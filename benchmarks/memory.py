"""Peak memory and cost of storing of a long run: 4 chains x 100 000 draws x 100 dimensions.

NUTS with default settings and 1000 warm-up transitions in double precision, on 100 independent
normals. Each contender runs in a process of its own, one after the other. It first makes a short
run of the same model, so that imports, compiled code and what XLA keeps are there. Then

- base: resident memory (VmRSS in /proc/self/status) after that, garbage collected;
- peak: the largest resident memory from there to the end of the run, minus base. That is the
  kernel's high-water mark (VmHWM), reset at base through /proc/self/clear_refs; `ru_maxrss` of
  getrusage is the same mark and is printed in whole;
- judged: the same, up to the end of the verdict, or of NumPyro's summary;
- sampling: seconds of the run, warm-up included, compilation not, and storing not;
- storing: seconds in the sink's `append` and `flush`; the share is of sampling. The disk is that of
  the temporary folder; files are in the kernel's cache when the run ends.

NumPyro runs vectorised chains. It compiles again for the length of the run, within its seconds and
its peak. `--quick` makes 5000 draws.
"""

import contextlib
import gc
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIMENSIONS, CHAINS, WARMUP = 100, 4, 1000
CONTENDERS = ("quincunx to Zarr", "quincunx, Moments", "quincunx in memory", "numpyro")
BASELINE = 1000


def status(name):
    """A line of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {name}")


def timed(method, clock):
    """A method that adds the seconds it takes to `clock`."""

    def wrapped(*arguments):
        began = time.perf_counter()
        try:
            return method(*arguments)
        finally:
            clock.append(time.perf_counter() - began)

    return wrapped


def quincunx(kind, folder):
    """A function that runs, and one that judges what it returned."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import quincunx as qx
    import quincunx.distributions as dist
    from quincunx.inference import moments, sinks, store

    @qx.model
    def normals():
        qx.sample("x", dist.Normal(0.0, 1.0).expand([DIMENSIONS]).to_event(1))

    clock = []
    for cls in (store.ZarrStore, moments.MomentsSink, sinks.Memory):
        cls.append, cls.flush = timed(cls.append, clock), timed(cls.flush, clock)

    def run(num_samples):
        places = {
            "quincunx to Zarr": folder / f"draws{num_samples}.zarr",
            "quincunx, Moments": qx.Moments(),
            "quincunx in memory": None,
        }
        clock.clear()
        fit = qx.infer(
            normals, {}, num_warmup=WARMUP, num_samples=num_samples, num_chains=CHAINS,
            store=places[kind], progress=False,
        )  # fmt: skip
        storing = sum(clock)
        seconds = fit.costs["sample_seconds"] - storing
        return fit, {"sampling": seconds, "storing": storing}

    return run, lambda fit: fit.verdict


def numpyro():
    """The same with NumPyro's own sampler."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import numpyro.distributions as dist
    from numpyro import sample
    from numpyro.infer import MCMC, NUTS

    def normals():
        sample("x", dist.Normal(0.0, 1.0).expand([DIMENSIONS]).to_event(1))

    def run(num_samples):
        mcmc = MCMC(
            NUTS(normals), num_warmup=WARMUP, num_samples=num_samples, num_chains=CHAINS,
            chain_method="vectorized", progress_bar=False,
        )  # fmt: skip
        began = time.perf_counter()
        mcmc.run(jax.random.key(0))
        jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        return mcmc, {"sampling": time.perf_counter() - began, "storing": None}

    def judge(mcmc):
        with contextlib.redirect_stdout(io.StringIO()):
            mcmc.print_summary()

    return run, judge


def measure(kind, num_samples):
    """One contender, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        run, judge = numpyro() if kind == "numpyro" else quincunx(kind, Path(folder))
        run(BASELINE)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        base = status("VmRSS")
        result, figures = run(num_samples)
        figures |= {"base": base, "peak": status("VmHWM") - base}
        began = time.perf_counter()
        judge(result)
        figures |= {"judged": status("VmHWM") - base, "judging": time.perf_counter() - began}
        figures["ru_maxrss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        return figures


def main(arguments):
    if "--only" in arguments:
        kind, draws = arguments[arguments.index("--only") + 1 :][:2]
        print(json.dumps(measure(kind, int(draws))))
        return
    draws = 5_000 if "--quick" in arguments else 100_000
    size = CHAINS * draws * DIMENSIONS * 8 / 1e6
    print(f"{CHAINS} chains x {draws} draws x {DIMENSIONS} dimensions: {size:.0f} MB of draws")
    print("MB above the process before the run (base), and seconds")
    head = f"{'':20}{'base':>7}{'peak':>7}{'judged':>8}{'ru_maxrss':>11}"
    print(head + f"{'sampling':>10}{'storing':>9}{'share':>8}{'judging':>9}")
    for kind in CONTENDERS:
        command = [sys.executable, __file__, "--only", kind, str(draws)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ})
        found = json.loads(done.stdout.splitlines()[-1])
        storing = f"{'':>9}{'':>8}"
        if found["storing"] is not None:
            share = found["storing"] / found["sampling"]
            storing = f"{found['storing']:9.2f}{share:8.1%}"
        line = f"{kind:20}{found['base']:7.0f}{found['peak']:7.0f}{found['judged']:8.0f}"
        line += f"{found['ru_maxrss']:11.0f}{found['sampling']:10.1f}{storing}"
        print(line + f"{found['judging']:9.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
