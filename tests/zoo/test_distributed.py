"""Two processes, under torchrun, against one."""

import os
import re
import signal
import time
from pathlib import Path

import torch
from ganzoo.training import distributed
from ganzoo.training.checkpoint import load_checkpoint

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0"]
SCRIPT = str(Path(__file__).with_name("two_processes.py"))


def leaves(nest, path=""):
    """Every tensor and number of a nest by its path."""
    if isinstance(nest, dict):
        return {k: v for key, value in nest.items() for k, v in leaves(value, f"{path}/{key}").items()}
    if isinstance(nest, (list, tuple)):
        return {k: v for key, value in enumerate(nest) for k, v in leaves(value, f"{path}/{key}").items()}
    return {path: nest}


def test_two_processes_of_half_the_batch_equal_one(python, tmp_path):
    alone, together = python(SCRIPT, str(tmp_path / "one.pt")), python(*TORCHRUN, SCRIPT, str(tmp_path / "two.pt"))
    for process in (alone, together):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    one, two = (leaves(torch.load(tmp_path / name, weights_only=True)) for name in ("one.pt", "two.pt"))
    assert (
        one.keys() == two.keys()
        and any("running_var" in name for name in one)
        and any("/_u" in n or "._u" in n for n in one)
    )
    for name, value in one.items():
        # float64; Adam divides by roots of squares, so where a gradient is nearly nothing its rounding shows
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-9, msg=lambda m: f"{name}: {m}")


def test_the_means_over_processes_are_the_values_themselves_when_there_is_one():
    values = torch.randn(3)
    assert distributed.mean(values) is values and distributed.gather(values) is values
    assert distributed.size() == 1 and distributed.rank() == 0


def test_a_process_that_dies_ends_the_run_which_can_be_resumed_sampled_and_measured(
    python, forked_command, tmp_path, monkeypatch
):
    options = "--width 2 --latent 4 --batch 4 --save-every 5 --no-tensorboard --compare-blocks 0".split()
    process = python(*TORCHRUN, "-m", "ganzoo", "train", "gan", *options, "--steps", "100000", "--runs", str(tmp_path))
    deadline = time.time() + 100
    while not list(tmp_path.glob("*/samples/000015.png")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    victim = next(c for c in children if "RANK=1" in Path(f"/proc/{c}/environ").read_text().split("\0"))
    os.kill(int(victim), signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    (run,) = tmp_path.iterdir()
    assert process.returncode != 0
    assert re.search(
        rf"ganzoo: another process of the run ended, at step \d+; `ganzoo resume {run}` goes on from the last checkpoint\.",
        errors,
    ), errors
    steps = load_checkpoint(run)["steps"]
    assert steps >= 5
    forked_command("resume", run, "--steps", steps + 3)
    assert load_checkpoint(run)["steps"] == steps + 3

    def command_of_two(*arguments):
        process = python(
            *TORCHRUN, "-m", "--", "ganzoo", *map(str, arguments)
        )  # else torchrun takes --n for one of its own
        out, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        return out

    drawn, measured = [], []
    for number, command in enumerate((forked_command, command_of_two)):
        command("sample", run, "--n", 600, "--out", tmp_path / f"{number}.png")
        drawn.append((tmp_path / f"{number}.png").read_bytes())
        monkeypatch.setenv("GANZOO_CACHE", str(tmp_path / f"cache{number}"))
        measured.append(command("evaluate", run, "--n", 600, "--extractor", "pixels"))
    assert drawn[0] == drawn[1]
    assert measured[0] == measured[1] and len(measured[0].splitlines()) == 7
