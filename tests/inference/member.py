"""A script that several processes run together; `python -m` of it alone runs by itself.

Arguments: where the first process writes draws, a mesh, and for a run with checkpoints a folder and
the transition after which rank 1 kills itself, -1 for never. It leaves the time in a file `killed`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax

import quincunx as qx

qx.configure(x64=True)
qx.distributed.initialize()

import numpy as np  # noqa: E402

from tests.laws.networks import data_of, regression  # noqa: E402


def main(out, sizes, folder=None, after="-1"):
    mesh = qx.mesh(**json.loads(sizes))
    settings = {"num_warmup": 20, "num_samples": 60, "num_chains": 2, "mesh": mesh}

    def report(progress):
        if jax.process_index() == 1 and 0 <= int(after) <= progress.done:
            (Path(out).parent / "killed").write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    if folder is not None:
        settings |= {"checkpoint": qx.Checkpoint(folder, every=0.0), "resume": True}
    found = {}
    methods = {"admm": qx.ADMM(agents=4, graph="ring", steps=2)} if "agents" in sizes else {}
    if folder is None and methods:
        methods["gossip"] = qx.DecentralizedSGLD(agents=4, steps=2)
        methods["federated"] = qx.FederatedSGLD(agents=4, steps=2)
    for name, method in (methods or {"nuts": qx.NUTS(step_size=0.1)}).items():
        options = settings | ({} if methods else {"num_warmup": 0, "num_samples": 10})
        fit = qx.infer(regression, data_of(4), method, progress=report, **options)
        found[name] = fit.posterior["theta"].values
        print(name, fit.verdict.status, flush=True)
    if jax.process_index() == 0:
        np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
