"""A run that is killed again and again ends as one that never was."""

import json
import os
import random
import signal
import sys
import time

import ganzoo.training.run  # noqa: F401
import matplotlib.figure  # noqa: F401
import rich.live  # noqa: F401
import torch
from .conftest import same
from ganzoo import cli
from ganzoo.data import open as open_data
from ganzoo.training.checkpoint import load_checkpoint

KILLS = 20
OPTIONS = ("--width 2 --latent 4 --batch 4 --ema 0.9 --save-every 20 --no-tensorboard --compare-blocks 0").split()


def in_a_child(arguments, seconds=None, after=lambda: True):
    """The command line in a forked process, killed so many seconds after something holds. Returns whether it came to its
    end."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        sys.argv = ["ganzoo", *arguments]
        status = 1
        try:
            cli.main()
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        while not after():
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert seconds is not None or status == 0
    return status == 0


def figures(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_killed_twenty_times_a_run_ends_with_the_same_weights_curves_and_samples(tmp_path):
    open_data("digits")  # what a child would import, it now has from the start
    moments = random.Random(0)
    start = ["train", "gan", *OPTIONS, "--steps", "1000000", "--runs", str(tmp_path / "killed")]
    in_a_child(start, moments.uniform(0, 0.5), after=lambda: list(tmp_path.glob("killed/*/checkpoint.pt")))
    (killed,) = (tmp_path / "killed").iterdir()
    reached = [load_checkpoint(killed)["steps"]]
    for kill in range(1, KILLS):
        before = (killed / "checkpoint.pt").stat().st_ino
        # every second one gets as far as its next checkpoint
        moved = (lambda: (killed / "checkpoint.pt").stat().st_ino != before) if kill % 2 else (lambda: True)
        assert not in_a_child(["resume", str(killed)], moments.uniform(0, 0.1 if kill % 2 else 0.4), after=moved)
        reached.append(load_checkpoint(killed)["steps"])  # whole at every moment
    assert len(set(reached)) >= KILLS // 2 and reached == sorted(reached), reached
    steps = str(reached[-1] + 40)
    assert in_a_child(["resume", str(killed), "--steps", steps])
    assert in_a_child(["train", "gan", *OPTIONS, "--steps", steps, "--runs", str(tmp_path / "straight")])
    (straight,) = (tmp_path / "straight").iterdir()

    assert figures(killed) == figures(straight) and not list(killed.rglob(".*"))
    states = [load_checkpoint(run) for run in (killed, straight)]
    assert same(*states) and states[0]["steps"] == int(steps)
    pictures = sorted(path.relative_to(straight) for path in straight.glob("samples/*.png"))
    assert len(pictures) == int(steps) // 20
    for name in ["generator.safetensors", "samples.png", *pictures]:
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name
