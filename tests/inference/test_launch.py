"""Several processes that run one script: the same draws as one, and one end for all."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quincunx.cli import main
from quincunx.inference.distributed.launch import _FORCED
from quincunx.inference.distributed.processes import COORDINATOR, COUNT, RANK

ROOT = Path(__file__).parents[2]
AGENTS, ROWS = '{"agents": 4}', '{"chains": 2, "data": 2}'


def environment(**more):
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **more}


def run(tmp_path, processes, *words, devices=2):
    """Launch the member script; returns what the launcher said."""
    start = "from quincunx.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", start, "launch", "--processes", str(processes)]
    command += ["--devices-per-process", str(devices), "--logs", str(tmp_path / "logs")]
    command += [str(ROOT / "tests/inference/member.py"), *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
        timeout=400,
    )  # fmt: skip


def draws(path):
    with np.load(path) as found:
        return dict(found)


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return str(path)


def launch(tmp_path, text, processes=3):
    words = ["launch", "--processes", str(processes), "--logs", str(tmp_path / "logs")]
    return main([*words, script(tmp_path, text), "--flag", "one"])


def test_ranks_words_and_logs(tmp_path, capfd):
    text = """
import os, sys
print("rank", os.environ["QUINCUNX_RANK"], "of", os.environ["QUINCUNX_PROCESSES"], sys.argv[1:])
"""
    assert launch(tmp_path, text) == 0
    assert capfd.readouterr().out == "rank 0 of 3 ['--flag', 'one']\n"
    for rank in range(3):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        assert log == f"rank {rank} of 3 ['--flag', 'one']\n"


FAILING = """
import os, signal, sys, time
if os.environ["QUINCUNX_RANK"] == "1":
    {how}
time.sleep(300)
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("sys.exit(7)", "Rank 1 of 3 ended with status 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "Rank 1 of 3 was killed by SIGKILL"),
    ],
)
def test_one_that_fails_ends_all(tmp_path, capfd, how, says):
    began = time.monotonic()
    assert launch(tmp_path, FAILING.format(how=how)) == 2
    assert time.monotonic() - began < 30
    error = capfd.readouterr().err
    assert says in error
    assert "rank-1.log" in error
    assert error.count("\n") == 1


def test_a_script_that_there_is_not(capfd):
    assert main(["launch", "nowhere.py"]) == 2
    assert "There is no script 'nowhere.py'" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [AGENTS, ROWS])
def test_two_processes_draw_as_one(tmp_path, sizes):
    done = run(tmp_path, 2, tmp_path / "two.npz", sizes)
    assert done.returncode == 0, done.stderr + done.stdout
    done = run(tmp_path, 1, tmp_path / "one.npz", sizes, devices=4)
    assert done.returncode == 0, done.stderr + done.stdout
    one, two = draws(tmp_path / "one.npz"), draws(tmp_path / "two.npz")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(tmp_path):
    whole = run(tmp_path, 1, tmp_path / "whole.npz", AGENTS, tmp_path / "none", devices=4)
    assert whole.returncode == 0, whole.stderr + whole.stdout
    killed = run(tmp_path, 2, tmp_path / "two.npz", AGENTS, tmp_path / "saved", 30)
    assert time.time() - float((tmp_path / "killed").read_text()) < 60
    assert killed.returncode == 2
    assert "Rank 1 of 2 was killed by SIGKILL" in killed.stderr
    assert not (tmp_path / "two.npz").exists()
    assert (tmp_path / "saved" / "manifest.json").exists()
    again = run(tmp_path, 1, tmp_path / "one.npz", AGENTS, tmp_path / "saved", devices=4)
    assert again.returncode == 0, again.stderr + again.stdout
    found, expected = draws(tmp_path / "one.npz")["admm"], draws(tmp_path / "whole.npz")["admm"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_without_a_launcher_a_killed_rank_is_missed(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    member = [sys.executable, str(ROOT / "tests/inference/member.py"), str(tmp_path / "draws.npz")]
    shared = {COORDINATOR: address, COUNT: "2", "XLA_FLAGS": f"{_FORCED}=2"}
    started = [
        subprocess.Popen(
            [*member, AGENTS, str(tmp_path / "saved"), "30"], cwd=ROOT, text=True,
            env=environment(**shared, **{RANK: str(rank)}), stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    error = started[0].communicate(timeout=400)[1]
    took = time.time() - float((tmp_path / "killed").read_text())
    assert started[1].wait() == -signal.SIGKILL
    assert started[0].returncode == 2
    assert 15 < took < 60
    assert "Rank 1 of 2 has not answered for 20 s" in error
    assert not (tmp_path / "draws.npz").exists()
