"""A training with its folder: what `ganzoo train` and `ganzoo resume` do."""

import dataclasses
import json
import platform
import shutil
import signal
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import gankernels
import torch

import ganzoo.data
from ganzoo.errors import ArgumentError, Error, Stopped, program
from ganzoo.files import sweep, write_atomically
from ganzoo.metrics.digits import DigitJudge
from ganzoo.options import Checked, Count, CountOrZero
from ganzoo.plots import save_curves, save_samples
from ganzoo.training import distributed
from ganzoo.training.checkpoint import CHECKPOINT, Saver, load_checkpoint, save_checkpoint
from ganzoo.training.compare import compare_speed, speed_line
from ganzoo.training.draw import check_seed
from ganzoo.training.health import Diverged, Health, alarms, cut_short
from ganzoo.training.loop import PRECISIONS, Trainer, as_device
from ganzoo.training.monitor import Monitor, Silent, read_metrics
from ganzoo.variants.base import create_saved

LOG_EVERY = 10
GRID, POINTS = 64, 1000
GRID_SEED = 0
CURVES_EVERY = 10
"""Seconds between drawings of the curves, which take a third of one."""
JUDGED = 1000

README = """This folder is a run of ganzoo: {variant} on {data}, started with

    {command}

Go on with it after an interruption, or with --steps beyond its end; draw from it, measure it, draw its curves again:

    {program} resume {folder}
    {program} sample {folder} --n 64
    {program} evaluate {folder}
    {program} plot {folder}

config.json            variant, options, data, versions and the command
metrics.jsonl          the figures of every {log_every}th step, one JSON object a line; seconds are those of training
tensorboard/           the same for TensorBoard
curves.png             the same as curves
samples/000500.png     what the same latents had become by that step
samples.png            the last of these
generator.safetensors  what samples; needs neither data nor this configuration
checkpoint.pt          everything that the next step depends on
log.txt                alarms and other events, when there were any
summary.json           what came out of it, once it has ended
"""


@dataclass
class RunOptions(Checked):
    """How a run is carried out, whatever it trains."""

    data: str = ""
    """What to train on: a word such as digits, ring or photos, or the path of a folder of images or a file of data. Unless given, digits, or
    what the variant is for."""
    data_options: tuple[str, ...] = ()
    """Options of the data, as name=value: size=32."""
    seed: CountOrZero = 0
    """Decides the initial weights and every random number. The same seed repeats a run to the bit on the CPU."""
    device: str = "cpu"
    """cpu, or an accelerator such as cuda."""
    precision: str = "fp32"
    """fp32, bf16 or fp16: the latter two by autocast, fp16 with scaled losses."""
    accumulate: Count = 1
    """Parts that each batch is cut into, one after another through the networks, to save memory."""
    compile: bool = False
    """Compile the losses with torch.compile."""
    cuda_graph: bool = False
    """Capture whole steps, from losses to optimisers, in CUDA graphs, and replay them from then on."""
    threads: Count = 1
    """CPU threads. Part of what makes a run repeat to the bit; more than one pays off beyond small images."""
    save_every: Count = 500
    """Generator steps between checkpoints; a sample grid and the curves are drawn with each."""
    rollbacks: CountOrZero = 0
    """How often a training that diverges goes back to its last checkpoint and on with other random numbers."""
    tensorboard: bool = True
    """Write the figures for TensorBoard too."""
    compare_blocks: CountOrZero = 11
    """Blocks per side in the speed comparison with stock PyTorch that follows the training; 0 leaves it out."""
    runs: str = "runs"
    """Folder in which the run's own folder is made."""

    def check(self):
        super().check()
        check_seed(self.seed)
        as_device(self.device)
        if self.precision not in PRECISIONS:
            raise ArgumentError("precision", f"one of {', '.join(PRECISIONS)}", repr(self.precision))


def versions():
    """The versions and the platform that a run's figures depend on."""
    return {
        "gankernels": gankernels.__version__,
        **{package: metadata.version(package) for package in ("torch", "numpy", "scikit-learn")},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def open_data(options):
    """The data that a run's options name."""
    pairs = [option.partition("=") for option in options.data_options]
    for name, equals, _ in pairs:
        if not equals:
            raise ArgumentError("data_options", "pairs such as size=32", name)
    return ganzoo.data.open(options.data, **{name: value for name, _, value in pairs})


def settle_data(variant, options):
    """Write into a run's options what they leave open: the variant's usual data, and the form that it needs them in."""
    if not options.data:
        options.data, *usual = variant.usual_data
        options.data_options = (*usual, *options.data_options)
    told = any(option.startswith("form=") for option in options.data_options)
    if variant.form and not told and "form" in ganzoo.data.source_options(options.data):
        options.data_options = (*options.data_options, f"form={variant.form}")


def train(variant, options, command):
    """Train a variant in a new run folder, which it returns. A training that fails before it has any figures leaves none."""
    variant.check()
    options.check()
    settle_data(variant, options)
    trainer = _trainer(variant, options)
    folder = distributed.from_first(lambda: _new_folder(options, variant))
    if distributed.rank() == 0:
        config = {
            "variant": variant.name,
            "options": variant.options(),
            "run": dataclasses.asdict(options),
            "command": command,
            "versions": versions(),
        }
        _describe(folder, config)
        save_checkpoint(folder, trainer)
    try:
        _carry_out(folder, trainer, options)
    except Exception as error:
        explained = isinstance(error, (Diverged, Stopped)) or read_metrics(folder)
        if distributed.rank() == 0 and not explained:
            shutil.rmtree(folder)
        raise
    return folder


def _describe(folder, config):
    """Write a run's `config.json`, and its `README.txt` with the folder as it is called now."""
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
    words = dict(
        variant=config["variant"],
        data=config["run"]["data"],
        command=config["command"],
        program=program(),
        folder=folder,
        log_every=LOG_EVERY,
    )
    write_atomically(folder / "README.txt", README.format(**words).encode())


def read_config(folder):
    """The variant and the `RunOptions` of a run folder, and its whole config. Raises `Error` where it is damaged."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        variant, options = create_saved(config["variant"], config["options"]), RunOptions(**config["run"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise Error(f"{Path(folder) / 'config.json'} is missing or damaged ({type(error).__name__}).") from error
    return variant, options, config


def resume(folder, steps=0, data="", device=""):
    """Go on with a run from its last checkpoint, to `steps` or, when that is 0, to the step it was to end at. `data` is where
    its data are now, if they have moved, `device` where to go on, unless where it was. Returns the folder.

    Raises `Error` where the folder is not a run's, its files are damaged, or nothing is left to do.
    """
    folder = Path(folder)
    state = load_checkpoint(folder)
    variant, options, config = read_config(folder)
    options.data_options = tuple(options.data_options)
    options.data = config["run"]["data"] = data or options.data
    options.device = config["run"]["device"] = device or options.device
    options.check()
    done = state["steps"]
    if steps:
        variant.steps = config["options"]["steps"] = steps
        variant.check()
        if steps <= done:
            raise ArgumentError("steps", f"above the {done} that {folder} has", steps)
    elif done >= variant.steps:
        further = f"{program()} resume {folder} --steps {2 * done}"
        raise Error(f"{folder} has ended, after {done} steps; `{further}` goes on to twice as many.")
    trainer = _trainer(variant, options)
    try:
        trainer.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        networks = f"the networks that its config.json makes for {options.data}"
        raise Error(f"{folder / CHECKPOINT} does not fit {networks}.") from error
    if distributed.rank() == 0:
        sweep(folder)
        _describe(folder, config)
    _carry_out(folder, trainer, options)
    return folder


def _trainer(variant, options):
    torch.set_num_threads(options.threads)
    return Trainer(
        variant,
        open_data(options),
        seed=options.seed,
        device=distributed.join(options.device),
        precision=options.precision,
        accumulate=options.accumulate,
        compile=options.compile,
        cuda_graph=options.cuda_graph,
    )


def _new_folder(options, variant):
    name = f"{variant.name}-{Path(options.data).stem}-{time.strftime('%Y%m%d-%H%M%S')}-seed{options.seed}"
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


class _Terminated(Exception):
    """SIGTERM, which torchrun sends to the processes that are left when one has died, and batch systems before they kill."""


def _carry_out(folder, trainer, options):
    def stop(*_):
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        seconds = _train(folder, trainer, options)
        judged = _judged_samples(trainer) if options.data == "digits" else None
    except (_Terminated, RuntimeError) as error:
        if not (isinstance(error, _Terminated) or distributed.lost(error)):
            raise
        cause = "another process of the run ended" if distributed.size() > 1 else "the run was told to stop"
        raise Stopped(
            f"{cause}, at step {trainer.steps}; `{program()} resume {folder}` goes on from the last checkpoint."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    if distributed.rank() == 0:
        _sum_up(folder, trainer, options, seconds, judged)
    distributed.leave()


def _train(folder, trainer, options):
    """All steps that are left. Returns the seconds of training."""
    first, last, health, drawn = distributed.rank() == 0, trainer.variant.steps, Health(), 0.0
    lacking = cut_short(trainer)
    with Saver(folder) as saver, _monitor(folder, trainer, options, first) as monitor:
        monitor.alarm(trainer.steps, lacking)
        while trainer.steps < last:
            health.note(trainer.steps + 1, trainer.step())
            save = trainer.steps % options.save_every == 0 or trainer.steps == last
            if save or trainer.steps % LOG_EVERY == 0:
                try:
                    values = health.check()
                except Diverged as diverged:
                    if trainer.attempt == options.rollbacks:
                        monitor.say(diverged.step, diverged.sentence())
                        raise
                    _roll_back(folder, trainer, saver, monitor, diverged)
                    continue
                monitor.log(trainer.steps, values)
            monitor.advance(trainer.steps)
            if save:
                images = trainer.show(GRID if len(trainer.data.shape) == 3 else POINTS, seed=GRID_SEED)
                if first:  # the checkpoint last: whoever goes on from it has the pictures up to it
                    monitor.alarm(trainer.steps, [*lacking, *alarms(trainer, images)])
                    _draw(folder, trainer, images)
                    if trainer.steps == last or time.perf_counter() - drawn > CURVES_EVERY:
                        drawn = time.perf_counter()
                        title = f"{trainer.variant.name} on {trainer.data.name}"
                        save_curves(folder / "curves.png", {"": monitor.records}, title)
                    saver.save(trainer)
        return monitor.seconds()


def _monitor(folder, trainer, options, first):
    if not first:
        return Silent()
    variant = trainer.variant
    return Monitor(folder, variant.name, trainer.steps, variant.steps, tensorboard=options.tensorboard)


def _roll_back(folder, trainer, saver, monitor, diverged):
    saver.wait()
    distributed.from_first(lambda: None)  # the file is there for all
    attempt = trainer.attempt + 1
    trainer.load_state_dict(load_checkpoint(folder))
    trainer.retry(attempt)
    monitor.back_to(trainer.steps)
    monitor.say(diverged.step, f"{diverged.sentence()}; back to step {trainer.steps}")


def _draw(folder, trainer, images):
    for path in (folder / "samples" / f"{trainer.steps:06}.png", folder / "samples.png"):
        save_samples(path, images, trainer.variant.columns(trainer.data))


def _sum_up(folder, trainer, options, seconds, judged):
    variant = trainer.variant
    print(f"Trained {variant.steps} steps in {seconds:.0f} s; run folder {folder}")
    summary = {"steps": trainer.steps, "training_seconds": round(seconds, 1)}
    if judged:
        summary["digits"] = _judge(*judged)
    if options.compare_blocks and distributed.size() == 1:
        summary["speed"] = compare_speed(variant, trainer.sources, device=options.device, blocks=options.compare_blocks)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    if "speed" in summary:
        print(speed_line(summary["speed"]))


def _judged_samples(trainer):
    untrained = Trainer(trainer.variant, trainer.sources, device=trainer.device)
    return [network.sample(JUDGED, seed=1).cpu() for network in (trainer, untrained)]


def _judge(samples, untrained):
    judge = DigitJudge()
    figures = {"samples": judge.judge(samples), "untrained": judge.judge(untrained), "real": judge.held_out()}
    shares = {name: f"{judged['recognised']:.1%}" for name, judged in figures.items()}
    print(
        f"Recognised with p >= 0.9 by a classifier of the real digits: {shares['samples']} of {JUDGED} samples "
        f"(untrained generator {shares['untrained']}, real digits it has not seen {shares['real']}); "
        f"{figures['samples']['classes']} of the 10 digits appear."
    )
    return figures
