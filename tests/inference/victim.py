"""A run in a process of its own, that reports what it does and waits where it is told to be killed.

`python -m tests.inference.victim ORDER`, with the order in JSON: `kernel`, `layout`, `run` (further
arguments of `infer`), `moments` (whether only figures of the draws are kept), `out` (where all that
is kept goes), and for a run with checkpoints `folder` and, to be stalled, `after` and `point`: the
number of a moment while files are written, counted from the first checkpoint with so many
transitions. Lines on stdout are a word and a number of transitions:
`resumed`, `chunk`, `saved`, and `stalled`.
"""

import functools
import io
import json
import os
import random
import sys
import time

import jax
import numpy as np

import quincunx as qx
from quincunx.inference import archive, checkpoint, session
from quincunx.inference import moments as module
from tests.laws.kernels import RandomWalk
from tests.scenarios import conjugate

KERNELS = {
    "nuts": qx.NUTS,
    "polar_slice": qx.PolarSlice,
    "random_walk": functools.partial(RandomWalk, execution="free"),
}
Y = {"y": np.array([0.3, 1.9, -0.4, 2.2, 1.1])}


def say(word, number):
    print(word, number, flush=True)


class ShortChunks:
    """Chunks of few transitions, cut differently in every process."""

    seconds_per_step = 0.0

    def __init__(self, seconds):
        del seconds

    @property
    def steps(self):
        return random.randint(1, 12)

    def update(self, steps, elapsed):
        pass


class Stall:
    """Counts the moments of a checkpoint and stays in one of them.

    A moment is when a file is written by half, when it is whole, and when it has its name.
    """

    def __init__(self, after, point):
        self.after, self.left, self.done = after, point, None

    def pass_by(self):
        if self.done is None or self.done < self.after:
            return
        if self.left == 0:
            say("stalled", self.done)
            time.sleep(120)
            os._exit(3)
        self.left -= 1

    def opened(self, path, mode):
        stall = self

        class Slow(io.FileIO):
            def write(self, data):
                half = super().write(data[: len(data) // 2])
                stall.pass_by()
                return half + super().write(data[half:])

        return Slow(path, mode)

    def __getattr__(self, name):
        return getattr(os, name)

    def replace(self, source, target):
        self.pass_by()
        os.replace(source, target)
        self.pass_by()


def report_saves(stall):
    """Make checkpoints say what they did, and stall in the middle of it."""
    write, read = checkpoint.Checkpoint.write, checkpoint.Checkpoint.read

    def saying_write(self, run, identity):
        if stall is not None:
            stall.done = run.done
        write(self, run, identity)
        say("saved", run.done)

    def saying_read(self, run, identity):
        read(self, run, identity)
        say("resumed", run.done)

    checkpoint.Checkpoint.write, checkpoint.Checkpoint.read = saying_write, saying_read
    session.Pace = ShortChunks
    if stall is not None:
        archive.open, archive.os = stall.opened, stall


def report_chunk(progress):
    say("chunk", progress.done)
    time.sleep(0.01)


def keep(fit, path):
    """Everything about a fit that must not depend on where it was broken off."""
    arrays = {
        f"{group}|{name}": values.values
        for group, node in fit.tree.children.items()
        for name, values in node.data_vars.items()
    }
    costs = {name: cost for name, cost in fit.costs.items() if not name.endswith("_seconds")}
    np.savez(path, **arrays, **{f"costs|{name}": cost for name, cost in costs.items()})


def main(order):
    jax.config.update("jax_enable_x64", True)
    settings = {**order["run"], "chain_method": order["layout"], "progress": False}
    if order["moments"]:
        module._BLOCK = 16
        settings |= {"store": qx.Moments(keep=50), "keep_warmup": False}
    if "folder" in order:
        stall = Stall(order["after"], order["point"]) if "after" in order else None
        report_saves(stall)
        saver = qx.Checkpoint(order["folder"], every=0.0)
        settings |= {"checkpoint": saver, "resume": True, "progress": report_chunk}
    keep(qx.infer(conjugate, Y, KERNELS[order["kernel"]](), **settings), order["out"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
