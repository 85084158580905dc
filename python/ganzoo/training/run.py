"""A training with its folder: what `ganzoo train` and `ganzoo resume` do.

config.json            variant, options, data, versions and the command that started it
metrics.jsonl          the figures of every tenth step
curves.png             the same as curves
samples/000500.png     what the same 64 latents became by that step
samples.png            the last of these
generator.safetensors  the generator's weights: `ganzoo sample <run>`
checkpoint.pt          everything else: `ganzoo resume <run>`
summary.json           what came out of it
"""

import dataclasses
import json
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import gankernels
import torch

from ganzoo.data.digits import digits
from ganzoo.errors import ArgumentError, Error
from ganzoo.metrics.digits import DigitJudge
from ganzoo.options import Checked, Count, CountOrZero
from ganzoo.plots import save_curves, save_grid
from ganzoo.training.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from ganzoo.training.compare import compare_speed, speed_line
from ganzoo.training.loop import Trainer, as_device, check_seed
from ganzoo.training.monitor import Monitor
from ganzoo.variants.base import create

LOG_EVERY = 10
GRID = 64
GRID_SEED = 0
JUDGED = 1000


@dataclass
class RunOptions(Checked):
    """How a run is carried out, whatever it trains."""

    seed: CountOrZero = 0
    """Decides the initial weights and every random number. The same seed repeats a run to the bit on the CPU."""
    device: str = "cpu"
    """cpu, or an accelerator such as cuda."""
    threads: Count = 1
    """CPU threads. Part of what makes a run repeat to the bit; more than one pays off beyond small images."""
    save_every: Count = 500
    """Generator steps between checkpoints; a sample grid and the curves are drawn with each."""
    compare_blocks: CountOrZero = 11
    """Blocks per side in the speed comparison with stock PyTorch that follows the training; 0 leaves it out."""
    runs: str = "runs"
    """Folder in which the run's own folder is made."""

    def check(self):
        super().check()
        check_seed(self.seed)
        as_device(self.device)


def versions():
    """The versions and the platform that a run's figures depend on."""
    return {
        "gankernels": gankernels.__version__,
        **{package: metadata.version(package) for package in ("torch", "numpy", "scikit-learn")},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def train(variant, options, command):
    """Train a variant on the digits in a new run folder. Returns the folder."""
    variant.check()
    options.check()
    torch.set_num_threads(options.threads)
    trainer = Trainer(variant, digits()[0], seed=options.seed, device=options.device)
    folder = _new_folder(options, variant)
    config = {
        "variant": variant.name,
        "options": variant.options(),
        "run": dataclasses.asdict(options),
        "data": "digits",
        "command": command,
        "versions": versions(),
    }
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
    save_checkpoint(folder, trainer)
    _carry_out(folder, trainer, options)
    return folder


def resume(folder, steps=0):
    """Go on with a run from its last checkpoint, to `steps` or, when that is 0, to the step it was to end at.
    Returns the folder.

    Raises `Error` where the folder is not a run's, its files are damaged, or nothing is left to do.
    """
    folder = Path(folder)
    state = load_checkpoint(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        variant, options = create(config["variant"], **config["options"]), RunOptions(**config["run"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise Error(f"{folder / 'config.json'} is missing or damaged ({type(error).__name__}).") from error
    options.check()
    if steps:
        variant.steps = steps
        variant.check()
    if state["steps"] >= variant.steps:
        raise ArgumentError("steps", f"above the {state['steps']} that {folder} has", variant.steps)
    torch.set_num_threads(options.threads)
    trainer = Trainer(variant, digits()[0], seed=options.seed, device=options.device)
    trainer.load_state_dict(state)
    if steps:
        config["options"]["steps"] = steps
        write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
    _carry_out(folder, trainer, options)
    return folder


def _new_folder(options, variant):
    name = f"{variant.name}-digits-{time.strftime('%Y%m%d-%H%M%S')}-seed{options.seed}"
    for attempt in range(1, 1000):
        folder = Path(options.runs) / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            (folder / "samples").mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ArgumentError("runs", f"a folder that can be written to ({error.strerror})", options.runs) from error
    raise Error(f"{options.runs} has 999 runs named {name}.")


def _carry_out(folder, trainer, options):
    variant = trainer.variant
    with Monitor(folder, variant.name, trainer.steps, variant.steps) as monitor:
        while trainer.steps < variant.steps:
            figures = trainer.step()
            save = trainer.steps % options.save_every == 0 or trainer.steps == variant.steps
            if save or trainer.steps % LOG_EVERY == 0:
                monitor.log(trainer.steps, figures)
            monitor.advance(trainer.steps)
            if save:
                save_checkpoint(folder, trainer)
                _draw(folder, trainer, monitor.records)
        seconds = monitor.seconds()
    print(f"Trained {variant.steps} steps in {seconds:.0f} s; run folder {folder}")
    summary = {"steps": trainer.steps, "training_seconds": round(seconds, 1)}
    summary["digits"] = _judge(trainer)
    if options.compare_blocks:
        summary["speed"] = compare_speed(variant, digits()[0], device=options.device, blocks=options.compare_blocks)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    if options.compare_blocks:
        print(speed_line(summary["speed"]))


def _draw(folder, trainer, records):
    images = trainer.sample(GRID, seed=GRID_SEED)
    for path in (folder / "samples" / f"{trainer.steps:06}.png", folder / "samples.png"):
        save_grid(path, images)
    save_curves(folder / "curves.png", records, f"{trainer.variant.name} on digits")


def _judge(trainer):
    judge = DigitJudge()
    untrained = Trainer(trainer.variant, digits()[0], device=trainer.device)
    figures = {
        "samples": judge.judge(trainer.sample(JUDGED, seed=1).cpu()),
        "untrained": judge.judge(untrained.sample(JUDGED, seed=1).cpu()),
        "real": judge.held_out(),
    }
    shares = {name: f"{judged['recognised']:.1%}" for name, judged in figures.items()}
    print(
        f"Recognised with p >= 0.9 by a classifier of the real digits: {shares['samples']} of {JUDGED} samples "
        f"(untrained generator {shares['untrained']}, real digits it has not seen {shares['real']}); "
        f"{figures['samples']['classes']} of the 10 digits appear."
    )
    return figures
